//! What a target gets besides tables and rows: types, functions, keys, triggers, views, policies, grants. One schema
//! that has some of everything, under hostile names.

use anyhow::{Context, Result, ensure};
use daemon::demo::cluster::ClusterOptions;
use rand::Rng;
use serde_json::Value;
use tests::daemon::Daemon;
use tests::oracle;
use tests::scene::{Configuration, Scene};
use tests::wait::until;
use tokio_postgres::Client;

use crate::carve::{cli, phase, verify_equal};
use crate::settle::{SOON, drained, faulted};
use crate::surface::{Desk, run};

const SCHEMA: &str = include_str!("provision/schema.sql");
const DEFINITIONS: &str = include_str!("provision/definitions.sql");
/// The tables that move.
const TABLES: [&str; 2] = ["\"Par ent\"", "child"];
/// The views that are made wherever the tables go.
const VIEWS: [&str; 2] = ["\"Vi ew\"", "on_view"];

/// Some rows for tenants 1 to 4; `n` is where their numbers begin.
fn rows(n: u32) -> String {
    format!(
        "INSERT INTO \"Par ent\" (bid, \"Id\", mail, mood, moods, pos, ev, pair, pairs, fr, fm, h, t, during, big, \"up\")
         SELECT 1 + i % 4, i, 'A.' || i || '@X', (ARRAY['sad', 'it''s, ok', 'HAPPY', NULL])[1 + i % 4]::\"Tÿpes.x\".\"Mo\"\"od\",
                ARRAY['sad', NULL, 'HAPPY']::\"Tÿpes.x\".\"Mo\"\"od\"[], 1 + i, i * 2, ROW('sad', 'c' || i, ARRAY[i, NULL])::\"Tÿpes.x\".\"Pa ir\",
                ARRAY[ROW('HAPPY', NULL, NULL), NULL]::\"Tÿpes.x\".\"Pa ir\"[], floatrange(i, i + 0.5), floatmultirange(floatrange(0, i + 1)),
                hstore('k' || i, NULL) || 'a=>b', 't' || i, tstzrange(to_timestamp(i), NULL), repeat(md5(i::text), 80), CASE WHEN i > {n} + 20 THEN i - 4 * (i % 5) END
           FROM generate_series({n} + 1, {n} + 100) i;
         INSERT INTO child SELECT bid, \"Id\", \"Id\", CASE WHEN \"Id\" % 3 = 0 THEN \"Id\" END, CASE WHEN \"Id\" % 2 = 0 THEN 'se' END
           FROM \"Par ent\" WHERE \"Id\" > {n} AND \"Id\" <= {n} + 100;
         UPDATE \"Par ent\" SET kid = \"Id\" WHERE \"Id\" > {n} AND \"Id\" % 3 = 1 AND \"Id\" <= {n} + 100"
    )
}

/// Changes of every column, to what was there before.
const CHANGES: [&str; 4] = [
    "UPDATE \"Par ent\" SET mood = 'HAPPY', moods = moods || mood, pair.c = 'new', h = h || 'x=>y', during = NULL WHERE \"Id\" % 5 = 0",
    "UPDATE \"Par ent\" SET pos = pos + 1, ev = ev + 2, fr = '[1,2)', pairs = NULL, mail = 'B.' || \"Id\" WHERE \"Id\" % 7 = 0",
    "UPDATE \"Par ent\" SET \"up\" = NULL WHERE \"up\" % 11 = 0; DELETE FROM \"Par ent\" p WHERE \"Id\" % 11 = 0 AND kid IS NULL \
       AND NOT EXISTS (SELECT FROM \"Par ent\" o WHERE o.kid = p.\"Id\" OR o.\"up\" = p.\"Id\" OR o.abroad = p.\"Id\")",
    "UPDATE child SET other = NULL, parent = parent WHERE id % 13 = 0; UPDATE \"Par ent\" SET pair = NULL WHERE \"Id\" % 17 = 0",
];

async fn open() -> Result<Desk> {
    let scene = Scene::single(ClusterOptions::default()).await?;
    let source = scene.source_client().await?;
    source.batch_execute(SCHEMA).await.context("make the schema")?;
    source.batch_execute(&rows(0)).await.context("make the rows")?;
    let tables = vec![("countries".to_owned(), "{exclude: true}".to_owned())];
    let config = scene.write_config("carveout", &Configuration { tables, ..Configuration::default() })?;
    Ok(Desk { source, config, scene })
}

/// Where a tenant is: a session, and the schema.
async fn place(desk: &Desk, tenant: &str, to: &str) -> Result<(Client, String)> {
    Ok(match to {
        "database" => (desk.scene.target_client(&format!("bid_{tenant}")).await?, "public".to_owned()),
        _ => (desk.scene.source_client().await?, format!("bid_{tenant}")),
    })
}

async fn definitions(client: &Client, schema: &str) -> Result<String> {
    client.batch_execute("SET search_path = pg_catalog").await?;
    let text: String = client.query_one(DEFINITIONS, &[&schema]).await.context("read the definitions")?.get(0);
    client.batch_execute("RESET search_path").await?;
    Ok(text)
}

/// Rows, views and every definition of a tenant are the source's.
async fn assert_equal(desk: &Desk, daemon: &Daemon, tenant: &str, to: &str) -> Result<()> {
    drained(&desk.scene, daemon, tenant).await?;
    let (target, schema) = place(desk, tenant, to).await?;
    for table in TABLES.iter().chain(&VIEWS) {
        let (left, right) = (format!("public.{table}"), format!("{schema}.{table}"));
        oracle::assert_equal(&desk.source, &left, &format!("bid = {tenant}"), &target, &right).await?;
    }
    verify_equal(daemon, tenant).await?;
    let wanted = definitions(&desk.source, "public").await?;
    until("equal definitions, foreign keys validated", SOON, async || {
        let made = definitions(&target, &schema).await?.replace(&format!("{schema}."), "public.");
        let differs = |one: &str, other: &str| {
            let lines: Vec<&str> = other.lines().collect();
            one.lines().filter(|line| !lines.contains(line)).map(str::to_owned).collect::<Vec<_>>()
        };
        ensure!(made == wanted, "missing: {:#?}\ntoo much: {:#?}", differs(&wanted, &made), differs(&made, &wanted));
        Ok(())
    })
    .await?;
    let disabled = "SELECT string_agg(tgenabled::text, '') FROM pg_trigger WHERE tgname = 'tou ch' AND tgrelid = $1::text::regclass";
    let disabled: String = target.query_one(disabled, &[&format!("{schema}.child")]).await?.get(0);
    ensure!(disabled == "D", "the trigger is {disabled}");
    Ok(())
}

/// Everything that people made in a database, Carveout's own schema left out.
async fn belongings(client: &Client) -> Result<String> {
    let sql = "SELECT string_agg(i.type || ' ' || i.identity, E'\\n' ORDER BY 1) FROM (
          SELECT 'pg_class'::regclass::oid AS class, oid FROM pg_class WHERE relkind NOT IN ('t', 'i') AND relnamespace::regnamespace::text !~ '^carveout|^pg_'
          UNION ALL SELECT 'pg_type'::regclass, oid FROM pg_type WHERE typtype IN ('e', 'd', 'r')
          UNION ALL SELECT 'pg_proc'::regclass, oid FROM pg_proc
          UNION ALL SELECT 'pg_extension'::regclass, oid FROM pg_extension
          UNION ALL SELECT 'pg_collation'::regclass, oid FROM pg_collation
          UNION ALL SELECT 'pg_namespace'::regclass, oid FROM pg_namespace WHERE nspname <> 'carveout') o,
        pg_identify_object(o.class, o.oid, 0) i WHERE o.oid >= 16384";
    let row = client.query_one(sql, &[]).await.context("list what is there")?;
    Ok(row.get::<_, Option<String>>(0).unwrap_or_default())
}

/// R14, R15, R18-R20: a schema with some of everything moves to a schema and to a database while it is written, row
/// by row and definition by definition; what is not made was said before; a new label of an enum stops the lane
/// that cannot know it, with the command that mends it; cancel leaves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn everything_the_tables_need_goes_along_and_goes_again() -> Result<()> {
    let desk = open().await?;
    let findings: Value = serde_json::from_str(&run(&desk.config, &["check", "--output", "json"]).await?.stdout)?;
    for (object, part) in [
        ("extensions", "btree_gist, citext"),
        ("types", "\"Tÿpes.x\".\"Mo\"\"od\""),
        ("functions", "public.helper(integer)"),
        ("collations", "Nümeric"),
        ("sequences", "free Seq"),
        ("triggers", "disabled"),
        ("policies", "pol icy of public.child"),
        ("views", "public.on_view"),
        ("public.with_country", "left out (views): it needs table public.countries"),
        ("public.mat", "materialized view"),
        ("foreign keys", "chi ld of public.child"),
        ("child_country_fkey of public.child", "public.countries does not move"),
        ("exclusion constraints", "no Overlap"),
        ("row level security", "FORCE"),
        ("storage", "public.Par ent"),
        ("owners and grants", "public.child"),
        ("comments", "public.child"),
        ("large objects", "the database has 1"),
        ("extension pgcrypto", "no moved table needs it"),
    ] {
        let said = findings.as_array().context("a list")?.iter().any(|finding| {
            let severity = &finding["severity"];
            finding["object"] == object
                && *severity == "note"
                && finding["cause"].as_str().is_some_and(|cause| cause.contains(part))
        });
        ensure!(said, "{object}: {part}: {findings:#}");
    }
    let before = belongings(&desk.source).await?;
    let daemon = desk.work().await?;
    cli(&desk.config, &["move", "1", "--to", "schema"]).await?;
    cli(&desk.config, &["move", "2", "--to", "database"]).await?;
    for (n, change) in CHANGES.iter().enumerate() {
        desk.sql(&rows(1000 * (1 + n as u32))).await?;
        desk.sql(change).await?;
    }
    for tenant in ["1", "2"] {
        phase(&daemon, tenant, &["streaming"]).await?;
    }
    for change in CHANGES.iter().rev() {
        desk.sql(&change.replace("'new'", "'newer'").replace("'B.'", "'C.'")).await?;
    }
    for (tenant, to) in [("1", "schema"), ("2", "database")] {
        assert_equal(&desk, &daemon, tenant, to).await.with_context(|| format!("tenant {tenant}"))?;
    }
    // A function that needs a table's rows is made where the table has its own name.
    let (target, _) = place(&desk, "2", "database").await?;
    target.query("SELECT * FROM uses_row", &[]).await.context("uses_row")?;
    let left_out = daemon.tenant("1").await?["left_out"].clone();
    ensure!(left_out.to_string().contains("uses_row"), "{left_out}");
    // R15
    desk.sql("ALTER TYPE \"Tÿpes.x\".\"Mo\"\"od\" ADD VALUE 'n3w' AFTER 'sad'").await?;
    desk.sql("UPDATE \"Par ent\" SET mood = 'n3w' WHERE \"Id\" % 3 = 0").await?;
    let fault = faulted(&daemon, "2").await?["fault"].clone();
    let next = fault["next"].as_str().unwrap_or_default();
    let sql = "ALTER TYPE \"Tÿpes.x\".\"Mo\"\"od\" ADD VALUE 'n3w' AFTER 'sad'";
    ensure!(next.contains(sql) && !fault["message"].to_string().contains("n3w"), "{fault}");
    target.batch_execute(sql).await?;
    cli(&desk.config, &["move", "2"]).await?;
    phase(&daemon, "2", &["streaming"]).await?;
    for (tenant, to) in [("1", "schema"), ("2", "database")] {
        assert_equal(&desk, &daemon, tenant, to).await.with_context(|| format!("tenant {tenant} with a new label"))?;
    }
    // What others hang on to it stops the cancel.
    target.batch_execute("CREATE TABLE theirs (mood \"Tÿpes.x\".\"Mo\"\"od\")").await?;
    run(&desk.config, &["cancel", "2"]).await?.assert(1, &["Mo\"\"od", "depend"])?;
    target.query("SELECT * FROM theirs, \"Par ent\"", &[]).await.context("half of it was dropped")?;
    target.batch_execute("DROP TABLE theirs").await?;
    drop(target);
    for tenant in ["1", "2"] {
        run(&desk.config, &["cancel", tenant]).await?.assert(0, &["is cancelled"])?;
    }
    ensure!(desk.ask("SELECT count(*) FROM pg_database WHERE datname = 'bid_2'").await? == "0", "the database is left");
    let after = belongings(&desk.source).await?;
    ensure!(after == before, "before: {before}\nafter: {after}");
    daemon.assert_no_errors(&["invalid input value for enum", "depend"])
}

/// What is there already is used when it is the same, refused when it is not, and never dropped; a foreign key that
/// a tenant's rows do not hold stays NOT VALID and stops nothing.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_target_already_is_used_or_refused_and_stays() -> Result<()> {
    let desk = open().await?;
    desk.sql("UPDATE \"Par ent\" SET abroad = 5 WHERE \"Id\" = 6").await?;
    desk.sql("CREATE DATABASE bid_3").await?;
    let theirs = desk.scene.target_client("bid_3").await?;
    let mine = "CREATE EXTENSION citext; CREATE SCHEMA \"Tÿpes.x\"; CREATE TYPE \"Tÿpes.x\".\"Mo\"\"od\" AS ENUM ('sad', 'HAPPY'); \
                CREATE FUNCTION helper(x integer) RETURNS integer IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN RETURN x * 2; END $$";
    theirs.batch_execute(mine).await?;
    let before = belongings(&theirs).await?;
    let daemon = desk.work().await?;
    cli(&desk.config, &["move", "3", "--to", "database"]).await?;
    let fault = faulted(&daemon, "3").await?["fault"].clone();
    let message = fault["message"].as_str().unwrap_or_default();
    ensure!(message.contains("ADD VALUE 'it''s, ok' AFTER 'sad'") && message.contains("there already"), "{fault}");
    ensure!(belongings(&theirs).await? == before, "something was made");
    theirs.batch_execute("ALTER TYPE \"Tÿpes.x\".\"Mo\"\"od\" ADD VALUE 'it''s, ok' AFTER 'sad'").await?;
    cli(&desk.config, &["move", "3"]).await?;
    phase(&daemon, "3", &["streaming"]).await?;
    desk.sql(CHANGES[0]).await?;
    drained(&desk.scene, &daemon, "3").await?;
    verify_equal(&daemon, "3").await?;
    let valid = until("a foreign key that does not hold", SOON, async || {
        let status = daemon.tenant("3").await?;
        ensure!(status["left_out"].to_string().contains("foreign key abroad"), "{status}");
        let keys = "SELECT string_agg(conname || ' ' || convalidated, ',' ORDER BY conname) FROM pg_constraint WHERE contype = 'f'";
        Ok(theirs.query_one(keys, &[]).await?.get::<_, String>(0))
    })
    .await?;
    ensure!(valid == "Par ent_bid_up_fkey true,abroad false,chi ld true,circle false", "{valid}");
    desk.sql(CHANGES[1]).await?;
    drained(&desk.scene, &daemon, "3").await?;
    run(&desk.config, &["cancel", "3"]).await?.assert(0, &["is cancelled"])?;
    let after = belongings(&theirs).await?;
    ensure!(after == before, "before: {before}\nafter: {after}");
    daemon.assert_no_errors(&["there already"])
}

/// How often a move is cut off.
const ROUNDS: u32 = 4;

/// T06, invariant 9: a daemon that is killed while it makes all this goes on where it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_killed_while_it_makes_all_this_goes_on() -> Result<()> {
    let mut rng = tests::seed::rng("killed while provisioning");
    let desk = open().await?;
    let mut daemon = desk.work().await?;
    let before = belongings(&desk.source).await?;
    for round in 0..ROUNDS {
        let to = if round % 2 == 0 { "database" } else { "schema" };
        cli(&desk.config, &["move", "4", "--to", to]).await?;
        for _ in 0..2 {
            // The moment is random on purpose.
            tokio::time::sleep(std::time::Duration::from_millis(rng.random_range(0..600))).await;
            daemon.kill()?;
            daemon = Daemon::start(&desk.config).await?;
        }
        phase(&daemon, "4", &["streaming"]).await.with_context(|| format!("round {round}"))?;
        desk.sql(CHANGES[round as usize % 4]).await?;
        assert_equal(&desk, &daemon, "4", to).await.with_context(|| format!("round {round}"))?;
        run(&desk.config, &["cancel", "4"]).await?.assert(0, &["is cancelled"])?;
        ensure!(desk.ask("SELECT count(*) FROM pg_database WHERE datname = 'bid_4'").await? == "0", "round {round}");
        let after = belongings(&desk.source).await?;
        ensure!(after == before, "round {round}: before: {before}\nafter: {after}");
    }
    daemon.assert_no_errors(&[])
}

/// R15, R19, invariant 10: what cannot be taken along is refused by `check`, with object, cause and remedy.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_made_is_refused_by_name() -> Result<()> {
    let desk = Desk::open().await?;
    desk.sql(
        "CREATE OPERATOR === (LEFTARG = integer, RIGHTARG = integer, FUNCTION = int4eq); \
         CREATE TABLE with_operator (bid integer, CHECK (bid OPERATOR(public.===) bid)); \
         CREATE TABLE secured (bid integer); ALTER TABLE secured ENABLE ROW LEVEL SECURITY; \
         CREATE ROLE carver LOGIN REPLICATION; GRANT SELECT ON ALL TABLES IN SCHEMA public TO carver",
    )
    .await?;
    let refused = [("with_operator", "operator ===(integer,integer)"), ("secured", "row level security hides rows")];
    let text = std::fs::read_to_string(&desk.config)?.replace("postgres@", "carver@");
    std::fs::write(&desk.config, text)?;
    let said = run(&desk.config, &["check", "--output", "json"]).await?;
    let findings: Value = serde_json::from_str(&said.stdout)?;
    for (table, part) in refused {
        let found = findings.as_array().context("a list")?.iter().any(|finding| {
            finding["object"] == format!("public.{table}").as_str()
                && finding["severity"] == "error"
                && finding["cause"].as_str().is_some_and(|cause| cause.replace("public.", "").contains(part))
                && finding["remedy"].as_str().is_some_and(|remedy| remedy.contains("exclude: true"))
        });
        ensure!(found, "{table}: {part}: {findings:#}");
    }
    ensure!(said.code == Some(1), "{said:#?}");
    desk.sql("ALTER ROLE carver BYPASSRLS").await?;
    let said = run(&desk.config, &["check"]).await?;
    ensure!(!said.stdout.contains("row level security hides"), "{said:#?}");
    Ok(())
}
