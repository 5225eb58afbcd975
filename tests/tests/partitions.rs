//! Partitioned tables: as partitioned in the target, by their root, while partitions come and go.

mod moments;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use daemon::demo::cluster::ClusterOptions;
use tests::daemon::Daemon;
use tests::load::Load;
use tests::oracle;
use tests::scene::{Configuration, DATABASE, Scene};
use tests::wait::until;
use tokio_postgres::Client;

use crate::carve::{cli, drained, phase, start_move, verify_equal};
use crate::settle::SOON;
use crate::surface::{Desk, run};

const SETUP: &str = include_str!("partitions/partitions.sql");
const TENANTS: [(&str, &str); 2] = [("1", "schema"), ("2", "database")];
/// Table, and its rows of a tenant on the source.
const TABLES: [(&str, &str); 5] = [
    ("orders", "bid = $"),
    ("events", "bid = $"),
    ("marks", "bid = $"),
    ("days", "bid = $"),
    ("lines", "order_id IN (SELECT id FROM orders WHERE bid = $)"),
];
/// What somebody does to the partitions while the application writes; all of it over and over.
const CHANGES: [&str; 10] = [
    // With rows of both tenants, which the stream never had.
    "INSERT INTO guest SELECT n % 4, nextval('ids'), 30 + n % 10, 'guest', repeat('g', 3000) FROM generate_series(1, 50) n;
     ALTER TABLE guest REPLICA IDENTITY FULL; ALTER TABLE events ATTACH PARTITION guest FOR VALUES FROM (30) TO (40)",
    "ALTER TABLE lines ATTACH PARTITION lines_guest FOR VALUES FROM (10) TO (15)",
    "TRUNCATE \"events \"\"2\"\"\"",
    "ALTER TABLE events DETACH PARTITION guest",
    // While it is no partition, and back at once.
    "ALTER TABLE events ATTACH PARTITION guest FOR VALUES FROM (30) TO (40); ALTER TABLE events DETACH PARTITION guest;
     UPDATE guest SET note = 'alone'; DELETE FROM guest WHERE id % 3 = 0;
     ALTER TABLE events ATTACH PARTITION guest FOR VALUES FROM (30) TO (40)",
    "ALTER TABLE lines DETACH PARTITION lines_guest; INSERT INTO lines_guest SELECT id, 12, 'out' FROM orders ON CONFLICT DO NOTHING",
    "CREATE TABLE days_four PARTITION OF days FOR VALUES IN (40)",
    "TRUNCATE events_3a; INSERT INTO days VALUES (1, 40, 1), (2, 40, 2) ON CONFLICT DO NOTHING",
    "ALTER TABLE events DETACH PARTITION guest; TRUNCATE guest; TRUNCATE lines_guest",
    "ALTER TABLE days DETACH PARTITION days_four; DROP TABLE days_four",
];
const LONG: Duration = Duration::from_secs(300);

/// R13, invariants 1 to 3: partitions of other column order, of partitions, with foreign keys from and to them, attached,
/// detached, emptied and dropped while tenants are copied and followed, over kills: both targets have the source's
/// partitions and rows.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_come_and_go_while_tenants_move() -> Result<()> {
    come_and_go(Scene::empty(ClusterOptions::default(), ClusterOptions::default()).await?).await
}

/// The same between other versions.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "some minutes, and needs all versions: make campaign"]
async fn partitions_come_and_go_on_other_versions() -> Result<()> {
    let old = Scene::between(14, 14).await?;
    old.source_client().await?.batch_execute(SETUP).await?;
    let config = old.write_config("carveout", &Configuration::default())?;
    run(&config, &["check"])
        .await?
        .assert(1, &["public.events", "PostgreSQL 14 publishes a partition as what it was"])?;
    for (from, to) in [(15, 14), (16, 17), (18, 14), (17, 18)] {
        println!("from PostgreSQL {from} to {to}");
        come_and_go(Scene::between(from, to).await?).await?;
    }
    Ok(())
}

async fn come_and_go(scene: Scene) -> Result<()> {
    let source = scene.source_client().await?;
    source.batch_execute(SETUP).await.context("make the tables")?;
    let tables = [("lines", "{via: order_id}"), ("guest", "{exclude: true}"), ("lines_guest", "{exclude: true}")];
    let tables = tables.map(|(table, policy)| (table.to_owned(), policy.to_owned())).to_vec();
    let config = scene.write_config("carveout", &Configuration { tables, ..Configuration::default() })?;
    cli(&config, &["prepare", "--apply"]).await?;
    let mut load = Load::scripts(&scene.source, DATABASE, &[("SELECT touch();", 1)], 2, 4_000)?;
    let mut daemon = Daemon::start(&config).await?;
    for (tenant, to) in TENANTS {
        start_move(&daemon, tenant, to).await?;
    }
    let (mut changes, mut comparisons) = (0, 0);
    while load.is_running()? || changes % CHANGES.len() > 0 {
        source.batch_execute(CHANGES[changes % CHANGES.len()]).await.context(CHANGES[changes % CHANGES.len()])?;
        changes += 1;
        // Some transactions later.
        let seen = written(&source).await?;
        until("more transactions", LONG, async || {
            ensure!(written(&source).await? > seen + 200 || !load.is_running()?, "nothing was written");
            Ok(())
        })
        .await?;
        if changes % 4 == 0 {
            daemon.kill()?;
            daemon = Daemon::start(&config).await?;
        }
        if changes % 5 == 0 {
            for (tenant, _) in TENANTS {
                phase(&daemon, tenant, &["streaming", "ready"]).await?;
                verify_equal(&daemon, tenant).await?;
                comparisons += 1;
            }
        }
    }
    load.finish(LONG).await?.assert_fine()?;
    let again = daemon.log()?.matches("these tables are read again").count();
    let mut rows = 0;
    for (tenant, to) in TENANTS {
        phase(&daemon, tenant, &["streaming", "ready"]).await?;
        drained(&scene, &daemon, &[tenant]).await?;
        verify_equal(&daemon, tenant).await?;
        let (target, schema) = match to {
            "database" => (scene.target_client(&format!("bid_{tenant}")).await?, "public".to_owned()),
            _ => (scene.source_client().await?, format!("bid_{tenant}")),
        };
        for (table, filter) in TABLES {
            let (theirs, filter) = (format!("{schema}.{table}"), filter.replace('$', tenant));
            rows += oracle::assert_equal(&source, table, &filter, &target, &theirs).await?.target_rows;
        }
        let parts = shape(&source, "public").await?;
        ensure!(parts.contains("events \"\"2\"\""), "{parts}");
        let theirs = shape(&target, &schema).await?;
        ensure!(theirs == parts, "{theirs}\n is not\n{parts}");
    }
    println!(
        "{changes} changes of partitions, {again} times read again, {comparisons} comparisons under load, {rows} rows equal"
    );
    ensure!(again > 4 && comparisons > 2 && rows > 500, "too little happened");
    daemon.assert_no_errors(&[])
}

/// What cannot be followed is refused; a new partition whose old rows would name no tenant is waited for, by name.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_cannot_be_followed_are_named() -> Result<()> {
    let tables = vec![("note".to_owned(), "{via: [id, at]}".to_owned())];
    let desk = Desk::open_with(ClusterOptions::default(), Configuration { tables, ..Configuration::default() }).await?;
    desk.sql(
        "CREATE TABLE days (bid integer NOT NULL, id bigint, at integer, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
         CREATE TABLE days_1 PARTITION OF days FOR VALUES FROM (0) TO (10);
         CREATE UNLOGGED TABLE \"days 2\" PARTITION OF days FOR VALUES FROM (10) TO (20);
         CREATE TABLE plain (bid integer);
         CREATE TABLE heir () INHERITS (plain);
         CREATE TABLE note (id bigint, at integer, n integer PRIMARY KEY, FOREIGN KEY (id, at) REFERENCES days)",
    )
    .await?;
    let remedy = "ALTER TABLE \"public\".\"days 2\" SET LOGGED";
    let said = ["its partition public.days 2 is unlogged", remedy, "inheritance other than partitions"];
    run(&desk.config, &["check"]).await?.assert(1, &said)?;
    desk.sql(remedy).await?;
    run(&desk.config, &["check"]).await?.assert(1, &["(id, at) leads to public.days, which is partitioned"])?;
    desk.sql(
        "DROP TABLE note, heir, plain; INSERT INTO days SELECT n % 3, n, n % 20, 'x' FROM generate_series(1, 300) n",
    )
    .await?;
    let wanted = Configuration::default();
    std::fs::copy(desk.scene.write_config("other", &wanted)?, &desk.config)?;
    // Others made the publication, without partitions' roots.
    desk.sql("CREATE PUBLICATION carveout FOR TABLE orders").await?;
    run(&desk.config, &["check"]).await?.assert(
        1,
        &[
            "it is partitioned, and a DELETE would not name its tenant",
            "ALTER TABLE \"public\".\"days 2\" REPLICA IDENTITY FULL",
            "SET (publish_via_partition_root = true)",
        ],
    )?;
    let daemon = desk.work().await?;
    desk.carve(&daemon, "1", "schema").await?;
    desk.sql("CREATE TABLE late PARTITION OF days FOR VALUES FROM (20) TO (30); INSERT INTO days VALUES (1, 1000, 25, 'late')").await?;
    until("a partition that is waited for", SOON, async || {
        let status = daemon.tenant("1").await?;
        ensure!(
            status["waiting_for"]
                .as_str()
                .is_some_and(|why| why.contains("partition public.late has another replica identity")),
            "{status}"
        );
        Ok(())
    })
    .await?;
    desk.sql("ALTER TABLE late REPLICA IDENTITY FULL; DELETE FROM days WHERE id < 100").await?;
    until("the rows of the partition", SOON, async || {
        let rows =
            desk.ask("SELECT (SELECT count(*) FROM bid_1.late) || ' ' || (SELECT count(*) FROM bid_1.days)").await?;
        let wanted =
            desk.ask("SELECT (SELECT count(*) FROM late) || ' ' || (SELECT count(*) FROM days WHERE bid = 1)").await?;
        ensure!(rows == wanted, "{rows} instead of {wanted}");
        Ok(())
    })
    .await?;
    verify_equal(&daemon, "1").await?;
    daemon.assert_no_errors(&[])
}

/// What comes while a tenant is copied, and is not fit, is waited for; a partition that was known, went, and comes back
/// for a moment with rows takes them along again.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_come_for_a_moment_leave_nothing_behind() -> Result<()> {
    let desk = Desk::open().await?;
    desk.sql(
        "CREATE TABLE days (bid integer NOT NULL, id bigint, at integer, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
         CREATE TABLE days_1 PARTITION OF days FOR VALUES FROM (0) TO (10);
         CREATE TABLE rest PARTITION OF days DEFAULT;
         INSERT INTO days SELECT 1, n, n % 10 FROM generate_series(1, 20) n",
    )
    .await?;
    cli(&desk.config, &["prepare", "--apply"]).await?;
    // Whoever was open when the tables were first seen holds the copy up.
    let open = desk.scene.source_client().await?;
    open.batch_execute("BEGIN; INSERT INTO days VALUES (1, 100, 1)").await?;
    let daemon = Daemon::start(&desk.config).await?;
    start_move(&daemon, "1", "schema").await?;
    phase(&daemon, "1", &["copying"]).await?;
    desk.sql("CREATE TABLE days_2 (LIKE days INCLUDING ALL); ALTER TABLE days ATTACH PARTITION days_2 FOR VALUES FROM (10) TO (20); INSERT INTO days VALUES (1, 200, 11), (1, 201, 12)").await?;
    open.batch_execute("COMMIT").await?;
    until("a partition that is waited for", SOON, async || {
        let status = daemon.tenant("1").await?;
        let waits = |why: &str| why.contains("partition public.days_2 has another replica identity");
        ensure!(status["waiting_for"].as_str().is_some_and(waits), "{status}");
        Ok(())
    })
    .await?;
    desk.sql("ALTER TABLE days_2 REPLICA IDENTITY FULL; DELETE FROM days WHERE id = 200; UPDATE days SET bid = 3 WHERE id = 201").await?;
    phase(&daemon, "1", &["streaming", "ready"]).await?;
    verify_equal(&daemon, "1").await?;
    for (number, id) in [(1, 700), (2, 701)] {
        desk.sql("ALTER TABLE days DETACH PARTITION days_2").await?;
        until("a partition that is gone", SOON, async || {
            let there = desk.ask("SELECT to_regclass('bid_1.days_2') IS NULL").await?;
            ensure!(there == "true", "it is there");
            Ok(())
        })
        .await?;
        let attach = "ALTER TABLE days ATTACH PARTITION days_2 FOR VALUES FROM (10) TO (20)";
        desk.sql(&format!(
            "BEGIN; {attach}; COMMIT; INSERT INTO days VALUES (1, {id}, 15); ALTER TABLE days DETACH PARTITION days_2"
        ))
        .await?;
        drained(&desk.scene, &daemon, &["1"]).await?;
        verify_equal(&daemon, "1").await?;
        ensure!(desk.ask("SELECT count(*) FROM bid_1.days").await? == "21", "time {number}: its rows stayed");
        desk.sql(attach).await?;
        until("a partition that is back", SOON, async || {
            ensure!(
                desk.ask("SELECT count(*) FROM bid_1.days").await? == format!("{}", 21 + number),
                "its rows are missing"
            );
            Ok(())
        })
        .await?;
    }
    daemon.assert_no_errors(&[])
}

/// How many numbers the application has taken.
async fn written(source: &Client) -> Result<i64> {
    Ok(source.query_one("SELECT last_value FROM ids", &[]).await?.get(0))
}

/// The partitions with their bounds, and the foreign keys from and to them, without schemas.
async fn shape(client: &Client, schema: &str) -> Result<String> {
    let sql = "SELECT string_agg(line, E'\\n' ORDER BY line) FROM (
          SELECT format('%I of %I %s %s', c.relname, p.relname, pg_get_expr(c.relpartbound, c.oid), pg_get_partkeydef(c.oid)) AS line
            FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid AND c.relkind IN ('r', 'p') JOIN pg_class p ON p.oid = i.inhparent
           WHERE c.relnamespace = $1::text::regnamespace
          UNION ALL
          SELECT format('%s of %I holds', conname, c.relname) FROM pg_constraint k JOIN pg_class c ON c.oid = conrelid
           WHERE contype = 'f' AND conparentid = 0 AND convalidated AND NOT c.relispartition
             AND connamespace = $1::text::regnamespace AND c.relname IN ('lines', 'marks')) l";
    let row = client.query_one(sql, &[&schema]).await?;
    Ok(row.get::<_, Option<String>>(0).unwrap_or_default())
}
