//! `cancel` forgets a move and drops what Carveout made for it; whatever else is there stays, to the last row.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use daemon::demo::cluster::ClusterOptions;
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::Value;
use tests::binary::setting;
use tests::daemon::Daemon;
use tests::proxy::Proxy;
use tests::scene::{Configuration, Scene};
use tests::wait::until;
use tokio_postgres::Client;

use crate::carve::{cli, phase};
use crate::settle::{SOON, faulted};
use crate::surface::{Desk, run};

/// The tenants, and where they go: into a schema and a database that were there before, and into new ones.
const TENANTS: [(&str, &str); 4] = [("1", "schema"), ("2", "database"), ("3", "schema"), ("4", "database")];
/// Stays on its way to its schema while the others are cancelled.
const OTHER: &str = "0";
/// What somebody keeps where a tenant is about to come.
const KEEPSAKE: &str = "CREATE TABLE keepsake (id serial PRIMARY KEY, what text UNIQUE); \
                        INSERT INTO keepsake (what) SELECT 'kept ' || n FROM generate_series(1, 50) n; \
                        CREATE VIEW kept AS SELECT what FROM keepsake";

/// What somebody else has in a schema: tables, views, indexes, sequences, and the keepsake's rows.
async fn belongings(client: &Client, schema: &str) -> Result<String> {
    let sql = format!(
        "SELECT coalesce(string_agg(relkind::text || relname, ' ' ORDER BY relname), '') || \
                coalesce((SELECT md5(string_agg(k::text, ';' ORDER BY id)) FROM {schema}.keepsake k), '') \
         FROM pg_class WHERE relnamespace = '{schema}'::regnamespace"
    );
    Ok(client.query_one(&sql, &[]).await.with_context(|| format!("look at {schema}"))?.get(0))
}

/// A desk where a schema for tenant 1 and a database for tenant 2 are there already, with somebody's things.
async fn furnished(extra: &str, options: ClusterOptions) -> Result<Desk> {
    let tables = vec![("bid_1.keepsake".to_owned(), "{exclude: true}".to_owned())];
    let desk =
        Desk::open_with(options, Configuration { tables, extra: extra.to_owned(), ..Configuration::default() }).await?;
    desk.sql(&format!("CREATE SCHEMA bid_1; SET search_path = bid_1; {KEEPSAKE}; RESET search_path")).await?;
    desk.sql("CREATE DATABASE bid_2").await?;
    desk.scene.target_client("bid_2").await?.batch_execute(&format!("{KEEPSAKE}; CREATE SCHEMA more")).await?;
    Ok(desk)
}

fn spool(desk: &Desk, id: &str) -> Result<PathBuf> {
    let text = std::fs::read_to_string(&desk.config)?;
    Ok(PathBuf::from(setting(&text, "state_dir").context("state_dir")?).join("spool").join(id))
}

/// Cancels a move and looks everywhere for what it made.
async fn cancel(desk: &Desk, daemon: &Daemon, tenant: &str, to: &str) -> Result<()> {
    let before = daemon.tenant(tenant).await?;
    let id = before["move"].as_str().context("the move's id")?.to_owned();
    run(&desk.config, &["cancel", tenant]).await?.assert(0, &["is cancelled"])?;
    let after: Value = daemon.get(&format!("/v1/tenants/{tenant}")).await?.success()?.json()?;
    ensure!(after["phase"] == "cancelled" && after["move"] == id.as_str() && after["fault"].is_null(), "{after}");
    ensure!(daemon.tenant(tenant).await.is_err(), "the status still shows the move");
    ensure!(!spool(desk, &id)?.exists(), "the spool of {id} is left");
    if to == "database" {
        let found = desk.ask(&format!("SELECT count(*) FROM pg_database WHERE datname = 'bid_{tenant}'")).await?;
        ensure!(found == if tenant == "2" { "1" } else { "0" }, "database bid_{tenant}: {found}");
    } else {
        let found = desk.ask(&format!("SELECT count(*) FROM pg_namespace WHERE nspname = 'bid_{tenant}'")).await?;
        ensure!(found == if tenant == "1" { "1" } else { "0" }, "schema bid_{tenant}: {found}");
    }
    let there = match (tenant, to) {
        ("4", _) => return Ok(()),
        (_, "database") => desk.scene.target_client("bid_2").await?,
        _ => desk.scene.source_client().await?,
    };
    for table in ["objects", "checkpoint", "copied"] {
        let sql = format!("SELECT count(*) FROM carveout.{table} WHERE move = $1");
        let left: i64 = there.query_one(&sql, &[&id]).await?.get(0);
        ensure!(left == 0, "{left} rows of {id} in carveout.{table}");
    }
    Ok(())
}

/// INTERFACE, C07: while it copies, while it streams and while it stands with a fault, a cancelled move leaves
/// nothing of its own and takes nothing of others: a schema and a database that were there before keep all
/// they had, the move of another tenant goes on, the same tenants can move again.
#[tokio::test(flavor = "multi_thread")]
async fn cancel_drops_what_the_move_made_and_nothing_else_in_every_phase() -> Result<()> {
    let desk = furnished("limits: {copy_rows_per_second: 40}\n", ClusterOptions::default()).await?;
    let kept_database = desk.scene.target_client("bid_2").await?;
    let kept =
        async || anyhow::Ok([belongings(&desk.source, "bid_1").await?, belongings(&kept_database, "public").await?]);
    let before = kept().await?;
    let mut daemon = desk.work().await?;
    for (tenant, to) in TENANTS {
        cli(&desk.config, &["move", tenant, "--to", to]).await?;
    }
    until("copies under way", SOON, async || {
        for (tenant, _) in TENANTS {
            let status = daemon.tenant(tenant).await?;
            ensure!(status["phase"] == "copying", "{status}");
        }
        let status = daemon.status().await?;
        let rows = |status: &Value| status["rows_copied"].as_u64().unwrap_or(0);
        ensure!(status["tenants"].as_array().is_some_and(|list| list.iter().map(rows).sum::<u64>() > 0), "{status}");
        Ok(())
    })
    .await?;
    for (tenant, to) in TENANTS {
        cancel(&desk, &daemon, tenant, to).await.with_context(|| format!("tenant {tenant} while it copies"))?;
        let now = kept().await?;
        // Tenant 2's tables are still beside somebody's as long as tenant 1 is cancelled.
        ensure!(now[0] == before[0] && (tenant == "1" || now[1] == before[1]), "after {tenant}: {now:?} {before:?}");
    }
    ensure!(daemon.terminate().await?.success());
    let text = std::fs::read_to_string(&desk.config)?.replace("copy_rows_per_second: 40", "copy_rows_per_second: 0");
    std::fs::write(&desk.config, text)?;
    daemon = Daemon::start(&desk.config).await?;
    desk.carve(&daemon, OTHER, "schema").await?;
    for phase in ["while it streams", "with a fault"] {
        for (tenant, to) in TENANTS {
            desk.carve(&daemon, tenant, to).await.with_context(|| format!("tenant {tenant} {phase}"))?;
            desk.assert_equal(&daemon, tenant, to).await?;
            if phase == "with a fault" {
                in_the_way(&desk, tenant, to).await?;
                faulted(&daemon, tenant).await?;
            }
            cancel(&desk, &daemon, tenant, to).await.with_context(|| format!("tenant {tenant} {phase}"))?;
            ensure!(kept().await? == before, "after {tenant} {phase}: {:?} {before:?}", kept().await?);
        }
    }
    for (tenant, to) in TENANTS {
        desk.carve(&daemon, tenant, to).await.with_context(|| format!("tenant {tenant} again"))?;
    }
    desk.sql("UPDATE orders SET note = 'again'; DELETE FROM events WHERE what LIKE '%7'").await?;
    for (tenant, to) in TENANTS.into_iter().chain([(OTHER, "schema")]) {
        desk.assert_equal(&daemon, tenant, to).await?;
    }
    // Asking twice changes nothing; asking for nobody's is refused.
    run(&desk.config, &["cancel", "1"]).await?.assert(0, &["is cancelled"])?;
    run(&desk.config, &["cancel", "1"]).await?.assert(0, &["is cancelled"])?;
    run(&desk.config, &["cancel", "77"]).await?.assert(1, &["no move"])?;
    ensure!(kept().await? != before, "tenant 2 has its tables again");
    daemon.assert_no_errors(&["duplicate key"])
}

/// A row in the target that the source's next one runs into.
async fn in_the_way(desk: &Desk, tenant: &str, to: &str) -> Result<()> {
    let id = desk.ask("SELECT max(id) + 1 FROM orders").await?;
    let row = format!("({tenant}, {id}, 'in the way')");
    let there = match to {
        "database" => desk.scene.target_client(&format!("bid_{tenant}")).await?,
        _ => desk.scene.source_client().await?,
    };
    let schema = if to == "database" { "public".to_owned() } else { format!("bid_{tenant}") };
    there.batch_execute(&format!("INSERT INTO {schema}.orders VALUES {row}")).await?;
    desk.sql(&format!("INSERT INTO orders VALUES {row}")).await
}

/// DESIGN 3, invariant 10: a table of that name that somebody else made is refused by name and left as it is,
/// also by the cancel that follows.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_table_that_is_there_already_is_refused_and_left_alone() -> Result<()> {
    const MINE: &str = "CREATE TABLE orders (mine text); INSERT INTO orders VALUES ('mine')";
    let tables = vec![("bid_1.orders".to_owned(), "{exclude: true}".to_owned())];
    let desk = Desk::open_with(ClusterOptions::default(), Configuration { tables, ..Configuration::default() }).await?;
    desk.sql(&format!("CREATE SCHEMA bid_1; SET search_path = bid_1; {MINE}; RESET search_path")).await?;
    desk.sql("CREATE DATABASE bid_2").await?;
    let database = desk.scene.target_client("bid_2").await?;
    database.batch_execute(MINE).await?;
    let daemon = desk.work().await?;
    for (tenant, to, table, there) in
        [("1", "schema", "bid_1.orders", &desk.source), ("2", "database", "public.orders", &database)]
    {
        cli(&desk.config, &["move", tenant, "--to", to]).await?;
        let fault = faulted(&daemon, tenant).await?["fault"].clone();
        let message = fault["message"].as_str().unwrap_or_default();
        ensure!(message.contains(table) && message.contains("exists already"), "{fault}");
        // Again and again: it is still there.
        run(&desk.config, &["move", tenant, "--wait"]).await?.assert(1, &[table, "exists already"])?;
        run(&desk.config, &["cancel", tenant]).await?.assert(0, &["is cancelled"])?;
        let rows: String = there.query_one(&format!("SELECT string_agg(mine, '/') FROM {table}"), &[]).await?.get(0);
        ensure!(rows == "mine", "{table} has {rows}");
        let schema = table.split('.').next().context("a schema")?;
        let sql = format!(
            "SELECT count(*) FROM pg_class WHERE relnamespace = '{schema}'::regnamespace AND relkind IN ('r', 'S', 'i')"
        );
        let left: i64 = there.query_one(&sql, &[]).await?.get(0);
        ensure!(left == 1, "{left} things in {schema}");
        if to == "database" {
            there.batch_execute(&format!("ALTER TABLE {table} RENAME TO mine_only")).await?;
            desk.carve(&daemon, tenant, to).await?;
            desk.assert_equal(&daemon, tenant, to).await?;
        }
    }
    daemon.assert_no_errors(&["exists already"])
}

/// INTERFACE: "drop only what Carveout itself created". A database that a person made because Carveout's role
/// might not is that person's, even though the move had tried to make it.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_a_person_made_for_the_move_is_never_dropped() -> Result<()> {
    let desk = Desk::open().await?;
    desk.sql("CREATE ROLE carver LOGIN REPLICATION; GRANT SELECT ON ALL TABLES IN SCHEMA public TO carver").await?;
    let daemon_config = std::fs::read_to_string(&desk.config)?;
    cli(&desk.config, &["prepare", "--apply"]).await?;
    desk.sql("GRANT USAGE ON SCHEMA carveout TO carver; GRANT ALL ON ALL TABLES IN SCHEMA carveout TO carver").await?;
    std::fs::write(&desk.config, daemon_config.replace("postgres@", "carver@"))?;
    let daemon = Daemon::start(&desk.config).await?;
    cli(&desk.config, &["move", "4", "--to", "database"]).await?;
    let fault = faulted(&daemon, "4").await?["fault"].clone();
    ensure!(
        fault["message"].as_str().is_some_and(|message| message.contains("permission denied to create database")),
        "{fault}"
    );
    desk.sql("CREATE DATABASE bid_4 OWNER carver").await?;
    let theirs = desk.scene.target_client("bid_4").await?;
    theirs.batch_execute(&format!("GRANT ALL ON SCHEMA public TO carver; {KEEPSAKE}")).await?;
    drop(theirs);
    run(&desk.config, &["move", "4", "--wait"]).await?.assert(0, &["streaming"])?;
    run(&desk.config, &["cancel", "4"]).await?.assert(0, &["is cancelled"])?;
    let left = desk.ask("SELECT count(*) FROM pg_database WHERE datname = 'bid_4'").await?;
    ensure!(left == "1", "the person's database was dropped");
    let theirs = desk.scene.target_client("bid_4").await?;
    let rows: i64 = theirs.query_one("SELECT count(*) FROM keepsake", &[]).await?.get(0);
    ensure!(rows == 50, "{rows} rows are left");
    Ok(())
}

/// INTERFACE: what somebody put into a schema or a database that Carveout made is not Carveout's. The cancel
/// leaves it, or stops and names it; when it is gone, the cancel comes to its end.
#[tokio::test(flavor = "multi_thread")]
async fn what_others_put_into_the_target_outlives_the_cancel() -> Result<()> {
    let desk = Desk::open().await?;
    let daemon = desk.work().await?;
    for (tenant, to) in [("3", "schema"), ("4", "database")] {
        desk.carve(&daemon, tenant, to).await?;
        let (place, schema) = if to == "schema" { (None, "bid_3") } else { (Some("bid_4"), "public") };
        let session = async || match place {
            None => desk.scene.source_client().await,
            Some(dbname) => desk.scene.target_client(dbname).await,
        };
        session()
            .await?
            .batch_execute(&format!(
                "SET search_path = {schema}; {KEEPSAKE}; CREATE VIEW hangs_on AS SELECT * FROM orders"
            ))
            .await?;
        let said = run(&desk.config, &["cancel", tenant]).await?;
        let there =
            session().await.with_context(|| format!("{to}: somebody's things are gone; cancel said {said:#?}"))?;
        let rows: i64 = there.query_one(&format!("SELECT count(*) FROM {schema}.keepsake"), &[]).await?.get(0);
        ensure!(rows == 50, "{to}: {rows} rows are left");
        if said.code != Some(0) {
            said.assert(1, &["orders", "depend"])?;
            there
                .batch_execute(&format!(
                    "DROP VIEW {schema}.hangs_on; DROP VIEW {schema}.kept; DROP TABLE {schema}.keepsake"
                ))
                .await?;
            drop(there);
            run(&desk.config, &["cancel", tenant]).await?.assert(0, &["is cancelled"])?;
        }
    }
    Ok(())
}

/// T06: killed while it cancels, with a target that does not answer; started again, it cancels to the end.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_that_is_killed_is_finished_by_the_next_daemon() -> Result<()> {
    let scene = Scene::single(ClusterOptions::default()).await?;
    let proxy = Proxy::start(format!("127.0.0.1:{}", scene.target.port).parse()?).await?;
    let config =
        scene.write_config("carveout", &Configuration { target: Some(proxy.addr), ..Configuration::default() })?;
    let source = scene.source_client().await?;
    source.batch_execute("CREATE TABLE orders (bid integer, id integer, note text, PRIMARY KEY (bid, id)); CREATE TABLE events (bid integer, what text); INSERT INTO orders SELECT n % 5, n FROM generate_series(1, 500) n").await?;
    let desk = Desk { source, config, scene };
    let mut daemon = desk.work().await?;
    desk.carve(&daemon, "4", "database").await?;
    proxy.refuse(true);
    proxy.cut();
    let token = std::fs::read_to_string(desk.config.with_extension("token"))?;
    let address = daemon.address;
    let asked = tokio::spawn(async move {
        tests::http::post(address, "/v1/tenants/4/cancel", Some(token.trim()), &serde_json::json!({})).await
    });
    until("a cancel under way", SOON, async || {
        let status = daemon.tenant("4").await?;
        ensure!(status["phase"] == "cancelling", "{status}");
        Ok(())
    })
    .await?;
    daemon.kill()?;
    ensure!(asked.await?.is_err(), "it was answered");
    proxy.refuse(false);
    daemon = Daemon::start(&desk.config).await?;
    until("the end of the cancel", SOON, async || {
        let status: Value = daemon.get("/v1/tenants/4").await?.success()?.json()?;
        ensure!(status["phase"] == "cancelled", "{status}");
        Ok(())
    })
    .await?;
    ensure!(desk.ask("SELECT count(*) FROM pg_database WHERE datname = 'bid_4'").await? == "0", "the database is left");
    ensure!(!spool(&desk, "m1")?.exists(), "the spool is left");
    desk.carve(&daemon, "4", "database").await?;
    desk.assert_equal(&daemon, "4", "database").await
}

/// How often a move is cut off in its first moments.
const ROUNDS: u32 = 5;

/// A move that is begun, for a random part of the time that making a database takes.
async fn begin(desk: &Desk, rng: &mut StdRng) -> Result<()> {
    cli(&desk.config, &["move", "4", "--to", "database"]).await?;
    // The moment is random on purpose.
    tokio::time::sleep(Duration::from_millis(rng.random_range(0..120))).await;
    Ok(())
}

/// Waits for the end of CREATE DATABASE, which goes on without the one who asked; how many databases there are.
async fn databases(desk: &Desk) -> Result<String> {
    until("the end of what is being made", SOON, async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CREATE DATABASE%' AND state = 'active'";
        let busy = desk.ask(sql).await?;
        ensure!(busy == "0", "{busy} sessions make one");
        Ok(())
    })
    .await?;
    desk.ask("SELECT count(*) FROM pg_database WHERE datname = 'bid_4'").await
}

/// C07, INTERFACE: a move that is cancelled while its database is being made leaves none behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_is_cancelled_while_its_database_is_made_leaves_none() -> Result<()> {
    let mut rng = tests::seed::rng("cancelled early");
    let desk = Desk::open().await?;
    let daemon = desk.work().await?;
    for round in 0..ROUNDS {
        begin(&desk, &mut rng).await?;
        run(&desk.config, &["cancel", "4"]).await?.assert(0, &["is cancelled"])?;
        ensure!(databases(&desk).await? == "0", "round {round}: the database is left");
    }
    desk.carve(&daemon, "4", "database").await?;
    desk.assert_equal(&daemon, "4", "database").await?;
    daemon.assert_no_errors(&[])
}

/// T06, invariant 9: a daemon that is killed while a database is being made goes on when it is started again.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_killed_while_a_database_is_made_goes_on() -> Result<()> {
    let mut rng = tests::seed::rng("killed early");
    let desk = Desk::open().await?;
    let mut daemon = desk.work().await?;
    for round in 0..ROUNDS {
        begin(&desk, &mut rng).await?;
        daemon.kill()?;
        daemon = Daemon::start(&desk.config).await?;
        phase(&daemon, "4", &["streaming"]).await.with_context(|| format!("round {round}"))?;
        run(&desk.config, &["cancel", "4"]).await?.assert(0, &["is cancelled"])?;
        ensure!(databases(&desk).await? == "0", "round {round}: the database is left");
    }
    daemon.assert_no_errors(&[])
}

/// INTERFACE: a thing that has the number of what Carveout made, or its name, but not both, is not what Carveout
/// made: after a restore into another cluster every number is another thing's. The cancel stops and names it.
#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_is_another_things_is_never_dropped() -> Result<()> {
    let desk = Desk::open().await?;
    let daemon = desk.work().await?;
    let made = "SELECT oid FROM carveout.objects WHERE move = 'm1' AND name LIKE '%events%'";
    desk.carve(&daemon, "3", "schema").await?;
    desk.sql(KEEPSAKE).await?;
    let number = desk.ask(made).await?;
    desk.sql(
        "UPDATE carveout.objects SET oid = 'public.keepsake'::regclass WHERE move = 'm1' AND name LIKE '%events%'",
    )
    .await?;
    let said = run(&desk.config, &["cancel", "3"]).await?;
    said.assert(1, &["events", "is not the one that was made", "carveout.objects"])?;
    ensure!(desk.ask("SELECT count(*) FROM public.keepsake").await? == "50", "somebody's table is gone");
    ensure!(desk.ask("SELECT count(*) FROM bid_3.orders").await? == "100", "half of it was dropped");
    desk.sql(&format!("UPDATE carveout.objects SET oid = {number} WHERE move = 'm1' AND name LIKE '%events%'")).await?;
    desk.sql("ALTER TABLE bid_3.orders RENAME TO renamed").await?;
    run(&desk.config, &["cancel", "3"]).await?.assert(1, &["orders", "renamed"])?;
    desk.sql("ALTER TABLE bid_3.renamed RENAME TO orders").await?;
    run(&desk.config, &["cancel", "3"]).await?.assert(0, &["is cancelled"])?;
    ensure!(desk.ask("SELECT count(*) FROM pg_namespace WHERE nspname = 'bid_3'").await? == "0", "the schema is left");
    Ok(())
}

/// INTERFACE: a database is dropped only when nothing of others is in it, of whatever kind.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_with_anything_of_others_in_it_is_not_dropped() -> Result<()> {
    let desk = Desk::open().await?;
    let daemon = desk.work().await?;
    for (make, drop, name) in [
        ("SELECT lo_create(4711)", "SELECT lo_unlink(4711)", "large object 4711"),
        ("CREATE COLLATION theirs FROM \"C\"", "DROP COLLATION theirs", "collation public.theirs"),
        ("CREATE PUBLICATION theirs", "DROP PUBLICATION theirs", "publication theirs"),
        ("CREATE TABLE carveout.theirs ()", "DROP TABLE carveout.theirs", "carveout.theirs"),
        ("CREATE FUNCTION theirs() RETURNS int RETURN 1", "DROP FUNCTION theirs", "function public.theirs()"),
        ("CREATE TYPE theirs AS ENUM ()", "DROP TYPE theirs", "type public.theirs"),
        ("CREATE SEQUENCE theirs", "DROP SEQUENCE theirs", "sequence public.theirs"),
        ("CREATE EXTENSION pg_trgm", "DROP EXTENSION pg_trgm", "extension pg_trgm"),
    ] {
        desk.carve(&daemon, "4", "database").await?;
        let there = desk.scene.target_client("bid_4").await?;
        if there.batch_execute(make).await.is_err() && make.contains("EXTENSION") {
            // The contributed modules are a package of their own.
            run(&desk.config, &["cancel", "4"]).await?.assert(0, &["is cancelled"])?;
            continue;
        }
        run(&desk.config, &["cancel", "4"]).await?.assert(1, &["bid_4", name, "did not create"])?;
        there.batch_execute(drop).await.context("it was dropped")?;
        run(&desk.config, &["cancel", "4"]).await?.assert(0, &["is cancelled"])?;
        ensure!(desk.ask("SELECT count(*) FROM pg_database WHERE datname = 'bid_4'").await? == "0", "{name}: left");
    }
    Ok(())
}
