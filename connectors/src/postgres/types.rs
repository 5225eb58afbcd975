//! What types are made of, and which travel as text: those without a binary output function, `reg*`, whose binary form is an object's
//! number in the source, `oidvector`, `int2vector` and `tsquery`, of which the server does not take an empty one back in
//! binary, and whatever is made of them. Everything else travels as the bytes of its send function.

use std::collections::{HashMap, HashSet};

use schemas::tenant::KeyType;
use tokio_postgres::Client;

use super::quote::ident;
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

/// What a type is below its domains.
#[derive(Clone, Debug)]
pub struct Base {
    /// Schema and name, quoted, without length: a cast to it checks nothing that a domain does.
    pub name: String,
    /// As a key, where it can be one. Of domains over enums PostgreSQL has no equality.
    pub key: Option<KeyType>,
}

const BASES: &str = "\
WITH RECURSIVE below(whole, part) AS (
    SELECT oid, oid FROM unnest($1::oid[]) oid
    UNION
    SELECT b.whole, t.typbasetype FROM below b JOIN pg_type t ON t.oid = b.part WHERE t.typtype = 'd')
SELECT b.whole, t.oid, t.typtype = 'e' AND t.oid = b.whole, n.nspname::text, t.typname::text
  FROM below b JOIN pg_type t ON t.oid = b.part JOIN pg_namespace n ON n.oid = t.typnamespace
 WHERE t.typtype <> 'd'";

/// What these types are below their domains, by number.
pub async fn bases(client: &Client, types: &[u32]) -> Result<HashMap<u32, Base>> {
    let rows = client.query(BASES, &[&types]).await.doing("look at types")?;
    let base = |row: &tokio_postgres::Row| {
        let (schema, name): (String, String) = (row.get(3), row.get(4));
        let key = if row.get(2) { Some(KeyType::Enum) } else { KeyType::from_oid(row.get(1)) };
        (row.get(0), Base { name: format!("{}.{}", ident(&schema), ident(&name)), key })
    };
    Ok(rows.iter().map(base).collect())
}
