//! What the command line prints: tables for people, JSON or YAML for programs.
//!
//! Promises that `-o json` and `-o yaml` print the API's own documents, unshortened, and
//! that nothing but the answer goes to standard output. A reader that goes away early
//! (`stead apps | head -1`) ends the command quietly.

pub(crate) mod human;
pub(crate) mod waterfall;
mod yaml;

use std::io::{self, IsTerminal, Write};

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

/// The form of the answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// One JSON document; for streams one per line.
    Json,
    /// One YAML document; for streams one after each `---`.
    Yaml,
}

/// Where answers go, in the form asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// The form.
    pub(crate) format: Format,
}

impl Output {
    /// Prints `value` whole, or, for people, what `table` makes of it.
    pub(crate) fn show<T: Serialize>(
        self,
        value: &T,
        table: impl FnOnce(&T) -> String,
    ) -> Result<()> {
        match self.format {
            Format::Table => self.text(&table(value)),
            Format::Json => self.text(&serde_json::to_string_pretty(value)?),
            Format::Yaml => self.text(&yaml::to_string(&serde_json::to_value(value)?)),
        }
    }

    /// Prints one item of a stream.
    pub(crate) fn item<T: Serialize>(
        self,
        value: &T,
        line: impl FnOnce(&T) -> String,
    ) -> Result<()> {
        match self.format {
            Format::Table => self.text(&line(value)),
            Format::Json => self.text(&serde_json::to_string(value)?),
            Format::Yaml => {
                self.text(&format!("---\n{}", yaml::to_string(&serde_json::to_value(value)?)))
            }
        }
    }

    /// Says something to people only.
    pub(crate) fn say(self, line: &str) -> Result<()> {
        if self.format == Format::Table { self.text(line) } else { Ok(()) }
    }

    fn text(self, text: &str) -> Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.trim_end_matches('\n').as_bytes())?;
        out.write_all(b"\n")?;
        out.flush()?;
        Ok(())
    }
}

/// A table without lines: columns apart by two spaces, as other tools of the field print it.
pub(crate) struct Table {
    inner: comfy_table::Table,
    empty: &'static str,
}

impl Table {
    /// A table with these columns. `empty` is printed instead when no row comes.
    pub(crate) fn new<const N: usize>(columns: [&str; N], empty: &'static str) -> Self {
        let mut inner = comfy_table::Table::new();
        inner.load_style(comfy_table::presets::NOTHING).set_header(columns);
        Self { inner, empty }
    }

    /// Adds a row.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.inner.add_row(cells.map(|cell| human::plain(&cell)));
    }

    /// The text.
    pub(crate) fn finish(mut self) -> String {
        if self.inner.row_count() == 0 {
            return self.empty.to_owned();
        }
        for column in self.inner.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let lines: Vec<String> = self.inner.lines().map(|l| l.trim_end().to_owned()).collect();
        lines.join("\n")
    }
}

/// Whether standard error may carry colours: a terminal, and nobody said no
/// (<https://no-color.org>).
pub(crate) fn colours() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    io::stderr().is_terminal() && !refused
}

/// Wraps `text` in an SGR sequence where standard error may carry colours.
pub(crate) fn painted(text: &str, sgr: &str) -> String {
    if colours() { format!("\x1b[{sgr}m{text}\x1b[0m") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_has_no_lines() {
        let mut table = Table::new(["APP", "STATE"], "no apps");
        table.row(["web".into(), "running".into()]);
        table.row(["a-long-name".into(), "stopped".into()]);
        assert_eq!(
            table.finish(),
            "APP          STATE\nweb          running\na-long-name  stopped"
        );
        assert_eq!(Table::new(["APP"], "no apps").finish(), "no apps");
    }

    #[test]
    fn a_cell_cannot_play_tricks_on_a_terminal() {
        let mut table = Table::new(["APP"], "");
        table.row(["\x1b[2Jweb\nx".into()]);
        assert_eq!(table.finish(), "APP\n[2Jweb x");
    }
}
