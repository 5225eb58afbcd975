//! The fence, driven as a library against writers of every kind, with what the log says as the judge: no row of the
//! tenant is committed while its writers are held.

mod judge;
mod writers;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use connectors::postgres::fence::{self, End, Fence};
use connectors::postgres::policy::{self, Owned};
use connectors::postgres::{catalog, client, control};
use daemon::demo::cluster::{ClusterOptions, StopMode};
use rand::Rng;
use schemas::config::Config;
use schemas::url::PgUrl;
use schemas::{MoveId, TenantId};
use tests::scene::{Configuration, Scene};
use tests::seed;
use tests::wait::until;
use tokio::task::JoinSet;
use tokio_postgres::Client;

use judge::{Judge, Verdict};
use writers::{Kind, Tally, Writers};

const SETUP: &str = include_str!("fence/tables.sql");
const TENANT: &str = "7";

/// What of a fence is in a database beside its row.
const LEFT: &str = "SELECT (SELECT count(*) FROM pg_trigger WHERE tgfoid IN (SELECT oid FROM pg_proc WHERE pronamespace = 'carveout'::regnamespace))
    + (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'carveout%')
    + (SELECT count(*) FROM pg_proc WHERE pronamespace = 'carveout'::regnamespace)";

const PATIENCE: Duration = Duration::from_secs(20);

struct Rig {
    scene: Scene,
    url: PgUrl,
    owned: Vec<Owned>,
    fence: Fence,
    client: Client,
}

impl Rig {
    async fn open() -> Result<Rig> {
        let settings = vec![("max_prepared_transactions".to_owned(), "60".to_owned())];
        let scene = Scene::single(ClusterOptions { settings, ..ClusterOptions::default() }).await?;
        scene.source_client().await?.batch_execute(SETUP).await.context("make the tables")?;
        let tables = vec![
            ("item".to_owned(), "{via: order_id}".to_owned()),
            ("piece".to_owned(), "{via: item_id}".to_owned()),
            ("kinds".to_owned(), "{reference: true}".to_owned()),
        ];
        let configuration = Configuration { tables, key: Some("Tenant".to_owned()), ..Configuration::default() };
        let path = scene.write_config("carveout", &configuration)?;
        let config = Config::parse(&std::fs::read_to_string(path)?, &|_| None)?;
        let url = config.source.url.clone();
        let mut client = client::connect(&url, "test").await?;
        control::setup(&mut client).await?;
        let found = policy::resolve(catalog::tables(&client).await?, &config.tenancy);
        ensure!(found.findings.is_empty(), "{:?}", found.findings);
        let fence = Fence {
            id: MoveId(1),
            owner: "test".to_owned(),
            tenant: TenantId(TENANT.to_owned()),
            end: End::Source,
            lives: End::Source,
        };
        Ok(Rig { scene, url, owned: found.owned, fence, client })
    }
}

/// What came of holding the writers again and again.
struct Played {
    tally: Tally,
    verdict: Verdict,
    /// How long the locks were waited for, in order.
    waited: Vec<Duration>,
    released: u32,
    closed: u32,
    /// The server had ended it before.
    ended: u32,
}

impl Rig {
    /// Holds the writers so often, each time for a while, and lets go in every way there is; `spoil` is run once the fence
    /// stands.
    async fn play(&mut self, writers: usize, cycles: u32, spoil: &str) -> Result<Played> {
        let mut rng = seed::rng("fence");
        let judge = Judge::new(&self.scene).await?;
        let writers = Writers::start(&self.scene, writers, &mut rng).await?;
        fence::install(&mut self.client, &self.fence, &self.owned, PATIENCE).await?;
        self.client.batch_execute(spoil).await.context("spoil the fence")?;
        let (mut released, mut closed, mut ended, mut waited) = (0, 0, 0, Vec::new());
        for _ in 0..cycles {
            let deadline = Duration::from_millis(rng.random_range(40..200));
            let began = Instant::now();
            let held = self.fence.hold(&self.url, deadline, PATIENCE).await?;
            waited.push(began.elapsed());
            match held.wanting(&self.owned).await {
                Ok(wanting) => ensure!(wanting.is_empty(), "a trigger is missing"),
                // The deadline came first.
                Err(_) if !held.is_held().await => {
                    ended += 1;
                    continue;
                }
                Err(error) => return Err(error.into()),
            }
            held.barrier(&self.client).await?;
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..120))).await;
            // Behind it whatever was written meanwhile; it counts where the lock was still there afterwards.
            held.barrier(&self.client).await?;
            let counts = held.is_held().await;
            judge.mark(&self.client, counts).await?;
            ended += u32::from(!counts);
            if counts && rng.random_bool(0.5) {
                held.release().await?;
                released += 1;
            } else {
                drop(held);
                closed += 1;
            }
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..20))).await;
        }
        let tally = writers.stop().await?;
        waited.sort_unstable();
        Ok(Played { tally, verdict: judge.verdict(&self.scene).await?, waited, released, closed, ended })
    }
}

/// C01, invariants 7 and 8: autocommit, long, REPEATABLE READ, SERIALIZABLE, savepoints, replica role, prepared, children
/// of rows that change hands. What is held is held; whoever ends it (release, a socket that closes, the server after
/// the deadline), the writers go on; nothing that was acknowledged is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_row_of_the_tenant_is_committed_while_its_writers_are_held() -> Result<()> {
    hold(16, 150).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "campaign: fifty writers"]
async fn no_row_of_fifty_writers_is_committed_while_they_are_held() -> Result<()> {
    hold(50, 300).await
}

async fn hold(writers: usize, cycles: u32) -> Result<()> {
    let mut rig = Rig::open().await?;
    let Played { tally, verdict, waited, released, closed, ended } = rig.play(writers, cycles, "").await?;
    let Tally { acknowledged, refused, by_kind } = tally;
    println!(
        "{writers} writers, {cycles} times held ({released} released, {closed} closed, {ended} of them by the server before), waited {:?} at the \
         median and {:?} at most; {} acknowledged {by_kind:?}, {refused} refused; {verdict:?}",
        waited[waited.len() / 2],
        waited[waited.len() - 1],
        acknowledged.len(),
    );
    ensure!(verdict.late.is_empty(), "rows behind the barrier: {:?}", verdict.late);
    ensure!(refused == 0, "the fence was open, and {refused} were refused");
    ensure!(verdict.of_tenant > 2_000 && verdict.judged > cycles as usize / 2 && ended > 5, "too little happened");
    ensure!(Kind::ALL.iter().all(|kind| by_kind.get(kind).is_some_and(|count| *count > 5)), "{by_kind:?}");
    writers::assert_there(&rig.scene, &acknowledged).await?;
    fence::remove(&mut rig.client, &rig.fence, PATIENCE).await?;
    ensure!(rig.client.query_one(LEFT, &[]).await?.get::<_, i64>(0) == 0, "something of the fence stayed");
    Ok(())
}

/// The judge sees it where the lock is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_fence_without_its_lock_is_found_out() -> Result<()> {
    let spoil = "DO $$ DECLARE f record; BEGIN
        FOR f IN SELECT oid::regprocedure AS name, prosrc FROM pg_proc WHERE pronamespace = 'carveout'::regnamespace LOOP
          EXECUTE format('CREATE OR REPLACE FUNCTION %s RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS %L', f.name,
                         regexp_replace(f.prosrc, 'PERFORM [^;]*;', ''));
        END LOOP; END $$";
    let verdict = Rig::open().await?.play(16, 30, spoil).await?.verdict;
    println!("{} rows behind {} barriers", verdict.late.len(), verdict.judged);
    ensure!(!verdict.late.is_empty(), "nothing was noticed");
    Ok(())
}

/// Whoever has changed a fence's functions finds them as they were, and where nobody has, no session has to compile them anew.
#[tokio::test(flavor = "multi_thread")]
async fn functions_are_made_anew_only_where_they_are_others() -> Result<()> {
    let mut rig = Rig::open().await?;
    let made = "SELECT string_agg(format('%s %s %s', proname, prosrc, prosecdef), ' ' ORDER BY proname),
                       string_agg(oid || ' ' || xmin, ' ' ORDER BY proname)
                  FROM pg_proc WHERE pronamespace = 'carveout'::regnamespace";
    let mut seen: Option<(String, String)> = None;
    for spoil in [
        "CREATE ROLE \"Role's own\" SUPERUSER; SET SESSION AUTHORIZATION \"Role's own\"",
        "SELECT",
        "DO $$ DECLARE f record; BEGIN
           FOR f IN SELECT oid::regprocedure AS name, prosrc FROM pg_proc WHERE pronamespace = 'carveout'::regnamespace LOOP
             EXECUTE format('CREATE OR REPLACE FUNCTION %s RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS %L', f.name, 'BEGIN RETURN NULL; END');
           END LOOP; END $$",
        "DO $$ DECLARE f record; BEGIN
           FOR f IN SELECT oid::regprocedure AS name FROM pg_proc WHERE pronamespace = 'carveout'::regnamespace LOOP
             EXECUTE format('ALTER FUNCTION %s SECURITY INVOKER', f.name);
           END LOOP; END $$",
    ] {
        rig.client.batch_execute(spoil).await?;
        fence::install(&mut rig.client, &rig.fence, &rig.owned, PATIENCE).await?;
        let row = rig.client.query_one(made, &[]).await?;
        let (what, versions): (String, String) = (row.get(0), row.get(1));
        if let Some((before, known)) = &seen {
            ensure!(what == *before, "{spoil}: {what}");
            ensure!((versions == *known) == (spoil == "SELECT"), "{spoil}: {versions}, and before {known}");
        }
        seen = Some((what, versions));
    }
    Ok(())
}

/// Its triggers are made without waiting for the disk, and whoever builds upon it finds them there after a crash.
#[tokio::test(flavor = "multi_thread")]
async fn a_fence_that_stands_is_on_disk() -> Result<()> {
    let mut rig = Rig::open().await?;
    rig.client.batch_execute("ALTER SYSTEM SET wal_writer_delay = '10s'").await?;
    rig.client.batch_execute("SELECT pg_reload_conf()").await?;
    fence::install(&mut rig.client, &rig.fence, &rig.owned, PATIENCE).await?;
    rig.scene.source.stop(StopMode::Immediate)?;
    rig.scene.source.start_again()?;
    let client = rig.scene.source_client().await?;
    let wanting = rig.fence.wanting(&client, &rig.owned).await?;
    ensure!(wanting.is_empty(), "{wanting:?} have none after a crash");
    Ok(())
}

/// There is never a moment without an open transaction of the tenant: its fence comes all the same, it is held, and it goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_whose_transactions_overlap_for_ever_are_held_too() -> Result<()> {
    const LONG: &str = "BEGIN; INSERT INTO events VALUES (7, nextval('ids'), 0);
                        SELECT pg_sleep(0.12 + random() * 0.06); COMMIT";
    let mut rig = Rig::open().await?;
    let mut writers = JoinSet::new();
    for _ in 0..8 {
        let client = rig.scene.source_client().await?;
        writers.spawn(async move {
            loop {
                if let Err(error) = client.batch_execute(LONG).await {
                    return anyhow::Error::from(error);
                }
            }
        });
    }
    let watcher = rig.scene.source_client().await?;
    // Those who have been held go on at once: until they do not end at once any more.
    let overlap = async || {
        let open = "SELECT count(*), coalesce(max(clock_timestamp() - xact_start) - min(clock_timestamp() - xact_start) > '80ms', false)
                      FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND state = 'active' AND pid <> pg_backend_pid()";
        until("transactions that overlap", PATIENCE, async || {
            let row = watcher.query_one(open, &[]).await?;
            ensure!(row.get::<_, i64>(0) == 8 && row.get(1), "they begin together: {row:?}");
            Ok(())
        })
        .await
    };
    overlap().await?;
    let began = Instant::now();
    fence::install(&mut rig.client, &rig.fence, &rig.owned, PATIENCE).await?;
    let installed = began.elapsed();
    overlap().await?;
    let began = Instant::now();
    rig.fence.hold(&rig.url, PATIENCE, PATIENCE).await?.release().await?;
    let held = began.elapsed();
    overlap().await?;
    let began = Instant::now();
    fence::remove(&mut rig.client, &rig.fence, PATIENCE).await?;
    println!("installed in {installed:?}, held in {held:?}, removed in {:?}", began.elapsed());
    match writers.try_join_next() {
        Some(error) => Err(error?.context("a writer")),
        None => Ok(()),
    }
}

/// Whoever stays in a transaction is named; others queue behind the attempts no longer because of that.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_stays_in_the_way_of_a_fence_is_named_and_stops_nobody_else() -> Result<()> {
    let mut rig = Rig::open().await?;
    for (read, stuck) in [("item", "public.item"), ("events_0", "public.events")] {
        fence::install(&mut rig.client, &rig.fence, &rig.owned, PATIENCE).await?;
        let reader = rig.scene.source_client().await?;
        reader.batch_execute(&format!("BEGIN; SELECT count(*) FROM {read}")).await?;
        let pid: i32 = reader.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
        let watcher = rig.scene.source_client().await?;
        let patience = Duration::from_secs(5);
        let removed = fence::remove(&mut rig.client, &rig.fence, patience);
        let watched = async {
            let (began, mut seen) = (Instant::now(), BTreeSet::new());
            while began.elapsed() < patience {
                let attempts = "SELECT substring(query FROM 'lock_timeout = ([0-9]+)') FROM pg_stat_activity
                                 WHERE query LIKE 'BEGIN; SET LOCAL lock_timeout = %' AND pid <> pg_backend_pid()";
                let now = watcher.query(attempts, &[]).await?;
                seen.extend(now.iter().filter_map(|row| row.get::<_, String>(0).parse::<u32>().ok()));
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok::<_, anyhow::Error>(seen)
        };
        let (removed, seen) = tokio::join!(removed, watched);
        let seen = seen?;
        // It is not known to stay before some looks.
        ensure!(seen.first() == Some(&50) && seen.last().is_some_and(|most| *most < 100), "it waited for {seen:?} ms");
        let said = removed.err().context("it was removed")?.to_string();
        let stays = format!("{stuck}: a transaction that has used it stays open (pid: {pid})");
        ensure!(said.contains(&stays), "{said}");
        reader.batch_execute("COMMIT").await?;
        fence::remove(&mut rig.client, &rig.fence, PATIENCE).await?;
    }
    Ok(())
}

/// Who was stopped in the middle may have gone on: what it made is taken away with the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn triggers_that_come_while_a_fence_goes_go_with_it() -> Result<()> {
    let mut rig = Rig::open().await?;
    fence::install(&mut rig.client, &rig.fence, &rig.owned, PATIENCE).await?;
    let cut_off = rig.scene.source_client().await?;
    let late = "BEGIN; SELECT pg_advisory_xact_lock(77779, lock_key) FROM carveout.fence;
                CREATE TRIGGER late AFTER INSERT ON kinds FOR EACH ROW EXECUTE FUNCTION carveout.fence_1()";
    cut_off.batch_execute(late).await?;
    let (removed, committed) = tokio::join!(fence::remove(&mut rig.client, &rig.fence, PATIENCE), async {
        until("who takes it away", PATIENCE, async || {
            let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 77779 AND NOT granted";
            ensure!(cut_off.query_one(waits, &[]).await?.get::<_, i64>(0) == 1, "it does not wait");
            Ok(())
        })
        .await?;
        cut_off.batch_execute("COMMIT").await.context("commit")
    });
    removed?;
    committed?;
    ensure!(rig.client.query_one(LEFT, &[]).await?.get::<_, i64>(0) == 0, "something of the fence stayed");
    Ok(())
}
