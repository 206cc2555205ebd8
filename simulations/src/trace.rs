//! What happened in a run, line by line: the same seed gives the same lines.

use std::fmt::Write;

use kith_object::time::Time;

/// Lines of a run: a hash over them, and themselves if they are wanted.
#[derive(Debug, Default)]
pub struct Trace {
    hasher: blake3::Hasher,
    line: String,
    text: Option<String>,
    events: u64,
}

impl Trace {
    /// Nothing yet; `kept` if the lines are wanted afterwards.
    pub fn new(kept: bool) -> Self {
        Self {
            text: kept.then(String::new),
            ..Self::default()
        }
    }

    /// Notes something.
    pub fn note(&mut self, now: Time, device: usize, what: std::fmt::Arguments<'_>) {
        self.events += 1;
        self.line.clear();
        // Writing to a string does not fail.
        let _ = writeln!(self.line, "{:>9} d{device} {what}", now.0);
        self.hasher.update(self.line.as_bytes());
        if let Some(text) = &mut self.text {
            text.push_str(&self.line);
        }
    }

    /// How many lines there are.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// All lines, if they were to be kept.
    pub fn text(&self) -> &str {
        self.text.as_deref().unwrap_or_default()
    }

    /// A hash over all lines.
    pub fn hash(&self) -> String {
        self.hasher.finalize().to_hex().chars().take(16).collect()
    }
}
