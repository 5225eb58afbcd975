//! The one error of the configuration: where, which key, what is wrong.
//!
//! A value that cannot be read is quoted as the file has it, never as the environment filled it, and
//! a URL is not quoted at all.

use std::fmt::{self, Display};

use serde::de::{Error, Expected, Unexpected};

/// A position in the file as the user wrote it; both numbers begin at 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The line.
    pub line: u64,
    /// The character in the line.
    pub column: u64,
}

/// A mistake in the configuration: `line 3, column 9: limits.memory: "12xx" is not a size …`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{}{message}", .place.map(|at| format!("line {}, column {}: ", at.line, at.column)).unwrap_or_default(),
    if path.is_empty() { String::new() } else { format!("{}: ", path.join(".")) })]
pub struct ConfigError {
    place: Option<Place>,
    path: Vec<String>,
    message: String,
}

impl ConfigError {
    pub(super) fn new(place: Place, path: &[&str], message: impl Display) -> Self {
        let path = path.iter().map(|key| (*key).to_owned()).collect();
        ConfigError { place: Some(place), path, message: message.to_string() }
    }

    /// Where in the file.
    pub fn place(&self) -> Option<Place> {
        self.place
    }

    /// The dotted key, `source.url`; empty when the file as a whole is no YAML.
    pub fn key(&self) -> String {
        self.path.join(".")
    }

    /// Gives the error a place unless it has a nearer one.
    pub(super) fn at(mut self, place: Place) -> Self {
        self.place.get_or_insert(place);
        self
    }

    /// Says that the error is below `key`.
    pub(super) fn below(mut self, key: impl Display) -> Self {
        self.path.insert(0, key.to_string());
        self
    }

    /// Shows `written` where the message quotes `value`, which came from the environment.
    pub(super) fn hide(mut self, value: &str, written: &str) -> Self {
        self.message = self.message.replace(&quoted(value), &quoted(written));
        self
    }
}

/// Every message about a value quotes it in this way, so that [`ConfigError::hide`] finds it.
pub(super) fn quoted(value: &str) -> String {
    format!("\"{value}\"")
}

impl Error for ConfigError {
    fn custom<T: Display>(message: T) -> Self {
        ConfigError { place: None, path: Vec::new(), message: message.to_string() }
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::custom(format!("unknown key (known here: {})", expected.join(", "))).below(field)
    }

    fn missing_field(field: &'static str) -> Self {
        Self::custom("is missing").below(field)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::custom(format!("{} is not known (expected one of: {})", quoted(variant), expected.join(", ")))
    }

    fn invalid_type(found: Unexpected, expected: &dyn Expected) -> Self {
        Self::custom(format!("expected {expected}, found {}", Found(found)))
    }

    fn invalid_value(found: Unexpected, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }
}

/// A value as an error names it: texts are not shown, they may be secrets.
struct Found<'a>(Unexpected<'a>);

impl Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Unexpected::Str(_) => f.write_str("a text"),
            Unexpected::Map => f.write_str("a block of keys"),
            Unexpected::Seq => f.write_str("a list"),
            Unexpected::Unit => f.write_str("nothing"),
            Unexpected::Unsigned(number) => f.write_str(&quoted(&number.to_string())),
            Unexpected::Signed(number) => f.write_str(&quoted(&number.to_string())),
            other => Display::fmt(&other, f),
        }
    }
}
