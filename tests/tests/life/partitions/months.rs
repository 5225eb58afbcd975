//! Months of a partitioned table of writes: made, attached with rows, and written into, such that all that was acknowledged stays there.

use anyhow::{Context, Result, ensure};
use tokio_postgres::Client;

/// A month of `writes`, as partition `name`.
pub fn month(schema: &str, name: &str, month: u32) -> String {
    format!("CREATE TABLE {schema}.{name} PARTITION OF {schema}.writes {}", bounds(month))
}

fn bounds(month: u32) -> String {
    format!("FOR VALUES FROM ('2026-{month:02}-01 00:00+00') TO ('2026-{:02}-01 00:00+00')", month + 1)
}

/// A month that comes with rows of the tenant, which the stream sees go and does not see come.
pub async fn attach(client: &Client, schema: &str, tenant: &str, (name, month): (&str, u32)) -> Result<()> {
    let (table, bounds) = (format!("{schema}.{name}"), bounds(month));
    let sql = format!(
        "BEGIN; CREATE TABLE {table} (LIKE {schema}.writes INCLUDING ALL);
         WITH gone AS (DELETE FROM {schema}.writes WHERE bid = {tenant} AND client = 0 AND number % 3 = 0 AND at < '2026-04-01' RETURNING *)
         INSERT INTO {table} SELECT id, bid, client, number, body, '2026-{month:02}-07 00:00+00' FROM gone;
         ALTER TABLE {schema}.writes ATTACH PARTITION {table} {bounds}; COMMIT"
    );
    client.batch_execute(&sql).await.with_context(|| format!("attach {table}"))?;
    assert_some(client, &table, tenant).await
}

/// Some of the tenant's writes go into this month.
pub async fn postpone(client: &Client, schema: &str, tenant: &str, (name, month): (&str, u32)) -> Result<()> {
    let sql = format!(
        "UPDATE {schema}.writes SET at = '2026-{month:02}-07 00:00+00' WHERE bid = {tenant} AND client = 1 AND number % 2 = 0 AND at < '2026-04-01'"
    );
    client.batch_execute(&sql).await.with_context(|| format!("write into {schema}.{name}"))?;
    assert_some(client, &format!("{schema}.{name}"), tenant).await
}

/// There are some of the tenant's rows in it.
pub async fn assert_some(client: &Client, table: &str, tenant: &str) -> Result<()> {
    let sql = format!("SELECT count(*) FROM {table} WHERE bid = {tenant}");
    let rows: i64 = client.query_one(&sql, &[]).await?.get(0);
    ensure!(rows > 2, "only {rows} rows in {table}");
    Ok(())
}

/// Runs them one after the other.
pub async fn run_all(client: &Client, statements: &[String]) -> Result<()> {
    for sql in statements {
        client.batch_execute(sql).await.with_context(|| sql.clone())?;
    }
    Ok(())
}
