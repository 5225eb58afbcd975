//! What hangs on the tables: triggers (made disabled), policies, views. Their definitions are read with the source's
//! schemas in the search_path and made with the target's schema before them: what PostgreSQL prints without a schema
//! then means the tenant's tables. Afterwards what it depends on is compared with the source, object by object; what
//! differs is not made.

use schemas::{MoveId, TableName};
use tokio_postgres::{Client, Transaction};

use super::super::quote::{ident, idents, table as qualified};
use super::super::{Doing, Error, Result, control};
use super::needs::{Needs, Part, PartKind};
use super::{objects, record};

/// Where the moved tables are in the target.
#[derive(Clone, Debug)]
pub struct Place {
    /// The tenant's schema; `None` where tables keep their schemas.
    pub schema: Option<String>,
    /// The moved tables, as the source names them, and the views over them.
    pub moved: Vec<TableName>,
}

/// Something that was not made: what, and why.
#[derive(Clone, Debug)]
pub struct LeftOut {
    /// The thing.
    pub object: String,
    /// Why, and what a person can do.
    pub cause: String,
}

impl Place {
    /// The target's name of a source table or view.
    pub fn name(&self, source: &TableName) -> TableName {
        TableName::new(self.schema.as_ref().unwrap_or(&source.schema), &source.name)
    }

    /// The search_path under which definitions are read on the source.
    pub fn reading(&self) -> String {
        match &self.schema {
            None => "SET search_path = pg_catalog".to_owned(),
            Some(_) => format!("SET search_path = {}", idents(self.source_schemas())),
        }
    }

    /// The one under which they are made, until the end of the transaction.
    pub fn making(&self) -> String {
        match &self.schema {
            None => "SET LOCAL search_path = pg_catalog".to_owned(),
            Some(schema) => {
                let path = std::iter::once(schema.as_str()).chain(self.source_schemas());
                format!("SET LOCAL search_path = {}", idents(path))
            }
        }
    }

    fn source_schemas(&self) -> impl Iterator<Item = &str> {
        let mut schemas: Vec<&str> = self.moved.iter().map(|table| table.schema.as_str()).collect();
        schemas.sort_unstable();
        schemas.dedup();
        schemas.into_iter()
    }
}

/// A part as it will be made.
#[derive(Debug)]
pub struct Piece {
    kind: PartKind,
    /// The table's, or the view's own name on the source.
    table: TableName,
    name: String,
    sql: String,
    owner: String,
    /// Of a policy: whom it is for; empty is everybody.
    roles: Vec<String>,
    needs: Vec<Address>,
}

/// `pg_identify_object_as_address`.
type Address = (String, Vec<String>, Vec<String>);

const DEFINITIONS: &str = "\
SELECT CASE $2 WHEN 'trigger' THEN (SELECT pg_get_triggerdef(oid, true) FROM pg_trigger WHERE oid = $1)
               WHEN 'policy' THEN (SELECT format(' AS %s FOR %s TO {} %s %s', CASE WHEN polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
                      CASE polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' ELSE 'ALL' END,
                      'USING (' || pg_get_expr(polqual, polrelid) || ')', 'WITH CHECK (' || pg_get_expr(polwithcheck, polrelid) || ')')
                 FROM pg_policy WHERE oid = $1)
               ELSE (SELECT format('%s AS %s', ' WITH (' || (SELECT string_agg(format('%I = %L', option_name, option_value), ', ')
                                     FROM pg_options_to_table(c.reloptions)) || ')', pg_get_viewdef(c.oid))
                       FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class WHERE r.oid = $1) END,
       n.nspname::text, c.relname::text, pg_get_userbyid(c.relowner)::text,
       ARRAY(SELECT pg_get_userbyid(role)::text FROM pg_policy p, unnest(p.polroles) role WHERE p.oid = $1 AND role <> 0)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $3";

/// Reads how the parts that can be made are made; the views are moved with the tables from here on. The
/// connection's search_path is another one afterwards.
pub async fn read(source: &Client, place: &mut Place, needs: &Needs) -> Result<Vec<Piece>> {
    source.batch_execute(&place.reading()).await.doing("read the source's definitions")?;
    let mut pieces = Vec::new();
    for part in needs.parts.iter().filter(|part| part.lacks.is_empty()) {
        let (word, catalog) = match part.kind {
            PartKind::Trigger => ("trigger", "pg_trigger"),
            PartKind::Policy => ("policy", "pg_policy"),
            PartKind::View => ("view", "pg_rewrite"),
            PartKind::Shape | PartKind::Materialized | PartKind::Rule => continue,
        };
        let piece = piece(source, part, word, catalog).await?;
        if part.kind == PartKind::View {
            place.moved.push(piece.table.clone());
        }
        pieces.push(piece);
    }
    Ok(pieces)
}

async fn piece(source: &Client, part: &Part, word: &str, catalog: &str) -> Result<Piece> {
    let doing = || format!("read {word} {}", part.name);
    let row = source.query_one(DEFINITIONS, &[&part.oid, &word, &part.table]).await.doing(doing())?;
    Ok(Piece {
        kind: part.kind,
        table: TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
        name: part.name.clone(),
        sql: row.get(0),
        owner: row.get(3),
        roles: row.get(4),
        needs: addresses(source, catalog, part.oid).await?,
    })
}

/// What an object depends on.
async fn addresses(client: &Client, catalog: &str, oid: u32) -> Result<Vec<Address>> {
    let sql = "SELECT DISTINCT a.type, a.object_names, a.object_args
                 FROM pg_depend d CROSS JOIN LATERAL pg_identify_object_as_address(d.refclassid, d.refobjid, d.refobjsubid) a
                WHERE d.classid = to_regclass('pg_catalog.' || $1) AND d.objid = $2 AND d.refobjid >= 16384 ORDER BY 1, 2, 3";
    let rows = client.query(sql, &[&catalog, &oid]).await.doing("read what a definition depends on")?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect())
}

/// Makes the pieces that are not there yet, each in a transaction of its own; those that cannot be made.
pub async fn make(client: &mut Client, id: MoveId, place: &Place, pieces: &[Piece]) -> Result<Vec<LeftOut>> {
    let mut left_out = Vec::new();
    for piece in pieces {
        let made = make_one(client, id, place, piece).await;
        match made {
            Ok(()) => {}
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => left_out.push(LeftOut { object: piece.described(), cause: error.cause.to_string() }),
        }
    }
    Ok(left_out)
}

impl Piece {
    fn described(&self) -> String {
        match self.kind {
            PartKind::Trigger => format!("trigger {} of {}", self.name, self.table),
            PartKind::Policy => format!("policy {} of {}", self.name, self.table),
            _ => format!("view {}", self.name),
        }
    }
}

async fn make_one(client: &mut Client, id: MoveId, place: &Place, piece: &Piece) -> Result<()> {
    let doing = || format!("make {}", piece.described());
    let target = place.name(&piece.table);
    let name = qualified(&target);
    let mut tx = client.transaction().await.doing(doing())?;
    tx.batch_execute(&place.making()).await.doing(doing())?;
    let (catalog, found) = match piece.kind {
        PartKind::Trigger => {
            ("pg_trigger", "SELECT oid FROM pg_trigger WHERE tgrelid = to_regclass($1) AND tgname = $2")
        }
        PartKind::Policy => {
            ("pg_policy", "SELECT oid FROM pg_policy WHERE polrelid = to_regclass($1) AND polname = $2")
        }
        _ => ("pg_rewrite", "SELECT oid FROM pg_rewrite WHERE ev_class = to_regclass($1) AND $2::text IS NOT NULL"),
    };
    if tx.query_opt(found, &[&name, &piece.name]).await.doing(doing())?.is_some() {
        return if piece.kind == PartKind::View { ours(&tx, id, &target).await } else { Ok(()) };
    }
    match piece.kind {
        PartKind::Trigger => {
            let disabled = format!("{}; ALTER TABLE {name} DISABLE TRIGGER {}", piece.sql, ident(&piece.name));
            tx.batch_execute(&disabled).await.doing(doing())?;
        }
        PartKind::Policy => {
            let Some(roles) = roles(&tx, &piece.roles).await? else { return Ok(()) };
            let sql = format!("CREATE POLICY {} ON {name}{}", ident(&piece.name), piece.sql.replacen("{}", &roles, 1));
            tx.batch_execute(&sql).await.doing(doing())?;
        }
        _ => {
            tx.batch_execute(&format!("CREATE VIEW {name}{}", piece.sql)).await.doing(doing())?;
            let oid = tx.query_one("SELECT to_regclass($1)::oid, (pg_identify_object('pg_class'::regclass, to_regclass($1), 0)).identity", &[&name]).await.doing(doing())?;
            record(&tx, id, "view", oid.get(1), oid.get(0)).await?;
            objects::give(&mut tx, "VIEW", &name, &piece.owner).await?;
        }
    }
    let oid: u32 = tx.query_one(found, &[&name, &piece.name]).await.doing(doing())?.get(0);
    let mut expected: Vec<Address> = piece.needs.iter().cloned().map(|address| place.moved_address(address)).collect();
    let mut made = addresses(tx.client(), catalog, oid).await?;
    expected.sort();
    made.sort();
    if expected != made {
        let why = "a name in its definition means something else in the target than on the source; make it by hand";
        return Err(Error::state(doing(), why));
    }
    tx.commit().await.doing(doing())
}

impl Place {
    /// The address of the counterpart in the target.
    fn moved_address(&self, (kind, mut names, args): Address) -> Address {
        if let [schema, name, ..] = names.as_slice() {
            let table = TableName::new(schema, name);
            if self.moved.contains(&table) {
                names[0] = self.name(&table).schema;
            }
        }
        (kind, names, args)
    }
}

/// A view of that name is this move's, or the move leaves its own out.
async fn ours(tx: &Transaction<'_>, id: MoveId, view: &TableName) -> Result<()> {
    let sql = "SELECT FROM carveout.objects WHERE move = $1 AND kind = 'view' AND oid = to_regclass($2)";
    match tx
        .query_opt(sql, &[&id.to_string(), &control::object_name(view)])
        .await
        .doing(format!("look for view {view}"))?
    {
        Some(_) => Ok(()),
        None => Err(Error::state(
            format!("make view {view}"),
            "something of that name is there already, which this move did not create",
        )),
    }
}

/// The roles of a policy that are on this server; `None` where none is: nobody could be meant by it.
async fn roles(tx: &Transaction<'_>, roles: &[String]) -> Result<Option<String>> {
    if roles.is_empty() {
        return Ok(Some("PUBLIC".to_owned()));
    }
    let there = tx.query("SELECT rolname::text FROM pg_roles WHERE rolname = ANY ($1) ORDER BY 1", &[&roles]).await;
    let there: Vec<String> = there.doing("look for roles")?.iter().map(|row| row.get(0)).collect();
    Ok((!there.is_empty()).then(|| idents(there.iter().map(String::as_str))))
}
