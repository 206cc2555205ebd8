//! `kith devices` and `kith device`.

use kith_node::config::Home;
use kith_node::local::no_input;
use kith_protocol::api::{Device, Event, Failure, FailureKind, Request, Spoken};

use super::{ask, join};
use crate::args::DeviceSetArgs;
use crate::failure::CommandError;
use crate::output::{Output, human};
use crate::session;

/// After so long a silence a device counts as gone that should always be there.
const ALWAYS_ON_GRACE_S: u32 = 48 * 3600;
/// And one that may be closed for a holiday.
const LAPTOP_GRACE_S: u32 = 14 * 86_400;

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

/// Says what a device gives.
pub(crate) async fn set(
    home: &Home,
    args: DeviceSetArgs,
    output: &mut Output,
) -> Result<(), CommandError> {
    let class = args.class.map(|class| match class.as_str() {
        "always-on" => ALWAYS_ON_GRACE_S,
        _ => LAPTOP_GRACE_S,
    });
    let site = args.site.map(|site| match site.as_str() {
        "none" => String::new(),
        _ => site,
    });
    let request = Request::DeviceSet {
        device: args.name,
        capacity: args.capacity,
        site,
        grace_s: args.grace.or(class),
        leaving: None,
    };
    show(home, request, output).await
}

/// Says whether a device stays.
pub(crate) async fn leave(
    home: &Home,
    name: String,
    leaving: &str,
    output: &mut Output,
) -> Result<(), CommandError> {
    let request = Request::DeviceSet {
        device: Some(name),
        capacity: None,
        site: None,
        grace_s: None,
        leaving: Some(leaving.to_owned()),
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
        _ if device.gone => "gone",
        _ => "away",
    };
    let mut keeps = Vec::new();
    if !device.removed {
        match device.leaving.as_str() {
            "drains" => keeps.push("is being emptied".to_owned()),
            "lost" => keeps.push("said to be lost".to_owned()),
            _ => {}
        }
        match device.capacity {
            0 => keeps.push("gives nothing".to_owned()),
            capacity => keeps.push(format!("gives {}", human(capacity))),
        }
        if !device.site.is_empty() {
            keeps.push(format!("at {}", device.site));
        }
        if device.told {
            keeps.push(format!("{} packs", device.packs));
        }
    }
    let line = format!(
        "{:20} {:7} {:12} {} {}",
        device.name,
        device.role,
        state,
        device.device,
        keeps.join(", ")
    );
    format!("{}\n", line.trim_end())
}
