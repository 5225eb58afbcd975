//! A tenant that has a schema of its own in the source's database goes on to a database: its own tables are read, by the same
//! pipeline, and the target is made like the shared ones that they were made like.

use std::sync::Arc;

use connectors::postgres::{client, provision, reverse, slot, snapshot};
use schemas::phase::Event;
use schemas::record::MoveRecord;

use super::{Context, Moving, StepError};

/// Lets the log have what is written in the tenant's schema.
pub(super) async fn publish(context: &Context, moving: &Moving) -> Result<(), StepError> {
    let record = moving.record();
    if record.from.is_none() {
        return Ok(());
    }
    let tables = context.read_by(&record).await?;
    let client = client::connect(&context.config.source.url, "publish").await?;
    reverse::identities(&client, &tables.iter().map(|owned| &owned.table).collect::<Vec<_>>()).await?;
    let publication = &context.config.source.publication;
    reverse::join(&client, publication, &record.tables).await?;
    let mut published = slot::published(&client, publication, &record.tables).await?;
    // All rows are the tenant's: no column says whose they are.
    published.tables.iter_mut().for_each(|(_, table)| table.found_by.clear());
    // After that: whoever was open at the change has a lower one.
    let next_xid = snapshot::next_xid(&client).await?;
    Ok(moving.update(&context.store, |record| (record.published, record.fresh_xid) = (published, next_xid))?)
}

/// The log need not have it any more.
pub(super) async fn unpublish(context: &Context, moving: &Moving) -> Result<(), StepError> {
    let record = moving.record();
    if record.from.is_none() {
        return Ok(());
    }
    let client = client::connect(&context.config.source.url, "publish").await?;
    reverse::leave(&client, &context.config.source.publication, &record.tables).await?;
    Ok(reverse::plain_identities(&client, &record.tables).await?)
}

/// The tenant has left its schema for good: what the earlier move made is dropped. This one is then as if the tenant had come from
/// the shared tables ([`forget`]).
pub(super) async fn leave(context: &Context, moving: &Arc<Moving>) -> Result<(), StepError> {
    unpublish(context, moving).await?;
    let record = moving.record();
    let Some(earlier) = record.after else { return Ok(()) };
    let mut client = client::connect(&context.config.source.url, "complete").await?;
    provision::drop_objects(&mut client, earlier, &context.state).await?;
    match moving.earlier() {
        Some(earlier) => earlier.advance(&context.store, Event::Dropped),
        None => Ok(()),
    }
}

/// As if the tenant had come from the shared tables.
pub(super) fn forget(record: &mut MoveRecord) {
    if let Some(stage) = record.from.take() {
        (record.tables, record.paths) = (stage.homes, stage.paths);
    }
}
