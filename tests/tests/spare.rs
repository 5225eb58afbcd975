//! Sessions that are kept for whoever asks the same database next, driven as a library.

use std::time::Duration;

use anyhow::{Result, ensure};
use connectors::postgres::{client, spare};
use daemon::demo::cluster::{Binaries, ClusterOptions};
use schemas::url::PgUrl;
use tests::scene::Scene;
use tests::wait::until;
use tokio::sync::Mutex;
use tokio_postgres::Client;

use crate::versions::without_18;

const SOON: Duration = Duration::from_secs(30);
/// What is kept is kept for the whole process.
static ALONE: Mutex<()> = Mutex::const_new(());

async fn pid(client: &Client) -> Result<i32> {
    Ok(client.query_one("SELECT pg_backend_pid()", &[]).await?.get(0))
}

/// All settings of a session, its name apart.
async fn settings(client: &Client) -> Result<Vec<(String, String)>> {
    let sql = "SELECT name, setting FROM pg_settings WHERE name <> 'application_name' ORDER BY name";
    Ok(client.query(sql, &[]).await?.iter().map(|row| (row.get(0), row.get(1))).collect())
}

async fn kept_by(asking: &Client, url: &PgUrl) -> Result<i64> {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND application_name LIKE 'carveout %'";
    Ok(asking.query_one(sql, &[&url.database()]).await?.get(0))
}

/// What somebody set in a kept session does not reach the next one, whatever the role's own settings are.
#[tokio::test(flavor = "multi_thread")]
async fn a_kept_session_begins_as_a_new_one_does() -> Result<()> {
    let _alone = ALONE.lock().await;
    let scene = match without_18() {
        true => Scene::single(ClusterOptions::default()).await?,
        false => Scene::between(18, Binaries::find()?.major.min(17)).await?,
    };
    let admin = scene.source_client().await?;
    admin.batch_execute("ALTER ROLE postgres SET work_mem = '5MB'").await?;
    if !without_18() {
        admin.batch_execute("ALTER ROLE postgres SET transaction_timeout = '1s'").await?;
    }
    for (cluster, database) in [(&scene.source, "shop"), (&scene.target, "postgres")] {
        let url: PgUrl = cluster.url(database).parse()?;
        let first = spare::take(&url, "first").await?;
        let (wanted, first_pid) = (settings(&first).await?, pid(&first).await?);
        first
            .batch_execute(
                "SET search_path = public; SET session_replication_role = replica; SET synchronous_commit = off; SET jit = on;
                 SET lock_timeout = 1; SET statement_timeout = 100000; SET timezone = 'Asia/Tokyo'",
            )
            .await?;
        if database == "shop" && !without_18() {
            first.batch_execute("SET transaction_timeout = '5s'").await?;
        }
        ensure!(settings(&first).await? != wanted, "nothing was set");
        first.keep();
        let second = spare::take(&url, "second").await?;
        ensure!(pid(&second).await? == first_pid, "it was not kept");
        let is = settings(&second).await?;
        let unlike: Vec<_> = is.iter().filter(|setting| !wanted.contains(setting)).collect();
        ensure!(unlike.is_empty() && is.len() == wanted.len(), "{database}: {unlike:?}");
        let name: String = second.query_one("SHOW application_name", &[]).await?.get(0);
        ensure!(name == "carveout second", "{name}");
        ensure!(is == settings(&client::connect(&url, "third").await?).await?, "a new one begins otherwise");
    }
    Ok(())
}

/// Whoever asks next never gets one that is of no use, and none stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_was_ended_or_dropped_is_replaced_and_none_is_kept_for_long() -> Result<()> {
    let _alone = ALONE.lock().await;
    let scene = Scene::single(ClusterOptions::default()).await?;
    let admin = scene.source_client().await?;
    admin.batch_execute("CREATE DATABASE kept").await?;
    let url: PgUrl = scene.source.url("kept").parse()?;

    let ended = spare::take(&url, "ended").await?;
    let ended_pid = pid(&ended).await?;
    ended.keep();
    admin.execute("SELECT pg_terminate_backend($1, 10000)", &[&ended_pid]).await?;
    let dropped = spare::take(&url, "dropped").await?;
    let dropped_pid = pid(&dropped).await?;
    ensure!(dropped_pid != ended_pid, "it was ended");
    dropped.batch_execute("BEGIN").await?;
    drop(dropped);
    let failed = spare::take(&url, "failed").await?;
    ensure!(pid(&failed).await? != dropped_pid, "it was given back by nobody");
    failed.batch_execute("BEGIN").await?;
    ensure!(failed.batch_execute("SELECT 1 / 0").await.is_err());
    let failed_pid = pid_of(&admin, "carveout failed").await?;
    failed.keep();
    let next = spare::take(&url, "next").await?;
    ensure!(pid(&next).await? != failed_pid, "its transaction had failed");
    next.keep();

    let [first, again] = [take_five(&url).await?, take_five(&url).await?];
    ensure!(again.iter().filter(|pid| first.contains(pid)).count() == 4, "{again:?} after {first:?}");
    until("none is kept", SOON, async || {
        let kept = kept_by(&admin, &url).await?;
        ensure!(kept == 0, "{kept}");
        Ok(())
    })
    .await
}

/// Of so many databases that each has its own, the first ones are closed.
#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_some_are_kept_of_all_databases_together() -> Result<()> {
    let _alone = ALONE.lock().await;
    let scene = Scene::single(ClusterOptions::default()).await?;
    let admin = scene.source_client().await?;
    for n in 0..33 {
        admin.batch_execute(&format!("CREATE DATABASE kept_{n}")).await?;
    }
    let url = |n: usize| -> Result<PgUrl> { Ok(scene.source.url(&format!("kept_{n}")).parse()?) };
    let mut taken = Vec::new();
    for n in 0..33 {
        taken.push(spare::take(&url(n)?, "one of many").await?);
    }
    let mut pids = Vec::new();
    for session in taken {
        pids.push(pid(&session).await?);
        session.keep();
    }
    let (last, first) = (spare::take(&url(32)?, "the last").await?, spare::take(&url(0)?, "the first").await?);
    ensure!(pid(&last).await? == pids[32], "it was not kept");
    ensure!(pid(&first).await? != pids[0], "it was kept");
    Ok(())
}

/// Takes five sessions at a time and gives them back; which they were.
async fn take_five(url: &PgUrl) -> Result<Vec<i32>> {
    let (mut sessions, mut pids) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        sessions.push(spare::take(url, "many").await?);
    }
    for session in sessions {
        pids.push(pid(&session).await?);
        session.keep();
    }
    Ok(pids)
}

async fn pid_of(asking: &Client, name: &str) -> Result<i32> {
    Ok(asking.query_one("SELECT pid FROM pg_stat_activity WHERE application_name = $1", &[&name]).await?.get(0))
}
