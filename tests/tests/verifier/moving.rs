//! What moves the writes compares too: a mutant stops it, before anybody waits or in the pause, and nobody waits any longer.

use anyhow::{Context, Result, ensure};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use tests::binary;
use tests::seed::rng;
use tests::wait::until;
use tokio_postgres::Client;

use super::EVERYWHERE;
use super::mutants::{Among, KINDS, Kind};
use super::stage::{Stage, TENANTS};
use crate::carve::{cli, phase};
use crate::life::recheck::compared;
use crate::settle::{self, SOON};
use crate::surface::run;

/// What of a fence is in a database.
const FENCES: &str = "SELECT (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'carveout%')
    + (SELECT count(*) FROM pg_proc WHERE pronamespace = 'carveout'::regnamespace) + (SELECT count(*) FROM carveout.fence)";
/// Tables of which the tenant's rows name it: in them a mutant of the source can be mended without touching others' rows. On the first
/// one others hang, which are nobody's when their row has another key or is gone.
const NAMED: [&str; 4] = ["items", "codes", "events", "days"];
/// These are of more rows than the one that has changed.
const OF_OTHER_ROWS: [Kind; 3] = [Kind::Swap, Kind::Twin, Kind::Extra];
/// A row with these can be spoilt in every way.
const ANY_KIND: &str = r#"raw = '', n = 1.0, f4 = 0, fa = '{0.5}', j = '{"b": 1, "a": 2}'"#;
const NOT_EQUAL: [&str; 2] = ["source and target are not equal", "carveout verify"];

impl Stage {
    /// The tenant writes at once, where it lives.
    async fn assert_writes(&self, client: &Client, tenant: &str) -> Result<()> {
        let sql = format!(
            "SET statement_timeout = '2s'; INSERT INTO probes (bid) VALUES ({tenant}); RESET statement_timeout"
        );
        client.batch_execute(&sql).await.context("the tenant writes")
    }

    /// The last comparison does not count any more: a table was written anew.
    async fn forget(&self) -> Result<()> {
        Ok(self.source.batch_execute("VACUUM FULL events").await?)
    }

    /// What there is of fences, those of other moves too, which stay when their writes have moved.
    async fn fences(&self, target: &Client) -> Result<[i64; 2]> {
        Ok([self.source.query_one(FENCES, &[]).await?.get(0), target.query_one(FENCES, &[]).await?.get(0)])
    }

    /// A wish that a mutant in the target stops: the source is as it was, with these fences.
    async fn assert_stopped(&self, wish: &str, tenant: &str, target: &Client, fences: [i64; 2]) -> Result<()> {
        run(&self.config, &[wish, tenant]).await?.assert(1, &NOT_EQUAL).context(wish.to_owned())?;
        let status = phase(&self.daemon, tenant, &["streaming", "ready", "rolled_back"]).await?;
        ensure!(status["isolation"] == "shared", "{status}");
        ensure!(self.fences(target).await? == fences, "{wish}: parts of a fence stayed, there were {fences:?}");
        self.assert_writes(&self.source, tenant).await
    }
}

/// So many kinds in any order.
fn some_kinds(rng: &mut StdRng, without: &[Kind], count: usize) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = KINDS.into_iter().filter(|kind| !without.contains(kind)).collect();
    kinds.shuffle(rng);
    kinds.truncate(count);
    kinds
}

/// Issue line 5, DESIGN 3.11: where all rows are compared, a mutant of the target stops rehearsal and cutover; one of the source that was made past the fence stops
/// rollback and completion.
async fn stop(mutants: usize) -> Result<()> {
    let mut rng = rng("mutants and moving");
    let stage = Stage::open().await?;
    for (tenant, to) in TENANTS {
        let (target, left) = (stage.target(tenant).await?, stage.left(tenant).await?);
        let fences = stage.fences(&target.client).await?;
        for kind in some_kinds(&mut rng, &[], mutants) {
            let spoilt = target.spoil(&mut rng, kind, &EVERYWHERE).await?;
            stage.forget().await?;
            for wish in ["rehearse", "cutover"] {
                stage.assert_stopped(wish, tenant, &target.client, fences).await.context(spoilt.mutant.sql.clone())?;
            }
            stage.assert_found(tenant, &spoilt).await?;
            target.mend(spoilt.mutant.table).await?;
            stage.clean(tenant).await?;
        }
        cli(&stage.config, &["cutover", tenant]).await?;
        for kind in some_kinds(&mut rng, &[Kind::Foreign], mutants) {
            phase(&stage.daemon, tenant, &["reversing"]).await?;
            let tables = if matches!(kind, Kind::Key | Kind::Missing) { &NAMED[1..] } else { &NAMED };
            let spoilt = left.spoil(&mut rng, kind, &Among { tables, rows: "true" }).await?;
            stage.forget().await?;
            for wish in ["rollback", "complete"] {
                run(&stage.config, &[wish, tenant]).await?.assert(1, &NOT_EQUAL).context(spoilt.mutant.sql.clone())?;
                phase(&stage.daemon, tenant, &["reversing"]).await?;
                stage.assert_writes(&target.client, tenant).await?;
            }
            stage.assert_found(tenant, &spoilt).await?;
            left.mend(spoilt.mutant.table).await?;
            stage.clean(tenant).await?;
        }
        cli(&stage.config, &["rollback", tenant]).await?;
        stage.clean(tenant).await?;
        println!("{to}: {mutants} mutants stopped rehearsal and cutover, {mutants} stopped rollback and completion");
    }
    stage.assert_equal().await?;
    stage.daemon.assert_no_errors(&[])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mutant_stops_whatever_moves_the_writes() -> Result<()> {
    stop(2).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "campaign: mutants of every kind"]
async fn every_mutant_stops_whatever_moves_the_writes() -> Result<()> {
    stop(KINDS.len() - 1).await
}

/// A row that has changed since both sides were compared, and is spoilt after the lane has brought the change: it is found in the
/// pause. Until then a transaction of another tenant keeps the fence from being made.
async fn find_in_the_pause(mutants: usize) -> Result<()> {
    let mut rng = rng("mutants in the pause");
    let stage = Stage::open().await?;
    let (own, other) = (stage.scene.source_client().await?, stage.scene.source_client().await?);
    for (place, (tenant, to)) in TENANTS.into_iter().enumerate() {
        let target = stage.target(tenant).await?;
        for (number, kind) in some_kinds(&mut rng, &OF_OTHER_ROWS, mutants).into_iter().enumerate() {
            settle::drained(&stage.scene, &stage.daemon, tenant).await?;
            let id = 3 * rng.random_range(0..90) + place as i64;
            let mark = format!("mark {number}");
            own.batch_execute(&format!("BEGIN; UPDATE items SET v = '{mark}', {ANY_KIND} WHERE id = {id}")).await?;
            other.batch_execute("BEGIN; UPDATE items SET v = 'other' WHERE id = 2").await?;
            let config = stage.config.clone();
            let asked = tokio::spawn(async move { binary::cli(&config, &["cutover", tenant]).await });
            compared(&other, &asked).await?;
            own.batch_execute("COMMIT").await?;
            until("the change in the target", SOON, async || {
                let sql = format!("SELECT v FROM items WHERE id = {id}");
                ensure!(
                    target.client.query_one(&sql, &[]).await?.get::<_, Option<&str>>(0) == Some(mark.as_str()),
                    "not yet"
                );
                Ok(())
            })
            .await?;
            let rows = format!("t.id = {id}");
            let spoilt = target.spoil(&mut rng, kind, &Among { tables: &["items"], rows: &rows }).await?;
            other.batch_execute("COMMIT").await?;
            let output = asked.await??;
            let said =
                format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert_named(&said, output.status.code(), kind, id).with_context(|| spoilt.mutant.sql.clone())?;
            stage.assert_stopped("rehearse", tenant, &target.client, [0, 0]).await?;
            target.mend(spoilt.mutant.table).await?;
            stage.clean(tenant).await?;
        }
        println!("{to}: {mutants} mutants found in the pause");
    }
    stage.assert_equal().await?;
    stage.daemon.assert_no_errors(&[])
}

/// The refusal names the row that has changed, by its primary key.
fn assert_named(said: &str, code: Option<i32>, kind: Kind, id: i64) -> Result<()> {
    ensure!(code == Some(1), "{code:?} {said}");
    let difference = if matches!(kind, Kind::Missing | Kind::Key) { "missing" } else { "different" };
    let why = "what has changed since source and target were compared is not the same on both";
    ensure!(said.contains(&format!("{why}: public.items: 1 rows differ, {difference} ({id})")), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mutant_behind_the_comparison_is_found_in_the_pause() -> Result<()> {
    find_in_the_pause(2).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "campaign: mutants of every kind"]
async fn every_mutant_behind_the_comparison_is_found_in_the_pause() -> Result<()> {
    find_in_the_pause(KINDS.len() - OF_OTHER_ROWS.len()).await
}
