//! The way back: after the flip the same pipeline and lane with source and target exchanged. Where the target is a schema of
//! the source's database the one pipeline reads it too; otherwise a slot and a pipeline of its own in the target's database.
//!
//! Its lane begins while nobody may write on either side, at a snapshot of the target that shows all that the source holds; so
//! no lane of a tenant ever reads what the other one has written, and nothing has to be told apart in the stream.

use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use connectors::postgres::policy::{self, Owned, Path};
use connectors::postgres::{Client, Error, catalog, client, control, purge, reverse, slot, snapshot, spare};
use schemas::record::{Back, Fault, MoveRecord, Published};
use schemas::{MoveId, Phase, TableName};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::Instrument;

use super::{Context, Moving, SpoolLink, StepError, complete, cutover, drive, driver, sequences};
use crate::gently::gently;
use crate::lanes;
use crate::pipeline;
use crate::router::Broken;
use crate::stop;

/// How often is looked whether the target publishes what it did.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long the target may take to hear the last word.
const STOP_PATIENCE: Duration = Duration::from_secs(3);

/// A lane back.
pub struct Reverse {
    /// Of a pipeline of its own, or the one that everybody shares.
    pub context: Arc<Context>,
    /// The lane.
    pub moving: Arc<Moving>,
    lane: Mutex<Option<JoinHandle<()>>>,
    pipeline: Mutex<Option<(watch::Sender<bool>, JoinHandle<()>)>>,
}

/// The move's tables, as the source has them, each with its name there and as it stands in the target, where all of it is the
/// tenant's. Reference tables are nobody's: they do not come back.
pub async fn own_tables(
    context: &Context,
    moving: &Moving,
    tables: &[Owned],
) -> Result<Vec<(TableName, Owned)>, StepError> {
    let target = context.target(&moving.record())?;
    let plan = moving.sink_plan(&target, 0);
    let client = spare::take(&target.url, "plan").await?;
    let (mut homes, mut names) = (Vec::new(), Vec::new());
    for owned in tables.iter().filter(|owned| !matches!(owned.path, Path::Reference)) {
        let column = match &owned.path {
            Path::Key { column, .. } => Some(column.clone()),
            Path::Whole(column) => column.clone(),
            _ => None,
        };
        names.push((plan.target_name(&owned.table.name), column));
        homes.push(owned.table.name.clone());
    }
    let own = whole(&client, names).await?;
    client.keep();
    Ok(homes.into_iter().zip(own).collect())
}

/// Tables of which every row is the tenant's, each with the column that names it, where one does.
pub(super) async fn whole(
    client: &Client,
    names: impl IntoIterator<Item = (TableName, Option<String>)>,
) -> Result<Vec<Owned>, StepError> {
    let names: Vec<_> = names.into_iter().collect();
    let schemas: Vec<String> = names.iter().map(|(name, _)| name.schema.clone()).collect();
    policy::whole(catalog::tables_in(client, &schemas).await?, names).map_err(|gone| {
        let next = "`carveout verify` compares both sides";
        StepError::Fault(Fault::new("table_changed", gone.to_string(), "it is gone from the target", next))
    })
}

/// Prepares the target's database, and opens the lane: from here on what is written to these tables there is spooled. Their rows are
/// copied first, or both sides hold the same.
pub async fn open(
    context: &Arc<Context>,
    moving: &Arc<Moving>,
    tables: &[Owned],
    phase: Phase,
) -> Result<Arc<Reverse>, StepError> {
    let record = moving.record();
    let own = gently(own_tables(context, moving, tables)).await?;
    let (homes, tables): (Vec<TableName>, Vec<Owned>) = own.into_iter().unzip();
    let back = MoveRecord { phase, ..planned(context, &record, homes, &tables)? };
    let id = back.id;
    moving.update(&context.store, |record| record.reverse = Some(id))?;
    context.store.put_move(&back)?;
    let target = context.target(&record)?;
    let mut client = spare::take(&target.url, "reverse").await?;
    control::setup(&mut client).await?;
    reverse::required(&client).await?;
    reverse::identities(&client, &tables.iter().map(|owned| &owned.table).collect::<Vec<_>>()).await?;
    let publication = match back.back.as_ref().and_then(|back| back.slot.as_ref()) {
        Some(name) => {
            reverse::publish(&client, name, &back.tables).await?;
            name
        }
        None => {
            reverse::join(&client, &context.config.source.publication, &back.tables).await?;
            &context.config.source.publication
        }
    };
    let published = known(slot::published(&client, publication, &back.tables).await?);
    // After that: whoever was open at the change has a lower one.
    let fresh_xid = snapshot::next_xid(&client).await?;
    client.keep();
    context.store.put_move(&MoveRecord { published, fresh_xid, ..back })?;
    let reverse = resume(context, id, None).await?;
    // Before its lane is open: that may break at once, and whoever hears of it looks for it here.
    moving.set_reverse(Some(Arc::clone(&reverse)));
    if reverse.is_shared() {
        let opened = driver::open_lane(&reverse.context, &reverse.moving, &tables).await;
        opened.inspect_err(|_| moving.set_reverse(None))?;
    }
    Ok(reverse)
}

/// The record of a lane back that is about to be made.
fn planned(
    context: &Context,
    record: &MoveRecord,
    homes: Vec<TableName>,
    tables: &[Owned],
) -> Result<MoveRecord, StepError> {
    let (target, source) = (context.target(record)?, &context.config.source);
    let shared = target.schema.is_some()
        && target.url.same_server(&source.url)
        && source.url.database() == Some(target.database.as_str());
    let (open, most) = (context.store.moves()?, context.config.limits.reverse_slots);
    let open = open.iter().filter(|record| record.back.as_ref().is_some_and(|back| back.slot.is_some())).count();
    if !shared && open >= most as usize {
        let next = "end a move that was cut over (`carveout complete`), or raise it";
        let why = format!("{open} moves have a slot for their way back");
        return Err(StepError::Fault(Fault::new("reverse_slots", "limits.reverse_slots", why, next)));
    }
    let id = context.store.next_move()?;
    let state = crc32fast::hash(context.state.as_bytes());
    let slot = (!shared).then(|| format!("{:.40}_{id}_{state:08x}", source.slot));
    Ok(MoveRecord {
        id,
        phase: Phase::Following,
        tables: policy::names(tables),
        paths: policy::paths(tables),
        published: Published::default(),
        fault: None,
        stopped_at: None,
        paused: false,
        skipped: Vec::new(),
        fresh_xid: 0,
        rows_total: 0,
        rows_copied: 0,
        verified: None,
        noted: None,
        rolled_back: false,
        reverse: None,
        back: Some(Back { of: record.id, homes, slot }),
        ..record.clone()
    })
}

/// What says whose its rows are is nothing that could change; its partitions are read by their root.
fn known(mut published: Published) -> Published {
    for (_, table) in &mut published.tables {
        table.found_by.clear();
        table.partitions.clear();
        table.partitioned = false;
    }
    published
}

/// Opens what a record says. `link` is the lane that the shared pipeline has open already.
pub async fn resume(context: &Arc<Context>, id: MoveId, link: Option<SpoolLink>) -> Result<Arc<Reverse>, StepError> {
    let lost = || StepError::Fault(Fault::new("state", id.to_string(), "its record is gone", "carveout status"));
    let record = context.store.moves()?.into_iter().find(|record| record.id == id).ok_or_else(lost)?;
    let Some(name) = record.back.as_ref().and_then(|back| back.slot.clone()) else {
        let moving = Arc::new(Moving::new(record, context.events.clone()));
        moving.set_spool(link);
        return Ok(Arc::new(Reverse::new(Arc::clone(context), moving, None)));
    };
    let target = driver::target_of_move(context, &record)?;
    let mut config = context.config.clone();
    config.source.url = target.url;
    (config.source.slot, config.source.publication) = (name.clone(), name);
    config.state_dir = context.config.state_dir.join("reverse").join(id.to_string());
    let failed = |error: std::io::Error| {
        StepError::Fault(Fault::new("state", id.to_string(), format!("its folder: {error}"), "make state_dir writable"))
    };
    fs::create_dir_all(&config.state_dir).map_err(failed)?;
    let store = context.store.of_reverse(id);
    let beginning = gently(pipeline::begin(&config, &store)).await.map_err(|error| step_error(id, error))?;
    let ack = store.ack()?.unwrap_or_default();
    let mut record = record;
    if ack.quarantined.contains(&id) && record.phase.has_lane() {
        record.phase = Phase::NeedsCopy;
        let message = "its lane was taken out before the daemon ended";
        record.fault.get_or_insert_with(|| Fault::new("spool_full", id.to_string(), message, "carveout status"));
        context.store.put_move(&record)?;
    }
    let none = Vec::new();
    let records = if record.phase.has_lane() { std::slice::from_ref(&record) } else { &none };
    let (router, mut links) =
        lanes::open(&config, records, routes_of(&record), &ack).map_err(|error| step_error(id, error))?;
    let (stop, stopped) = watch::channel(false);
    let (broken_in, broken) = mpsc::unbounded_channel();
    let (base, server_version) = (beginning.base.clone(), beginning.server_version);
    let (handle, task) = pipeline::spawn(config.clone(), beginning, router, store, broken_in, stopped);
    let own = Arc::new(context.reading(config, handle, base, server_version));
    let moving = Arc::new(Moving::new(record, context.events.clone()));
    moving.set_spool(links.remove(&id));
    let reverse = Arc::new(Reverse::new(own, moving, Some((stop.clone(), task))));
    let span = tracing::info_span!("reverse", %id);
    tokio::spawn(watch_target(Arc::downgrade(&reverse), broken, stop.subscribe()).instrument(span));
    Ok(reverse)
}

/// The tenant comes home: what it has in the target is copied, what is written there meanwhile follows, until the lane back is
/// in step with it.
pub(super) async fn come_home(context: &Arc<Context>, moving: &Arc<Moving>) -> Result<(), StepError> {
    cutover::fence_for_a_return(context, moving).await?;
    // It reads whole tables.
    driver::unless_stopped(moving, nobody_elses(context, moving)).await?;

    let record = moving.record();
    let opened = |back: &MoveRecord| Some(back.id) == record.reverse && is_made(back);
    let opened = context.store.moves()?.into_iter().find(opened);

    let reverse = match (moving.reverse(), opened) {
        (Some(reverse), _) if reverse.moving.record().phase != Phase::NeedsCopy => reverse,
        (None, Some(back)) if back.phase != Phase::NeedsCopy => resume(context, back.id, None).await?,
        // Half made, or of no use any more.
        _ => {
            discard(context, moving).await?;
            let tables = context.read_by(&moving.record()).await?;
            open(context, moving, &tables, Phase::Copying).await?
        }
    };
    moving.set_reverse(Some(Arc::clone(&reverse)));
    let back = reverse.moving.record();
    if back.phase == Phase::Copying {
        let mut source = client::connect(&context.config.source.url, "return").await?;
        control::create_checkpoint(&mut source, back.id, &back.tenant, &reverse.context.origin()).await?;
    }
    reverse.start();
    let mut phase = reverse.moving.watch_phase();
    let stop = moving.stop.subscribe();
    let stands = |(phase, fault): &(Phase, bool)| *phase != Phase::Copying || *fault;
    tokio::select! {
        () = async { drop(phase.wait_for(stands).await) } => {}
        () = sequences::keep_filled(context, moving) => {}
        () = stop::told(&stop) => {
            reverse.hold().await;
            return Err(StepError::Stopped);
        }
    }
    match reverse.moving.record().fault {
        Some(fault) => Err(StepError::Fault(fault)),
        None => Ok(()),
    }
}

/// Whether all is there that a lane back needs: what it publishes is stored last, before the lane is opened.
pub fn is_made(back: &MoveRecord) -> bool {
    !back.published.tables.is_empty()
}

/// What a tenant would bring home that is not its own, or would find there.
async fn nobody_elses(context: &Context, moving: &Moving) -> Result<(), StepError> {
    let record = moving.record();
    let there = client::connect(&context.target(&record)?.url, "return").await?;
    if let Some((table, rows)) = complete::foreign(context, moving, &there).await?.into_iter().next() {
        let message = format!("{rows} rows in the target are not the tenant's");
        let next = "move them to where they belong, then `carveout resume`; or `carveout cancel`";
        return Err(StepError::Fault(Fault::new("leak", table, message, next)));
    }
    // From then on there may be rows that were copied.
    if record.copy_again {
        return Ok(());
    }
    let source = client::connect(&context.config.source.url, "return").await?;
    let tables = context.tables(&record.tables).await?;
    if let Some((table, rows)) = purge::residue(&source, &tables, &record.tenant).await?.into_iter().next() {
        let message = format!("{rows} rows of the tenant are there already");
        let next = "delete them: the tenant brings its own; then `carveout resume`, or `carveout cancel`";
        return Err(StepError::Fault(Fault::new("residue", table.to_string(), message, next)));
    }
    Ok(moving.update(&context.store, |record| record.copy_again = true)?)
}

/// The routes of a lane back: whoever has a table of its target gets all of it.
pub fn routes_of(record: &MoveRecord) -> Vec<(TableName, crate::router::TableRoute)> {
    let route = |path| crate::router::TableRoute {
        path,
        null_tenant: schemas::config::NullTenant::NotMoving,
        row_key: Vec::new(),
        may_outlive: false,
        types: std::collections::HashMap::new(),
    };
    record.tables.iter().cloned().zip(record.paths.iter().cloned().map(route)).collect()
}

/// An error of a pipeline that did not begin.
fn step_error(id: MoveId, error: anyhow::Error) -> StepError {
    match error.downcast::<Error>() {
        Ok(error) => error.into(),
        Err(error) => {
            let next = "mend the cause, then `carveout resume`";
            StepError::Fault(Fault::new("reverse", id.to_string(), format!("{error:#}"), next))
        }
    }
}

/// What the supervisor does for the source: lanes that broke, and what the stream does not say.
async fn watch_target(
    reverse: std::sync::Weak<Reverse>,
    mut broken: mpsc::UnboundedReceiver<Broken>,
    stop: watch::Receiver<bool>,
) {
    loop {
        tokio::select! {
            () = stop::told(&stop) => return,
            Some(Broken { lane, fault }) = broken.recv() => {
                let Some(reverse) = reverse.upgrade() else { return };
                reverse.broken(fault);
                if let Err(error) = lane.spool.remove() {
                    tracing::warn!(%error, "a spool could not be removed");
                }
            }
            () = tokio::time::sleep(LOOK_EVERY) => {
                let Some(reverse) = reverse.upgrade() else { return };
                match reverse.changed().await {
                    // Whoever takes the lane away says so before it unpublishes.
                    Ok(Some(fault)) if !*stop.borrow() => reverse.broken(fault),
                    Ok(_) => {}
                    Err(error) => tracing::debug!(%error, "what the target publishes could not be looked at"),
                }
            }
        }
    }
}

impl Reverse {
    fn new(
        context: Arc<Context>,
        moving: Arc<Moving>,
        pipeline: Option<(watch::Sender<bool>, JoinHandle<()>)>,
    ) -> Reverse {
        Reverse { context, moving, lane: Mutex::new(None), pipeline: Mutex::new(pipeline) }
    }

    /// Whether the source's pipeline reads its tables.
    pub fn is_shared(&self) -> bool {
        self.moving.record().back.is_some_and(|back| back.slot.is_none())
    }

    /// Lets the lane apply, unless it does or a person must look.
    pub fn start(&self) {
        let record = self.moving.record();
        let mut lane = lock(&self.lane);
        if lane.as_ref().is_some_and(|lane| !lane.is_finished()) || record.fault.is_some() {
            return;
        }
        self.moving.stop.send_replace(false);
        let span = tracing::info_span!("reverse", id = %record.id, tenant = %record.tenant);
        *lane = Some(tokio::spawn(drive(Arc::clone(&self.context), Arc::clone(&self.moving)).instrument(span)));
    }

    /// Ends the lane; what it had in hand is committed first. Its spool goes on filling.
    pub async fn hold(&self) {
        self.moving.stop.send_replace(true);
        let lane = lock(&self.lane).take();
        if let Some(lane) = lane
            && let Err(error) = lane.await
        {
            tracing::error!(%error, "a lane back failed");
        }
    }

    /// Ends lane and pipeline.
    pub async fn end(&self) {
        self.hold().await;
        let pipeline = lock(&self.pipeline).take();
        let Some((stop, task)) = pipeline else { return };
        stop.send_replace(true);
        if tokio::time::timeout(STOP_PATIENCE, task).await.is_err() {
            tracing::warn!("the target did not answer; stopping without it");
        }
    }

    /// The lane's continuity is lost: there is no way back any more.
    pub fn broken(&self, fault: Fault) {
        let next = match self.moving.record().returning {
            true => "`carveout resume` copies the tenant home again",
            false => {
                "`carveout verify` says what the source lacks; `carveout complete` ends the move without a way back"
            }
        };
        let fault = Fault { next: next.to_owned(), ..fault };
        match self.moving.break_off(&self.context.store, fault) {
            Ok(_) => {
                self.moving.stop.send_replace(true);
                self.moving.set_spool(None);
            }
            Err(error) => tracing::error!(%error, "a broken lane back could not be recorded"),
        }
    }

    /// What happened to a table that the stream does not say.
    async fn changed(&self) -> connectors::postgres::Result<Option<Fault>> {
        let (record, source) = (self.moving.record(), &self.context.config.source);
        if !record.phase.has_lane() {
            return Ok(None);
        }
        let asking = spare::take(&source.url, "watch").await?;
        let now = slot::published(&asking, &source.publication, &record.tables).await?;
        asking.keep();
        Ok(target_changed(&record, &now))
    }
}

/// What happened to a table of a lane back that the stream does not say.
pub fn target_changed(record: &MoveRecord, now: &Published) -> Option<Fault> {
    record.published.change(now).map(|(object, cause)| {
        let message = format!("{cause}: changes may not have been in the stream");
        Fault::new("target_changed", object, message, "")
    })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the lane back of a move and takes away what it has: in the target's database, at the source, on disk.
pub async fn discard(context: &Arc<Context>, moving: &Moving) -> Result<(), StepError> {
    let Some(id) = moving.record().reverse else { return Ok(()) };
    if let Some(reverse) = moving.reverse() {
        reverse.end().await;
        moving.set_reverse(None);
    }
    if let Some(record) = context.store.moves()?.into_iter().find(|record| record.id == id) {
        let target = driver::target_of_move(context, &record)?;
        match record.back.as_ref().and_then(|back| back.slot.as_ref()) {
            Some(name) => {
                let client = spare::take(&target.url, "reverse").await?;
                reverse::unpublish(&client, name).await?;
                reverse::plain_identities(&client, &record.tables).await?;
                client.keep();
            }
            None => {
                drop(context.pipeline.close(id).await?);
                let client = spare::take(&context.config.source.url, "reverse").await?;
                reverse::leave(&client, &context.config.source.publication, &record.tables).await?;
                reverse::plain_identities(&client, &record.tables).await?;
                client.keep();
            }
        }
        let mut source = spare::take(&context.config.source.url, "reverse").await?;
        control::forget_lane(&mut source, id).await?;
        source.keep();
        for dir in [context.spool_dir(id), context.config.state_dir.join("reverse").join(id.to_string())] {
            driver::remove_folder(&record, &dir)?;
        }
    }
    context.store.forget_reverse(id)?;
    moving.update(&context.store, |record| record.reverse = None)?;
    Ok(())
}
