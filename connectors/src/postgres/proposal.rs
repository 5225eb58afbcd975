//! What `init` proposes for a database: the tenant key, each table's line under `tenancy.tables`, and which tables a
//! person has to decide about. Nothing is proposed that [`policy::resolve`] refuses: the decisions are exactly the
//! tables that `check` will name.

mod key;
mod nulls;
mod reach;
#[cfg(test)]
mod tests;
mod unreached;

use std::collections::{BTreeMap, BTreeSet};

use schemas::TableName;
use schemas::config::{NullTenant, TablePolicy, Tenancy};

pub use key::{Key, NoKey, Root};
pub use nulls::look_for_nulls;
use reach::Way;
use unreached::Blocked;

use super::catalog::Table;
use super::policy::{self, Path};

/// A configuration's tenancy, with what a person should know about it.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// The tenant key.
    pub key: Key,
    /// Every table, in the order of the catalogs.
    pub entries: Vec<Entry>,
}

/// What is proposed for a table.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The table.
    pub table: TableName,
    /// What the configuration calls it.
    pub spelled: String,
    /// The planner's estimate of its rows; negative where there is none.
    pub rows: i64,
    /// The line that is written.
    pub chosen: Chosen,
    /// Why, one sentence each.
    pub why: Vec<String>,
    /// The lines that could be written instead; for an open table one of them has to be.
    pub others: Vec<Choice>,
    /// Columns that say whose a row is and may be NULL.
    pub nullable: Vec<String>,
    /// What is known of rows where they are.
    pub nulls: Option<String>,
}

/// The line that is written for a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// None: it has the usual key.
    Usual,
    /// This one.
    Line(Choice),
    /// None: a person has to decide.
    Open,
}

/// A possible line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The policy.
    pub policy: TablePolicy,
    /// What it means here.
    pub note: String,
}

impl Choice {
    fn key(column: impl Into<String>, note: impl Into<String>) -> Choice {
        Choice { policy: TablePolicy { key: Some(column.into()), ..TablePolicy::default() }, note: note.into() }
    }

    fn via(columns: &[String], note: impl Into<String>) -> Choice {
        Choice { policy: TablePolicy { via: Some(columns.to_vec()), ..TablePolicy::default() }, note: note.into() }
    }

    fn reference(note: impl Into<String>) -> Choice {
        Choice { policy: TablePolicy { reference: true, ..TablePolicy::default() }, note: note.into() }
    }

    fn exclude() -> Choice {
        Choice { policy: TablePolicy { exclude: true, ..TablePolicy::default() }, note: "it stays behind".to_owned() }
    }

    fn not_moving(self, note: &str) -> Choice {
        Choice { policy: TablePolicy { null_tenant: NullTenant::NotMoving, ..self.policy }, note: note.to_owned() }
    }
}

impl Proposal {
    /// The tenancy that the written lines make.
    pub fn tenancy(&self) -> Tenancy {
        let line = |entry: &Entry| match &entry.chosen {
            Chosen::Line(choice) => Some((entry.spelled.clone(), choice.policy.clone())),
            Chosen::Usual | Chosen::Open => None,
        };
        Tenancy { key: self.key.column.clone(), tables: self.entries.iter().filter_map(line).collect() }
    }

    /// The tables that a person has to decide about.
    pub fn open(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.chosen == Chosen::Open)
    }

    /// Opens every table whose line would be refused, until none is.
    fn settle(&mut self, tables: &[Table]) {
        loop {
            let refused = refused(tables, &self.tenancy());
            let mut wrong = 0;
            for entry in self.entries.iter_mut().filter(|entry| entry.chosen != Chosen::Open) {
                if let Some(causes) = refused.get(&entry.table.to_string()) {
                    entry.open(causes.clone());
                    wrong += 1;
                }
            }
            if wrong == 0 {
                return;
            }
        }
    }
}

impl Entry {
    /// Takes the line back, for these reasons. It stays among the possible ones.
    fn open(&mut self, causes: Vec<String>) {
        let chosen = std::mem::replace(&mut self.chosen, Chosen::Open);
        self.others.retain(|other| other.policy.via.is_some());
        if let Chosen::Line(choice) = chosen {
            let note = if choice.note.is_empty() { String::new() } else { format!("; {}", choice.note) };
            self.others.insert(0, Choice { note: format!("once that is mended{note}"), ..choice });
        }
        self.others.push(Choice::exclude());
        self.why = causes;
        self.nullable.clear();
    }
}

/// Why `check` refuses tables under a tenancy, by the table's name.
pub fn refused(tables: &[Table], tenancy: &Tenancy) -> BTreeMap<String, Vec<String>> {
    let mut refused: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for finding in policy::resolve(tables.to_vec(), tenancy).findings {
        refused.entry(finding.object).or_default().push(finding.cause);
    }
    refused
}

/// A tenancy for these tables, with the key that `wanted` names or the most plausible one.
pub fn propose(tables: &[Table], wanted: Option<&str>) -> Result<Proposal, NoKey> {
    let key = key::choose(tables, wanted)?;
    let keyed = tables.iter().filter(|table| policy::shape_obstacles(table).is_empty()).filter_map(|table| {
        let column = key.of(table)?;
        let kind = table.key_type(&column)?;
        Some(reach::owned(table, Path::Key { column, kind }))
    });
    let reached = reach::reach(tables, keyed.collect());
    let unreached = unreached::Unreached::new(tables, &key, &reached);
    let entries = tables.iter().map(|table| {
        let mut entry = Entry {
            table: table.name.clone(),
            spelled: spelled(&table.name, tables),
            rows: table.estimated_rows,
            chosen: Chosen::Open,
            why: Vec::new(),
            others: Vec::new(),
            nullable: Vec::new(),
            nulls: None,
        };
        let ways = reach::ways(table, &reached);
        match key.of(table) {
            Some(column) => with_key(&mut entry, table, &key, column),
            None if ways.is_empty() => (entry.why, entry.others) = unreached.explain(table),
            None => with_ways(&mut entry, ways, unreached.blocked_ways(table)),
        }
        if let Some(why) = nameless(&table.name, &entry.spelled, tables) {
            if matches!(entry.chosen, Chosen::Line(_)) {
                entry.open(Vec::new());
            }
            entry.others.clear();
            entry.why.push(why.to_owned());
        }
        entry
    });
    let mut proposal = Proposal { entries: entries.collect(), key };
    proposal.settle(tables);
    Ok(proposal)
}

/// A table that names the tenant itself.
fn with_key(entry: &mut Entry, table: &Table, key: &Key, column: String) {
    if table.column(&column).is_some_and(|column| !column.not_null) {
        let choice = if column == key.column {
            Choice { policy: TablePolicy::default(), note: String::new() }
        } else {
            Choice::key(&column, "")
        };
        entry.others.push(choice.not_moving("rows without a tenant are nobody's and stay"));
        entry.nullable.push(column.clone());
    }
    entry.chosen = match key.root.as_ref().filter(|root| root.table == table.name) {
        _ if column == key.column => Chosen::Usual,
        Some(_) => Chosen::Line(Choice::key(column, "the tenants themselves")),
        None => Chosen::Line(Choice::key(column, "")),
    };
}

/// A table that leads to a tenant: by the shortest of the ways that all its rows have, if that is only one. That a
/// way is `blocked` in this version does not make another one the right one.
fn with_ways(entry: &mut Entry, mut ways: Vec<Way>, blocked: Vec<Blocked>) {
    ways.sort_by_key(|way| (!way.complete, way.length));
    let Some(first) = ways.first() else { return };
    let best = |way: &&Way| way.complete == first.complete && way.length == first.length;
    let equal = ways.iter().filter(best).count();
    let rivals = blocked.iter().filter(|way| way.rival).count();
    let (complete, nullable) = (first.complete, first.nullable.clone());
    let mut choices: Vec<Choice> = ways.iter().map(|way| Choice::via(&way.via.key.columns, remark(way))).collect();
    let blocked = blocked.into_iter().map(|Blocked { choice, .. }| Choice {
        note: format!("{}, which cannot be followed as it is", choice.note),
        ..choice
    });
    if complete && equal == 1 && rivals == 0 {
        entry.chosen = Chosen::Line(choices.remove(0));
        entry.others = choices;
        entry.others.extend(blocked);
        return;
    }
    if equal > 1 {
        entry.why.push(format!("{equal} foreign keys lead to a tenant equally well, and they may name different ones"));
    }
    if rivals > 0 {
        entry.why.push("a way that is not longer leads over a table that cannot be followed as it is".to_owned());
    }
    if !complete {
        entry.why.push("every foreign key that leads to a tenant can be NULL somewhere on its way".to_owned());
    }
    if ways.len() == 1 && !nullable.is_empty() {
        let moving = choices[0].clone().not_moving("rows without it are nobody's and stay");
        choices[0].note += "; a row without it stops every move";
        choices.push(moving);
        entry.nullable = nullable;
    }
    entry.others = choices;
    entry.others.extend(blocked);
    entry.others.push(Choice::exclude());
}

fn remark(way: &Way) -> String {
    let null = match way.nullable.as_slice() {
        [] if way.complete => String::new(),
        [] => "; a later column can be NULL".to_owned(),
        columns => format!("; {} can be NULL", columns.join(", ")),
    };
    format!("{way}{null}")
}

/// What the configuration calls the table: its name alone where that is clear, else with the schema.
fn spelled(table: &TableName, tables: &[Table]) -> String {
    let bare = table.schema == "public" && !table.name.contains('.');
    if bare && !ambiguous(table, &table.name, tables) { table.name.clone() } else { table.to_string() }
}

/// Why no line of a configuration can name the table.
fn nameless(table: &TableName, spelled: &str, tables: &[Table]) -> Option<&'static str> {
    if spelled.contains("${") {
        return Some("a configuration cannot name a table with ${ in its name: rename it");
    }
    ambiguous(table, spelled, tables).then_some("a configuration cannot tell it from another table: rename one")
}

/// Whether another table answers to the same text.
fn ambiguous(table: &TableName, text: &str, tables: &[Table]) -> bool {
    let others: BTreeSet<&TableName> = tables.iter().map(|other| &other.name).filter(|other| *other != table).collect();
    others.iter().any(|other| other.name == text || other.to_string() == text)
}
