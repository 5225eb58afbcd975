//! The shape of the tables: what the target was made from is not what the source has any more, or a change says
//! less than usual.

use anyhow::{Context, Result, ensure};
use daemon::demo::cluster::ClusterOptions;
use tests::daemon::Daemon;
use tests::oracle;
use tests::scene::{Configuration, Scene};
use tests::wait::until;

use crate::carve::{cli, phase, verify_equal};
use crate::settle::{SOON, drained, faulted};
use crate::surface::Desk;

/// A desk with tables of its own.
async fn desk(tables: &str, extra: &str) -> Result<(Desk, Daemon)> {
    let scene = Scene::single(ClusterOptions::default()).await?;
    let source = scene.source_client().await?;
    source.batch_execute(tables).await.context("make the tables")?;
    let wanted = Configuration { extra: extra.to_owned(), ..Configuration::default() };
    let config = scene.write_config("carveout", &wanted)?;
    let desk = Desk { source, config, scene };
    let daemon = desk.work().await?;
    Ok((desk, daemon))
}

/// Compares tables of tenant 1, in its schema.
async fn assert_equal(desk: &Desk, daemon: &Daemon, tables: &[&str]) -> Result<()> {
    drained(&desk.scene, daemon, "1").await?;
    let target = desk.scene.source_client().await?;
    for table in tables {
        let right = format!("bid_1.{table}");
        oracle::assert_equal(&desk.source, &format!("public.{table}"), "bid = 1", &target, &right).await?;
    }
    verify_equal(daemon, "1").await
}

/// R09: another scale is another type: bytes that pass undecoded would be rounded without a word. Copied again,
/// the target has the source's new shape.
#[tokio::test(flavor = "multi_thread")]
async fn another_scale_stops_the_lane_and_a_new_copy_takes_the_new_shape() -> Result<()> {
    let tables = "CREATE TABLE prices (bid integer, id integer, price numeric(10,2), PRIMARY KEY (bid, id)); \
                  INSERT INTO prices SELECT n % 3, n, n FROM generate_series(1, 30) n";
    let (desk, daemon) = desk(tables, "").await?;
    desk.carve(&daemon, "1", "schema").await?;
    desk.sql("ALTER TABLE prices ALTER price TYPE numeric(12,4); INSERT INTO prices VALUES (1, 100, 1.2345)").await?;
    let fault = faulted(&daemon, "1").await?["fault"].clone();
    ensure!(fault["message"].as_str().is_some_and(|message| message.contains("\"price\" has another type")), "{fault}");
    // The spool is lost too: `move` copies again, and makes the tables anew.
    desk.sql("DELETE FROM carveout.copied WHERE move = 'm1'").await?;
    cli(&desk.config, &["move", "1"]).await?;
    faulted(&daemon, "1").await?;
    desk.sql("ALTER TABLE prices ADD COLUMN note text DEFAULT 'x', ADD UNIQUE (id)").await?;
    cli(&desk.config, &["move", "1"]).await?;
    phase(&daemon, "1", &["streaming"]).await?;
    desk.sql("UPDATE prices SET note = 'y', price = price + 0.0001 WHERE id % 2 = 0").await?;
    assert_equal(&desk, &daemon, &["prices"]).await?;
    let unique = "SELECT count(*) FROM pg_index WHERE indrelid = 'bid_1.prices'::regclass AND indisunique";
    ensure!(desk.ask(unique).await? == "2", "the new key was not made");
    Ok(())
}

/// Two tables of 1500 rows.
const TWO: &str = "CREATE TABLE a (bid integer, id integer, PRIMARY KEY (bid, id)); CREATE TABLE b (LIKE a INCLUDING ALL); \
                   INSERT INTO a SELECT 1, n FROM generate_series(1, 1500) n; INSERT INTO b SELECT * FROM a";
/// One table after the other, slowly.
const ONE_BY_ONE: &str = "limits: {copy_parallel: 1, copy_rows_per_second: 300}\n";

/// Starts the move of tenant 1; when this returns, the snapshot is there and table `a` is being copied.
async fn first_under_way(desk: &Desk, daemon: &Daemon) -> Result<()> {
    cli(&desk.config, &["move", "1", "--to", "schema"]).await?;
    until("the first table under way", SOON, async || {
        let rows = daemon.tenant("1").await?["rows_copied"].as_u64().unwrap_or(0);
        ensure!((1..1500).contains(&rows), "{rows} rows");
        Ok(())
    })
    .await
}

/// T13: a table that is rewritten after the copy's snapshot may look empty under it; it is copied under another.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_rewritten_before_its_turn_is_copied_whole() -> Result<()> {
    let (desk, daemon) = desk(TWO, ONE_BY_ONE).await?;
    first_under_way(&desk, &daemon).await?;
    desk.sql("VACUUM FULL b").await?;
    phase(&daemon, "1", &["streaming"]).await?;
    assert_equal(&desk, &daemon, &["a", "b"]).await?;
    ensure!(desk.ask("SELECT count(*) FROM bid_1.b").await? == "1500");
    ensure!(daemon.log()?.contains("rewritten meanwhile"), "the rewrite did not come in between");
    Ok(())
}

/// R08: a TRUNCATE that the snapshot of the table's copy shows is no reason to stop.
#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_before_the_tables_copy_stops_nothing() -> Result<()> {
    let (desk, daemon) = desk(TWO, ONE_BY_ONE).await?;
    first_under_way(&desk, &daemon).await?;
    desk.sql("TRUNCATE b; INSERT INTO b SELECT n % 3, n FROM generate_series(1, 30) n").await?;
    phase(&daemon, "1", &["streaming"]).await?;
    assert_equal(&desk, &daemon, &["a", "b"]).await?;
    ensure!(desk.ask("SELECT count(*) FROM bid_1.b").await? == "10");
    // After it, it is.
    desk.sql("TRUNCATE b").await?;
    ensure!(faulted(&daemon, "1").await?["fault"]["code"] == "truncate");
    Ok(())
}

/// R11: an update that sets nothing the target may set (every column is the key, GENERATED ALWAYS) still finds
/// its row; R01: a tenant key and a row key that are stored out of line and did not change are taken from the
/// old image.
#[tokio::test(flavor = "multi_thread")]
async fn updates_that_say_little_find_their_rows() -> Result<()> {
    let tables = "CREATE TABLE always (bid integer NOT NULL, id integer GENERATED ALWAYS AS IDENTITY, PRIMARY KEY (bid, id)); \
                  CREATE TABLE wide (bid integer NOT NULL, id text NOT NULL, n integer, PRIMARY KEY (bid, id)); \
                  ALTER TABLE wide ALTER id SET STORAGE EXTERNAL; ALTER TABLE wide REPLICA IDENTITY USING INDEX wide_pkey; \
                  ALTER TABLE always REPLICA IDENTITY USING INDEX always_pkey; \
                  INSERT INTO always (bid) SELECT n % 3 FROM generate_series(1, 30) n; \
                  INSERT INTO wide SELECT n % 3, repeat(md5(n::text), 70) || n, n FROM generate_series(1, 30) n";
    let (desk, daemon) = desk(tables, "").await?;
    desk.carve(&daemon, "1", "schema").await?;
    desk.sql("UPDATE always SET bid = bid; UPDATE wide SET n = n + 1").await?;
    assert_equal(&desk, &daemon, &["always", "wide"]).await?;
    // One by one, as after a group that failed: a row in the way of the last of them.
    desk.sql("BEGIN; UPDATE always SET bid = bid; UPDATE wide SET n = n + 1; UPDATE wide SET id = id || 'x', n = 0 WHERE n % 2 = 0; \
              INSERT INTO always (bid) VALUES (1); DELETE FROM always WHERE id = (SELECT max(id) FROM always); \
              UPDATE wide SET bid = 1 WHERE bid = 2 AND n = 0; COMMIT")
        .await?;
    assert_equal(&desk, &daemon, &["always", "wide"]).await?;
    daemon.assert_no_errors(&[])
}

/// R14: two tables whose names are the same text when they are put together.
#[tokio::test(flavor = "multi_thread")]
async fn names_that_read_alike_are_told_apart() -> Result<()> {
    let tables = "CREATE SCHEMA \"a.b\"; CREATE SCHEMA a; \
                  CREATE TABLE \"a.b\".c (bid integer, id integer, PRIMARY KEY (bid, id)); \
                  CREATE TABLE a.\"b.c\" (bid integer, id integer, what text, PRIMARY KEY (bid, id)); \
                  INSERT INTO \"a.b\".c SELECT n % 3, n FROM generate_series(1, 30) n; \
                  INSERT INTO a.\"b.c\" SELECT n % 3, n, 'text' FROM generate_series(1, 60) n";
    let (desk, daemon) = desk(tables, "").await?;
    desk.carve(&daemon, "1", "database").await?;
    desk.sql("DELETE FROM \"a.b\".c WHERE id % 2 = 0; UPDATE a.\"b.c\" SET what = 'other' WHERE id % 3 = 1").await?;
    drained(&desk.scene, &daemon, "1").await?;
    let target = desk.scene.target_client("bid_1").await?;
    for table in ["\"a.b\".c", "a.\"b.c\""] {
        oracle::assert_equal(&desk.source, table, "bid = 1", &target, table).await?;
    }
    verify_equal(&daemon, "1").await
}

/// R09: an ALTER that writes other values and leaves the shape alone is in no stream.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_rewritten_with_other_values_is_copied_again() -> Result<()> {
    let tables = "CREATE TABLE prices (bid integer, id integer, price numeric(10,2), PRIMARY KEY (bid, id)); \
                  INSERT INTO prices SELECT n % 3, n, n FROM generate_series(1, 30) n";
    let (desk, daemon) = desk(tables, "").await?;
    desk.carve(&daemon, "1", "schema").await?;
    for change in [
        "ALTER TABLE prices ALTER price TYPE numeric(10,2) USING price * 100",
        "ALTER TABLE prices ADD COLUMN token uuid DEFAULT gen_random_uuid()",
    ] {
        desk.sql(change).await?;
        let fault = faulted(&daemon, "1").await?["fault"].clone();
        ensure!(fault["code"] == "source_changed" && fault["object"] == "public.prices", "{change}: {fault}");
        cli(&desk.config, &["move", "1"]).await?;
        phase(&daemon, "1", &["streaming"]).await?;
        assert_equal(&desk, &daemon, &["prices"]).await?;
    }
    // What rewrites the same values is no reason to stop.
    desk.sql("VACUUM FULL prices").await?;
    desk.sql("CLUSTER prices USING prices_pkey").await?;
    desk.sql("UPDATE prices SET price = 1").await?;
    assert_equal(&desk, &daemon, &["prices"]).await
}

/// R02, R05: an identity that no longer carries the tenant, described by the stream before the lane was open, or
/// before the copy's snapshot: the first change stops the move.
#[tokio::test(flavor = "multi_thread")]
async fn an_identity_that_was_lost_before_the_copy_stops_the_move() -> Result<()> {
    let tables = "CREATE TABLE a (bid integer, id integer PRIMARY KEY, n integer); \
                  CREATE TABLE b (bid integer, id integer, PRIMARY KEY (bid, id)); \
                  INSERT INTO a SELECT 1 + n % 2, n FROM generate_series(1, 3000) n; INSERT INTO b SELECT bid, id FROM a";
    let (desk, daemon) = desk(tables, ONE_BY_ONE).await?;
    first_under_way(&desk, &daemon).await?;
    // This one's lane is open, and its copy waits for its turn.
    cli(&desk.config, &["move", "2", "--to", "schema"]).await?;
    phase(&daemon, "2", &["copying"]).await?;
    let spool = desk.scene.path().join("carveout-state/spool/m2");
    until("the second lane", SOON, async || {
        ensure!(spool.exists());
        Ok(())
    })
    .await?;
    desk.sql("SET lock_timeout = '200ms'").await?;
    until("the identity to be changed", SOON, async || desk.sql("ALTER TABLE a REPLICA IDENTITY DEFAULT").await)
        .await?;
    // A change of nobody who moves brings the description.
    desk.sql("INSERT INTO a VALUES (7, 100000)").await?;
    for tenant in ["1", "2"] {
        phase(&daemon, tenant, &["streaming"]).await.ok();
        desk.sql(&format!("UPDATE a SET n = 1 WHERE bid = {tenant}")).await?;
        let fault = faulted(&daemon, tenant).await?["fault"].clone();
        ensure!(fault["code"] == "schema_changed" && fault["object"] == "public.a", "{fault}");
    }
    Ok(())
}
