//! Takes one move from phase to phase. The phases' order stands in `schemas::phase`; here stands
//! what is done in each.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use connectors::postgres::{client, control, provision};
use schemas::config::Isolation;
use schemas::phase::Event;
use schemas::record::{Fault, MoveRecord};
use schemas::{Lsn, Phase};
use tokio::sync::mpsc;

use super::{Context, Moving, SpoolLink, StepError, copy, routes};
use crate::lane::{Lane, LaneEnded, LanePlan};
use crate::router::LaneEnd;
use crate::spool::SpoolWriter;
use crate::stop;

const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// Commands to a lane that may wait.
const LANE_COMMANDS: usize = 8;

/// Runs the move until it is done, stopped, or a person must look.
pub async fn drive(context: Arc<Context>, moving: Arc<Moving>) {
    let mut backoff = FIRST_BACKOFF;
    let stop = moving.stop.subscribe();
    loop {
        let before = moving.record().phase;
        let error = match step(&context, &moving).await {
            Ok(true) => {
                backoff = FIRST_BACKOFF;
                continue;
            }
            Ok(false) | Err(StepError::Stopped) => return,
            Err(error) => error,
        };
        match error {
            StepError::Postgres(error) if error.is_transient() => {
                tracing::warn!(%error, phase = before.shown(None, false), "a step failed; trying again");
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
    let next = "mend the cause, then `carveout move` resumes where it stopped; or `carveout cancel`";
    let (fault, broken) = match error {
        StepError::Broken(fault) => (fault, true),
        StepError::Fault(fault) => (fault, false),
        error => (Fault::new("step_failed", record.id.to_string(), error.to_string(), next), false),
    };
    tracing::error!(id = %record.id, tenant = %record.tenant, code = fault.code, cause = fault.message, "the move stopped");
    let stored = moving.update(&context.store, |record| {
        record.fault = Some(fault);
        if broken && let Ok(phase) = record.phase.after(Event::Broken) {
            record.phase = phase;
        }
    });
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
async fn step(context: &Context, moving: &Moving) -> Result<bool, StepError> {
    let stop = moving.stop.subscribe();
    let record = moving.record();
    // These can be cut off anywhere: what they did not commit is done again.
    let interruptible = async {
        match record.phase {
            Phase::Planned => moving.advance(&context.store, Event::Provision)?,
            Phase::Provisioning => {
                provision(context, moving).await?;
                moving.advance(&context.store, Event::Provisioned)?;
            }
            Phase::Copying => {
                open_lane(context, moving).await?;
                copy::copy(context, moving).await?;
                moving.advance(&context.store, Event::Copied)?;
            }
            Phase::Cancelling => {
                drop_target(context, moving).await?;
                moving.advance(&context.store, Event::Dropped)?;
            }
            Phase::Following | Phase::NeedsCopy | Phase::Cancelled => {}
        }
        Ok::<(), StepError>(())
    };
    tokio::select! {
        done = interruptible => done?,
        () = stop::told(&stop) => return Err(StepError::Stopped),
    }
    match record.phase {
        Phase::Following => follow(context, moving).await.map(|()| false),
        Phase::NeedsCopy | Phase::Cancelled => Ok(false),
        _ => Ok(true),
    }
}

/// Makes database, schemas and tables; empties what an earlier copy left.
async fn provision(context: &Context, moving: &Moving) -> Result<(), StepError> {
    let record = moving.record();
    let target = context.target(&record)?;
    let tables = context.tables(&record.tables).await?;
    if let Some(admin) = &target.admin_url {
        if !record.made_database && !provision::database_exists(admin, &target.database).await? {
            moving.update(&context.store, |record| record.made_database = true)?;
        }
        let source = client::connect(&context.config.source.url, "provision").await?;
        provision::create_database(admin, &target.database, &source).await?;
    }
    let mut client = client::connect(&target.url, "provision").await?;
    control::setup(&mut client).await?;
    if record.copy_again {
        close_lane(context, moving).await?;
        control::reset(&mut client, record.id).await?;
        moving.update(&context.store, |record| record.copy_again = false)?;
    }
    let plan = moving.sink_plan(&target, 0);
    let mut schemas: Vec<String> = tables.iter().map(|keyed| plan.target_name(&keyed.table.name).schema).collect();
    schemas.sort_unstable();
    schemas.dedup();
    for schema in &schemas {
        provision::create_schema(&mut client, record.id, schema).await?;
    }
    for keyed in &tables {
        provision::create_table(&mut client, record.id, &keyed.table, &plan.target_name(&keyed.table.name)).await?;
    }
    Ok(())
}

/// From here on every change of the tenant reaches its spool.
async fn open_lane(context: &Context, moving: &Moving) -> Result<(), StepError> {
    if moving.spool().is_some() {
        return Ok(());
    }
    let record = moving.record();
    let tables = context.tables(&record.tables).await?;
    let (spool, prev_end) =
        SpoolWriter::open(&context.spool_dir(record.id)).map_err(|error| spool_fault(&record, &error))?;
    let link = SpoolLink { state: Arc::clone(spool.state()), prev_end, must_hold: Lsn::ZERO };
    let lane = LaneEnd::new(record.id, record.tenant, record.tables, spool);
    context.pipeline.open(lane, routes(&tables)).await?;
    moving.set_spool(Some(link));
    Ok(())
}

/// Takes the lane out of the pipeline and removes its spool.
async fn close_lane(context: &Context, moving: &Moving) -> Result<(), StepError> {
    let record = moving.record();
    drop(context.pipeline.close(record.id).await?);
    moving.set_spool(None);
    match fs::remove_dir_all(context.spool_dir(record.id)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(spool_fault(&record, &error)),
        _ => Ok(()),
    }
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

/// Runs the lane until it is stopped.
async fn follow(context: &Context, moving: &Moving) -> Result<(), StepError> {
    let record = moving.record();
    let target = context.target(&record)?;
    let Some(link) = moving.spool() else {
        let next = "`carveout move` copies the tenant again";
        return Err(StepError::Broken(Fault::new("gap", record.id.to_string(), "its lane is not open", next)));
    };
    let client = client::connect(&target.url, "open lane").await?;
    let checkpoint = control::open_checkpoint(&client, record.id, &record.tenant, &context.origin()).await?;
    let copied = control::read_copied(&client, record.id).await?;
    drop(client);
    let (commands, receiver) = mpsc::channel(LANE_COMMANDS);
    let plan = LanePlan {
        sink: moving.sink_plan(&target, checkpoint.epoch),
        spool_dir: context.spool_dir(record.id),
        spool: link.state,
        copied: copied.into_iter().collect(),
        prev_end: link.prev_end,
        must_hold: link.must_hold,
        batch_rows: usize::try_from(context.config.tenant_strategy.migration_config.batch_size).unwrap_or(usize::MAX),
    };
    moving.set_lane(Some(commands));
    let lane = Lane::new(
        plan,
        Arc::clone(&moving.meter),
        Arc::clone(&context.target_connections),
        context.pipeline.progress.clone(),
        receiver,
        moving.stop.subscribe(),
    );
    let ended = lane.run().await;
    moving.set_lane(None);
    match ended {
        LaneEnded::Stopped => Err(StepError::Stopped),
        LaneEnded::Fault(fault) => Err(StepError::Fault(fault)),
        LaneEnded::Broken(fault) => Err(StepError::Broken(fault)),
    }
}

/// Drops what the move created, and nothing else.
async fn drop_target(context: &Context, moving: &Moving) -> Result<(), StepError> {
    close_lane(context, moving).await?;
    let record = moving.record();
    let target = context.target(&record)?;
    if let (Isolation::Database, Some(admin)) = (record.to, &target.admin_url) {
        if record.made_database {
            provision::drop_database(admin, &target.database).await?;
            return Ok(());
        }
        if !provision::database_exists(admin, &target.database).await? {
            return Ok(());
        }
    }
    let mut client = client::connect(&target.url, "cancel").await?;
    provision::drop_objects(&mut client, record.id).await?;
    Ok(())
}
