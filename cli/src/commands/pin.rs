//! `kith pin`, `unpin`, `pins` and `retention`.

use kith_node::config::Home;
use kith_node::local::no_input;
use kith_protocol::api::{Event, Pin, Request};

use super::what;
use crate::args::{PinArgs, RetentionArgs, UnpinArgs};
use crate::failure::CommandError;
use crate::output::{Output, human};
use crate::session;

pub(crate) async fn pin(
    home: &Home,
    args: PinArgs,
    output: &mut Output,
) -> Result<(), CommandError> {
    let request = Request::Pin {
        what: what(&args.what),
        wait: args.wait,
    };
    show(home, request, output).await
}

pub(crate) async fn unpin(
    home: &Home,
    args: UnpinArgs,
    output: &mut Output,
) -> Result<(), CommandError> {
    let request = Request::Unpin {
        what: what(&args.what),
    };
    show(home, request, output).await
}

pub(crate) async fn pins(home: &Home, output: &mut Output) -> Result<(), CommandError> {
    show(home, Request::Pins, output).await
}

pub(crate) async fn retention(
    home: &Home,
    args: RetentionArgs,
    output: &mut Output,
) -> Result<(), CommandError> {
    let request = Request::Retention {
        all: args.all,
        daily: args.daily,
        monthly: args.monthly,
    };
    show(home, request, output).await
}

async fn show(home: &Home, request: Request, output: &mut Output) -> Result<(), CommandError> {
    let mut call = session::call(home, request, no_input()).await?;
    while let Some((event, _)) = call.next().await? {
        match &event {
            Event::Progress {
                bytes,
                total,
                files,
            } => output.progress(*bytes, *total, *files),
            Event::Warning { text } => output.say(&format!("Warning: {text}")),
            Event::Pinned {
                pin,
                blocks,
                bytes,
                missing,
            } => {
                let lacking = match missing {
                    0 => String::new(),
                    missing => format!(", {missing} missing"),
                };
                let text = format!(
                    "{}  {blocks} blocks, {}{lacking}\n",
                    line(pin),
                    human(*bytes)
                );
                output.result(&event, || text)?;
            }
            Event::Pin { pin } | Event::Unpinned { pin } => {
                let text = format!("{}\n", line(pin));
                output.result(&event, || text)?;
            }
            Event::Retention {
                all,
                daily,
                monthly,
            } => {
                let text = format!(
                    "every version              {}\nthe last of each day       {}\nthe last of each month     {}\n",
                    days(*all),
                    days(*daily),
                    days(*monthly)
                );
                output.result(&event, || text)?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn line(pin: &Pin) -> String {
    let name = pin
        .name
        .as_ref()
        .map_or("-".to_owned(), |name| name.lossy());
    format!(
        "{}  {:<7}  {:>10}  {name}",
        pin.cid,
        pin.kind,
        human(pin.size)
    )
}

fn days(days: Option<u32>) -> String {
    match days {
        None => "for ever".to_owned(),
        Some(1) => "1 day".to_owned(),
        Some(days) => format!("{days} days"),
    }
}
