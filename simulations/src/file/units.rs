//! Quantities as people write them.
//!
//! Spec: `protocol/spec/simulation.md`, "Scenarios".

use serde::Deserialize;

pub(super) const SECOND: u64 = 1000;
pub(super) const MINUTE: u64 = 60 * SECOND;
pub(super) const HOUR: u64 = 60 * MINUTE;
pub(super) const DAY: u64 = 24 * HOUR;

/// Milliseconds, as `40ms`, `10s`, `5m`, `2h`, `30d`.
#[derive(Deserialize, Clone, Copy)]
#[serde(try_from = "String")]
pub(super) struct Length(pub(super) u64);

/// The same, forwards or backwards.
#[derive(Deserialize, Clone, Copy)]
#[serde(try_from = "String")]
pub(super) struct Signed(pub(super) i64);

/// Bytes, as `4KB`, `1MB`: of 1,000 each.
#[derive(Deserialize, Clone, Copy)]
#[serde(try_from = "String")]
pub(super) struct Size(pub(super) u64);

/// Bits a second, as `20Mbit/s`.
#[derive(Deserialize, Clone, Copy)]
#[serde(try_from = "String")]
pub(super) struct Rate(pub(super) u64);

/// Parts of a million, as `1.5%`.
#[derive(Deserialize, Clone, Copy)]
#[serde(try_from = "String")]
pub(super) struct Share(pub(super) u64);

/// Minutes since midnight, as `08:00-23:00`.
#[derive(Deserialize, Clone, Copy)]
#[serde(try_from = "String")]
pub(super) struct Hours(pub(super) u64, pub(super) u64);

/// One value, or two with `..` between.
#[derive(Deserialize, Clone, Copy)]
#[serde(
    try_from = "String",
    bound(deserialize = "T: TryFrom<String, Error = String> + Copy")
)]
pub(super) struct Range<T>(pub(super) T, pub(super) T);

/// A number, which may have a fraction, as thousandths, and the unit behind it.
fn measured(text: &str) -> Option<(u64, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(end)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.len() > 3 || (number.contains('.') && fraction.is_empty()) {
        return None;
    }
    let fraction: u64 = format!("{fraction:0<3}").parse().ok()?;
    let whole: u64 = whole.parse().ok()?;
    Some((
        whole.checked_mul(1000)?.checked_add(fraction)?,
        unit.trim_start(),
    ))
}

/// A number with one of these units, or that it is none of what was wanted.
fn in_units(text: &str, units: &[(&str, u64)], wanted: &str) -> Result<u64, String> {
    let read = || {
        let (thousandths, unit) = measured(text)?;
        let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
        let all = u128::from(thousandths) * u128::from(*factor) / 1000;
        u64::try_from(all).ok()
    };
    read().ok_or_else(|| format!("`{text}` is no {wanted}"))
}

impl TryFrom<String> for Length {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let units = [
            ("ms", 1),
            ("s", SECOND),
            ("m", MINUTE),
            ("h", HOUR),
            ("d", DAY),
        ];
        let wanted = "length of time, which looks like 40ms, 10s, 5m, 2h or 30d";
        in_units(&text, &units, wanted).map(Self)
    }
}

impl TryFrom<String> for Signed {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (sign, rest) = match text.strip_prefix('-') {
            Some(rest) => (-1, rest),
            None => (1, text.strip_prefix('+').unwrap_or(&text)),
        };
        let Length(length) = rest.to_owned().try_into()?;
        i64::try_from(length)
            .map(|length| Self(sign * length))
            .map_err(|_| format!("`{text}` is too long"))
    }
}

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let units = [
            ("B", 1),
            ("KB", 1000),
            ("MB", 1_000_000),
            ("GB", 1_000_000_000),
            ("TB", 1_000_000_000_000),
        ];
        let wanted = "size, which looks like 300B, 4KB, 1.5MB or 2TB";
        in_units(&text, &units, wanted).map(Self)
    }
}

impl TryFrom<String> for Rate {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let units = [
            ("kbit/s", 1000),
            ("Mbit/s", 1_000_000),
            ("Gbit/s", 1_000_000_000),
        ];
        let wanted = "rate, which looks like 500kbit/s or 20Mbit/s";
        in_units(&text, &units, wanted).map(Self)
    }
}

impl TryFrom<String> for Share {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        in_units(&text, &[("%", 10_000)], "share, which looks like 0.5%").map(Self)
    }
}

impl TryFrom<String> for Hours {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let time = |text: &str| {
            let (hours, minutes) = text.split_once(':')?;
            let (hours, minutes): (u64, u64) = (hours.parse().ok()?, minutes.parse().ok()?);
            (hours <= 24 && minutes < 60 && hours * 60 + minutes <= 24 * 60)
                .then_some(hours * 60 + minutes)
        };
        let hours = text.split_once('-').and_then(|(from, to)| {
            let (from, to) = (time(from)?, time(to)?);
            (from < to).then_some(Self(from, to))
        });
        hours.ok_or_else(|| {
            format!(
                "`{text}` is no time of day from one to a later one, which looks like 08:00-23:00"
            )
        })
    }
}

impl<T: TryFrom<String, Error = String> + Copy> TryFrom<String> for Range<T> {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.split_once("..") {
            Some((least, most)) => Ok(Self(
                least.to_owned().try_into()?,
                most.to_owned().try_into()?,
            )),
            None => {
                let one: T = text.try_into()?;
                Ok(Self(one, one))
            }
        }
    }
}
