//! Unique constraints over all tenants. While a tenant lives elsewhere neither side sees what the other has, so a value that is taken
//! on both is found out only when it flows back. `check` names them before there is a way back.

use schemas::status::{Finding, Severity};
use tokio_postgres::Client;

use super::catalog::{Column, ForeignKey};
use super::policy::{Owned, Path};
use super::{Doing, Result};

/// `pg_type.oid` of uuid: who makes one makes it for himself.
const UUID: u32 = 2950;

/// Unique indexes, partial ones, those over expressions and those of exclusion constraints too: each with the columns it is made of as
/// SQL, and which of them are columns.
const INDEXES: &str = "\
SELECT i.indrelid,
       ARRAY(SELECT pg_get_indexdef(i.indexrelid, place, true) FROM generate_series(1, i.indnkeyatts) place ORDER BY place),
       ARRAY(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, place)
               JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
              WHERE k.place <= i.indnkeyatts ORDER BY k.place)
  FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
 WHERE i.indrelid = ANY ($1) AND (i.indisunique OR i.indisexclusion) AND i.indislive
 ORDER BY i.indrelid::regclass::text, i.indisprimary DESC, c.relname";

/// One finding that names them all.
pub async fn finding(client: &Client, owned: &[Owned]) -> Result<Option<Finding>> {
    let oids: Vec<u32> = owned.iter().map(|owned| owned.table.oid).collect();
    let mut open = Vec::new();
    for row in client.query(INDEXES, &[&oids]).await.doing("list unique indexes")? {
        let (oid, parts, columns): (u32, Vec<String>, Vec<String>) = (row.get(0), row.get(1), row.get(2));
        let shared = owned.iter().find(|table| table.table.oid == oid && !is_tenants(table, &columns, owned));
        open.extend(shared.map(|owned| format!("({}) of {}", parts.join(", "), owned.table.name)));
    }
    let cause = format!(
        "over all tenants: {}. After a cutover a value that the tenant and another one both take stops the way back",
        open.join(", ")
    );
    let remedy = "make them unique for each tenant (with the tenant's key), or let nobody write such values while the way back is open";
    Ok((!open.is_empty()).then(|| Finding::new(Severity::Warning, "unique constraints", cause, remedy)))
}

/// Whether no other tenant can have the same: by what the row belongs to, or by where a value comes from.
fn is_tenants(owned: &Owned, columns: &[String], all: &[Owned]) -> bool {
    let has = |wanted: &[String]| !wanted.is_empty() && wanted.iter().all(|column| columns.contains(column));
    let by_row = matches!(owned.path, Path::Reference | Path::Whole(_)) || has(owned.columns());
    let of_tenants = |key: &ForeignKey| {
        let parent = all.iter().find(|other| other.table.name == key.parent);
        parent.is_some_and(|parent| !matches!(parent.path, Path::Reference))
    };
    let by_parent = owned.table.foreign_keys.iter().any(|key| has(&key.columns) && of_tenants(key));
    let refers = |column: &Column| owned.table.foreign_keys.iter().any(|key| key.columns.contains(&column.name));
    let made = |column: &Column| is_drawn(column) || column.type_oid == UUID && !refers(column);
    by_row || by_parent || columns.iter().filter_map(|name| owned.table.column(name)).any(made)
}

/// Whether its values come from a sequence, of which each side has its own part, and never by hand.
fn is_drawn(column: &Column) -> bool {
    !column.identity.is_empty() || column.default.as_ref().is_some_and(|default| default.contains("nextval("))
}
