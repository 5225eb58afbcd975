//! What tables need beside themselves: extensions, types, functions, collations, sequences, schemas; and what
//! hangs on them: triggers, policies, views. Read from `pg_depend` (PostgreSQL manual, "pg_depend"), ordered so
//! that each comes after what it needs. Writes nothing.
//!
//! `pg_depend` does not say what a function needs whose body is text. It is taken to need every function that it
//! calls by name; tables and types that such a body names are not looked at.

use std::collections::{BTreeSet, HashMap, HashSet};

use tokio_postgres::Client;

use super::super::catalog::Table;
use super::super::{Doing, Result};
use super::objects::{self, Definition};

/// What a set of tables needs, and what hangs on them.
#[derive(Debug, Default)]
pub struct Needs {
    /// To be made before the tables, in this order.
    pub before: Vec<Definition>,
    /// To be made after the tables, as they need them.
    pub after: Vec<Definition>,
    /// What hangs on the tables, in an order in which it can be made.
    pub parts: Vec<Part>,
}

impl Needs {
    /// The extensions, as SQL names them.
    pub fn extensions(&self) -> Vec<String> {
        let all = self.before.iter().chain(&self.after).filter(|one| one.kind == "extension");
        all.map(|one| one.name.clone()).collect()
    }
}

/// A piece of a table's definition, or something that hangs on it.
#[derive(Clone, Debug)]
pub struct Part {
    /// What it is.
    pub kind: PartKind,
    /// `pg_class.oid` of the table; of the view itself.
    pub table: u32,
    /// `pg_trigger.oid`, `pg_policy.oid`, `pg_rewrite.oid`.
    pub oid: u32,
    /// Its own name; of a view with its schema.
    pub name: String,
    /// Why it cannot be made, where it cannot: what it needs.
    pub lacks: Vec<String>,
    class: u32,
}

/// What hangs on a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartKind {
    /// Columns, defaults, constraints, indexes: the table cannot be without them.
    Shape,
    /// A trigger of the application.
    Trigger,
    /// A policy of row level security.
    Policy,
    /// A view over moved tables.
    View,
    /// A materialized view, which is never made.
    Materialized,
    /// A rule other than a view's own, which is never made.
    Rule,
}

impl PartKind {
    fn from_word(word: &str) -> PartKind {
        match word {
            "trigger" => PartKind::Trigger,
            "policy" => PartKind::Policy,
            "v" => PartKind::View,
            "m" => PartKind::Materialized,
            "rule" => PartKind::Rule,
            _ => PartKind::Shape,
        }
    }
}

/// `$1`: the tables. A view belongs to them when it reads one of them, or a view that does.
const PARTS: &str = "\
WITH RECURSIVE readers(id) AS (
  SELECT unnest($1::oid[])
  UNION
  SELECT r.ev_class FROM readers n
    JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = n.id AND d.classid = 'pg_rewrite'::regclass
    JOIN pg_rewrite r ON r.oid = d.objid AND r.ev_class <> n.id AND r.rulename = '_RETURN')
SELECT 'shape', t, 'pg_class'::regclass::oid, t, '' FROM unnest($1::oid[]) t
UNION ALL SELECT 'shape', adrelid, 'pg_attrdef'::regclass, oid, '' FROM pg_attrdef WHERE adrelid = ANY ($1)
UNION ALL SELECT 'shape', conrelid, 'pg_constraint'::regclass, oid, conname::text FROM pg_constraint
           WHERE conrelid = ANY ($1) AND contype IN ('c', 'p', 'u', 'x')
UNION ALL SELECT 'shape', indrelid, 'pg_class'::regclass, indexrelid, '' FROM pg_index WHERE indrelid = ANY ($1)
UNION ALL SELECT 'trigger', t.tgrelid, 'pg_trigger'::regclass, t.oid, t.tgname::text
            FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_namespace n ON n.oid = p.pronamespace
           WHERE t.tgrelid = ANY ($1) AND NOT t.tgisinternal AND n.nspname <> 'carveout'
UNION ALL SELECT 'policy', polrelid, 'pg_policy'::regclass, oid, polname::text FROM pg_policy WHERE polrelid = ANY ($1)
UNION ALL SELECT 'rule', ev_class, 'pg_rewrite'::regclass, oid, rulename::text FROM pg_rewrite WHERE ev_class = ANY ($1)
UNION ALL SELECT c.relkind::text, c.oid, 'pg_rewrite'::regclass, r.oid, format('%I.%I', n.nspname, c.relname)
            FROM readers v JOIN pg_class c ON c.oid = v.id AND c.relkind IN ('v', 'm')
            JOIN pg_namespace n ON n.oid = c.relnamespace
            JOIN pg_rewrite r ON r.ev_class = c.oid AND r.rulename = '_RETURN'
ORDER BY 1, 5, 4";

/// What an object `n` needs. A member of an extension needs the extension and nothing else; a table that does
/// not move (`$1`: those that do) is not looked into.
const STEP: &str = "\
SELECT d.refclassid AS class, d.refobjid AS id FROM pg_depend d
 WHERE d.classid = n.class AND d.objid = n.id AND d.refobjid >= 16384
   AND (d.deptype = 'e' OR NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = n.class AND e.objid = n.id AND e.deptype = 'e'))
   AND (n.class <> 'pg_class'::regclass OR n.id = ANY ($1) AND d.refclassid <> 'pg_namespace'::regclass
        OR EXISTS (SELECT FROM pg_class c WHERE c.oid = n.id AND c.relkind IN ('c', 'S', 'i')))
UNION
SELECT 'pg_class'::regclass, t.typrelid FROM pg_type t JOIN pg_class c ON c.oid = t.typrelid AND c.relkind = 'c'
 WHERE n.class = 'pg_type'::regclass AND t.oid = n.id
UNION
SELECT 'pg_constraint'::regclass, k.oid FROM pg_constraint k WHERE n.class = 'pg_type'::regclass AND k.contypid = n.id
UNION
SELECT 'pg_proc'::regclass, q.oid
  FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang AND l.lanname NOT IN ('c', 'internal')
  JOIN pg_proc q ON q.oid >= 16384 AND q.oid <> p.oid
   AND strpos(lower(p.prosrc), lower(q.proname)) > 0 AND p.prosrc ~* ('(^|\\W)\"?' || regexp_replace(q.proname, '(\\W)', '\\\\\\1', 'g') || '\"?\\s*\\(')
 WHERE n.class = 'pg_proc'::regclass AND p.oid = n.id AND p.prosqlbody IS NULL";

/// An object that something needs.
struct Node {
    /// As PostgreSQL describes it.
    described: String,
    /// A table or view.
    relation: bool,
    /// Comes with something else: an extension's member, an array type, an index.
    part: bool,
    needs: Vec<Id>,
}

/// Catalog and number.
type Id = (u32, u32);

/// Reads what `tables` need.
pub async fn read(source: &Client, tables: &[&Table]) -> Result<Needs> {
    let doing = "read what the tables need";
    let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
    let mut parts: Vec<Part> = source.query(PARTS, &[&oids]).await.doing(doing)?.iter().map(part).collect();
    let nodes = nodes(source, &oids, &parts).await?;
    let mut definitions: HashMap<Id, Definition> = HashMap::new();
    let numbers: Vec<u32> = nodes.keys().map(|(_, oid)| *oid).collect();
    for definition in objects::by_number(source, &numbers).await? {
        definitions.insert((definition.class, definition.oid), definition);
    }
    let graph = Graph { nodes: &nodes, definitions: &definitions };
    // A view is there for others once it can be made itself; those that read others come behind them.
    let mut there: HashSet<u32> = oids.iter().copied().collect();
    let mut ordered = Vec::new();
    loop {
        let (ready, waiting): (Vec<Part>, Vec<Part>) =
            parts.into_iter().partition(|part| graph.lacks(part, &there).is_empty());
        if ready.is_empty() {
            ordered.extend(waiting.into_iter().map(|part| Part { lacks: graph.lacks(&part, &there), ..part }));
            break;
        }
        there.extend(ready.iter().filter(|part| part.kind == PartKind::View).map(|part| part.table));
        ordered.extend(ready);
        parts = waiting;
    }
    let mut needs = Needs { parts: ordered, ..Needs::default() };
    let (mut seen, mut order) = (HashSet::new(), Vec::new());
    for part in needs.parts.iter().filter(|part| part.lacks.is_empty()) {
        graph.walk((part.class, part.oid), &mut seen, &mut order);
    }
    let order: Vec<(Id, bool)> = order.into_iter().map(|id| (id, graph.relations(id).is_empty())).collect();
    for (id, free) in order {
        let Some(definition) = definitions.remove(&id) else { continue };
        if free { needs.before.push(definition) } else { needs.after.push(definition) }
    }
    Ok(needs)
}

fn part(row: &tokio_postgres::Row) -> Part {
    Part {
        kind: PartKind::from_word(row.get(0)),
        table: row.get(1),
        class: row.get(2),
        oid: row.get(3),
        name: row.get(4),
        lacks: Vec::new(),
    }
}

/// Everything that can be reached from the parts.
async fn nodes(source: &Client, tables: &[u32], parts: &[Part]) -> Result<HashMap<Id, Node>> {
    let (classes, oids): (Vec<u32>, Vec<u32>) = parts.iter().map(|part| (part.class, part.oid)).unzip();
    let sql = format!(
        "WITH RECURSIVE node(class, id) AS (
           SELECT class, id FROM unnest($2::oid[], $3::oid[]) p(class, id)
           UNION
           SELECT s.class, s.id FROM node n CROSS JOIN LATERAL ({STEP}) s)
         SELECT n.class, n.id, coalesce(pg_describe_object(n.class, n.id, 0), ''),
                coalesce(c.relkind IN ('r', 'p', 'v', 'm', 'f'), false),
                n.class IN ('pg_attrdef'::regclass, 'pg_constraint'::regclass, 'pg_rewrite'::regclass, 'pg_trigger'::regclass,
                            'pg_policy'::regclass)
                OR coalesce(c.relkind IN ('c', 'i', 'I', 't'), false)
                OR EXISTS (SELECT FROM pg_depend d WHERE d.classid = n.class AND d.objid = n.id
                              AND (d.deptype IN ('e', 'i') OR c.relkind = 'S' AND d.deptype = 'a')),
                ARRAY(SELECT s.class FROM ({STEP}) s ORDER BY s.class, s.id),
                ARRAY(SELECT s.id FROM ({STEP}) s ORDER BY s.class, s.id)
           FROM node n LEFT JOIN pg_class c ON n.class = 'pg_class'::regclass AND c.oid = n.id"
    );
    let rows = source.query(&sql, &[&tables, &classes, &oids]).await.doing("read what the tables need")?;
    let node = |row: &tokio_postgres::Row| {
        let (classes, ids): (Vec<u32>, Vec<u32>) = (row.get(5), row.get(6));
        let node = Node {
            described: row.get(2),
            relation: row.get(3),
            part: row.get(4),
            needs: classes.into_iter().zip(ids).collect(),
        };
        ((row.get(0), row.get(1)), node)
    };
    Ok(rows.iter().map(node).collect())
}

struct Graph<'a> {
    nodes: &'a HashMap<Id, Node>,
    definitions: &'a HashMap<Id, Definition>,
}

impl Graph<'_> {
    /// Everything that `id` needs, each behind what it needs itself.
    fn walk(&self, id: Id, seen: &mut HashSet<Id>, order: &mut Vec<Id>) {
        if !seen.insert(id) {
            return;
        }
        for need in self.nodes.get(&id).into_iter().flat_map(|node| &node.needs) {
            self.walk(*need, seen, order);
        }
        order.push(id);
    }

    fn reached(&self, id: Id) -> Vec<Id> {
        let mut order = Vec::new();
        self.walk(id, &mut HashSet::new(), &mut order);
        order.retain(|reached| *reached != id);
        order
    }

    /// The tables and views that are needed for it.
    fn relations(&self, id: Id) -> Vec<u32> {
        let relation = |id: &Id| self.nodes.get(id).is_some_and(|node| node.relation);
        self.reached(id).into_iter().filter(relation).map(|(_, oid)| oid).collect()
    }

    /// What the part needs that is not `there` and cannot be made. A table's own shape may need no other table:
    /// it would have to be there before.
    fn lacks(&self, part: &Part, there: &HashSet<u32>) -> Vec<String> {
        let mut lacks = BTreeSet::new();
        for id in self.reached((part.class, part.oid)) {
            let Some(node) = self.nodes.get(&id) else { continue };
            let fine = match (node.relation, part.kind) {
                (true, _) if id.1 == part.table => true,
                (true, PartKind::Shape) => false,
                (true, _) => there.contains(&id.1),
                (false, _) if node.part => true,
                (false, PartKind::Shape) => self.definitions.contains_key(&id) && self.relations(id).is_empty(),
                (false, _) => self.definitions.contains_key(&id),
            };
            if !fine {
                lacks.insert(node.described.clone());
            }
        }
        lacks.into_iter().collect()
    }
}
