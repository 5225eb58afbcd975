//! Whether rows without a tenant exist: from the planner's statistics, else by a look that ends soon. The answer is
//! only a remark, so not knowing is no failure; the connection must be good for other things afterwards.

use tokio_postgres::Client;

use super::{Entry, Proposal};
use crate::postgres::quote::{ident, literal, table as qualified};
use crate::postgres::{Doing, Result};

/// The longest look at one table.
const LOOK: &str = "SET statement_timeout = '300ms'";
/// How many tables are looked at, at most.
const LOOKS: usize = 100;

/// Says for the proposal's tables whether they have rows without a tenant, where that can be known quickly.
pub async fn look_for_nulls(client: &Client, proposal: &mut Proposal) -> Result<()> {
    client.batch_execute(LOOK).await.doing("set statement_timeout")?;
    let nullable = proposal.entries.iter_mut().filter(|entry| !entry.nullable.is_empty());
    for entry in nullable.take(LOOKS) {
        entry.nulls = match estimate(client, entry).await {
            Some(share) if share > 0.0 => Some(format!("about {:.0} % of its rows are so", (share * 100.0).max(1.0))),
            _ => found(client, entry).await.map(str::to_owned),
        };
    }
    client.batch_execute("SET statement_timeout = 0").await.doing("set statement_timeout")
}

/// The largest share of NULLs that the statistics know of.
async fn estimate(client: &Client, entry: &Entry) -> Option<f32> {
    let names: Vec<String> = entry.nullable.iter().map(|name| literal(name)).collect();
    let sql = format!(
        "SELECT max(null_frac) FROM pg_stats WHERE schemaname = {} AND tablename = {} AND attname IN ({})",
        literal(&entry.table.schema),
        literal(&entry.table.name),
        names.join(", ")
    );
    client.query_one(&sql, &[]).await.ok().and_then(|row| row.get(0))
}

/// What a short look finds; nothing when it takes too long or is not allowed.
async fn found(client: &Client, entry: &Entry) -> Option<&'static str> {
    let is_null: Vec<String> = entry.nullable.iter().map(|name| format!("{} IS NULL", ident(name))).collect();
    let sql = format!("SELECT EXISTS (SELECT FROM {} WHERE {})", qualified(&entry.table), is_null.join(" OR "));
    let row = client.query_one(&sql, &[]).await.ok()?;
    Some(if row.get(0) { "some rows are so" } else { "no row is so today" })
}
