//! What a deletion would reach, or be stopped by.

use schemas::TenantId;
use schemas::status::{Finding, Severity};
use tokio_postgres::Client;

use super::super::apply::may_be_silent;
use super::super::policy::{Owned, Path};
use super::super::quote::{ident, idents, table as qualified};
use super::super::{Doing, Result};
use super::references::{self, Reference};

/// What would have to be mended before the tenant's rows can all be deleted (errors), and what somebody should know. Asked for
/// before the deletion; each batch looks again at what refers to its rows.
pub async fn obstacles(client: &Client, tables: &[Owned], tenant: &TenantId) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for key in references::load(client, tables).await? {
        found.extend(referring(client, tables, tenant, &key).await?);
    }
    let silent = may_be_silent(client).await?;
    found.extend(code(client, tables, silent).await?);
    found.extend(privileges(client, tables).await?);
    Ok(found)
}

/// Rows that stay and refer to the tenant's, and what finding them costs.
async fn referring(client: &Client, tables: &[Owned], tenant: &TenantId, key: &Reference) -> Result<Option<Finding>> {
    let Reference { name, from, action, .. } = key;
    let object = format!("{name} of {from}");
    let parent = &tables[key.parent].table.name;
    let own = key.child.filter(|_| !key.is_every_tenants).map(|child| tables[child].condition("c", tenant));
    // By its path a row refers to its own tenant's.
    if !key.is_path(tables) {
        let stays = own.map_or(String::new(), |own| format!(" AND ({own}) IS NOT TRUE"));
        let sql = format!(
            "SELECT EXISTS (SELECT FROM {} p JOIN {} c ON {} WHERE {}{stays})",
            qualified(parent),
            qualified(from),
            key.matches("c", "p"),
            tables[key.parent].condition("p", tenant)
        );
        let doing = format!("look for rows of {from} that refer to the tenant's");
        if client.query_one(&sql, &[]).await.doing(doing)?.get(0) {
            let whose = if stays.is_empty() { "rows that stay here" } else { "rows of other tenants" };
            let does = match *action {
                "CASCADE" => "; by ON DELETE CASCADE they would be deleted too",
                "SET NULL" | "SET DEFAULT" => "; by its ON DELETE action they would be changed",
                _ => "",
            };
            let cause = format!("{whose} refer to rows of {parent} that are the tenant's{does}");
            let remedy = format!(
                "delete those rows of {from} or have them refer to others, or ALTER TABLE {} DROP CONSTRAINT {}",
                qualified(from),
                ident(name)
            );
            return Ok(Some(Finding::new(Severity::Error, object, cause, remedy)));
        }
    }
    if key.indexed {
        return Ok(None);
    }
    let cause =
        format!("no index leads to the rows that refer to one of {parent}: each batch reads the whole of {from}");
    let remedy = format!("CREATE INDEX CONCURRENTLY ON {} ({})", qualified(from), idents(key.columns()));
    Ok(Some(Finding::new(Severity::Warning, object, cause, remedy)))
}

/// Ours are the fence's. A clone of a partitioned table's trigger may be enabled otherwise than that one.
const CODE: &str = "\
WITH RECURSIVE tree(id) AS (
  SELECT id FROM unnest($1::oid[]) id
  UNION ALL SELECT i.inhrelid FROM tree t JOIN pg_inherits i ON i.inhparent = t.id)
SELECT 'trigger', g.tgname::text, n.nspname::text, c.relname::text, g.tgenabled::text
  FROM tree t JOIN pg_trigger g ON g.tgrelid = t.id JOIN pg_class c ON c.oid = t.id JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_proc p ON p.oid = g.tgfoid
 WHERE NOT g.tgisinternal AND g.tgtype & 8 <> 0 AND g.tgenabled <> 'D'
   AND NOT (p.pronamespace = coalesce(to_regnamespace('carveout')::oid, 0) AND p.proname ~ '^fence_')
   AND NOT EXISTS (SELECT FROM pg_trigger whole WHERE whole.oid = g.tgparentid AND whole.tgenabled = g.tgenabled)
UNION ALL
SELECT 'rule', r.rulename::text, n.nspname::text, c.relname::text, r.ev_enabled::text
  FROM tree t JOIN pg_rewrite r ON r.ev_class = t.id JOIN pg_class c ON c.oid = t.id JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE r.ev_type = '4' AND r.ev_enabled <> 'D'
 ORDER BY 3, 4, 1, 2";

/// Triggers and rules for DELETE: rows that have moved are not deleted in the application's sense.
async fn code(client: &Client, tables: &[Owned], silent: bool) -> Result<Vec<Finding>> {
    let rows = client.query(CODE, &[&oids(tables)]).await.doing("list triggers and rules")?;
    let found = rows.iter().filter_map(|row| {
        let (kind, name, enabled): (&str, &str, &str) = (row.get(0), row.get(1), row.get(4));
        let table = schemas::TableName::new(row.get::<_, String>(2), row.get::<_, String>(3));
        let object = format!("{kind} {name} of {table}");
        let disable = format!("ALTER TABLE {} DISABLE {} {}", qualified(&table), kind.to_uppercase(), ident(name));
        match (enabled, silent) {
            ("O", true) => {
                let cause = "it does not fire: the rows are deleted as session_replication_role = replica";
                let remedy = "do by hand, or in the target, what it would have done and is still wanted";
                Some(Finding::new(Severity::Note, object, cause, remedy))
            }
            ("R", false) => None,
            ("O", false) => {
                let cause = "it would fire for each of the tenant's rows, as if they were deleted and had not moved";
                let grant = "GRANT SET ON PARAMETER session_replication_role to the role of source.url (PostgreSQL 15 or newer)";
                Some(Finding::new(Severity::Error, object, cause, format!("{grant}, or {disable} meanwhile")))
            }
            _ => {
                let cause = "it fires even as session_replication_role = replica, for each of the tenant's rows, as if they \
                             were deleted and had not moved";
                Some(Finding::new(Severity::Error, object, cause, format!("{disable} meanwhile")))
            }
        }
    });
    Ok(found.collect())
}

const PRIVILEGES: &str = "\
WITH RECURSIVE tree(id) AS (
  SELECT id FROM unnest($1::oid[]) id
  UNION ALL SELECT i.inhrelid FROM tree t JOIN pg_inherits i ON i.inhparent = t.id)
SELECT n.nspname::text, c.relname::text, current_user::text
  FROM tree t JOIN pg_class c ON c.oid = t.id JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND NOT (has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'DELETE')
                                AND has_any_column_privilege(c.oid, 'UPDATE'))
 ORDER BY 1, 2";

/// UPDATE is what locking a row takes. Partitions are read and deleted from by themselves.
async fn privileges(client: &Client, tables: &[Owned]) -> Result<Vec<Finding>> {
    let rows = client.query(PRIVILEGES, &[&oids(tables)]).await.doing("read the role's privileges")?;
    let found = rows.iter().map(|row| {
        let (table, role): (_, &str) =
            (schemas::TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)), row.get(2));
        let grant = format!("GRANT SELECT, UPDATE, DELETE ON {} TO {}", qualified(&table), ident(role));
        Finding::new(Severity::Error, table.to_string(), format!("role {role} may not delete its rows"), grant)
    });
    Ok(found.collect())
}

fn oids(tables: &[Owned]) -> Vec<u32> {
    let own = tables.iter().filter(|owned| !matches!(owned.path, Path::Reference));
    own.map(|owned| owned.table.oid).collect()
}
