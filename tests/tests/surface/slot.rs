//! Slot, publication and records do not fit together any more: nothing is streamed over a gap.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use daemon::demo::cluster::{ClusterOptions, signal};
use tests::binary::setting;
use tests::daemon::Daemon;
use tests::proxy::Proxy;
use tests::scene::{Configuration, Scene};
use tests::wait::until;

use super::{Desk, SOON, run};
use crate::carve::{cli, phase};
use crate::settle::{self, faulted};

const SLOTS: &str = "SELECT count(*) FROM pg_replication_slots";
const CREATE_SLOT: &str = "SELECT pg_create_logical_replication_slot('carveout', 'pgoutput')";

/// Drops the slot although somebody streams from it: that somebody is sent away until the drop wins.
async fn drop_slot(desk: &Desk) -> Result<()> {
    until("the slot to be dropped", SOON, async || {
        desk.sql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active").await?;
        desk.sql("SELECT pg_drop_replication_slot('carveout')").await
    })
    .await
}

/// A daemon with tenant 1 in step.
async fn moving(desk: &Desk) -> Result<Daemon> {
    let daemon = desk.work().await?;
    desk.carve(&daemon, "1", "schema").await?;
    Ok(daemon)
}

/// S02: dropped while the daemon streams. It says so, is not ready, makes none by itself, and does not loop
/// for ever; started again it refuses, also on a slot that somebody made anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_dropped_under_a_daemon_is_missed_and_never_made_again() -> Result<()> {
    let desk = Desk::open().await?;
    let mut daemon = moving(&desk).await?;
    drop_slot(&desk).await?;
    let fault = desk.unready(&daemon).await?;
    let said = fault.to_string();
    ensure!(said.contains("slot carveout") && said.contains("does not exist") && said.contains("prepare"), "{fault}");
    ensure!(desk.ask(SLOTS).await? == "0", "a slot was made");
    ensure!(daemon.get("/livez").await?.status == 200);
    ensure!(daemon.terminate().await?.success());
    let (status, log) = desk.refused(&desk.config).await?;
    ensure!(
        status.code() == Some(1) && log.contains("slot carveout") && log.contains("does not exist"),
        "{status} {log}"
    );
    ensure!(desk.ask(SLOTS).await? == "0", "a slot was made");
    desk.sql(CREATE_SLOT).await?;
    let (status, log) = desk.refused(&desk.config).await?;
    ensure!(status.code() == Some(1) && log.contains("is ahead of"), "{status} {log}");
    Ok(())
}

/// S02: dropped and made anew under its old name, faster than anybody looks. Rows written in between are in no
/// stream: the daemon stops.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_made_anew_under_a_daemon_is_not_taken_for_the_old_one() -> Result<()> {
    let desk = Desk::open().await?;
    let daemon = moving(&desk).await?;
    until("the slot to be dropped and made", SOON, async || {
        desk.sql("ROLLBACK; SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active").await?;
        // In one message: a daemon that looks in between would say, rightly, that there is none.
        let made_anew = format!(
            "BEGIN; SELECT pg_drop_replication_slot('carveout'); \
             INSERT INTO orders SELECT n, -1, 'between' FROM generate_series(0, 4) n; COMMIT; {CREATE_SLOT}"
        );
        desk.sql(&made_anew).await
    })
    .await?;
    let fault = desk.unready(&daemon).await?;
    let said = fault.to_string();
    ensure!(said.contains("slot carveout") && said.contains("is ahead of") && said.contains("bytes"), "{fault}");
    Ok(())
}

/// S03: moved on by somebody while the daemon was down. Refused with both positions and the gap.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_somebody_advanced_is_refused_with_both_positions() -> Result<()> {
    let desk = Desk::open().await?;
    let mut daemon = moving(&desk).await?;
    desk.acknowledged(&daemon).await?;
    ensure!(daemon.terminate().await?.success());
    let before: schemas::Lsn = desk.ask("SELECT confirmed_flush_lsn FROM pg_replication_slots").await?.parse()?;
    desk.sql("INSERT INTO orders VALUES (1, -1, 'skipped')").await?;
    desk.sql("SELECT pg_replication_slot_advance('carveout', pg_current_wal_lsn())").await?;
    let after = desk.ask("SELECT confirmed_flush_lsn FROM pg_replication_slots").await?;
    let (status, log) = desk.refused(&desk.config).await?;
    ensure!(status.code() == Some(1) && log.contains(&after) && log.contains("bytes"), "{status} {log}");
    let shown = log.split_whitespace().filter_map(|word| word.parse::<schemas::Lsn>().ok());
    ensure!(shown.into_iter().any(|lsn| lsn <= before && lsn > schemas::Lsn::ZERO), "our position is not named: {log}");
    Ok(())
}

/// S03, T08: an older copy of the state directory knows less than the slot.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_copy_of_the_state_directory_is_refused() -> Result<()> {
    let desk = Desk::open().await?;
    let mut daemon = moving(&desk).await?;
    ensure!(daemon.terminate().await?.success());
    let state = state_dir(&desk.config)?;
    let copy = desk.scene.path().join("copy");
    copy_folder(&state, &copy)?;
    daemon = Daemon::start(&desk.config).await?;
    desk.sql("INSERT INTO orders VALUES (1, -1, 'later')").await?;
    desk.assert_equal(&daemon, "1", "schema").await?;
    desk.acknowledged(&daemon).await?;
    ensure!(daemon.terminate().await?.success());
    std::fs::rename(&state, desk.scene.path().join("newer"))?;
    copy_folder(&copy, &state)?;
    let (status, log) = desk.refused(&desk.config).await?;
    ensure!(status.code() == Some(1) && log.contains("is ahead of") && log.contains("state"), "{status} {log}");
    // The newer one is still good.
    std::fs::remove_dir_all(&state)?;
    std::fs::rename(desk.scene.path().join("newer"), &state)?;
    daemon = Daemon::start(&desk.config).await?;
    phase(&daemon, "1", &["streaming"]).await?;
    desk.assert_equal(&daemon, "1", "schema").await
}

/// S03, T08, S09: the state directory is gone, or another one is named. The slot is refused to the new one, in
/// whose time changes would come to nobody. With a slot made anew, what the old one copied into the target is
/// older than the slot: the move is refused or copies again; it never goes on from there.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_state_directory_never_goes_on_from_what_an_older_one_copied() -> Result<()> {
    let desk = Desk::open().await?;
    let mut daemon = moving(&desk).await?;
    ensure!(daemon.terminate().await?.success());
    std::fs::rename(state_dir(&desk.config)?, desk.scene.path().join("lost"))?;
    desk.sql("INSERT INTO orders VALUES (1, -1, 'nobody listens'); UPDATE orders SET note = 'changed' WHERE id = 6")
        .await?;
    let (status, log) = desk.refused(&desk.config).await?;
    ensure!(
        status.code() == Some(1) && log.contains("state directory") && log.contains("slot carveout"),
        "{status} {log}"
    );
    desk.sql("SELECT pg_drop_replication_slot('carveout')").await?;
    daemon = desk.work().await?;
    desk.sql("DELETE FROM orders WHERE id = 11").await?;
    desk.acknowledged(&daemon).await?;
    let said = run(&desk.config, &["move", "1", "--to", "schema", "--wait"]).await?;
    if said.code == Some(0) {
        return desk.assert_equal(&daemon, "1", "schema").await.context("the move went on over a gap");
    }
    said.assert(1, &["another state directory"])
}

/// S14: dropped while the daemon streams, dropped and made anew while it does not: refused, with the way out.
#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_was_dropped_or_made_anew_is_refused() -> Result<()> {
    let desk = Desk::open().await?;
    let mut daemon = moving(&desk).await?;
    let definition = "CREATE PUBLICATION carveout FOR TABLE orders, events";
    desk.sql("DROP PUBLICATION carveout").await?;
    desk.sql("INSERT INTO orders VALUES (1, -1, 'nobody publishes')").await?;
    let fault = desk.unready(&daemon).await?;
    ensure!(fault.to_string().contains("publication") && fault.to_string().contains("carveout"), "{fault}");
    ensure!(daemon.terminate().await?.success());
    let (status, log) = desk.refused(&desk.config).await?;
    ensure!(
        status.code() == Some(1) && log.contains("publication carveout") && log.contains("prepare"),
        "{status} {log}"
    );
    desk.sql(definition).await?;
    let (status, log) = desk.refused(&desk.config).await?;
    ensure!(status.code() == Some(1) && log.contains("dropped and made again"), "{status} {log}");
    Ok(())
}

/// S14, invariant 10: a table taken out of the publication for a moment, or one that is published in part only.
/// The move must not show itself in step while changes of the tenant have passed it by.
#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_was_changed_for_a_moment_is_noticed() -> Result<()> {
    const TABLE_LESS: [&str; 2] =
        ["ALTER PUBLICATION carveout DROP TABLE events", "ALTER PUBLICATION carveout ADD TABLE events"];
    const NO_UPDATES: [&str; 2] = [
        "ALTER PUBLICATION carveout SET (publish = 'insert')",
        "ALTER PUBLICATION carveout SET (publish = 'insert, update, delete, truncate')",
    ];
    let mut unnoticed = Vec::new();
    for (what, [change, undo]) in [("one table less", TABLE_LESS), ("no updates", NO_UPDATES)] {
        for up in [false, true] {
            let desk = Desk::open().await?;
            let mut daemon = moving(&desk).await?;
            if !up {
                ensure!(daemon.terminate().await?.success());
            }
            desk.sql(change).await?;
            desk.sql("UPDATE orders SET note = 'unheard'; UPDATE events SET what = 'unheard'").await?;
            desk.sql(undo).await?;
            if !up {
                daemon = Daemon::spawn(&desk.config, &[])?;
                if daemon.wait_ready().await.is_err() {
                    continue;
                }
            }
            if let Err(error) = noticed(&desk, &daemon).await {
                unnoticed.push(format!("{what}, while the daemon was {}: {error:#}", if up { "up" } else { "down" }));
            }
        }
    }
    ensure!(unnoticed.is_empty(), "{unnoticed:#?}");
    Ok(())
}

/// The change shows as a fault of the source or of the move, or it made no difference.
async fn noticed(desk: &Desk, daemon: &Daemon) -> Result<()> {
    let fault = until("a fault of the source or of the move", Duration::from_secs(10), async || {
        let status = daemon.status().await?;
        let faults = [&status["source"]["fault"], &status["tenants"][0]["fault"]];
        ensure!(faults.iter().any(|fault| !fault.is_null()), "the move is {}", status["tenants"][0]["phase"]);
        Ok(())
    });
    match fault.await {
        Ok(()) => Ok(()),
        Err(no_fault) => desk.assert_equal(daemon, "1", "schema").await.context(no_fault),
    }
}

/// T11: a second daemon with the same configuration, or on the same state directory, exits 4; one of its own
/// on the same slot gets nothing from it. The first goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_gets_neither_state_directory_nor_slot() -> Result<()> {
    let desk = Desk::open().await?;
    let daemon = moving(&desk).await?;
    let (status, log) = refused_beside(&desk, &desk.config, "same.yaml").await?;
    ensure!(status == Some(4) && log.contains("in use"), "{status:?} {log}");
    let other = desk.scene.write_config("other", &Configuration::default())?;
    let text = std::fs::read_to_string(&other)?;
    let same_state =
        text.replace(&state_dir(&other)?.display().to_string(), &state_dir(&desk.config)?.display().to_string());
    std::fs::write(&other, same_state)?;
    let (status, log) = desk.refused(&other).await?;
    ensure!(status.code() == Some(4) && log.contains("in use by another daemon"), "{status} {log}");
    let third = desk.scene.write_config("third", &Configuration::default())?;
    let mut beside = Daemon::spawn(&third, &[])?;
    let ended = until("the third daemon to end, or to wait", SOON, async || {
        if let Ok(status) = beside.wait_exit(Duration::ZERO).await {
            return Ok(Some(status));
        }
        let answer = beside.get("/readyz").await?;
        ensure!(answer.status == 503 && beside.log()?.contains("is active for PID"), "{answer:?}");
        Ok(None)
    })
    .await?;
    ensure!(ended.is_none_or(|status| status.code() == Some(4)), "{ended:?}");
    desk.sql("INSERT INTO orders VALUES (1, -1, 'to the first')").await?;
    desk.assert_equal(&daemon, "1", "schema").await?;
    ensure!(daemon.get("/readyz").await?.status == 200);
    daemon.assert_no_errors(&[])
}

/// Runs a daemon with the same content of the configuration under another name, so that logs do not mix.
async fn refused_beside(desk: &Desk, config: &Path, name: &str) -> Result<(Option<i32>, String)> {
    let copy = desk.scene.path().join(name);
    std::fs::copy(config, &copy)?;
    let said = run(&copy, &["run"]).await?;
    Ok((said.code, said.stderr))
}

fn state_dir(config: &Path) -> Result<PathBuf> {
    let text = std::fs::read_to_string(config)?;
    Ok(PathBuf::from(setting(&text, "state_dir").context("state_dir")?))
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().context("run cp")?;
    ensure!(copied.success(), "cp -a {} {}: {copied}", from.display(), to.display());
    Ok(())
}

/// T09: the checkpoint in the target is gone. The move stops; it never begins again at nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_somebody_deleted_stops_the_move() -> Result<()> {
    checkpoint_changed("DELETE FROM carveout.checkpoint").await
}

/// T09, S09: the checkpoint in the target is older than what the daemon knows to be there, by hand or by a
/// restore. The move stops; it never applies a second time what the rows hold already.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_was_set_back_stops_the_move() -> Result<()> {
    checkpoint_changed("UPDATE carveout.checkpoint SET lsn = '0/1'").await
}

/// Changes the checkpoint while the daemon is down. Cancelled and copied again, the tenant is equal.
async fn checkpoint_changed(change: &str) -> Result<()> {
    let desk = Desk::open().await?;
    let mut daemon = moving(&desk).await?;
    // Without a key, nothing in the target refuses a row's second coming.
    desk.sql("INSERT INTO events SELECT 1, 'once ' || n FROM generate_series(1, 10) n").await?;
    desk.assert_equal(&daemon, "1", "schema").await?;
    desk.acknowledged(&daemon).await?;
    ensure!(daemon.terminate().await?.success());
    desk.sql(change).await?;
    desk.sql("INSERT INTO events VALUES (1, 'afterwards')").await?;
    daemon = Daemon::start(&desk.config).await?;
    if settle::drained(&desk.scene, &daemon, "1").await.is_ok() {
        desk.assert_equal(&daemon, "1", "schema").await.context("the move did not stop, and")?;
        bail!("the move did not stop");
    }
    let fault = faulted(&daemon, "1").await?["fault"].clone();
    ensure!(fault["next"].as_str().is_some_and(|next| next.contains("carveout")), "{fault}");
    cli(&desk.config, &["cancel", "1"]).await?;
    desk.carve(&daemon, "1", "schema").await?;
    desk.assert_equal(&daemon, "1", "schema").await
}

/// T09: moved by hand, to the middle of what waits, or to where nothing has been yet, or back to where it was; while
/// the daemon is down and while it runs. The move stops, and copied again it is equal.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_was_moved_stops_the_move() -> Result<()> {
    let desk = Desk::open().await?;
    let mut daemon = moving(&desk).await?;
    let here = "(SELECT lsn FROM carveout.checkpoint)";
    for (round, up) in [true, false, true, false, true, false].into_iter().enumerate() {
        desk.sql("INSERT INTO events VALUES (1, 'before')").await?;
        desk.assert_equal(&daemon, "1", "schema").await?;
        let before = desk.ask(here).await?;
        desk.sql("INSERT INTO events VALUES (1, 'after')").await?;
        desk.assert_equal(&daemon, "1", "schema").await?;
        // The lane waits for the lock, so that three transactions are in its spool and not in its target.
        let locker = desk.scene.source_client().await?;
        locker.batch_execute("BEGIN; LOCK TABLE bid_1.events").await?;
        for n in 0..3 {
            desk.sql(&format!("INSERT INTO events VALUES (1, 'waiting {n}')")).await?;
        }
        desk.acknowledged(&daemon).await?;
        if !up {
            daemon.kill()?;
        }
        // The lane's transaction is open, and has the row's old state at most.
        let moved = ["lsn + 200", "'F/0'", &format!("'{before}'")][round / 2].to_owned();
        locker.batch_execute(&format!("UPDATE carveout.checkpoint SET lsn = {moved}; COMMIT")).await?;
        if !up {
            daemon = Daemon::start(&desk.config).await?;
        }
        let fault = faulted(&daemon, "1").await.with_context(|| format!("{moved}, up: {up}"))?["fault"].clone();
        ensure!(fault["code"] == "gap" && fault.to_string().contains("checkpoint"), "{moved}, up: {up}: {fault}");
        cli(&desk.config, &["move", "1"]).await?;
        phase(&daemon, "1", &["streaming"]).await?;
        desk.assert_equal(&daemon, "1", "schema").await?;
    }
    Ok(())
}

/// T09, S09: set back while the daemon is down, and still noticed after a run that could not reach the target.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_was_set_back_is_noticed_after_a_run_without_the_target() -> Result<()> {
    let scene = Scene::single(ClusterOptions::default()).await?;
    let proxy = Proxy::start(format!("127.0.0.1:{}", scene.target.port).parse()?).await?;
    let config =
        scene.write_config("carveout", &Configuration { target: Some(proxy.addr), ..Configuration::default() })?;
    let source = scene.source_client().await?;
    source.batch_execute(super::TABLES).await?;
    let desk = Desk { source, config, scene };
    let mut daemon = desk.work().await?;
    desk.carve(&daemon, "1", "database").await?;
    desk.sql("INSERT INTO events VALUES (1, 'once')").await?;
    desk.assert_equal(&daemon, "1", "database").await?;
    let target = desk.scene.target_client("bid_1").await?;
    let before: String = target.query_one("SELECT lsn::text FROM carveout.checkpoint", &[]).await?.get(0);
    desk.sql("INSERT INTO events VALUES (1, 'twice?')").await?;
    desk.assert_equal(&daemon, "1", "database").await?;
    desk.acknowledged(&daemon).await?;
    ensure!(daemon.terminate().await?.success());
    proxy.refuse(true);
    daemon = Daemon::start(&desk.config).await?;
    desk.acknowledged(&daemon).await?;
    desk.acknowledged(&daemon).await?;
    ensure!(daemon.terminate().await?.success());
    target.batch_execute(&format!("UPDATE carveout.checkpoint SET lsn = '{before}'")).await?;
    proxy.refuse(false);
    daemon = Daemon::start(&desk.config).await?;
    let fault = faulted(&daemon, "1").await?["fault"].clone();
    ensure!(fault["code"] == "gap", "{fault}");
    Ok(())
}

/// S14: a transaction that was open while a table was out of the publication has changes that nobody published, and
/// commits after the table is back. The new copy waits for it, and says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_waits_for_who_wrote_while_the_table_was_not_published() -> Result<()> {
    let steps = [
        ("ALTER PUBLICATION carveout DROP TABLE events", "ALTER PUBLICATION carveout ADD TABLE events"),
        (
            "ALTER PUBLICATION carveout SET (publish = 'truncate')",
            "ALTER PUBLICATION carveout SET (publish = 'insert, update, delete, truncate')",
        ),
    ];
    for (change, undo) in steps {
        let desk = Desk::open().await?;
        let daemon = moving(&desk).await?;
        desk.sql(change).await?;
        faulted(&daemon, "1").await?;
        let writer = desk.scene.source_client().await?;
        writer
            .batch_execute("BEGIN; INSERT INTO events VALUES (1, 'unheard'); DELETE FROM events WHERE what = 'event 6'")
            .await?;
        desk.sql(undo).await?;
        cli(&desk.config, &["move", "1"]).await?;
        until("a copy that waits", SOON, async || {
            let status = daemon.tenant("1").await?;
            ensure!(status["waiting_for"].as_str().is_some_and(|why| why.contains("were open")), "{status}");
            Ok(())
        })
        .await?;
        writer.batch_execute("COMMIT").await?;
        phase(&daemon, "1", &["streaming"]).await?;
        desk.assert_equal(&daemon, "1", "schema").await.with_context(|| change.to_owned())?;
    }
    Ok(())
}

/// T09: a table whose row in `carveout.copied` is gone is not taken for an empty one that only has to be followed.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_no_longer_said_to_be_copied_stops_the_move() -> Result<()> {
    let desk = Desk::open().await?;
    let mut daemon = moving(&desk).await?;
    ensure!(daemon.terminate().await?.success());
    desk.sql("DELETE FROM carveout.copied WHERE table_name = 'public.events'").await?;
    daemon = Daemon::start(&desk.config).await?;
    let fault = faulted(&daemon, "1").await?["fault"].clone();
    ensure!(fault["code"] == "gap" && fault.to_string().contains("carveout.copied"), "{fault}");
    cli(&desk.config, &["move", "1"]).await?;
    desk.assert_equal(&daemon, "1", "schema").await
}

/// S14, R10: a table that is called otherwise for a moment, or changes places with another, while the daemon
/// runs: what is written to it then is not lost without a word.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_renamed_for_a_moment_is_noticed() -> Result<()> {
    let there_and_back = [
        "ALTER TABLE events RENAME TO elsewhere",
        "INSERT INTO elsewhere VALUES (1, 'unheard')",
        "ALTER TABLE elsewhere RENAME TO events",
    ];
    let swapped = [
        "CREATE TABLE fresh (LIKE events); INSERT INTO fresh SELECT * FROM events; ALTER PUBLICATION carveout ADD TABLE fresh; \
         ALTER TABLE fresh REPLICA IDENTITY FULL",
        "BEGIN; ALTER TABLE events RENAME TO old; ALTER TABLE fresh RENAME TO events; COMMIT",
        "INSERT INTO events VALUES (1, 'unheard'); DELETE FROM events WHERE what = 'event 6'",
    ];
    for steps in [there_and_back, swapped] {
        let desk = Desk::open().await?;
        let daemon = moving(&desk).await?;
        for step in steps {
            desk.sql(step).await?;
        }
        noticed(&desk, &daemon).await.with_context(|| format!("{steps:?}"))?;
    }
    Ok(())
}

/// T11: a daemon on a copy of the state directory waits for the slot, and does not shut the first one out of
/// its targets meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_waits_for_the_slot_leaves_the_targets_alone() -> Result<()> {
    let desk = Desk::open().await?;
    let mut daemon = moving(&desk).await?;
    let other = desk.scene.write_config("other", &Configuration::default())?;
    let epochs = "SELECT string_agg(epoch::text, ' ') FROM carveout.checkpoint";
    desk.assert_equal(&daemon, "1", "schema").await?;
    let before = desk.ask(epochs).await?;
    // Held, it acknowledges nothing: the copy is as new as the slot until it goes on.
    signal(daemon.pid(), "STOP")?;
    copy_folder(&state_dir(&desk.config)?, &state_dir(&other)?)?;
    let beside = Daemon::spawn(&other, &[])?;
    until("a second daemon that waits for the slot", SOON, async || {
        let log = beside.log()?;
        ensure!(log.matches("is active for PID").count() > 2, "{log}");
        Ok(())
    })
    .await?;
    signal(daemon.pid(), "CONT")?;
    ensure!(desk.ask(epochs).await? == before, "it opened a lane");
    desk.sql("INSERT INTO events VALUES (1, 'to the first')").await?;
    desk.assert_equal(&daemon, "1", "schema").await?;
    daemon.assert_no_errors(&[])?;
    // The first one gone, the copy is older than the slot, or takes over: it never goes on over a gap.
    daemon.kill()?;
    desk.sql("INSERT INTO events VALUES (1, 'to whoever comes')").await?;
    let status = until("the second daemon to take over, or to refuse", SOON, async || {
        let status = beside.status().await?;
        let (state, fault) = (&status["source"]["state"], &status["source"]["fault"]);
        ensure!(*state == "streaming" || fault.to_string().contains("is ahead of"), "{status}");
        Ok(status)
    })
    .await?;
    match status["source"]["fault"].is_null() {
        true => desk.assert_equal(&beside, "1", "schema").await,
        false => Ok(()),
    }
}

/// Invariant 2: a tenant key that was edited between two runs does not route another tenant's rows.
#[tokio::test(flavor = "multi_thread")]
async fn another_tenant_key_is_refused_while_moves_are_under_way() -> Result<()> {
    let desk = Desk::open().await?;
    desk.sql(
        "ALTER TABLE orders ADD COLUMN other integer DEFAULT 1; ALTER TABLE events ADD COLUMN other integer DEFAULT 1",
    )
    .await?;
    let mut daemon = moving(&desk).await?;
    ensure!(daemon.terminate().await?.success());
    let text = std::fs::read_to_string(&desk.config)?;
    std::fs::write(&desk.config, text.replace("key: \"bid\"", "key: \"other\""))?;
    desk.sql("ALTER TABLE orders REPLICA IDENTITY FULL; INSERT INTO events VALUES (2, 'not tenant 1', 1)").await?;
    let (status, log) = desk.refused(&desk.config).await?;
    let said = ["tenant key is", "other", "tenancy.key", "cancel the move"].iter().all(|part| log.contains(part));
    ensure!(status.code() == Some(1) && said, "{status} {log}");
    std::fs::write(&desk.config, text)?;
    daemon = Daemon::start(&desk.config).await?;
    desk.assert_equal(&daemon, "1", "schema").await
}
