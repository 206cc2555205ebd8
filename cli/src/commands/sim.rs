//! `kith sim`.

use kith_protocol::api::{Failure, FailureKind};
use kith_simulations::scenario;

use crate::args::SimCommand;
use crate::failure::CommandError;
use crate::output::Output;

pub(crate) fn run(command: SimCommand, output: &mut Output) -> Result<(), CommandError> {
    let SimCommand::Run {
        scenario: name,
        seed,
        runs,
        trace,
    } = command;
    let Some(found) = scenario::find(&name) else {
        let known: Vec<&str> = scenario::names().collect();
        return Err(
            Failure::new(FailureKind::NotFound, format!("find the scenario {name}"))
                .hint(format!("these come with Kith: {}", known.join(", ")))
                .into(),
        );
    };
    for seed in seed..seed.saturating_add(runs) {
        let report = found.run(seed);
        if let Some(path) = &trace {
            std::fs::write(path, report.trace_text()).map_err(|error| {
                Failure::new(
                    FailureKind::Failed,
                    format!("write the trace {}", path.display()),
                )
                .because(&error)
            })?;
        }
        let value = serde_json::json!({
            "event": "run",
            "scenario": name,
            "seed": seed,
            "trace": report.trace_hash(),
            "virtual_ms": report.virtual_ms(),
            "events": report.events(),
            "failures": report.failures(),
        });
        let line = format!(
            "{name} seed {seed}: {}, {} events in {} virtual s, trace {}",
            if report.failures().is_empty() {
                "all agree"
            } else {
                "FAILED"
            },
            report.events(),
            report.virtual_ms() / 1000,
            report.trace_hash(),
        );
        output.result(&value, || line)?;
        if !report.failures().is_empty() {
            let mut failure =
                Failure::new(FailureKind::Failed, format!("run {name} with seed {seed}")).hint(
                    format!("replay it with `kith sim run {name} --seed {seed} --trace FILE`"),
                );
            failure.causes = report.failures().to_vec();
            return Err(failure.into());
        }
    }
    Ok(())
}
