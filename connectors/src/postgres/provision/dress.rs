//! How tables are kept and who may do what with them: storage, row level security, owners, grants, comments.

use std::collections::HashMap;

use schemas::{MoveId, TableName};
use tokio_postgres::{Client, Transaction};

use super::super::catalog::Table;
use super::super::quote::{ident, literal, table as qualified};
use super::super::{Doing, Result};
use super::objects::give;
use super::parts::{LeftOut, Place};

/// Clauses of ALTER TABLE by table: storage parameters, and of columns STORAGE, COMPRESSION, STATISTICS, options.
pub async fn storage(source: &Client, tables: &[&Table]) -> Result<HashMap<u32, Vec<String>>> {
    let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
    let rows = source
        .query(
            "SELECT c.oid, format('SET (%s)', string_agg(format('%s%I = %L', o.prefix, o.option_name, o.option_value), ', '))
               FROM pg_class c LEFT JOIN pg_class t ON t.oid = c.reltoastrelid
              CROSS JOIN LATERAL (SELECT '' AS prefix, * FROM pg_options_to_table(c.reloptions)
                                  UNION ALL SELECT 'toast.', * FROM pg_options_to_table(t.reloptions)) o
              WHERE c.oid = ANY ($1) GROUP BY c.oid
             UNION ALL
             SELECT a.attrelid, format('ALTER COLUMN %I SET %s', a.attname, s.clause)
               FROM pg_attribute a JOIN pg_type y ON y.oid = a.atttypid
              CROSS JOIN LATERAL (VALUES
                (CASE WHEN a.attstorage <> y.typstorage THEN 'STORAGE ' || CASE a.attstorage
                      WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN' ELSE 'EXTENDED' END END),
                (CASE a.attcompression WHEN 'p' THEN 'COMPRESSION pglz' WHEN 'l' THEN 'COMPRESSION lz4' END),
                (CASE WHEN a.attstattarget >= 0 THEN 'STATISTICS ' || a.attstattarget END),
                ((SELECT '(' || string_agg(format('%I = %L', option_name, option_value), ', ') || ')'
                    FROM pg_options_to_table(a.attoptions)))) s(clause)
              WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped AND s.clause IS NOT NULL
              ORDER BY 1, 2",
            &[&oids],
        )
        .await
        .doing("read how the tables are stored")?;
    let mut storage: HashMap<u32, Vec<String>> = HashMap::new();
    for row in &rows {
        storage.entry(row.get(0)).or_default().push(row.get(1));
    }
    Ok(storage)
}

/// Who may do what with a table, and what is said about it.
#[derive(Clone, Debug)]
pub struct Dress {
    table: TableName,
    owner: String,
    secured: bool,
    forced: bool,
    grants: Vec<Grant>,
    /// What (`TABLE`, `COLUMN`, `CONSTRAINT`, `INDEX`), its name, the text.
    comments: Vec<(String, String, String)>,
}

#[derive(Clone, Debug)]
struct Grant {
    /// Empty: everybody.
    role: String,
    /// `SELECT`, or `SELECT ("column")`.
    privilege: String,
    grantable: bool,
}

/// Reads it.
pub async fn read(source: &Client, tables: &[&Table]) -> Result<Vec<Dress>> {
    let mut found = Vec::new();
    for table in tables {
        let doing = || format!("read owner, grants and comments of {}", table.name);
        let head = source
            .query_one(
                "SELECT pg_get_userbyid(relowner)::text, relrowsecurity, relforcerowsecurity FROM pg_class WHERE oid = $1",
                &[&table.oid],
            )
            .await
            .doing(doing())?;
        let grants = source
            .query(
                "SELECT coalesce(r.rolname::text, ''), g.privilege_type || g.columns, g.is_grantable
                   FROM (SELECT c.relowner, '' AS columns, a.* FROM pg_class c, aclexplode(c.relacl) a WHERE c.oid = $1
                         UNION ALL
                         SELECT c.relowner, format(' (%I)', t.attname), a.* FROM pg_class c JOIN pg_attribute t ON t.attrelid = c.oid,
                                aclexplode(t.attacl) a WHERE c.oid = $1 AND NOT t.attisdropped) g
                   LEFT JOIN pg_roles r ON r.oid = g.grantee
                  WHERE g.grantee <> g.relowner AND (g.grantee = 0 OR r.oid IS NOT NULL) ORDER BY 1, 2",
                &[&table.oid],
            )
            .await
            .doing(doing())?;
        let comments = source
            .query(
                "SELECT CASE WHEN d.objsubid > 0 THEN 'COLUMN' WHEN d.classoid = 'pg_constraint'::regclass THEN 'CONSTRAINT'
                             WHEN d.objoid = $1 THEN 'TABLE' ELSE 'INDEX' END,
                        coalesce(a.attname, k.conname, i.relname, '')::text, d.description
                   FROM pg_description d
                   LEFT JOIN pg_attribute a ON d.classoid = 'pg_class'::regclass AND a.attrelid = d.objoid AND a.attnum = d.objsubid AND d.objsubid > 0
                   LEFT JOIN pg_constraint k ON d.classoid = 'pg_constraint'::regclass AND k.oid = d.objoid AND k.conrelid = $1 AND k.contype <> 'f'
                   LEFT JOIN pg_index x ON d.classoid = 'pg_class'::regclass AND x.indexrelid = d.objoid AND x.indrelid = $1
                   LEFT JOIN pg_class i ON i.oid = x.indexrelid
                  WHERE d.classoid = 'pg_class'::regclass AND d.objoid = $1 OR k.oid IS NOT NULL OR x.indexrelid IS NOT NULL
                  ORDER BY 1, 2",
                &[&table.oid],
            )
            .await
            .doing(doing())?;
        let grant =
            |row: &tokio_postgres::Row| Grant { role: row.get(0), privilege: row.get(1), grantable: row.get(2) };
        found.push(Dress {
            table: table.name.clone(),
            owner: head.get(0),
            secured: head.get(1),
            forced: head.get(2),
            grants: grants.iter().map(grant).collect(),
            comments: comments.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect(),
        });
    }
    Ok(found)
}

/// Puts it on the target's tables; what the role may not do, or what roles are not there for. Can be run again.
pub async fn put_on(client: &mut Client, id: MoveId, place: &Place, all: &[Dress]) -> Result<Vec<LeftOut>> {
    let mut left_out = Vec::new();
    for dress in all {
        let name = place.name(&dress.table);
        let doing = || format!("set owner, grants and comments of {name}");
        let table = qualified(&name);
        let mut tx = client.transaction().await.doing(doing())?;
        for (what, of, text) in &dress.comments {
            let object = match what.as_str() {
                "TABLE" => format!("TABLE {table}"),
                "COLUMN" => format!("COLUMN {table}.{}", ident(of)),
                "CONSTRAINT" => format!("CONSTRAINT {} ON {table}", ident(of)),
                _ => format!("INDEX {}", qualified(&TableName::new(&name.schema, of))),
            };
            tx.batch_execute(&format!("COMMENT ON {object} IS {}", literal(text))).await.doing(doing())?;
        }
        if dress.secured {
            secure(&tx, &table, dress, &mut left_out).await?;
        }
        // Before the owner: grants are its own from then on.
        for grant in &dress.grants {
            if let Some(sql) = allow(&mut tx, id, &name, grant).await? {
                let cause = format!("not granted: the role is not there, or ours may not grant it: {sql}");
                left_out.push(LeftOut { object: format!("grant on {name}"), cause });
            }
        }
        if !give(&mut tx, "TABLE", &table, &dress.owner).await? {
            let sql = format!("ALTER TABLE {table} OWNER TO {}", ident(&dress.owner));
            let cause = format!(
                "it belongs to the role that made it: the source's owner is not there, or ours is no member of it: {sql}"
            );
            left_out.push(LeftOut { object: name.to_string(), cause });
        }
        tx.commit().await.doing(doing())?;
    }
    Ok(left_out)
}

/// FORCE would shut out the role that applies the changes, unless it passes row level security by.
async fn secure(tx: &Transaction<'_>, table: &str, dress: &Dress, left_out: &mut Vec<LeftOut>) -> Result<()> {
    let doing = || format!("turn row level security of {table} on");
    tx.batch_execute(&format!("ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")).await.doing(doing())?;
    if !dress.forced {
        return Ok(());
    }
    let passes = "SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user";
    let force = format!("ALTER TABLE {table} FORCE ROW LEVEL SECURITY");
    match tx.query_one(passes, &[]).await.doing(doing())?.get(0) {
        true => tx.batch_execute(&force).await.doing(doing()),
        false => {
            let cause = format!("the role that applies changes has no BYPASSRLS; when the tenant lives there: {force}");
            left_out.push(LeftOut { object: dress.table.to_string(), cause });
            Ok(())
        }
    }
}

/// Grants it where the role is there and ours may; otherwise the SQL.
async fn allow(tx: &mut Transaction<'_>, id: MoveId, table: &TableName, grant: &Grant) -> Result<Option<String>> {
    let doing = || format!("grant on {table}");
    let role = if grant.role.is_empty() { "PUBLIC".to_owned() } else { ident(&grant.role) };
    let option = if grant.grantable { " WITH GRANT OPTION" } else { "" };
    let sql = format!("GRANT {} ON TABLE {} TO {role}{option}", grant.privilege, qualified(table));
    let there = tx.query_opt("SELECT FROM pg_roles WHERE rolname = $1", &[&grant.role]).await.doing(doing())?;
    if there.is_none() && !grant.role.is_empty() {
        return Ok(Some(sql));
    }
    // Of no use without the schema; others' schemas are theirs to open.
    let made = "SELECT FROM carveout.objects WHERE move = $1 AND kind = 'schema' AND name = $2";
    let made = tx.query_opt(made, &[&id.to_string(), &table.schema]).await.doing(doing())?;
    let schema = made.map(|_| format!("; GRANT USAGE ON SCHEMA {} TO {role}", ident(&table.schema)));
    let inner = tx.transaction().await.doing(doing())?;
    match inner.batch_execute(&format!("{sql}{}", schema.unwrap_or_default())).await.doing(doing()) {
        Ok(()) => inner.commit().await.doing(doing()).map(|()| None),
        Err(error) if error.sqlstate() == Some("42501") => inner.rollback().await.doing(doing()).map(|()| Some(sql)),
        Err(error) => Err(error),
    }
}
