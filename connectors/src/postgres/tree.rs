//! What hangs on a row: the rows of the tables that lead to it by foreign keys.

use std::collections::HashMap;
use std::hash::BuildHasher;

use schemas::{TableName, TablePath};

use super::quote::idents;

/// Rows of a table that others hang on, in a statement.
pub trait Top {
    /// The condition that selects them.
    fn rows(&self) -> String;
    /// The values that rows refer to them by, as what follows IN.
    fn values(&self, referenced: &[String]) -> String;
}

/// The SQL condition that selects a table's rows that lead to those of `root`, or those themselves; `None` where the
/// table does not lead there. `named` says what a table is called in the statement.
pub fn below<S: BuildHasher>(
    paths: &HashMap<TableName, TablePath, S>,
    named: &dyn Fn(&TableName) -> String,
    table: &TableName,
    root: &TableName,
    top: &dyn Top,
) -> Option<String> {
    if table == root {
        return Some(top.rows());
    }
    let TablePath::Via { columns, parent, referenced } = paths.get(table)? else { return None };
    let list = |columns: &[String]| idents(columns.iter().map(String::as_str));
    let values = match parent == root {
        true => top.values(referenced),
        false => {
            let inner = below(paths, named, parent, root, top)?;
            format!("(SELECT {} FROM {} WHERE {inner})", list(referenced), named(parent))
        }
    };
    Some(format!("({}) IN {values}", list(columns)))
}

/// Whether the table is `root` or leads to it.
pub fn leads<S: BuildHasher>(paths: &HashMap<TableName, TablePath, S>, table: &TableName, root: &TableName) -> bool {
    table == root || matches!(paths.get(table), Some(TablePath::Via { parent, .. }) if leads(paths, parent, root))
}

/// How many foreign keys lead from the table to the end of its path.
pub fn depth<S: BuildHasher>(paths: &HashMap<TableName, TablePath, S>, table: &TableName) -> usize {
    match paths.get(table) {
        Some(TablePath::Via { parent, .. }) => 1 + depth(paths, parent),
        _ => 0,
    }
}
