//! Tables: their names as the catalogs spell them, and how a row's tenant is found.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A table's schema and name, exactly as in the catalogs (unquoted).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TableName {
    /// The schema.
    pub schema: String,
    /// The table's own name.
    pub name: String,
}

impl TableName {
    /// A name from its two parts.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        TableName { schema: schema.into(), name: name.into() }
    }
}

/// For people: `schema.name`. SQL text is made in `connectors`, with quotes.
impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// How the tenant of a table's row is found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TablePath {
    /// This column holds the tenant's key.
    Key(String),
    /// The row refers to another, and belongs to that one's tenant.
    Via {
        /// The foreign key's columns.
        columns: Vec<String>,
        /// The table that they refer to.
        parent: TableName,
        /// The columns there, in the same order.
        referenced: Vec<String>,
    },
    /// It is every tenant's: copied whole into each target.
    Reference,
}

impl TablePath {
    /// The columns that say whose a row is.
    pub fn columns(&self) -> &[String] {
        match self {
            TablePath::Key(column) => std::slice::from_ref(column),
            TablePath::Via { columns, .. } => columns,
            TablePath::Reference => &[],
        }
    }
}

/// For people: `bid`, `customer_id -> public.customers(id)` or `reference`.
impl fmt::Display for TablePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TablePath::Key(column) => f.write_str(column),
            TablePath::Via { columns, parent, referenced } => {
                write!(f, "{} -> {parent}({})", columns.join(", "), referenced.join(", "))
            }
            TablePath::Reference => f.write_str("reference"),
        }
    }
}
