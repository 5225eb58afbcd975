//! Takes one move from phase to phase. The phases' order stands in `schemas::phase`; here stands
//! what is done in each.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use connectors::postgres::apply::SinkPlan;
use connectors::postgres::catalog::Table;
use connectors::postgres::control::Checkpoint;
use connectors::postgres::fence::End;
use connectors::postgres::policy::Owned;

use connectors::postgres::{Client, client, control, provision, spare, version};
use schemas::config::{Isolation, Target};
use schemas::phase::Event;
use schemas::record::{Fault, MoveRecord, Published};
use schemas::url::PgUrl;
use schemas::{Lsn, Phase};
use tokio::sync::{mpsc, oneshot};

use super::{
    Context, Moving, SpoolLink, StepError, complete, copy, cutover, hooks, keys, parts, reverse, routes, sequences,
    stages,
};
use crate::lane::{Lane, LaneEnded, LanePlan, Origin, Partitions};
use crate::router::LaneEnd;
use crate::spool::SpoolWriter;
use crate::stop;

const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// For so long a lane that begins has both servers for itself, before the keys of its rows are read.
const LANE_FIRST: Duration = Duration::from_millis(500);
/// How long a lane that was told to stop may take to finish what it has in hand. What a target that
/// does not answer was sent is resolved by its checkpoint.
const LANE_PATIENCE: Duration = Duration::from_secs(3);
/// Commands to a lane that may wait.
const LANE_COMMANDS: usize = 8;

/// Runs the move until it is done, stopped, or a person must look.
pub async fn drive(context: Arc<Context>, moving: Arc<Moving>) {
    let mut backoff = FIRST_BACKOFF;
    let stop = moving.stop.subscribe();
    // Opening a lane shuts out whoever had it open: not before the slot is ours.
    let mut progress = context.pipeline.progress.clone();
    let needs_slot = !matches!(moving.record().phase, Phase::Cancelling | Phase::Completing | Phase::Completed);
    if needs_slot && !progress.borrow().owns_slot {
        moving.meter.set_trouble(Some("the stream from the source has not begun".to_owned()));
        tokio::select! {
            ours = progress.wait_for(|progress| progress.owns_slot) => if ours.is_err() { return },
            () = stop::told(&stop) => return,
        }
        moving.meter.set_trouble(None);
    }
    loop {
        let before = moving.record().phase;
        let error = match step(&context, &moving).await {
            Ok(true) => {
                moving.meter.set_trouble(None);
                backoff = FIRST_BACKOFF;
                continue;
            }
            Ok(false) | Err(StepError::Stopped) => return,
            Err(error) => error,
        };
        match error {
            StepError::Postgres(error) if error.is_transient() || (before.has_lane() && error.may_pass()) => {
                tracing::warn!(%error, phase = before.shown(None, false), "a step failed; trying again");
                moving.meter.set_trouble(Some(error.to_string()));
                let pause = tokio::time::sleep(backoff);
                tokio::select! {
                    () = pause => {}
                    () = stop::told(&stop) => return,
                }
                backoff = (backoff * 2).min(LONGEST_BACKOFF);
            }
            error => return give_up(&context, &moving, error).await,
        }
    }
}

/// Stores why the move stands still.
async fn give_up(context: &Context, moving: &Moving, error: StepError) {
    let record = moving.record();
    if record.phase == Phase::NeedsCopy {
        // Its lane was taken out meanwhile, and that is why this failed.
        return;
    }
    moving.meter.set_trouble(None);
    let next = match record.phase {
        Phase::Cancelling if record.returning => "mend the cause, then `carveout complete` again",
        Phase::Cancelling => "mend the cause, then `carveout cancel` again",

        Phase::Completing => "mend the cause, then `carveout complete` again",
        _ => "mend the cause, then `carveout move` resumes where it stopped; or `carveout cancel`",
    };
    let (fault, at, broken) = match error {
        StepError::Broken(fault) => (fault, None, true),
        StepError::Fault(fault) => (fault, None, false),
        StepError::Transaction(fault, end) => (fault, Some(end), false),
        error => (Fault::new("step_failed", record.id.to_string(), error.to_string(), next), None, false),
    };
    // What a lane says is about a target that is made for it; a lane back writes to the source.
    let fault = match (&record.back, record.returning) {
        (None, _) => fault,
        (Some(_), true) => {
            Fault { next: "mend it at the source, then `carveout resume`; or `carveout cancel`".to_owned(), ..fault }
        }
        (Some(_), false) => Fault {
            next: "mend it at the source, then `carveout resume` (`--skip` leaves the transaction out); \
                   `carveout complete --keep-source` ends the move without a way back"
                .to_owned(),
            ..fault
        },
    };
    let stored = match broken {
        true => moving.break_off(&context.store, fault).map(|_| ()),
        false => moving.update(&context.store, |record| (record.fault, record.stopped_at) = (Some(fault), at)),
    };
    if let Err(error) = stored {
        tracing::error!(%error, "the fault could not be stored");
        return;
    }
    // What the spool would gather from here on is of no use.
    if broken && let Err(error) = close_lane(context, moving).await {
        tracing::warn!(%error, "the lane could not be closed");
    }
}

/// One phase; true when there is a next one.
async fn step(context: &Arc<Context>, moving: &Arc<Moving>) -> Result<bool, StepError> {
    let store = &context.store;
    match moving.record().phase {
        Phase::Planned => moving.advance(store, Event::Provision)?,
        Phase::Provisioning => {
            unless_stopped(moving, provision(context, moving)).await?;
            moving.advance(store, Event::Provisioned)?;
        }
        Phase::Copying => {
            if moving.spool().is_none() {
                let record = moving.record();
                let tables = unless_stopped(moving, context.read_by(&record)).await?;
                open_lane(context, moving, &tables).await?;
            }
            unless_stopped(moving, copy::copy(context, moving)).await?;
            unless_stopped(moving, cutover::shut_target(context, moving)).await?;
            moving.advance(store, Event::Copied)?;
        }
        Phase::Cancelling => {
            unless_stopped(moving, drop_target(context, moving)).await?;
            let record = moving.record();
            let completes = record.returning && record.completion.is_some();
            if completes {
                hooks::report(context.config.hooks.after_complete.as_ref(), "after_complete", &record.tenant).await;
            }
            moving.advance(store, Event::Dropped)?;
            if completes {
                complete::tell(moving);
            }
        }
        Phase::Following => return follow_until_stopped(context, moving).await.map(|()| false),
        Phase::CuttingOver | Phase::RollingBack => {
            unless_stopped(moving, cutover::resolve(context, moving)).await?;
        }
        Phase::Moved => return live_in_the_target(context, moving).await.map(|()| false),
        Phase::Returning => {
            reverse::come_home(context, moving).await?;
            moving.advance_with(store, Event::Returned, |record| record.copy_again = false)?;
        }
        Phase::Completing => {
            unless_stopped(moving, complete::complete(context, moving)).await?;
            let returning = moving.record().returning;
            moving.advance_with(store, Event::Cleared, |record| {
                record.returning = false;
                stages::forget(record);
            })?;
            // A return that was given up completes nothing.
            if !returning {
                complete::tell(moving);
            }
        }
        Phase::NeedsCopy | Phase::Cancelled | Phase::Completed => return Ok(false),
    }
    Ok(true)
}

/// Runs something that can be cut off anywhere: what it did not commit is done again.
pub(super) async fn unless_stopped<T>(
    moving: &Moving,
    work: impl Future<Output = Result<T, StepError>>,
) -> Result<T, StepError> {
    let stop = moving.stop.subscribe();
    tokio::select! {
        done = work => done,
        () = stop::told(&stop) => Err(StepError::Stopped),
    }
}

/// A lane that is told to stop finishes what it has in hand, but does not wait for ever.
async fn follow_until_stopped(context: &Arc<Context>, moving: &Arc<Moving>) -> Result<(), StepError> {
    let stop = moving.stop.subscribe();
    let patience = async {
        stop::told(&stop).await;
        tokio::time::sleep(LANE_PATIENCE).await;
    };
    tokio::select! {
        followed = follow(context, moving) => followed,
        () = patience => {
            moving.set_lane(None);
            tracing::warn!(id = %moving.record().id, "the target does not answer; stopping without it");
            Err(StepError::Stopped)
        }
    }
}

/// Makes database, schemas and tables; empties what an earlier copy left.
async fn provision(context: &Context, moving: &Moving) -> Result<(), StepError> {
    let record = moving.record();
    let target = context.target(&record)?;
    stages::publish(context, moving).await?;
    let tables = context.tables(record.models()).await?;
    fits(context, &target, &tables).await?;
    if let Some(admin) = &target.admin_url {
        make_database(context, moving, admin, &target).await?;
    }
    let mut client = client::connect(&target.url, "provision").await?;
    control::setup(&mut client).await?;
    control::create_checkpoint(&mut client, record.id, &record.tenant, &context.origin()).await?;
    if record.copy_again {
        close_lane(context, moving).await?;
        provision::drop_tables(&mut client, record.id).await?;
        moving.update(&context.store, |record| record.copy_again = false)?;
    }
    let source = client::connect(&context.config.source.url, "provision").await?;
    let tables: Vec<&Table> = tables.iter().map(|owned| &owned.table).collect();
    provision::make_tables(&source, &mut client, record.id, &moving.place(), &tables).await?;
    Ok(())
}

/// Refuses a server that cannot hold these tables.
async fn fits(context: &Context, target: &Target, tables: &[Owned]) -> Result<(), StepError> {
    let source = client::connect(&context.config.source.url, "provision").await?;
    let server = client::connect(target.admin_url.as_ref().unwrap_or(&target.url), "provision").await?;
    Ok(version::fits(&source, &server, tables).await?)
}

/// Makes the database where it is missing. That it will be ours is written down before, and taken back when
/// it could not be made: a person may make it then, and it is that person's.
async fn make_database(context: &Context, moving: &Moving, admin: &PgUrl, target: &Target) -> Result<(), StepError> {
    let database = &target.database;
    let made = moving.record().made_database;
    if !made && provision::database_exists(admin, database).await? {
        return Ok(());
    }
    let source = client::connect(&context.config.source.url, "provision").await?;
    moving.update(&context.store, |record| record.made_database = true)?;
    let ours = match provision::create_database(admin, &target.url, database, &source).await {
        Ok(created) => created || made,
        Err(error) => {
            // Without an answer it may have been made.
            if error.sqlstate().is_some() {
                moving.update(&context.store, |record| record.made_database = made)?;
            }
            return Err(error.into());
        }
    };
    moving.update(&context.store, |record| record.made_database = ours)?;
    Ok(())
}

/// From here on every change of the tenant reaches its spool. Not to be cut off: a lane is open, or it is not.
pub(super) async fn open_lane(context: &Context, moving: &Moving, tables: &[Owned]) -> Result<(), StepError> {
    let record = moving.record();
    let (spool, prev_end) =
        SpoolWriter::open(&context.spool_dir(record.id)).map_err(|error| spool_fault(&record, &error))?;
    let state = Arc::clone(spool.state());
    let link = SpoolLink { state, prev_end, must_hold: Lsn::ZERO };
    let lane = LaneEnd::new(record.id, record.tenant, &record.published, spool);
    // Before it is open: it may break at once, and whoever hears of that looks for it here.
    moving.set_spool(Some(link));
    let opened = context.pipeline.open(lane, routes(tables)).await;
    Ok(opened.inspect_err(|_| moving.set_spool(None))?)
}

/// Takes the lane out of the pipeline and removes its spool.
pub(super) async fn close_lane(context: &Context, moving: &Moving) -> Result<(), StepError> {
    let record = moving.record();
    drop(context.pipeline.close(record.id).await?);
    moving.set_spool(None);
    remove_folder(&record, &context.spool_dir(record.id))
}

pub(super) fn remove_folder(record: &MoveRecord, folder: &Path) -> Result<(), StepError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(spool_fault(record, &error)),
        _ => Ok(()),
    }
}

/// The move's target, also by the record of its lane back.
pub(super) fn target_of_move(context: &Context, record: &MoveRecord) -> Result<Target, StepError> {
    context.target(&MoveRecord { back: None, ..record.clone() })
}

/// The writes have moved: what is written in the target flows back, until the move is stopped.
async fn live_in_the_target(context: &Arc<Context>, moving: &Arc<Moving>) -> Result<(), StepError> {
    close_lane(context, moving).await?;
    let record = moving.record();
    let stop = moving.stop.subscribe();
    let until_stopped = async {
        tokio::select! {
            () = stop::told(&stop) => {}
            () = sequences::keep_filled(context, moving) => {}
        }
    };
    if let Some(id) = record.reverse {
        let reverse = match moving.reverse() {
            Some(reverse) => reverse,
            None => unless_stopped(moving, reverse::resume(context, id, None)).await?,
        };
        moving.set_reverse(Some(Arc::clone(&reverse)));
        reverse.start();
        until_stopped.await;
        reverse.hold().await;
    } else {
        until_stopped.await;
    }
    Err(StepError::Stopped)
}

fn spool_fault(record: &MoveRecord, error: &std::io::Error) -> StepError {
    let next = "make state_dir writable, then `carveout move` resumes where it stopped";
    StepError::Fault(Fault::new(
        "spool_failed",
        record.id.to_string(),
        format!("its spool could not be used: {error}"),
        next,
    ))
}

/// Opens the checkpoint that provisioning made. It is never made again: what the rows hold would be applied twice.
pub(super) async fn open_checkpoint(
    context: &Context,
    client: &Client,
    record: &MoveRecord,
) -> Result<Checkpoint, StepError> {
    let opened = control::open_checkpoint(client, record.id, &record.tenant, &context.origin()).await?;
    opened.ok_or_else(|| {
        let message = "its row in carveout.checkpoint of the target was deleted or changed";
        let next = "`carveout move` copies the tenant again";
        StepError::Broken(Fault::new("gap", record.id.to_string(), message, next))
    })
}

/// Runs the lane until it is stopped.
async fn follow(context: &Arc<Context>, moving: &Arc<Moving>) -> Result<(), StepError> {
    let record = moving.record();
    let target = context.target(&record)?;
    let Some(link) = moving.spool() else {
        let next = "`carveout move` copies the tenant again";
        return Err(StepError::Broken(Fault::new("gap", record.id.to_string(), "its lane is not open", next)));
    };
    let client = spare::take(&target.url, "open lane").await?;
    let checkpoint = open_checkpoint(context, &client, &record).await?;
    let copied = control::read_copied(&client, record.id, &record.tables).await?;
    if let Some(table) = record.tables.iter().find(|table| !copied.contains_key(*table)) {
        let next = "`carveout move` copies the tenant again";
        let message = "carveout.copied in the target no longer says that it was copied: it was changed";
        return Err(StepError::Broken(Fault::new("gap", table.to_string(), message, next)));
    }
    client.keep();
    moving.copied_before(&copied);
    moving.certified_again(&context.store, checkpoint.lsn)?;
    let (commands, receiver) = mpsc::channel(LANE_COMMANDS);
    let (record_partitions, to_record) = mpsc::channel(1);
    let plan = LanePlan {
        sink: SinkPlan { types: parts::types(context).await?, ..moving.sink_plan(&target, checkpoint.epoch) },
        spool_dir: context.spool_dir(record.id),
        spool: link.state,
        copied,
        origin: Origin {
            config: context.config.clone(),
            tenant: record.tenant.clone(),
            own: super::own_tables(&record),
            unseen: context.pipeline.unseen.clone(),
        },
        prev_end: link.prev_end,
        must_hold: link.must_hold,
        skipped: record.skipped.clone(),
        apply_seconds: context.metrics.apply_seconds(&record.tenant),
        batch_rows: usize::try_from(context.config.tenant_strategy.migration_config.batch_size).unwrap_or(usize::MAX),
        changed: std::mem::take(&mut *super::lock(&moving.noting)),
    };
    moving.set_lane(Some(commands));
    let lane = Lane::new(
        plan,
        Arc::clone(&moving.meter),
        Arc::clone(&context.target_connections),
        context.pipeline.progress.clone(),
        receiver,
        Partitions { seen: context.published.subscribe(), known: record.published.clone(), record: record_partitions },
        moving.stop.subscribe(),
    );
    let ended = tokio::select! {
        ended = lane.run() => ended,
        () = beside_it(context, moving, to_record) => LaneEnded::Stopped(Weak::new()),
    };
    keys::leave_off(context, moving).await;
    moving.set_lane(None);
    match ended {
        LaneEnded::Stopped(noted) => {
            moving.keep_certificate(&context.store, &noted).map_err(StepError::from).and(Err(StepError::Stopped))
        }
        LaneEnded::Fault(fault, None) => Err(StepError::Fault(parts::explain(context, moving, fault).await)),
        LaneEnded::Fault(fault, Some(end)) => {
            Err(StepError::Transaction(parts::explain(context, moving, fault).await, end))
        }
        LaneEnded::Broken(fault) => Err(StepError::Broken(fault)),
    }
}

/// What else is to be done while a lane runs.
async fn beside_it(
    context: &Arc<Context>,
    moving: &Arc<Moving>,
    partitions: mpsc::Receiver<(Published, oneshot::Sender<()>)>,
) {
    tokio::join!(
        parts::record_partitions(context, moving, partitions),
        parts::validate(context, moving),
        cutover::clear_up(context, moving),
        async {
            tokio::time::sleep(LANE_FIRST).await;
            keys::hand_over(context, moving).await;
        },
    );
}

/// Drops what the move created, and nothing else.
async fn drop_target(context: &Arc<Context>, moving: &Arc<Moving>) -> Result<(), StepError> {
    reverse::discard(context, moving).await?;
    cutover::remove_fence(context, moving, End::Source).await?;
    close_lane(context, moving).await?;
    stages::unpublish(context, moving).await?;
    let record = moving.record();
    let target = context.target(&record)?;
    let mut there = true;
    if let (Isolation::Database, Some(admin)) = (record.to, &target.admin_url) {
        if record.made_database {
            provision::drop_database(admin, &target.url, &target.database, record.id, &context.state).await?;
            there = false;
        } else {
            there = provision::database_exists(admin, &target.database).await?;
        }
    }
    if there {
        let mut client = client::connect(&target.url, "cancel").await?;
        provision::drop_objects(&mut client, record.id, &context.state).await?;
    }
    // Until then it refuses who still writes there.
    if there {
        cutover::remove_fence(context, moving, End::Target).await?;
    }
    Ok(moving.update(&context.store, |record| record.fenced = false)?)
}
