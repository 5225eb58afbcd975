//! A tenant whose move is complete comes home to the shared database, while it is written and others are.

use super::*;

/// What of a tenant's target there is.
pub(super) async fn target_exists(stage: &Stage, tenant: &str, to: &str) -> Result<bool> {
    let client = match to {
        "database" => stage.scene.target_client("postgres").await?,
        _ => stage.scene.source_client().await?,
    };
    let sql = match to {
        "database" => "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)",
        _ => "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)",
    };
    Ok(client.query_one(sql, &[&format!("bid_{tenant}")]).await?.get(0))
}

impl Stage {
    /// Moves a tenant for good.
    pub(super) async fn complete(&self, tenant: &str, to: &str) -> Result<()> {
        self.carve(tenant, to).await?;
        cli(&self.config, &["cutover", tenant]).await?;
        cli(&self.config, &["complete", tenant]).await?;
        Ok(())
    }

    /// Asks it home, until it is in step.
    pub(super) async fn bring_home(&self, tenant: &str) -> Result<()> {
        cli(&self.config, &["move", tenant, "--to", "shared"]).await?;
        let status = phase(&self.daemon, tenant, &["streaming", "ready"]).await?;
        ensure!(status["to"] == "shared" && status["isolation"] != "shared", "{status}");
        Ok(())
    }
}

/// Issue lines 1 and 6, C04: to a schema or a database, and home again; there and back once more on the way.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_comes_home_from_a_schema_and_from_a_database() -> Result<()> {
    let stage = Stage::open().await?;
    let others = Clients::start(&stage.scene, "3", 2).await?;
    for (tenant, to) in [("1", "database"), ("2", "schema")] {
        let clients = Clients::start(&stage.scene, tenant, 3).await?;
        clients.progress(50).await?;
        stage.complete(tenant, to).await?;
        clients.progress(50).await?;
        stage.bring_home(tenant).await?;
        clients.progress(50).await?;
        cli(&stage.config, &["verify", tenant]).await?;
        for (command, lives, shown) in
            [("cutover", "shared", "reversing"), ("rollback", to, "streaming"), ("cutover", "shared", "reversing")]
        {
            let report = stage.json(&[command, tenant]).await?;
            ensure!(report["route"]["isolation"] == lives, "{command}: {report}");
            let status = phase(&stage.daemon, tenant, &[shown, "ready"]).await?;
            ensure!(status["isolation"] == lives, "{command}: {status}");
            clients.progress(50).await?;
        }
        let ledger = clients.stop().await?;
        ledger.assert_never_on_both_sides()?;
        stage.assert_equal(tenant, to, &ledger).await?;
        let report = stage.json(&["complete", tenant]).await?;
        ensure!(report["certificate"]["equal"] == true && report["route"]["isolation"] == "shared", "{report}");
        ledger.assert_held_by(&stage.scene.source_client().await?, "public", tenant).await?;
        ensure!(!target_exists(&stage, tenant, to).await?, "its {to} is still there");
        ensure!(stage.json(&["complete", tenant]).await? == report, "told otherwise the second time");
        let left: i64 = stage.scene.source_client().await?.query_one(LEFT, &[]).await?.get(0);
        ensure!(left == 0, "{left} things of Carveout stayed");
        println!("home from a {to}: {ledger}");
    }
    // And away again, as any other.
    stage.carve("1", "schema").await?;
    let others = others.stop().await?;
    ensure!(others.was_never_refused(), "another tenant was refused: {others}");
    others.assert_held_by(&stage.scene.source_client().await?, "public", "3").await?;
    stage.daemon.assert_no_errors(&[])
}

/// Invariant 9: a daemon that is killed at any moment of a return goes on with it; given up, nothing of it stays at home.
#[tokio::test(flavor = "multi_thread")]
async fn a_return_survives_kills_and_can_be_given_up() -> Result<()> {
    let mut stage = Stage::open().await?;
    let mut rng = seed::rng("return");
    for (tenant, to) in [("1", "database"), ("2", "schema")] {
        stage.complete(tenant, to).await?;
        let clients = Clients::start(&stage.scene, tenant, 3).await?;
        for _ in 0..3 {
            cli(&stage.config, &["move", tenant, "--to", "shared"]).await?;
            for _ in 0..2 {
                // Any moment will do: what is asserted holds at each.
                tokio::time::sleep(Duration::from_millis(rng.random_range(0..400))).await;
                stage.daemon.kill()?;
                stage.daemon = Daemon::start(&stage.config).await?;
            }
            stage.bring_home(tenant).await?;
            cli(&stage.config, &["verify", tenant]).await?;
            clients.progress(20).await?;
            cli(&stage.config, &["cancel", tenant]).await?;
            let status = phase(&stage.daemon, tenant, &["completed"]).await?;
            ensure!(status["isolation"] == to, "{status}");
            let source = stage.scene.source_client().await?;
            let rows = format!(
                "SELECT (SELECT count(*) FROM accounts WHERE bid = {tenant}) + (SELECT count(*) FROM writes WHERE bid = {tenant})
                    + (SELECT count(*) FROM notes WHERE account NOT IN (SELECT id FROM accounts))"
            );
            ensure!(source.query_one(&rows, &[]).await?.get::<_, i64>(0) == 0, "rows that were copied home stayed");
            let left: i64 = source.query_one(LEFT, &[]).await?.get(0);
            ensure!(left == 0, "{left} things of Carveout stayed");
        }
        let ledger = clients.stop().await?;
        ensure!(ledger.was_never_refused(), "{ledger}");
        stage.assert_gone(tenant, to, &ledger).await?;
    }
    stage.daemon.assert_no_errors(&[])
}

/// What stands in a return's way is named, and nothing has changed.
#[tokio::test(flavor = "multi_thread")]
async fn a_return_is_refused_by_name() -> Result<()> {
    let stage = Stage::open().await?;
    let said = async |args: &[&str], code, parts: &[&str]| {
        run(&stage.config, args).await?.assert(code, parts).with_context(|| format!("{args:?}"))
    };
    said(&["move", "1", "--to", "shared"], 1, &["lives in the shared database"]).await?;
    stage.carve("1", "database").await?;
    said(&["move", "1", "--to", "shared"], 1, &["lives in the shared database"]).await?;
    said(&["cutover", "1"], 0, &[]).await?;
    said(&["move", "1", "--to", "shared"], 1, &["the way back is open", "carveout rollback"]).await?;
    said(&["complete", "1", "--keep-source"], 0, &[]).await?;
    said(&["move", "1", "--to", "shared"], 1, &["public.", "rows of the tenant are there already"]).await?;
    let source = stage.scene.source_client().await?;
    source
        .batch_execute(
            "DELETE FROM notes WHERE account IN (SELECT id FROM accounts WHERE bid = 1);
             DELETE FROM writes WHERE bid = 1; DELETE FROM accounts WHERE bid = 1",
        )
        .await?;
    // Somebody else took a number of its rows meanwhile.
    let target = stage.scene.target_client("bid_1").await?;
    let taken: i64 = target.query_one("SELECT min(id)::bigint FROM accounts", &[]).await?.get(0);
    source.batch_execute(&format!("INSERT INTO accounts (id, bid, kind) VALUES ({taken}, 3, 1)")).await?;
    said(&["move", "1", "--to", "shared"], 0, &[]).await?;
    let status = until("a fault", SOON, async || {
        let status = stage.json(&["status", "1"]).await?;
        ensure!(!status["fault"].is_null(), "{status}");
        Ok(status)
    })
    .await?;
    let message = status["fault"].to_string();
    ensure!(message.contains("accounts") && message.contains("duplicate key"), "{message}");
    said(&["cutover", "1"], 1, &["still being copied home"]).await?;
    said(&["complete", "1"], 1, &["on its way home"]).await?;
    source.batch_execute(&format!("DELETE FROM accounts WHERE id = {taken}")).await?;
    said(&["resume", "1"], 0, &[]).await?;
    phase(&stage.daemon, "1", &["streaming", "ready"]).await?;
    said(&["rehearse", "1"], 1, &["cannot be rehearsed"]).await?;
    said(&["verify", "1"], 0, &["is equal"]).await?;
    said(&["move", "1", "--to", "shared"], 0, &["to shared"]).await?;
    said(&["pause", "1"], 0, &[]).await?;
    said(&["cutover", "1"], 1, &["not in step"]).await?;
    said(&["resume", "1"], 0, &[]).await?;
    phase(&stage.daemon, "1", &["streaming", "ready"]).await?;
    said(&["cutover", "1"], 0, &["lives in database shop"]).await?;
    said(&["cutover", "1"], 1, &["at the source"]).await?;
    said(&["complete", "1", "--keep-source"], 1, &["cannot be kept"]).await?;
    said(&["complete", "1"], 0, &["is complete"]).await?;
    ensure!(!target_exists(&stage, "1", "database").await?, "its database is still there");
    Ok(())
}

/// Issue lines 1 and 6: from a schema to a database, there and back on the way, with a daemon that is killed; then home.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_goes_on_from_its_schema_to_a_database_and_home() -> Result<()> {
    let mut stage = Stage::open().await?;
    let mut rng = seed::rng("stage");
    let others = Clients::start(&stage.scene, "3", 2).await?;
    stage.complete("1", "schema").await?;
    let clients = Clients::start(&stage.scene, "1", 3).await?;
    clients.progress(50).await?;
    // Given up once: it stays where it was.
    stage.carve("1", "database").await?;
    cli(&stage.config, &["cancel", "1"]).await?;
    let status = phase(&stage.daemon, "1", &["completed"]).await?;
    ensure!(status["isolation"] == "schema" && !target_exists(&stage, "1", "database").await?, "{status}");
    cli(&stage.config, &["move", "1", "--to", "database"]).await?;
    for _ in 0..3 {
        // Any moment will do: what is asserted holds at each.
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..600))).await;
        stage.daemon.kill()?;
        stage.daemon = Daemon::start(&stage.config).await?;
    }
    let status = phase(&stage.daemon, "1", &["streaming", "ready"]).await?;
    ensure!(status["isolation"] == "schema" && status["to"] == "database", "{status}");
    cli(&stage.config, &["verify", "1"]).await?;
    for (command, lives) in
        [("rehearse", "schema"), ("cutover", "database"), ("rollback", "schema"), ("cutover", "database")]
    {
        let report = stage.json(&[command, "1"]).await?;
        ensure!(report["route"]["isolation"] == lives, "{command}: {report}");
        clients.progress(50).await?;
        ensure!(stage.json(&["status", "1"]).await?["isolation"] == lives, "{command}");
        cli(&stage.config, &["verify", "1"]).await?;
    }
    let report = stage.json(&["complete", "1"]).await?;
    ensure!(report["certificate"]["equal"] == true && report["residue"] == json!([]), "{report}");
    ensure!(!target_exists(&stage, "1", "schema").await?, "its schema is still there");
    clients.progress(50).await?;
    stage.daemon.kill()?;
    stage.daemon = Daemon::start(&stage.config).await?;
    ensure!(stage.json(&["complete", "1"]).await? == report, "told otherwise the second time");
    stage.bring_home("1").await?;
    cli(&stage.config, &["cutover", "1"]).await?;
    clients.progress(50).await?;
    cli(&stage.config, &["complete", "1"]).await?;
    let ledger = clients.stop().await?;
    ledger.assert_never_on_both_sides()?;
    let source = stage.scene.source_client().await?;
    ledger.assert_held_by(&source, "public", "1").await?;
    ensure!(!target_exists(&stage, "1", "database").await?, "its database is still there");
    let left: i64 = source.query_one(LEFT, &[]).await?.get(0);
    ensure!(left == 0, "{left} things of Carveout stayed");
    let moves: Value = stage.json(&["status"]).await?;
    ensure!(moves["tenants"] == json!([]), "{moves}");
    println!("schema, database, home: {ledger}");
    let others = others.stop().await?;
    ensure!(others.was_never_refused(), "another tenant was refused: {others}");
    others.assert_held_by(&source, "public", "3").await?;
    stage.daemon.assert_no_errors(&[])
}

/// Invariants 1 and 2: a copy home that fails in the middle leaves nothing behind that nobody finds, others' rows do not come along,
/// and values that were drawn while nobody reserved any are nobody else's on the next stage.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_where_a_tenant_lives_does_not_come_home() -> Result<()> {
    let stage = Stage::open().await?;
    let source = stage.scene.source_client().await?;
    let fault = async |code: &str, part: &str| {
        until("a fault", SOON, async || {
            let status = stage.json(&["status", "1"]).await?;
            let fault = status["fault"].to_string();
            ensure!(fault.contains(code) && fault.contains(part), "{status}");
            Ok(())
        })
        .await
    };
    stage.complete("1", "schema").await?;
    let taken: i32 = source.query_one("SELECT min(id) FROM bid_1.accounts", &[]).await?.get(0);
    source.batch_execute(&format!("INSERT INTO accounts (id, bid, kind) VALUES ({taken}, 3, 1)")).await?;
    cli(&stage.config, &["move", "1", "--to", "shared"]).await?;
    fault("step_failed", "duplicate key").await?;
    cli(&stage.config, &["cancel", "1"]).await?;
    let orphans = "SELECT count(*) FROM notes WHERE account NOT IN (SELECT id FROM accounts)
                      OR account IN (SELECT id FROM accounts WHERE bid = 1)";
    ensure!(source.query_one(orphans, &[]).await?.get::<_, i64>(0) == 0, "rows stayed that nobody finds");
    source.batch_execute(&format!("DELETE FROM accounts WHERE id = {taken} AND bid = 3")).await?;
    // Nobody keeps others' rows out once the move is complete.
    source.batch_execute("INSERT INTO bid_1.accounts (id, bid, kind) VALUES (9999, 3, 1)").await?;
    cli(&stage.config, &["move", "1", "--to", "shared"]).await?;
    fault("leak", "1 rows in the target are not the tenant's").await?;
    let there = "SELECT count(*) FROM accounts WHERE id = 9999";
    ensure!(source.query_one(there, &[]).await?.get::<_, i64>(0) == 0, "another tenant was given a row");
    source.batch_execute("DELETE FROM bid_1.accounts WHERE id = 9999").await?;
    cli(&stage.config, &["move", "1", "--to", "shared"]).await?;
    phase(&stage.daemon, "1", &["streaming", "ready"]).await?;
    cli(&stage.config, &["cancel", "1"]).await?;
    // Past its block, and on to a database, back and there again.
    source
        .batch_execute(
            "SELECT setval('bid_1.writes_id_seq', 1500000);
             INSERT INTO bid_1.writes (bid, client, number, body) SELECT 1, 50, n, '' FROM generate_series(1, 300) n",
        )
        .await?;
    stage.carve("1", "database").await?;
    run(&stage.config, &["complete", "1", "--keep-source"]).await?.assert(1, &[])?;
    let target = stage.scene.target_client("bid_1").await?;
    for (round, command) in ["cutover", "rollback", "cutover"].into_iter().enumerate() {
        cli(&stage.config, &[command, "1"]).await?;
        let writes = format!(
            "INSERT INTO {}.writes (bid, client, number, body) SELECT 1, {}, n, '' FROM generate_series(1, 300) n",
            if command == "cutover" { "public" } else { "bid_1" },
            51 + round
        );
        let here = if command == "cutover" { &target } else { &source };
        here.batch_execute(&writes).await.with_context(|| format!("write after {command}"))?;
    }
    run(&stage.config, &["complete", "1", "--keep-source"]).await?.assert(1, &["cannot be kept"])?;
    cli(&stage.config, &["complete", "1"]).await?;
    ensure!(!target_exists(&stage, "1", "schema").await?, "its schema is still there");
    ensure!(target.query_one("SELECT count(*) FROM writes", &[]).await?.get::<_, i64>(0) == 1200, "writes are missing");
    Ok(())
}
