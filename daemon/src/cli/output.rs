//! Printing results: text for people, JSON for programs. What comes from a database is never printed
//! with its control characters, which could drive a terminal.

use std::io::{ErrorKind, Write};

use clap::ValueEnum;
use serde::Serialize;

use super::exit::{Exit, Failure};

/// The value of `--output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Writes to stdout. A reader that has seen enough (`| head`) is no failure.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        // As a program that does not ignore SIGPIPE would: nobody is left to tell.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(Exit::Done as i32),
        Err(error) => Err(Failure::new(Exit::No, "output", "stdout", format!("cannot write the result: {error}"), "")),
    }
}

/// Prints a result in the form that was asked for; `text` is called for text only.
pub fn result<T: Serialize>(output: Output, value: &T, text: impl FnOnce() -> String) -> Result<(), Failure> {
    match output {
        Output::Text => print(&text()),
        Output::Json => print(&json(value)?),
    }
}

/// Prints a result as one line of JSON: for those who read a sequence of them.
pub fn json_line<T: Serialize>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(|error| not_json(&error))?;
    print(&(text + "\n"))
}

/// Progress and remarks, on stderr. That nobody reads them is no failure.
pub fn note(text: &str) {
    let mut stderr = std::io::stderr().lock();
    stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush()).ok();
}

fn not_json(error: &serde_json::Error) -> Failure {
    Failure::new(Exit::No, "output", "result", format!("cannot write the result as JSON: {error}"), "")
}

fn json<T: Serialize>(value: &T) -> Result<String, Failure> {
    serde_json::to_string_pretty(value).map(|text| text + "\n").map_err(|error| not_json(&error))
}

/// Columns under a header, as wide as they need to be. The last one is not padded.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let header: Vec<String> = header.iter().map(ToString::to_string).collect();
    let rows: Vec<Vec<String>> =
        std::iter::once(&header).chain(rows).map(|row| row.iter().map(|cell| plain(cell)).collect()).collect();
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// The text in one line, its control characters spelled out.
pub fn plain(text: &str) -> String {
    let spell = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(spell).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_harmless() {
        let rows = [
            vec!["7".to_owned(), "ä\u{1b}[2J".to_owned(), String::new()],
            vec!["1000".to_owned(), "b".to_owned(), "x".to_owned()],
        ];
        let expected = "T     NAME        F\n7     ä\\u{1b}[2J\n1000  b           x\n";
        assert_eq!(table(&["T", "NAME", "F"], &rows), expected);
    }
}
