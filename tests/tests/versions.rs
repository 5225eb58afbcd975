//! What one version of PostgreSQL has and another has not. (That tenants move between all of them is a promise of
//! `rows/versions.rs`.)

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use daemon::demo::cluster::Binaries;
use tests::daemon::Daemon;
use tests::oracle;
use tests::scene::{Configuration, DATABASE, Scene};
use tokio_postgres::Client;

use crate::carve::{cli, phase, start_move, verify_equal};
use crate::settle;
use crate::surface::run;

/// Every new thing of 18 that a table can have, and the tenants 0 to 4.
const NEW_IN_18: &str = "
    CREATE TABLE orders (bid integer, id integer, price integer, maybe integer,
      twice integer GENERATED ALWAYS AS (price * 2) VIRTUAL, half numeric GENERATED ALWAYS AS (price / 2.0) STORED,
      CONSTRAINT \"the key's\" PRIMARY KEY (bid, id));
    INSERT INTO orders SELECT n % 5, n, n FROM generate_series(1, 5000) n;
    ALTER TABLE orders ADD CONSTRAINT from_now_on NOT NULL maybe NOT VALID;
    ALTER ROLE postgres SET transaction_timeout = '400ms'";

/// Whether the tests of 18 are left out: `PG_MAJORS=installed`, and it is not.
pub fn without_18() -> bool {
    let left_out = std::env::var("PG_MAJORS").is_ok_and(|wanted| wanted == "installed") && Binaries::of(18).is_err();
    if left_out {
        println!("left out: PostgreSQL 18 is not installed");
    }
    left_out
}

async fn one(client: &Client, sql: &str) -> Result<String> {
    Ok(client
        .query_one(sql, &[])
        .await
        .with_context(|| sql.to_owned())?
        .get::<_, Option<String>>(0)
        .unwrap_or_default())
}

/// Versions: what only 18 has reaches an older server in the form that it can hold; what it cannot hold is refused
/// before anything is made there.
#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_newer_version_has_is_made_as_the_older_one_can_or_refused() -> Result<()> {
    if without_18() {
        return Ok(());
    }
    let older = Binaries::find()?.major.min(17);
    let scene = Scene::between(18, older).await?;
    let source = scene.source_client().await?;
    source.batch_execute(NEW_IN_18).await?;
    // A thousand rows under a limit of 500 a second: the copy takes longer than the role's transactions may.
    let wanted =
        Configuration { extra: "limits: {copy_rows_per_second: 500}\n".to_owned(), ..Configuration::default() };
    let config = scene.write_config("carveout", &wanted)?;
    cli(&config, &["prepare", "--apply"]).await?;
    let mut daemon = Daemon::start(&config).await?;
    for (tenant, to) in [("1", "schema"), ("2", "database")] {
        start_move(&daemon, tenant, to).await?;
    }
    for (tenant, to, kind) in [("1", "schema", "v"), ("2", "database", "s")] {
        phase(&daemon, tenant, &["streaming"]).await?;
        let change = format!(
            "INSERT INTO orders (bid, id, price, maybe) SELECT {tenant}, 10000 + n, n, n FROM generate_series(1, 100) n;
             UPDATE orders SET price = price + 1, maybe = 1 WHERE bid = {tenant} AND id % 3 = 0;
             DELETE FROM orders WHERE bid = {tenant} AND id % 7 = 0"
        );
        source.batch_execute(&change).await?;
        settle::drained(&scene, &daemon, tenant).await?;
        verify_equal(&daemon, tenant).await?;
        let (target, schema) = match to {
            "schema" => (scene.source_client().await?, "bid_1"),
            _ => (scene.target_client("bid_2").await?, "public"),
        };
        let table = format!("{schema}.orders");
        let compared = oracle::assert_equal(&source, "orders", &format!("bid = {tenant}"), &target, &table).await?;
        ensure!(compared.target_rows > 900, "{compared:?}");
        let sql = "SELECT string_agg(attgenerated::text, '' ORDER BY attname) FROM pg_attribute
                    WHERE attrelid = $1::text::regclass AND attname IN ('half', 'twice')";
        let kinds: String = target.query_one(sql, &[&table]).await?.get(0);
        ensure!(kinds == format!("s{kind}"), "{table}: {kinds}");
    }
    // Now what cannot be expressed.
    source.batch_execute("ALTER TABLE orders ADD CONSTRAINT \"as a rule\" CHECK (price > 0) NOT ENFORCED").await?;
    let because = "constraint \"as a rule\" is NOT ENFORCED";
    let remedy = "name a target of PostgreSQL 18 or newer, or drop it";
    run(&config, &["check"]).await?.assert(1, &[because, remedy, "column \"twice\" is VIRTUAL: it is made STORED"])?;
    start_move(&daemon, "3", "database").await?;
    let status = settle::faulted(&daemon, "3").await?;
    ensure!(
        status["fault"]["message"].as_str().is_some_and(|it| it.contains(because) && it.contains(remedy)),
        "{status}"
    );
    let made = "SELECT count(*)::text FROM pg_database WHERE datname = 'bid_3'";
    ensure!(one(&scene.target_client("postgres").await?, made).await? == "0", "a database was made");
    // Into a schema of its own server it goes.
    start_move(&daemon, "4", "schema").await?;
    phase(&daemon, "4", &["streaming"]).await?;
    let kept = "SELECT string_agg(pg_get_constraintdef(oid), '; ') FROM pg_constraint
                 WHERE conrelid = 'bid_4.orders'::regclass AND conname = 'as a rule'";
    ensure!(one(&source, kept).await?.ends_with("NOT ENFORCED"), "the constraint is gone");
    daemon.terminate().await?;
    Ok(())
}

/// Versions: since 18 NOT NULL has a name, which the source may have given to another constraint.
#[tokio::test(flavor = "multi_thread")]
async fn a_check_that_is_called_like_a_not_null_of_18_is_made() -> Result<()> {
    if without_18() {
        return Ok(());
    }
    let scene = Scene::between(Binaries::find()?.major, 18).await?;
    let source = scene.source_client().await?;
    let table = "CREATE TABLE orders (bid integer PRIMARY KEY, price integer NOT NULL,
                   CONSTRAINT orders_price_not_null CHECK (price > 0)); INSERT INTO orders VALUES (1, 1), (2, 2)";
    source.batch_execute(table).await?;
    let config = scene.write_config("carveout", &Configuration::default())?;
    cli(&config, &["prepare", "--apply"]).await?;
    let daemon = Daemon::start(&config).await?;
    start_move(&daemon, "2", "database").await?;
    phase(&daemon, "2", &["streaming"]).await?;
    let target = scene.target_client("bid_2").await?;
    let made = "SELECT pg_get_constraintdef(oid) FROM pg_constraint
                 WHERE conrelid = 'orders'::regclass AND conname = 'orders_price_not_null'";
    ensure!(one(&target, made).await? == "CHECK ((price > 0))", "{}", one(&target, made).await?);
    verify_equal(&daemon, "2").await
}

/// A configuration that asks for a slot that standbys keep.
fn with_failover(config: &Path) -> Result<PathBuf> {
    let text = std::fs::read_to_string(config)?.replacen("source:\n", "source:\n  failover: true\n", 1);
    let path = config.with_file_name("failover.yaml");
    std::fs::write(&path, text)?;
    Ok(path)
}

/// Versions: `source.failover` makes a slot that standbys keep a copy of, names one that was made without, and
/// `check` refuses what a server of 18 may be set to that would stop us.
#[tokio::test(flavor = "multi_thread")]
async fn a_failover_slot_is_made_where_there_is_one_and_settings_of_18_are_looked_at() -> Result<()> {
    if without_18() {
        return Ok(());
    }
    let scene = Scene::between(18, 18).await?;
    let source = scene.source_client().await?;
    source.batch_execute(crate::surface::TABLES).await?;
    let plain = scene.write_config("carveout", &Configuration::default())?;
    let config = with_failover(&plain)?;
    run(&config, &["check"])
        .await?
        .assert(1, &["source.failover", "synchronized_standby_slots", ", false, false, true"])?;
    cli(&plain, &["prepare", "--apply"]).await?;
    let without = ["this one was made without", "ALTER_REPLICATION_SLOT \"carveout\" (FAILOVER true)"];
    run(&config, &["check"]).await?.assert(1, &without)?;
    let mut psql = scene.source.command("psql")?;
    psql.args(["-X", "-q", "-d", &format!("dbname={DATABASE} replication=database"), "-c", without[1]]);
    let said = psql.output()?;
    ensure!(said.status.success(), "{said:?}");
    run(&config, &["check"]).await?.assert(0, &["source.failover"])?;
    let kept = "SELECT failover::text FROM pg_replication_slots WHERE slot_name = 'carveout'";
    ensure!(one(&source, kept).await? == "true", "the slot was not changed");
    source.batch_execute("SELECT pg_drop_replication_slot('carveout')").await?;
    cli(&config, &["prepare", "--apply"]).await?;
    ensure!(one(&source, kept).await? == "true", "the slot was made without failover");
    let mut daemon = Daemon::start(&config).await?;
    start_move(&daemon, "1", "schema").await?;
    phase(&daemon, "1", &["streaming"]).await?;
    verify_equal(&daemon, "1").await?;
    daemon.terminate().await?;
    for (setting, value) in [("output_plugin_libraries", "test_decoding"), ("idle_replication_slot_timeout", "60")] {
        source.batch_execute(&format!("ALTER SYSTEM SET {setting} = {value}")).await?;
    }
    source.batch_execute("SELECT pg_reload_conf()").await?;
    source.batch_execute("ALTER PUBLICATION carveout SET (publish_generated_columns = stored)").await?;
    tests::wait::until("the settings", settle::SOON, async || {
        run(&config, &["check"]).await?.assert(
            1,
            &[
                "pgoutput is not in it: only a superuser can create the slot",
                "a daemon that is stopped for longer than 60 s loses the slot",
                "without generated columns",
            ],
        )
    })
    .await
}

/// Versions: a slot that standbys keep is refused where there is none.
#[tokio::test(flavor = "multi_thread")]
async fn a_failover_slot_is_refused_before_17() -> Result<()> {
    if Binaries::find()?.major >= 17 {
        return Ok(());
    }
    let scene = Scene::single(Default::default()).await?;
    scene.source_client().await?.batch_execute(crate::surface::TABLES).await?;
    let config = with_failover(&scene.write_config("carveout", &Configuration::default())?)?;
    run(&config, &["check"]).await?.assert(1, &["source.failover", "PostgreSQL has from 17 on"])?;
    run(&config, &["prepare", "--apply"]).await?.assert(1, &["nothing was run"])
}

/// Versions: on 14 only a superuser may set session_replication_role. Others are told, and move their tenants.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL 14: make campaign"]
async fn on_14_a_role_that_is_no_superuser_moves_tenants() -> Result<()> {
    let scene = Scene::between(14, 14).await?;
    let source = scene.source_client().await?;
    source.batch_execute(crate::surface::TABLES).await?;
    let role = "CREATE ROLE carver LOGIN REPLICATION CREATEDB";
    let grants = "GRANT CREATE ON DATABASE shop TO carver; GRANT carver TO postgres;
                  ALTER TABLE orders OWNER TO carver; ALTER TABLE events OWNER TO carver";
    source.batch_execute(role).await?;
    source.batch_execute(grants).await?;
    scene.target_client("postgres").await?.batch_execute(role).await?;
    let config = scene.write_config("carveout", &Configuration::default())?;
    let text = std::fs::read_to_string(&config)?.replace("postgres@", "carver@");
    std::fs::write(&config, text)?;
    let warned = ["it may not set session_replication_role", "on PostgreSQL 14 only a superuser may set it"];
    run(&config, &["check"]).await?.assert(1, &warned)?;
    cli(&config, &["prepare", "--apply"]).await?;
    let daemon = Daemon::start(&config).await?;
    for (tenant, to) in [("1", "schema"), ("2", "database")] {
        start_move(&daemon, tenant, to).await?;
        phase(&daemon, tenant, &["streaming"]).await?;
        source.batch_execute(&format!("UPDATE orders SET note = 'new' WHERE bid = {tenant}")).await?;
        settle::drained(&scene, &daemon, tenant).await?;
        verify_equal(&daemon, tenant).await?;
    }
    daemon.assert_no_errors(&[])
}
