//! `kith gc`.

use kith_node::config::Home;
use kith_node::local::no_input;
use kith_protocol::api::{Event, Request, Waiting};

use crate::args::GcArgs;
use crate::failure::CommandError;
use crate::output::{Output, human};
use crate::session;

pub(crate) async fn run(
    home: &Home,
    args: GcArgs,
    output: &mut Output,
) -> Result<(), CommandError> {
    let request = Request::Gc {
        dry_run: args.dry_run,
    };
    let mut call = session::call(home, request, no_input()).await?;
    while let Some((event, _)) = call.next().await? {
        match &event {
            Event::Progress {
                bytes,
                total,
                files,
            } => output.progress(*bytes, *total, *files),
            Event::Garbage {
                pack,
                class,
                bytes,
                garbage_bytes,
                why,
            } => {
                let why = if why == "small" {
                    "is small and would be merged with others".to_owned()
                } else {
                    format!("would go: {} of it nothing needs", human(*garbage_bytes))
                };
                output.result(&event, || {
                    format!("{pack} ({class}, {}) {why}\n", human(*bytes))
                })?;
            }
            Event::Warning { text } => output.say(&format!("Warning: {text}")),
            Event::Collected { .. } => output.result(&event, || summary(&event))?,
            _ => {}
        }
    }
    Ok(())
}

fn summary(event: &Event) -> String {
    let Event::Collected {
        dry_run,
        packs,
        bytes,
        garbage_bytes,
        missing,
        retired,
        merged,
        copied_bytes,
        dropped,
        freed_bytes,
        seen,
        in_use,
        waiting,
    } = event
    else {
        return String::new();
    };
    let mut lines = vec![format!(
        "{packs} packs, {}: {} in blocks that nothing kept needs",
        human(*bytes),
        human(*garbage_bytes)
    )];
    if *missing > 0 {
        lines.push(format!(
            "{missing} blocks of what is kept are neither here nor within reach: nothing can be told to be garbage, small packs are merged all the same"
        ));
    }
    if !dry_run {
        lines.push(format!(
            "{retired} packs retired, {merged} small ones merged, {} copied out of them; {dropped} removed, {} free again",
            human(*copied_bytes),
            human(*freed_bytes)
        ));
    }
    if *seen > 0 {
        lines.push(format!(
            "{seen} retirements of other devices checked: nothing is missed here"
        ));
    }
    if *in_use > 0 {
        lines.push(format!("{in_use} packs are in use by commands under way"));
    }
    let waits: u64 = waiting.iter().map(|waiting| waiting.bytes).sum();
    if !waiting.is_empty() {
        lines.push(format!(
            "{} packs, {}, are on their way out{}",
            waiting.len(),
            human(waits),
            reasons(waiting)
        ));
    }
    lines.join("\n") + "\n"
}

/// Whom they wait for.
fn reasons(waiting: &[Waiting]) -> String {
    let mut on: Vec<&str> = waiting
        .iter()
        .flat_map(|waiting| waiting.on.iter().map(String::as_str))
        .collect();
    on.sort_unstable();
    on.dedup();
    if !on.is_empty() {
        format!(
            ": they go once {} said that nothing of it is missed there",
            on.join(", ")
        )
    } else if waiting.iter().any(|waiting| waiting.until_ms.is_some()) {
        ": they go a day after they were retired, in case another device still writes of them"
            .to_owned()
    } else {
        String::new()
    }
}
