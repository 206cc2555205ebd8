//! `kith join`.

use std::io::{IsTerminal, Read};

use kith_node::config::Home;
use kith_node::join::{self, Joined, Progress};
use kith_object::key::Words;
use kith_protocol::api::{Failure, FailureKind};
use zeroize::Zeroizing;

use super::host_name;
use crate::args::JoinArgs;
use crate::failure::CommandError;
use crate::output::Output;

/// Longest ticket or words read from standard input.
const TYPED_BYTES_MAX: u64 = 16 << 10;

pub(crate) async fn run(
    home: Home,
    args: JoinArgs,
    output: &mut Output,
) -> Result<(), CommandError> {
    let name = args.name.unwrap_or_else(host_name);
    let joined = if args.words {
        let (_, words) = typed_words().await?;
        if !args.peer.is_empty() {
            output.say("Knocking at the mesh; this may take a minute.");
        }
        join::by_words(&home, &words, &args.peer, &name, |progress| {
            told(output, &progress)
        })
        .await?
    } else {
        let ticket = match args.ticket.as_deref() {
            Some("-") => Some(typed("The ticket: ".to_owned()).await?),
            Some(ticket) => Some(Zeroizing::new(ticket.to_owned())),
            None => None,
        };
        if ticket.is_some() || join::is_under_way(&home) {
            output.say("Knocking at the other device; this may take a minute. If it is interrupted, give the same command again.");
        }
        let ticket = ticket.as_deref().map(|ticket| ticket.trim());
        join::by_ticket(&home, ticket, &name, |progress| told(output, &progress)).await?
    };
    let Joined {
        mesh,
        device,
        name,
        role,
    } = joined;
    let value = serde_json::json!({
        "event": "joined",
        "mesh": mesh.to_string(),
        "device": device.to_string(),
        "name": name,
        "role": role,
    });
    output.result(&value, || {
        format!("mesh    {mesh}\ndevice  {device} ({name}, {role})\n")
    })?;
    // Only now: whoever is ended before may ask again.
    join::done(&home)?;
    Ok(())
}

/// Reads the 24 words as they were typed, and what they are.
pub(super) async fn typed_words() -> Result<(Zeroizing<String>, Words), CommandError> {
    let typed = typed("The 24 words: ".to_owned()).await?;
    let words = Words::parse(&typed).map_err(|error| {
        Failure::new(FailureKind::Usage, "read the 24 words")
            .because(&error)
            .hint("type all 24 in order, separated by spaces")
    })?;
    Ok((typed, words))
}

/// Tells a person, or a program, how far it is.
fn told(output: &mut Output, progress: &Progress<'_>) {
    let (value, text) = match progress {
        Progress::Resumed { name } => (
            serde_json::json!({ "event": "resumed", "name": name }),
            format!("The join that was begun here goes on; this device is called {name}."),
        ),
        Progress::Code(code) => (
            serde_json::json!({ "event": "code", "code": code }),
            format!(
                "This device shows the code {code}. Confirm it on the other device if it shows the same."
            ),
        ),
        Progress::Searching => (
            serde_json::json!({ "event": "searching" }),
            "Looking for a device of the mesh in the local network; Ctrl-C ends it.".to_owned(),
        ),
        Progress::Door { addrs } => (
            serde_json::json!({ "event": "door", "addrs": addrs }),
            format!("Found one; knocking at {}", addrs.join(" and ")),
        ),
    };
    if output.is_json() {
        let _ = output.result(&value, String::new);
    } else {
        output.say(&text);
    }
}

/// Reads a secret from a prompt without echo, or from standard input if that is no terminal.
async fn typed(prompt: String) -> Result<Zeroizing<String>, CommandError> {
    let read = move || -> std::io::Result<Zeroizing<String>> {
        if std::io::stdin().is_terminal() {
            return rpassword::prompt_password(prompt).map(Zeroizing::new);
        }
        let mut text = Zeroizing::new(String::new());
        std::io::stdin()
            .lock()
            .take(TYPED_BYTES_MAX)
            .read_to_string(&mut text)?;
        Ok(text)
    };
    let read = tokio::task::spawn_blocking(read)
        .await
        .map_err(std::io::Error::other)?;
    Ok(read.map_err(|error| {
        Failure::new(FailureKind::Failed, "read what was typed").because(&error)
    })?)
}
