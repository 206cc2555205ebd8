//! `kith verify`.

use kith_node::config::Home;
use kith_node::local::no_input;
use kith_node::run::{Node, damage_event};
use kith_protocol::api::{Event, Failure, FailureKind, Request};

use crate::args::VerifyArgs;
use crate::failure::CommandError;
use crate::output::{Output, human};
use crate::session;

pub(crate) async fn run(
    home: &Home,
    args: VerifyArgs,
    output: &mut Output,
) -> Result<(), CommandError> {
    let request = Request::Verify {
        percent: args.sample,
        rate: args.rate.map(|rate| rate.saturating_mul(1_000_000)),
        resume: args.resume,
    };
    let mut call = match session::call(home, request, no_input()).await {
        Ok(call) => call,
        Err(error) if home.has_files() => return closed(home, error, output).await,
        Err(error) => return Err(error),
    };
    while let Some((event, _)) = call.next().await? {
        match &event {
            Event::Progress {
                bytes,
                total,
                files,
            } => output.progress(*bytes, *total, *files),
            Event::Damage { .. } => tell(&event, output)?,
            Event::Warning { text } => output.say(&format!("Warning: {text}")),
            Event::Verified {
                packs,
                bytes,
                damaged,
                lost,
                healed,
            } => {
                let mut text = format!(
                    "{packs} packs, {} read: {}",
                    human(*bytes),
                    if *damaged == 0 && lost.is_empty() {
                        "all is as it was written".to_owned()
                    } else {
                        format!("{damaged} damaged, {} blocks lost on this disk", lost.len())
                    }
                );
                if *healed > 0 {
                    text.push_str(&format!(
                        "; {healed} blocks that were lost came back from other devices"
                    ));
                }
                text.push('\n');
                output.result(&event, || text)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// The device does not open, for its key is damaged, say: whatever can be read without is checked all the same.
async fn closed(home: &Home, error: CommandError, output: &mut Output) -> Result<(), CommandError> {
    // Whoever else uses it keeps it locked, and this is that error once more.
    let Ok(found) = Node::verify_closed(home.clone()).await else {
        return Err(error);
    };
    for finding in &found {
        tell(&damage_event(finding), output)?;
    }
    if found.is_empty() {
        return Err(error);
    }
    let mut failure = Failure::new(
        FailureKind::Corrupt,
        format!(
            "find everything sound: {} damaged, and the device does not open",
            found.len()
        ),
    );
    if let Some(why) = error.failure() {
        failure.causes.push(why.what);
        failure.causes.extend(why.causes);
        failure.hint = why.hint;
    }
    Err(failure.into())
}

fn tell(event: &Event, output: &mut Output) -> Result<(), CommandError> {
    let Event::Damage {
        file,
        offset,
        what,
        blocks,
        lost,
        mended,
    } = event
    else {
        return Ok(());
    };
    let at = offset.map_or_else(String::new, |offset| format!(" at {offset}"));
    let mut text = format!("{file}{at}: {what}\n");
    for block in blocks {
        let gone = if lost.contains(block) {
            ", nowhere else on this disk"
        } else {
            ""
        };
        text.push_str(&format!("  block {block} is damaged{gone}\n"));
    }
    if let Some(mended) = mended {
        text.push_str(&format!("  {mended}\n"));
    }
    output.result(event, || text)?;
    Ok(())
}
