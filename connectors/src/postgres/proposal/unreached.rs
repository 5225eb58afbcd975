//! Tables from which no way leads to a tenant: what each looks like, so that a person can decide. Never decides.

use std::collections::BTreeSet;

use schemas::TableName;

use super::reach::first_columns;
use super::{Choice, Key};
use crate::postgres::catalog::Table;
use crate::postgres::policy::{self, Owned};

/// How the bookkeeping tables of migration tools are called.
const BOOKKEEPING: [&str; 17] = [
    "schema_migrations",
    "ar_internal_metadata",
    "flyway_schema_history",
    "schema_version",
    "databasechangelog",
    "databasechangeloglock",
    "_prisma_migrations",
    "goose_db_version",
    "alembic_version",
    "django_migrations",
    "knex_migrations",
    "knex_migrations_lock",
    "migrations",
    "typeorm_metadata",
    "atlas_schema_revisions",
    "__EFMigrationsHistory",
    "__drizzle_migrations",
];

/// What is known of all tables when one is explained.
pub struct Unreached<'a> {
    tables: &'a [Table],
    key: &'a Key,
    reached: &'a [Owned],
    /// Tables with the key or with foreign keys that lead to one, whether they can be moved or not.
    leading: BTreeSet<&'a TableName>,
}

/// A way that cannot be followed as it is.
pub struct Blocked {
    /// The line that would name it.
    pub choice: Choice,
    /// Why it cannot be followed; no reason is repeated that is the table's own.
    pub causes: Vec<String>,
    /// Whether every row has it and it has one step only: no other way is shorter.
    pub rival: bool,
}

impl<'a> Unreached<'a> {
    /// Takes in what is known.
    pub fn new(tables: &'a [Table], key: &'a Key, reached: &'a [Owned]) -> Self {
        let mut leading: BTreeSet<&TableName> =
            tables.iter().filter(|table| key.of(table).is_some()).map(|table| &table.name).collect();
        loop {
            let leads = |table: &&Table| table.foreign_keys.iter().any(|key| leading.contains(&key.parent));
            let more: Vec<&TableName> = tables.iter().filter(leads).map(|table| &table.name).collect();
            let before = leading.len();
            leading.extend(more);
            if leading.len() == before {
                return Unreached { tables, key, reached, leading };
            }
        }
    }

    /// Why the table needs a decision, and what could be written.
    pub fn explain(&self, table: &Table) -> (Vec<String>, Vec<Choice>) {
        let mut why: Vec<String> = policy::shape_obstacles(table).into_iter().map(|finding| finding.cause).collect();
        let mut choices = Vec::new();
        if self.leading.contains(&table.name) {
            for way in self.blocked_ways(table) {
                why.extend(way.causes);
                choices.push(Choice { note: format!("{}, once that is mended", way.choice.note), ..way.choice });
            }
        } else if self.key.names(&table.name) && table.keys.iter().any(|key| key.primary && key.columns.len() == 1) {
            let column = table.keys.iter().find(|key| key.primary).map(|key| key.columns[0].clone());
            why.push("its name is that of the tenants, but no foreign key says so".to_owned());
            choices.extend(column.map(|column| Choice::key(column, "if it has one row for each tenant")));
        } else if let Some((cause, choice)) = self.referred_to(table).filter(|_| why.is_empty()) {
            why.push(cause);
            choices.push(choice);
        } else {
            why.push(self.shape(table));
            if why.len() == 1 && !is_bookkeeping(table) && loose_references(table).is_empty() {
                choices.push(Choice::reference("if it is every tenant's: copied whole into each target"));
            }
        }
        choices.push(Choice::exclude());
        (why, choices)
    }

    /// What to say of a table that tenants' rows refer to and that leads to none. Every tenant's, or one row for each
    /// of them: only a person knows.
    fn referred_to(&self, table: &Table) -> Option<(String, Choice)> {
        let from = self.referring(&table.name);
        if is_bookkeeping(table) || from.is_empty() {
            return None;
        }
        let shown = several(&from.iter().map(ToString::to_string).collect::<Vec<_>>());
        let one_each = |from: &Table| {
            let unique = |columns: &[String]| from.keys.iter().any(|key| key.columns == columns);
            from.foreign_keys.iter().any(|key| key.parent == table.name && unique(&key.columns))
        };
        let details = self.tables.iter().any(one_each);
        let cause = match details {
            true => format!("rows of {shown} refer to it one by one: its rows look like single tenants' own"),
            false => format!("nothing in it leads to a tenant, and rows of {shown} refer to it"),
        };
        Some((cause, Choice::reference("if every tenant may see all of it: copied whole into each target")))
    }

    /// The ways over tables that lead to a tenant and cannot be followed as they are.
    pub fn blocked_ways(&self, table: &Table) -> Vec<Blocked> {
        first_columns(table).into_iter().filter_map(|columns| self.blocked(table, columns)).collect()
    }

    fn blocked(&self, table: &Table, columns: &[String]) -> Option<Blocked> {
        let key = table.foreign_keys.iter().find(|key| key.columns == columns)?;
        let parent = self.tables.iter().find(|parent| parent.name == key.parent)?;
        let leads = self.leading.contains(&parent.name);
        let refused = policy::step(table, columns, self.reached).err().filter(|_| leads)?;
        let own: BTreeSet<String> = policy::shape_obstacles(table).into_iter().map(|finding| finding.cause).collect();
        let causes = refused.into_iter().map(|finding| finding.cause).filter(|cause| !own.contains(cause)).collect();
        let nullable = columns.iter().any(|name| table.column(name).is_none_or(|column| !column.not_null));
        let null = if nullable { "; it can be NULL" } else { "" };
        Some(Blocked {
            choice: Choice::via(columns, format!("to {}{null}", parent.name)),
            causes,
            rival: !nullable && self.key.of(parent).is_some(),
        })
    }

    /// What a table looks like from which nothing leads to a tenant.
    fn shape(&self, table: &Table) -> String {
        if is_bookkeeping(table) {
            return "it looks like the bookkeeping of a migration tool, which a target does not need".to_owned();
        }
        let loose = loose_references(table);
        if loose.is_empty() {
            return format!(
                "nothing in it leads to a tenant: copy it whole, leave it out, or add a column \"{}\"",
                self.key.column
            );
        }
        format!(
            "no foreign key leads from it to a tenant, but {} may: add a foreign key and name it with {{via: ...}}, \
             add a column \"{}\", or leave it out",
            several(&loose),
            self.key.column
        )
    }

    /// The tables that lead to a tenant and refer to this one, directly or through others that do not.
    fn referring(&self, table: &TableName) -> BTreeSet<&'a TableName> {
        let (mut found, mut seen, mut next) = (BTreeSet::new(), BTreeSet::from([table]), vec![table]);
        while let Some(parent) = next.pop() {
            let children =
                self.tables.iter().filter(|child| child.foreign_keys.iter().any(|key| &key.parent == parent));
            for child in children.map(|child| &child.name) {
                if self.leading.contains(child) {
                    found.insert(child);
                } else if seen.insert(child) {
                    next.push(child);
                }
            }
        }
        found
    }
}

fn is_bookkeeping(table: &Table) -> bool {
    BOOKKEEPING.contains(&table.name.name.as_str())
}

/// Columns that are named like references and have no foreign key.
fn loose_references(table: &Table) -> Vec<String> {
    let bound = |name: &String| table.foreign_keys.iter().any(|key| key.columns.contains(name));
    let own = |name: &String| {
        let own = table.name.name.to_lowercase();
        table.keys.iter().any(|key| key.primary && key.columns == [name.clone()])
            || name.to_lowercase().strip_suffix("id").is_some_and(|word| word.trim_end_matches('_') == own)
    };
    let named = |name: &String| name.len() > 2 && (name.ends_with("_id") || name.ends_with("Id"));
    let names = table.columns.iter().map(|column| &column.name);
    names.filter(|name| named(name) && !bound(name) && !own(name)).map(|name| format!("\"{name}\"")).collect()
}

/// The first few of them.
fn several(names: &[String]) -> String {
    const SHOWN: usize = 4;
    let more = names.len().saturating_sub(SHOWN);
    let shown = names[..names.len().min(SHOWN)].join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}
