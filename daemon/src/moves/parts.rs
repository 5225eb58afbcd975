//! What a running lane's target gets besides rows: foreign keys are validated once it shows one moment of the source;
//! a fault that comes from a type of the target, or from partitions that it does not have, says what is lacking.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use connectors::postgres::catalog::{self, Table};
use connectors::postgres::provision::{keys, needs, objects};
use connectors::postgres::{Error, client, spare};
use schemas::TableName;
use schemas::record::{Fault, Published};
use schemas::url::PgUrl;
use tokio::sync::{mpsc, oneshot};

use super::keys::caught_up;
use super::{Context, Moving, StepError};

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

/// What the source's types are called.
pub(super) async fn types(context: &Context) -> Result<Arc<HashMap<u32, String>>, StepError> {
    let _turn = context.catalogs.acquire().await.map_err(|_| StepError::Stopped)?;
    let source = spare::take(&context.config.source.url, "open lane").await?;
    let names = objects::type_names(&source).await?;
    source.keep();
    Ok(Arc::new(names))
}

/// Validates the foreign keys. Rows that do not hold one are no reason to stop the lane.
pub(super) async fn validate(context: &Context, moving: &Moving) {
    let mut backoff = FIRST_BACKOFF;
    loop {
        let Err(error) = try_validate(context, moving).await else { return };
        tracing::info!(%error, "the foreign keys could not be validated yet; trying again");
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(LONGEST_BACKOFF);
    }
}

async fn try_validate(context: &Context, moving: &Moving) -> Result<(), StepError> {
    let (record, Some(link)) = (moving.record(), moving.spool()) else { return Ok(()) };
    if record.back.is_some() {
        return Ok(());
    }
    // The stream is past the copies' snapshots, so what is spooled now leads out of them.
    let sealed = link.state.sealed.borrow().end;
    caught_up(&link.state, sealed).await;
    let _turn = context.catalogs.acquire().await.map_err(|_| StepError::Stopped)?;
    let tables = context.tables(record.models()).await?;
    let tables: Vec<&Table> = tables.iter().map(|owned| &owned.table).collect();
    let (source, place) = (spare::take(&context.config.source.url, "validate").await?, moving.place());
    let keys = keys::read(&source, &place, &tables).await?;
    source.keep();
    let mut target = spare::take(&context.target(&record)?.url, "validate").await?;
    moving.leave_out(keys::validate(&mut target, &place, &keys).await?);
    target.keep();
    Ok(())
}

/// Records the partitions whose rows the lane reads.
pub(super) async fn record_partitions(
    context: &Context,
    moving: &Moving,
    mut asked: mpsc::Receiver<(Published, oneshot::Sender<()>)>,
) {
    while let Some((seen, recorded)) = asked.recv().await {
        match moving.update(&context.store, |record| record.published.take_partitions(&seen)) {
            // The lane may be gone.
            Ok(()) => drop(recorded.send(())),
            Err(error) => tracing::error!(%error, "the partitions could not be recorded"),
        }
    }
}

/// What of a tenant that comes home finds no partition there: the partitions of its own which the shared table lacks.
pub(super) async fn without_a_place(table: &Table, home: &TableName, url: &PgUrl, error: Error) -> StepError {
    let there = async { catalog::partitions_of(&client::connect(url, "compare").await?, home).await };
    let there = there.await.unwrap_or_else(|error| {
        tracing::debug!(%error, "the partitions of both sides could not be compared");
        table.partitions.clone()
    });
    let lacks = table.partitions.iter().filter(|own| !there.iter().any(|other| other.bound == own.bound));
    let lacks: Vec<String> = lacks.map(|own| format!("{} {}", own.name, own.bound)).collect();
    if lacks.is_empty() {
        return error.into();
    }
    let message = format!("{home} has no place for all of its rows; partitions that it lacks: {}", lacks.join(", "));
    let next = "make them there, then `carveout resume`; or `carveout cancel`";
    StepError::Fault(Fault::new("no_partition", table.name.to_string(), message, next))
}

/// Adds what the target's types lack, where they are not the source's any more.
pub(super) async fn explain(context: &Context, moving: &Moving, fault: Fault) -> Fault {
    // Not of other faults: looking takes a moment, in which they would not be known.
    if fault.code != "apply" || !fault.message.contains(objects::NOT_OF_ITS_TYPE) {
        return fault;
    }
    match differing_types(context, moving).await {
        Ok(types) if !types.is_empty() => {
            let (names, sql): (Vec<String>, Vec<String>) = types.into_iter().unzip();
            let message = format!("{}; type {} is another on the source now", fault.message, names.join(", "));
            let next = format!("in the target: {}; then `carveout move` resumes; or `carveout cancel`", sql.join("; "));
            Fault { message, next, ..fault }
        }
        Ok(_) => fault,
        Err(error) => {
            tracing::debug!(%error, "the types of both sides could not be compared");
            fault
        }
    }
}

async fn differing_types(context: &Context, moving: &Moving) -> Result<Vec<(String, String)>, StepError> {
    let record = moving.record();
    let tables = context.tables(record.models()).await?;
    let tables: Vec<&Table> = tables.iter().map(|owned| &owned.table).collect();
    let source = client::connect(&context.config.source.url, "compare").await?;
    let target = client::connect(&context.target(&record)?.url, "compare").await?;
    let needs = needs::read(&source, &tables).await?;
    Ok(objects::changed(&target, &needs.before).await?)
}
