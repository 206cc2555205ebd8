//! `kith init`.

use kith_node::config::{Home, Settings};
use kith_node::run::{Created, Node};
use kith_protocol::api::{Failure, FailureKind};
use kith_protocol::pairing::DeviceName;

use super::host_name;
use crate::args::InitArgs;
use crate::failure::CommandError;
use crate::output::Output;
use crate::session::node_failure;

pub(crate) async fn run(home: Home, args: InitArgs, output: &Output) -> Result<(), CommandError> {
    let name = args.name.unwrap_or_else(host_name);
    DeviceName::new(&name).map_err(|error| {
        Failure::new(FailureKind::Usage, format!("call this device {name:?}"))
            .because(&error)
            .hint("choose another name with --name")
    })?;
    let mut words_out = Output::new(output.is_json());
    let called = name.clone();
    Node::create(&home, &name, move |made| {
        show(made, &called, &mut words_out)
    })
    .await
    .map_err(|error| node_failure(&home, &error))?;
    if args.keep_free.is_some() {
        let settings = Settings {
            keep_free: args.keep_free,
            ..Settings::default()
        };
        home.write_settings(settings)
            .map_err(|error| node_failure(&home, &error.into()))?;
    }
    Ok(())
}

fn show(made: &Created, name: &str, output: &mut Output) -> std::io::Result<()> {
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
    })
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
