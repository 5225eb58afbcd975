//! Which tables move and how their rows' tenants are found: every table has a policy, or is refused.

use std::collections::{BTreeMap, HashMap, HashSet};

use schemas::config::{NullTenant, TablePolicy, Tenancy};
use schemas::record::PublishedTable;
use schemas::status::{Finding, Severity};
use schemas::tenant::{KEY_TYPES, KeyType};
use schemas::{TableName, TablePath, TenantId};
use tokio_postgres::Client;

use super::catalog::{ForeignKey, Table};
use super::quote::{ident, idents, literal, table as qualified};
use super::{Doing, Result};

/// A table that moves with tenants.
#[derive(Clone, Debug)]
pub struct Owned {
    /// The table.
    pub table: Table,
    /// How a row's tenant is found.
    pub path: Path,
    /// What a row without a tenant means.
    pub null_tenant: NullTenant,
    /// The columns by which `via` tables refer to it: each list once.
    pub referenced: Vec<Vec<String>>,
}

/// How a row's tenant is found.
#[derive(Clone, Debug)]
pub enum Path {
    /// The row names it.
    Key {
        /// The column with the tenant's key.
        column: String,
        /// Its type.
        kind: KeyType,
    },
    /// The row refers to another that belongs to the tenant.
    Via(Box<Via>),
    /// Every tenant has all rows.
    Reference,
    /// The table is the tenant's own, in its target: all rows are. With the column that says so, where there is one.
    Whole(Option<String>),
}

/// The step from a row to the one that it refers to.
#[derive(Clone, Debug)]
pub struct Via {
    /// The foreign key.
    pub key: ForeignKey,
    /// The types of its columns.
    pub kinds: Vec<KeyType>,
    /// The table that it refers to.
    pub parent: Owned,
}

impl Owned {
    /// The columns that say whose a row is: the tenant's key, or the foreign key.
    pub fn columns(&self) -> &[String] {
        match &self.path {
            Path::Key { column, .. } => std::slice::from_ref(column),
            Path::Via(via) => &via.key.columns,
            Path::Reference | Path::Whole(_) => &[],
        }
    }

    /// The columns that the old image of a change must carry.
    pub fn identity_columns(&self) -> Vec<String> {
        let mut columns: Vec<String> = self.columns().iter().chain(self.referenced.iter().flatten()).cloned().collect();
        columns.sort_unstable();
        columns.dedup();
        columns
    }

    /// The types of those columns as keys, by number.
    pub fn key_types(&self) -> HashMap<u32, KeyType> {
        let columns = self.identity_columns();
        let types = columns.iter().filter_map(|name| self.table.column(name));
        types.filter_map(|column| Some((column.type_oid, column.key?))).collect()
    }

    /// The type of the tenant's key at the end of the path.
    pub fn key_type(&self) -> Option<KeyType> {
        match &self.path {
            Path::Key { kind, .. } => Some(*kind),
            Path::Via(via) => via.parent.key_type(),
            Path::Reference | Path::Whole(_) => None,
        }
    }

    /// Whether what has this name in [`PublishedTable::found_by`] says whose its rows are.
    pub fn is_by(&self, name: &str) -> bool {
        match PublishedTable::column_of(name) {
            Some(column) => self.identity_columns().iter().any(|own| own == column),
            None => matches!(&self.path, Path::Via(via) if via.key.name == name),
        }
    }

    /// The table at the end of the path.
    pub fn root(&self) -> &TableName {
        match &self.path {
            Path::Key { .. } | Path::Reference | Path::Whole(_) => &self.table.name,
            Path::Via(via) => via.parent.root(),
        }
    }

    /// How many steps it is away from a table that names the tenant.
    pub fn depth(&self) -> usize {
        match &self.path {
            Path::Key { .. } | Path::Reference | Path::Whole(_) => 0,
            Path::Via(via) => 1 + via.parent.depth(),
        }
    }

    /// The path, as records and routes have it.
    pub fn route(&self) -> TablePath {
        match &self.path {
            Path::Key { column, .. } => TablePath::Key(column.clone()),
            Path::Via(via) => {
                let ForeignKey { columns, parent, referenced, .. } = via.key.clone();
                TablePath::Via { columns, parent, referenced }
            }
            // Whoever has the table gets all rows.
            Path::Reference | Path::Whole(_) => TablePath::Reference,
        }
    }

    /// The SQL condition that selects the tenant's rows.
    pub fn filter(&self, tenant: &TenantId) -> String {
        self.filter_and(tenant, "true")
    }

    /// The same, where this is true of each row, too, that says whose another one is.
    pub fn filter_and(&self, tenant: &TenantId, also: &str) -> String {
        match &self.path {
            Path::Key { column, .. } => {
                let kind = self.table.column(column).map_or("text", |column| column.base_name.as_str());
                format!("{} = {}::{kind}", ident(column), literal(&tenant.0))
            }
            Path::Via(via) => {
                let list = |columns: &[String]| idents(columns.iter().map(String::as_str));
                format!(
                    "({}) IN (SELECT {} FROM {} WHERE {} AND {also})",
                    list(&via.key.columns),
                    list(&via.key.referenced),
                    qualified(&via.key.parent),
                    via.parent.filter_and(tenant, also)
                )
            }
            Path::Reference | Path::Whole(_) => "true".to_owned(),
        }
    }

    /// Whether `row` (`NEW`, an alias) is the tenant's, in SQL that means the same whatever the session's search_path is.
    pub fn condition(&self, row: &str, tenant: &TenantId) -> String {
        match &self.path {
            Path::Key { column, .. } => {
                let kind = self.table.column(column).map_or("text", |column| column.base_name.as_str());
                format!("{row}.{} OPERATOR(pg_catalog.=) {}::{kind}", ident(column), literal(&tenant.0))
            }
            Path::Via(via) => {
                let parent = format!("parent{}", self.depth());
                let pairs = via.key.referenced.iter().zip(&via.key.columns);
                let same = pairs.map(|(theirs, ours)| {
                    format!("{parent}.{} OPERATOR(pg_catalog.=) {row}.{} AND ", ident(theirs), ident(ours))
                });
                format!(
                    "EXISTS (SELECT FROM {} {parent} WHERE {}{})",
                    qualified(&via.key.parent),
                    same.collect::<String>(),
                    via.parent.condition(&parent, tenant)
                )
            }
            Path::Reference => "false".to_owned(),
            Path::Whole(_) => "true".to_owned(),
        }
    }

    /// Whether the table has a row that is the tenant's alone.
    pub async fn has_tenant(&self, client: &Client, tenant: &TenantId) -> Result<bool> {
        if matches!(self.path, Path::Reference) {
            return Ok(false);
        }
        let sql = format!("SELECT EXISTS (SELECT FROM {} WHERE {})", qualified(&self.table.name), self.filter(tenant));
        let row = client.query_one(&sql, &[]).await.doing(format!("look for the tenant in {}", self.table.name))?;
        Ok(row.get(0))
    }

    /// Whether rows without a tenant exist although the policy says they stop the move.
    pub async fn has_null_tenant(&self, client: &Client) -> Result<bool> {
        let nullable = |name: &&String| self.table.column(name).is_some_and(|column| !column.not_null);
        let nullable: Vec<&String> = self.columns().iter().filter(nullable).collect();
        if self.null_tenant == NullTenant::NotMoving || nullable.is_empty() {
            return Ok(false);
        }
        let is_null: Vec<String> = nullable.iter().map(|column| format!("{} IS NULL", ident(column))).collect();
        let sql = format!("SELECT EXISTS (SELECT FROM {} WHERE {})", qualified(&self.table.name), is_null.join(" OR "));
        let row = client
            .query_one(&sql, &[])
            .await
            .doing(format!("look for rows of {} without a tenant", self.table.name))?;
        Ok(row.get(0))
    }
}

/// The tables that move, and what has to be decided or mended first.
pub struct Policies {
    /// Tables that can be moved; one that `via` tables refer to comes before them.
    pub owned: Vec<Owned>,
    /// The others, but for those excluded.
    pub findings: Vec<Finding>,
}

/// Gives every table its policy.
pub fn resolve(tables: Vec<Table>, tenancy: &Tenancy) -> Policies {
    let mut policies = Policies { owned: Vec::new(), findings: unknown_names(&tables, &tenancy.tables) };
    let default = TablePolicy::default();
    let mut by_path = Vec::new();
    for table in tables {
        let name = table.name.to_string();
        let declared = tenancy.tables.get(&name).or_else(|| tenancy.tables.get(&table.name.name));
        let policy = declared.unwrap_or(&default);
        if policy.exclude {
            continue;
        }
        if policy.reference {
            match shape_obstacles(&table) {
                none if none.is_empty() => {
                    let (path, null_tenant) = (Path::Reference, NullTenant::NotMoving);
                    policies.owned.push(Owned { table, path, null_tenant, referenced: Vec::new() });
                }
                obstacles => policies.findings.extend(obstacles),
            }
            continue;
        }
        if let Some(columns) = &policy.via {
            by_path.push((table, columns.clone(), policy.null_tenant));
            continue;
        }
        let key = policy.key.as_deref().unwrap_or(&tenancy.key).to_owned();
        let obstacles = obstacles(&table, &key);
        match table.key_type(&key) {
            Some(kind) if obstacles.is_empty() => {
                let path = Path::Key { column: key, kind };
                policies.owned.push(Owned { table, path, null_tenant: policy.null_tenant, referenced: Vec::new() });
            }
            _ => policies.findings.extend(obstacles),
        }
    }
    resolve_paths(&mut policies, by_path);
    policies
}

/// Tables of which every row is the tenant's, each with the column that names it, where one does; an error is the name of one that
/// is not there.
pub fn whole(
    mut found: Vec<Table>,
    names: impl IntoIterator<Item = (TableName, Option<String>)>,
) -> std::result::Result<Vec<Owned>, TableName> {
    let own = names.into_iter().map(|(name, column)| {
        let at = found.iter().position(|table| table.name == name).ok_or(name)?;
        let (table, null_tenant) = (found.swap_remove(at), NullTenant::NotMoving);
        Ok(Owned { table, path: Path::Whole(column), null_tenant, referenced: Vec::new() })
    });
    own.collect()
}

/// Adds the tables that refer to others, from the top down.
fn resolve_paths(policies: &mut Policies, mut left: Vec<(Table, Vec<String>, NullTenant)>) {
    loop {
        let before = left.len();
        let mut waiting = Vec::new();
        for (table, columns, null_tenant) in std::mem::take(&mut left) {
            match step(&table, &columns, &policies.owned) {
                Ok(via) => {
                    let known = &mut policies.owned;
                    if let Some(parent) = known.iter_mut().find(|owned| owned.table.name == via.key.parent)
                        && !parent.referenced.contains(&via.key.referenced)
                    {
                        parent.referenced.push(via.key.referenced.clone());
                    }
                    known.push(Owned { table, path: Path::Via(Box::new(via)), null_tenant, referenced: Vec::new() });
                }
                Err(finding) => waiting.push((table, columns, null_tenant, finding)),
            }
        }
        if waiting.is_empty() {
            return;
        }
        if waiting.len() == before {
            policies.findings.extend(waiting.into_iter().flat_map(|(.., findings)| findings));
            return;
        }
        left = waiting.into_iter().map(|(table, columns, null_tenant, _)| (table, columns, null_tenant)).collect();
    }
}

/// The step from a table over `columns` to one whose tenants are known; or what stands in the way.
pub(super) fn step(table: &Table, columns: &[String], known: &[Owned]) -> std::result::Result<Via, Vec<Finding>> {
    let name = table.name.to_string();
    let no = |cause: String, remedy: String| Err(vec![Finding::new(Severity::Error, &name, cause, remedy)]);
    let here = columns.join(", ");
    let mut keys = table.foreign_keys.iter().filter(|key| same_columns(&key.columns, columns));
    let Some(key) = keys.next() else {
        let own: Vec<String> = table.foreign_keys.iter().map(|key| key.columns.join(", ")).collect();
        let own = if own.is_empty() { "none".to_owned() } else { own.join("; ") };
        let remedy = format!("name the columns of a foreign key of the table (it has: {own}), or add one on ({here})");
        return no(format!("via: no foreign key has exactly the columns ({here})"), remedy);
    };
    if keys.any(|other| other.parent != key.parent || other.referenced != key.referenced) {
        let cause = format!("via: two foreign keys with the columns ({here}) lead to different places");
        return no(cause, "drop one of them, or give the table a tenant key column".to_owned());
    }
    if key.parent == table.name {
        let cause = format!("via: ({here}) refers to the table itself, which this version cannot follow");
        return no(cause, "name a foreign key that leads to another table".to_owned());
    }
    if !key.validated {
        let sql = format!("ALTER TABLE {} VALIDATE CONSTRAINT {}", qualified(&table.name), ident(&key.name));
        return no(format!("via: foreign key {} is NOT VALID: rows may refer to nothing", key.name), sql);
    }
    let of_tenants = |owned: &&Owned| owned.key_type().is_some();
    let Some(parent) = known.iter().filter(of_tenants).find(|owned| owned.table.name == key.parent) else {
        let cause = format!("via: ({here}) leads to {}, whose own tenants are not known", key.parent);
        return no(cause, format!("give {} a policy that leads to a tenant, or exclude both", key.parent));
    };
    if parent.table.partitioned_by.is_some() {
        let cause =
            format!("via: ({here}) leads to {}, which is partitioned; this version cannot follow that", key.parent);
        return no(cause, "give the table a tenant key column, or exclude it".to_owned());
    }
    let mut kinds = Vec::new();
    for (from, to) in key.columns.iter().zip(&key.referenced) {
        match (table.key_type(from), parent.table.key_type(to)) {
            (Some(kind), Some(other)) if kind == other => kinds.push(kind),
            _ => {
                let cause = format!(
                    "via: \"{from}\" is {}, {}.\"{to}\" is {}; both must be the same: {KEY_TYPES}",
                    type_of(table, from),
                    key.parent,
                    type_of(&parent.table, to)
                );
                return no(cause, "change one of the types, or exclude the table".to_owned());
            }
        }
    }
    let in_the_way = shape_obstacles(table);
    if !in_the_way.is_empty() {
        return Err(in_the_way);
    }
    Ok(Via { key: key.clone(), kinds, parent: parent.clone() })
}

fn same_columns(one: &[String], other: &[String]) -> bool {
    one.len() == other.len() && one.iter().all(|column| other.contains(column))
}

fn unknown_names(tables: &[Table], declared: &BTreeMap<String, TablePolicy>) -> Vec<Finding> {
    let is = |table: &TableName, name: &String| &table.name == name || &table.to_string() == name;
    let part = |table: &Table, name: &String| table.partitions.iter().any(|partition| is(&partition.name, name));
    let known = |name: &String| tables.iter().any(|table| is(&table.name, name) || part(table, name));
    let unknown = declared.keys().filter(|name| !known(name)).map(|name| {
        Finding::new(
            Severity::Error,
            name,
            "the configuration names it, but there is no such table",
            format!("remove tenancy.tables.{name} or correct the name"),
        )
    });
    unknown.collect()
}

/// An error about a table that leaving it out would mend too.
fn in_the_way(table: &Table, cause: String, remedy: &str) -> Finding {
    let name = table.name.to_string();
    let exclude = format!("or leave it out: under tenancy.tables, `\"{name}\": {{exclude: true}}`");
    Finding::new(Severity::Error, &name, cause, format!("{remedy} {exclude}").trim().to_owned())
}

fn type_of<'a>(table: &'a Table, column: &str) -> &'a str {
    table.column(column).map_or("missing", |column| &column.type_sql)
}

/// Why the table cannot be moved by its key.
fn obstacles(table: &Table, key: &str) -> Vec<Finding> {
    let mut found = match table.column(key) {
        None => {
            let leads = table.foreign_keys.iter().filter(|other| other.parent != table.name);
            let leads: Vec<String> = leads.map(|key| format!("{{via: {}}}", key.columns.join(", "))).collect();
            let via = if leads.is_empty() {
                String::new()
            } else {
                format!(" or, where that leads to a tenant, its path with {},", leads.join(" or "))
            };
            let cause = format!("it has no column \"{key}\" and no policy");
            let remedy =
                format!("name its key column with {{key: …}},{via} say {{reference: true}} if it is every tenant's,");
            return vec![in_the_way(table, cause, &remedy)];
        }
        Some(column) if column.key.is_none() => {
            let cause = format!("its key \"{key}\" has type {}; a key can be {KEY_TYPES}", column.type_sql);
            vec![in_the_way(table, cause, "use a key of such a type,")]
        }
        Some(_) => Vec::new(),
    };
    found.extend(shape_obstacles(table));
    found
}

/// Why the table cannot be moved, whatever its rows' tenants are found by.
pub(super) fn shape_obstacles(table: &Table) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut add = |cause: String, remedy: &str| found.push(in_the_way(table, cause, remedy));
    match table.kind.as_str() {
        "f" => add("it is a foreign table, whose changes are not in the log".into(), ""),
        _ if table.inherits => {
            add("tables with inheritance other than partitions cannot be moved by this version".into(), "")
        }
        _ => {}
    }
    if table.outdated {
        let cause = "it is partitioned, and PostgreSQL 14 publishes a partition as what it was when the stream first met it: rows of \
                     tables that are attached later would be missing, rows of detached ones would come";
        add(cause.into(), "update the source to PostgreSQL 15 or newer,");
    }
    let mut names = HashSet::new();
    for partition in &table.partitions {
        let name = &partition.name;
        if !names.insert(&name.name) {
            add(format!("another partition than {name} has its name in another schema"), "rename one,");
        }
        match (partition.kind.as_str(), partition.persistence.as_str(), partition.bound.as_str()) {
            ("f", ..) => {
                add(format!("its partition {name} is a foreign table, whose changes are not in the log"), "detach it,")
            }
            (_, "u", _) => {
                let remedy = format!("ALTER TABLE {} SET LOGGED,", qualified(name));
                add(format!("its partition {name} is unlogged, so its changes are not in the log"), &remedy);
            }
            (.., "") => {
                let remedy = format!(
                    "ALTER TABLE {} DETACH PARTITION {} FINALIZE,",
                    qualified(&partition.parent),
                    qualified(name)
                );
                add(format!("its partition {name} is half detached"), &remedy);
            }
            _ => {}
        }
    }
    if table.persistence == "u" {
        add("it is unlogged, so its changes are not in the log".into(), "ALTER TABLE … SET LOGGED,");
    }
    if table.row_security {
        let remedy = "ALTER ROLE … BYPASSRLS for the role of source.url,";
        add("row level security hides rows of it from the role".into(), remedy);
    }
    found
}

/// The names of the tables that move.
pub fn names(owned: &[Owned]) -> Vec<TableName> {
    owned.iter().map(|owned| owned.table.name.clone()).collect()
}

/// How their rows' tenants are found, in the order of [`names`].
pub fn paths(owned: &[Owned]) -> Vec<TablePath> {
    owned.iter().map(Owned::route).collect()
}
