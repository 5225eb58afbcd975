//! The purge, driven as a library: the tenant's rows go from home, as far as the certificate covers them, and nothing else
//! does, whoever writes meanwhile and whatever is killed.

mod load;
mod obstacles;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use connectors::postgres::policy::{self, Owned, Path};
use connectors::postgres::purge::{self, Covered, Purge, Work};
use connectors::postgres::{catalog, client, control, snapshot};
use daemon::demo::cluster::ClusterOptions;
use rand::Rng;
use schemas::config::Config;
use schemas::url::PgUrl;
use schemas::{TableName, TenantId};
use tests::scene::{Configuration, Scene};
use tests::{seed, wait};
use tokio_postgres::Client;

const SETUP: &str = include_str!("purge/tables.sql");
const ORDERS: &str = "\"Or\"\"ders\"";
const SOON: Duration = Duration::from_secs(10);

type Counts = BTreeMap<String, u64>;

struct Rig {
    scene: Scene,
    url: PgUrl,
    owned: Vec<Owned>,
    /// Nobody's in particular.
    client: Client,
}

impl Rig {
    async fn open() -> Result<Rig> {
        let tables = [
            ("item", "{via: order_id}"),
            ("piece", "{via: item_id}"),
            ("kinds", "{reference: true}"),
            ("archive", "{exclude: true}"),
        ];
        Rig::of(SETUP, &tables).await
    }

    async fn of(setup: &str, tables: &[(&str, &str)]) -> Result<Rig> {
        let scene = Scene::single(ClusterOptions::default()).await?;
        let tables = tables.iter().map(|(table, policy)| ((*table).to_owned(), (*policy).to_owned())).collect();
        let configuration = Configuration { tables, key: Some("shop".to_owned()), ..Configuration::default() };
        let path = scene.write_config("carveout", &configuration)?;
        let config = Config::parse(&std::fs::read_to_string(path)?, &|_| None)?;
        let url = config.source.url.clone();
        control::setup(&mut client::connect(&url, "test").await?).await?;
        let client = scene.source_client().await?;
        client.batch_execute(setup).await.context("make the tables")?;
        let found = policy::resolve(catalog::tables(&client).await?, &config.tenancy);
        ensure!(found.findings.is_empty(), "{:?}", found.findings);
        Ok(Rig { scene, url, owned: found.owned, client })
    }

    fn keyed(&self) -> impl Iterator<Item = &Owned> {
        self.owned.iter().filter(|owned| !matches!(owned.path, Path::Reference))
    }

    /// What a certificate of now covers.
    async fn covered(&self, tenant: &str) -> Result<Covered> {
        let held = snapshot::hold(&self.url, "test").await?;
        Ok(Covered::under(&held.client, &held.snapshot, &self.owned, &TenantId(tenant.to_owned())).await?)
    }

    fn work(&self, tenant: &str, covered: &Covered, rows: u32) -> Work {
        let (tables, covered) = (self.owned.clone(), covered.clone());
        Work { tables, tenant: TenantId(tenant.to_owned()), covered, rows }
    }

    async fn purge(&self, role: &str, work: Work) -> Result<Purge> {
        let url = PgUrl { user: Some(role.to_owned()), ..self.url.clone() };
        let settings = [("carveout.lane".to_owned(), "m1".to_owned())];
        Ok(Purge::open(client::connect(&url, "purge").await?, work, &settings).await?)
    }

    /// From the beginning to the end; rows by table.
    async fn purge_all(&self, role: &str, work: Work) -> Result<Counts> {
        let mut purge = self.purge(role, work).await?;
        ensure!(purge.is_silent() == (role == "postgres"), "as {role}");
        let mut counts = Counts::new();
        while let Some(batch) = purge.next().await? {
            *counts.entry(batch.table.name).or_default() += batch.rows;
        }
        counts.retain(|_, rows| *rows > 0);
        Ok(counts)
    }

    /// The tenant's rows, by the test's own count.
    async fn rows(&self, tenant: &str) -> Result<Counts> {
        let mut counts = Counts::new();
        for owned in self.keyed() {
            let filter = owned.filter(&TenantId(tenant.to_owned()));
            let sql = format!("SELECT count(*) FROM {} WHERE {filter}", name(&owned.table.name));
            counts
                .insert(owned.table.name.name.clone(), self.client.query_one(&sql, &[]).await?.get::<_, i64>(0) as u64);
        }
        counts.retain(|_, rows| *rows > 0);
        Ok(counts)
    }

    async fn residue(&self, tenant: &str) -> Result<Counts> {
        let found = purge::residue(&self.client, &self.owned, &TenantId(tenant.to_owned())).await?;
        Ok(found.into_iter().map(|(table, rows)| (table.name, rows)).collect())
    }

    /// The rows of everybody else and of every other table, in one number each.
    async fn others(&self, tenant: &str) -> Result<Vec<String>> {
        let own = self.keyed().map(|owned| (name(&owned.table.name), owned.filter(&TenantId(tenant.to_owned()))));
        let mut all: Vec<(String, String)> = own.collect();
        all.extend(["kinds", "archive"].map(|table| (table.to_owned(), "false".to_owned())));
        let mut sums = Vec::new();
        for (table, filter) in all {
            let sql = format!(
                "SELECT '{table} ' || count(*) || ' ' || coalesce(sum(hashtextextended(t::text, 0)), 0)
                   FROM {table} t WHERE ({filter}) IS NOT TRUE"
            );
            sums.push(self.client.query_one(&sql, &[]).await.context(sql)?.get(0));
        }
        Ok(sums)
    }

    /// Has the server look at every row again.
    async fn assert_foreign_keys(&self) -> Result<()> {
        let again = "UPDATE pg_constraint SET convalidated = false WHERE contype = 'f';
            DO $$ DECLARE k record; BEGIN
              FOR k IN SELECT conrelid::regclass AS t, conname FROM pg_constraint WHERE contype = 'f' AND conparentid = 0 LOOP
                EXECUTE format('ALTER TABLE %s VALIDATE CONSTRAINT %I', k.t, k.conname);
              END LOOP; END $$";
        self.client.batch_execute(again).await.context("a row refers to nothing")
    }

    async fn ids(&self, table: &str, filter: &str) -> Result<Vec<i64>> {
        let sql = format!("SELECT id FROM {table} WHERE {filter} ORDER BY id");
        Ok(self.client.query(&sql, &[]).await?.iter().map(|row| row.get(0)).collect())
    }
}

fn name(table: &TableName) -> String {
    format!("\"{}\".\"{}\"", table.schema, table.name.replace('"', "\"\""))
}

/// Via over two steps, composite keys, rows that refer to rows of their table, circles of two tables, partitions with
/// partitions, no primary key; with and without the right to silence triggers.
#[tokio::test(flavor = "multi_thread")]
async fn the_tenants_rows_go_and_nobody_elses() -> Result<()> {
    let rig = Rig::open().await?;
    for (tenant, role) in [("2", "postgres"), ("3", "app")] {
        let (others, wanted) = (rig.others(tenant).await?, rig.rows(tenant).await?);
        ensure!(wanted.len() == 10 && wanted["link"] == 1000, "{wanted:?}");
        let covered = rig.covered(tenant).await?;
        let deleted = rig.purge_all(role, rig.work(tenant, &covered, 100)).await?;
        ensure!(deleted == wanted, "as {role}: {deleted:?} instead of {wanted:?}");
        ensure!(rig.residue(tenant).await?.is_empty() && rig.rows(tenant).await?.is_empty(), "something is left");
        ensure!(rig.others(tenant).await? == others, "other rows are not what they were");
        rig.assert_foreign_keys().await?;
    }
    Ok(())
}

/// Without what passes the fence nothing goes.
#[tokio::test(flavor = "multi_thread")]
async fn the_fence_refuses_a_purge_of_somebody_else() -> Result<()> {
    let rig = Rig::open().await?;
    let work = rig.work("2", &rig.covered("2").await?, 100);
    let mut purge = Purge::open(client::connect(&rig.url, "purge").await?, work, &[]).await?;
    let refused = loop {
        match purge.next().await {
            Ok(Some(_)) => {}
            Ok(None) => anyhow::bail!("it was not refused"),
            Err(error) => break error,
        }
    };
    ensure!(refused.sqlstate() == Some("TM001"), "{refused}");
    ensure!(rig.rows("2").await?["event"] == 300, "rows went");
    Ok(())
}

/// What came, changed or changed hands since the snapshot stays, with all that it refers to and all whose tenant it says;
/// whatever was locked or frozen meanwhile goes. A subtransaction of a transaction that ran at the snapshot is no snapshot's.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_came_or_changed_since_stay() -> Result<()> {
    let rig = Rig::open().await?;
    let open = rig.scene.source_client().await?;
    open.batch_execute("BEGIN; INSERT INTO archive VALUES (1, 'x'); SAVEPOINT s; INSERT INTO log VALUES (2, 'sub')")
        .await?;
    rig.client.batch_execute("UPDATE log SET line = line || '!' WHERE shop = 2 AND line LIKE '%4'").await?;
    let held = snapshot::hold(&rig.url, "test").await?;
    let tenant = TenantId("2".to_owned());
    let covered = Covered::under(&held.client, &held.snapshot, &rig.owned, &tenant).await?;
    drop(held);
    ensure!(covered.shown.len() == 1, "{covered:?}");
    open.batch_execute("COMMIT").await?;
    for sql in [
        "UPDATE customer SET v = 1 WHERE id = 34".to_owned(),
        "INSERT INTO item VALUES (100001, 100)".to_owned(),
        format!("UPDATE {ORDERS} SET v = 1 WHERE id = 103"),
        format!("UPDATE {ORDERS} SET shop = 3, customer = 2 WHERE id = 106"),
        format!("UPDATE {ORDERS} SET shop = 2, customer = 109 WHERE id = 101"),
        "UPDATE event SET shop = shop WHERE id = 4; INSERT INTO note VALUES (2, 100001, 7, 7)".to_owned(),
        "INSERT INTO member VALUES (2, 100001, 1)".to_owned(),
        "UPDATE link SET shop = shop WHERE id = 1501".to_owned(),
        "INSERT INTO log VALUES (2, 'late')".to_owned(),
        "BEGIN; SELECT FROM log FOR SHARE".to_owned(),
    ] {
        rig.client.batch_execute(&sql).await.context(sql)?;
    }
    // Two that lock the same rows.
    open.batch_execute("BEGIN; SELECT FROM log FOR KEY SHARE; COMMIT").await?;
    rig.client.batch_execute("COMMIT").await?;
    rig.client.batch_execute("VACUUM FREEZE").await?;
    let others = rig.others("2").await?;
    // What the snapshot's xmin alone says is less.
    let certain = Covered { before: covered.before, shown: Vec::new() };
    rig.purge_all("postgres", rig.work("2", &certain, 100)).await?;
    let wanted = "SELECT count(*) FROM log WHERE shop = 2 AND line LIKE '%!'";
    let shown: i64 = rig.client.query_one(wanted, &[]).await?.get(0);
    ensure!(shown > 5 && rig.residue("2").await?["log"] == shown as u64 + 2, "{shown}");
    rig.purge_all("postgres", rig.work("2", &covered, 100)).await?;

    let of_order = "order_id IN (SELECT id FROM \"Or\"\"ders\" WHERE shop = 2)";
    let stay = [
        ("customer", "shop = 2", vec![4, 10, 13, 19, 34, 40, 43, 49, 70, 73, 79, 100, 103, 109]),
        (ORDERS, "shop = 2", vec![100, 101, 103]),
        ("item", of_order, vec![100, 101, 103, 1001, 1003, 100_001]),
        ("event", "shop = 2", vec![4, 7]),
        ("note", "shop = 2", vec![100_001]),
        ("member", "shop = 2", vec![1, 100_001]),
        ("team", "shop = 2", vec![1]),
        ("link", "shop = 2", (1501..3000).step_by(3).collect()),
    ];
    for (table, filter, wanted) in stay {
        let left = rig.ids(table, filter).await?;
        ensure!(left == wanted, "{table}: {left:?} instead of {wanted:?}");
    }
    let of_item = format!("item_id IN (SELECT id FROM item WHERE {of_order})");
    ensure!(rig.ids("piece", &of_item).await? == [101, 103, 1001, 1003, 1901, 1903, 2801, 2803], "pieces");
    let lines = "SELECT string_agg(line, ' ' ORDER BY line) FROM log WHERE shop = 2";
    ensure!(rig.client.query_one(lines, &[]).await?.get::<_, String>(0) == "late sub", "log");
    let residue = rig.residue("2").await?;
    ensure!(residue == rig.rows("2").await? && residue.values().sum::<u64>() == 539, "{residue:?}");
    ensure!(rig.others("2").await? == others, "other rows are not what they were");
    rig.assert_foreign_keys().await
}

/// Whoever gets round the fence while rows are deleted finds the row that he refers to, or is refused.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_refers_to_a_row_that_went() -> Result<()> {
    let rig = Rig::open().await?;
    let covered = rig.covered("2").await?;
    let mut tasks = Vec::new();
    let mut rng = seed::rng("purge");
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    for n in 0..4_i64 {
        let (client, done) = (rig.scene.source_client().await?, std::sync::Arc::clone(&done));
        let picks: Vec<i64> = (0..1500).map(|_| rng.random_range(0..3000)).collect();
        tasks.push(tokio::spawn(async move {
            let (mut in_time, mut late) = (0, 0);
            for (turn, pick) in picks.into_iter().enumerate() {
                if done.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
                let id = 200_000 + n * 10_000 + turn as i64;
                let sql = match turn % 4 {
                    0 => format!("INSERT INTO item VALUES ({id}, {})", pick % 900 + 1),
                    1 => format!("INSERT INTO piece VALUES ({id}, {})", pick % 1800 + 1),
                    2 => format!("INSERT INTO link VALUES (2, {id}, {})", pick + 1),
                    _ => format!("INSERT INTO note SELECT 2, {id}, {0}, {0} % 20", pick % 900 + 1),
                };
                match client.batch_execute(&sql).await {
                    Ok(()) => in_time += 1,
                    Err(error) if error.code().is_some_and(|code| code.code() == "23503") => late += 1,
                    Err(error) => return Err(error).context(sql),
                }
            }
            anyhow::Ok((in_time, late))
        }));
    }
    let deleted: u64 = rig.purge_all("postgres", rig.work("2", &covered, 20)).await?.values().sum();
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    let (mut in_time, mut late) = (0, 0);
    for task in tasks {
        let (some, others) = task.await??;
        in_time += some;
        late += others;
    }
    println!("{deleted} deleted, {in_time} came in time, {late} too late");
    ensure!(deleted > 1000 && in_time > 50 && late > 20, "too little happened");
    rig.assert_foreign_keys().await
}

/// Killed between batches and within one, and begun again as often: it ends the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_purge_goes_on() -> Result<()> {
    let rig = Rig::open().await?;
    let (others, mut left) = (rig.others("2").await?, rig.rows("2").await?.values().sum::<u64>());
    let covered = rig.covered("2").await?;
    let blocker = rig.scene.source_client().await?;
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'carveout purge'";
    let (mut between, mut within) = (0_u32, 0_u32);
    let mut rng = seed::rng("purge");
    loop {
        let mut purge = rig.purge("postgres", rig.work("2", &covered, 25)).await?;
        let mut ended = false;
        for _ in 0..rng.random_range(20..80) {
            match purge.next().await? {
                Some(batch) => left -= batch.rows,
                None => ended = true,
            }
        }
        if ended {
            break;
        }
        if (between + within) % 2 == 0 {
            // Rows are locked and looked at, and cannot be deleted.
            let tables: Vec<String> = rig.keyed().map(|owned| name(&owned.table.name)).collect();
            blocker.batch_execute(&format!("BEGIN; LOCK TABLE {} IN SHARE MODE", tables.join(", "))).await?;
            let waiting = tokio::spawn(async move {
                let mut rows = 0;
                loop {
                    match purge.next().await {
                        // Of the batch before.
                        Ok(Some(batch)) => rows += batch.rows,
                        Ok(None) => return (rows, None),
                        Err(error) => return (rows, Some(error)),
                    }
                }
            });
            let waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'carveout purge' AND wait_event_type = 'Lock'
                            AND query LIKE 'WITH d0 AS (DELETE%'";
            wait::until("a batch that waits", SOON, async || {
                ensure!(waiting.is_finished() || rig.client.query_one(waits, &[]).await?.get::<_, i64>(0) == 1, "none");
                Ok(())
            })
            .await?;
            rig.client.execute(kill, &[]).await?;
            let (rows, error) = waiting.await?;
            left -= rows;
            blocker.batch_execute("ROLLBACK").await?;
            ensure!(error.as_ref().is_none_or(|error| error.is_transient()), "{error:?}");
            within += u32::from(error.is_some());
        } else {
            rig.client.execute(kill, &[]).await?;
            let error = loop {
                match purge.next().await {
                    Ok(batch) => left -= batch.context("it was killed")?.rows,
                    Err(error) => break error,
                }
            };
            ensure!(error.is_transient(), "{error}");
            between += 1;
        }
    }
    println!("killed {between} times between and {within} times within");
    ensure!(between + within > 2 && within > 0 && left == 0, "{left} rows were not reported");
    ensure!(rig.residue("2").await?.is_empty(), "something is left");
    ensure!(rig.others("2").await? == others, "other rows are not what they were");
    rig.assert_foreign_keys().await
}

/// What somebody holds is not waited for, and goes in a later call; a locked table is an error that passes.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_waited_for() -> Result<()> {
    let rig = Rig::open().await?;
    let covered = rig.covered("2").await?;
    let other = rig.scene.source_client().await?;
    other.batch_execute("BEGIN; SELECT FROM log WHERE line IN ('l 4', 'l 5', 'l 7') FOR KEY SHARE").await?;
    let table = rig.scene.source_client().await?;
    table.batch_execute("BEGIN; LOCK TABLE log IN SHARE MODE").await?;
    let mut purge = rig.purge("postgres", rig.work("2", &covered, 1000)).await?;
    let mut refused = 0;
    loop {
        match purge.next().await {
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(error) => {
                ensure!(error.sqlstate() == Some("55P03") && error.is_transient(), "{error}");
                refused += 1;
                table.batch_execute("ROLLBACK").await?;
            }
        }
    }
    ensure!(refused == 1, "refused {refused} times");
    ensure!(rig.residue("2").await? == Counts::from([("log".to_owned(), 2)]), "{:?}", rig.residue("2").await?);
    other.batch_execute("ROLLBACK").await?;
    rig.purge_all("postgres", rig.work("2", &covered, 1000)).await?;
    ensure!(rig.residue("2").await?.is_empty(), "something is left");
    Ok(())
}
