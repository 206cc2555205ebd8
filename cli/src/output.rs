//! Results on standard output, everything else on standard error; text for people or JSON for programs.

use std::io::{self, IsTerminal, Write};

use data_encoding::BASE64;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde_json::Value;

/// Where a command's results go.
pub(crate) struct Output {
    json: bool,
    bar: Option<ProgressBar>,
    began: std::time::Instant,
}

/// A long operation shows a bar once it has lasted this long.
const BAR_AFTER_MS: u128 = 1000;

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self {
            json,
            bar: None,
            began: std::time::Instant::now(),
        }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Prints a result: the value as one line of JSON, or the text.
    pub(crate) fn result(
        &mut self,
        value: &impl serde::Serialize,
        text: impl FnOnce() -> String,
    ) -> io::Result<()> {
        self.clear();
        let mut out = io::stdout().lock();
        if self.json {
            let mut value = serde_json::to_value(value).map_err(io::Error::other)?;
            spread_names(&mut value);
            writeln!(out, "{value}")?;
        } else {
            let text = text();
            out.write_all(text.as_bytes())?;
            if !text.is_empty() && !text.ends_with('\n') {
                out.write_all(b"\n")?;
            }
        }
        out.flush()
    }

    /// Writes raw bytes.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()
    }

    /// Says something to a person that is no result.
    pub(crate) fn say(&mut self, text: &str) {
        self.clear();
        let _ = writeln!(io::stderr(), "{text}");
    }

    /// Shows how far a long operation is, on a terminal, if it takes over a second.
    pub(crate) fn progress(&mut self, bytes: u64, total: Option<u64>, files: u64) {
        if self.json
            || !io::stderr().is_terminal()
            || self.began.elapsed().as_millis() < BAR_AFTER_MS
        {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::no_length();
            if let Ok(style) =
                ProgressStyle::with_template("{spinner} {bytes} ({bytes_per_sec}) {msg}")
            {
                bar.set_style(style);
            }
            bar
        });
        if let Some(total) = total.filter(|_| bar.length().is_none()) {
            if let Ok(style) = ProgressStyle::with_template(
                "{bar:30} {bytes}/{total_bytes} ({bytes_per_sec}, {eta} left) {msg}",
            ) {
                bar.set_style(style);
            }
            bar.set_length(total);
        }
        bar.set_position(bytes);
        if files > 0 {
            bar.set_message(format!("{files} files"));
        }
    }

    /// As [`Output::progress`], for what is counted and not measured.
    pub(crate) fn progress_of(&mut self, done: u64, all: u64, what: &'static str) {
        if self.json
            || !io::stderr().is_terminal()
            || self.began.elapsed().as_millis() < BAR_AFTER_MS
        {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::new(all);
            if let Ok(style) =
                ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}, {eta} left")
            {
                bar.set_style(style);
            }
            bar.set_message(what);
            bar
        });
        bar.set_position(done);
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Bytes for people.
pub(crate) fn human(bytes: u64) -> String {
    HumanBytes(bytes).to_string()
}

/// Names that are not UTF-8 arrive as `{"base64": …}`: they leave as a lossy text under their key and the exact bytes under `<key>_base64`.
fn spread_names(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let mut exact = Vec::new();
            for (key, field) in fields.iter_mut() {
                if let Some(encoded) = exact_bytes(field) {
                    let lossy = BASE64.decode(encoded.as_bytes()).unwrap_or_default();
                    *field = Value::String(String::from_utf8_lossy(&lossy).into_owned());
                    exact.push((format!("{key}_base64"), Value::String(encoded)));
                } else {
                    spread_names(field);
                }
            }
            fields.extend(exact);
        }
        Value::Array(items) => items.iter_mut().for_each(spread_names),
        _ => {}
    }
}

fn exact_bytes(field: &Value) -> Option<String> {
    let object = field.as_object().filter(|object| object.len() == 1)?;
    object.get("base64")?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kith_protocol::api::Name;

    #[test]
    fn name_that_is_not_utf8_stands_in_both_forms() {
        let mut value = serde_json::json!({ "path": Name(vec![b'a', 0xff]), "size": 3 });
        spread_names(&mut value);
        assert_eq!(value["path"], "a\u{fffd}");
        assert_eq!(value["path_base64"], "Yf8=");
        assert_eq!(value["size"], 3);
    }
}
