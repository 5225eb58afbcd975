//! Mutants: one seeded change of a target, the smallest that its kind has. What a mutant is, is said in SQL; whether it has
//! changed anything, the judge says.

use anyhow::{Context, Result};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use tokio_postgres::Client;

use super::tables::{TABLES, Table};

/// What is done to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One byte of a text or of bytes, large ones too.
    Byte,
    /// NULL where there was something empty, or the reverse.
    Null,
    /// Minus zero for zero, or the reverse.
    MinusZero,
    /// The next floating point number.
    Ulp,
    /// One blank more at the end.
    Blank,
    /// A zero more behind the point: 1.0 and 1.00 are equal, and not the same.
    Scale,
    /// The order of the keys in `json`, or the blanks.
    Json,
    /// What is next in other types: a microsecond, a bit, a label, a bound.
    Next,
    /// Two rows exchange a value.
    Swap,
    /// A row has another key.
    Key,
    /// A row is gone.
    Missing,
    /// A row too many.
    Extra,
    /// A row of another tenant.
    Foreign,
    /// One more of a row that there may be several of.
    Twin,
}

/// All of them.
pub const KINDS: [Kind; 14] = [
    Kind::Byte,
    Kind::Null,
    Kind::MinusZero,
    Kind::Ulp,
    Kind::Blank,
    Kind::Scale,
    Kind::Json,
    Kind::Next,
    Kind::Swap,
    Kind::Key,
    Kind::Missing,
    Kind::Extra,
    Kind::Foreign,
    Kind::Twin,
];

/// Types, the rows in which a value can be changed like that, and the value for it. `$C` is the column, `$R` a random number, `$U` the
/// number next to what stands there.
const CHANGES: &[(Kind, &[&str], &str, &str)] = &[
    (
        Kind::Byte,
        &["bytea"],
        "length($C) > 0",
        "set_byte($C, $R % length($C), get_byte($C, $R % length($C)) # (1 << ($R % 8)))",
    ),
    (
        Kind::Byte,
        &["text", "varchar", "char"],
        "$C <> ''",
        "overlay($C::text placing CASE substr($C, 1 + $R % length($C), 1) WHEN '~' THEN '!' ELSE '~' END from 1 + $R % length($C) for 1)",
    ),
    (Kind::Null, &["text", "varchar", "char", "bytea", "bits"], "$C IS NULL", "''"),
    (Kind::Null, &["text", "varchar", "char", "bytea", "bits"], "length($C) = 0", "NULL"),
    (Kind::Null, &["text[]", "double precision[]"], "$C IS NULL", "'{}'"),
    (Kind::Null, &["text[]", "double precision[]"], "$C = '{}'", "NULL"),
    (Kind::Null, &["text[]"], "array_position($C, NULL) IS NOT NULL", "array_replace($C, NULL, '')"),
    (Kind::Null, &["text[]"], "array_position($C, '') IS NOT NULL", "array_replace($C, '', NULL)"),
    (Kind::Null, &["json", "jsonb"], "$C IS NULL", "'null'"),
    (Kind::Null, &["json", "jsonb"], "$C::text = 'null'", "NULL"),
    (Kind::Null, &["spot"], "$C::text IS NULL", "ROW(NULL, NULL, NULL)"),
    (Kind::Null, &["spot"], "($C).street = ''", "ROW(NULL, ($C).number, ($C).at)"),
    (Kind::Null, &["numrange"], "$C IS NULL", "'empty'"),
    (Kind::MinusZero, &["real", "double precision"], "$C = 0", "-$C"),
    (
        Kind::MinusZero,
        &["double precision[]"],
        "0 = ANY ($C)",
        "ARRAY(SELECT CASE x WHEN 0 THEN -x ELSE x END FROM unnest($C) x)",
    ),
    (Kind::MinusZero, &["spot"], "($C).at = 0", "ROW(($C).street, ($C).number, -($C).at)"),
    (Kind::Ulp, &["real", "double precision"], "$C NOT IN (0, 'NaN', 'Infinity', '-Infinity')", "$U"),
    (Kind::Ulp, &["double precision[]"], "$C[1] <> 0", "ARRAY[$U] || $C[2:]"),
    (Kind::Blank, &["text", "varchar"], "$C IS NOT NULL", "$C || ' '"),
    (Kind::Blank, &["text[]"], "$C[1] IS NOT NULL", "ARRAY[$C[1] || ' '] || $C[2:]"),
    (Kind::Blank, &["spot"], "($C).street IS NOT NULL", "ROW(($C).street || ' ', ($C).number, ($C).at)"),
    (Kind::Blank, &["jsonb"], "jsonb_typeof($C) = 'string'", "to_jsonb(($C #>> '{}') || ' ')"),
    (Kind::Scale, &["numeric"], "$C <> 'NaN'", "round($C, scale($C) + 1)"),
    (Kind::Scale, &["jsonb"], "jsonb_typeof($C) = 'number'", "to_jsonb(($C #>> '{}')::numeric + 0.000)"),
    (Kind::Scale, &["numrange"], "NOT isempty($C)", "numrange(lower($C) + 0.00, upper($C))"),
    (
        Kind::Json,
        &["json"],
        "$C::text LIKE '{%,%'",
        "(SELECT '{' || string_agg(to_json(key) || ':' || value, ',' ORDER BY n DESC) || '}' FROM json_each($C) WITH ORDINALITY e(key, value, n))::json",
    ),
    (Kind::Json, &["json"], "$C IS NOT NULL", "($C || ' ')::json"),
    (Kind::Next, &["timestamptz"], "$C <> 'infinity'", "$C + interval '1 microsecond'"),
    (Kind::Next, &["interval"], "$C IS NOT NULL", "CASE $C::text WHEN '1 day' THEN '24:00' ELSE '1 day' END::interval"),
    (
        Kind::Next,
        &["uuid"],
        "true",
        "overlay($C::text placing CASE right($C::text, 1) WHEN '0' THEN '1' ELSE '0' END from 36)::uuid",
    ),
    (Kind::Next, &["mood"], "$C IS NOT NULL", "CASE $C WHEN 'fair' THEN 'sad' ELSE 'fair' END::mood"),
    (Kind::Next, &["boolean"], "$C IS NOT NULL", "NOT $C"),
    (Kind::Next, &["bits"], "$C IS NOT NULL", "$C || B'0'"),
    (Kind::Next, &["numrange"], "NOT isempty($C)", "numrange(lower($C), upper($C), '[]')"),
    (Kind::Next, &["text[]"], "cardinality($C) > 0", "('[0:' || cardinality($C) - 1 || ']=' || $C::text)::text[]"),
];

/// A change of the target.
pub struct Mutant {
    pub kind: Kind,
    pub table: &'static Table,
    pub sql: String,
}

/// A change that could be made, and the rows in which.
struct Candidate {
    table: &'static Table,
    column: &'static (&'static str, &'static str),
    rows: String,
    value: &'static str,
}

/// Draws a mutant of this kind in a row for which `among` holds; `None`: there was no such row for what was drawn.
pub async fn draw(rng: &mut StdRng, target: &Client, kind: Kind, among: &Among<'_>) -> Result<Option<Mutant>> {
    let random = rng.random_range(0..1_000_000);
    let tables: Vec<&'static Table> = TABLES.iter().filter(|table| among.allows(table)).collect();
    let (table, sql) = match kind {
        Kind::Missing | Kind::Twin | Kind::Key | Kind::Extra | Kind::Foreign => {
            let fit = |table: &&&'static Table| kind.fits(table);
            let fit: Vec<&&'static Table> = tables.iter().filter(fit).collect();
            let Some(table) = fit.choose(rng).copied().copied() else { return Ok(None) };
            let Some(row) = row(rng, target, table, among.rows).await? else { return Ok(None) };
            (table, of_row(kind, table, &row).replace("$R", &random.to_string()))
        }
        Kind::Swap => {
            let Some(table) = tables.choose(rng).copied() else { return Ok(None) };
            let Some((column, _)) = table.values().collect::<Vec<_>>().choose(rng).copied() else { return Ok(None) };
            let one = row(rng, target, table, among.rows).await?;
            let (Some(one), Some(other)) = (one, row(rng, target, table, among.rows).await?) else { return Ok(None) };
            (table, swap(table, column, &one, &other))
        }
        _ => {
            let all = candidates(kind, &tables);
            let Some(Candidate { table, column, rows, value }) = all.choose(rng) else { return Ok(None) };
            let rows = format!("({rows}) AND {}", among.rows);
            let Some(row) = row(rng, target, table, &rows).await? else { return Ok(None) };
            let value = value.replace("$C", &format!("t.{}", column.0)).replace("$R", &random.to_string());
            let value = match value.contains("$U") {
                true => value.replace("$U", &neighbour(target, table, column, &row).await?),
                false => value,
            };
            (*table, format!("UPDATE {} t SET {} = {value} WHERE {row}", table.name, column.0))
        }
    };
    Ok(Some(Mutant { kind, table, sql }))
}

/// Where a mutant may be.
#[derive(Clone, Copy)]
pub struct Among<'a> {
    /// In these tables; none: in all.
    pub tables: &'a [&'a str],
    /// A condition for its rows.
    pub rows: &'a str,
}

impl Among<'_> {
    fn allows(&self, table: &Table) -> bool {
        self.tables.is_empty() || self.tables.contains(&table.name)
    }
}

impl Kind {
    /// Whether whole rows of the table can be changed like that.
    fn fits(self, table: &Table) -> bool {
        match self {
            Kind::Twin => table.key.is_empty(),
            Kind::Foreign => !table.foreign.is_empty(),
            Kind::Key | Kind::Extra => !table.key.is_empty(),
            _ => true,
        }
    }
}

fn candidates(kind: Kind, tables: &[&'static Table]) -> Vec<Candidate> {
    let mut found = Vec::new();
    for table in tables {
        for (of, types, rows, value) in CHANGES {
            let columns = table.values().filter(|(_, name)| *of == kind && types.contains(name));
            found.extend(columns.map(|column| Candidate {
                table,
                column,
                rows: rows.replace("$C", &format!("t.{}", column.0)),
                value,
            }));
        }
    }
    found
}

/// A condition that names one row for which `rows` holds; `None`: there is none.
async fn row(rng: &mut StdRng, target: &Client, table: &Table, rows: &str) -> Result<Option<String>> {
    let sql = format!("SELECT count(*) FROM {} t WHERE {rows}", table.name);
    let count: i64 = target.query_one(&sql, &[]).await.with_context(|| sql.clone())?.get(0);
    if count == 0 {
        return Ok(None);
    }
    let place = rng.random_range(0..count);
    let sql = format!(
        "SELECT format('(t.tableoid, t.ctid) = (%s, %L::tid)', t.tableoid, t.ctid) FROM {} t WHERE {rows} ORDER BY t::text, t.ctid OFFSET {place} LIMIT 1",
        table.name
    );
    Ok(Some(target.query_one(&sql, &[]).await.with_context(|| sql.clone())?.get(0)))
}

fn of_row(kind: Kind, table: &Table, row: &str) -> String {
    let name = table.name;
    let set = |sets: &[(&str, &str)]| {
        let sets: Vec<String> = sets.iter().map(|(column, value)| format!("{column} = {value}")).collect();
        format!("UPDATE {name} t SET {} WHERE {row}", sets.join(", "))
    };
    match kind {
        Kind::Missing => format!("DELETE FROM {name} t WHERE {row}"),
        Kind::Key => set(table.other),
        Kind::Foreign if table.given => set(table.foreign),
        _ => {
            let changed = match kind {
                Kind::Extra => table.other,
                Kind::Foreign => table.foreign,
                _ => &[],
            };
            let value = |(column, _): &(&'static str, &str)| {
                changed.iter().find(|(name, _)| name == column).map_or(*column, |(_, value)| *value)
            };
            let names: Vec<&str> = table.columns.iter().map(|(column, _)| *column).collect();
            let values: Vec<&str> = table.columns.iter().map(value).collect();
            format!("INSERT INTO {name} ({}) SELECT {} FROM {name} t WHERE {row}", names.join(", "), values.join(", "))
        }
    }
}

fn swap(table: &Table, column: &str, one: &str, other: &str) -> String {
    let name = table.name;
    format!(
        "WITH one AS MATERIALIZED (SELECT {column} AS v FROM {name} t WHERE {one}), other AS MATERIALIZED (SELECT {column} AS v FROM {name} t WHERE {other})
         UPDATE {name} t SET {column} = CASE WHEN {one} THEN other.v ELSE one.v END FROM one, other WHERE {one} OR {other}"
    )
}

/// The floating point number next to the one that stands there, as SQL.
async fn neighbour(target: &Client, table: &Table, (column, name): &(&str, &str), row: &str) -> Result<String> {
    let first = if name.ends_with("[]") { "[1]" } else { "" };
    let sql = format!("SELECT t.{column}{first} FROM {} t WHERE {row}", table.name);
    let found = target.query_one(&sql, &[]).await.with_context(|| sql.clone())?;
    Ok(match *name {
        "real" => format!("'{:e}'::real", f32::from_bits(found.get::<_, f32>(0).to_bits() ^ 1)),
        _ => format!("'{:e}'::double precision", f64::from_bits(found.get::<_, f64>(0).to_bits() ^ 1)),
    })
}
