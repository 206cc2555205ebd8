//! `kith init`.

use kith_node::config::Home;
use kith_node::run::Node;
use kith_protocol::api::{Failure, FailureKind};
use kith_protocol::pairing::DeviceName;

use super::host_name;
use crate::args::InitArgs;
use crate::failure::CommandError;
use crate::output::Output;
use crate::session::node_failure;

pub(crate) async fn run(
    home: Home,
    args: InitArgs,
    output: &mut Output,
) -> Result<(), CommandError> {
    let name = args.name.unwrap_or_else(host_name);
    DeviceName::new(&name).map_err(|error| {
        Failure::new(FailureKind::Usage, format!("call this device {name:?}"))
            .because(&error)
            .hint("choose another name with --name")
    })?;
    let made = Node::create(&home, &name)
        .await
        .map_err(|error| node_failure(&home, &error))?;
    let words = made.words.phrase();
    let value = serde_json::json!({
        "event": "init",
        "mesh": made.mesh.to_string(),
        "device": made.device.to_string(),
        "name": name,
        "words": words.as_str(),
    });
    output.result(&value, || {
        format!(
            "mesh    {}\ndevice  {} ({name})\n\n{}\n\nWrite these 24 words down and keep them safe: they are shown this once, they let any device in, and\nthey bring everything back when all devices are lost.\n",
            made.mesh,
            made.device,
            in_columns(&words),
        )
    })?;
    Ok(())
}

fn in_columns(words: &str) -> String {
    let words: Vec<&str> = words.split(' ').collect();
    words
        .chunks(6)
        .map(|row| {
            format!(
                "    {}",
                row.iter()
                    .map(|word| format!("{word:10}"))
                    .collect::<String>()
                    .trim_end()
            )
        })
        .collect::<Vec<_>>()
        .join("\n")
}
