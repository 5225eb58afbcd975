//! Which tables move and by which column: every table has a policy, or is refused.

use std::collections::BTreeMap;

use schemas::config::{NullTenant, TablePolicy, Tenancy};
use schemas::status::{Finding, Severity};
use schemas::tenant::KeyType;
use schemas::{TableName, TenantId};
use tokio_postgres::Client;

use super::catalog::{Column, Table};
use super::quote::{ident, literal, table as qualified};
use super::{Doing, Result};

/// A table whose rows carry the tenant's key.
#[derive(Clone, Debug)]
pub struct Keyed {
    /// The table.
    pub table: Table,
    /// The column with the tenant's key.
    pub key: String,
    /// Its type.
    pub key_type: KeyType,
    /// What a row without a tenant means.
    pub null_tenant: NullTenant,
}

impl Keyed {
    /// The SQL condition that selects the tenant's rows.
    pub fn filter(&self, tenant: &TenantId) -> String {
        let kind = self.table.column(&self.key).map_or("text", |column| column.type_name.as_str());
        format!("{} = {}::{kind}", ident(&self.key), literal(&tenant.0))
    }

    /// Whether the table has a row of the tenant.
    pub async fn has_tenant(&self, client: &Client, tenant: &TenantId) -> Result<bool> {
        let sql = format!("SELECT EXISTS (SELECT FROM {} WHERE {})", qualified(&self.table.name), self.filter(tenant));
        let row = client.query_one(&sql, &[]).await.doing(format!("look for the tenant in {}", self.table.name))?;
        Ok(row.get(0))
    }

    /// Whether rows without a tenant exist although the policy says they stop the move.
    pub async fn has_null_tenant(&self, client: &Client) -> Result<bool> {
        if self.null_tenant == NullTenant::NotMoving || self.table.column(&self.key).is_some_and(|key| key.not_null) {
            return Ok(false);
        }
        let sql =
            format!("SELECT EXISTS (SELECT FROM {} WHERE {} IS NULL)", qualified(&self.table.name), ident(&self.key));
        let row = client
            .query_one(&sql, &[])
            .await
            .doing(format!("look for rows of {} without a tenant", self.table.name))?;
        Ok(row.get(0))
    }
}

/// The tables that move, and what has to be decided or mended first.
pub struct Policies {
    /// Tables that carry the key and can be moved.
    pub keyed: Vec<Keyed>,
    /// The others, but for those excluded.
    pub findings: Vec<Finding>,
}

/// Gives every table its policy.
pub fn resolve(tables: Vec<Table>, tenancy: &Tenancy) -> Policies {
    let mut policies = Policies { keyed: Vec::new(), findings: unknown_names(&tables, &tenancy.tables) };
    let default = TablePolicy::default();
    for table in tables {
        let name = table.name.to_string();
        let declared = tenancy.tables.get(&name).or_else(|| tenancy.tables.get(&table.name.name));
        let policy = declared.unwrap_or(&default);
        if policy.exclude {
            continue;
        }
        if let Some((what, later)) = unsupported_policy(policy) {
            policies.findings.push(Finding::new(Severity::Error, &name, what, later));
            continue;
        }
        let key = policy.key.as_deref().unwrap_or(&tenancy.key).to_owned();
        let obstacles = obstacles(&table, &key);
        match table.key_type(&key) {
            Some(key_type) if obstacles.is_empty() => {
                policies.keyed.push(Keyed { table, key, key_type, null_tenant: policy.null_tenant });
            }
            _ => policies.findings.extend(obstacles),
        }
    }
    policies
}

fn unknown_names(tables: &[Table], declared: &BTreeMap<String, TablePolicy>) -> Vec<Finding> {
    let known = |name: &String| tables.iter().any(|table| &table.name.name == name || &table.name.to_string() == name);
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

fn unsupported_policy(policy: &TablePolicy) -> Option<(&'static str, &'static str)> {
    if policy.via.is_some() {
        return Some((
            "via: tables reached through foreign keys cannot be moved by this version",
            "give the table the key column, or leave it out with {exclude: true}",
        ));
    }
    policy.reference.then_some((
        "reference tables cannot be followed by this version",
        "leave the table out with {exclude: true} and copy it by hand",
    ))
}

/// Why the table cannot be moved.
fn obstacles(table: &Table, key: &str) -> Vec<Finding> {
    let name = table.name.to_string();
    let exclude = format!("or leave it out: under tenancy.tables, `\"{name}\": {{exclude: true}}`");
    let mut found = Vec::new();
    let mut add = |cause: String, remedy: &str| {
        found.push(Finding::new(Severity::Error, &name, cause, format!("{remedy} {exclude}").trim().to_owned()))
    };
    match table.column(key) {
        None => {
            add(format!("it has no column \"{key}\" and no policy"), "name its key column with {key: …},");
            return found;
        }
        Some(column) if KeyType::from_oid(column.type_oid).is_none() => add(
            format!(
                "its key \"{key}\" has type {}; smallint, integer, bigint, uuid, text and varchar are supported",
                column.type_sql
            ),
            "use a key of such a type,",
        ),
        Some(_) => {}
    }
    match table.kind.as_str() {
        "p" => add("partitioned tables cannot be moved by this version".into(), ""),
        "f" => add("it is a foreign table, whose changes are not in the log".into(), ""),
        _ if table.inherits => add("partitions and tables with inheritance cannot be moved by this version".into(), ""),
        _ => {}
    }
    if table.persistence == "u" {
        add("it is unlogged, so its changes are not in the log".into(), "ALTER TABLE … SET LOGGED,");
    }
    if table.row_security {
        add("row level security is on, which this version cannot take along".into(), "");
    }
    for column in &table.columns {
        if let Some(cause) = column_obstacle(column) {
            add(format!("column \"{}\" {cause}", column.name), "");
        }
    }
    found
}

fn column_obstacle(column: &Column) -> Option<String> {
    let kind = &column.type_sql;
    if !column.built_in {
        return Some(format!(
            "has type {kind}, which does not come with PostgreSQL; this version cannot make it in the target"
        ));
    }
    if !column.has_binary {
        return Some(format!("has type {kind}, which has no binary form; this version cannot stream it"));
    }
    let plain = column.type_name.trim_start_matches("\"pg_catalog\".\"").trim_start_matches('_');
    if plain.starts_with("reg") {
        return Some(format!("has type {kind}, whose values are object numbers of the source"));
    }
    if let Some(needs) = &column.default_needs {
        return Some(format!("has a default that needs {needs}, which this version does not make in the target"));
    }
    column.collation.as_ref().filter(|name| !name.starts_with("pg_catalog.")).map(|name| {
        format!("has collation {name}, which does not come with PostgreSQL; this version cannot make it in the target")
    })
}

/// The names of the tables that move.
pub fn names(keyed: &[Keyed]) -> Vec<TableName> {
    keyed.iter().map(|keyed| keyed.table.name.clone()).collect()
}

/// The columns with the tenant's key, in the order of [`names`].
pub fn keys(keyed: &[Keyed]) -> Vec<String> {
    keyed.iter().map(|keyed| keyed.key.clone()).collect()
}
