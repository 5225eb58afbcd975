//! Which types travel as text: those without a binary output function, `reg*`, whose binary form is an object's
//! number in the source, `oidvector`, `int2vector` and `tsquery`, of which the server does not take an empty one back in
//! binary, and whatever is made of them. Everything else travels as the bytes of its send function.

use std::collections::HashSet;

use tokio_postgres::Client;

use super::{Doing, Result};

/// From the types that are asked about down to what they are made of: an array's elements, a domain's base type, a
/// composite's columns, a range's bounds. `oid` itself is a number. A type that is gone may have been anything.
const TEXT_ONLY: &str = "\
WITH RECURSIVE made_of(whole, part) AS (
    SELECT oid, oid FROM unnest($1::oid[]) oid
    UNION
    SELECT m.whole, p.part FROM made_of m JOIN pg_type t ON t.oid = m.part CROSS JOIN LATERAL (
        SELECT t.typelem UNION ALL SELECT t.typbasetype
        UNION ALL SELECT a.atttypid FROM pg_attribute a
                   WHERE a.attrelid = t.typrelid AND t.typrelid <> 0 AND a.attnum > 0 AND NOT a.attisdropped
        UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)) p(part)
     WHERE p.part <> 0)
SELECT DISTINCT m.whole FROM made_of m LEFT JOIN pg_type t ON t.oid = m.part
 WHERE t.oid IS NULL OR t.typsend = 0
    OR t.typname ~ '^(reg.*|oidvector|int2vector|tsquery)$' AND t.typnamespace = 'pg_catalog'::regnamespace";

/// Those of the types that travel as text.
pub async fn text_only(client: &Client, types: &[u32]) -> Result<HashSet<u32>> {
    let rows = client.query(TEXT_ONLY, &[&types]).await.doing("look at types")?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The types of all columns that the publication called `name` publishes.
pub async fn published(client: &Client, name: &str) -> Result<Vec<u32>> {
    let sql = "SELECT DISTINCT a.atttypid FROM pg_publication_tables p
                 JOIN pg_namespace n ON n.nspname = p.schemaname
                 JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename
                 JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                WHERE p.pubname = $1";
    let rows = client.query(sql, &[&name]).await.doing("list the types that are published")?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
