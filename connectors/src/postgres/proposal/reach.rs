//! The ways from a table over its foreign keys to one that names the tenant: which there are, how long they are,
//! and whether every row has them. Whether a step can be taken is `policy`'s word, not decided here.

use std::collections::BTreeSet;

use schemas::TableName;

use crate::postgres::catalog::Table;
use crate::postgres::policy::{self, Owned, Path, Via};

/// A way from a table to its tenant, named by its first step.
pub struct Way {
    /// The foreign key, and the table it leads to, with that one's own way.
    pub via: Via,
    /// How many steps it has.
    pub length: usize,
    /// The columns of the first step that may be NULL.
    pub nullable: Vec<String>,
    /// Whether every row has it.
    pub complete: bool,
}

/// As a person reads it: `order_id -> public.orders (storefront_id)`.
impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut via = &self.via;
        loop {
            write!(f, "{} -> {}", via.key.columns.join(", "), via.parent.table.name)?;
            match &via.parent.path {
                Path::Key { column, .. } => return write!(f, " ({column})"),
                Path::Via(next) => via = next,
                Path::Reference | Path::Whole(_) => return Ok(()),
            }
            f.write_str(", ")?;
        }
    }
}

/// Every table that reaches a tenant, with one way each: `keyed`, and those from which foreign keys lead there.
/// Ways that every row has come before shorter ones that some rows do not have.
pub fn reach(tables: &[Table], keyed: Vec<Owned>) -> Vec<Owned> {
    let mut reached = keyed;
    for all in [false, true] {
        loop {
            let known: BTreeSet<&TableName> = reached.iter().map(|owned| &owned.table.name).collect();
            let open = tables.iter().filter(|table| !known.contains(&table.name));
            let next: Vec<(&Table, Way)> = open
                .filter_map(|table| {
                    let ways = ways(table, &reached).into_iter().filter(|way| all || way.complete);
                    Some((table, ways.min_by_key(|way| way.length)?))
                })
                .collect();
            let Some(shortest) = next.iter().map(|(_, way)| way.length).min() else { break };
            let near: Vec<Owned> = next
                .into_iter()
                .filter(|(_, way)| way.length == shortest)
                .map(|(table, way)| owned(table, Path::Via(Box::new(way.via))))
                .collect();
            reached.extend(near);
        }
    }
    reached
}

/// The ways from the table over each of its foreign keys, in the order of their names; none leads through the table
/// itself.
pub fn ways(table: &Table, reached: &[Owned]) -> Vec<Way> {
    let steps = first_columns(table).into_iter().filter_map(|columns| policy::step(table, columns, reached).ok());
    let ways = steps.filter(|via| !passes(&via.parent, &table.name)).map(|via| {
        let null = |name: &&String| table.column(name).is_none_or(|column| !column.not_null);
        let nullable: Vec<String> = via.key.columns.iter().filter(null).cloned().collect();
        Way { length: 1 + via.parent.depth(), complete: nullable.is_empty() && complete(&via.parent), nullable, via }
    });
    ways.collect()
}

/// The columns of the table's foreign keys to other tables, each set once.
pub fn first_columns(table: &Table) -> Vec<&[String]> {
    let mut seen = BTreeSet::new();
    let keys = table.foreign_keys.iter().filter(|key| key.parent != table.name);
    keys.map(|key| key.columns.as_slice())
        .filter(|columns| seen.insert(columns.iter().collect::<BTreeSet<&String>>()))
        .collect()
}

/// A table with its path, as long as nobody refers to it.
pub fn owned(table: &Table, path: Path) -> Owned {
    Owned { table: table.clone(), path, null_tenant: schemas::config::NullTenant::Stop, referenced: Vec::new() }
}

/// Whether the way of `owned` leads over the table.
fn passes(owned: &Owned, table: &TableName) -> bool {
    match &owned.path {
        _ if &owned.table.name == table => true,
        Path::Key { .. } | Path::Reference | Path::Whole(_) => false,
        Path::Via(via) => passes(&via.parent, table),
    }
}

/// Whether every row has the way. That a key is NULL is the keyed table's own matter.
fn complete(owned: &Owned) -> bool {
    match &owned.path {
        Path::Key { .. } | Path::Reference | Path::Whole(_) => true,
        Path::Via(via) => {
            let not_null = |name: &String| owned.table.column(name).is_some_and(|column| column.not_null);
            via.key.columns.iter().all(not_null) && complete(&via.parent)
        }
    }
}
