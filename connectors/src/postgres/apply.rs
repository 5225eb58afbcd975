//! Applies a tenant's transactions to its target: rows and checkpoint in one target transaction.
//!
//! Groups are applied as sets (`sets`); what sets cannot express, and anything that fails, is
//! replayed row by row in original order (`rows`). Either way the result is the same, and a change
//! that finds no row stops the lane.

mod changed;
mod claim;
mod fold;
mod hands;
mod rows;
mod sets;
mod sift;
mod target;
mod text;
mod whole;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use schemas::url::PgUrl;
use schemas::{Lsn, MoveId, TableName, TablePath};
use tokio_postgres::Client;

use super::pgoutput::{self, Message};
use super::quote::literal;
use super::{Doing, Error, Result, client, control, fence};
pub(super) use changed::Picked;
pub use changed::{Changed, Keys, Rows};
pub use claim::{Claim, Claims, key_bytes, key_value};
pub use hands::Origin;
use hands::{Arriving, Hands};
pub use target::Targets;

/// What a lane is handed: changes in commit order, then the end of the last whole transaction.
pub enum Piece {
    /// Changes in order.
    Changes(Vec<Entry>),
    /// The group ends here: everything before belongs to transactions that end at or before it.
    End(Lsn),
}

/// An undecoded pgoutput message: Relation, Insert, Update or Delete.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The message.
    pub message: Bytes,
    /// [`Claims`] of the lane, where the row may be another tenant's; otherwise empty.
    pub claims: Bytes,
    /// The first one of its transaction.
    pub first: bool,
}

/// Where the pieces of a group come from.
pub type Pieces<'a> = dyn FnMut() -> Result<Piece> + Send + 'a;

/// How a group is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Folded by key, a few statements per table.
    Sets,
    /// One statement per change, in original order.
    Rows,
}

/// Takes transactions and remembers, together with them, how far it has come.
#[allow(async_fn_in_trait, reason = "used inside this workspace only")]
pub trait Sink {
    /// Where do you stand: the end of the last transaction held.
    async fn position(&mut self) -> Result<Lsn>;
    /// Take these transactions. On an error nothing of them is held, or all (a lost answer to the
    /// commit): ask for the position again.
    async fn take(&mut self, mode: Mode, pieces: &mut Pieces<'_>) -> Result<Lsn>;
}

/// A tenant's schema or database.
pub struct PostgresSink {
    client: Client,
    id: MoveId,
    epoch: i64,
    lsn: Lsn,
    targets: Targets,
    statements: target::Statements,
    /// Row changes applied since the last commit; reported by [`PostgresSink::applied`].
    changes: u64,
    arriving: Arriving,
    /// The group in hand failed, and rows changed hands in it.
    careful: bool,
    /// The partitions that the target's rows belong to, by their numbers on the source.
    partitions: BTreeSet<(TableName, u32)>,
    /// Where the rows are noted that it changes, as long as somebody wants to know.
    changed: Weak<Changed>,
}

/// Which lane a sink belongs to.
#[derive(Clone, Debug)]
pub struct SinkPlan {
    /// The target.
    pub url: PgUrl,
    /// The move.
    pub id: MoveId,
    /// The epoch under which the lane was opened.
    pub epoch: i64,
    /// The tables that move, as the source names them, with the way to their rows' tenant.
    pub tables: Vec<(TableName, TablePath)>,
    /// The target's schema; `None` where tables keep the source's schemas.
    pub schema: Option<String>,
    /// Of a lane back: what each table is called at home.
    pub homes: HashMap<TableName, TableName>,
    /// The move whose fences the lane passes.
    pub passes: MoveId,
    /// What the source's types are called that people made ([`provision::objects::type_names`]): the numbers are
    /// others in another database.
    ///
    /// [`provision::objects::type_names`]: super::provision::objects::type_names
    pub types: Arc<HashMap<u32, String>>,
    /// The partitions that are known, by their numbers on the source.
    pub partitions: BTreeSet<(TableName, u32)>,
}

impl SinkPlan {
    /// The target's name of a source table.
    pub fn target_name(&self, table: &TableName) -> TableName {
        let schema = self.schema.as_ref().unwrap_or(&table.schema);
        self.homes.get(table).cloned().unwrap_or_else(|| TableName::new(schema, &table.name))
    }

    /// Lets what the session writes pass the move's fences.
    pub async fn pass(&self, client: &Client) -> Result<()> {
        let pass = format!("SET {} = {}", fence::LANE, literal(&self.passes.to_string()));
        client.batch_execute(&pass).await.doing("show the fences whose lane this is")
    }
}

/// No trigger and no foreign key fires in the session, but for fences; an error where the role may not say so.
pub async fn silence(client: &Client) -> Result<()> {
    client.batch_execute("SET session_replication_role = replica").await.doing("set session_replication_role")
}

/// Whether the role may say so. Changes nothing.
pub async fn may_be_silent(client: &Client) -> Result<bool> {
    let doing = "ask for the session's role";
    let tried = client.batch_execute("BEGIN; SET LOCAL session_replication_role = replica").await;
    client.batch_execute("ROLLBACK").await.doing(doing)?;
    match tried {
        Ok(()) => Ok(true),
        Err(error) if error.code().is_some_and(|code| code.code() == "42501") => Ok(false),
        Err(error) => Err(error).doing(doing),
    }
}

impl PostgresSink {
    /// Connects, reads the target's tables and the checkpoint.
    pub async fn open(plan: &SinkPlan) -> Result<PostgresSink> {
        let client = client::connect_with(&plan.url, &format!("apply {}", plan.id), client::APPLY).await?;
        // Where the role may set it, triggers and foreign keys that somebody added do not fire.
        // Where it may not, there are none of ours: they are made at cutover.
        if let Err(error) = silence(&client).await {
            tracing::debug!(%error, "applying as an ordinary session");
        }
        plan.pass(&client).await?;
        let targets = Targets::load(&client, plan).await?;
        let lsn = control::read_checkpoint(&client, plan.id, plan.epoch).await?;
        let statements = target::Statements::default();
        let (id, epoch) = (plan.id, plan.epoch);
        let mut sink = PostgresSink {
            client,
            id,
            epoch,
            lsn,
            targets,
            statements,
            changes: 0,
            arriving: Arriving::new(),
            careful: false,
            partitions: plan.partitions.clone(),
            changed: Weak::new(),
        };
        for (table, name) in control::read_arriving(&sink.client, id).await? {
            if let Some(table) =
                plan.tables.iter().map(|(known, _)| known).find(|known| control::copied_name(known) == table)
            {
                sink.arriving.entry(table.clone()).or_default().insert(hands::read(name));
            }
        }
        Ok(sink)
    }

    /// From here on the rows that it changes are noted there.
    pub fn note(&mut self, changed: Weak<Changed>) {
        self.changed = changed;
    }

    /// Whether rows have arrived that are not in the target yet.
    pub fn expects(&self) -> bool {
        !self.arriving.is_empty()
    }

    /// Reads the rows that arrived, with all that hangs on them. The target must hold exactly what the snapshot shows.
    /// Returns how many.
    pub async fn fetch(&mut self, from: &Origin) -> Result<u64> {
        self.client.batch_execute("BEGIN; SET CONSTRAINTS ALL DEFERRED").await.doing("begin to fetch rows")?;
        match self.fetch_open(from).await {
            Ok(rows) => {
                self.client.batch_execute("COMMIT").await.doing("commit rows that arrived")?;
                self.arriving.clear();
                Ok(rows)
            }
            Err(error) => {
                if let Err(lost) = self.client.batch_execute("ROLLBACK").await.doing("roll back") {
                    tracing::debug!(%lost, "the connection went with the rows that arrived");
                }
                Err(error)
            }
        }
    }

    async fn fetch_open(&mut self, from: &Origin) -> Result<u64> {
        self.note_trees(self.arriving.keys());
        let mut session = Session { client: &self.client, statements: &mut self.statements };
        let rows = hands::fetch(&mut session, &self.targets, &self.arriving, from).await;
        // A partition came that nobody has looked at yet: it is made when this is tried again.
        let rows = rows.map_err(|error| match error.lacks_partition() {
            true => Error::connection("read rows that came", error),
            false => error,
        })?;
        control::forget_arriving(&self.client, self.id).await?;
        control::advance_checkpoint(&self.client, self.id, self.epoch, self.lsn, self.lsn).await?;
        Ok(rows)
    }

    /// Of rows that come or go with all that hangs on them no more is known than their tables.
    fn note_trees<'t>(&self, tops: impl Iterator<Item = &'t TableName>) {
        if let Some(changed) = self.changed.upgrade() {
            changed.note_all(tops.flat_map(|top| self.targets.tree(top)));
        }
    }

    /// Row changes of the group that was taken last.
    pub fn applied(&self) -> u64 {
        self.changes
    }

    async fn take_open(&mut self, mode: Mode, pieces: &mut Pieces<'_>, hands: &mut Hands) -> Result<Lsn> {
        self.changes = 0;
        let end = loop {
            match pieces()? {
                Piece::End(end) => break end,
                Piece::Changes(messages) => {
                    let changes = self.decode(&messages, hands)?;
                    if let Some(changed) = self.changed.upgrade() {
                        changed.note(changes.iter().map(|(change, _)| (&*change.table, &change.op)));
                    }
                    let mut session = Session { client: &self.client, statements: &mut self.statements };
                    let changes = sift::sift(&mut session, changes, &self.arriving, hands).await?;
                    self.changes += changes.len() as u64;
                    match mode {
                        Mode::Sets => sets::apply(&mut session, &changes).await?,
                        Mode::Rows => rows::apply(&mut session, &changes).await?,
                    }
                }
            }
        };
        if end < self.lsn {
            return Err(Error::state("apply a group", format!("it ends at {end}, before the checkpoint {}", self.lsn)));
        }
        self.note_trees(hands.leaving.iter().map(|(table, _)| &table.source));
        let mut session = Session { client: &self.client, statements: &mut self.statements };
        self.changes += hands.delete(&mut session, &self.targets).await?;
        for (table, names) in &hands.arriving {
            for name in names {
                control::write_arriving(&self.client, self.id, table, &hands::written(name)).await?;
            }
        }
        control::advance_checkpoint(&self.client, self.id, self.epoch, self.lsn, end).await?;
        Ok(end)
    }

    /// Decodes the messages; Relation messages update what is known of the source's tables.
    fn decode<'a>(
        &mut self,
        entries: &'a [Entry],
        hands: &mut Hands,
    ) -> Result<Vec<(target::Change<'a>, Option<Claims>)>> {
        let mut changes = Vec::with_capacity(entries.len());
        for Entry { message, claims, first } in entries {
            let (table, op) = match pgoutput::decode(message)? {
                Message::Relation(relation) => {
                    self.targets.learn(relation);
                    continue;
                }
                Message::Truncate { relations, .. } => {
                    self.note_partition(&relations, hands)?;
                    continue;
                }
                Message::Insert { relation, new } => self.targets.insert(relation, new)?,
                Message::Update { relation, old, new } => self.targets.update(relation, old, new)?,
                Message::Delete { relation, old } => self.targets.delete(relation, old)?,
                other => return Err(Error::protocol("apply a change", format!("unexpected {other:?} in a spool"))),
            };
            let claims = if claims.is_empty() { None } else { Some(Claims::decode(claims)?) };
            changes.push((target::Change { table, op, first: *first }, claims));
        }
        Ok(changes)
    }
}

impl Sink for PostgresSink {
    async fn position(&mut self) -> Result<Lsn> {
        self.lsn = control::read_checkpoint(&self.client, self.id, self.epoch).await?;
        Ok(self.lsn)
    }

    async fn take(&mut self, mode: Mode, pieces: &mut Pieces<'_>) -> Result<Lsn> {
        // Deferrable constraints are checked at COMMIT, as they may have been on the source.
        let begin = "BEGIN; SET CONSTRAINTS ALL DEFERRED";
        self.client.batch_execute(begin).await.doing("begin a group")?;
        let careful = self.careful || !self.arriving.is_empty();
        let mut hands = Hands { careful, ..Hands::default() };
        let taken = self.take_open(mode, pieces, &mut hands).await;
        self.careful = taken.is_err() && hands.careful;
        match taken {
            Ok(end) => {
                self.client.batch_execute("COMMIT").await.doing("commit a group")?;
                self.lsn = end;
                for (table, names) in hands.arriving {
                    self.arriving.entry(table).or_default().extend(names);
                }
                Ok(end)
            }
            Err(error) => {
                if let Err(lost) = self.client.batch_execute("ROLLBACK").await.doing("roll a group back") {
                    tracing::debug!(%lost, "the connection went with the group");
                }
                Err(error)
            }
        }
    }
}

/// What applying a piece needs: the connection inside its transaction, and the statements.
struct Session<'s> {
    client: &'s Client,
    statements: &'s mut target::Statements,
}
