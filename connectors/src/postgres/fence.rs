//! What makes one tenant's writes wait while it is cut over, and refuses them afterwards, inside the database.
//!
//! Triggers with a short condition on the tenant's key call one function of the move. It takes a shared advisory lock and
//! then reads the control row (`carveout.fence`). Who has the exclusive lock holds the tenant's writers; nothing they
//! do can be committed behind what is committed meanwhile. The forms that fail are in docs/architecture.md, "The fence".

mod install;

use std::time::{Duration, Instant};

use schemas::status::Route;
use schemas::url::PgUrl;
use schemas::{Lsn, MoveId, TenantId};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, SimpleQueryMessage};

use super::policy::Owned;
use super::quote::literal;
use super::snapshot::parse_lsn;
use super::spare::{self, Spare};
use super::{Doing, Error, Result};

use install::wanting;
pub use install::{install, remove};

/// SQLSTATE of a write that is refused because its tenant does not live here.
pub const REFUSED: &str = "TM001";
/// The setting by which a lane says to its move's fences that it is it.
pub const LANE: &str = "carveout.lane";
/// The class of the advisory locks of fences; the number is the control row's `lock_key`.
const CLASS: i32 = 77_778;
/// The same for who changes a fence's triggers.
const CHANGES: i32 = 77_779;
/// Serializes whoever gives out a `lock_key`.
const CREATE_LOCK: &str = "SELECT pg_advisory_xact_lock(77777, 2)";
/// How long the first attempt to get the lock waits: newcomers queue behind it, on other tenants' locks they hold too. Where
/// transactions that overlap always take longer it would never be got: as time goes by it waits for a fifth of what has passed. Between two
/// attempts is a fifth of that.
const ATTEMPT: Duration = Duration::from_millis(100);
/// For which anything here waits for a lock at most: well below a server's `deadlock_timeout`.
const AT_MOST: Duration = Duration::from_millis(400);
/// The server's word for a lock that was not got in time.
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// Which end of a move the fence stands at. Both may be in one database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Where the tenant comes from.
    Source,
    /// Where it goes.
    Target,
}

impl End {
    pub(super) fn name(self) -> &'static str {
        match self {
            End::Source => "source",
            End::Target => "target",
        }
    }
}

/// The fence of a move at one end.
#[derive(Clone, Debug)]
pub struct Fence {
    /// The move.
    pub id: MoveId,
    /// The name of the state directory that the move belongs to.
    pub owner: String,
    /// The tenant.
    pub tenant: TenantId,
    /// The end.
    pub end: End,
    /// The end where the tenant lives when the fence is made: open there, shut at the other one.
    pub lives: End,
}

/// The control row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Whether the tenant may write here.
    pub open: bool,
    /// Raised by each flip.
    pub epoch: i64,
    lock_key: i32,
}

impl Row {
    /// The function that the triggers call, and what their names begin with. Moves of two daemons may have one number.
    fn function(self) -> String {
        format!("fence_{}", self.lock_key)
    }
}

impl Fence {
    /// The control row; `None` where it was not made. An error where it is of another move.
    pub async fn read(&self, client: &Client) -> Result<Option<Row>> {
        self.row(&client.simple_query(&self.query()).await.doing(self.doing("read"))?)
    }

    /// Reads the control row. Writers may be waiting, so it goes in one message with what comes before it.
    fn query(&self) -> String {
        format!(
            "SELECT state = 'open', epoch, lock_key, (move, owner) = ({}, {}), move, owner
               FROM carveout.fence WHERE tenant = {} AND side = {}",
            literal(&self.id.to_string()),
            literal(&self.owner),
            literal(&self.tenant.0),
            literal(self.end.name())
        )
    }

    /// The control row, from the answer to a message that ends with [`Fence::query`].
    fn row(&self, answer: &[SimpleQueryMessage]) -> Result<Option<Row>> {
        let last = answer.iter().rev().find(|message| !matches!(message, SimpleQueryMessage::CommandComplete(_)));
        let Some(SimpleQueryMessage::Row(row)) = last else { return Ok(None) };
        let text = |place| row.get(place).unwrap_or_default();
        if text(3) != "t" {
            let (id, owner) = (text(4), text(5));
            let why = format!(
                "carveout.fence has one of move {id} of another state directory ({owner}); cancel that move there"
            );
            return Err(Error::state(self.doing("read"), why));
        }
        match (text(1).parse(), text(2).parse()) {
            (Ok(epoch), Ok(lock_key)) => Ok(Some(Row { open: text(0) == "t", epoch, lock_key })),
            _ => Err(Error::protocol(self.doing("read"), "the server's answer is no number")),
        }
    }

    /// Makes the control row where it is missing.
    async fn create(&self, client: &mut Client) -> Result<Row> {
        let doing = || self.doing("make");
        let tx = client.transaction().await.doing(doing())?;
        tx.batch_execute(CREATE_LOCK).await.doing(doing())?;
        // A resolver keeps the highest epoch that it has seen: a later move of the tenant goes on from there.
        let sql = "INSERT INTO carveout.fence (tenant, side, move, owner, state, lock_key, epoch)
                   SELECT $1, $2, $3, $4, $5, coalesce(max(lock_key), 0) + 1,
                          coalesce((SELECT r.epoch FROM carveout.tenant_routes r WHERE r.tenant = $1), 1) FROM carveout.fence
                       ON CONFLICT (tenant, side) DO NOTHING";
        let state = state(self.end == self.lives);
        let values: [&(dyn ToSql + Sync); 5] =
            [&self.tenant.0, &self.end.name(), &self.id.to_string(), &self.owner, &state];
        tx.execute(sql, &values).await.doing(doing())?;
        tx.commit().await.doing(doing())?;
        self.read(client).await?.ok_or_else(|| Error::state(self.doing("make"), "its row in carveout.fence is gone"))
    }

    /// Holds the tenant's writers on a connection of its own: they queue until it is released. Nobody has to: when the
    /// connection is gone, or has been silent for `deadline`, the server does. Waits for the tenant's open
    /// transactions, at most for `patience`.
    pub async fn hold(&self, url: &PgUrl, deadline: Duration, patience: Duration) -> Result<Held> {
        self.hold_by(self.connect(url).await?, deadline, patience).await
    }

    /// A connection to hold it by.
    pub async fn connect(&self, url: &PgUrl) -> Result<Spare> {
        spare::take(url, &format!("fence {}", self.id)).await
    }

    /// The same by a connection that is there already.
    pub async fn hold_by(&self, client: Spare, deadline: Duration, patience: Duration) -> Result<Held> {
        let row = self.read(&client).await?.ok_or_else(|| Error::state(self.doing("hold"), "it is not there"))?;
        let began = Instant::now();
        let answer = loop {
            let wait = (began.elapsed() / 5).clamp(ATTEMPT, AT_MOST);
            let begin = format!(
                "BEGIN; SET LOCAL lock_timeout = {}; SET LOCAL idle_in_transaction_session_timeout = {}; \
                 SELECT pg_advisory_xact_lock({CLASS}, {}); {}",
                wait.as_millis(),
                deadline.as_millis(),
                row.lock_key,
                self.query()
            );
            let error = match client.simple_query(&begin).await.doing(self.doing("hold")) {
                Ok(answer) => break answer,
                Err(error) => error,
            };
            client.batch_execute("ROLLBACK").await.doing(self.doing("hold"))?;
            match error.sqlstate() {
                Some(LOCK_NOT_AVAILABLE) if began.elapsed() < patience => tokio::time::sleep(wait / 5).await,
                Some(LOCK_NOT_AVAILABLE) => return Err(self.busy(&client, row).await),
                _ => return Err(error),
            }
        };
        // What it read before the lock may be old.
        match self.row(&answer)? {
            Some(now) if now.lock_key == row.lock_key => Ok(Held { client, fence: self.clone(), row: now }),
            _ => Err(Error::state(self.doing("hold"), "another daemon has changed it")),
        }
    }

    /// The tables whose triggers are not as they have to be.
    pub async fn wanting(&self, client: &Client, tables: &[Owned]) -> Result<Vec<String>> {
        let row = self.read(client).await?.ok_or_else(|| Error::state(self.doing("look at"), "it is not there"))?;
        wanting(client, row, tables).await
    }

    /// Who keeps the lock from us.
    async fn busy(&self, client: &Client, row: Row) -> Error {
        let sql = "SELECT coalesce(string_agg(DISTINCT coalesce(l.pid::text, 'a prepared transaction'), ', '), 'nobody any more')
                     FROM pg_locks l WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
                      AND l.classid = $1::int::oid AND l.objid = $2::int::oid
                      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        let holders = match client.query_one(sql, &[&CLASS, &row.lock_key]).await {
            Ok(row) => row.get(0),
            Err(_) => "not known".to_owned(),
        };
        let why = format!("transactions of the tenant stay open (pid: {holders}); end them, or try again later");
        Error::connection(self.doing("hold"), why)
    }

    fn doing(&self, what: &str) -> String {
        format!("{what} the fence of {} at the {}", self.id, self.end.name())
    }
}

/// The tenant's writers are held. Dropped, they go on.
pub struct Held {
    client: Spare,
    fence: Fence,
    row: Row,
}

impl Held {
    /// Commits a message behind everything that the tenant has committed: none can follow it while this is held. On
    /// another connection. Returns a position that the stream passes only with all of that.
    pub async fn barrier(&self, client: &Client) -> Result<Lsn> {
        let sql = "SELECT pg_logical_emit_message(true, 'carveout.barrier', $1)::text";
        let said = format!("{}:{}", self.fence.id, self.row.epoch);
        let said = client.query_typed_one(sql, &[(&said, Type::TEXT)]).await;
        let row = said.doing(self.fence.doing("write the barrier of"))?;
        parse_lsn(row.get(0))
    }

    /// Whether the server still holds them. Restarts its count of silence.
    pub async fn is_held(&self) -> bool {
        self.client.batch_execute("SELECT").await.is_ok()
    }

    /// The tables whose triggers are not as they have to be.
    pub async fn wanting(&self, tables: &[Owned]) -> Result<Vec<String>> {
        wanting(&self.client, self.row, tables).await
    }

    /// The control row as it is while they are held.
    pub fn row(&self) -> Row {
        self.row
    }

    /// Opens the fence or shuts it, with its route, and lets the writers go: on, or to be told where the tenant is. An
    /// error may mean that the answer was lost: whoever holds the fence again knows. The connection is of no more use.
    pub async fn turn(self, open: bool, route: &Route) -> Result<Spare> {
        // Writers wait for the answer, so it is one message. Where no row is turned nothing is committed but that they go on.
        let sql = format!(
            "WITH turned AS (
               UPDATE carveout.fence SET state = {state}, epoch = {epoch}, changed_at = clock_timestamp()
                WHERE tenant = {tenant} AND side = {side} AND state <> {state} AND epoch = {before} RETURNING tenant),
             routed AS (
               INSERT INTO carveout.tenant_routes (tenant, isolation, database, schema, state, epoch)
               SELECT tenant, {isolation}, {database}, {schema}, 'open', {epoch} FROM turned
                   ON CONFLICT (tenant) DO UPDATE SET (isolation, database, schema, state, epoch, changed_at)
                      = (excluded.isolation, excluded.database, excluded.schema, 'open', excluded.epoch, clock_timestamp()))
             SELECT pg_notify('carveout_routes', tenant) FROM turned; COMMIT",
            state = literal(state(open)),
            epoch = route.epoch,
            before = self.row.epoch,
            tenant = literal(&self.fence.tenant.0),
            side = literal(self.fence.end.name()),
            isolation = literal(&route.isolation),
            database = literal(&route.database),
            schema = route.schema.as_deref().map_or("NULL".to_owned(), literal),
        );
        let doing = || self.fence.doing(if open { "open" } else { "shut" });
        let answer = self.client.simple_query(&sql).await.doing(doing())?;
        match answer.iter().filter(|message| matches!(message, SimpleQueryMessage::Row(_))).count() {
            1 => Ok(self.client),
            _ => Err(Error::state(doing(), "its row in carveout.fence was changed by somebody else")),
        }
    }

    /// Lets the writers go on, as if nothing had been.
    pub async fn release(self) -> Result<()> {
        self.client.batch_execute("ROLLBACK").await.doing(self.fence.doing("release"))
    }
}

/// How the control row says it.
fn state(open: bool) -> &'static str {
    if open { "open" } else { "shut" }
}
