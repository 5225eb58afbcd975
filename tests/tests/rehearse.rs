//! A cutover up to the flip, while the application writes: it pauses, it never fails, and nothing stays behind.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use daemon::demo::cluster::{ClusterOptions, signal};
use serde_json::Value;
use tests::daemon::Daemon;
use tests::scene::{Configuration, Scene};
use tests::wait::until;

use crate::carve::{assert_tenant_equal, cli, phase, start_move, verify_equal};
use crate::settle::SOON;
use crate::surface::{Desk, run};

/// What of a fence is in a database.
const FENCES: &str = "SELECT (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'carveout%')
    + (SELECT count(*) FROM pg_proc WHERE pronamespace = 'carveout'::regnamespace)
    + (SELECT count(*) FROM carveout.fence)";

/// C03, invariants 6 and 8: under pgbench, to a schema and to a database; how long it pauses, by its steps; a daemon that
/// is killed while it holds the writers lets them go, and takes the fence away when it comes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_pauses_the_writers_and_leaves_nothing_behind() -> Result<()> {
    let scene = Scene::start(4).await?;
    let config = scene.write_config("carveout", &Configuration::default())?;
    cli(&config, &["prepare", "--apply"]).await?;
    let mut daemon = Daemon::start(&config).await?;
    let load = scene.load(4, None).await?;
    for (tenant, to) in [("1", "schema"), ("2", "database")] {
        start_move(&daemon, tenant, to).await?;
    }
    let mut pauses = Vec::new();
    for tenant in ["1", "2"] {
        phase(&daemon, tenant, &["streaming", "ready"]).await?;
        for _ in 0..5 {
            let said = cli(&config, &["rehearse", tenant, "--output", "json"]).await?;
            let report: Value = serde_json::from_str(&said)?;
            let steps: Vec<&str> =
                report["steps"].as_array().context("steps")?.iter().filter_map(|step| step["step"].as_str()).collect();
            let steps: Vec<&str> = steps.into_iter().filter(|step| *step != "rounds").collect();
            let expected =
                ["reverse", "verify", "sequences", "fence", "hold", "barrier", "drain", "recheck", "begin", "release"];
            ensure!(steps == expected, "{report}");
            pauses.push(report["pause_ms"].as_f64().context("pause_ms")?);
        }
    }
    let source = scene.source_client().await?;
    ensure!(source.query_one(FENCES, &[]).await?.get::<_, i64>(0) == 0, "a fence stayed");
    // Killed while it holds them.
    let mut killed = 0;
    for _ in 0..5 {
        let (at, file) = (daemon.pid(), config.clone());
        let rehearsal = tokio::spawn(async move { run(&file, &["rehearse", "1"]).await });
        let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 77778 AND granted AND mode = 'ExclusiveLock'";
        let seen = until("the writers held", SOON, async || {
            ensure!(rehearsal.is_finished() || source.query_one(held, &[]).await?.get::<_, i64>(0) > 0, "not yet");
            Ok(())
        });
        seen.await?;
        killed += u32::from(!rehearsal.is_finished());
        signal(at, "KILL")?;
        daemon.kill()?;
        rehearsal.await??;
        let began = Instant::now();
        until("a write of the tenant", SOON, async || {
            source
                .batch_execute(
                    "SET statement_timeout = '1s'; UPDATE pgbench_tellers SET tbalance = tbalance WHERE bid = 1",
                )
                .await?;
            Ok(())
        })
        .await?;
        ensure!(began.elapsed() < Duration::from_secs(5), "the writers stood for {:?}", began.elapsed());
        daemon = Daemon::start(&config).await?;
        until("no fence", SOON, async || {
            ensure!(source.query_one(FENCES, &[]).await?.get::<_, i64>(0) == 0, "it is there");
            Ok(())
        })
        .await?;
        phase(&daemon, "1", &["streaming", "ready"]).await?;
    }
    load.stop().await?.assert_fine()?;
    for (tenant, to) in [("1", "schema"), ("2", "database")] {
        phase(&daemon, tenant, &["streaming", "ready"]).await?;
        verify_equal(&daemon, tenant).await?;
        assert_tenant_equal(&scene, tenant, to).await?;
    }
    pauses.sort_by(f64::total_cmp);
    println!(
        "{} rehearsals paused for {} to {} ms, median {} ms; {killed} of 5 killed while it held the writers",
        pauses.len(),
        pauses[0],
        pauses[pauses.len() - 1],
        pauses[pauses.len() / 2]
    );
    ensure!(killed > 0, "the daemon was never killed in time");
    daemon.assert_no_errors(&[])
}

/// C03, C07: what stands in the way is named and nothing has changed; two at once; cancel in the middle.
#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_that_cannot_be_says_why_and_lets_go() -> Result<()> {
    let settings = vec![("max_prepared_transactions".to_owned(), "5".to_owned())];
    let desk =
        Desk::open_with(ClusterOptions { settings, ..ClusterOptions::default() }, Configuration::default()).await?;
    let daemon = desk.work().await?;
    run(&desk.config, &["rehearse", "1"]).await?.assert(1, &["there is no move of this tenant"])?;
    desk.carve(&daemon, "1", "schema").await?;
    run(&desk.config, &["rehearse", "1", "--max-pause", "10ms"]).await?.assert(1, &["from 50ms to 60s"])?;
    run(&desk.config, &["rehearse", "1", "--max-pause", "soon"]).await?.assert(2, &["soon"])?;
    run(&desk.config, &["rehearse", "1"]).await?.assert(0, &["would pause for", "nothing has changed"])?;
    // A transaction of the tenant that stays open: by its pid where the fence is there already, and prepared.
    desk.sql("BEGIN; UPDATE orders SET note = 'open' WHERE bid = 1 AND id = 1; PREPARE TRANSACTION 'open'").await?;
    let other = desk.scene.source_client().await?;
    run(&desk.config, &["rehearse", "1"]).await?.assert(1, &["public.orders", "stays open"])?;
    // Nobody else waits for it.
    other
        .batch_execute("SET statement_timeout = '2s'; UPDATE orders SET note = 'mine' WHERE bid = 1 AND id = 6")
        .await?;
    desk.sql("COMMIT PREPARED 'open'").await?;
    // Of another tenant: nothing to wait for once the triggers are there, and for those the table's writers are few.
    other.batch_execute("BEGIN; INSERT INTO events VALUES (2, 'other')").await?;
    let (config, rehearsal) = (desk.config.clone(), run(&desk.config, &["rehearse", "1"]));
    let (first, second) = tokio::join!(rehearsal, async {
        until("a rehearsal", SOON, async || {
            ensure!(daemon.tenant("1").await?["phase"] == "rehearsing", "not yet");
            Ok(())
        })
        .await?;
        run(&config, &["rehearse", "1"]).await
    });
    second?.assert(1, &["being cut over or rehearsed already"])?;
    first?.assert(1, &["public.events", "stays open"])?;
    other.batch_execute("COMMIT").await?;
    verify_equal(&daemon, "1").await?;
    ensure!(desk.ask(FENCES).await? == "0", "a fence stayed");
    // Cancelled while it waits.
    other.batch_execute("BEGIN; INSERT INTO events VALUES (2, 'other')").await?;
    let (stopped, cancelled) = tokio::join!(run(&desk.config, &["rehearse", "1"]), async {
        until("a rehearsal", SOON, async || {
            ensure!(daemon.tenant("1").await?["phase"] == "rehearsing", "not yet");
            Ok(())
        })
        .await?;
        let (cancelled, ended) = tokio::join!(run(&desk.config, &["cancel", "1"]), async {
            phase(&daemon, "1", &["cancelling"]).await?;
            other.batch_execute("COMMIT").await.context("end it")
        });
        ended.and(cancelled)
    });
    stopped?.assert(1, &["cancelled meanwhile"])?;
    cancelled?.assert(0, &["cancelled"])?;
    ensure!(desk.ask(FENCES).await? == "0", "a fence stayed");
    daemon.assert_no_errors(&["stays open"])
}

/// What cannot be taken away behind a rehearsal goes as soon as nobody is in its way.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_rehearsal_could_not_take_away_goes_later() -> Result<()> {
    let desk = Desk::open().await?;
    let daemon = desk.work().await?;
    desk.carve(&daemon, "1", "schema").await?;
    // Who reads is not in the way of triggers that come, but of those that go.
    let reader = desk.scene.source_client().await?;
    reader.batch_execute("BEGIN; SELECT FROM orders LIMIT 1").await?;
    run(&desk.config, &["rehearse", "1"]).await?.assert(0, &["would pause for"])?;
    ensure!(desk.ask(FENCES).await? != "0", "all of the fence could be taken away");
    reader.batch_execute("COMMIT").await?;
    until("no fence", SOON, async || {
        ensure!(desk.ask(FENCES).await? == "0", "it is there");
        Ok(())
    })
    .await?;
    phase(&daemon, "1", &["streaming", "ready"]).await?;
    daemon.assert_no_errors(&["could not be taken away yet"])
}
