//! What `check` refuses, and with which words.

use anyhow::{Context, Result, ensure};
use daemon::demo::cluster::ClusterOptions;
use serde_json::Value;
use tests::scene::Configuration;

use super::{Desk, run};
use crate::carve::cli;

/// Tables that this version cannot move: name, what makes it, a part of the reason.
const REFUSED: [(&str, &str, &str); 7] = [
    ("no_tenant", "CREATE TABLE no_tenant (id integer PRIMARY KEY)", "no column \"bid\""),
    ("numeric_key", "CREATE TABLE numeric_key (bid numeric, id integer)", "type numeric"),
    (
        "parted",
        "CREATE TABLE parted (bid integer, id integer) PARTITION BY LIST (id); CREATE UNLOGGED TABLE part PARTITION OF parted FOR VALUES IN (1)",
        "its partition public.part is unlogged",
    ),
    ("heir", "CREATE TABLE parent (bid integer); CREATE TABLE heir (id integer) INHERITS (parent)", "inheritance"),
    ("fleeting", "CREATE UNLOGGED TABLE fleeting (bid integer)", "unlogged"),
    (
        "abroad",
        "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; CREATE FOREIGN TABLE abroad (bid integer) SERVER s",
        "foreign table",
    ),
    (
        "with_operator",
        "CREATE OPERATOR === (LEFTARG = integer, RIGHTARG = integer, FUNCTION = int4eq); \
         CREATE TABLE with_operator (bid integer, CHECK (bid OPERATOR(public.===) bid))",
        "operator public.===",
    ),
];

/// R13, R15, R19, R20, S15: every table that cannot be moved is named with its reason and the way out, all at
/// once; `prepare` does nothing while there are any; left out by the configuration, they are no obstacle.
#[tokio::test(flavor = "multi_thread")]
async fn tables_that_cannot_be_moved_are_refused_each_with_its_reason() -> Result<()> {
    let desk = Desk::open().await?;
    for (_, sql, _) in REFUSED {
        desk.sql(sql).await?;
    }
    let json = run(&desk.config, &["check", "--output", "json"]).await?;
    let findings: Value = serde_json::from_str(&json.stdout).context("read the findings")?;
    ensure!(json.code == Some(1), "{json:#?}");
    for (name, _, reason) in REFUSED {
        let object = format!("public.{name}");
        let about: Vec<&Value> =
            findings.as_array().context("a list")?.iter().filter(|f| f["object"] == object.as_str()).collect();
        let said = about.iter().any(|finding| {
            finding["severity"] == "error"
                && finding["cause"].as_str().is_some_and(|cause| cause.contains(reason))
                && finding["remedy"].as_str().is_some_and(|remedy| remedy.contains("exclude: true"))
        });
        ensure!(said, "{object}: {about:#?}");
    }
    let prepare = run(&desk.config, &["prepare", "--apply"]).await?;
    prepare.assert(1, &["public.with_operator", "nothing was run"])?;
    ensure!(desk.ask("SELECT count(*) FROM pg_replication_slots").await? == "0", "a slot was made");
    ensure!(desk.ask("SELECT count(*) FROM pg_publication").await? == "0", "a publication was made");
    let names = REFUSED.iter().map(|(name, ..)| *name).chain(["parent"]);
    let tables = names.map(|name| (format!("public.{name}"), "{exclude: true}".to_owned())).collect();
    let config = desk.scene.write_config("excluded", &Configuration { tables, ..Configuration::default() })?;
    cli(&config, &["prepare", "--apply"]).await?;
    run(&config, &["check"]).await?.assert(0, &["errors: 0", "tables that move: public.events, public.orders\n"])
}

/// A `via` that no foreign key backs or that leads to a reference table, and a table that does not exist, are refused
/// by name; a reference table that nothing names rows by needs an identity before it is published.
#[tokio::test(flavor = "multi_thread")]
async fn policies_that_cannot_be_followed_are_refused_by_name() -> Result<()> {
    let desk = Desk::open().await?;
    desk.sql("CREATE TABLE lines (order_id integer); CREATE TABLE countries (id integer UNIQUE)").await?;
    desk.sql("CREATE TABLE cities (id integer PRIMARY KEY, country_id integer REFERENCES countries (id))").await?;
    let tables = [
        ("lines", "{via: order_id}"),
        ("countries", "{reference: true}"),
        ("cities", "{via: country_id}"),
        ("nowhere", "{exclude: true}"),
    ];
    let tables = tables.map(|(name, policy)| (name.to_owned(), policy.to_owned())).to_vec();
    let config = desk.scene.write_config("later", &Configuration { tables, ..Configuration::default() })?;
    run(&config, &["check"]).await?.assert(
        1,
        &[
            "public.lines",
            "no foreign key has exactly the columns (order_id)",
            "public.countries",
            "it has no replica identity",
            "public.cities",
            "whose own tenants are not known",
            "nowhere",
            "no such table",
        ],
    )
}

/// S15, N05: wrong server settings, a role that may too little and a server that is no primary's are all listed
/// at once, with the SQL that mends them; nothing is written.
#[tokio::test(flavor = "multi_thread")]
async fn settings_and_privileges_that_stand_in_the_way_are_listed_at_once() -> Result<()> {
    let settings = vec![("wal_level".to_owned(), "replica".to_owned())];
    let desk =
        Desk::open_with(ClusterOptions { settings, ..ClusterOptions::default() }, Configuration::default()).await?;
    desk.sql("CREATE ROLE \"Car ver\" LOGIN; GRANT SELECT ON orders TO \"Car ver\"").await?;
    let text = std::fs::read_to_string(&desk.config)?.replace("postgres@", "Car%20ver@");
    std::fs::write(&desk.config, text)?;
    let said = run(&desk.config, &["check"]).await?;
    said.assert(1, &["wal_level", "it is replica", "ALTER SYSTEM SET wal_level = logical", "restart"])?;
    said.assert(1, &["role Car ver", "ALTER ROLE \"Car ver\" REPLICATION"])?;
    said.assert(1, &["events", "may not read", "GRANT SELECT ON"])?;
    said.assert(1, &["tenant_schema_pattern", "tenant_database_pattern", "CREATEDB"])?;
    run(&desk.config, &["prepare", "--apply"]).await?.assert(1, &["nothing was run"])?;
    let (status, log) = desk.refused(&desk.config).await?;
    ensure!(status.code() == Some(1) || status.code() == Some(3), "{status} {log}");
    ensure!(desk.ask("SELECT count(*) FROM pg_publication").await? == "0", "a publication was made");
    desk.scene.source.stop(daemon::demo::cluster::StopMode::Fast)?;
    run(&desk.config, &["check"]).await?.assert(3, &["127.0.0.1"])
}

/// In a schema that was there before, tables that Carveout makes and drops while `check` looks are never taken
/// for the application's.
#[tokio::test(flavor = "multi_thread")]
async fn tables_that_come_for_a_tenant_meanwhile_are_no_finding() -> Result<()> {
    const COMES: &str = "CREATE SCHEMA IF NOT EXISTS there_before; CREATE TABLE there_before.orders (id integer);
        INSERT INTO carveout.objects (move, kind, name, oid)
        VALUES ('m-0000000000000000', 'table', '\"there_before\".\"orders\"', 'there_before.orders'::regclass)";
    const GOES: &str = "DELETE FROM carveout.objects; DROP TABLE there_before.orders";
    let desk = Desk::open().await?;
    cli(&desk.config, &["prepare", "--apply"]).await?;
    let maker = desk.scene.source_client().await?;
    let done = std::sync::atomic::AtomicBool::new(false);
    let making = async {
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            for sql in [COMES, GOES] {
                maker.batch_execute(&format!("BEGIN; {sql}; COMMIT")).await?;
            }
        }
        anyhow::Ok(())
    };
    let looking = async {
        let mut found = String::new();
        for _ in 0..60 {
            let said = run(&desk.config, &["check", "--output", "json"]).await?;
            found.push_str(
                said.stdout
                    .split_inclusive('\n')
                    .filter(|line| line.contains("there_before"))
                    .collect::<String>()
                    .as_str(),
            );
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        ensure!(found.is_empty(), "{found}");
        anyhow::Ok(())
    };
    tokio::try_join!(making, looking)?;
    Ok(())
}

/// A unique value that two tenants could both take while one of them lives elsewhere is named, with its columns; what holds the
/// tenant's key, leads to its rows, or is drawn for each side alone is not.
#[tokio::test(flavor = "multi_thread")]
async fn unique_constraints_over_all_tenants_are_named_before_there_is_a_way_back() -> Result<()> {
    let desk = Desk::open().await?;
    desk.sql(
        "CREATE EXTENSION btree_gist;
         CREATE TABLE kinds (id integer PRIMARY KEY, name text UNIQUE);
         CREATE TABLE people (id bigserial PRIMARY KEY, bid integer NOT NULL, email text, phone text, code uuid UNIQUE,
                              UNIQUE (bid, phone));
         CREATE UNIQUE INDEX ON people (lower(email)) WHERE phone IS NULL;
         CREATE TABLE badges (person bigint PRIMARY KEY REFERENCES people, number integer, kind integer REFERENCES kinds,
                              room text, at int4range, UNIQUE (number, kind), EXCLUDE USING gist (room WITH =, at WITH &&));
         CREATE TABLE numbered (id integer GENERATED ALWAYS AS IDENTITY UNIQUE, bid integer NOT NULL, nr integer PRIMARY KEY)",
    )
    .await?;
    let tables = [("kinds", "{reference: true}"), ("badges", "{via: person}")];
    let tables = tables.map(|(name, policy)| (name.to_owned(), policy.to_owned())).to_vec();
    let config =
        desk.scene.write_config("uniques", &Configuration { tables: tables.clone(), ..Configuration::default() })?;
    let said = run(&config, &["check", "--output", "json"]).await?;
    let findings: Value = serde_json::from_str(&said.stdout).context("read the findings")?;
    let mut found =
        findings.as_array().context("a list")?.iter().filter(|found| found["object"] == "unique constraints");
    let found = found.next().context("no such finding")?;
    let wanted = "over all tenants: (number, kind) of public.badges, (room, at) of public.badges, (nr) of public.numbered, \
                  (lower(email)) of public.people. ";
    ensure!(found["severity"] == "warning" && found["cause"].to_string().contains(wanted), "{found}");
    let strategy = "  migration_config: {rollback_enabled: false}\n".to_owned();
    let path = desk.scene.write_config("without", &Configuration { tables, strategy, ..Configuration::default() })?;
    let said = run(&path, &["check"]).await?;
    ensure!(!said.stdout.contains("unique constraints"), "{said:#?}");
    Ok(())
}
