//! `kith sim plan`.

use std::path::Path;

use kith_protocol::api::{Failure, FailureKind};
use kith_simulations::file;
use kith_simulations::plan::Plan;
use kith_simulations::sizing::{self, Choice, Demand, Sizing};
use serde_json::{Value, json};

use crate::failure::CommandError;
use crate::output::Output;

pub(super) fn plan(
    path: &Path,
    (data, growth): (u64, u64),
    from: Option<&str>,
    output: &mut Output,
) -> Result<(), CommandError> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| {
        let failure = Failure::new(FailureKind::NotFound, format!("read the devices in {name}"));
        failure.because(&error)
    })?;
    let mesh = file::read_mesh(&name, &text).map_err(|error| {
        let failure = Failure::new(FailureKind::Usage, format!("read the devices in {name}"));
        failure.because(&error).hint("nothing was worked out")
    })?;
    let from = match from {
        None => 0,
        Some(wanted) => {
            let place = mesh.devices.iter().position(|device| device.name == wanted);
            place.ok_or_else(|| {
                let what = format!("begin with the device {wanted}");
                let known: Vec<&str> = mesh.devices.iter().map(|of| of.name.as_str()).collect();
                let hint = format!("{name} has {}", known.join(", "));
                Failure::new(FailureKind::NotFound, what).hint(hint)
            })?
        }
    };
    let sized = sizing::size(&mesh, Demand { data, growth, from });
    output.result(&value(&mesh, &sized), || told(&mesh, &sized))?;
    Ok(())
}

fn value(mesh: &Plan, sized: &Sizing) -> Value {
    let recommended = sized.recommended.as_ref();
    let policy = recommended.and_then(|(place, _)| sized.choices.get(*place));
    json!({
        "event": "plan",
        "devices": mesh.devices.len(),
        "holders": sized.holders,
        "sites": sized.sites,
        "data": sized.demand.data,
        "growth_a_day": sized.demand.growth,
        "recommended": policy.map(|choice| choice.policy.to_string()),
        "reservations": recommended.map(|(_, wrong)| wrong.clone()),
        "policies": sized.choices.iter().map(|choice| of_policy(mesh, choice)).collect::<Vec<Value>>(),
        "overhead_a_day": sized.overhead.a_day_total(),
        "assumptions": sized.assumptions,
    })
}

fn of_policy(mesh: &Plan, choice: &Choice) -> Value {
    let each = mesh
        .devices
        .iter()
        .zip(&choice.on_device)
        .zip(&choice.month);
    let each = each.map(|((device, stored), (sent, got))| {
        json!({ "name": device.name, "stored": stored, "sent_a_month": sent, "got_a_month": got })
    });
    json!({
        "policy": choice.policy.to_string(),
        "stored": choice.stored,
        "survives_devices": choice.survives_devices,
        "not_without_sites": choice.not_without,
        "loss_a_year": choice.loss_a_year,
        "first_sync_seconds": choice.first_sync,
        "full_after_days": choice.full_after_days,
        "devices": each.collect::<Vec<Value>>(),
    })
}

fn told(mesh: &Plan, sized: &Sizing) -> String {
    let Demand { data, growth, from } = sized.demand;
    let name = |device: usize| mesh.devices.get(device).map_or("", |of| of.name.as_str());
    let mut text = format!(
        "{} at first on {}, {} more a day; {} of {} devices hold something, at {}\n",
        decimal(data),
        name(from),
        decimal(growth),
        sized.holders,
        mesh.devices.len(),
        counted(sized.sites, "place"),
    );
    let recommended = sized.recommended.as_ref();
    match recommended.and_then(|(place, wrong)| Some((sized.choices.get(*place)?, wrong))) {
        None if sized.choices.is_empty() => {
            text +=
                "no device holds anything: give some of them a `capacity`, or say nothing of it\n";
        }
        None => text += "there is no room for it, however it is kept\n",
        Some((choice, wrong)) => {
            text += &format!("recommended: {}\n", choice.policy);
            for why in wrong {
                text += &format!("  but {why}\n");
            }
        }
    }
    text += &format!(
        "\n  {:<10}{:>10}  {:<14}{:<22}{:<24}{:<14}full in\n",
        "policy", "stored", "may lose", "any one place", "loses something", "first sync"
    );
    for choice in &sized.choices {
        let places = match choice.not_without.as_slice() {
            [] => "yes".to_owned(),
            places if places.len() == sized.sites => "no".to_owned(),
            places => format!("but {}", places.join(", ")),
        };
        text += &format!(
            "  {:<10}{:>10}  {:<14}{:<22}{:<24}{:<14}{}\n",
            choice.policy.to_string(),
            decimal(choice.stored),
            counted(choice.survives_devices, "device"),
            places,
            odds(choice.loss_a_year),
            choice.first_sync.map_or("never".to_owned(), length),
            choice
                .full_after_days
                .map_or("-".to_owned(), |days| length(days * 86_400.0)),
        );
    }
    let recommended = recommended.and_then(|(place, _)| sized.choices.get(*place));
    if let Some(choice) = recommended {
        text += &format!("\nwith {}:\n", choice.policy);
        let each = mesh
            .devices
            .iter()
            .zip(&choice.on_device)
            .zip(&choice.month);
        for ((device, stored), (sent, got)) in each.take(super::TOLD_MAX) {
            text += &format!(
                "  {:<14}keeps {:>10}, a month sends {:>10} and gets {:>10}\n",
                device.name,
                decimal(*stored),
                decimal(*sent),
                decimal(*got)
            );
        }
        if mesh.devices.len() > super::TOLD_MAX {
            text += "  and so on: `--json` tells of all\n";
        }
    }
    text += "\nassuming that\n";
    for assumption in &sized.assumptions {
        text += &format!("  - {assumption}\n");
    }
    text
}

fn counted(number: usize, what: &str) -> String {
    match number {
        0 => format!("no {what}"),
        1 => format!("1 {what}"),
        _ => format!("{number} {what}s"),
    }
}

/// How often something with that chance in a year happens.
fn odds(chance: f64) -> String {
    match chance {
        chance if chance > 0.5 => "every year".to_owned(),
        chance if chance > 1e-9 => format!("1 year in {}", grouped(1.0 / chance)),
        _ => "hardly ever".to_owned(),
    }
}

/// Bytes in the units that people type and disks are sold by, of 1,000 each.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn decimal(bytes: u64) -> String {
    let units = ["B", "KB", "MB", "GB", "TB", "PB", "EB"];
    let mut number = bytes as f64;
    let mut unit = 0;
    while number >= 999.5 && unit + 1 < units.len() {
        number /= 1000.0;
        unit += 1;
    }
    let name = units.get(unit).copied().unwrap_or_default();
    match number {
        n if n < 9.95 && unit > 0 => format!("{n:.1} {name}"),
        n => format!("{n:.0} {name}"),
    }
}

/// Two digits, and thousands apart.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "at most a thousand million"
)]
fn grouped(number: f64) -> String {
    let unit = 10_f64.powf((number.log10().floor() - 1.0).max(0.0));
    let digits = ((number / unit).round() * unit) as u64;
    let digits = digits.to_string();
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Seconds, for people.
fn length(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s if s < 2.0 * 86_400.0 => format!("{:.1} h", s / 3600.0),
        s if s < 700.0 * 86_400.0 => format!("{:.1} days", s / 86_400.0),
        s => format!("{:.1} years", s / 86_400.0 / 365.25),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        assert_eq!(decimal(999), "999 B");
        assert_eq!(decimal(2_000_000_000_000), "2.0 TB");
        assert_eq!(decimal(65_630_000_000), "66 GB");
        assert_eq!(odds(0.9), "every year");
        assert_eq!(odds(0.1), "1 year in 10");
        assert_eq!(odds(1.0 / 123_456.0), "1 year in 120,000");
        assert_eq!(odds(0.0), "hardly ever");
        assert_eq!(length(40.0), "40 s");
        assert_eq!(length(3.0 * 86_400.0), "3.0 days");
        assert_eq!(length(3.0 * 365.25 * 86_400.0), "3.0 years");
    }
}
