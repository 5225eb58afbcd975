//! Passwords and rows are for those who need them: SCRAM logins work, and no artefact shows a secret or a
//! value.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use daemon::demo::cluster::{Auth, ClusterOptions};
use tests::daemon::Daemon;
use tests::scene::{Configuration, Scene};

use super::{Desk, run};
use crate::carve::phase;
use crate::settle::faulted;

/// Unlike anything else that could stand in a log; with signs that a URL has to encode.
const PASSWORD: &str = "pw-c4nary @:/?#%";
/// In rows: in a value that is copied, in one that is streamed, in one that is refused.
const ROW: &str = "row-c4nary";

/// A cluster that asks for passwords, and a configuration with password files and a variable.
async fn desk(extra: &str) -> Result<Desk> {
    let options = ClusterOptions { auth: Auth::Scram(PASSWORD.to_owned()), ..ClusterOptions::default() };
    let scene = Scene::single(options).await?;
    let source = scene.source_client().await?;
    source.batch_execute(super::TABLES).await?;
    source
        .batch_execute(&format!("UPDATE orders SET note = '{ROW} copied'; ALTER TABLE orders ADD UNIQUE (note, id)"))
        .await?;
    let config =
        scene.write_config("carveout", &Configuration { extra: extra.to_owned(), ..Configuration::default() })?;
    let file = scene.path().join("secret");
    std::fs::write(&file, format!("{PASSWORD}\n"))?;
    let line = format!("password_file: \"{}\"", file.display());
    let text = std::fs::read_to_string(&config)?;
    let text = text.replace("sslmode=disable\"\ntenancy", &format!("sslmode=disable\"\n  {line}\ntenancy"));
    let text = text.replace("    tenant_schema_pattern", &format!("    {line}\n    tenant_schema_pattern"));
    ensure!(text.matches(&line).count() == 2, "{text}");
    std::fs::write(&config, text)?;
    Ok(Desk { source, config, scene })
}

/// N04, N06, N09: a whole move over SCRAM-SHA-256 with passwords from files, at the noisiest log level, with
/// faults on the way: neither the password nor a value of a row is in any artefact but the spool.
#[tokio::test(flavor = "multi_thread")]
async fn a_move_over_scram_leaves_neither_password_nor_row_in_any_artefact() -> Result<()> {
    let desk = desk("log: {level: trace}\n").await?;
    let mut said = Vec::new();
    for args in [&["check"][..], &["prepare"], &["prepare", "--apply"], &["check", "--output", "json"]] {
        said.push(run(&desk.config, args).await?);
    }
    said[3].assert(0, &[])?;
    let mut daemon = Daemon::start(&desk.config).await?;
    for (tenant, to) in [("1", "schema"), ("2", "database")] {
        said.push(run(&desk.config, &["move", tenant, "--to", to, "--wait"]).await?);
        phase(&daemon, tenant, &["streaming"]).await?;
    }
    desk.sql(&format!(
        "UPDATE orders SET note = '{ROW} streamed' WHERE id % 2 = 0; INSERT INTO events VALUES (1, '{ROW}')"
    ))
    .await?;
    desk.sql("DELETE FROM events WHERE what = 'event 6'").await?;
    let target = desk.scene.target_client("bid_2").await?;
    for (tenant, schema, there) in [("1", "bid_1", &desk.source), ("2", "public", &target)] {
        crate::settle::drained(&desk.scene, &daemon, tenant).await?;
        tests::oracle::assert_equal(
            &desk.source,
            "public.orders",
            &format!("bid = {tenant}"),
            there,
            &format!("{schema}.orders"),
        )
        .await?;
        let verified = run(&desk.config, &["verify", tenant]).await?;
        verified.assert(0, &["equal"])?;
        said.push(verified);
    }
    // Differences, and a row in the way.
    desk.sql(&format!(
        "INSERT INTO bid_1.orders VALUES (1, 9001, '{ROW} by hand'); UPDATE bid_1.events SET what = '{ROW} by hand'"
    ))
    .await?;
    said.push(run(&desk.config, &["verify", "1"]).await?);
    said.push(run(&desk.config, &["verify", "1", "--output", "json"]).await?);
    desk.sql(&format!("INSERT INTO orders VALUES (1, 9001, '{ROW} in the way')")).await?;
    let bodies = faulted(&daemon, "1").await?.to_string();
    for args in [&["status"][..], &["status", "1"], &["status", "--output", "json"], &["move", "1"], &["cancel", "1"]] {
        said.push(run(&desk.config, args).await?);
    }
    let process = std::fs::read(format!("/proc/{}/cmdline", daemon.pid()))?;
    ensure!(daemon.terminate().await?.success());
    ensure!(daemon.log()?.contains("TRACE"), "the log is not at its noisiest");
    for needle in needles() {
        let shown = format!("{said:?} {bodies} {}", String::from_utf8_lossy(&process));
        ensure!(!shown.contains(&needle), "{needle:?} was said: {:?}", line_with(&shown, &needle));
        for file in artefacts(desk.scene.path())? {
            let bytes = std::fs::read(&file).with_context(|| format!("read {}", file.display()))?;
            let text = String::from_utf8_lossy(&bytes);
            ensure!(!text.contains(&needle), "{needle:?} is in {}: {:?}", file.display(), line_with(&text, &needle));
        }
    }
    Ok(())
}

/// The secrets as text, as a URL has them, and as a list of bytes in debug output.
fn needles() -> Vec<String> {
    let list = |text: &str| text.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(", ");
    let hex = |text: &str| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    [PASSWORD, "pw-c4nary", ROW].iter().flat_map(|text| [(*text).to_owned(), list(text), hex(text)]).collect()
}

/// The first line with the needle, cut to what an error message can hold.
fn line_with(text: &str, needle: &str) -> String {
    let at = text.find(needle).unwrap_or_default();
    let start = text.floor_char_boundary(at.saturating_sub(300));
    text[start..text.ceil_char_boundary((at + 100).min(text.len()))].to_owned()
}

/// Everything in the scene's folder but the server's own files, the password's file and the spools.
fn artefacts(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if ["source", "secret", "spool"].iter().any(|other| name == *other) {
            continue;
        }
        match entry.file_type()?.is_dir() {
            true => found.extend(artefacts(&entry.path())?),
            false => found.push(entry.path()),
        }
    }
    Ok(found)
}

/// N04, N06: a wrong password, an empty file and a missing one are told apart, none is shown, and no command
/// hangs.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_said_clearly_and_shown_nowhere() -> Result<()> {
    let desk = desk("").await?;
    let file = desk.scene.path().join("secret");
    std::fs::write(&file, "wrong-c4nary\n")?;
    for (args, code) in [(&["check"][..], 3), (&["prepare", "--apply"], 3), (&["run"], 1)] {
        let said = run(&desk.config, args).await?;
        said.assert(code, &["password authentication failed", "127.0.0.1"])?;
        ensure!(!format!("{said:?}").contains("c4nary"), "{said:#?}");
    }
    std::fs::write(&file, "\n")?;
    run(&desk.config, &["check"]).await?.assert(2, &["source.password_file", "is empty"])?;
    std::fs::remove_file(&file)?;
    run(&desk.config, &["run"]).await?.assert(2, &["source.password_file", &file.display().to_string()])?;
    // In the URL itself, from the environment: works, and errors do not show it either.
    let text = std::fs::read_to_string(&desk.config)?
        .lines()
        .filter(|line| !line.contains("password_file"))
        .collect::<Vec<_>>()
        .join("\n");
    let percent = "pw-c4nary%20%40%3A%2F%3F%23%25";
    std::fs::write(&desk.config, text.replace("postgres@", &format!("postgres:{percent}@")))?;
    let said = run(&desk.config, &["check"]).await?;
    said.assert(1, &["pg_create_logical_replication_slot"])?;
    std::fs::write(&desk.config, std::fs::read_to_string(&desk.config)?.replace("/shop?", "/shop_c4nary_not?"))?;
    let said = run(&desk.config, &["check"]).await?;
    said.assert(3, &["shop_c4nary_not"])?;
    ensure!(!format!("{said:?}").contains("pw-c4nary"), "{said:#?}");
    Ok(())
}

/// N04: a password that is changed while the daemon runs is waited for, visibly; nothing stops for good.
#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_is_changed_for_a_time_stops_nothing_for_good() -> Result<()> {
    let desk = desk("").await?;
    let daemon = desk.work().await?;
    desk.carve(&daemon, "1", "schema").await?;
    desk.sql("ALTER ROLE postgres PASSWORD 'another'").await?;
    desk.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'carveout%'").await?;
    let fault = desk.unready(&daemon).await?;
    ensure!(fault.to_string().contains("password authentication failed"), "{fault}");
    desk.sql("INSERT INTO events VALUES (1, 'meanwhile')").await?;
    desk.sql(&format!("ALTER ROLE postgres PASSWORD '{PASSWORD}'")).await?;
    phase(&daemon, "1", &["streaming"]).await?;
    desk.assert_equal(&daemon, "1", "schema").await?;
    daemon.assert_no_errors(&[])
}

/// N04: a password that is rotated, in the database and in its file, needs no restart: source, stream and targets
/// log in with the new one, whichever is changed first.
#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_is_rotated_in_its_file_needs_no_restart() -> Result<()> {
    let desk = desk("").await?;
    let file = desk.scene.path().join("secret");
    let rotate = async |password: &str| desk.sql(&format!("ALTER ROLE carver PASSWORD '{password}'")).await;
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'carveout%'";
    desk.sql("CREATE ROLE carver LOGIN SUPERUSER").await?;
    rotate("c4nary one").await?;
    std::fs::write(&file, "c4nary one\n")?;
    let text = std::fs::read_to_string(&desk.config)?;
    std::fs::write(&desk.config, text.replace("postgres@", "carver@"))?;
    let daemon = desk.work().await?;
    desk.carve(&daemon, "1", "schema").await?;
    desk.carve(&daemon, "2", "database").await?;
    // The database first: refused for a time, which is shown, then let in.
    rotate("c4nary two").await?;
    desk.sql(cut).await?;
    let fault = desk.unready(&daemon).await?;
    ensure!(fault.to_string().contains("password_file"), "{fault}");
    desk.sql("INSERT INTO events SELECT n % 3, 'meanwhile' FROM generate_series(1, 30) n").await?;
    std::fs::remove_file(&file)?;
    std::fs::write(&file, "c4nary two\n")?;
    // Then both at once, in a daemon that has rotated before.
    for (round, password) in ["c4nary two", "c4nary three"].into_iter().enumerate() {
        std::fs::write(&file, password)?;
        rotate(password).await?;
        desk.sql(cut).await?;
        desk.sql(&format!("UPDATE events SET what = what || ' round {round}'")).await?;
        for (tenant, to) in [("1", "schema"), ("2", "database")] {
            desk.assert_equal(&daemon, tenant, to).await?;
        }
    }
    run(&desk.config, &["check"]).await?.assert(0, &["errors: 0"])?;
    ensure!(!daemon.log()?.contains("c4nary"), "a password is in the log");
    daemon.assert_no_errors(&[])
}
