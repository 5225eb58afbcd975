//! What is remembered of a comparison of both sides.

use std::collections::HashMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::status::{TableReport, VerifyReport};
use crate::{Lsn, TableName};

/// Both sides were equal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Unix time in microseconds.
    pub at: i64,
    /// Every table.
    pub report: VerifyReport,
    /// The writes have moved since: the position is one of the other stream.
    pub carried: bool,
}

/// What a lane has changed since a comparison, for when it goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// When the comparison began, as Unix time in microseconds.
    pub at: i64,
    /// Whether it has ended.
    pub whole: bool,
    /// Where the target stood: if it stands elsewhere, somebody has changed what nobody noted.
    pub lsn: Lsn,
    /// By a table's name at home: what it looked like there, and in the target.
    pub shapes: HashMap<String, (String, String)>,
    /// The tables that have been compared, and were equal.
    pub tables: Vec<TableReport>,
    /// The rows that have changed, by table; `None` where those may be any.
    pub changed: Vec<(TableName, Option<ChangedKeys>)>,
}

/// Keys of one table, not shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedKeys {
    /// What they are keys of.
    pub columns: Vec<String>,
    /// Their values, each behind a letter for its form.
    pub names: Vec<Vec<Vec<u8>>>,
}

impl fmt::Debug for ChangedKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys of {:?}", self.names.len(), self.columns)
    }
}
