//! What `check` says of everything but rows: made, left out, or in the way. Writes nothing.

use schemas::status::{Finding, Severity};
use tokio_postgres::Client;

use super::super::catalog::Table;
use super::super::{Doing, Result};
use super::needs::{Needs, Part, PartKind};

/// Kinds of objects, and how several are called.
const KINDS: [(&str, &str); 6] = [
    ("extension", "extensions"),
    ("schema", "schemas"),
    ("type", "types"),
    ("collation", "collations"),
    ("sequence", "sequences"),
    ("function", "functions"),
];

/// One finding for each kind that is made, one for each thing that is left out or in the way.
pub async fn findings(source: &Client, tables: &[&Table], needs: &Needs) -> Result<Vec<Finding>> {
    let mut findings = refused(tables, needs);
    findings.extend(made(needs));
    findings.extend(parts(tables, needs));
    findings.extend(foreign_keys(tables));
    findings.extend(tables_own(source, tables).await?);
    findings.extend(bodies(source, needs).await?);
    findings.extend(not_replicated(source, needs).await?);
    Ok(findings)
}

fn note(object: impl Into<String>, cause: impl Into<String>) -> Finding {
    Finding::new(Severity::Note, object, cause, "")
}

fn name(tables: &[&Table], oid: u32) -> String {
    tables.iter().find(|table| table.oid == oid).map(|table| table.name.to_string()).unwrap_or_default()
}

/// Tables whose shape cannot be made.
fn refused(tables: &[&Table], needs: &Needs) -> Vec<Finding> {
    let lacking = needs.parts.iter().filter(|part| part.kind == PartKind::Shape && !part.lacks.is_empty());
    let mut findings: Vec<Finding> = lacking
        .map(|part| {
            let table = name(tables, part.table);
            let cause = format!("it needs {}, which this version does not make in a target", part.lacks.join(", "));
            let remedy = format!(
                "do without it, or leave the table out: under tenancy.tables, `\"{table}\": {{exclude: true}}`"
            );
            Finding::new(Severity::Error, table, cause, remedy)
        })
        .collect();
    findings.sort();
    findings.dedup();
    findings
}

fn made(needs: &Needs) -> Vec<Finding> {
    let all = || needs.before.iter().chain(&needs.after);
    let kinds = KINDS.iter().filter_map(|(kind, several)| {
        let mut names: Vec<&str> = all().filter(|one| one.kind == *kind).map(|one| one.name.as_str()).collect();
        names.sort_unstable();
        let cause =
            format!("made in a target database that does not have them, and used where they are: {}", names.join(", "));
        (!names.is_empty()).then(|| note(*several, cause))
    });
    kinds.collect()
}

fn parts(tables: &[&Table], needs: &Needs) -> Vec<Finding> {
    let mut findings = Vec::new();
    let shown = |part: &Part| match part.kind {
        PartKind::View | PartKind::Materialized => part.name.clone(),
        _ => format!("{} of {}", part.name, name(tables, part.table)),
    };
    for (kind, several, how) in [
        (
            PartKind::Trigger,
            "triggers",
            "made in the target, disabled until the tenant lives there; a function is the source's own",
        ),
        (PartKind::Policy, "policies", "made in the target"),
        (PartKind::View, "views", "made in the target, over the tenant's tables"),
    ] {
        let (fine, lacking): (Vec<&Part>, Vec<&Part>) =
            needs.parts.iter().filter(|part| part.kind == kind).partition(|part| part.lacks.is_empty());
        if !fine.is_empty() {
            let names: Vec<String> = fine.into_iter().map(shown).collect();
            findings.push(note(several, format!("{how}: {}", names.join(", "))));
        }
        for part in lacking {
            let cause = format!(
                "left out ({several}): it needs {}, which does not move; decide what it is to be in the target",
                part.lacks.join(", ")
            );
            findings.push(note(shown(part), cause));
        }
    }
    for part in &needs.parts {
        match part.kind {
            PartKind::Materialized => {
                findings.push(note(shown(part), "left out: a materialized view is not replicated; make it in the target when the tenant lives there"));
            }
            PartKind::Rule => findings.push(note(shown(part), "left out: rules are not made in the target")),
            _ => {}
        }
    }
    findings
}

fn foreign_keys(tables: &[&Table]) -> Vec<Finding> {
    let (mut made, mut findings) = (Vec::new(), Vec::new());
    for table in tables {
        for key in &table.foreign_keys {
            match tables.iter().any(|other| other.name == key.parent) {
                true => made.push(format!("{} of {}", key.name, table.name)),
                false => findings.push(note(
                    format!("{} of {}", key.name, table.name),
                    format!("left out (foreign keys): {} does not move", key.parent),
                )),
            }
        }
    }
    if !made.is_empty() {
        let how = "made in the target after the copy, validated when the tenant is in step";
        findings.push(note("foreign keys", format!("{how}: {}", made.join(", "))));
    }
    findings
}

/// What belongs to the tables themselves.
async fn tables_own(source: &Client, tables: &[&Table]) -> Result<Vec<Finding>> {
    let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
    let rows = source
        .query(
            "SELECT 'exclusion constraints', 'made in the target after the copy', conname::text, conrelid FROM pg_constraint
              WHERE contype = 'x' AND conrelid = ANY ($1)
             UNION ALL
             SELECT 'row level security', 'turned on in the target; FORCE only where the role that applies changes has BYPASSRLS', '', oid
               FROM pg_class WHERE relrowsecurity AND oid = ANY ($1)
             UNION ALL
             SELECT 'storage', 'taken along', '', c.oid FROM pg_class c WHERE c.oid = ANY ($1) AND (c.reloptions IS NOT NULL
                 OR EXISTS (SELECT FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid WHERE a.attrelid = c.oid AND a.attnum > 0
                               AND NOT a.attisdropped AND (a.attstorage <> t.typstorage OR a.attcompression <> '' OR a.attstattarget >= 0)))
             UNION ALL
             SELECT 'owners and grants', 'given in the target to roles that are there, as far as the role of the target may', '', oid
               FROM pg_class WHERE oid = ANY ($1) AND (relacl IS NOT NULL OR pg_get_userbyid(relowner) <> current_user)
             UNION ALL
             SELECT 'comments', 'taken along', '', c.oid FROM pg_class c WHERE c.oid = ANY ($1)
                AND EXISTS (SELECT FROM pg_description d WHERE d.classoid = 'pg_class'::regclass AND d.objoid = c.oid)
              ORDER BY 1, 3, 4",
            &[&oids],
        )
        .await
        .doing("look at what belongs to the tables")?;
    let mut grouped: Vec<(&str, &str, Vec<String>)> = Vec::new();
    for row in &rows {
        let (kind, how, what): (&str, &str, &str) = (row.get(0), row.get(1), row.get(2));
        let table = name(tables, row.get(3));
        let shown = if what.is_empty() { table } else { format!("{what} of {table}") };
        match grouped.last_mut() {
            Some((last, _, names)) if *last == kind => names.push(shown),
            _ => grouped.push((kind, how, vec![shown])),
        }
    }
    Ok(grouped.into_iter().map(|(kind, how, names)| note(kind, format!("{how}: {}", names.join(", ")))).collect())
}

/// Functions that are run while rows are copied and applied see no schema but PostgreSQL's own.
async fn bodies(source: &Client, needs: &Needs) -> Result<Vec<Finding>> {
    let functions: Vec<u32> = needs.before.iter().filter(|one| one.kind == "function").map(|one| one.oid).collect();
    let shapes: Vec<u32> =
        needs.parts.iter().filter(|part| part.kind == PartKind::Shape).map(|part| part.oid).collect();
    let rows = source
        .query(
            "SELECT DISTINCT (pg_identify_object('pg_proc'::regclass, p.oid, 0)).identity
               FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
               JOIN pg_depend d ON d.refclassid = 'pg_proc'::regclass AND d.refobjid = p.oid
              WHERE p.oid = ANY ($1) AND d.objid = ANY ($2) AND p.prosqlbody IS NULL AND l.lanname NOT IN ('c', 'internal')
                AND NOT coalesce(p.proconfig::text LIKE '%search_path=%', false)
                AND NOT EXISTS (SELECT FROM pg_attrdef f JOIN pg_attribute a ON (a.attrelid, a.attnum) = (f.adrelid, f.adnum)
                                 WHERE f.oid = d.objid AND a.attgenerated = '')
              ORDER BY 1",
            &[&functions, &shapes],
        )
        .await
        .doing("look at functions")?;
    let finding = rows.iter().map(|row| {
        let name: String = row.get(0);
        let cause = "it is run while rows are copied and applied, with search_path = pg_catalog: names in its body must have their schema";
        let remedy = format!("if they have not: ALTER FUNCTION {name} SET search_path = …");
        Finding::new(Severity::Warning, format!("function {name}"), cause, remedy)
    });
    Ok(finding.collect())
}

/// What no stream carries.
async fn not_replicated(source: &Client, needs: &Needs) -> Result<Vec<Finding>> {
    let needed = needs.extensions();
    let rows = source
        .query(
            "SELECT 'large objects', format('left out: the database has %s, which are not in the log', count(*)) FROM pg_largeobject_metadata
              HAVING count(*) > 0
             UNION ALL
             SELECT 'extension ' || extname, 'left out: no moved table needs it' FROM pg_extension
              WHERE oid >= 16384 AND quote_ident(extname) <> ALL ($1) ORDER BY 1",
            &[&needed],
        )
        .await
        .doing("look at what is not replicated")?;
    Ok(rows.iter().map(|row| note(row.get::<_, String>(0), row.get::<_, String>(1))).collect())
}

/// Extensions that a server does not have, or that the role may not make there.
pub async fn extensions(server: &Client, role: &str, needed: &[String]) -> Result<Vec<Finding>> {
    let rows = server
        .query(
            "SELECT n, v.name IS NOT NULL, coalesce(v.trusted, false) OR coalesce((SELECT rolsuper FROM pg_roles WHERE rolname = $2), false)
               FROM unnest($1::text[]) n LEFT JOIN pg_available_extensions a ON quote_ident(a.name) = n
               LEFT JOIN pg_available_extension_versions v ON v.name = a.name AND v.version = a.default_version ORDER BY 1",
            &[&needed, &role],
        )
        .await
        .doing("look for extensions")?;
    let finding = rows.iter().filter_map(|row| {
        let (name, there, may): (String, bool, bool) = (row.get(0), row.get(1), row.get(2));
        match (there, may) {
            (false, _) => {
                let remedy = format!("install the package that has {name} on the target's server");
                Some(Finding::new(
                    Severity::Error,
                    format!("extension {name}"),
                    "the target's server does not have it",
                    remedy,
                ))
            }
            (true, false) => {
                let cause = format!("role {role} may not create it: it is not trusted");
                let remedy =
                    format!("as a superuser in the tenant's database, made before the move: CREATE EXTENSION {name}");
                Some(Finding::new(Severity::Error, format!("extension {name}"), cause, remedy))
            }
            _ => None,
        }
    });
    Ok(finding.collect())
}
