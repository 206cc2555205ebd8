//! `kith pair`.

use kith_node::config::Home;
use kith_protocol::api::{Event, Failure, FailureKind, Request};
use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;

use super::ask;
use crate::args::PairArgs;
use crate::failure::CommandError;
use crate::output::Output;
use crate::session;

pub(crate) async fn run(
    home: &Home,
    args: PairArgs,
    yes: bool,
    output: &mut Output,
) -> Result<(), CommandError> {
    let mut call = session::call_daemon(
        home,
        Request::Pair {
            role: args.role,
            yes,
        },
    )
    .await?;
    let mut denied = None;
    while let Some((event, _)) = call.next().await? {
        match &event {
            Event::Ticket { ticket, .. } => {
                output.result(&event, || format!("{ticket}\n"))?;
                if !output.is_json() {
                    output.say(&qr(ticket));
                    output.say("On the new device: kith join TICKET. The ticket works once, within 10 minutes.");
                }
            }
            Event::Knock {
                ticket, code, name, ..
            } => {
                if output.is_json() {
                    output.result(&event, String::new)?;
                } else {
                    output.say(&format!("{name} is at the door and shows the code {code}"));
                }
                if !yes {
                    let accept = ask(format!("Does {name} show {code}?")).await?;
                    let answer = Request::Confirm {
                        ticket: ticket.clone(),
                        accept,
                    };
                    let mut confirm = session::call_daemon(home, answer).await?;
                    while confirm.next().await?.is_some() {}
                    if !accept {
                        denied = Some(name.clone());
                    }
                }
            }
            Event::Paired { name, device } => {
                let text = format!("{name} is in: {device}\n");
                if output.is_json() {
                    output.result(&event, String::new)?;
                } else {
                    output.say(&text);
                }
            }
            Event::Warning { text } => output.say(&format!("Warning: {text}")),
            _ => {}
        }
    }
    match denied {
        Some(name) => Err(Failure::new(
            FailureKind::Failed,
            format!("let {name} in: not confirmed"),
        )
        .hint("the ticket is burnt; make another with `kith pair`")
        .into()),
        None => Ok(()),
    }
}

/// The ticket as QR code; upper case, which QR codes hold most densely.
fn qr(ticket: &str) -> String {
    match QrCode::new(ticket.to_uppercase().as_bytes()) {
        Ok(code) => code.render::<Dense1x2>().quiet_zone(true).build(),
        Err(_) => String::new(),
    }
}
