//! What happened in a run, line by line: the same seed gives the same lines.

use std::fmt::Write;

use kith_object::time::Time;

/// Lines of a run.
#[derive(Debug, Default)]
pub struct Trace {
    text: String,
    events: u64,
}

impl Trace {
    /// Notes something.
    pub fn note(&mut self, now: Time, device: usize, what: std::fmt::Arguments<'_>) {
        self.events += 1;
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "{:>9} d{device} {what}", now.0);
    }

    /// How many lines there are.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// All lines.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// A hash over all lines.
    pub fn hash(&self) -> String {
        blake3::hash(self.text.as_bytes())
            .to_hex()
            .chars()
            .take(16)
            .collect()
    }
}
