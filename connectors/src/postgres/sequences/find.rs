//! Finds the sequences that tables' columns draw from, as `pg_depend` knows them, and which of two databases belong
//! together. Writes nothing.

use std::collections::HashMap;

use schemas::TableName;
use tokio_postgres::{Client, Row};

use super::super::quote::table as qualified;
use super::super::{Doing, Error, Result};
use super::{Pair, Place, Sequence};

/// Every default that names a sequence, and every identity. `root` is the partitioned table that a partition is part of.
const DRAWS: &str = "\
draws(sequence, rel, number) AS (
  SELECT d.refobjid, f.adrelid, f.adnum::int FROM pg_attrdef f
    JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid AND d.refclassid = 'pg_class'::regclass
  UNION
  SELECT d.objid, d.refobjid, d.refobjsubid FROM pg_depend d
   WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype = 'i' AND d.refobjsubid > 0),
users AS (
  SELECT s.oid AS sequence, coalesce(pg_partition_root(w.rel)::oid, w.rel) AS root, a.attname::text AS name, a.atttypid
    FROM draws w JOIN pg_class s ON s.oid = w.sequence AND s.relkind = 'S'
    JOIN pg_attribute a ON a.attrelid = w.rel AND a.attnum = w.number AND NOT a.attisdropped)";

/// `$1`: the tables. A row per sequence and column; what the column's type can hold, below its domains.
const SEQUENCES: &str = "\
SELECT s.oid, n.nspname::text, s.relname::text, q.seqincrement, q.seqmin, q.seqmax, q.seqcache, q.seqcycle,
       tn.nspname::text, t.relname::text, u.name,
       (WITH RECURSIVE below(id) AS (
          SELECT u.atttypid UNION SELECT y.typbasetype FROM below b JOIN pg_type y ON y.oid = b.id AND y.typtype = 'd')
        SELECT min(CASE id WHEN 21 THEN 32767 WHEN 23 THEN 2147483647 ELSE 9223372036854775807 END) FROM below),
       (SELECT system_identifier FROM pg_control_system()),
       (SELECT oid FROM pg_database WHERE datname = current_database())
  FROM users u JOIN pg_class s ON s.oid = u.sequence JOIN pg_namespace n ON n.oid = s.relnamespace
  JOIN pg_sequence q ON q.seqrelid = s.oid
  JOIN pg_class t ON t.oid = u.root JOIN pg_namespace tn ON tn.oid = t.relnamespace
 WHERE u.sequence IN (SELECT sequence FROM users WHERE root = ANY ($1))
 ORDER BY n.nspname, s.relname, tn.nspname, t.relname, u.name";

/// Defaults that look up their sequence by its name each time: nothing says which one that is.
const UNKNOWN: &str = "\
SELECT n.nspname::text, c.relname::text, a.attname::text
  FROM pg_attrdef f JOIN pg_class c ON c.oid = f.adrelid JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_attribute a ON a.attrelid = f.adrelid AND a.attnum = f.adnum
 WHERE coalesce(pg_partition_root(f.adrelid)::oid, f.adrelid) = ANY ($1) AND pg_get_expr(f.adbin, f.adrelid) ~ '\\mnextval\\('
   AND NOT EXISTS (SELECT FROM draws w JOIN pg_class s ON s.oid = w.sequence AND s.relkind = 'S'
                    WHERE (w.rel, w.number) = (f.adrelid, f.adnum))";

/// Every sequence that a column of these tables draws from: by serial, as identity, or by any other default that names
/// it. Each once, with all its users, those of other tables too.
pub async fn of_tables(client: &Client, tables: &[TableName]) -> Result<Vec<Sequence>> {
    let doing = || "list the sequences of tables";
    let oids = numbers(client, tables).await?;
    let unknown = client.query_opt(&format!("WITH {DRAWS} {UNKNOWN} LIMIT 1"), &[&oids]).await.doing(doing())?;
    if let Some(row) = unknown {
        let (schema, table, column): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        let why = "its default looks up a sequence by name each time, so which one it draws from is not known; \
                   SET DEFAULT nextval('its sequence'::regclass)";
        return Err(Error::state(format!("find the sequence of {schema}.{table}.{column}"), why));
    }
    let mut found: Vec<Sequence> = Vec::new();
    for row in client.query(&format!("WITH {DRAWS} {SEQUENCES}"), &[&oids]).await.doing(doing())? {
        let (user, holds) = (user(&row), row.get::<_, i64>(11));
        if found.last().is_none_or(|last| last.place.oid != row.get::<_, u32>(0)) {
            found.push(sequence(&row));
        }
        let Some(last) = found.last_mut() else { continue };
        last.limit = if last.increment < 0 { last.limit.max(-holds - 1) } else { last.limit.min(holds) };
        if !last.users.contains(&user) {
            last.users.push(user);
        }
    }
    Ok(found)
}

async fn numbers(client: &Client, tables: &[TableName]) -> Result<Vec<u32>> {
    let names: Vec<String> = tables.iter().map(qualified).collect();
    let sql = "SELECT name, to_regclass(name)::oid FROM unnest($1::text[]) name";
    let rows = client.query(sql, &[&names]).await.doing("look for tables")?;
    let number = |row: &Row| {
        let missing =
            || Error::state(format!("list the sequences of {}", row.get::<_, &str>(0)), "there is no such table");
        row.get::<_, Option<u32>>(1).ok_or_else(missing)
    };
    rows.iter().map(number).collect()
}

fn sequence(row: &Row) -> Sequence {
    let (increment, min, max): (i64, i64, i64) = (row.get(3), row.get(4), row.get(5));
    Sequence {
        name: TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
        users: Vec::new(),
        increment,
        min,
        max,
        cache: row.get(6),
        cycle: row.get(7),
        limit: if increment < 0 { min } else { max },
        place: Place { system: row.get(12), database: row.get(13), oid: row.get(0) },
    }
}

fn user(row: &Row) -> (TableName, String) {
    (TableName::new(row.get::<_, String>(8), row.get::<_, String>(9)), row.get(10))
}

/// Which sequence of the guest belongs to which of home, by the columns of `tables` (the home's name and the guest's).
/// An error names the column where blocks of the one cannot keep the other apart.
pub fn pair(home: &[Sequence], guest: &[Sequence], tables: &[(TableName, TableName)]) -> Result<Vec<Pair>> {
    let (at_home, at_guest) = (by_column(home)?, by_column(guest)?);
    let mut pairs: Vec<Pair> = Vec::new();
    for (table, counterpart) in tables {
        let mut columns: Vec<_> = at_home.iter().filter(|((of, _), _)| *of == table).collect();
        columns.sort_by_key(|((_, column), _)| *column);
        for ((_, column), ours) in columns {
            let Some(theirs) = at_guest.get(&(counterpart, *column)) else {
                let (doing, name) = (format!("pair the sequence of {counterpart}.{column}"), &ours.name);
                let why =
                    format!("it draws from none, and {table}.{column} from {name}; give it one of its own as default");
                return Err(Error::state(doing, why));
            };
            let found = checked(ours, theirs)?;
            match pairs.iter().find(|pair| pair.guest.place == theirs.place) {
                None => pairs.push(found),
                Some(known) if known.home.place == ours.place => {}
                Some(known) => {
                    let why = format!("its columns draw from two at home, {} and {}", known.home.name, ours.name);
                    return Err(Error::state(format!("pair the sequence {}", theirs.name), why));
                }
            }
        }
    }
    Ok(pairs)
}

/// Column to sequence; a partition may have a default of its own.
fn by_column(sequences: &[Sequence]) -> Result<HashMap<(&TableName, &str), &Sequence>> {
    let mut found: HashMap<(&TableName, &str), &Sequence> = HashMap::new();
    for sequence in sequences {
        for (table, column) in &sequence.users {
            if let Some(other) = found.insert((table, column), sequence) {
                let why =
                    format!("it draws from two, {} and {}; give its partitions one default", other.name, sequence.name);
                return Err(Error::state(format!("pair the sequence of {table}.{column}"), why));
            }
        }
    }
    Ok(found)
}

fn checked(home: &Sequence, guest: &Sequence) -> Result<Pair> {
    let pair = Pair { home: home.clone(), guest: guest.clone(), shared: home.place == guest.place };
    let doing = || format!("pair the sequences {} and {}", home.name, guest.name);
    if pair.shared {
        return Ok(pair);
    }
    if let Some(cycling) = [home, guest].into_iter().find(|one| one.cycle) {
        let why = format!("{} begins again behind its last value; ALTER SEQUENCE … NO CYCLE", cycling.name);
        return Err(Error::state(doing(), why));
    }
    if home.increment != guest.increment {
        let why = format!(
            "the one goes in steps of {}, the other of {}; ALTER SEQUENCE … INCREMENT BY",
            home.increment, guest.increment
        );
        return Err(Error::state(doing(), why));
    }
    Ok(pair)
}
