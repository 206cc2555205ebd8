//! The `kith` command.

mod args;
mod commands;
mod demo;
mod failure;
mod output;
mod session;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Cli;
use crate::output::Output;

fn main() -> ExitCode {
    // Keys live in this process's memory: it leaves no core file behind.
    let none = rustix::process::Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Core, none);
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("KITH_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("error")),
        )
        .init();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = std::io::Write::write_fmt(
                &mut std::io::stderr(),
                format_args!("Error: start\nCaused by: {error}\n"),
            );
            return ExitCode::from(failure::exit::FAILED);
        }
    };
    let mut output = Output::new(cli.global.json);
    let outcome = runtime.block_on(commands::run(cli, &mut output));
    // Blocking work that is still under way (a read from a terminal, say) does not hold up the end.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(failure) = error.failure() {
                let text = if output.is_json() {
                    format!(
                        "{}\n",
                        serde_json::json!({ "event": "failed", "error": failure })
                    )
                } else {
                    failure::text(&failure)
                };
                let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
            }
            ExitCode::from(error.exit_code())
        }
    }
}
