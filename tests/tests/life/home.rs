//! What stands in a tenant's way home or to the next stage: nothing is lost by it, and a person gets on.

use super::*;

const WITHOUT_PROOF: &str = "  migration_config: {validation_enabled: false}\n";

fn ten_rows(schema: &str, tenant: &str) -> String {
    format!(
        "INSERT INTO {schema}.writes (bid, client, number, body) SELECT {tenant}, 77, n, '' FROM generate_series(1, 10) n"
    )
}

impl Stage {
    /// Waits for a fault that says this.
    pub(super) async fn stands(&self, tenant: &str, part: &str) -> Result<Value> {
        until(&format!("a fault: {part}"), SOON, async || {
            let status = self.json(&["status", tenant]).await?;
            ensure!(status["fault"].to_string().contains(part), "{status}");
            Ok(status)
        })
        .await
    }

    /// Cuts over home: the ten rows are in the shared tables.
    async fn assert_ten_home(&self, tenant: &str) -> Result<()> {
        cli(&self.config, &["cutover", tenant]).await?;
        let sql = format!("SELECT count(*) FROM public.writes WHERE bid = {tenant} AND client = 77");
        let home: i64 = self.scene.source_client().await?.query_one(&sql, &[]).await?.get(0);
        ensure!(home == 10, "{home} of 10 rows came home");
        Ok(())
    }
}

/// A lane home that was half made when the daemon died is made anew: what is written afterwards comes home.
#[tokio::test(flavor = "multi_thread")]
async fn a_half_made_lane_home_is_made_anew() -> Result<()> {
    let mut stage = Stage::open_with(WITHOUT_PROOF, "").await?;
    let source = stage.scene.source_client().await?;
    stage.complete("2", "schema").await?;
    // The fences are made; then it stands.
    source.batch_execute("INSERT INTO bid_2.accounts (id, bid, kind) VALUES (9999, 3, 1)").await?;
    cli(&stage.config, &["move", "2", "--to", "shared"]).await?;
    stage.stands("2", "leak").await?;
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
    stage.daemon = Daemon::start(&stage.config).await?;
    busy.batch_execute("COMMIT").await?;
    phase(&stage.daemon, "2", &["streaming"]).await?;
    source.batch_execute(&ten_rows("bid_2", "2")).await?;
    stage.assert_ten_home("2").await?;
    cli(&stage.config, &["complete", "2"]).await?;
    Ok(())
}

/// A schema that leaves the publication for a moment while its tenant comes home stops the way home; the tenant is copied
/// home once more, with what was not in the stream.
#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_left_the_publication_is_copied_home_again() -> Result<()> {
    let stage = Stage::open_with(WITHOUT_PROOF, "").await?;
    let source = stage.scene.source_client().await?;
    stage.complete("2", "schema").await?;
    cli(&stage.config, &["move", "2", "--to", "shared"]).await?;
    phase(&stage.daemon, "2", &["streaming"]).await?;
    source.batch_execute("ALTER PUBLICATION carveout DROP TABLE bid_2.writes").await?;
    source.batch_execute(&ten_rows("bid_2", "2")).await?;
    source.batch_execute("ALTER PUBLICATION carveout ADD TABLE bid_2.writes").await?;
    let status = stage.stands("2", "target_changed").await?;
    ensure!(status["can_cutover"] == false, "{status}");
    run(&stage.config, &["cutover", "2"]).await?.assert(1, &["bid_2.writes"])?;
    cli(&stage.config, &["resume", "2"]).await?;
    phase(&stage.daemon, "2", &["streaming"]).await?;
    stage.assert_ten_home("2").await?;
    cli(&stage.config, &["complete", "2"]).await?;
    Ok(())
}

/// The same from a database.
#[tokio::test(flavor = "multi_thread")]
async fn a_lane_home_that_broke_is_copied_again() -> Result<()> {
    let stage = Stage::open().await?;
    stage.complete("1", "database").await?;
    stage.bring_home("1").await?;
    let target = stage.scene.target_client("bid_1").await?;
    let name: String = target.query_one("SELECT pubname::text FROM pg_publication", &[]).await?.get(0);
    target.batch_execute(&format!("ALTER PUBLICATION {name} DROP TABLE writes")).await?;
    target.batch_execute(&ten_rows("public", "1")).await?;
    stage.stands("1", "target_changed").await?;
    run(&stage.config, &["move", "1", "--to", "shared"]).await?.assert(0, &[])?;
    phase(&stage.daemon, "1", &["streaming"]).await?;
    stage.assert_ten_home("1").await?;
    run(&stage.config, &["cancel", "1"]).await?.assert(1, &["come home", "carveout complete"])?;
    cli(&stage.config, &["complete", "1"]).await?;
    Ok(())
}

/// Invariant 8: as long as what a tenant has left is there, nobody writes in it; and an end that stood is asked for again.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_tenant_has_left_stays_shut_until_it_is_gone() -> Result<()> {
    let stage = Stage::open().await?;
    let source = stage.scene.source_client().await?;
    stage.complete("1", "schema").await?;
    stage.carve("1", "database").await?;
    cli(&stage.config, &["cutover", "1"]).await?;
    source.batch_execute("CREATE VIEW public.report AS SELECT * FROM bid_1.writes").await?;
    run(&stage.config, &["complete", "1"]).await?.assert(1, &["depend on it", "carveout complete"])?;
    assert_shut(&source, "1").await?;
    source.batch_execute("DROP VIEW public.report").await?;
    cli(&stage.config, &["complete", "1"]).await?;
    // The same on the way home.
    stage.complete("2", "schema").await?;
    stage.bring_home("2").await?;
    cli(&stage.config, &["cutover", "2"]).await?;
    source.batch_execute("CREATE VIEW public.report AS SELECT * FROM bid_2.writes").await?;
    for _ in 0..2 {
        run(&stage.config, &["complete", "2"]).await?.assert(1, &["depend on it", "carveout complete"])?;
        assert_shut(&source, "2").await?;
    }
    source.batch_execute("DROP VIEW public.report").await?;
    cli(&stage.config, &["complete", "2"]).await?;
    for tenant in ["1", "2"] {
        ensure!(!super::stages::target_exists(&stage, tenant, "schema").await?, "the schema of {tenant} stayed");
    }
    let left: i64 = source.query_one(LEFT, &[]).await?.get(0);
    ensure!(left == 0, "{left} things of Carveout stayed");
    Ok(())
}

async fn assert_shut(source: &tokio_postgres::Client, tenant: &str) -> Result<()> {
    let refused = source.batch_execute(&ten_rows(&format!("bid_{tenant}"), tenant)).await;
    let code = refused.as_ref().err().and_then(|error| error.code()).map(|code| code.code());
    ensure!(code == Some("TM001"), "a write was not refused where tenant {tenant} does not live: {refused:?}");
    Ok(())
}

/// Invariant 9: what the schema draws before the flip, the database does not draw after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_schema_past_its_block_and_its_database_draw_different_values() -> Result<()> {
    let gate = Gate::new().await?;
    let stage = Stage::open_with("", &gate.hook("before_cutover")).await?;
    let source = stage.scene.source_client().await?;
    stage.complete("1", "schema").await?;
    // Long ago it went past its block.
    source.batch_execute("SELECT setval('bid_1.writes_id_seq', 1500000)").await?;
    stage.carve("1", "database").await?;
    let cutover = gate.cut_over(&stage.config).await?;
    source.batch_execute("SET search_path = bid_1").await?;
    source.batch_execute(&ten_rows("bid_1", "1")).await?;
    gate.open()?;
    let said = cutover.await??;
    ensure!(said.status.success(), "{said:?}");
    let target = stage.scene.target_client("bid_1").await?;
    let more = ten_rows("public", "1").replace("77, n", "77, 10 + n");
    target.batch_execute(&more).await.context("the tenant writes in its database")?;
    let sql = "SELECT count(*), count(DISTINCT id) FROM writes WHERE client = 77";
    let row = target.query_one(sql, &[]).await?;
    ensure!((row.get::<_, i64>(0), row.get::<_, i64>(1)) == (20, 20), "{row:?}");
    Ok(())
}

/// A return that stands because of others' rows can be given up, as its fault says; nothing of it can be kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_return_that_found_others_rows_can_be_given_up() -> Result<()> {
    let stage = Stage::open().await?;
    let source = stage.scene.source_client().await?;
    stage.complete("1", "schema").await?;
    source.batch_execute("INSERT INTO bid_1.accounts (id, bid, kind) VALUES (9999, 3, 1)").await?;
    cli(&stage.config, &["move", "1", "--to", "shared"]).await?;
    let status = stage.stands("1", "leak").await?;
    ensure!(status["can_cutover"] == false, "{status}");
    cli(&stage.config, &["cancel", "1"]).await?;
    phase(&stage.daemon, "1", &["completed"]).await?;
    source.batch_execute("DELETE FROM bid_1.accounts WHERE id = 9999").await?;
    stage.bring_home("1").await
}

/// A lane home that stood when the daemon ended goes on when its cause is mended, at the first `resume`.
#[tokio::test(flavor = "multi_thread")]
async fn a_standing_lane_home_goes_on_after_a_restart() -> Result<()> {
    let mut stage = Stage::open().await?;
    let source = stage.scene.source_client().await?;
    stage.complete("1", "database").await?;
    let target = stage.scene.target_client("bid_1").await?;
    let taken: i32 = target.query_one("SELECT min(id) FROM accounts", &[]).await?.get(0);
    source.batch_execute(&format!("INSERT INTO accounts (id, bid, kind) VALUES ({taken}, 3, 1)")).await?;
    cli(&stage.config, &["move", "1", "--to", "shared"]).await?;
    stage.stands("1", "duplicate key").await?;
    stage.daemon.kill()?;
    stage.daemon = Daemon::start(&stage.config).await?;
    source.batch_execute(&format!("DELETE FROM accounts WHERE id = {taken} AND bid = 3")).await?;
    cli(&stage.config, &["resume", "1"]).await?;
    phase(&stage.daemon, "1", &["streaming"]).await?;
    cli(&stage.config, &["verify", "1"]).await?;
    Ok(())
}
