//! What is where it should not be: rows of the tenant that are still at home, rows in its target that are not its.

use std::collections::HashMap;

use schemas::{TableName, TenantId};
use tokio_postgres::Client;

use super::super::policy::{Owned, Path};
use super::super::quote::{ident, literal, table as qualified};
use super::super::{Doing, Error, Result};

/// The tenant's rows at home by table, where there are any.
pub async fn residue(client: &Client, tables: &[Owned], tenant: &TenantId) -> Result<Vec<(TableName, u64)>> {
    let own = tables.iter().filter(|owned| !matches!(owned.path, Path::Reference));
    let counted = own.map(|owned| (&owned.table.name, owned.filter(tenant)));
    count(client, counted).await
}

/// Rows in the target that are not the tenant's, by the table there, where there are any. Each table stands with its name in the
/// target. A row of a `via` table is the tenant's where the row that it refers to is there.
pub async fn foreign_rows(
    client: &Client,
    tables: &[(Owned, TableName)],
    tenant: &TenantId,
) -> Result<Vec<(TableName, u64)>> {
    let names: HashMap<&TableName, &TableName> = tables.iter().map(|(owned, name)| (&owned.table.name, name)).collect();
    let mut foreign = Vec::new();
    for (owned, name) in tables {
        match &owned.path {
            // The literal takes the column's type, whatever that is called there.
            Path::Key { column, .. } => {
                foreign.push((name, format!("{} IS DISTINCT FROM {}", ident(column), literal(&tenant.0))));
            }
            Path::Via(via) => {
                let Some(parent) = names.get(&via.key.parent) else {
                    let why = format!("its rows refer to {}, which is not among the tables", via.key.parent);
                    return Err(Error::state(format!("look for others' rows in {name}"), why));
                };
                let pairs = via.key.referenced.iter().zip(&via.key.columns);
                let same: Vec<String> =
                    pairs.map(|(there, here)| format!("parent.{} = own.{}", ident(there), ident(here))).collect();
                let parent = qualified(parent);
                foreign.push((name, format!("NOT EXISTS (SELECT FROM {parent} parent WHERE {})", same.join(" AND "))));
            }
            Path::Reference | Path::Whole(_) => {}
        }
    }
    count(client, foreign.into_iter()).await
}

async fn count<'a>(
    client: &Client,
    counted: impl Iterator<Item = (&'a TableName, String)>,
) -> Result<Vec<(TableName, u64)>> {
    let mut found = Vec::new();
    for (name, filter) in counted {
        let sql = format!("SELECT count(*) FROM {} own WHERE {filter}", qualified(name));
        let rows: i64 = client.query_one(&sql, &[]).await.doing(format!("count rows of {name}"))?.get(0);
        if rows > 0 {
            found.push((name.clone(), rows.unsigned_abs()));
        }
    }
    Ok(found)
}
