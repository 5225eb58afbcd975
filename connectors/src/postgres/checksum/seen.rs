//! What of a table could have changed rows that no lane has noted.

use std::collections::HashMap;

use schemas::TableName;
use tokio_postgres::Client;

use super::super::apply::may_be_silent;
use super::super::quote::table as qualified;
use super::super::{Doing, Result};

/// What holds the rows of each table, by its name as SQL: TRUNCATE and whatever rewrites it, a partition that comes, goes or is put
/// back, a trigger that always fires, and an enum's label that is renamed, make it another.
pub async fn files(client: &Client, tables: &[&TableName]) -> Result<HashMap<String, String>> {
    let sql = "SELECT r.name, string_agg(format('%s %s %s %s %s', c.oid, c.relfilenode, i.xmin,
                        (SELECT string_agg(g.oid::text, ' ' ORDER BY g.oid) FROM pg_trigger g
                          WHERE g.tgrelid = c.oid AND NOT g.tgisinternal AND g.tgenabled IN ('A', 'R')
                            AND NOT starts_with(g.tgname, 'carveout_')),
                        (SELECT string_agg(e.oid || e.enumlabel, ' ' ORDER BY e.oid)
                           FROM pg_attribute a JOIN pg_type y ON y.oid = a.atttypid
                           JOIN pg_enum e ON e.enumtypid IN (y.oid, y.typelem, y.typbasetype)
                          WHERE a.attrelid = c.oid AND NOT a.attisdropped)), ',' ORDER BY c.oid)
                 FROM (SELECT name, to_regclass(name) AS root FROM unnest($1::text[]) name) r
                 LEFT JOIN LATERAL pg_partition_tree(r.root) t ON true
                 JOIN pg_class c ON c.oid = coalesce(t.relid, r.root)
                 LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
                GROUP BY r.name";
    let names: Vec<String> = tables.iter().map(|table| qualified(table)).collect();
    let rows = client.query(sql, &[&names]).await.doing("look at the tables' files")?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Whether a trigger of somebody else fires for what a lane writes into the tables: it may write what the lane does not know of.
pub async fn fires(client: &Client, tables: &[&TableName]) -> Result<bool> {
    let silent = may_be_silent(client).await?;
    let sql = "SELECT EXISTS (
                 SELECT FROM (SELECT to_regclass(name) AS root FROM unnest($1::text[]) name) r
                   LEFT JOIN LATERAL pg_partition_tree(r.root) t ON true
                   JOIN pg_trigger g ON g.tgrelid = coalesce(t.relid, r.root)
                  WHERE NOT g.tgisinternal AND NOT starts_with(g.tgname, 'carveout_')
                    AND (g.tgenabled IN ('A', 'R') OR g.tgenabled = 'O' AND NOT $2))";
    let names: Vec<String> = tables.iter().map(|table| qualified(table)).collect();
    Ok(client.query_one(sql, &[&names, &silent]).await.doing("look for triggers")?.get(0))
}
