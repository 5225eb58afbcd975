//! Objects that are not a table's own: how each is made, whether it is there already, and making it.
//! What is there is used when it is the same, and refused when it is not; it is never changed.

use std::collections::HashMap;

use schemas::MoveId;
use tokio_postgres::{Client, Row, Transaction};

use super::super::quote::{ident, literal};
use super::super::{Doing, Error, Result};
use super::record;

/// Serializes moves that make objects in one database.
const LOCK: &str = "SELECT pg_advisory_xact_lock(77777, 1)";

/// What an error's text has when a value, as of an enum, is none of its type.
pub const NOT_OF_ITS_TYPE: &str = "SQLSTATE 22P02";

/// An object, and the SQL that makes it.
#[derive(Clone, Debug)]
pub struct Definition {
    /// The catalog's `pg_class.oid`.
    pub class: u32,
    /// Its number in it.
    pub oid: u32,
    /// `extension`, `schema`, `type`, `function`, `collation` or `sequence`.
    pub kind: String,
    /// Its name in SQL, with schema and arguments (`pg_identify_object`).
    pub name: String,
    /// What makes it.
    pub sql: String,
    owner: String,
    comment: Option<String>,
    /// A function that runs with its owner's rights.
    definer: bool,
}

/// Every object of these kinds in a database that people made; extensions make their own. With the pinned
/// search_path all names come out with their schemas.
const OBJECTS: &str = "\
SELECT o.class, o.oid, o.kind, i.identity, o.sql, pg_get_userbyid(o.owner)::text,
       (SELECT description FROM pg_description WHERE classoid = o.class AND objoid = o.oid AND objsubid = 0), o.definer
  FROM (
SELECT 'pg_extension'::regclass::oid AS class, e.oid, 'extension' AS kind, e.extowner AS owner, false AS definer,
       format('CREATE EXTENSION %I SCHEMA %I', e.extname, n.nspname) AS sql
  FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
UNION ALL
SELECT 'pg_namespace'::regclass, oid, 'schema', nspowner, false, format('CREATE SCHEMA %I', nspname)
  FROM pg_namespace WHERE nspname !~ '^pg_'
UNION ALL
SELECT 'pg_type'::regclass, t.oid, 'type', t.typowner, false, CASE t.typtype
         WHEN 'e' THEN format('CREATE TYPE %s AS ENUM (%s)', format_type(t.oid, NULL),
              (SELECT string_agg(quote_literal(enumlabel), ', ' ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = t.oid))
         WHEN 'c' THEN format('CREATE TYPE %s AS (%s)', format_type(t.oid, NULL),
              (SELECT string_agg(format('%I %s%s', a.attname, format_type(a.atttypid, a.atttypmod), CASE WHEN a.attcollation <> b.typcollation
                      THEN (SELECT format(' COLLATE %I.%I', n.nspname, c.collname) FROM pg_collation c
                              JOIN pg_namespace n ON n.oid = c.collnamespace WHERE c.oid = a.attcollation) END), ', ' ORDER BY a.attnum)
                 FROM pg_attribute a JOIN pg_type b ON b.oid = a.atttypid
                WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped))
         WHEN 'd' THEN format('CREATE DOMAIN %s AS %s%s%s%s%s', format_type(t.oid, NULL), format_type(t.typbasetype, t.typtypmod),
              CASE WHEN t.typcollation <> b.typcollation
                   THEN (SELECT format(' COLLATE %I.%I', n.nspname, c.collname) FROM pg_collation c
                           JOIN pg_namespace n ON n.oid = c.collnamespace WHERE c.oid = t.typcollation) END,
              ' DEFAULT ' || pg_get_expr(t.typdefaultbin, 0), CASE WHEN t.typnotnull THEN ' NOT NULL' END,
              (SELECT string_agg(format('; ALTER DOMAIN %s ADD CONSTRAINT %I %s', format_type(t.oid, NULL), k.conname,
                                        pg_get_constraintdef(k.oid)), '' ORDER BY k.conname)
                 FROM pg_constraint k WHERE k.contypid = t.oid AND k.contype = 'c'))
         WHEN 'r' THEN (SELECT format('CREATE TYPE %s AS RANGE (SUBTYPE = %s, SUBTYPE_OPCLASS = %I.%I%s%s, MULTIRANGE_TYPE_NAME = %s)',
              format_type(t.oid, NULL), format_type(r.rngsubtype, NULL), n.nspname, c.opcname,
              (SELECT format(', COLLATION = %I.%I', ln.nspname, l.collname) FROM pg_collation l
                 JOIN pg_namespace ln ON ln.oid = l.collnamespace WHERE l.oid = r.rngcollation AND l.oid <> b.typcollation),
              CASE WHEN r.rngsubdiff <> 0 THEN ', SUBTYPE_DIFF = ' || r.rngsubdiff::regproc END, format_type(r.rngmultitypid, NULL))
                 FROM pg_range r JOIN pg_opclass c ON c.oid = r.rngsubopc JOIN pg_namespace n ON n.oid = c.opcnamespace
                 JOIN pg_type b ON b.oid = r.rngsubtype
                WHERE r.rngtypid = t.oid AND r.rngcanonical = 0)
       END
  FROM pg_type t LEFT JOIN pg_class tc ON tc.oid = t.typrelid LEFT JOIN pg_type b ON b.oid = t.typbasetype
 WHERE (t.typtype IN ('e', 'd', 'r') OR t.typtype = 'c' AND tc.relkind = 'c')
UNION ALL
SELECT 'pg_proc'::regclass, p.oid, 'function', p.proowner, p.prosecdef, pg_get_functiondef(p.oid)
  FROM pg_proc p WHERE p.prokind IN ('f', 'p') AND p.oid >= 16384
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'i')
UNION ALL
SELECT 'pg_collation'::regclass, c.oid, 'collation', c.collowner, false,
       format('CREATE COLLATION %I.%I (PROVIDER = %s, %s, DETERMINISTIC = %s%s)', n.nspname, c.collname,
              CASE c.collprovider WHEN 'i' THEN 'icu' WHEN 'c' THEN 'libc' ELSE 'builtin' END,
              CASE c.collprovider
                   WHEN 'c' THEN format('LC_COLLATE = %L, LC_CTYPE = %L', c.collcollate, c.collctype)
                   ELSE format('LOCALE = %L', coalesce(j.j ->> 'colllocale', j.j ->> 'colliculocale', c.collcollate::text)) END,
              c.collisdeterministic::text, ', RULES = ' || quote_literal(j.j ->> 'collicurules'))
  FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace CROSS JOIN LATERAL (SELECT to_jsonb(c) AS j) j
UNION ALL
SELECT 'pg_class'::regclass, c.oid, 'sequence', c.relowner, false,
       format('CREATE SEQUENCE %I.%I AS %s INCREMENT BY %s MINVALUE %s MAXVALUE %s START WITH %s CACHE %s%s', n.nspname, c.relname,
              format_type(s.seqtypid, NULL), s.seqincrement, s.seqmin, s.seqmax, s.seqstart, s.seqcache, CASE WHEN s.seqcycle THEN ' CYCLE' END)
  FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i'))
       ) o CROSS JOIN LATERAL pg_identify_object(o.class, o.oid, 0) i
 WHERE o.sql IS NOT NULL
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = o.class AND d.objid = o.oid AND d.deptype = 'e')";

/// Those with these numbers, of whatever catalog.
pub async fn by_number(client: &Client, numbers: &[u32]) -> Result<Vec<Definition>> {
    let sql = format!("{OBJECTS} AND o.oid = ANY ($1)");
    let rows = client.query(&sql, &[&numbers]).await.doing("read the definitions of types and functions")?;
    Ok(rows.iter().map(definition).collect())
}

fn definition(row: &Row) -> Definition {
    Definition {
        class: row.get(0),
        oid: row.get(1),
        kind: row.get(2),
        name: row.get(3),
        sql: row.get(4),
        owner: row.get(5),
        comment: row.get(6),
        definer: row.get(7),
    }
}

/// Those of them that are there, by kind and name, with their own SQL.
pub async fn present(client: &Client, wanted: &[Definition]) -> Result<HashMap<(String, String), Definition>> {
    let names: Vec<&str> = wanted.iter().map(|definition| definition.name.as_str()).collect();
    let sql = format!("{OBJECTS} AND i.identity = ANY ($1)");
    let rows = client.query(&sql, &[&names]).await.doing("look for types and functions")?;
    let found = rows.iter().map(definition);
    Ok(found.map(|definition| ((definition.kind.clone(), definition.name.clone()), definition)).collect())
}

/// Makes what is missing, in this order, in one transaction.
pub async fn make(client: &mut Client, id: MoveId, wanted: &[Definition]) -> Result<()> {
    let doing = || format!("make what the tables of {id} need");
    if wanted.is_empty() {
        return Ok(());
    }
    let mut tx = client.transaction().await.doing(doing())?;
    // What a function's body names may come later.
    tx.batch_execute(&format!("{LOCK}; SET LOCAL check_function_bodies = off")).await.doing(doing())?;
    let there = present(tx.client(), wanted).await?;
    for definition in wanted {
        match there.get(&(definition.kind.clone(), definition.name.clone())) {
            None => make_one(&mut tx, id, definition).await?,
            Some(found) if differs(definition, found) => return Err(other(definition, found)),
            Some(_) => {}
        }
    }
    tx.commit().await.doing(doing())
}

/// Whether what is there is not what is wanted. Of an extension the version may be another.
fn differs(wanted: &Definition, found: &Definition) -> bool {
    !matches!(wanted.kind.as_str(), "extension" | "schema") && wanted.sql != found.sql
}

fn other(wanted: &Definition, found: &Definition) -> Error {
    let Definition { kind, name, .. } = wanted;
    let why = format!(
        "it is there already and is not the source's ({}); make it equal, or rename it, then `carveout move` resumes; \
         if this move made it, cancel the move and move again",
        change(wanted, found).unwrap_or_else(|| "its definition differs".to_owned())
    );
    Error::state(format!("make {kind} {name}"), why)
}

async fn make_one(tx: &mut Transaction<'_>, id: MoveId, definition: &Definition) -> Result<()> {
    let Definition { kind, name, sql, .. } = definition;
    let doing = || format!("make {kind} {name}");
    tx.batch_execute(sql).await.doing(doing())?;
    if let Some(comment) = &definition.comment
        && kind != "extension"
    {
        tx.batch_execute(&format!("COMMENT ON {} {name} IS {}", word(kind), literal(comment))).await.doing(doing())?;
    }
    let made = present(tx.client(), std::slice::from_ref(definition)).await?;
    let Some(made) = made.get(&(kind.clone(), name.clone())) else {
        return Err(Error::state(doing(), "it is not there after it was made"));
    };
    // Schemas are written down without quotes.
    let plain = name.strip_prefix('"').and_then(|name| name.strip_suffix('"')).map(|name| name.replace("\"\"", "\""));
    let written = plain.filter(|_| kind == "schema");
    record(tx, id, kind, written.as_ref().unwrap_or(name), made.oid).await?;
    let given = kind == "extension" || give(tx, word(kind), name, &definition.owner).await?;
    if definition.definer && !given {
        // It would lend our role's rights to everybody.
        tx.batch_execute(&format!("REVOKE ALL ON ROUTINE {name} FROM PUBLIC")).await.doing(doing())?;
    }
    Ok(())
}

/// Gives a thing to its owner on the source, where that role is on this server and ours may; whether it is its now.
pub(super) async fn give(tx: &mut Transaction<'_>, word: &str, name: &str, owner: &str) -> Result<bool> {
    let doing = || format!("give {name} to {owner}");
    let may = tx
        .query_opt(
            "SELECT rolname = current_user FROM pg_roles WHERE rolname = $1 AND pg_has_role(oid, 'USAGE')",
            &[&owner],
        )
        .await
        .doing(doing())?;
    match may.map(|row| row.get(0)) {
        None => Ok(false),
        Some(true) => Ok(true),
        Some(false) => {
            let inner = tx.transaction().await.doing(doing())?;
            match inner.batch_execute(&format!("ALTER {word} {name} OWNER TO {}", ident(owner))).await.doing(doing()) {
                Ok(()) => inner.commit().await.doing(doing()).map(|()| true),
                // The new owner may not create in the schema.
                Err(error) if error.sqlstate() == Some("42501") => {
                    inner.rollback().await.doing(doing()).map(|()| false)
                }
                Err(error) => Err(error),
            }
        }
    }
}

/// The kind as DDL spells it.
pub(super) fn word(kind: &str) -> &'static str {
    match kind {
        "extension" => "EXTENSION",
        "schema" => "SCHEMA",
        "type" => "TYPE",
        "function" => "ROUTINE",
        "collation" => "COLLATION",
        "sequence" => "SEQUENCE",
        "view" => "VIEW",
        _ => "TABLE",
    }
}

/// What has to be run in the target so that it has what the source has, where one statement says it.
fn change(wanted: &Definition, found: &Definition) -> Option<String> {
    let (ours, theirs) = (labels(&wanted.sql)?, labels(&found.sql)?);
    let renamed: Vec<(&str, &str)> =
        ours.iter().zip(&theirs).filter(|(our, their)| our != their).map(|(our, their)| (*our, *their)).collect();
    if ours.len() == theirs.len() && renamed.iter().all(|(our, their)| !theirs.contains(our) && !ours.contains(their)) {
        let rename = |(our, their): (&str, &str)| format!("ALTER TYPE {} RENAME VALUE {their} TO {our}", wanted.name);
        return (!renamed.is_empty()).then(|| renamed.into_iter().map(rename).collect::<Vec<_>>().join("; "));
    }
    let mut added = Vec::new();
    for (place, label) in ours.iter().enumerate().filter(|(_, label)| !theirs.contains(label)) {
        let at = match place.checked_sub(1) {
            Some(before) => format!("AFTER {}", ours[before]),
            None => theirs.first().map(|first| format!("BEFORE {first}")).unwrap_or_default(),
        };
        added.push(format!("ALTER TYPE {} ADD VALUE {label} {at}", wanted.name));
    }
    (!added.is_empty()).then(|| added.join("; "))
}

/// The labels of an enum, quoted.
fn labels(sql: &str) -> Option<Vec<&str>> {
    let (_, list) = sql.split_once(" AS ENUM (")?;
    let mut labels = Vec::new();
    let (mut start, mut inside) = (0, false);
    let list = list.strip_suffix(')')?;
    for (at, byte) in list.bytes().enumerate() {
        match byte {
            b'\'' => inside = !inside,
            b',' if !inside => {
                labels.push(list[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    labels.push(list[start..].trim());
    Some(labels)
}

/// The SQL that gives the target what its types lack, by type; where it has them as the source has.
pub async fn changed(target: &Client, wanted: &[Definition]) -> Result<Vec<(String, String)>> {
    let there = present(target, wanted).await?;
    let found = wanted.iter().filter(|definition| definition.kind == "type").filter_map(|wanted| {
        let found = there.get(&(wanted.kind.clone(), wanted.name.clone()))?;
        differs(wanted, found)
            .then(|| (wanted.name.clone(), change(wanted, found).unwrap_or_else(|| wanted.sql.clone())))
    });
    Ok(found.collect())
}

/// What every type that people made is called, by number.
pub async fn type_names(client: &Client) -> Result<HashMap<u32, String>> {
    let rows = client
        .query("SELECT oid, format_type(oid, NULL) FROM pg_type WHERE typnamespace <> 'pg_catalog'::regnamespace", &[])
        .await
        .doing("list the types")?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_an_enum_are_told_apart() {
        let sql = "CREATE TYPE a.\"b\" AS ENUM ('x, y', 'it''s', '(')";
        assert_eq!(labels(sql).unwrap(), ["'x, y'", "'it''s'", "'('"]);
        assert_eq!(labels("CREATE TYPE a AS (b integer)"), None);
    }

    #[test]
    fn what_an_enum_lacks_is_added_or_renamed() {
        let of = |labels: &str| Definition {
            class: 0,
            oid: 0,
            kind: "type".to_owned(),
            name: "a.b".to_owned(),
            sql: format!("CREATE TYPE a.b AS ENUM ({labels})"),
            owner: String::new(),
            comment: None,
            definer: false,
        };
        let change = |wanted, found| change(&of(wanted), &of(found));
        assert_eq!(change("'x', 'y'", "'x'").unwrap(), "ALTER TYPE a.b ADD VALUE 'y' AFTER 'x'");
        assert_eq!(change("'x', 'z'", "'x', 'y'").unwrap(), "ALTER TYPE a.b RENAME VALUE 'y' TO 'z'");
        // In another order nothing says it.
        assert_eq!(change("'x', 'y'", "'y', 'x'"), None);
    }
}
