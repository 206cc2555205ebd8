//! `kith devices` and `kith device`.

use kith_node::config::Home;
use kith_node::local::no_input;
use kith_protocol::api::{Device, Event, Failure, FailureKind, Request, Spoken};

use super::{ask, join};
use crate::failure::CommandError;
use crate::output::Output;
use crate::session;

pub(crate) async fn list(home: &Home, output: &mut Output) -> Result<(), CommandError> {
    show(home, Request::Devices, output).await
}

/// How a device is removed.
pub(crate) struct How {
    /// With the 24 words.
    pub(crate) words: bool,
    /// Even if this device may be behind.
    pub(crate) force: bool,
    /// Without asking.
    pub(crate) yes: bool,
}

pub(crate) async fn remove(
    home: &Home,
    name: String,
    how: How,
    output: &mut Output,
) -> Result<(), CommandError> {
    let question = format!("Remove {name} for good? It cannot come back under the same key.");
    if !how.yes && !ask(question).await? {
        return Err(
            Failure::new(FailureKind::Failed, format!("remove {name}: not confirmed"))
                .hint("answer y, or give --yes")
                .into(),
        );
    }
    let words = if how.words {
        let (typed, _) = join::typed_words().await?;
        Some(Spoken(typed))
    } else {
        None
    };
    let request = Request::DeviceRemove {
        device: name,
        words,
        force: how.force,
    };
    show(home, request, output).await
}

async fn show(home: &Home, request: Request, output: &mut Output) -> Result<(), CommandError> {
    let mut call = session::call(home, request, no_input()).await?;
    while let Some((event, _)) = call.next().await? {
        match &event {
            Event::Device(device) => output.result(&event, || line(device))?,
            Event::Warning { text } => output.say(&format!("Warning: {text}")),
            _ => {}
        }
    }
    Ok(())
}

fn line(device: &Device) -> String {
    let state = match (device.removed, device.this, device.connected) {
        (true, ..) => "removed",
        (_, true, _) => "this device",
        (.., true) => "connected",
        _ => "away",
    };
    format!(
        "{:20} {:7} {:12} {}",
        device.name, device.role, state, device.device
    )
}
