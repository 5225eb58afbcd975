//! What refers to the tables of a move, and which tables their rows lie in.

use std::collections::HashMap;

use schemas::TableName;
use tokio_postgres::Client;

use super::super::policy::{Owned, Path};
use super::super::quote::ident;
use super::super::{Doing, Result};

/// A foreign key that leads to a table of the move, from whichever table.
#[derive(Clone, Debug)]
pub(super) struct Reference {
    /// The constraint.
    pub name: String,
    /// The table that refers, and its place among the move's.
    pub from: TableName,
    pub child: Option<usize>,
    /// Whether that one is every tenant's: its rows stay.
    pub is_every_tenants: bool,
    /// The place of the table that it leads to, and the number of that one or of a partition.
    pub parent: usize,
    pub to: u32,
    /// What happens to rows that refer to one that is deleted.
    pub action: &'static str,
    /// Columns there, operator, columns here.
    pairs: Vec<(String, String, String)>,
    /// Whether an index leads to the rows that refer to one; small tables need none.
    pub indexed: bool,
}

impl Reference {
    /// The condition that the row `child` refers to the row `parent`.
    pub(super) fn matches(&self, child: &str, parent: &str) -> String {
        let pairs = self.pairs.iter();
        let same = pairs.map(|(there, is, here)| format!("{parent}.{} {is} {child}.{}", ident(there), ident(here)));
        same.collect::<Vec<_>>().join(" AND ")
    }

    /// Its columns.
    pub(super) fn columns(&self) -> impl Iterator<Item = &str> {
        self.pairs.iter().map(|(.., here)| here.as_str())
    }

    /// Whether it is the one that says whose the rows are.
    pub(super) fn is_path(&self, tables: &[Owned]) -> bool {
        let path = self.child.map(|child| &tables[child].path);
        matches!(path, Some(Path::Via(via)) if via.key.name == self.name)
    }
}

/// A table that rows lie in: one of the move, or a partition.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub oid: u32,
    pub name: TableName,
    /// The place of the whole table among the move's.
    pub table: usize,
    /// It and what it is a part of.
    line: Vec<u32>,
}

impl Part {
    /// Whether the foreign key leads to rows of it.
    pub(super) fn is_referred_to(&self, key: &Reference) -> bool {
        self.line.contains(&key.to)
    }
}

const REFERENCES: &str = "\
WITH RECURSIVE moved(root, id) AS (
  SELECT id, id FROM unnest($1::oid[]) id
  UNION ALL SELECT m.root, i.inhrelid FROM moved m JOIN pg_inherits i ON i.inhparent = m.id)
SELECT k.conname::text, n.nspname::text, c.relname::text, own.root, p.root, k.confrelid, k.confdeltype::text,
       array_agg(pa.attname::text ORDER BY u.place),
       array_agg(format('OPERATOR(%I.%s)', sn.nspname, o.oprname) ORDER BY u.place),
       array_agg(ca.attname::text ORDER BY u.place),
       c.relkind = 'r' AND pg_relation_size(c.oid) < 1048576 OR EXISTS (
         SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid AND i.indpred IS NULL
            AND cardinality(k.conkey) = (SELECT count(*) FROM unnest(i.indkey::int2[]) WITH ORDINALITY x(attnum, place)
                                          WHERE x.place <= cardinality(k.conkey) AND x.attnum = ANY (k.conkey)))
  FROM pg_constraint k
  JOIN moved p ON p.id = k.confrelid
  LEFT JOIN moved own ON own.id = k.conrelid
  JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 CROSS JOIN LATERAL unnest(k.conkey, k.confkey, k.conpfeqop) WITH ORDINALITY u(here, there, equal, place)
  JOIN pg_attribute ca ON ca.attrelid = k.conrelid AND ca.attnum = u.here
  JOIN pg_attribute pa ON pa.attrelid = k.confrelid AND pa.attnum = u.there
  JOIN pg_operator o ON o.oid = u.equal JOIN pg_namespace sn ON sn.oid = o.oprnamespace
 WHERE k.contype = 'f' AND k.conparentid = 0
 GROUP BY k.oid, k.conname, n.nspname, c.relname, own.root, p.root, k.confrelid, k.confdeltype, c.oid, c.relkind, k.conkey
 ORDER BY n.nspname, c.relname, k.conname";

/// The foreign keys that lead to the tables.
pub(super) async fn load(client: &Client, tables: &[Owned]) -> Result<Vec<Reference>> {
    let oids: Vec<u32> = tables.iter().map(|owned| owned.table.oid).collect();
    let place = |oid: u32| oids.iter().position(|own| *own == oid);
    let is_every_tenants =
        |child: Option<usize>| matches!(child, Some(child) if matches!(tables[child].path, Path::Reference));
    let rows = client.query(REFERENCES, &[&oids]).await.doing("list what refers to the move's tables")?;
    let found = rows.iter().filter_map(|row| {
        let parent = place(row.get(4)).filter(|parent| !matches!(tables[*parent].path, Path::Reference))?;
        let child = row.get::<_, Option<u32>>(3).and_then(place);
        let (there, is, here): (Vec<String>, Vec<String>, Vec<String>) = (row.get(7), row.get(8), row.get(9));
        Some(Reference {
            name: row.get(0),
            from: TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
            child,
            is_every_tenants: is_every_tenants(child),
            parent,
            to: row.get(5),
            action: match row.get::<_, &str>(6) {
                "c" => "CASCADE",
                "n" => "SET NULL",
                "d" => "SET DEFAULT",
                "r" => "RESTRICT",
                _ => "NO ACTION",
            },
            pairs: there.into_iter().zip(is).zip(here).map(|((there, is), here)| (there, is, here)).collect(),
            indexed: row.get(10),
        })
    });
    Ok(found.collect())
}

const PARTS: &str = "\
WITH RECURSIVE tree(root, id, line) AS (
  SELECT id, id, ARRAY[id] FROM unnest($1::oid[]) id
  UNION ALL SELECT t.root, i.inhrelid, t.line || i.inhrelid FROM tree t JOIN pg_inherits i ON i.inhparent = t.id)
SELECT t.root, t.id, n.nspname::text, c.relname::text, t.line
  FROM tree t JOIN pg_class c ON c.oid = t.id JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' ORDER BY n.nspname, c.relname";

/// Where the rows of a group's tables lie now; tables of the group in its order.
pub(super) async fn parts(client: &Client, tables: &[Owned], group: &[usize]) -> Result<Vec<Part>> {
    let own = group.iter().copied().filter(|place| !matches!(tables[*place].path, Path::Reference));
    let places: HashMap<u32, usize> = own.map(|place| (tables[place].table.oid, place)).collect();
    let oids: Vec<u32> = places.keys().copied().collect();
    let rows = client.query(PARTS, &[&oids]).await.doing("list the move's partitions")?;
    let part = |row: &tokio_postgres::Row| {
        let name = TableName::new(row.get::<_, String>(2), row.get::<_, String>(3));
        Some(Part { oid: row.get(1), name, table: *places.get(&row.get(0))?, line: row.get(4) })
    };
    let mut parts: Vec<Part> = rows.iter().filter_map(part).collect();
    // What others say the tenant of is deleted before them; within a circle that keeps batches small.
    parts.sort_by_key(|part| std::cmp::Reverse(tables[part.table].depth()));
    Ok(parts)
}
