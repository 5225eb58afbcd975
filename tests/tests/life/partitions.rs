//! Tenants whose writes lie in a partitioned table, through the stages and home, while partitions come where they live and where
//! they do not.

mod months;

use daemon::demo::cluster::signal;
use tests::binary;
use tokio_postgres::Client;

use super::work::{Kind, Work};
use super::*;
use months::{assert_some, attach, month, postpone, run_all};

const PARTITIONED: &str = include_str!("partitions/tables.sql");

/// Clients that leave the machine some time.
fn paced(scene: &Scene, tenant: &str, count: i32) -> Result<Clients> {
    let work = Work::of(Kind::Writes, 1).every(Duration::from_millis(3));
    Clients::working(scene, tenant, &(0..count).map(|client| (client, work)).collect::<Vec<_>>(), false)
}

/// Another tenant has what it was told, and met no fence.
async fn assert_undisturbed(others: Clients, source: &Client, tenant: &str) -> Result<()> {
    let others = others.stop().await?;
    ensure!(others.was_never_refused(), "another tenant was refused: {others}");
    others.assert_held_by(source, "public", tenant).await
}

impl Stage {
    async fn partitioned(extra: &str) -> Result<Stage> {
        let scene = Scene::empty(ClusterOptions::default(), ClusterOptions::default()).await?;
        Stage::of(scene, PARTITIONED, &configuration("", extra)).await
    }

    /// Each of these commands, with writes behind it.
    async fn go(&self, clients: &Clients, tenant: &str, commands: &[(&str, &str)]) -> Result<()> {
        for (command, lives) in commands {
            let report = self.json(&[command, tenant]).await?;
            ensure!(report["route"]["isolation"] == *lives, "{command}: {report}");
            clients.progress(30).await?;
            let status = phase(&self.daemon, tenant, &["streaming", "reversing", "rolled_back"]).await?;
            ensure!(status["isolation"] == *lives, "{command}: {status}");
            cli(&self.config, &["verify", tenant]).await?;
        }
        Ok(())
    }

    /// Completes, equal and without residue.
    async fn end(&self, tenant: &str) -> Result<()> {
        let report = self.json(&["complete", tenant]).await?;
        ensure!(report["certificate"]["equal"] == true && report["residue"] == json!([]), "{report}");
        Ok(())
    }

    /// The writes stay where they are: rows of `writes` are not the same on both sides.
    async fn differs(&self, command: &str, how: &str) -> Result<()> {
        let output = binary::cli(&self.config, &[command, "1"]).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(1) && said.contains("public.writes") && said.contains(how),
            "{command}: {said}"
        );
        Ok(())
    }

    /// How often a lane of this move has read a table again.
    fn read_again(&self, id: &str) -> Result<usize> {
        let said = |line: &&str| line.contains("these tables are read again") && line.contains(&format!("id={id} "));
        Ok(self.daemon.log()?.lines().filter(said).count())
    }
}

/// R13, C04, invariants 1 and 2: to a schema and home, while months come on both sides: those with rows of its own, which the tenant
/// has made in its schema, come home as soon as the shared table has a place for them; until then nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn months_that_a_tenant_made_in_its_schema_come_home() -> Result<()> {
    let stage = Stage::partitioned("").await?;
    let source = stage.scene.source_client().await?;
    let others = paced(&stage.scene, "3", 2)?;
    let clients = paced(&stage.scene, "1", 3)?;
    clients.progress(100).await?;
    others.progress(100).await?;
    stage.complete("1", "schema").await?;
    clients.progress(100).await?;
    // It lives in its schema, and nothing is followed.
    attach(&source, "public", "3", ("april", 4)).await?;
    run_all(&source, &[month("bid_1", "own_april", 4)]).await?;
    postpone(&source, "bid_1", "1", ("own_april", 4)).await?;
    attach(&source, "bid_1", "1", ("may", 5)).await?;
    cli(&stage.config, &["move", "1", "--to", "shared"]).await?;
    let status = stage.stands("1", "partitions that it lacks: bid_1.may FOR VALUES FROM ('2026-05-01").await?;
    ensure!(status["fault"]["object"] == "bid_1.writes" && status["can_cutover"] == false, "{status}");
    clients.progress(30).await?;
    run_all(&source, &[month("public", "may", 5)]).await?;
    cli(&stage.config, &["resume", "1"]).await?;
    phase(&stage.daemon, "1", &["streaming"]).await?;
    // On its way home it is followed.
    run_all(&source, &[month("public", "june", 6), month("bid_1", "june", 6), month("bid_1", "july", 7)]).await?;
    postpone(&source, "bid_1", "1", ("june", 6)).await?;
    cli(&stage.config, &["verify", "1"]).await?;
    clients.progress(100).await?;
    postpone(&source, "bid_1", "1", ("july", 7)).await?;
    stage.stands("1", "no partition of relation").await?;
    run_all(&source, &[month("public", "july", 7)]).await?;
    cli(&stage.config, &["resume", "1"]).await?;
    phase(&stage.daemon, "1", &["streaming"]).await?;
    stage.go(&clients, "1", &[("cutover", "shared")]).await?;
    // At home, and its schema is followed.
    attach(&source, "public", "1", ("august", 8)).await?;
    stage.go(&clients, "1", &[("rollback", "schema"), ("cutover", "shared")]).await?;
    let ledger = clients.stop().await?;
    ledger.assert_never_on_both_sides()?;
    stage.assert_equal("1", "schema", &ledger).await?;
    stage.end("1").await?;
    ledger.assert_held_by(&source, "public", "1").await?;
    for table in ["april", "may", "june", "july", "august"] {
        assert_some(&source, table, if table == "april" { "3" } else { "1" }).await?;
    }
    ensure!(!super::stages::target_exists(&stage, "1", "schema").await?, "its schema is still there");
    ensure!(source.query_one(LEFT, &[]).await?.get::<_, i64>(0) == 0, "something of Carveout stayed");
    println!("home: {ledger}");
    assert_undisturbed(others, &source, "3").await?;
    stage.daemon.assert_no_errors(&["no partition of relation", "has no place for all of its rows"])
}

/// R13, issue lines 1 and 6: from a schema to a database, while a month with rows comes in the schema that is read.
#[tokio::test(flavor = "multi_thread")]
async fn months_that_come_in_a_schema_go_on_to_the_database() -> Result<()> {
    let stage = Stage::partitioned("").await?;
    let source = stage.scene.source_client().await?;
    let clients = paced(&stage.scene, "1", 3)?;
    clients.progress(100).await?;
    stage.complete("1", "schema").await?;
    clients.progress(100).await?;
    attach(&source, "bid_1", "1", ("april", 4)).await?;
    stage.carve("1", "database").await?;
    clients.progress(100).await?;
    attach(&source, "bid_1", "1", ("may", 5)).await?;
    let target = stage.scene.target_client("bid_1").await?;
    until("the month is in the database", SOON, async || {
        let status = stage.json(&["status", "1"]).await?;
        ensure!(status["fault"].is_null(), "{status}");
        assert_some(&target, "public.may", "1").await
    })
    .await?;
    cli(&stage.config, &["verify", "1"]).await?;
    stage.go(&clients, "1", &[("cutover", "database")]).await?;
    run_all(&source, &[month("bid_1", "june", 6)]).await?;
    run_all(&target, &[month("public", "june", 6)]).await?;
    postpone(&target, "public", "1", ("june", 6)).await?;
    stage.go(&clients, "1", &[("rollback", "schema"), ("cutover", "database")]).await?;
    stage.end("1").await?;
    let ledger = clients.stop().await?;
    ledger.assert_never_on_both_sides()?;
    for table in ["april", "may", "june"] {
        assert_some(&target, table, "1").await?;
    }
    stage.assert_gone("1", "database", &ledger).await?;
    ensure!(!super::stages::target_exists(&stage, "1", "schema").await?, "its schema is still there");
    println!("schema, database: {ledger}");
    stage.daemon.assert_no_errors(&[])
}

/// R13, C04: while a way back of a schema stands, months come on both sides. Its lane knows no partitions: it reads nothing again, also
/// when it begins anew after somebody has looked; nothing is lost on the way back.
#[tokio::test(flavor = "multi_thread")]
async fn months_that_come_while_a_way_back_stands_break_nothing() -> Result<()> {
    let mut stage = Stage::partitioned("").await?;
    let source = stage.scene.source_client().await?;
    let others = paced(&stage.scene, "3", 2)?;
    // Tells by its log that somebody has looked.
    stage.carve("2", "schema").await?;
    let looked = stage.json(&["status", "2"]).await?["move"].as_str().context("move")?.to_owned();
    stage.carve("1", "schema").await?;
    let clients = paced(&stage.scene, "1", 3)?;
    clients.progress(100).await?;
    others.progress(100).await?;
    stage.go(&clients, "1", &[("cutover", "schema")]).await?;
    attach(&source, "public", "3", ("april", 4)).await?;
    run_all(&source, &[month("bid_1", "own_april", 4), month("bid_1", "may", 5), month("public", "may", 5)]).await?;
    postpone(&source, "bid_1", "1", ("own_april", 4)).await?;
    until("somebody has looked", SOON, async || {
        ensure!(stage.read_again(&looked)? > 0, "not yet");
        Ok(())
    })
    .await?;
    cli(&stage.config, &["pause", "1"]).await?;
    cli(&stage.config, &["resume", "1"]).await?;
    clients.progress(100).await?;
    postpone(&source, "bid_1", "1", ("may", 5)).await?;
    cli(&stage.config, &["verify", "1"]).await?;
    stage.daemon.kill()?;
    stage.daemon = Daemon::start(&stage.config).await?;
    phase(&stage.daemon, "1", &["reversing"]).await?;
    cli(&stage.config, &["verify", "1"]).await?;
    stage.go(&clients, "1", &[("rollback", "shared")]).await?;
    // Now its schema is followed, and has the shared table's months.
    attach(&source, "public", "1", ("june", 6)).await?;
    until("the month is in its schema", SOON, async || assert_some(&source, "bid_1.june", "1").await).await?;
    stage.go(&clients, "1", &[("cutover", "schema")]).await?;
    let ledger = clients.stop().await?;
    ledger.assert_never_on_both_sides()?;
    stage.assert_equal("1", "schema", &ledger).await?;
    for name in ["april", "may", "june"] {
        assert_some(&source, &format!("bid_1.{name}"), "1").await?;
    }
    cli(&stage.config, &["cancel", "2"]).await?;
    stage.end("1").await?;
    stage.assert_gone("1", "schema", &ledger).await?;
    println!("there and back: {ledger}");
    assert_undisturbed(others, &source, "3").await?;
    stage.daemon.assert_no_errors(&[])
}

/// Invariant 6: where old images would name no row, the tenant can change its rows in every partition all the same, and they flow back.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_without_a_key_can_be_changed_where_their_tenant_lives() -> Result<()> {
    let stage = Stage::partitioned("").await?;
    let source = stage.scene.source_client().await?;
    for (tenant, to) in [("1", "schema"), ("2", "database")] {
        stage.carve(tenant, to).await?;
        cli(&stage.config, &["cutover", tenant]).await?;
        let (target, schema) = match to {
            "database" => (stage.scene.target_client(&format!("bid_{tenant}")).await?, "public".to_owned()),
            _ => (stage.scene.source_client().await?, format!("bid_{tenant}")),
        };
        let sql = format!(
            "UPDATE {schema}.hits SET v = 'changed', at = 19 - at WHERE at % 3 = 0; DELETE FROM {schema}.hits WHERE at = 5"
        );
        target.batch_execute(&sql).await.context("the tenant changes its rows")?;
        let full = format!(
            "SELECT count(*) FROM pg_class WHERE relreplident = 'f' AND relnamespace = '{schema}'::regnamespace AND relname LIKE 'hits%'"
        );
        ensure!(target.query_one(&full, &[]).await?.get::<_, i64>(0) > 2, "its rows have no old images");
        cli(&stage.config, &["rollback", tenant]).await?;
        until("replica identities put back", SOON, async || {
            ensure!(target.query_one(&full, &[]).await?.get::<_, i64>(0) == 0, "not yet");
            Ok(())
        })
        .await?;
        let (filter, theirs) = (format!("bid = {tenant}"), format!("{schema}.hits"));
        let equal = oracle::assert_equal(&source, "public.hits", &filter, &target, &theirs).await?;
        ensure!(equal.source_rows > 50 && equal.source_rows < 100, "{equal:?}");
    }
    stage.daemon.assert_no_errors(&[])
}

/// R13, invariant 10: what a partition of the target brings or takes without a word in the log is found before the writes move.
#[tokio::test(flavor = "multi_thread")]
async fn what_partitions_of_the_target_bring_or_take_is_found_before_the_writes_move() -> Result<()> {
    let stage = Stage::partitioned("").await?;
    let source = stage.scene.source_client().await?;
    let clients = paced(&stage.scene, "1", 3)?;
    clients.progress(100).await?;
    stage.carve("1", "database").await?;
    let target = stage.scene.target_client("bid_1").await?;
    cli(&stage.config, &["verify", "1"]).await?;
    // Put back with a row less, after all rows were compared.
    let put_back = "BEGIN; ALTER TABLE writes DETACH PARTITION january;
         CREATE TABLE taken AS SELECT * FROM january ORDER BY number LIMIT 1;
         DELETE FROM january USING taken t WHERE january.id = t.id;
         ALTER TABLE writes ATTACH PARTITION january FOR VALUES FROM ('2026-01-01 00:00+00') TO ('2026-02-01 00:00+00'); COMMIT";
    target.batch_execute(put_back).await?;
    stage.differs("cutover", "missing").await?;
    target.batch_execute("INSERT INTO january SELECT * FROM taken; DROP TABLE taken").await?;
    stage.go(&clients, "1", &[("cutover", "database")]).await?;
    attach(&target, "public", "1", ("april", 4)).await?;
    stage.differs("rollback", "extra").await?;
    let into_january = "BEGIN; ALTER TABLE writes DETACH PARTITION april;
         INSERT INTO writes SELECT id, bid, client, number, body, '2026-01-20 00:00+00' FROM april; DROP TABLE april; COMMIT";
    target.batch_execute(into_january).await?;
    stage.go(&clients, "1", &[("rollback", "shared")]).await?;
    let ledger = clients.stop().await?;
    ledger.assert_never_on_both_sides()?;
    stage.assert_equal("1", "database", &ledger).await?;
    ledger.assert_held_by(&source, "public", "1").await?;
    stage.daemon.assert_no_errors(&[])
}

/// Invariants 1 and 7: behind the flip the lane that was changes nothing in the target any more, whatever becomes of the source's
/// tables, and however long that takes which is run after a cutover.
#[tokio::test(flavor = "multi_thread")]
async fn behind_the_flip_a_lane_writes_nothing_over_what_the_tenant_writes() -> Result<()> {
    let gate = Gate::new().await?;
    let stage = Stage::partitioned(&gate.hook("after_cutover")).await?;
    stage.carve("1", "database").await?;
    stage.carve("2", "database").await?;
    let (source, target) = (stage.scene.source_client().await?, stage.scene.target_client("bid_1").await?);
    let asked = gate.cut_over(&stage.config).await?;
    target.batch_execute("INSERT INTO hits VALUES (1, 3, 'of the target')").await?;
    // The second time it is a while since the first.
    for times in 1..=2 {
        source.batch_execute("VACUUM FULL hits_low").await?;
        until("the other tenant's lane reading the table again", SOON, async || {
            ensure!(stage.read_again("m2")? == times, "not yet");
            Ok(())
        })
        .await?;
    }
    ensure!(stage.read_again("m1")? == 0, "the lane that was reads the table again");
    let there = "SELECT count(*) FROM hits WHERE v = 'of the target' AND bid = 1";
    let kept = async |client: &Client| Ok::<i64, anyhow::Error>(client.query_one(there, &[]).await?.get(0));
    ensure!(kept(&target).await? == 1, "what was written in the target is gone");
    gate.open()?;
    let said = asked.await??;
    ensure!(said.status.success(), "{said:?}");
    until("the row at the source", SOON, async || {
        ensure!(kept(&source).await? == 1, "not yet");
        Ok(())
    })
    .await?;
    cli(&stage.config, &["verify", "1"]).await?;
    ensure!(kept(&target).await? == 1, "what was written in the target is gone");
    stage.daemon.assert_no_errors(&[])
}

/// Invariant 1: partitions that came or went so late that the lane has not heard of it stop the writes from moving.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_goes_at_the_last_moment_stops_the_cutover() -> Result<()> {
    let gate = Gate::new().await?;
    let stage = Stage::partitioned(&gate.hook("before_cutover")).await?;
    stage.carve("1", "database").await?;
    let (source, target) = (stage.scene.source_client().await?, stage.scene.target_client("bid_1").await?);
    let asked = gate.cut_over(&stage.config).await?;
    let watch =
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'carveout watch' AND datname = current_database()";
    let watch = until("who looks at the source", SOON, async || Ok(source.query_one(watch, &[]).await?)).await?;
    let watch = watch.get::<_, i32>(0).unsigned_abs();
    signal(watch, "STOP")?;
    let refused = async {
        source.batch_execute("ALTER TABLE hits DETACH PARTITION hits_low").await?;
        gate.open()?;
        asked.await?
    };
    let refused = refused.await;
    signal(watch, "CONT")?;
    let refused = refused?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(refused.status.code() == Some(1) && said.contains("partitions of its tables came or went"), "{refused:?}");
    let report = until("a cutover", SOON, async || stage.json(&["cutover", "1"]).await).await?;
    ensure!(report["route"]["isolation"] == "database", "{report}");
    oracle::assert_equal(&source, "public.hits", "bid = 1", &target, "public.hits").await?;
    stage.daemon.assert_no_errors(&[])
}
