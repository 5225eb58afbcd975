//! Moments in which what the stream says, what is seen once a second and what is read again meet.

use super::*;

const ROOTS: &str = "CREATE TABLE heads (bid integer NOT NULL, id bigint PRIMARY KEY, v text);
    CREATE TABLE parts (id bigint PRIMARY KEY, head bigint NOT NULL REFERENCES heads ON DELETE CASCADE, v text);
    CREATE TABLE bits (part bigint NOT NULL REFERENCES parts ON DELETE CASCADE, n integer NOT NULL, v text, PRIMARY KEY (part, n))
      PARTITION BY RANGE (n);
    CREATE TABLE bits_0 PARTITION OF bits FOR VALUES FROM (0) TO (1);
    CREATE TABLE bits_1 PARTITION OF bits FOR VALUES FROM (1) TO (10);
    INSERT INTO heads SELECT n % 3, n, 'h' FROM generate_series(1, 30) n;
    INSERT INTO parts SELECT n, n, 'p' FROM generate_series(1, 30) n;
    INSERT INTO bits SELECT n, m, 'b' FROM generate_series(1, 30) n, generate_series(0, 2) m";

async fn desk(sql: &str, tables: &[(&str, &str)]) -> Result<Desk> {
    let tables = tables.iter().map(|(table, policy)| ((*table).to_owned(), (*policy).to_owned())).collect();
    let desk = Desk::open_with(ClusterOptions::default(), Configuration { tables, ..Configuration::default() }).await?;
    desk.sql(sql).await?;
    Ok(desk)
}

const BELOW: [(&str, &str); 2] = [("parts", "{via: head}"), ("bits", "{via: part}")];

/// The move goes on, and both sides become equal.
async fn settles(desk: &Desk, daemon: &Daemon, tenant: &str) -> Result<()> {
    drained(&desk.scene, daemon, &[tenant]).await?;
    until("both sides equal", SOON, async || {
        let status = daemon.tenant(tenant).await?;
        ensure!(status["fault"].is_null(), "{status}");
        verify_equal(daemon, tenant).await
    })
    .await
}

async fn read_again(daemon: &Daemon) -> Result<()> {
    until("the look", SOON, async || {
        ensure!(daemon.log()?.contains("these tables are read again"), "not yet");
        Ok(())
    })
    .await
}

/// What hangs on a row that changes hands is read with it, but for tables that are read again as a whole: their partitions
/// in the target are not the source's yet, and they may hold rows that are gone.
#[tokio::test(flavor = "multi_thread")]
async fn rows_change_hands_while_a_table_below_is_read_again() -> Result<()> {
    let desk = desk(ROOTS, &BELOW).await?;
    let daemon = desk.work().await?;
    desk.carve(&daemon, "1", "schema").await?;
    desk.sql("CREATE TABLE extra (LIKE bits INCLUDING ALL); INSERT INTO extra VALUES (2, 15, 'x')").await?;
    desk.sql("ALTER TABLE bits ATTACH PARTITION extra FOR VALUES FROM (10) TO (20)").await?;
    desk.sql("UPDATE heads SET bid = 1 WHERE id = 2").await?;
    settles(&desk, &daemon, "1").await?;
    // In one transaction, and told by the stream first.
    desk.sql("CREATE TABLE more (LIKE bits INCLUDING ALL)").await?;
    desk.sql(
        "BEGIN; ALTER TABLE bits ATTACH PARTITION more FOR VALUES FROM (20) TO (30); UPDATE heads SET bid = 1 WHERE id = 5;
         INSERT INTO bits VALUES (5, 25, 'x'); COMMIT",
    )
    .await?;
    settles(&desk, &daemon, "1").await?;
    // While somebody reads in the target, which makes nobody wait.
    let reader = desk.scene.source_client().await?;
    reader.batch_execute("BEGIN; SELECT FROM bid_1.bits LIMIT 1").await?;
    desk.sql("TRUNCATE bits_0").await?;
    read_again(&daemon).await?;
    desk.sql(
        "BEGIN; DELETE FROM parts WHERE id = 4; INSERT INTO parts VALUES (4, 8, 'again'); INSERT INTO bits VALUES (4, 1, 'again');
         COMMIT; UPDATE heads SET bid = 1 WHERE id = 8",
    )
    .await?;
    settles(&desk, &daemon, "1").await?;
    reader.batch_execute("COMMIT").await?;
    daemon.assert_no_errors(&[])
}

/// A partition that is another table's for a moment takes that moment's rows along; so do rows that another identity wrote.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_so_for_a_moment_only_leaves_no_row_behind() -> Result<()> {
    let desk = desk(
        "CREATE TABLE hot (bid integer NOT NULL, id bigint, at integer, PRIMARY KEY (bid, id, at)) PARTITION BY RANGE (at);
         CREATE TABLE cold (bid integer NOT NULL, id bigint, at integer, PRIMARY KEY (bid, id, at)) PARTITION BY RANGE (at);
         CREATE TABLE hot_1 PARTITION OF hot FOR VALUES FROM (0) TO (10);
         CREATE TABLE cold_rest PARTITION OF cold DEFAULT;
         INSERT INTO hot SELECT 1, n, n % 10 FROM generate_series(1, 20) n;
         CREATE TABLE days (bid integer NOT NULL, id bigint NOT NULL, at integer NOT NULL, v text) PARTITION BY RANGE (at);
         CREATE TABLE days_1 PARTITION OF days FOR VALUES FROM (0) TO (100);
         CREATE UNIQUE INDEX whose ON days (bid, id, at);
         CREATE UNIQUE INDEX own ON days_1 (id, at);
         ALTER TABLE days REPLICA IDENTITY USING INDEX whose;
         DO $$ BEGIN EXECUTE (SELECT format('ALTER TABLE days_1 REPLICA IDENTITY USING INDEX %s', inhrelid::regclass)
                                FROM pg_inherits WHERE inhparent = 'whose'::regclass); END $$;
         INSERT INTO days SELECT n % 3, n, n % 20, 'v' FROM generate_series(1, 30) n",
        &[],
    )
    .await?;
    let mut daemon = desk.work().await?;
    desk.carve(&daemon, "1", "schema").await?;
    let of = "SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'whose'::regclass";
    let whose = desk.ask(of).await?;
    // Nobody looks meanwhile.
    daemon.kill()?;
    desk.sql("BEGIN; ALTER TABLE hot DETACH PARTITION hot_1; ALTER TABLE cold ATTACH PARTITION hot_1 FOR VALUES FROM (0) TO (10); COMMIT").await?;
    desk.sql("INSERT INTO cold VALUES (1, 777, 5)").await?;
    desk.sql("BEGIN; ALTER TABLE cold DETACH PARTITION hot_1; ALTER TABLE hot ATTACH PARTITION hot_1 FOR VALUES FROM (0) TO (10); COMMIT").await?;
    desk.sql("ALTER TABLE days_1 REPLICA IDENTITY USING INDEX own").await?;
    desk.sql("UPDATE days SET bid = 2 WHERE id = 4").await?;
    desk.sql(&format!("ALTER TABLE days_1 REPLICA IDENTITY USING INDEX {whose}")).await?;
    daemon = Daemon::start(&desk.config).await?;
    settles(&desk, &daemon, "1").await?;
    let rows = desk
        .ask("SELECT (SELECT count(*) FROM bid_1.cold) || ' ' || (SELECT count(*) FROM bid_1.days WHERE id = 4)")
        .await?;
    ensure!(rows == "0 0", "{rows}");
    daemon.assert_no_errors(&[])
}

/// A TRUNCATE of several tables describes them as a partition is described: nothing is read again for it.
#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_emptied_together_are_no_partitions() -> Result<()> {
    let desk = desk(ROOTS, &[("parts", "{via: head}"), ("bits", "{exclude: true}")]).await?;
    cli(&desk.config, &["prepare", "--apply"]).await?;
    // Whoever was open when the tables were first seen holds the copy up.
    let open = desk.scene.source_client().await?;
    open.batch_execute("BEGIN; INSERT INTO orders VALUES (2, 100000, 'o')").await?;
    let daemon = Daemon::start(&desk.config).await?;
    start_move(&daemon, "1", "schema").await?;
    phase(&daemon, "1", &["copying"]).await?;
    desk.sql("TRUNCATE heads, parts, bits").await?;
    desk.sql("INSERT INTO heads SELECT n % 3, n, 'h' FROM generate_series(1, 30) n; INSERT INTO parts SELECT n, n, 'p' FROM generate_series(1, 30) n").await?;
    open.batch_execute("COMMIT").await?;
    phase(&daemon, "1", &["streaming", "ready"]).await?;
    desk.sql("UPDATE heads SET bid = 2 WHERE id = 1").await?;
    settles(&desk, &daemon, "1").await?;
    ensure!(desk.ask("SELECT count(*) FROM bid_1.parts WHERE head = 1").await? == "0", "rows of another tenant stayed");
    ensure!(!daemon.log()?.contains("rows came from another tenant"), "something was read again");
    daemon.assert_no_errors(&[])
}

/// A comparison that is under way when its table is read again sees what it saw.
#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_is_not_disturbed_by_a_table_that_is_read_again() -> Result<()> {
    let desk = desk(
        "CREATE TABLE aaa (bid integer NOT NULL, id bigint, PRIMARY KEY (bid, id));
         INSERT INTO aaa SELECT 1, n FROM generate_series(1, 30) n;
         CREATE TABLE days (bid integer NOT NULL, id bigint, at integer, PRIMARY KEY (bid, id, at)) PARTITION BY RANGE (at);
         CREATE TABLE days_1 PARTITION OF days FOR VALUES FROM (0) TO (10);
         CREATE TABLE days_rest PARTITION OF days DEFAULT;
         INSERT INTO days SELECT 1, n, n % 10 FROM generate_series(1, 400) n",
        &[],
    )
    .await?;
    let daemon = desk.work().await?;
    desk.carve(&daemon, "1", "schema").await?;
    desk.sql("CREATE TABLE guest (LIKE days INCLUDING ALL)").await?;
    let lock = desk.scene.source_client().await?;
    lock.batch_execute("BEGIN; LOCK TABLE bid_1.aaa IN ACCESS EXCLUSIVE MODE").await?;
    let (compared, done) = tokio::join!(verify_equal(&daemon, "1"), async {
        until("the comparison of aaa", SOON, async || {
            let waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'carveout verify' AND wait_event_type = 'Lock'";
            ensure!(desk.ask(waits).await? != "0", "not yet");
            Ok(())
        })
        .await?;
        desk.sql("ALTER TABLE days ATTACH PARTITION guest FOR VALUES FROM (10) TO (20)").await?;
        desk.sql("INSERT INTO days VALUES (1, 9999, 15)").await?;
        desk.sql("ALTER TABLE days DETACH PARTITION guest").await?;
        until("the table read again", SOON, async || {
            ensure!(daemon.log()?.contains("rows came from another tenant"), "not yet");
            Ok(())
        })
        .await?;
        lock.batch_execute("COMMIT").await.context("let it go on")
    });
    done?;
    compared?;
    settles(&desk, &daemon, "1").await?;
    daemon.assert_no_errors(&[])
}

/// Foreign keys of partitioned tables are left out too where the target would enforce them while changes are applied.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_keys_that_the_target_would_enforce_are_left_out() -> Result<()> {
    let desk = desk(ROOTS, &BELOW).await?;
    desk.sql("CREATE ROLE carver LOGIN CREATEDB").await?;
    let text = std::fs::read_to_string(&desk.config)?;
    std::fs::write(
        &desk.config,
        text.replace(
            "tenant_database_pattern: \"postgresql://postgres@",
            "tenant_database_pattern: \"postgresql://carver@",
        ),
    )?;
    let daemon = desk.work().await?;
    desk.carve(&daemon, "1", "database").await?;
    until("the keys looked at", SOON, async || {
        let left_out = daemon.tenant("1").await?["left_out"].to_string();
        ensure!(left_out.contains("bits_part_fkey") && left_out.contains("session_replication_role"), "{left_out}");
        Ok(())
    })
    .await?;
    desk.sql("DELETE FROM heads WHERE id = 4").await?;
    settles(&desk, &daemon, "1").await?;
    daemon.assert_no_errors(&[])
}
