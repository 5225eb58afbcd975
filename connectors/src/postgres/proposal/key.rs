//! Which column names a row's tenant: guessed from its name, from how many tables have it and from its foreign
//! keys. A guess is only ever a proposal; a person may name the column instead.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use schemas::TableName;
use schemas::tenant::{KEY_TYPES, KeyType};

use crate::postgres::catalog::Table;

/// What tenants are usually called; a column named so counts twice.
const TENANTS: [&str; 15] = [
    "tenant",
    "organization",
    "organisation",
    "org",
    "account",
    "company",
    "workspace",
    "shop",
    "store",
    "storefront",
    "merchant",
    "site",
    "team",
    "client",
    "namespace",
];
/// How many other columns are named.
const RUNNERS_UP: usize = 3;

/// The tenant key of most tables.
#[derive(Clone, Debug)]
pub struct Key {
    /// The column, in its most frequent spelling.
    pub column: String,
    /// Its other spellings (`tenantId` beside `tenant_id`), the most frequent first.
    pub spellings: Vec<String>,
    /// Its type.
    pub kind: KeyType,
    /// How many tables have it, in any spelling; partitions are not counted.
    pub tables: usize,
    /// The table of the tenants themselves, where foreign keys lead to one.
    pub root: Option<Root>,
    /// Other columns that might be the key, and how many tables have them; the most plausible first.
    pub others: Vec<(String, usize)>,
}

/// The table that has one row for each tenant.
#[derive(Clone, Debug)]
pub struct Root {
    /// Its name.
    pub table: TableName,
    /// Its column that the keys refer to.
    pub column: String,
    /// How many foreign keys say so.
    pub references: usize,
}

/// No key can be proposed.
#[derive(Debug, thiserror::Error)]
pub enum NoKey {
    /// The one that was asked for does not exist.
    #[error("no table has a column \"{0}\" that can be a tenant key: {types}", types = KEY_TYPES)]
    Unknown(String),
    /// Nothing looks like one.
    #[error("no column looks like a tenant key: none of a fitting type is shared by several tables")]
    Nothing,
}

impl Key {
    /// The column of `table` that holds the key: its name in one of the spellings, or the only column that
    /// refers to the table of the tenants.
    pub fn of(&self, table: &Table) -> Option<String> {
        if let Some(root) = self.root.as_ref().filter(|root| root.table == table.name) {
            return Some(root.column.clone());
        }
        if table.column(&self.column).is_some() {
            return Some(self.column.clone());
        }
        let fits = |column: &&String| table.key_type(column) == Some(self.kind);
        let spelled = self.spellings.iter().find(fits);
        spelled.cloned().or_else(|| self.reference(table))
    }

    /// The column by which the table refers to the tenants' table, where it is the only one and never NULL.
    fn reference(&self, table: &Table) -> Option<String> {
        let root = self.root.as_ref()?;
        let leads = |column: &str| {
            table.foreign_keys.iter().any(|key| {
                key.parent == root.table && key.columns == [column] && key.referenced == [root.column.clone()]
            })
        };
        let mut columns = table.columns.iter().filter(|column| leads(&column.name));
        let column = columns.next().filter(|column| column.not_null)?;
        (columns.next().is_none() && table.key_type(&column.name) == Some(self.kind)).then(|| column.name.clone())
    }

    /// Whether a table's name is that of the tenants, by the letter: `tenants` for `tenant_id`.
    pub fn names(&self, table: &TableName) -> bool {
        let (table, word) = (plain(&table.name), self.word());
        !word.is_empty() && (table == word || table.strip_suffix('s') == Some(&word))
    }

    fn word(&self) -> String {
        word(&plain(&self.column)).to_owned()
    }
}

/// Columns of one meaning: the same letters and the same type.
struct Group<'a> {
    plain: String,
    kind: KeyType,
    spellings: BTreeMap<&'a str, usize>,
    references: BTreeMap<(&'a TableName, &'a str), usize>,
}

impl<'a> Group<'a> {
    fn tables(&self) -> usize {
        self.spellings.values().sum()
    }

    /// Named like a key, or the column of a foreign key.
    fn plausible(&self) -> bool {
        let named = self.plain.ends_with("id") || TENANTS.contains(&word(&self.plain));
        !matches!(self.plain.as_str(), "id" | "uuid" | "guid") && (named || !self.references.is_empty())
    }

    fn score(&self) -> usize {
        self.tables() * if TENANTS.contains(&word(&self.plain)) { 2 } else { 1 }
    }

    fn root(&self) -> Option<Root> {
        let most = self.references.iter().max_by_key(|(name, count)| (**count, Reverse(*name)))?;
        let ((table, column), references) = most;
        Some(Root { table: (*table).clone(), column: (*column).to_owned(), references: *references })
    }

    /// The spellings, the most frequent first.
    fn spelled(&self) -> Vec<&'a str> {
        let mut spelled: Vec<(&str, usize)> = self.spellings.iter().map(|(name, count)| (*name, *count)).collect();
        spelled.sort_by_key(|(_, count)| Reverse(*count));
        spelled.into_iter().map(|(name, _)| name).collect()
    }
}

/// The key that `wanted` names, or else the most plausible one.
pub fn choose(tables: &[Table], wanted: Option<&str>) -> Result<Key, NoKey> {
    let mut groups = groups(tables);
    groups.retain(|group| wanted.is_some_and(|name| group.spellings.contains_key(name)) || group.plausible());
    let asked = |group: &Group| wanted.is_some_and(|name| group.spellings.contains_key(name));
    groups.sort_by_key(|group| {
        let references = group.root().map_or(0, |root| root.references);
        (Reverse((asked(group), group.score(), references)), group.plain.clone())
    });
    let Some((group, others)) = groups.split_first() else {
        return Err(wanted.map_or(NoKey::Nothing, |name| NoKey::Unknown(name.to_owned())));
    };
    if let Some(name) = wanted.filter(|_| !asked(group)) {
        return Err(NoKey::Unknown(name.to_owned()));
    }
    let spelled = group.spelled();
    let column = wanted.or(spelled.first().copied()).unwrap_or_default();
    Ok(Key {
        column: column.to_owned(),
        spellings: spelled.iter().filter(|name| **name != column).map(ToString::to_string).collect(),
        kind: group.kind,
        tables: group.tables(),
        root: group.root(),
        others: others.iter().filter(|other| other.tables() > 1).take(RUNNERS_UP).map(runner_up).collect(),
    })
}

fn runner_up(group: &Group) -> (String, usize) {
    (group.spelled().first().copied().unwrap_or_default().to_owned(), group.tables())
}

fn groups(tables: &[Table]) -> Vec<Group<'_>> {
    let mut groups: BTreeMap<(String, u8), Group> = BTreeMap::new();
    for table in tables.iter().filter(|table| table.kind == "p" || !table.inherits) {
        for column in &table.columns {
            let Some(kind) = column.key else { continue };
            let plain = plain(&column.name);
            let group = groups.entry((plain.clone(), kind as u8)).or_insert_with(|| Group {
                plain,
                kind,
                spellings: BTreeMap::new(),
                references: BTreeMap::new(),
            });
            *group.spellings.entry(&column.name).or_default() += 1;
            let single = |key: &&crate::postgres::catalog::ForeignKey| {
                key.columns == [column.name.clone()] && key.parent != table.name
            };
            for key in table.foreign_keys.iter().filter(single) {
                *group.references.entry((&key.parent, &key.referenced[0])).or_default() += 1;
            }
        }
    }
    groups.into_values().collect()
}

/// The letters and digits, in lower case.
fn plain(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// What a plain column is about: `tenant` of `tenantid`.
fn word(plain: &str) -> &str {
    ["uuid", "id", "key"].iter().find_map(|end| plain.strip_suffix(end)).unwrap_or(plain)
}
