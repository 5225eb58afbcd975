//! What can go wrong with PostgreSQL, in the classes somebody decides on: try again, replay row by
//! row, or stop. Never carries a row's values: a server's DETAIL is dropped, as it quotes them.

use std::fmt;

use super::tls;

/// The result of everything in this module.
pub type Result<T> = std::result::Result<T, Error>;

/// An operation that failed: what was being done, and why it did not work.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {cause}")]
pub struct Error {
    /// What was being done, as "verb noun".
    pub doing: String,
    /// Why it failed.
    pub cause: Cause,
}

/// Why an operation failed.
#[derive(Debug)]
pub enum Cause {
    /// The server answered with an error.
    Server {
        /// Five characters, PostgreSQL manual appendix A.
        sqlstate: String,
        /// The primary message; never DETAIL, which quotes row values.
        message: String,
        /// Whether it names a constraint.
        constraint: bool,
    },
    /// The connection could not be made, or ended.
    Connection(String),
    /// The client's certificate was refused or cannot be used: somebody may be renewing it.
    Login(String),
    /// The other side sent what this protocol does not allow.
    Protocol(String),
    /// The state found is not the one that it is safe to go on from.
    State(String),
    /// An UPDATE or DELETE did not find its row, or a group did not fit into sets: the rows are
    /// replayed one by one, and if that fails too the lane stops.
    Mismatch(String),
    /// What was received cannot be applied by anyone: the rows have to be copied again.
    Unusable(String),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Server { sqlstate, message, .. } => write!(f, "{message} (SQLSTATE {sqlstate})"),
            Cause::Connection(text)
            | Cause::Login(text)
            | Cause::Protocol(text)
            | Cause::State(text)
            | Cause::Mismatch(text)
            | Cause::Unusable(text) => f.write_str(text),
        }
    }
}

impl Error {
    /// An error that the server answered with.
    pub fn server(doing: impl Into<String>, sqlstate: &str, message: &str) -> Self {
        let (sqlstate, message) = (sqlstate.to_owned(), message.to_owned());
        let cause = Cause::Server { sqlstate, message, constraint: false };
        Error { doing: doing.into(), cause }
    }

    /// A connection that could not be made, or ended.
    pub fn connection(doing: impl Into<String>, why: impl fmt::Display) -> Self {
        Error { doing: doing.into(), cause: Cause::Connection(why.to_string()) }
    }

    /// A client's certificate that does not let us in.
    pub fn login(doing: impl Into<String>, why: impl fmt::Display) -> Self {
        Error { doing: doing.into(), cause: Cause::Login(why.to_string()) }
    }

    /// Bytes that the protocol does not allow.
    pub fn protocol(doing: impl Into<String>, why: impl fmt::Display) -> Self {
        Error { doing: doing.into(), cause: Cause::Protocol(why.to_string()) }
    }

    /// A state that it is not safe to go on from.
    pub fn state(doing: impl Into<String>, why: impl fmt::Display) -> Self {
        Error { doing: doing.into(), cause: Cause::State(why.to_string()) }
    }

    /// A row that is not there, or a group that sets cannot express.
    pub fn mismatch(doing: impl Into<String>, why: impl fmt::Display) -> Self {
        Error { doing: doing.into(), cause: Cause::Mismatch(why.to_string()) }
    }

    /// Changes that cannot be applied by anyone.
    pub fn unusable(doing: impl Into<String>, why: impl fmt::Display) -> Self {
        Error { doing: doing.into(), cause: Cause::Unusable(why.to_string()) }
    }

    /// The server's SQLSTATE, where it answered with one.
    pub fn sqlstate(&self) -> Option<&str> {
        match &self.cause {
            Cause::Server { sqlstate, .. } => Some(sqlstate),
            _ => None,
        }
    }

    /// Whether the same thing may succeed later without a person: the connection went, the server
    /// is starting, stopping or short of something, or another transaction was in the way.
    pub fn is_transient(&self) -> bool {
        match &self.cause {
            Cause::Connection(_) => true,
            Cause::Server { sqlstate, .. } => {
                // 25006: a standby that is about to be promoted, or a server that was made read-only for a time.
                matches!(sqlstate.get(..2), Some("08" | "53" | "57" | "58")) && sqlstate != "08P01"
                    || matches!(sqlstate.as_str(), "40001" | "40P01" | "55P03" | "55006" | "25P03" | "25006")
            }
            Cause::Login(_) | Cause::Protocol(_) | Cause::State(_) | Cause::Mismatch(_) | Cause::Unusable(_) => false,
        }
    }

    /// The same for a connection that worked before: also a password or a role that is being changed, or a
    /// server in trouble.
    pub fn may_pass(&self) -> bool {
        self.is_transient() || self.is_login() || self.sqlstate() == Some("XX000")
    }

    /// Whether a row belongs to a partition that is not there: the only such error that names no constraint.
    pub fn lacks_partition(&self) -> bool {
        matches!(&self.cause, Cause::Server { sqlstate, constraint: false, .. } if sqlstate == "23514")
    }

    /// Whether role, password or certificate did not let us in.
    pub fn is_login(&self) -> bool {
        matches!(self.cause, Cause::Login(_)) || matches!(self.sqlstate(), Some("28P01" | "28000"))
    }

    /// Whether only a new copy helps.
    pub fn is_unusable(&self) -> bool {
        matches!(self.cause, Cause::Unusable(_))
    }

    /// Whether something is named that is not there: a relation, a function, a type or role, a schema.
    pub fn is_missing_object(&self) -> bool {
        matches!(self.sqlstate(), Some("42P01" | "42883" | "42704" | "3F000"))
    }

    /// Whether a constraint of the target refused the rows (SQLSTATE class 23).
    pub fn is_constraint(&self) -> bool {
        self.sqlstate().is_some_and(|code| code.starts_with("23"))
    }
}

/// Says what was being done when a tokio-postgres call failed.
pub trait Doing<T> {
    /// Turns the failure into an [`Error`] that names the operation.
    fn doing(self, doing: impl Into<String>) -> Result<T>;
}

impl<T> Doing<T> for std::result::Result<T, tokio_postgres::Error> {
    fn doing(self, doing: impl Into<String>) -> Result<T> {
        self.map_err(|error| match error.as_db_error() {
            Some(db) if matches!(db.code().code(), "22P02" | "22003" | "22007" | "22008") => {
                Error::server(doing, db.code().code(), &without_values(db.message()))
            }
            Some(db) => {
                let (sqlstate, message) = (db.code().code().to_owned(), db.message().to_owned());
                let cause = Cause::Server { sqlstate, message, constraint: db.constraint().is_some() };
                Error { doing: doing.into(), cause }
            }
            None if error.is_closed() => Error::connection(doing, "the connection was closed"),
            None => {
                let mut text = error.to_string();
                let mut source = std::error::Error::source(&error);
                while let Some(inner) = source {
                    if let Some(why) = inner.downcast_ref().and_then(tls::refused) {
                        return Error::login(doing, why);
                    }
                    // Only in a TLS handshake: there tells the cause by itself.
                    if text == "error performing TLS handshake" {
                        return match inner.downcast_ref::<std::io::Error>() {
                            Some(io) => tls::handshake(doing, io),
                            None => Error::state(doing, tls::NOT_OFFERED),
                        };
                    }
                    text = format!("{text}: {inner}");
                    source = inner.source();
                }
                let lost = ["error connecting", "error communicating", "timeout waiting"];
                if lost.iter().any(|start| text.starts_with(start)) {
                    Error::connection(doing, text)
                } else {
                    Error::protocol(doing, text)
                }
            }
        })
    }
}

/// What is no value of its type is quoted in the message: after the type, or within it.
fn without_values(message: &str) -> String {
    let head = message.split(": \"").next().unwrap_or_default();
    let mut parts = head.split('"');
    let first = parts.next().unwrap_or_default();
    match parts.next_back() {
        Some(last) => format!("{first}\"…\"{last}"),
        None => first.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_does_not_quote_values() {
        for (message, wanted) in [
            ("invalid input syntax for type date: \"no: \"date\"\"", "invalid input syntax for type date"),
            ("value \"1\"2\" is out of range for type integer", "value \"…\" is out of range for type integer"),
            ("numeric field overflow", "numeric field overflow"),
        ] {
            assert_eq!(without_values(message), wanted);
        }
    }
}
