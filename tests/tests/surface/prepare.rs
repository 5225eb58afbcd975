//! `check` and `prepare` on a database that can be moved.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::scene::DATABASE;

use super::{Desk, run};

/// What there is on the source of what `prepare` makes.
const MADE: &str = "SELECT (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_replication_slots) \
                    + (SELECT count(*) FROM pg_namespace WHERE nspname = 'carveout') \
                    + (SELECT count(*) FROM pg_class WHERE relreplident = 'f' AND relname <> 'migration_progress')";

/// S15, INTERFACE: `check` names the SQL and writes nothing; the script that `prepare` prints, run by psql,
/// makes it content; so does `prepare --apply`, and a second time it finds nothing to do.
#[tokio::test(flavor = "multi_thread")]
async fn check_asks_for_what_prepare_does_and_is_content_afterwards() -> Result<()> {
    let desk = Desk::open().await?;
    let sql = [
        "ALTER TABLE \"public\".\"events\" REPLICA IDENTITY FULL",
        "CREATE PUBLICATION \"carveout\" FOR TABLE",
        "pg_create_logical_replication_slot('carveout', 'pgoutput')",
        "CREATE SCHEMA IF NOT EXISTS carveout",
    ];
    let check = run(&desk.config, &["check"]).await?;
    check.assert(1, &sql)?;
    check.assert(1, &["public.events", "public.orders", "prepare --apply"])?;
    ensure!(!check.stdout.contains("\"orders\" REPLICA"), "its key carries the tenant already: {check:#?}");
    let json = run(&desk.config, &["check", "--output", "json"]).await?;
    let findings: Value = serde_json::from_str(&json.stdout).context("read the findings")?;
    let findings = findings.as_array().context("a list")?;
    ensure!(
        json.code == Some(1) && findings.iter().filter(|finding| finding["prepared"] == true).count() == 4,
        "{json:#?}"
    );
    for finding in findings {
        for field in ["severity", "object", "cause", "remedy"] {
            ensure!(finding[field].is_string(), "{field} of {finding}");
        }
    }
    let script = run(&desk.config, &["prepare"]).await?;
    script.assert(0, &sql)?;
    ensure!(made(&desk).await? == 0, "check or prepare has written something");
    psql(&desk, &script.stdout)?;
    run(&desk.config, &["check"]).await?.assert(0, &["errors: 0"])?;
    ensure!(made(&desk).await? == 4);
    desk.sql("DROP PUBLICATION carveout").await?;
    desk.sql("SELECT pg_drop_replication_slot('carveout')").await?;
    desk.sql("DROP SCHEMA carveout CASCADE; ALTER TABLE events REPLICA IDENTITY DEFAULT").await?;
    run(&desk.config, &["check"]).await?.assert(1, &sql)?;
    run(&desk.config, &["prepare", "--apply"])
        .await?
        .assert(0, &["prepared: 4 steps", "pg_drop_replication_slot('carveout')"])?;
    run(&desk.config, &["prepare", "--apply"]).await?.assert(0, &["nothing to prepare"])?;
    run(&desk.config, &["prepare"]).await?.assert(0, &["nothing to prepare"])?;
    run(&desk.config, &["check"]).await?.assert(0, &["errors: 0"])?;
    // A table that joins later is missed by check, added by prepare, under a lock.
    desk.sql("CREATE TABLE late (bid integer, id integer, PRIMARY KEY (id, bid))").await?;
    run(&desk.config, &["check"]).await?.assert(1, &["late", "LOCK TABLE", "ADD TABLE"])?;
    run(&desk.config, &["prepare", "--apply"]).await?.assert(0, &["prepared: 1 step"])?;
    run(&desk.config, &["check"]).await?.assert(0, &["public.late"])
}

pub async fn made(desk: &Desk) -> Result<i64> {
    Ok(desk.source.query_one(MADE, &[]).await?.get(0))
}

/// Runs a script as a person would.
pub fn psql(desk: &Desk, script: &str) -> Result<()> {
    let path = desk.scene.path().join("prepare.sql");
    std::fs::write(&path, script)?;
    let mut psql: Command = desk.scene.source.command("psql")?;
    let said =
        psql.args(["-X", "-v", "ON_ERROR_STOP=1", "-f"]).arg(&path).arg(DATABASE).output().context("run psql")?;
    ensure!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    Ok(())
}

/// R02, invariant 6: after `prepare` the application updates and deletes in every table as it did before,
/// whatever keys and identities it has given them.
#[tokio::test(flavor = "multi_thread")]
async fn prepare_takes_no_write_away_from_the_application() -> Result<()> {
    const SHAPES: [(&str, &str); 9] = [
        ("bare", "(bid integer, id integer)"),
        ("keyed", "(bid integer, id integer PRIMARY KEY)"),
        ("deferrable_with_tenant", "(bid integer, id integer, PRIMARY KEY (bid, id) DEFERRABLE)"),
        ("deferrable_alone", "(bid integer, id integer PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)"),
        ("unique_nullable", "(bid integer, id integer, UNIQUE (bid, id))"),
        ("unique_deferrable", "(bid integer NOT NULL, id integer NOT NULL, UNIQUE (bid, id) DEFERRABLE)"),
        (
            "identity_nothing",
            "(bid integer, id integer, PRIMARY KEY (bid, id)); ALTER TABLE identity_nothing REPLICA IDENTITY NOTHING",
        ),
        (
            "identity_index",
            "(bid integer NOT NULL, id integer NOT NULL, CONSTRAINT other UNIQUE (bid, id)); ALTER TABLE identity_index REPLICA IDENTITY USING INDEX other",
        ),
        (
            "identity_index_gone",
            "(bid integer NOT NULL, id integer NOT NULL, CONSTRAINT gone UNIQUE (bid, id)); ALTER TABLE identity_index_gone REPLICA IDENTITY USING INDEX gone; ALTER TABLE identity_index_gone DROP CONSTRAINT gone",
        ),
    ];
    let desk = Desk::open().await?;
    for (name, columns) in SHAPES {
        desk.sql(&format!(
            "CREATE TABLE {name} {columns}; INSERT INTO {name} (bid, id) SELECT 1, n FROM generate_series(1, 9) n"
        ))
        .await?;
    }
    let daemon = desk.work().await?;
    let mut refused = Vec::new();
    for (name, _) in SHAPES {
        for write in
            [format!("UPDATE {name} SET id = id + 10 WHERE id < 4"), format!("DELETE FROM {name} WHERE id > 8")]
        {
            if let Err(error) = desk.sql(&write).await {
                refused.push(format!("{error:#}"));
            }
        }
    }
    ensure!(refused.is_empty(), "writes that went through before prepare: {refused:#?}");
    desk.carve(&daemon, "1", "schema").await?;
    for (name, _) in SHAPES {
        desk.sql(&format!("UPDATE {name} SET id = id + 100; DELETE FROM {name} WHERE id = 105")).await?;
    }
    desk.assert_equal(&daemon, "1", "schema").await?;
    daemon.assert_no_errors(&[])
}
