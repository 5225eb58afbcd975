//! What a review of the stages found: each of these fails until that is mended.

use super::*;

const RESTART: &str = "the daemon starts again";

impl Stage {
    async fn away(&self, tenant: &str, to: &str) -> Result<()> {
        self.carve(tenant, to).await?;
        cli(&self.config, &["cutover", tenant]).await?;
        cli(&self.config, &["complete", tenant]).await?;
        Ok(())
    }

    async fn fault_is(&self, tenant: &str, part: &str) -> Result<Value> {
        until("a fault", SOON, async || {
            let status = self.json(&["status", tenant]).await?;
            ensure!(status["fault"].to_string().contains(part), "{status}");
            Ok(status)
        })
        .await
    }
}

/// A lane home from a schema that was half made when the daemon ended is used as it is.
#[tokio::test(flavor = "multi_thread")]
async fn hole_half_made_lane_home_is_used_after_a_restart() -> Result<()> {
    let mut stage = Stage::open_with("  migration_config: {validation_enabled: false}\n", "").await?;
    let source = stage.scene.source_client().await?;
    stage.away("2", "schema").await?;
    // The fences are made; then it stands.
    source.batch_execute("INSERT INTO bid_2.accounts (id, bid, kind) VALUES (9999, 3, 1)").await?;
    cli(&stage.config, &["move", "2", "--to", "shared"]).await?;
    stage.fault_is("2", "leak").await?;
    source.batch_execute("DELETE FROM bid_2.accounts WHERE id = 9999").await?;
    // A transaction of the tenant stays open for longer than the publication waits.
    let busy = stage.scene.source_client().await?;
    busy.batch_execute("BEGIN; UPDATE bid_2.accounts SET balance = balance WHERE false").await?;
    cli(&stage.config, &["resume", "2"]).await?;
    until("it waits for the publication", SOON, async || {
        let status = stage.json(&["status", "2"]).await?;
        ensure!(status["waiting_for"].to_string().contains("publish bid_2"), "{status}");
        Ok(())
    })
    .await?;
    stage.daemon.kill()?;
    stage.daemon = Daemon::start(&stage.config).await.context(RESTART)?;
    busy.batch_execute("COMMIT").await?;
    phase(&stage.daemon, "2", &["streaming", "ready"]).await?;
    let published: i64 = source
        .query_one("SELECT count(*) FROM pg_publication_tables WHERE schemaname = 'bid_2'", &[])
        .await?
        .get(0);
    println!("tables of the schema that are published: {published}");
    source
        .batch_execute("INSERT INTO bid_2.writes (bid, client, number, body) SELECT 2, 77, n, '' FROM generate_series(1, 10) n")
        .await?;
    println!("{}", cli(&stage.config, &["cutover", "2"]).await?);
    let home: i64 = source.query_one("SELECT count(*) FROM public.writes WHERE bid = 2 AND client = 77", &[]).await?.get(0);
    println!("{}", cli(&stage.config, &["complete", "2"]).await.unwrap_or_else(|error| format!("{error:#}")));
    ensure!(home == 10, "{home} of 10 rows that the tenant wrote came home");
    Ok(())
}

/// The lane home lost its continuity after the copy: it cannot be copied again.
#[tokio::test(flavor = "multi_thread")]
async fn hole_a_lane_home_that_broke_cannot_be_copied_again() -> Result<()> {
    let stage = Stage::open().await?;
    stage.away("1", "database").await?;
    cli(&stage.config, &["move", "1", "--to", "shared"]).await?;
    phase(&stage.daemon, "1", &["streaming", "ready"]).await?;
    let target = stage.scene.target_client("bid_1").await?;
    let name: String = target.query_one("SELECT pubname::text FROM pg_publication", &[]).await?.get(0);
    target.batch_execute(&format!("ALTER PUBLICATION {name} DROP TABLE notes")).await?;
    println!("{}", stage.fault_is("1", "target_changed").await?);
    println!("{:?}", cli(&stage.config, &["resume", "1"]).await);
    let status = phase(&stage.daemon, "1", &["streaming", "ready"]).await;
    println!("{}", stage.json(&["status", "1"]).await?);
    if status.is_err() {
        let source = stage.scene.source_client().await?;
        let advice = source.batch_execute("DELETE FROM writes WHERE bid = 1; DELETE FROM accounts WHERE bid = 1").await;
        println!("what it asks for: {advice:?}");
    }
    status.map(drop)
}

/// What is left is open before it is dropped: who still writes there is told that it was written.
#[tokio::test(flavor = "multi_thread")]
async fn hole_what_is_left_is_open_before_it_is_dropped() -> Result<()> {
    let stage = Stage::open().await?;
    let source = stage.scene.source_client().await?;
    stage.away("1", "schema").await?;
    stage.carve("1", "database").await?;
    cli(&stage.config, &["cutover", "1"]).await?;
    let stale = "INSERT INTO bid_1.writes (bid, client, number, body) VALUES (1, 88, 1, 'stale')";
    let refused = source.batch_execute(stale).await.is_err();
    source.batch_execute("CREATE VIEW bid_1.report AS SELECT * FROM bid_1.writes").await?;
    println!("{:?}", run(&stage.config, &["complete", "1"]).await.map(|said| said.code));
    println!("{}", stage.fault_is("1", "step_failed").await?["fault"]);
    let second = source.batch_execute(stale).await;
    source.batch_execute("DROP VIEW bid_1.report").await?;
    println!("{:?}", run(&stage.config, &["complete", "1"]).await.map(|said| said.code));
    let gone = source.query_one("SELECT to_regclass('bid_1.writes') IS NULL", &[]).await?.get::<_, bool>(0);
    println!("refused before: {refused}; then: {second:?}; dropped: {gone}");
    // The same on the way home from a schema.
    stage.away("2", "schema").await?;
    cli(&stage.config, &["move", "2", "--to", "shared"]).await?;
    phase(&stage.daemon, "2", &["streaming", "ready"]).await?;
    cli(&stage.config, &["cutover", "2"]).await?;
    source.batch_execute("CREATE VIEW public.report AS SELECT * FROM bid_2.writes").await?;
    println!("{:?}", run(&stage.config, &["complete", "2"]).await.map(|said| said.code));
    let third = source.batch_execute("INSERT INTO bid_2.writes (bid, client, number, body) VALUES (2, 88, 1, 'stale')").await;
    source.batch_execute("DROP VIEW public.report").await?;
    println!("{:?} {third:?}", run(&stage.config, &["complete", "2"]).await.map(|said| said.code));
    ensure!(second.is_err() && third.is_err(), "a write was taken where the tenant does not live, and dropped");
    Ok(())
}

/// Between the blocks and the flip the schema draws the values that the target was given.
#[tokio::test(flavor = "multi_thread")]
async fn hole_the_schema_draws_what_the_database_was_given() -> Result<()> {
    let folder = Scene::single(ClusterOptions::default()).await?;
    let (here, go) = (folder.path().join("here"), folder.path().join("go"));
    let hook = format!(
        "hooks: {{before_cutover: [\"/bin/sh\", \"-c\", \"test -e {0} || exit 0; touch {1}; while test -e {0}; do sleep 0.1; done\"]}}\n",
        go.display(),
        here.display()
    );
    let stage = Stage::open_with("", &hook).await?;
    let source = stage.scene.source_client().await?;
    stage.away("1", "schema").await?;
    // Long ago it went past its block.
    source.batch_execute("SELECT setval('bid_1.writes_id_seq', 1500000)").await?;
    stage.carve("1", "database").await?;
    std::fs::write(&go, "")?;
    let cutover = tokio::spawn({
        let config = stage.config.clone();
        async move { cli(&config, &["cutover", "1"]).await }
    });
    until("the hook", SOON, async || Ok(ensure!(here.exists(), "not yet"))).await?;
    let insert = |client: u32| {
        format!("INSERT INTO writes (bid, client, number, body) SELECT 1, {client}, n, '' FROM generate_series(1, 10) n RETURNING id")
    };
    source.batch_execute("SET search_path = bid_1").await?;
    let before: Vec<i64> = source.query(&insert(60), &[]).await?.iter().map(|row| row.get(0)).collect();
    std::fs::remove_file(&go)?;
    cutover.await??;
    let target = stage.scene.target_client("bid_1").await?;
    println!("drawn in the schema: {before:?}");
    let after = target.query(&insert(61), &[]).await;
    println!("in the database: {after:?}");
    after.context("the tenant writes in its database").map(drop)
}

/// A return that stands because of others' rows cannot be given up, as its fault advises.
#[tokio::test(flavor = "multi_thread")]
async fn hole_a_return_that_found_a_leak_cannot_be_given_up() -> Result<()> {
    let stage = Stage::open().await?;
    let source = stage.scene.source_client().await?;
    stage.away("1", "schema").await?;
    source.batch_execute("INSERT INTO bid_1.accounts (id, bid, kind) VALUES (9999, 3, 1)").await?;
    cli(&stage.config, &["move", "1", "--to", "shared"]).await?;
    println!("{}", stage.fault_is("1", "leak").await?["fault"]);
    let cancelled = cli(&stage.config, &["cancel", "1"]).await;
    println!("cancel: {cancelled:?}");
    println!("complete --keep-source: {:?}", cli(&stage.config, &["complete", "1", "--keep-source"]).await);
    println!("{}", stage.json(&["status", "1"]).await?);
    cancelled.map(drop)
}

/// A lane home from a database that stood when the daemon ended still stands after its cause was mended and `resume`.
#[tokio::test(flavor = "multi_thread")]
async fn hole_resume_after_a_restart_tells_the_old_fault() -> Result<()> {
    let mut stage = Stage::open().await?;
    let source = stage.scene.source_client().await?;
    stage.away("1", "database").await?;
    let target = stage.scene.target_client("bid_1").await?;
    let taken: i32 = target.query_one("SELECT min(id) FROM accounts", &[]).await?.get(0);
    source.batch_execute(&format!("INSERT INTO accounts (id, bid, kind) VALUES ({taken}, 3, 1)")).await?;
    cli(&stage.config, &["move", "1", "--to", "shared"]).await?;
    stage.fault_is("1", "duplicate key").await?;
    stage.daemon.kill()?;
    stage.daemon = Daemon::start(&stage.config).await.context(RESTART)?;
    source.batch_execute(&format!("DELETE FROM accounts WHERE id = {taken} AND bid = 3")).await?;
    println!("{:?}", cli(&stage.config, &["resume", "1"]).await);
    let first = phase(&stage.daemon, "1", &["streaming", "ready"]).await;
    println!("first: {:?}", first.as_ref().err());
    println!("{:?}", cli(&stage.config, &["resume", "1"]).await);
    println!("second: {:?}", phase(&stage.daemon, "1", &["streaming", "ready"]).await.err());
    first.map(drop)
}

/// The end of a return that failed is not tried again by `complete`.
#[tokio::test(flavor = "multi_thread")]
async fn hole_complete_of_a_return_is_not_tried_again() -> Result<()> {
    let stage = Stage::open().await?;
    let source = stage.scene.source_client().await?;
    stage.away("2", "schema").await?;
    cli(&stage.config, &["move", "2", "--to", "shared"]).await?;
    phase(&stage.daemon, "2", &["streaming", "ready"]).await?;
    cli(&stage.config, &["cutover", "2"]).await?;
    source.batch_execute("CREATE VIEW public.report AS SELECT * FROM bid_2.writes").await?;
    println!("{:?}", cli(&stage.config, &["complete", "2"]).await);
    source.batch_execute("DROP VIEW public.report").await?;
    let again = cli(&stage.config, &["complete", "2"]).await;
    println!("again: {again:?}");
    println!("move: {:?}", cli(&stage.config, &["move", "2", "--to", "shared"]).await);
    println!("cancel: {:?}", cli(&stage.config, &["cancel", "2"]).await);
    again.map(drop)
}

/// Nobody looks at what is published of a schema whose tenant comes home.
#[tokio::test(flavor = "multi_thread")]
async fn hole_a_schema_that_leaves_the_publication_is_not_noticed() -> Result<()> {
    let stage = Stage::open_with("  migration_config: {validation_enabled: false}\n", "").await?;
    let source = stage.scene.source_client().await?;
    stage.away("2", "schema").await?;
    cli(&stage.config, &["move", "2", "--to", "shared"]).await?;
    phase(&stage.daemon, "2", &["streaming", "ready"]).await?;
    source.batch_execute("ALTER PUBLICATION carveout DROP TABLE bid_2.writes").await?;
    source
        .batch_execute("INSERT INTO bid_2.writes (bid, client, number, body) SELECT 2, 77, n, '' FROM generate_series(1, 10) n")
        .await?;
    source.batch_execute("ALTER PUBLICATION carveout ADD TABLE bid_2.writes").await?;
    tokio::time::sleep(Duration::from_secs(4)).await;
    println!("{}", stage.json(&["status", "2"]).await?);
    println!("{:?}", cli(&stage.config, &["cutover", "2"]).await);
    let home: i64 = source.query_one("SELECT count(*) FROM public.writes WHERE bid = 2 AND client = 77", &[]).await?.get(0);
    ensure!(home == 10, "{home} of 10 rows that the tenant wrote came home");
    Ok(())
}
