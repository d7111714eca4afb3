//! What commands print: tables for people, JSON and YAML for scripts, colours and progress only on a terminal.
//!
//! `NO_COLOR` is honoured (no-color.org). Text tables have a dashed line under the heading; the last column gives way when
//! the terminal is narrow. Every `ls` builds a [`Table`] for people and a serialisable value for scripts, and calls [`show`].

use serde::Serialize;
use std::io::{IsTerminal, Write as _};
use types::{Code, Public};

/// How a host without an address of its own is reached, in tables.
pub(crate) const TUNNEL: &str = "⟵ Tunnel";

/// `--format`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub(crate) enum Format {
    #[default]
    Text,
    Json,
    Yaml,
}

/// Colours, or none.
#[derive(Clone, Copy)]
pub(crate) struct Style {
    colour: bool,
}

impl Style {
    pub(crate) fn of_stdout() -> Self {
        Self { colour: wanted(std::io::stdout().is_terminal()) }
    }
    pub(crate) fn of_stderr() -> Self {
        Self { colour: wanted(std::io::stderr().is_terminal()) }
    }
    pub(crate) fn has_colour(self) -> bool {
        self.colour
    }
    fn paint(self, text: &str, code: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
    pub(crate) fn red(self, text: &str) -> String {
        self.paint(text, "1;31")
    }
    pub(crate) fn dim(self, text: &str) -> String {
        self.paint(text, "2")
    }
    pub(crate) fn bold(self, text: &str) -> String {
        self.paint(text, "1")
    }
    pub(crate) fn green(self, text: &str) -> String {
        self.paint(text, "32")
    }
}

fn wanted(terminal: bool) -> bool {
    terminal
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Rows under headings.
pub(crate) struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(headings: &[&'static str]) -> Self {
        Self { headings: headings.to_vec(), rows: Vec::new() }
    }
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.rows.push(cells.into_iter().map(|cell| one_line(cell.into())).collect());
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as text, fitted to `width` columns by shortening the last column.
    pub(crate) fn render(&self, width: Option<usize>) -> String {
        let columns = self.headings.len();
        let mut widths: Vec<usize> = self.headings.iter().map(|heading| heading.chars().count()).collect();
        for row in &self.rows {
            for (at, cell) in widths.iter_mut().zip(row) {
                *at = (*at).max(cell.chars().count());
            }
        }
        if let (Some(limit), Some((last, before))) = (width, widths.split_last_mut()) {
            let taken: usize = before.iter().map(|column| column + 1).sum();
            let least = self.headings.last().map_or(8, |heading| heading.len().max(8));
            *last = (*last).min(limit.saturating_sub(taken).max(least));
        }
        let mut out = String::new();
        let dashes: Vec<String> = widths.iter().map(|&w| "-".repeat(w)).collect();
        let headings: Vec<String> = self.headings.iter().map(|&heading| heading.to_owned()).collect();
        for row in std::iter::once(&headings).chain(std::iter::once(&dashes)).chain(&self.rows) {
            let mut line = String::new();
            for (at, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                let cell = shorten(cell, width);
                line.push_str(&cell);
                if at + 1 < columns {
                    line.push_str(&" ".repeat(width.saturating_sub(cell.chars().count()) + 1));
                }
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// Control characters of strangers must not reach the terminal.
pub(crate) fn one_line(text: String) -> String {
    if text.chars().any(char::is_control) {
        text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
    } else {
        text
    }
}

fn shorten(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(width.saturating_sub(3)).collect();
    cut.push_str("...");
    cut
}

fn terminal_width() -> Option<usize> {
    if !std::io::stdout().is_terminal() {
        return None;
    }
    rustix::termios::tcgetwinsize(std::io::stdout()).ok().map(|size| usize::from(size.ws_col)).filter(|&columns| columns >= 40)
}

/// Prints `table` for people or `value` for scripts. `none` is what people read when there is no row.
pub(crate) fn show<T: Serialize>(format: Format, table: &Table, none: &str, value: &T) -> Result<(), Public> {
    match format {
        Format::Text if table.is_empty() => write_out(&format!("{none}\n")),
        Format::Text => write_out(&table.render(terminal_width())),
        Format::Json | Format::Yaml => show_value(format, value),
    }
}

/// Prints a value as JSON (also for text) or YAML.
pub(crate) fn show_value<T: Serialize>(format: Format, value: &T) -> Result<(), Public> {
    let text = match format {
        Format::Yaml => serde_saphyr::to_string(value).map_err(|error| Public::new(Code::Internal, error.to_string()))?,
        Format::Json | Format::Text => {
            serde_json::to_string_pretty(value).map_err(|error| Public::new(Code::Internal, error.to_string()))?
        }
    };
    write_out(&format!("{}\n", text.trim_end()))
}

/// Writes to standard output; a closed pipe (`| head`) ends the command quietly.
pub(crate) fn write_out(text: &str) -> Result<(), Public> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Public::new(Code::Internal, format!("standard output cannot be written: {error}"))),
        Ok(()) => Ok(()),
    }
}

/// A time as a service wrote it, without the fraction of a second.
pub(crate) fn seconds(time: &str) -> String {
    time.parse::<types::Time>().map_or_else(|_| time.to_owned(), |at| at.whole_seconds().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["Node Name", "Address", "Labels"]);
        table.row(["node1", "⟵ tunnel", "env=prod,team=db,region=eu-central-1"]);
        table.row(["n2", "10.0.0.1:3022", ""]);
        table
    }

    #[test]
    fn a_table_has_a_dashed_line_and_no_trailing_blanks() {
        assert_eq!(
            table().render(None),
            "Node Name Address       Labels\n--------- ------------- ------------------------------------\nnode1     ⟵ tunnel      env=prod,team=db,region=eu-central-1\nn2        10.0.0.1:3022\n"
        );
    }

    #[test]
    fn the_last_column_gives_way_to_the_terminal() {
        let text = table().render(Some(45));
        assert!(text.lines().all(|line| line.chars().count() <= 45), "{text}");
        assert!(text.contains("env=prod,team=db,r..."));
    }

    #[test]
    fn control_characters_of_strangers_are_escaped() {
        let mut table = Table::new(&["A"]);
        table.row(["a\x1b[31mb"]);
        assert!(!table.render(None).contains('\x1b'));
    }
}
