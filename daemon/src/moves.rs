//! Moves: what one is, and the driver that takes it from phase to phase.
//!
//! Every phase is stored before its first side effect, and every step can be run twice.

mod certificate;
pub mod complete;
mod copy;
pub mod cutover;
mod driver;
pub mod hooks;

mod keys;
mod parts;
mod progress;
mod recheck;
pub mod reverse;
mod sequences;
mod stages;

pub mod verify;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use connectors::postgres::apply::{Changed, SinkPlan};
use connectors::postgres::control::Origin;
use connectors::postgres::policy::{Owned, Path};
use connectors::postgres::provision::parts::{LeftOut, Place};
use connectors::postgres::{self, catalog, policy, spare};
use schemas::config::{Config, Target};
use schemas::event::MoveEvent;
use schemas::phase::Event;
use schemas::record::{AckRecord, Fault, MoveRecord, OwnServer, Published};
use schemas::url::{BadUrl, PgUrl};
use schemas::{Lsn, MoveId, Phase, TableName, TablePath};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::clock;
use crate::events::Events;
use crate::lane::{LaneCommand, LaneMeter};
use crate::load::Gate;
use crate::metrics::{Metrics, Numbers};
use crate::pipeline::PipelineHandle;
use crate::router::TableRoute;
use crate::spool::SpoolState;
use crate::store::{Store, StoreError};
use crate::throttle::Throttle;
use certificate::Certificate;
pub use driver::drive;
use reverse::Reverse;

const CANCEL: &str = "cancel the move";
/// After a start every lane has questions to the source: so many ask at a time.
pub const CATALOG_READERS: usize = 4;

/// What every move shares.
pub struct Context {
    /// The configuration.
    pub config: Config,
    /// The daemon's records.
    pub store: Store,
    /// The one pipeline.
    pub pipeline: PipelineHandle,
    /// Who the source is.
    pub base: AckRecord,
    /// The name of the state directory.
    pub state: String,
    /// Its version, as `server_version_num`.
    pub server_version: u32,
    /// Connections to targets, for lanes and copies.
    pub target_connections: Arc<Semaphore>,
    /// Moves that hold a snapshot at the same time.
    pub copying: Arc<Semaphore>,
    /// Tables that are copied at the same time.
    pub copy_tables: Arc<Semaphore>,
    /// Lanes that ask the source's catalogs at the same time, [`CATALOG_READERS`] at most.
    pub catalogs: Semaphore,
    /// `limits.copy_rows_per_second`.
    pub throttle: Arc<Throttle>,
    /// `limits.source`.
    pub gate: Arc<Gate>,
    /// What the source publishes of the moves' tables, and how often that has been looked at.
    pub published: watch::Sender<(u64, Published)>,
    /// What is measured.
    pub metrics: Arc<Metrics>,
    /// Where what happens is told.
    pub events: Events,
    /// Of a lane back with a pipeline of its own: what reads the source.
    pub home: Option<Arc<Context>>,
}

impl Context {
    /// Where a move's spool lies.
    pub fn spool_dir(&self, id: MoveId) -> PathBuf {
        self.config.state_dir.join("spool").join(id.to_string())
    }

    /// What reads the source.
    pub fn home(&self) -> &Context {
        self.home.as_deref().unwrap_or(self)
    }

    /// The same for another pipeline, which reads what `config` says.
    pub fn reading(
        self: &Arc<Self>,
        config: Config,
        pipeline: PipelineHandle,
        base: AckRecord,
        server_version: u32,
    ) -> Context {
        Context {
            store: self.store.clone(),
            state: self.state.clone(),
            target_connections: Arc::clone(&self.target_connections),
            copying: Arc::clone(&self.copying),
            copy_tables: Arc::clone(&self.copy_tables),
            catalogs: Semaphore::new(CATALOG_READERS),
            throttle: Arc::clone(&self.throttle),
            gate: Arc::clone(&self.gate),
            published: watch::Sender::new((0, Published::default())),
            metrics: Arc::clone(&self.metrics),
            events: self.events.clone(),
            home: Some(Arc::clone(self)),
            config,
            pipeline,
            base,
            server_version,
        }
    }

    /// Where a tenant goes, by the configuration as it is now, and server and names as they were planned. A lane back
    /// goes to the source.
    pub fn target(&self, record: &MoveRecord) -> Result<Target, StepError> {
        if record.back.is_some() {
            let url = self.home().config.source.url.clone();
            let database = url.database().unwrap_or_default().to_owned();
            return Ok(Target { url, database, schema: None, admin_url: None });
        }
        let wrong = |message: String, next: &str| {
            StepError::Fault(Fault::new("configuration", record.id.to_string(), message, next))
        };
        let tenant = &record.tenant.0;
        let found = match record.server.as_ref().and_then(|server| server.named.as_ref()) {
            Some(named) => {
                let url: PgUrl = named.url.parse().map_err(|error: BadUrl| wrong(error.to_string(), CANCEL))?;
                self.config.target_at(tenant, record.to, Some(&url.or_password_file(named.password_file.as_ref())))
            }
            None => self.config.target(tenant, record.to),
        };
        let target = found.map_err(|error| wrong(error.to_string(), "correct tenant_strategy.database_config"))?;
        if !self.same_server(record, &target) {
            let planned = record.server.as_ref().map_or("no server of its own".to_owned(), OwnServer::to_string);
            let message = format!(
                "database_url of tenant_overrides.{tenant} has changed: the move was planned with {planned}, and its rows are there"
            );
            let next = "put it back and start the daemon again; to go elsewhere, cancel the move before it is changed";
            return Err(wrong(message, next));
        }
        if target.database != record.database || target.schema != record.schema {
            let message = "the configuration's name patterns have changed since the move was planned".to_owned();
            return Err(wrong(message, "put the patterns back, or cancel the move first"));
        }
        Ok(target)
    }

    /// Whether the configuration still means the server that the move was planned with.
    fn same_server(&self, record: &MoveRecord, target: &Target) -> bool {
        let tenant = record.tenant.0.as_str();
        let declared = self.config.overrides().any(|(name, _, own)| own && name == tenant);
        match &record.server {
            None => !declared,
            Some(OwnServer { named: Some(_), .. }) => true,
            Some(own) => declared && (&own.host, own.port) == (&target.url.host, target.url.port),
        }
    }

    /// The stream that checkpoints count in.
    pub fn origin(&self) -> Origin {
        let AckRecord { slot, system_id, timeline, .. } = self.base.clone();
        Origin { slot, system_id, timeline, state: self.state.clone() }
    }

    /// What a lane reads: the tenant's rows of the shared tables; for a lane back, and for a tenant that has a schema of its own
    /// already, tables of which every row is the tenant's.
    pub async fn read_by(&self, record: &MoveRecord) -> Result<Vec<Owned>, StepError> {
        let Some(own) = own_tables(record) else { return self.tables(&record.tables).await };
        let source = spare::take(&self.config.source.url, "plan").await?;
        let whole = reverse::whole(&source, own).await?;
        source.keep();
        Ok(whole)
    }

    /// What the two sides of a lane have in common, as it is where the tenant came from.
    pub async fn at_home(&self, record: &MoveRecord) -> Result<Vec<Owned>, StepError> {
        match &record.back {
            None => self.read_by(record).await,
            Some(back) => {
                let forward = MoveRecord { tables: back.homes.clone(), back: None, ..record.clone() };
                Box::pin(self.home().read_by(&forward)).await
            }
        }
    }

    /// The tables of a move as the source has them now.
    pub async fn tables(&self, names: &[TableName]) -> Result<Vec<Owned>, StepError> {
        let source = spare::take(&self.config.source.url, "plan").await?;
        let found = policy::resolve(catalog::tables(&source).await?, &self.config.tenancy);
        source.keep();
        let owned: Vec<Owned> = found.owned.into_iter().filter(|owned| names.contains(&owned.table.name)).collect();
        match names.iter().find(|name| !owned.iter().any(|owned| &owned.table.name == *name)) {
            None => Ok(owned),
            Some(gone) => {
                let finding = found.findings.into_iter().find(|finding| finding.object == gone.to_string());
                let cause = finding.map_or("it is gone or excluded".to_owned(), |finding| finding.cause);
                let next = "undo the change, or cancel the move and move again";
                Err(StepError::Fault(Fault::new("table_changed", gone.to_string(), cause, next)))
            }
        }
    }
}

/// How the rows of these tables are routed.
pub fn routes(owned: &[Owned]) -> Vec<(TableName, TableRoute)> {
    let route = |owned: &Owned| TableRoute {
        path: owned.route(),
        null_tenant: owned.null_tenant,
        row_key: owned.table.best_key().map(|key| key.columns.clone()).unwrap_or_default(),
        may_outlive: matches!(&owned.path, Path::Via(via) if via.key.may_outlive),
        types: owned.key_types(),
    };
    owned.iter().map(|owned| (owned.table.name.clone(), route(owned))).collect()
}

/// The lane's spool, as long as it is open in the pipeline.
#[derive(Clone)]
pub struct SpoolLink {
    /// Shared with the writing end.
    pub state: Arc<SpoolState>,
    /// The end of the last transaction sealed before the spool's first segment.
    pub prev_end: Lsn,
    /// The acknowledge record says that spool and target reached this; zero for a new spool.
    pub must_hold: Lsn,
}

/// A move while the daemon runs.
pub struct Moving {
    record: Mutex<MoveRecord>,
    /// Phase and whether a fault stands beside it, for those who wait.
    phase: watch::Sender<(Phase, bool)>,
    spool: Mutex<Option<SpoolLink>>,
    lane: Mutex<Option<mpsc::Sender<LaneCommand>>>,
    /// What the lane has done.
    pub meter: Arc<LaneMeter>,
    /// Rows copied so far in this run.
    pub rows_copied: AtomicU64,
    copies: progress::Copies,
    events: Events,
    /// Whether both sides are being compared now.
    pub verifying: AtomicBool,
    /// Whether a cutover is rehearsed now.
    pub rehearsing: AtomicBool,
    /// Held by whoever cuts it over, or rehearses that, or takes away what that left.
    pub cutover: tokio::sync::Mutex<()>,
    /// Held by who is asked for that, until its driver is at what comes then.
    turn: tokio::sync::Mutex<()>,
    reverse: Mutex<Option<Arc<Reverse>>>,
    earlier: OnceLock<Arc<Moving>>,
    /// Rows that the last comparison in this run found different.
    differences: Mutex<Option<u64>>,
    certificate: Mutex<Option<Certificate>>,
    /// Where the next lane notes from its beginning.
    noting: Mutex<Weak<Changed>>,
    /// What was not made in the target, and why, as far as this run knows.
    left_out: Mutex<Vec<String>>,
    /// Set to end the driver and the lane.
    pub stop: watch::Sender<bool>,
}

impl Moving {
    /// A move as it was stored.
    pub fn new(record: MoveRecord, events: Events) -> Moving {
        Moving {
            copies: progress::Copies::default(),
            events,
            rows_copied: AtomicU64::new(record.rows_copied),
            phase: watch::Sender::new((record.phase, record.fault.is_some())),
            record: Mutex::new(record),
            spool: Mutex::new(None),
            lane: Mutex::new(None),
            meter: Arc::default(),
            verifying: AtomicBool::new(false),
            rehearsing: AtomicBool::new(false),
            cutover: tokio::sync::Mutex::new(()),
            turn: tokio::sync::Mutex::new(()),
            reverse: Mutex::new(None),
            earlier: OnceLock::new(),
            differences: Mutex::new(None),
            certificate: Mutex::new(None),
            noting: Mutex::default(),
            left_out: Mutex::new(Vec::new()),
            stop: watch::Sender::new(false),
        }
    }

    /// The record as it stands.
    pub fn record(&self) -> MoveRecord {
        lock(&self.record).clone()
    }

    /// Whether both sides were equal not long ago, and it is known what has changed since.
    pub fn is_certified(&self) -> bool {
        lock(&self.certificate).as_ref().is_some_and(Certificate::counts)
    }

    /// Whether hardly anything has changed since.
    pub fn is_ready(&self) -> bool {
        lock(&self.certificate).as_ref().is_some_and(Certificate::is_fresh)
    }

    /// Takes away a comparison that does not count any more, or for which too much would have to be noted: the lane need not.
    pub fn forget_noted(&self, room: &mut usize) {
        lock(&self.certificate).take_if(|certificate| !certificate.fits(room) && !certificate.is_in_use());
    }

    /// The comparison for which the lane notes has come to this.
    fn certify(&self, certificate: &Certificate) {
        let mut known = lock(&self.certificate);
        if let Some(known) = known.as_mut().filter(|known| Arc::ptr_eq(known.changed(), certificate.changed())) {
            *known = certificate.clone();
        }
    }

    /// Both sides are at rest and equal: what the next lane applies is noted from its beginning.
    fn begin_certified(&self, certificate: Certificate) {
        *lock(&self.noting) = Arc::downgrade(certificate.changed());
        *lock(&self.certificate) = Some(certificate);
    }

    /// The lane was stopped, and has noted there all that the target holds: what was compared goes on to count with the next one.
    fn keep_certificate(&self, store: &Store, noted: &Weak<Changed>) -> Result<(), StoreError> {
        let (Some(certificate), Some(link)) = (lock(&self.certificate).take(), self.spool()) else { return Ok(()) };
        // Another one's lane has ended otherwise.
        if !Weak::ptr_eq(noted, &Arc::downgrade(certificate.changed())) {
            return Ok(());
        }
        let Some(kept) = certificate.kept(link.state.applied()) else { return Ok(()) };
        self.update(store, |record| record.noted = Some(kept))
    }

    /// The lane goes on, with a target that stands here.
    fn certified_again(&self, store: &Store, lsn: Lsn) -> Result<(), StoreError> {
        // Whoever takes back what was compared looks here when the record says so.
        let mut known = lock(&self.certificate);
        let mut kept = None;
        if self.record().noted.is_some() {
            // It holds for once.
            self.update(store, |record| kept = record.noted.take())?;
        }
        if let Some(certificate) = kept.and_then(|kept| Certificate::of(kept, lsn)) {
            *lock(&self.noting) = Arc::downgrade(certificate.changed());
            *known = Some(certificate);
        }
        Ok(())
    }

    /// The spool, while the lane is open.
    pub fn spool(&self) -> Option<SpoolLink> {
        lock(&self.spool).clone()
    }

    /// The lane was opened, or closed.
    pub fn set_spool(&self, link: Option<SpoolLink>) {
        *lock(&self.spool) = link;
    }

    /// The way to the running lane.
    pub fn lane(&self) -> Option<mpsc::Sender<LaneCommand>> {
        lock(&self.lane).clone()
    }

    fn set_lane(&self, commands: Option<mpsc::Sender<LaneCommand>>) {
        *lock(&self.lane) = commands;
    }

    /// The move that this one goes on from, see [`MoveRecord::after`].
    pub fn earlier(&self) -> Option<&Arc<Moving>> {
        self.earlier.get()
    }

    /// It is known.
    pub fn set_earlier(&self, earlier: Option<Arc<Moving>>) {
        if let Some(earlier) = earlier {
            self.earlier.get_or_init(|| earlier);
        }
    }

    /// The lane back, while it is open.
    pub fn reverse(&self) -> Option<Arc<Reverse>> {
        lock(&self.reverse).clone()
    }

    /// The lane back, while it is what runs.
    pub fn way_back(&self) -> Option<Arc<Reverse>> {
        self.reverse().filter(|_| self.record().phase.lives_in_target())
    }

    /// It was opened, or is gone.
    pub fn set_reverse(&self, reverse: Option<Arc<Reverse>>) {
        *lock(&self.reverse) = reverse;
    }

    /// What was not made in the target, and why.
    pub fn left_out(&self) -> Vec<String> {
        lock(&self.left_out).clone()
    }

    /// Says so of some more things.
    fn leave_out(&self, things: Vec<LeftOut>) {
        for LeftOut { object, cause } in things {
            tracing::info!(object, cause, "left out of the target");
            let text = format!("{object}: {cause}");
            let mut known = lock(&self.left_out);
            if !known.contains(&text) {
                known.push(text);
            }
        }
    }

    /// What it counts in this run.
    pub fn numbers(&self) -> Numbers {
        Numbers {
            tenant: self.record().tenant,
            changes: self.meter.changes.load(Ordering::Relaxed),
            transactions: self.meter.transactions.load(Ordering::Relaxed),
            differences: match self.way_back() {
                Some(reverse) => *lock(&reverse.moving.differences),
                None => *lock(&self.differences),
            },
        }
    }

    /// Changes the record and stores it; in memory only once it is stored.
    pub fn update(&self, store: &Store, change: impl FnOnce(&mut MoveRecord)) -> Result<(), StoreError> {
        self.try_update(store, |record| {
            change(record);
            Ok(())
        })
    }

    /// The same for a change that may be refused: nothing is stored then.
    fn try_update<E: From<StoreError>>(
        &self,
        store: &Store,
        change: impl FnOnce(&mut MoveRecord) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut record = lock(&self.record);
        let mut next = record.clone();
        change(&mut next)?;
        if next.phase != record.phase {
            next.enter(clock::unix_micros());
        }
        store.put_move(&next)?;
        self.phase.send_replace((next.phase, next.fault.is_some()));
        MoveEvent::between(&record, &next).into_iter().for_each(|event| self.events.tell(event));
        *record = next;
        Ok(())
    }

    /// The lane's continuity is lost: the rows must be copied again. False when the move has no lane.
    pub fn break_off(&self, store: &Store, fault: Fault) -> Result<bool, StoreError> {
        let mut broken = false;
        self.update(store, |record| {
            if let Ok(phase) = record.phase.after(Event::Broken) {
                broken = true;
                (record.phase, record.fault) = (phase, Some(fault));
            }
        })?;
        // The lane that comes then is another one.
        *lock(&self.noting) = Weak::new();
        *lock(&self.certificate) = None;
        Ok(broken)
    }

    /// The phase, and whether a fault stands beside it, as they change.
    pub fn watch_phase(&self) -> watch::Receiver<(Phase, bool)> {
        self.phase.subscribe()
    }

    /// Takes a step of the state machine and stores it.
    pub fn advance(&self, store: &Store, event: Event) -> Result<(), StepError> {
        self.advance_with(store, event, |_| {})
    }

    /// The same with something that must be stored together with it.
    pub fn advance_with(
        &self,
        store: &Store,
        event: Event,
        change: impl FnOnce(&mut MoveRecord),
    ) -> Result<(), StepError> {
        self.try_update(store, |record| {
            change(record);
            record.phase = record.phase.after(event).map_err(|refused| {
                StepError::Fault(Fault::new("phase", record.id.to_string(), refused.to_string(), "carveout status"))
            })?;
            Ok(())
        })
    }

    /// Where the tables are in the target.
    pub fn place(&self) -> Place {
        let record = self.record();
        Place { schema: record.schema.clone(), moved: record.models().to_vec() }
    }

    /// Where the lane applies to.
    pub fn sink_plan(&self, target: &Target, epoch: i64) -> SinkPlan {
        let record = self.record();
        let homes = match (&record.back, &record.from) {
            (Some(back), _) => &back.homes,
            (None, Some(stage)) => &stage.homes,
            (None, None) => &Vec::new(),
        };
        let homes = record.tables.iter().cloned().zip(homes.iter().cloned());
        SinkPlan {
            url: target.url.clone(),
            id: record.id,
            epoch,
            homes: homes.collect(),
            passes: record.back.as_ref().map_or(record.id, |back| back.of),
            types: Arc::default(),
            partitions: record.published.partitions().collect(),
            tables: record.tables.into_iter().zip(record.paths).collect(),
            schema: record.schema,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The tables that a move's lane reads where every row of them is the tenant's, each with the column that names it, where one does.
fn own_tables(record: &MoveRecord) -> Option<Vec<(TableName, Option<String>)>> {
    let column = |path: &TablePath| match path {
        TablePath::Key(column) => Some(column.clone()),
        _ => None,
    };
    let columns: Vec<Option<String>> = match (&record.from, &record.back) {
        (None, None) => return None,
        (Some(stage), None) => stage.paths.iter().map(column).collect(),
        (_, Some(_)) => vec![None; record.tables.len()],
    };
    Some(record.tables.iter().cloned().zip(columns).collect())
}

/// Why a step did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// A database said no, or could not be reached.
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    /// A person must look.
    #[error("{}: {}", .0.object, .0.message)]
    Fault(Fault),
    /// A person must look at the transaction that ends there.
    #[error("{}: {}", .0.object, .0.message)]
    Transaction(Fault, Lsn),
    /// The lane's continuity is lost.
    #[error("{}: {}", .0.object, .0.message)]
    Broken(Fault),
    /// The daemon's own records failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The daemon stops.
    #[error("stopped")]
    Stopped,
}

impl From<anyhow::Error> for StepError {
    fn from(_: anyhow::Error) -> Self {
        // The only such error here is a pipeline that has stopped.
        StepError::Stopped
    }
}
