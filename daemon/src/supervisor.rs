//! Owns the daemon's tasks: one pipeline, a driver per move. Everything that the http server and
//! the command line can ask for is a method here.

mod commands;
mod hold;
mod progress;
mod published;
mod report;
mod returning;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use connectors::postgres::policy::Owned;
use connectors::postgres::{catalog, client, policy, slot, snapshot};
use schemas::config::Config;
use schemas::phase::Event;
use schemas::record::{AckRecord, Fault, MoveRecord, Published};
use schemas::{Lsn, MoveId, Phase};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tracing::Instrument;

use crate::clock;
use crate::events::Events;
use crate::lanes;
use crate::load::{self, Gate};
use crate::metrics::Metrics;
use crate::moves::reverse::{self, routes_of};
use crate::moves::{self, Context, Moving, SpoolLink, drive};
use crate::pipeline;
use crate::router::Broken;
use crate::store::{Store, StoreError};
use crate::throttle::Throttle;
pub use commands::Wanted;

/// Why the daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum Startup {
    /// Another daemon uses the state directory.
    #[error("{0}")]
    Locked(String),
    /// The source cannot be reached.
    #[error("{0}")]
    Unreachable(String),
    /// What was found is not what it is safe to go on from.
    #[error("{0}")]
    Refused(String),
}

/// Why a command is not carried out.
#[derive(Debug)]
pub struct Refusal {
    /// What kind of no it is.
    pub kind: RefusalKind,
    /// Object, cause and next step.
    pub fault: Fault,
}

/// Kinds of [`Refusal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// There is no such move.
    NotFound,
    /// The answer is no.
    Conflict,
    /// The request makes no sense.
    Invalid,
    /// A database cannot be reached.
    Unavailable,
}

/// How long the targets, and then the source, may take to finish at the end.
const STOP_PATIENCE: Duration = Duration::from_secs(4);

/// The running daemon.
pub struct Supervisor {
    context: Arc<Context>,
    moves: Mutex<BTreeMap<MoveId, Entry>>,
    /// One command that changes moves at a time.
    commands: tokio::sync::Mutex<()>,
    stop: watch::Sender<bool>,
    pipeline: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Clone)]
struct Entry {
    moving: Arc<Moving>,
    driver: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Supervisor {
    /// Opens the state, compares it with the source, starts pipeline and moves in the background.
    pub async fn start(mut config: Config) -> anyhow::Result<Arc<Supervisor>> {
        let store = Store::open(&config.state_dir).map_err(|error| match &error {
            StoreError::Locked(_) => Startup::Locked(error.to_string()),
            _ => Startup::Refused(error.to_string()),
        })?;
        let beginning = pipeline::begin(&config, &store).await.map_err(startup)?;
        let ack = store.ack()?.unwrap_or_default();
        let mut records = store.moves()?;
        quarantine(&store, &mut records, &ack)?;
        let (backs, records): (Vec<_>, Vec<_>) = records.into_iter().partition(|record| record.back.is_some());
        let owned = owned_tables(&config).await.map_err(startup)?;
        if let Some(kind) = owned.iter().find_map(Owned::key_type) {
            config.canonical_overrides(kind).map_err(|error| Startup::Refused(error.to_string()))?;
        }
        same_keys(&records, &owned)?;
        see_tables(&config, &store, &owned).await.map_err(startup)?;
        let open: Vec<MoveRecord> =
            with_lanes(&records, &backs).filter(|record| !ack.quarantined.contains(&record.id)).cloned().collect();
        let routes = moves::routes(&owned)
            .into_iter()
            .chain(open.iter().filter(|record| record.back.is_some() || record.from.is_some()).flat_map(routes_of));
        let (router, links) = lanes::open(&config, &open, routes.collect(), &ack)?;
        let (stop, stopped) = watch::channel(false);
        let (broken_in, broken) = mpsc::unbounded_channel();
        let (base, server_version) = (beginning.base.clone(), beginning.server_version);
        let (pipeline, task) = pipeline::spawn(config.clone(), beginning, router, store.clone(), broken_in, stopped);
        let limits = &config.limits;
        let context = Context {
            target_connections: Arc::new(Semaphore::new(limits.target_connections as usize)),
            copying: Arc::new(Semaphore::new(limits.copy_parallel as usize)),
            copy_tables: Arc::new(Semaphore::new(limits.copy_parallel as usize)),
            gate: Arc::new(Gate::new(limits.source.clone())),
            published: tokio::sync::watch::Sender::new((0, Published::default())),
            catalogs: Semaphore::new(moves::CATALOG_READERS),
            throttle: Arc::new(Throttle::new(limits.copy_rows_per_second.into())),
            metrics: Arc::new(Metrics::new(config.metrics.per_tenant)),
            events: Events::default(),
            home: None,
            state: store.identity()?,
            config,
            store,
            pipeline,
            base,
            server_version,
        };
        let supervisor = Arc::new(Supervisor {
            context: Arc::new(context),
            moves: Mutex::new(BTreeMap::new()),
            commands: tokio::sync::Mutex::new(()),
            stop,
            pipeline: Mutex::new(Some(task)),
        });
        supervisor.resume(records, links).await?;
        tokio::spawn(Arc::clone(&supervisor).take_broken(broken));
        tokio::spawn(Arc::clone(&supervisor).watch_source());
        tokio::spawn(Arc::clone(&supervisor).write_progress());
        if supervisor.context.gate.is_limited() {
            tokio::spawn(Arc::clone(&supervisor).watch_load());
        }
        if supervisor.context.config.auto_start {
            tokio::spawn(Arc::clone(&supervisor).start_declared());
        }
        Ok(supervisor)
    }

    /// Starts the drivers of the moves that were under way.
    async fn resume(
        &self,
        records: Vec<MoveRecord>,
        mut links: BTreeMap<MoveId, SpoolLink>,
    ) -> Result<(), moves::StepError> {
        for record in records {
            let (id, standing) = (record.id, record.fault.is_some() || record.paused);
            let back = record.reverse.and_then(|back| Some((back, links.remove(&back)?)));
            let moving = Arc::new(Moving::new(record, self.context.events.clone()));
            moving.set_spool(links.remove(&id));
            if let Some((back, link)) = back {
                moving.set_reverse(Some(reverse::resume(&self.context, back, Some(link)).await?));
            }
            let entry = Entry { moving, driver: Arc::new(Mutex::new(None)) };
            // An earlier move has a smaller number.
            entry.moving.set_earlier(self.entry(entry.moving.record().after).map(|earlier| earlier.moving));
            self.lock().insert(id, entry.clone());
            // A move that stands waits for a person; its lane spools meanwhile.
            // Nobody may write anywhere until the flip was looked for.
            if !standing || between_fences(entry.moving.record().phase) {
                self.spawn_driver(&entry);
            }
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<MoveId, Entry>> {
        self.moves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, id: Option<MoveId>) -> Option<Entry> {
        self.lock().get(&id?).cloned()
    }

    fn spawn_driver(&self, entry: &Entry) {
        let record = entry.moving.record();
        let span = tracing::info_span!("move", id = %record.id, tenant = %record.tenant);
        entry.moving.stop.send_replace(false);
        let task = tokio::spawn(drive(Arc::clone(&self.context), Arc::clone(&entry.moving)).instrument(span));
        *entry.driver.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
    }

    /// Ends a move's driver and waits for it; what it had in hand is committed first.
    async fn stop_driver(entry: &Entry) {
        entry.moving.stop.send_replace(true);
        let task = entry.driver.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "a move's driver failed");
        }
        // Whoever rehearses has heard it too, and takes the fence away.
        drop(entry.moving.cutover.lock().await);
    }

    /// Lanes that the pipeline took out: their rows must be copied again.
    async fn take_broken(self: Arc<Self>, mut broken: mpsc::UnboundedReceiver<Broken>) {
        while let Some(Broken { lane, fault }) = broken.recv().await {
            let _one = self.commands.lock().await;
            let entries: Vec<Entry> = self.lock().values().cloned().collect();
            let back = entries.iter().filter_map(|entry| entry.moving.reverse());
            if let Some(back) = back.into_iter().find(|back| back.moving.record().id == lane.id) {
                back.broken(fault);
                continue;
            }
            let Some(entry) = self.lock().get(&lane.id).cloned() else { continue };
            // Meanwhile the move may have been cancelled, or copied again into a new spool.
            if entry.moving.spool().is_none_or(|link| !Arc::ptr_eq(&link.state, lane.spool.state())) {
                continue;
            }
            if self.break_move(&entry, fault)
                && let Err(error) = lane.spool.remove()
            {
                tracing::warn!(%error, "a spool could not be removed");
            }
        }
    }

    /// Says that the move must be copied again, and ends its driver; the caller has the commands' lock.
    fn break_move(&self, entry: &Entry, fault: Fault) -> bool {
        match entry.moving.break_off(&self.context.store, fault) {
            Ok(true) => {}
            // The flip is looked for first.
            Ok(false) if between_fences(entry.moving.record().phase) => {}
            Ok(false) => return false,
            Err(error) => {
                tracing::error!(%error, "a broken lane could not be recorded; its spool is kept");
                return false;
            }
        }
        // A target that does not answer must not keep the others waiting.
        entry.moving.stop.send_replace(true);
        entry.moving.set_spool(None);
        true
    }

    /// Keeps the copies' gate up to date, while there are any.
    async fn watch_load(self: Arc<Self>) {
        let mut connection = None;
        let mut tick = tokio::time::interval(load::EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !*self.stop.borrow() {
            tick.tick().await;
            let copying = |entry: &Entry| matches!(entry.moving.record().phase, Phase::Copying | Phase::Returning);
            let any = self.lock().values().any(copying);
            if any {
                self.context.gate.measure(&mut connection, &self.context.config).await;
            } else if connection.take().is_some() {
                self.context.gate.forget();
            }
        }
    }

    /// Moves declared in `tenant_overrides`.
    async fn start_declared(self: Arc<Self>) {
        let declared: Vec<(String, schemas::config::Isolation)> =
            self.context.config.overrides().map(|(tenant, isolation, _)| (tenant.to_owned(), isolation)).collect();
        for (tenant, isolation) in declared {
            // What has been cancelled, or stands, waits for a person.
            if isolation == schemas::config::Isolation::Shared || self.find(&tenant).is_some() {
                continue;
            }
            let wanted = Wanted { to: Some(isolation), ..Wanted::default() };
            if let Err(refusal) = self.start_move(&tenant, wanted).await {
                tracing::error!(tenant, cause = refusal.fault.message, "a declared move was not started");
            }
        }
    }

    /// Stops reading, finishes and commits what is in hand, writes the last record.
    pub async fn stop(&self) {
        let entries: Vec<Entry> = self.lock().values().cloned().collect();
        let backs: Vec<_> = entries.iter().filter_map(|entry| entry.moving.reverse()).collect();
        let mut drivers = JoinSet::new();
        for entry in entries {
            drivers.spawn(async move { Self::stop_driver(&entry).await });
        }
        // A target that does not answer must not hold up the end; what it was sent is resolved by its
        // checkpoint at the next start.
        let all = async { while drivers.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_PATIENCE, all).await.is_err() {
            tracing::warn!("some targets did not answer; stopping without them");
        }
        let mut ways_back = JoinSet::new();
        for reverse in backs {
            ways_back.spawn(async move { reverse.end().await });
        }
        while ways_back.join_next().await.is_some() {}
        self.stop.send_replace(true);
        let pipeline = self.pipeline.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(task) = pipeline else { return };
        match tokio::time::timeout(STOP_PATIENCE, task).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the pipeline failed"),
            Err(_) => tracing::warn!("the source did not answer; stopping without it"),
        }
    }
}

/// Whether the tenant's writes are being moved.
fn between_fences(phase: Phase) -> bool {
    matches!(phase, Phase::CuttingOver | Phase::RollingBack)
}

/// Lanes that the last acknowledgement passed by must be copied again, whatever else was recorded.
fn quarantine(store: &Store, records: &mut [MoveRecord], ack: &AckRecord) -> Result<(), StoreError> {
    let lanes = records.iter_mut().filter(|record| ack.quarantined.contains(&record.id) && record.phase.has_lane());
    for record in lanes {
        // Between its fences a move waits for the flip; without a lane it is copied again after that.
        let broken = record.phase.after(Event::Broken).ok().filter(|phase| *phase != record.phase);
        if let Some(phase) = broken {
            record.phase = phase;
            record.enter(clock::unix_micros());
        }
        let message = "its lane was taken out before the daemon ended";
        let next = "`carveout move` copies the tenant again";
        record.fault.get_or_insert_with(|| Fault::new("spool_full", record.id.to_string(), message, next));
        store.put_move(record)?;
    }
    Ok(())
}

async fn owned_tables(config: &Config) -> anyhow::Result<Vec<Owned>> {
    let source = client::connect(&config.source.url, "start").await?;
    Ok(policy::resolve(catalog::tables(&source).await?, &config.tenancy).owned)
}

/// Remembers what is published now, so that a copy later waits for nobody who begins from here on.
async fn see_tables(config: &Config, store: &Store, owned: &[Owned]) -> anyhow::Result<()> {
    let source = client::connect(&config.source.url, "start").await?;
    let published = slot::published(&source, &config.source.publication, &policy::names(owned)).await?;
    let next_xid = snapshot::next_xid(&source).await?;
    let mut known = store.known_tables()?;
    known.see(&published, next_xid);
    Ok(store.put_known_tables(&known)?)
}

/// A move goes on by the key columns it was planned with, or not at all: its rows are in the target by those.
fn same_keys(records: &[MoveRecord], owned: &[Owned]) -> Result<(), Startup> {
    // Whoever only deletes, or comes home, is found by them too.
    let needs = |record: &&MoveRecord| {
        record.phase.has_lane() || matches!(record.phase, Phase::Moved | Phase::Returning | Phase::Completing)
    };
    for record in records.iter().filter(needs) {
        let paths = record.from.as_ref().map_or(&record.paths, |stage| &stage.paths);
        for (table, planned) in record.models().iter().zip(paths) {
            let now = owned.iter().find(|owned| &owned.table.name == table).map(Owned::route);
            if let Some(now) = now.filter(|now| now != planned) {
                return Err(Startup::Refused(format!(
                    "{table}: the configuration's tenant key is \"{now}\", but tenant \"{}\" ({}) moves by \"{planned}\". \
                     Put tenancy.key back; to change it, start with the old one, cancel the move, then change it and move again",
                    record.tenant, record.id
                )));
            }
        }
    }
    Ok(())
}

/// The lanes that the pipeline has: the moves', and those back whose target is a schema of the source.
fn with_lanes<'a>(records: &'a [MoveRecord], backs: &'a [MoveRecord]) -> impl Iterator<Item = &'a MoveRecord> {
    let forward = records.iter().filter(|record| record.phase.has_lane());
    let wanted = |back: &&MoveRecord| {
        let moved = |record: &MoveRecord| {
            matches!(record.phase, Phase::CuttingOver | Phase::Moved | Phase::RollingBack | Phase::Returning)
                && record.reverse == Some(back.id)
        };
        let shared = back.back.as_ref().is_some_and(|back| back.slot.is_none());
        shared && back.phase.has_lane() && reverse::is_made(back) && records.iter().any(moved)
    };
    forward.chain(backs.iter().filter(wanted))
}

/// Sorts an error at start by what a person or a script does about it.
fn startup(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref::<connectors::postgres::Error>() {
        Some(cause) if cause.is_transient() => Startup::Unreachable(error.to_string()).into(),
        Some(_) => Startup::Refused(error.to_string()).into(),
        None => error,
    }
}

/// The end of the slot's lag: log between two positions.
fn behind(end: Lsn, position: Lsn) -> u64 {
    end.bytes_since(position)
}
