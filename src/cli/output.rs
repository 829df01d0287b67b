//! What is printed to stdout: tables for eyes, JSON and YAML for programs.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;
use serde_json::Value;

use super::{Error, called};
use crate::telemetry;

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For eyes.
    #[default]
    Table,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
}

/// `-o`, for every command that prints a result.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct OutputArgs {
    /// How the result is printed; with json and yaml, an error is one line of JSON on stderr
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Output,
}

impl OutputArgs {
    /// Prints `value`, or the table that `table` draws of it.
    pub(super) fn show<T: Serialize>(self, value: &T, table: impl FnOnce(Style) -> String) -> Result<(), Error> {
        let failed = |e: &dyn std::fmt::Display| Error::failed(format!("the result cannot be printed: {e}"));
        let text = match self.output {
            Output::Table => called::commands(&table(Style::of_stdout())).into_owned(),
            Output::Json => serde_json::to_string_pretty(value).map_err(|e| failed(&e))? + "\n",
            Output::Yaml => serde_yaml::to_string(value).map_err(|e| failed(&e))?,
        };
        print(&text)
    }
}

/// Prints to stdout. A reader that has seen enough (`| head`) is no error.
pub(super) fn print(text: &str) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::failed(format!("cannot write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// Tells a person something that is not the result. On stderr, so that a pipe gets only the result.
pub(super) fn note(text: &str) {
    // Nobody is left to be told that nobody listens.
    let _ = writeln!(io::stderr().lock(), "{}", visible(&called::commands(text)));
}

/// What the reader's screen can show.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    /// Colours are seen, and wanted.
    pub colour: bool,
    /// More than ASCII can be shown.
    pub unicode: bool,
}

/// What a text means, as a colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    /// It was done.
    Good,
    /// It was refused.
    Bad,
    /// It stands out.
    Strong,
    /// It is aside.
    Faint,
}

impl Style {
    /// Of stdout, and of the locale as POSIX reads it: the first of these variables that is set.
    pub fn of_stdout() -> Self {
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .iter()
            .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
            .unwrap_or_default()
            .to_ascii_uppercase();
        Self { colour: telemetry::colours(&io::stdout()), unicode: locale.contains("UTF-8") || locale.contains("UTF8") }
    }

    /// `fancy` where it can be shown, else `plain`.
    pub fn glyph(self, fancy: &'static str, plain: &'static str) -> &'static str {
        if self.unicode { fancy } else { plain }
    }

    /// The text in its colour.
    pub fn paint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Good => "32",
            Tone::Bad => "31",
            Tone::Strong => "1",
            Tone::Faint => "2",
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A table as kubectl draws it: capitals over columns, nothing else.
pub(super) fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header);
    for row in rows {
        table.add_row(row.map(|cell| visible(&cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    // The last column's padding is of no use to anyone.
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// The text with its control characters made visible: what others wrote must not steer a terminal. Line breaks stay.
pub(super) fn visible(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() && c != '\n' || is_bidi(c) { c.escape_unicode().to_string() } else { c.into() })
        .collect()
}

/// Characters that turn the direction of what follows, and so can show a line as what it is not.
fn is_bidi(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The same on one line.
pub(super) fn one_line(text: &str) -> String {
    visible(&text.replace('\n', " "))
}

/// The beginning of a text, on one line.
pub(super) fn short(text: &str, width: usize) -> String {
    let line = one_line(text);
    if line.chars().count() <= width {
        return line;
    }
    line.chars().take(width.saturating_sub(3)).collect::<String>() + "..."
}

/// The text, or a dash where there is none.
pub(super) fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

/// A JSON object on one line, as `key=value` in the order of its keys; what is null is left out.
pub(super) fn pairs(value: &Value) -> String {
    let Some(object) = value.as_object() else {
        return if value.is_null() { "-".to_owned() } else { short(&value.to_string(), 100) };
    };
    let pairs = object.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| match value {
        Value::String(text) => format!("{}={}", one_line(key), short(text, 60)),
        other => format!("{}={}", one_line(key), short(&other.to_string(), 60)),
    });
    or_dash(pairs.collect::<Vec<_>>().join(" "))
}

/// A time for people: to the second, in UTC.
pub(super) fn when(at: jiff::Timestamp) -> String {
    format!("{at:.0}")
}

/// A span for people, in the largest unit that it fills: `850ms`, `12s`, `3m`, `5h`, `9d`.
pub(super) fn span(millis: i64) -> String {
    match millis {
        ..1_000 => format!("{millis}ms"),
        1_000..60_000 => format!("{}s", millis / 1_000),
        60_000..3_600_000 => format!("{}m", millis / 60_000),
        3_600_000..86_400_000 => format!("{}h", millis / 3_600_000),
        _ => format!("{}d", millis / 86_400_000),
    }
}

/// A question to a person at a terminal; without one, nobody can say yes.
pub(super) fn confirmed(question: &str) -> bool {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return false;
    }
    let _ = write!(io::stderr().lock(), "{} [y/N] ", visible(question));
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_cannot_steer_a_terminal() {
        assert_eq!(visible("a\x1b[2Jb\r\u{202e}c"), "a\\u{1b}[2Jb\\u{d}\\u{202e}c");
        assert_eq!(one_line("a\nb"), "a b");
    }

    #[test]
    fn a_table_has_no_borders_and_no_trailing_blanks() {
        let text = table(["NAME", "AGE"], [["churn".into(), "3m".into()], ["a".into(), "12s".into()]]);
        assert_eq!(text, "NAME   AGE\nchurn  3m\na      12s\n");
    }

    #[test]
    fn spans_are_told_in_their_largest_unit() {
        assert_eq!([-5, 850, 12_345, 200_000, 90_000_000].map(span), ["-5ms", "850ms", "12s", "3m", "1d"]);
    }
}
