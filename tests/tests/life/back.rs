//! The way back after much was written in the target: all of it is at the source, none of it comes round again, and no key that a
//! sequence gave is there twice, whoever drew it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use daemon::demo::cluster::ClusterOptions;
use tests::oracle;
use tests::scene::Scene;
use tests::wait::until;
use tokio_postgres::Client;

use super::clients::{Clients, Ledger};
use super::log::Log;
use super::work::{Kind, Work};
use super::{SETUP, SOON, Stage, TABLES, configuration};
use crate::carve::phase;

const TENANT: &str = "1";
/// The longest that the campaign's writes may take.
const LONG: Duration = Duration::from_secs(900);
/// So many blocks are drawn on each side.
const BLOCKS: i64 = 3;

const SEQUENCES: [&str; 2] = ["drawn_id_seq", "tickets"];

/// How much of it.
struct Scale {
    /// Rows that are written in the target before the rollback.
    writes: u64,
    /// The last value of the sequences, where they are to have small blocks.
    last: Option<i64>,
    /// Of a block, so many go into the tenant's transactions.
    parts: i64,
}

/// Keys of both kinds. Nothing but the sequence keeps a ticket from being there twice.
fn drawn(last: Option<i64>) -> String {
    let most = last.map(|last| format!("MAXVALUE {last}")).unwrap_or_default();
    format!(
        "CREATE SEQUENCE tickets {most};
         CREATE TABLE drawn (
           id bigint GENERATED ALWAYS AS IDENTITY ({most} START 1) PRIMARY KEY, ticket int NOT NULL DEFAULT nextval('tickets'),
           bid int NOT NULL, client int NOT NULL, number bigint NOT NULL);
         ALTER SEQUENCE tickets OWNED BY drawn.ticket"
    )
}

/// Values that the target may draw.
#[derive(Clone, Copy)]
struct Block {
    first: i64,
    last: i64,
}

impl Block {
    fn size(self) -> i64 {
        self.last - self.first + 1
    }
}

/// What the daemon has said it reserved of this sequence.
fn blocks(stage: &Stage, sequence: &str) -> Result<Vec<Block>> {
    let log = stage.daemon.log()?;
    let lines = log.lines().filter(|line| line.contains("a block of values was reserved") && line.contains(sequence));
    let value = |line: &str, name: &str| -> Result<i64> {
        let text = line.split_once(&format!(" {name}=")).context("no value in the log")?.1;
        Ok(text.split(' ').next().unwrap_or_default().parse()?)
    };
    lines.map(|line| Ok(Block { first: value(line, "first")?, last: value(line, "last")? })).collect()
}

/// Waits until the daemon has reserved the next blocks, where much of them is used: as many rows as go into one transaction must
/// have room, or the target draws what was not reserved before anybody looks.
async fn room(stage: &Stage, target: &Client) -> Result<()> {
    for sequence in SEQUENCES {
        until(&format!("room in a block of {sequence}"), SOON, async || {
            let block = *blocks(stage, sequence)?.last().context("no block")?;
            let drawn: i64 = target.query_one(&format!("SELECT last_value FROM {sequence}"), &[]).await?.get(0);
            ensure!(drawn < block.first + block.size() * 8 / 10, "{drawn} of {} to {}", block.first, block.last);
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// Who draws: the tenant in its target, others at the source.
struct Drawers {
    own: Clients,
    others: [Clients; 2],
    /// Rows of one transaction of the tenant.
    part: u64,
}

impl Drawers {
    fn start(scene: &Scene, part: i64) -> Result<Drawers> {
        let start = |tenant, works: &[(i32, Work)]| Clients::working(scene, tenant, works, true);
        let works = [(0, Work::of(Kind::Drawn, 1)), (1, Work::of(Kind::Drawn, part / 2))];
        let own = start(TENANT, &[(0, Work::of(Kind::Drawn, part))])?;
        Ok(Drawers { own, others: [start("2", &works)?, start("3", &works)?], part: part.unsigned_abs() })
    }

    /// So many rows on each side, at the same time.
    async fn draw(&self, stage: &Stage, rows: i64, scale: &Scale) -> Result<()> {
        let rows = rows.unsigned_abs();
        let at_source = || self.others.iter().map(Clients::done).sum::<u64>();
        let (wanted, wanted_there) = (self.own.done() + rows, at_source() + rows);
        let target = stage.scene.target_client(&format!("bid_{TENANT}")).await?;
        while self.own.done() < wanted || at_source() < wanted_there {
            if scale.last.is_some() {
                room(stage, &target).await?;
            }
            let next = self.own.done() + self.part;
            self.own.allow(1);
            self.others.iter().for_each(|clients| clients.allow(2));
            self.own.reach(next, SOON).await?;
        }
        Ok(())
    }
}

/// Waits until the way back has nearly caught up with what was written at once.
async fn in_step(stage: &Stage) -> Result<()> {
    until("the way back in step", LONG, async || {
        let status = stage.daemon.tenant(TENANT).await?;
        ensure!(status["lag_seconds"].as_f64().is_some_and(|lag| lag < 2.0), "{status}");
        Ok(())
    })
    .await
}

/// No key is there twice.
async fn assert_unique(client: &Client) -> Result<()> {
    let sql = "SELECT count(*), count(DISTINCT id), count(DISTINCT ticket) FROM public.drawn";
    let row = client.query_one(sql, &[]).await?;
    let (rows, ids, tickets): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    println!("{rows} rows with {ids} ids and {tickets} tickets");
    ensure!(rows == ids && rows == tickets, "{rows} rows have {ids} ids and {tickets} tickets");
    Ok(())
}

/// Both sides have the same rows of the tenant, and what its clients were told.
async fn assert_equal(stage: &Stage, ledgers: &[Ledger]) -> Result<(Client, Client)> {
    let source = stage.scene.source_client().await?;
    let target = stage.scene.target_client(&format!("bid_{TENANT}")).await?;
    for table in TABLES.into_iter().chain(["drawn"]) {
        let filter = match table {
            "notes" => format!("account IN (SELECT id FROM accounts WHERE bid = {TENANT})"),
            "kinds" => "true".to_owned(),
            _ => format!("bid = {TENANT}"),
        };
        let name = format!("public.{table}");
        until(&format!("{table} the same on both sides"), LONG, async || {
            oracle::assert_equal(&source, &name, &filter, &target, &name).await
        })
        .await?;
    }
    for ledger in ledgers {
        ledger.assert_held_by(&source, "public", TENANT).await.context("the source")?;
        ledger.assert_held_by(&target, "public", TENANT).await.context("the target")?;
    }
    Ok((source, target))
}

/// Issue line 4.
async fn come_back(scale: Scale) -> Result<()> {
    let began = Instant::now();
    let scene = Scene::empty(ClusterOptions::default(), ClusterOptions::default()).await?;
    let stage = Stage::of(scene, &format!("{SETUP}; {}", drawn(scale.last)), &configuration("", "")).await?;
    stage.carve(TENANT, "database").await?;
    let (source, target) = (stage.scene.source_client().await?, stage.scene.target_client("bid_1").await?);
    let logs = [Log::keep("source", &source).await?, Log::keep("target", &target).await?];
    let block = scale.last.map_or(1_000_000, |last| last / 100);
    let drawers = Drawers::start(&stage.scene, block / scale.parts)?;
    let steady: Vec<(i32, Work)> = (0..2).map(|client| (client, Work::of(Kind::Writes, 1))).collect();
    let steady = Clients::working(&stage.scene, TENANT, &steady, false)?;
    steady.progress(50).await?;

    stage.json(&["cutover", TENANT, "--max-pause", "60s"]).await?;
    phase(&stage.daemon, TENANT, &["reversing"]).await?;
    for sequence in SEQUENCES {
        let first = *blocks(&stage, sequence)?.first().context("no block was reserved")?;
        ensure!(first.size() == block, "the block of {sequence} is {}", first.size());
    }
    let bulk = [(10, Work::of(Kind::Writes, 1)), (11, Work::of(Kind::Writes, 20)), (12, Work::of(Kind::Writes, 50))];
    let bulk = Clients::working(&stage.scene, TENANT, &bulk, false)?;
    let written = async {
        bulk.reach(scale.writes, LONG).await?;
        bulk.stop().await
    };
    let (drew, bulk) = tokio::join!(drawers.draw(&stage, BLOCKS * block, &scale), written);
    drew?;
    let bulk = bulk?;
    println!("{bulk}; {} drawn in the target after {:?}", drawers.own.done(), began.elapsed());

    in_step(&stage).await?;
    let report = stage.json(&["rollback", TENANT, "--max-pause", "60s"]).await?;
    ensure!(report["route"]["isolation"] == "shared" && report["verified"] == true, "{report}");
    phase(&stage.daemon, TENANT, &["rolled_back"]).await?;
    println!("back after {:?}, in a pause of {} ms", began.elapsed(), report["pause_ms"]);
    steady.progress(50).await?;
    // At home it draws what everybody draws.
    drawers.own.allow(2);
    drawers.own.progress(1).await?;

    stage.json(&["cutover", TENANT, "--max-pause", "60s"]).await?;
    phase(&stage.daemon, TENANT, &["reversing"]).await?;
    drawers.draw(&stage, block, &scale).await?;
    steady.progress(50).await?;
    println!("there again and drawn after {:?}", began.elapsed());

    let mut drew = Vec::new();
    for clients in drawers.others {
        drew.push(clients.stop().await.context("another tenant")?);
    }
    let own = drawers.own.stop().await.context("the tenant's keys")?;
    let mut all = steady.stop().await?;
    all.extend(bulk);
    println!("{all}; keys: {own}");
    all.assert_never_on_both_sides()?;
    let reserved = blocks(&stage, "drawn_id_seq")?.len();
    ensure!(reserved > usize::try_from(BLOCKS + 1)?, "{reserved} blocks");
    let (source, target) = assert_equal(&stage, &[all, own]).await?;
    assert_unique(&source).await?;
    for (ledger, tenant) in drew.iter().zip(["2", "3"]) {
        ensure!(ledger.was_never_refused(), "another tenant was refused: {ledger}");
        ledger.assert_held_by(&source, "public", tenant).await?;
    }
    for (log, client) in logs.iter().zip([&source, &target]) {
        log.assert_nothing_came_twice(client, TENANT).await?;
    }
    let log = stage.daemon.log()?;
    ensure!(!log.contains("values that were not reserved"), "the target drew beyond its blocks");
    println!("{reserved} blocks; {:?} in all", began.elapsed());
    stage.daemon.assert_no_errors(&[])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_in_the_target_comes_back_once_and_no_key_comes_twice() -> Result<()> {
    come_back(Scale { writes: 2_000, last: Some(300_000), parts: 10 }).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "campaign: a hundred thousand writes, blocks of a million"]
async fn a_hundred_thousand_writes_come_back_once_and_no_key_comes_twice() -> Result<()> {
    come_back(Scale { writes: 100_000, last: None, parts: 200 }).await
}
