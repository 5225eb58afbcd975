//! The copy of a move: one snapshot, several tables at a time, each complete or begun again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use connectors::postgres::apply::{SinkPlan, silence};
use connectors::postgres::catalog::Table;
use connectors::postgres::control::Copied;
use connectors::postgres::copy::{CopyJob, copy_table, empty, estimate};
use connectors::postgres::policy::{Owned, Path};
use connectors::postgres::snapshot::{self, HeldSnapshot};
use connectors::postgres::{Client, Error, Result, catalog, client, control, provision, slot};
use futures_util::future::try_join_all;
use schemas::config::Target;
use schemas::record::{Fault, MoveRecord, Published};
use schemas::{Lsn, TableName};
use tokio::sync::Semaphore;

use super::driver::open_checkpoint;
use super::{Context, Moving, StepError, parts};

/// Between two tries to get a snapshot that shows everything delivered before the lane was open.
const SNAPSHOT_PAUSE: Duration = Duration::from_millis(50);
/// After this long, the operator is told what the copy waits for.
const TELL_AFTER: Duration = Duration::from_secs(10);

/// Copies every table that is not yet copied; afterwards the stream has passed the copy.
pub(super) async fn copy(context: &Context, moving: &Moving) -> std::result::Result<(), StepError> {
    let record = moving.record();
    let target = context.target(&record)?;
    let mut tables = context.read_by(&record).await?;
    require_spool(moving)?;
    let client = client::connect(&target.url, "copy").await?;
    let checkpoint = open_checkpoint(context, &client, &record).await?;
    let mut copied = control::read_copied(&client, record.id, &record.tables).await?;
    let homes = context.at_home(&record).await?;
    let trees = trees(&record, &homes)?;
    let again = incomplete_trees(&trees, &copied);
    copied.retain(|table, _| !again.contains(table));
    let mut left: Vec<&mut Owned> = tables.iter_mut().filter(|owned| !copied.contains_key(&owned.table.name)).collect();
    let done: u64 = copied.values().map(|copied| copied.rows).sum();
    moving.rows_copied.store(done, Ordering::Relaxed);
    moving.copied_before(&copied);
    if !left.is_empty() {
        let _turn = context.copying.acquire().await.map_err(|_| StepError::Stopped)?;
        let plan = moving.sink_plan(&target, 0);
        if record.back.is_some() {
            empty_home(context, moving, &homes, &left).await?;
        }
        for owned in &left {
            provision::same_shape(&client, &owned.table, &plan.target_name(&owned.table.name)).await?;
        }
        // What the spool holds since before a restart was delivered then; it is delivered again, with what
        // came before it and is in no spool, before it counts here.
        let spooled = moving.spool().map_or(Lsn::ZERO, |link| link.state.sealed.borrow().end);
        context.pipeline.passed(spooled).await?;
        // While the source is busy nothing is begun that it has to keep row versions for.
        context.gate.passed_anew().await;
        let held = joined_snapshot(context, moving, record.fresh_xid).await?;
        let shown = shown(context, moving, &held, &mut left).await?;

        // Not in the snapshot's transaction, which would keep every table locked against DDL from now on.
        let asking = client::connect(&context.config.source.url, "copy").await?;
        let estimates = left.iter().map(|owned| {
            let (filter, asking) = (owned.filter(&record.tenant), &asking);
            async move { estimate(asking, &owned.table.name, &filter).await }
        });
        let estimates = try_join_all(estimates).await?;
        moving.will_copy(left.iter().map(|owned| owned.table.name.clone()).zip(estimates.iter().copied()));
        let estimated: u64 = estimates.into_iter().sum();
        moving.update(&context.store, |record| record.rows_total = done + estimated)?;
        // One connection of the tenant's share is the one that holds the checkpoint here.
        let share = context.config.tenant_strategy.database_config.max_connections_per_tenant.saturating_sub(1).max(1);
        let share = Semaphore::new(share as usize);
        let copy = async |owned: &Owned| {
            let _share = share.acquire().await.map_err(|_| StepError::Stopped)?;
            copy_one(context, moving, &target, (&held, &shown), owned, checkpoint.epoch).await
        };
        for level in levels(&record, &trees) {
            try_join_all(left.iter().filter(|owned| level.contains(&owned.table.name)).map(|owned| copy(owned)))
                .await?;
        }
        copied = control::read_copied(&client, record.id, &record.tables).await?;
    }
    if record.back.is_none() {
        finish_tables(context, moving, &target, &context.tables(record.models()).await?).await?;
    }
    // Until the stream is past this, a crash of the source could take back what a snapshot showed.
    let position = copied.values().map(|copied| copied.wal_insert_lsn).max().unwrap_or(Lsn::ZERO);
    let source = client::connect(&context.config.source.url, "copy").await?;
    snapshot::tick(&source).await?;
    context.pipeline.passed(position).await?;
    let rows: u64 = copied.values().map(|copied| copied.rows).sum();
    moving.update(&context.store, |record| (record.rows_copied, record.rows_total) = (rows, rows))?;
    Ok(())
}

/// The partitions that the snapshot shows.
async fn shown(
    context: &Context,
    moving: &Moving,
    held: &HeldSnapshot,
    left: &mut [&mut Owned],
) -> std::result::Result<Published, StepError> {
    if !moving.record().published.is_partitioned() {
        return Ok(Published::default());
    }
    let names: Vec<TableName> = left.iter().map(|owned| owned.table.name.clone()).collect();
    let shown = slot::published(&held.client, &context.config.source.publication, &names).await?;
    // Known only once a table is copied, and nothing has come or gone meanwhile.
    moving.update(&context.store, |record| names.iter().for_each(|name| record.published.forget_partitions(name)))?;
    for owned in left {
        catalog::take_partitions(&held.client, &mut owned.table).await?;
    }
    Ok(shown)
}

/// Where a table hangs.
struct Hangs {
    /// As the lane reads it.
    table: TableName,
    /// What it hangs on in the end.
    root: TableName,
    /// So many steps below.
    depth: usize,
}

/// How the tables hang on each other where others share them.
fn trees(record: &MoveRecord, homes: &[Owned]) -> std::result::Result<Vec<Hangs>, StepError> {
    let names = record.back.as_ref().map_or(&record.tables, |back| &back.homes);
    let hangs = record.tables.iter().zip(names).map(|(table, name)| {
        let home = homes.iter().find(|owned| owned.table.name == *name);
        let gone = || Fault::new("table_changed", name.to_string(), "it is gone or excluded", "carveout status");
        let home = home.ok_or_else(|| StepError::Fault(gone()))?;
        Ok(Hangs { table: table.clone(), root: home.root().clone(), depth: home.depth() })
    });
    hangs.collect()
}

/// Which tables may be copied at the same time, one group after the other. Rows that come home are found there by the rows that
/// they hang on: those are there first, all of them.
fn levels<'a>(record: &MoveRecord, trees: &'a [Hangs]) -> Vec<HashSet<&'a TableName>> {
    let mut levels: BTreeMap<usize, HashSet<&TableName>> = BTreeMap::new();
    for hangs in trees {
        let level = if record.back.is_some() { hangs.depth } else { 0 };
        levels.entry(level).or_default().insert(&hangs.table);
    }
    levels.into_values().collect()
}

/// Tables that refer to each other are copied under one snapshot: under two, a row of one could have its tenant
/// in another's past. Returns the tables that must be copied again for that.
fn incomplete_trees(trees: &[Hangs], copied: &HashMap<TableName, Copied>) -> HashSet<TableName> {
    let mut again = HashSet::new();
    for root in trees.iter().filter(|hangs| hangs.depth == 0).map(|hangs| &hangs.root) {
        let tree: Vec<&TableName> =
            trees.iter().filter(|hangs| hangs.root == *root).map(|hangs| &hangs.table).collect();
        let snapshots: HashSet<_> =
            tree.iter().map(|table| copied.get(*table).map(|copied| copied.snapshot.to_string())).collect();
        if snapshots.len() > 1 {
            again.extend(tree.into_iter().cloned());
        }
    }
    again
}

/// After a restart the spool must still hold what was acknowledged: nothing else does.
fn require_spool(moving: &Moving) -> std::result::Result<(), StepError> {
    let id = moving.record().id;
    let link = moving.spool();
    let held = link.as_ref().map_or(Lsn::ZERO, |link| link.must_hold);
    let end = link.as_ref().map_or(Lsn::ZERO, |link| link.state.sealed.borrow().end);
    let first = link.map_or(Lsn::ZERO, |link| link.prev_end);
    if end >= held && first == Lsn::ZERO {
        return Ok(());
    }
    let message = format!("its spool ends at {end}, but {held} was acknowledged: the spool was changed or lost");
    Err(StepError::Broken(Fault::new("gap", id.to_string(), message, "`carveout move` copies the tenant again")))
}

/// A snapshot that shows every transaction delivered before the lane was open: those never come
/// to the lane.
async fn joined_snapshot(
    context: &Context,
    moving: &Moving,
    fresh_xid: u64,
) -> std::result::Result<HeldSnapshot, StepError> {
    let demand = context.pipeline.unseen.lock().unwrap_or_else(PoisonError::into_inner).demand();
    let (began, mut told) = (Instant::now(), false);
    loop {
        let held = snapshot::hold(&context.config.source.url, "snapshot").await?;
        if demand.met_by(&held.snapshot) && held.snapshot.xmin >= fresh_xid {
            moving.meter.set_trouble(None);
            // Asynchronous commits that it shows reach the disk before anything is copied.
            let source = client::connect(&context.config.source.url, "copy").await?;
            snapshot::tick(&source).await?;
            return Ok(held);
        }
        drop(held);
        if began.elapsed() > TELL_AFTER && !std::mem::replace(&mut told, true) {
            let why = "the end of transactions on the source that were open when the tables were published, or that were \
                 committed and are not visible yet (a synchronous standby that is away)";
            tracing::warn!("the copy waits for {why}");
            moving.meter.set_trouble(Some(why.to_owned()));
        }
        tokio::time::sleep(SNAPSHOT_PAUSE).await;
    }
}

async fn copy_one(
    context: &Context,
    moving: &Moving,
    target: &Target,
    (held, shown): (&HeldSnapshot, &Published),
    owned: &Owned,
    epoch: i64,
) -> std::result::Result<(), StepError> {
    let _table = context.copy_tables.acquire().await.map_err(|_| StepError::Stopped)?;
    let _connection = context.target_connections.acquire().await.map_err(|_| StepError::Stopped)?;
    let record = moving.record();
    let url = &context.config.source.url;
    let from = held.join(url, &format!("copy {}", record.id)).await?;
    let mut into = client::connect(&target.url, &format!("copy {}", record.id)).await?;
    let (plan, shared) = (moving.sink_plan(target, epoch), record.back.is_some());
    if shared {
        at_home(&into, &plan).await?;
    }
    let job = CopyJob {
        id: record.id,
        epoch,
        source: &owned.table,
        filter: owned.filter(&record.tenant),
        target: plan.target_name(&owned.table.name),
        shared,
        snapshot: &held.snapshot,
        wal_insert_lsn: held.wal_insert_lsn,
    };
    moving.begins_copy(&owned.table.name);
    let rows = copy_table(&from, &mut into, &job, |rows| {
        moving.copies(&owned.table.name, rows);
        moving.rows_copied.fetch_add(rows, Ordering::Relaxed);
        async move {
            context.gate.passed().await;
            context.throttle.take(rows).await;
        }
    })
    .await;
    let rows = match rows {
        Err(error) if error.lacks_partition() && shared => {
            return Err(parts::without_a_place(&owned.table, &job.target, &plan.url, error).await);
        }
        // A partition that came meanwhile: with another snapshot the target gets it too.
        Err(error) if error.lacks_partition() => {
            return Err(Error::connection(format!("copy {}", owned.table.name), error).into());
        }
        rows => rows?,
    };
    if owned.table.partitioned_by.is_some() {
        // While `from` reads, none can go; one that came may have been read too.
        let names = std::slice::from_ref(&owned.table.name);
        let asking = client::connect(url, &format!("copy {}", record.id)).await?;
        let now = slot::published(&asking, &context.config.source.publication, names).await?;
        if shown.repartitioned(&now).is_empty() {
            moving.update(&context.store, |record| record.published.take_partitions(&now))?;
        }
    }
    drop(from);
    moving.ends_copy(&owned.table.name, rows);
    Ok(())
}

/// What the tables that are left may have of the tenant at home: whoever is found by another row goes before that.
async fn empty_home(
    context: &Context,
    moving: &Moving,
    homes: &[Owned],
    left: &[&mut Owned],
) -> std::result::Result<(), StepError> {
    let record = moving.record();
    let plan = moving.sink_plan(&context.target(&record)?, 0);
    let names: HashSet<TableName> = left.iter().map(|owned| plan.target_name(&owned.table.name)).collect();
    let mut homes: Vec<&Owned> = homes.iter().filter(|owned| names.contains(&owned.table.name)).collect();
    homes.sort_by_key(|owned| std::cmp::Reverse(owned.depth()));
    if let Some(whole) = homes.iter().find(|owned| matches!(owned.path, Path::Reference | Path::Whole(_))) {
        let message = "nothing says which of its rows are the tenant's";
        let next = "put its policy under tenancy.tables back, and start the daemon again";
        return Err(StepError::Fault(Fault::new("table_changed", whole.table.name.to_string(), message, next)));
    }
    let client = client::connect(&plan.url, &format!("copy {}", record.id)).await?;
    at_home(&client, &plan).await?;
    for owned in homes {
        empty(&client, owned, &record.tenant).await?;
    }
    Ok(())
}

/// A session that writes the tenant's rows where others have theirs: past its fence, and nothing of theirs fires.
async fn at_home(client: &Client, plan: &SinkPlan) -> std::result::Result<(), StepError> {
    silence(client).await?;
    Ok(plan.pass(client).await?)
}

/// Keys, checks and indexes, and what hangs on the tables; what is there already is left as it is.
async fn finish_tables(
    context: &Context,
    moving: &Moving,
    target: &Target,
    tables: &[Owned],
) -> std::result::Result<(), StepError> {
    let plan = moving.sink_plan(target, 0);
    let source = client::connect(&context.config.source.url, "provision").await?;
    let finish = tables.iter().map(|owned| {
        let (source, plan) = (&source, &plan);
        async move {
            let _connection = context.target_connections.acquire().await.map_err(|_| StepError::Stopped)?;
            let finish = provision::read_finish(source, &owned.table).await?;
            let mut client = client::connect(&target.url, "index").await?;
            let made: Result<()> =
                provision::finish_table(&mut client, &plan.target_name(&owned.table.name), &finish).await;
            made.map_err(StepError::from)
        }
    });
    try_join_all(finish).await?;
    let mut client = client::connect(&target.url, "provision").await?;
    let tables: Vec<&Table> = tables.iter().map(|owned| &owned.table).collect();
    let left_out =
        provision::make_parts(&source, &mut client, moving.record().id, &mut moving.place(), &tables).await?;
    moving.leave_out(left_out);
    Ok(())
}
