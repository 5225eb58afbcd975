//! A load shaped like pgbench's: branch after branch is cut over to a database, some come back, and all of them write.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::oracle;
use tests::scene::{Configuration, Scene, TABLES};
use tests::wait::until;

use super::clients::{Clients, Ledger, assert_never_at_once};
use super::probes::{self, Probes, Tally};
use super::work::{Kind, Work};
use super::{SOON, Stage};
use crate::carve::{cli, phase};

/// So many of a branch, each writing so often.
const CLIENTS: i32 = 2;
const EVERY: Duration = Duration::from_millis(100);
/// What a branch writes before its writes move, and after.
const BETWEEN: u64 = 20;

/// How much of it.
struct Scale {
    branches: u32,
    /// So many of them are cut over.
    over: u32,
    /// So many of those come back.
    back: u32,
}

/// One branch's writers.
struct Branch {
    tenant: String,
    clients: Clients,
    /// Of one that moves.
    probes: Option<Probes>,
}

/// What one branch's writers were told.
struct Told {
    tenant: String,
    ledger: Ledger,
    probes: Option<Tally>,
}

impl Branch {
    fn start(scene: &Scene, tenant: u32, moves: bool) -> Result<Branch> {
        let tenant = tenant.to_string();
        let work = Work::of(Kind::TpcB, 1).every(EVERY);
        let works: Vec<(i32, Work)> = (0..CLIENTS).map(|client| (client, work)).collect();
        let clients = Clients::working(scene, &tenant, &works, false)?;
        let probes = moves.then(|| Probes::start(scene, &tenant));
        Ok(Branch { tenant, clients, probes })
    }

    /// Cuts over or rolls back, with its writers before and after.
    async fn switch(&self, stage: &Stage, command: &str) -> Result<f64> {
        self.clients.progress(BETWEEN).await?;
        self.probes.iter().for_each(|probes| probes.hurry(true));
        // A refused cutover takes the target's fence away again; how long the pause may be is not the question here.
        let report = stage.json(&[command, &self.tenant, "--max-pause", "60s"]).await?;
        let (isolation, settled) =
            if command == "cutover" { ("database", "reversing") } else { ("shared", "rolled_back") };
        ensure!(report["route"]["isolation"] == isolation && report["verified"] == true, "{report}");
        phase(&stage.daemon, &self.tenant, &[settled]).await?;
        self.clients.progress(BETWEEN).await?;
        self.probes.iter().for_each(|probes| probes.hurry(false));
        report["pause_ms"].as_f64().context("pause_ms")
    }

    async fn stop(self) -> Result<Told> {
        let probes = match self.probes {
            Some(probes) => Some(probes.stop().await.with_context(|| format!("tenant {}", self.tenant))?),
            None => None,
        };
        let ledger = self.clients.stop().await.with_context(|| format!("tenant {}", self.tenant))?;
        Ok(Told { tenant: self.tenant, ledger, probes })
    }
}

/// Every table that has rows of the branches.
fn tables() -> impl Iterator<Item = &'static str> {
    TABLES.into_iter().chain(["probes"])
}

impl Told {
    /// Where it lives, by its route.
    async fn lives_in(&self, stage: &Stage) -> Result<String> {
        let source = stage.scene.source_client().await?;
        let sql = "SELECT isolation FROM carveout.tenant_routes WHERE tenant = $1";
        let row = source.query_opt(sql, &[&self.tenant]).await?;
        Ok(row.map_or_else(|| "shared".to_owned(), |row| row.get(0)))
    }

    /// What was acknowledged is there, all of it, once.
    async fn assert_held_by(&self, client: &tokio_postgres::Client) -> Result<()> {
        self.ledger.assert_held_by(client, "public", &self.tenant).await?;
        match &self.probes {
            Some(probes) => probes.assert_held_by(client, &self.tenant).await,
            None => Ok(()),
        }
    }

    /// Both sides have the same, and what the writers were told.
    async fn assert_equal(&self, stage: &Stage) -> Result<()> {
        let source = stage.scene.source_client().await?;
        let target = stage.scene.target_client(&format!("bid_{}", self.tenant)).await?;
        for table in tables() {
            let (name, filter) = (format!("public.{table}"), format!("bid = {}", self.tenant));
            until(&format!("{table} the same on both sides"), SOON, async || {
                oracle::assert_equal(&source, &name, &filter, &target, &name).await
            })
            .await?;
            let foreign = oracle::foreign_rows(&target, &name, "bid", &self.tenant).await?;
            ensure!(foreign == 0, "{foreign} foreign rows in {name}");
        }
        self.assert_held_by(&source).await.context("the source")?;
        self.assert_held_by(&target).await.context("the target")
    }

    /// The move ends: the target alone has what was acknowledged.
    async fn complete(&self, stage: &Stage) -> Result<()> {
        stage.json(&["complete", &self.tenant]).await?;
        let source = stage.scene.source_client().await?;
        for table in tables() {
            let sql = format!("SELECT count(*) FROM {table} WHERE bid = {}", self.tenant);
            let stayed: i64 = source.query_one(&sql, &[]).await?.get(0);
            ensure!(stayed == 0, "{stayed} rows of {table} stayed");
        }
        self.assert_held_by(&stage.scene.target_client(&format!("bid_{}", self.tenant)).await?).await
    }

    /// At no moment did both sides take writes.
    fn assert_never_on_both_sides(&self) -> Result<()> {
        let probes = self.probes.iter().flat_map(Tally::spans);
        assert_never_at_once(self.ledger.spans().chain(probes).collect())
    }
}

/// Issue line 1.
async fn branches_move(scale: Scale) -> Result<()> {
    let began = Instant::now();
    let scene = Scene::start(scale.branches).await?;
    let stage = Stage::of(scene, probes::TABLE, &Configuration::default()).await?;
    for tenant in 1..=scale.over {
        cli(&stage.config, &["move", &tenant.to_string(), "--to", "database"]).await?;
    }
    let start = |tenant| Branch::start(&stage.scene, tenant, tenant <= scale.over);
    let branches: Vec<Branch> = (1..=scale.branches).map(start).collect::<Result<_>>()?;
    let (moving, unmoved) = branches.split_at(scale.over as usize);
    for branch in moving {
        phase(&stage.daemon, &branch.tenant, &["streaming", "ready"]).await?;
    }
    println!("in step after {:?}", began.elapsed());
    let (mut pauses, mut back) = (Vec::new(), 0);
    for pair in moving.chunks(2) {
        for branch in pair {
            pauses.push(branch.switch(&stage, "cutover").await.with_context(|| format!("cut over {}", branch.tenant))?);
        }
        // The one that has been away for longer comes back, while the other one is away.
        if back < scale.back {
            back += 1;
            pauses.push(
                pair[0].switch(&stage, "rollback").await.with_context(|| format!("roll {} back", pair[0].tenant))?,
            );
        }
    }
    for branch in unmoved {
        branch.clients.progress(BETWEEN).await?;
    }
    let mut told = Vec::new();
    for branch in branches {
        told.push(branch.stop().await?);
    }
    println!("stopped after {:?}; pauses {pauses:?} ms", began.elapsed());
    judge(&stage, &scale, &told).await?;
    println!("{:?} in all", began.elapsed());
    stage.daemon.assert_no_errors(&[])
}

async fn judge(stage: &Stage, scale: &Scale, told: &[Told]) -> Result<()> {
    let (moved, unmoved) = told.split_at(scale.over as usize);
    let (mut away, source) = (Vec::new(), stage.scene.source_client().await?);
    for branch in moved {
        branch.assert_never_on_both_sides().with_context(|| format!("tenant {}", branch.tenant))?;
    }
    for branch in moved {
        branch.assert_equal(stage).await.with_context(|| format!("tenant {}", branch.tenant))?;
        if branch.lives_in(stage).await? == "database" {
            away.push(branch);
        }
        let probes = branch.probes.as_ref().context("no probes")?;
        let (here, there) = (probes.written("shared"), probes.written("database"));
        println!(
            "tenant {}: {}; probes: {here} at the source and {there} in the target acknowledged, {} refused, {} away",
            branch.tenant, branch.ledger, probes.refused, probes.away
        );
        ensure!(branch.ledger.in_target() > 0 && here > 0 && there > 0 && probes.refused > 0, "too little happened");
    }
    ensure!(away.len() == (scale.over - scale.back) as usize, "{} branches live in databases", away.len());
    for branch in away {
        branch.complete(stage).await.with_context(|| format!("complete {}", branch.tenant))?;
    }
    for branch in unmoved {
        let ledger = &branch.ledger;
        ensure!(
            ledger.was_never_refused() && ledger.in_target() == 0,
            "tenant {} was never moved: {ledger}",
            branch.tenant
        );
        branch.assert_held_by(&source).await.with_context(|| format!("tenant {}", branch.tenant))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn branches_leave_and_come_back_and_each_write_is_on_one_side() -> Result<()> {
    branches_move(Scale { branches: 8, over: 4, back: 2 }).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "campaign: ten of twenty branches"]
async fn ten_of_twenty_branches_leave_and_five_come_back() -> Result<()> {
    branches_move(Scale { branches: 20, over: 10, back: 5 }).await
}
