//! Copy joined to stream by transaction visibility, driven as a library: thousands of copies of a
//! small table under a load made to hurt, every replayed old row compared with the state it changes.

mod load;
mod replay;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::PoisonError;

use anyhow::{Context, Result, ensure};
use connectors::postgres::catalog;
use connectors::postgres::control::{self, Copied, Origin};
use connectors::postgres::copy::{CopyJob, copy_table};
use connectors::postgres::policy::{self, Owned};
use connectors::postgres::provision;
use connectors::postgres::slot;
use connectors::postgres::snapshot::{self, HeldSnapshot};
use daemon::moves::routes;
use daemon::pipeline::{self, PipelineHandle};
use daemon::router::{Budget, LaneEnd, Router};
use daemon::spool::SpoolWriter;
use daemon::store::Store;
use schemas::config::Config;
use schemas::record::Published;
use schemas::url::PgUrl;
use schemas::{Lsn, MoveId, TableName, TenantId};
use tests::scene::{Configuration, Scene};
use tests::seed::seed;
use tokio::sync::{mpsc, watch};
use tokio_postgres::Client;

use crate::carve::cli;
use replay::{State, Tally};

const TENANT: &str = "1";
/// Of so many snapshots the rule by position must have got one wrong, or the load did not hurt.
const WRONG_OF: u64 = 20;

struct Rig {
    source: PgUrl,
    owned: Owned,
    published: Published,
    origin: Origin,
    pipeline: PipelineHandle,
    /// The pipeline stops when this is gone.
    _stop: watch::Sender<bool>,
    /// Plain sessions: one on the source for positions, two on the target.
    asking: Client,
    into: Client,
    reading: Client,
}

/// POSTGRES 3.1, invariant 1: no snapshot is joined wrongly; the rule by position would be wrong often.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn five_hundred_copies_join_the_stream_without_one_wrong_row() -> Result<()> {
    copies(500).await
}

/// The same for longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "campaign: the same for 2,000 copies"]
async fn two_thousand_copies_join_the_stream_without_one_wrong_row() -> Result<()> {
    copies(2_000).await
}

async fn copies(copies: u64) -> Result<()> {
    let scene = Scene::start(1).await?;
    let source = scene.source_client().await?;
    source.batch_execute("DROP TABLE pgbench_accounts, pgbench_branches, pgbench_tellers, pgbench_history").await?;
    source.batch_execute(load::TABLE).await?;
    let config = scene.write_config("carveout", &Configuration::default())?;
    cli(&config, &["prepare", "--apply"]).await?;
    let mut load = load::Load::start(&scene, seed("join")).await?;
    let mut rig = Rig::build(&scene, &config).await?;
    let mut tally = Tally::default();
    for n in 0..copies {
        let dir = scene.path().join(format!("lane-{n}"));
        rig.one_copy(&dir, &mut tally).await.with_context(|| format!("copy {n}"))?;
        std::fs::remove_dir_all(&dir)?;
        load.check().await?;
    }
    load.stop().await?;
    println!("{copies} copies: {tally:?}");
    ensure!(tally.snapshots == copies, "{} snapshots", tally.snapshots);
    ensure!(
        tally.position_rule_wrong >= copies / WRONG_OF,
        "the rule by position was wrong only {} times",
        tally.position_rule_wrong
    );
    ensure!(tally.running_then_committed > 0, "no transaction was running in a snapshot and committed after it");
    Ok(())
}

impl Rig {
    async fn build(scene: &Scene, path: &Path) -> Result<Rig> {
        let config = Config::parse(&std::fs::read_to_string(path)?, &|_| None)?;
        let store = Store::open(&scene.path().join("rig"))?;
        let (source, target): (PgUrl, PgUrl) = (config.source.url.clone(), scene.target.url("postgres").parse()?);
        let asking = connectors::postgres::client::connect(&source, "test").await?;
        let owned = policy::resolve(catalog::tables(&asking).await?, &config.tenancy).owned;
        let owned = owned.into_iter().next().context("the table")?;
        let mut into = connectors::postgres::client::connect(&target, "test").await?;
        control::setup(&mut into).await?;
        provision::create_table(&mut into, MoveId(1), &owned.table, &owned.table.name, &[]).await?;
        let finish = provision::read_finish(&asking, &owned.table).await?;
        provision::finish_table(&mut into, &owned.table.name, &finish).await?;
        let beginning = pipeline::begin(&config, &store).await?;
        let base = beginning.base.clone();
        let (broken, _) = mpsc::unbounded_channel();
        let stop = watch::Sender::new(false);
        let budget = Budget { per_tenant: 1 << 40, total: 1 << 40 };
        let tables: BTreeMap<_, _> = routes(std::slice::from_ref(&owned)).into_iter().collect();
        let router = Router::new(tables, budget, config.state_dir.join("spool"));
        let (pipeline, _task) = pipeline::spawn(config, beginning, router, store, broken, stop.subscribe());
        let origin =
            Origin { slot: base.slot, system_id: base.system_id, timeline: base.timeline, state: "rig".to_owned() };
        control::create_checkpoint(&mut into, MoveId(1), &TenantId(TENANT.to_owned()), &origin).await?;
        let published = slot::published(&asking, "carveout", std::slice::from_ref(&owned.table.name)).await?;
        let reading = connectors::postgres::client::connect(&target, "test").await?;
        Ok(Rig { source, owned, published, origin, pipeline, _stop: stop, asking, into, reading })
    }

    /// Opens a lane, copies, drains, replays what the copy does not hold, compares with the source.
    async fn one_copy(&mut self, dir: &Path, tally: &mut Tally) -> Result<()> {
        let (id, tenant) = (MoveId(1), TenantId(TENANT.to_owned()));
        let (spool, _) = SpoolWriter::open(dir)?;
        let state = std::sync::Arc::clone(spool.state());
        let lane = LaneEnd::new(id, tenant.clone(), &self.published, spool);
        self.pipeline.open(lane, routes(std::slice::from_ref(&self.owned))).await?;
        let before = self.insert_position().await?;
        let held = self.joined().await?;
        let copied = self.copy(&held, id, &tenant).await?;
        let mut rows = State::read(&self.reading, &self.owned.table.name, "true").await?;
        // A second snapshot says what must come out.
        let check = snapshot::hold(&self.source, "check").await?;
        snapshot::tick(&self.asking).await?;
        self.pipeline.passed(check.wal_insert_lsn).await?;
        let sealed = *state.sealed.borrow();
        replay::replay(dir, &sealed, &copied, before, &check.snapshot, &mut rows, tally)?;
        let wanted = State::read(&check.client, &self.owned.table.name, &self.owned.filter(&tenant)).await?;
        ensure!(rows == wanted, "after the replay the rows differ from the source's: {}", rows.difference(&wanted));
        self.pipeline.close(id).await?;
        tally.snapshots += 1;
        Ok(())
    }

    async fn joined(&self) -> Result<HeldSnapshot> {
        let demand = self.pipeline.unseen.lock().unwrap_or_else(PoisonError::into_inner).demand();
        loop {
            let held = snapshot::hold(&self.source, "test").await?;
            if demand.met_by(&held.snapshot) {
                return Ok(held);
            }
        }
    }

    async fn copy(&mut self, held: &HeldSnapshot, id: MoveId, tenant: &TenantId) -> Result<Copied> {
        let opened = control::open_checkpoint(&self.into, id, tenant, &self.origin).await?;
        let checkpoint = opened.context("the checkpoint")?;
        let job = CopyJob {
            shared: false,
            id,
            epoch: checkpoint.epoch,
            source: &self.owned.table,
            filter: self.owned.filter(tenant),
            target: self.owned.table.name.clone(),
            snapshot: &held.snapshot,
            wal_insert_lsn: held.wal_insert_lsn,
        };
        copy_table(&held.client, &mut self.into, &job, |_| async {}).await?;
        let name: &TableName = &self.owned.table.name;
        let mut copied = control::read_copied(&self.into, id, std::slice::from_ref(name)).await?;
        copied.remove(name).context("the copy's record")
    }

    async fn insert_position(&self) -> Result<Lsn> {
        let row = self.asking.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?;
        Ok(row.get::<_, String>(0).parse()?)
    }
}
