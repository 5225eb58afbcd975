//! Sequences of both sides of a move, driven as a library: whoever draws, in whatever way, no value comes twice.

mod draws;
mod found;
mod judge;
mod room;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use connectors::postgres::client;
use connectors::postgres::sequences::{self, Block, Pair};
use daemon::demo::cluster::{ClusterOptions, StopMode};
use rand::Rng;
use rand::rngs::StdRng;
use schemas::TableName;
use schemas::url::PgUrl;
use tests::scene::{DATABASE, Scene};
use tests::seed;
use tokio_postgres::Client;

use draws::{Budget, Drawers, GUEST, SEQUENCES};
use judge::{Draw, Verdict};

const SOON: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(20);
/// What the guest is given at a time, and how much it draws then before it waits. Its three sessions may draw 150 more from
/// caches of the block before, have 150 in theirs, and take 75 too many: enough to be refilled, and never too much.
const SIZE: i64 = 2_000;
const BUDGET: i64 = 1_760;
const REFILLS: u32 = 8;
const RESERVED: usize = 60;

/// A home and a guest with the same tables.
struct Rig {
    scene: Scene,
    home: PgUrl,
    guest: PgUrl,
    pairs: Vec<Pair>,
}

impl Rig {
    async fn open() -> Result<Rig> {
        let scene = Scene::single(ClusterOptions::default()).await?;
        let home: PgUrl = scene.source.url(DATABASE).parse()?;
        let guest = home.with_dbname(GUEST);
        let client = scene.source_client().await?;
        client.batch_execute(draws::TABLES).await.context("make the home's tables")?;
        client.batch_execute(&format!("CREATE DATABASE {GUEST}")).await?;
        let other = scene.target_client(GUEST).await?;
        other.batch_execute(draws::TABLES).await.context("make the guest's tables")?;
        let tables = vec![TableName::new("public", "drawn")];
        let both = vec![(tables[0].clone(), tables[0].clone())];
        let (ours, theirs) =
            (sequences::of_tables(&client, &tables).await?, sequences::of_tables(&other, &tables).await?);
        let pairs = sequences::pair(&ours, &theirs, &both)?;
        let names: Vec<&str> = pairs.iter().map(|pair| pair.home.name.name.as_str()).collect();
        ensure!(names == SEQUENCES && pairs.iter().all(|pair| !pair.shared), "{pairs:?}");
        Ok(Rig { scene, home, guest, pairs })
    }
}

/// How a block comes about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Reserved,
    /// The same without a lock.
    Unlocked,
}

impl Way {
    async fn block(self, home: &mut Client, pair: &Pair, size: i64) -> Result<Block> {
        let (name, step) = (&pair.home.name.name, pair.home.increment);
        match self {
            Way::Reserved => Ok(sequences::reserve(home, &pair.home, size, PATIENCE).await?),
            Way::Unlocked => {
                let row = home.query_one(&format!("SELECT last_value, is_called FROM public.{name}"), &[]).await?;
                let first = row.get::<_, i64>(0) + if row.get(1) { step } else { 0 };
                let last = first + step * (size - 1);
                home.batch_execute(&format!("SELECT setval('public.{name}', {last})")).await?;
                Ok(Block { first, last })
            }
        }
    }
}

/// What came of drawing on both sides.
struct Played {
    verdict: Verdict,
    home_draws: usize,
    guest_draws: usize,
    errors: usize,
    refills: Vec<u32>,
    beyond: u32,
    quiet: Vec<Duration>,
    loaded: Vec<Duration>,
}

/// Blocks, and how long each took.
#[derive(Default)]
struct Reserved {
    blocks: Vec<(usize, Block)>,
    took: Vec<Duration>,
}

impl Reserved {
    async fn take(&mut self, home: &mut Client, n: usize, pair: &Pair, size: i64, way: Way) -> Result<Block> {
        let began = Instant::now();
        let block = way.block(home, pair, size).await?;
        self.took.push(began.elapsed());
        self.blocks.push((n, block));
        Ok(block)
    }
}

impl Rig {
    /// Both sides draw until the guest has been refilled so often; `rival` blocks are reserved besides.
    async fn play(&self, way: Way) -> Result<Played> {
        let mut rng = seed::rng("sequences");
        let mut home = client::connect(&self.home, "test").await?;
        let guest = client::connect(&self.guest, "test").await?;
        let mut quiet = Reserved::default();
        for n in (0..SEQUENCES.len()).cycle().take(30) {
            quiet.take(&mut home, n, &self.pairs[n], 10, way).await?;
        }
        let budget = Arc::new(Budget::default());
        let at_home = Drawers::at_home(&self.scene, 8, &mut rng).await?;
        let at_guest = Drawers::at_guest(&self.scene, 3, Arc::clone(&budget), &mut rng).await?;
        let stop = Arc::new(AtomicBool::new(false));
        let rival = tokio::spawn(rival(self.home.clone(), self.pairs.clone(), way, Arc::clone(&stop)));
        let (mut loaded, mut beyond) = (Reserved::default(), 0);
        let mut given: Vec<Option<Block>> = vec![None; SEQUENCES.len()];
        let mut refills = vec![0; SEQUENCES.len()];
        let began = Instant::now();
        while refills.iter().any(|count| *count < REFILLS) {
            ensure!(began.elapsed() < SOON, "refilled {refills:?} times only");
            for (n, pair) in self.pairs.iter().enumerate() {
                if let Some(block) = given[n] {
                    let used = sequences::used(&guest, &pair.guest, block).await?;
                    beyond += u32::from(used.beyond);
                    if used.values * 5 < SIZE * 4 {
                        continue;
                    }
                    refills[n] += 1;
                }
                let block = loaded.take(&mut home, n, pair, SIZE, way).await?;
                match sequences::give(&guest, &pair.guest, block).await {
                    // Without a lock it may be anything.
                    Err(_) if way == Way::Unlocked => {}
                    given => given?,
                }
                budget.set(n, BUDGET);
                given[n] = Some(block);
            }
        }
        stop.store(true, Ordering::Relaxed);
        let rival = rival.await.context("join the rival")??;
        let (at_home, at_guest) = (at_home.stop().await?, at_guest.stop().await?);
        self.hand_back(&mut home, &guest, &loaded.blocks).await?;
        let blocks: Vec<(usize, Block)> =
            [&quiet.blocks, &loaded.blocks, &rival.blocks].into_iter().flatten().copied().collect();
        loaded.took.extend(&rival.took);
        Ok(Played {
            verdict: judge::verdict(&at_home.draws, &at_guest.draws, &blocks),
            home_draws: at_home.draws.len(),
            guest_draws: at_guest.draws.len(),
            errors: at_home.errors + at_guest.errors,
            refills,
            beyond,
            quiet: sorted(quiet.took),
            loaded: sorted(loaded.took),
        })
    }

    /// Home draws alone from here on, and nothing that was the guest's.
    async fn hand_back(&self, home: &mut Client, guest: &Client, given: &[(usize, Block)]) -> Result<()> {
        for (n, pair) in self.pairs.iter().enumerate() {
            let blocks: Vec<Block> = given.iter().filter(|(of, _)| *of == n).map(|(_, block)| *block).collect();
            sequences::hand_back(home, guest, pair, &blocks, PATIENCE).await?;
            let next = draws::next(home, n).await?;
            let past = blocks.iter().all(|block| (next - block.last) * pair.home.increment > 0);
            ensure!(past, "{} goes on at {next}, in a block that was given", pair.home.name);
        }
        Ok(())
    }
}

fn sorted(mut times: Vec<Duration>) -> Vec<Duration> {
    times.sort_unstable();
    times
}

/// Reserves small blocks as fast as it can, and some at least: another move.
async fn rival(home: PgUrl, pairs: Vec<Pair>, way: Way, stop: Arc<AtomicBool>) -> Result<Reserved> {
    let mut home = client::connect(&home, "rival").await?;
    let mut reserved = Reserved::default();
    for n in (0..SEQUENCES.len()).cycle() {
        if stop.load(Ordering::Relaxed) && reserved.took.len() > RESERVED {
            break;
        }
        reserved.take(&mut home, n, &pairs[n], 7, way).await?;
    }
    Ok(reserved)
}

/// Home draws by single statements, in transactions short and long, rolled back too, with a CACHE and downwards; the guest
/// draws through its blocks, with a CACHE too, and is refilled while it draws.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_value_of_a_sequence_is_drawn_twice_while_both_sides_draw() -> Result<()> {
    let played = Rig::open().await?.play(Way::Reserved).await?;
    let Played { verdict, home_draws, guest_draws, errors, refills, beyond, quiet, loaded } = played;
    println!(
        "{home_draws} drawn at home, {guest_draws} at the guest, refilled {refills:?}; a reserve took {:?} ({:?} at most) when \
         nobody wrote, {:?} ({:?} at most, {} of them) when eight did; {verdict:?}",
        quiet[quiet.len() / 2],
        quiet[quiet.len() - 1],
        loaded[loaded.len() / 2],
        loaded[loaded.len() - 1],
        loaded.len(),
    );
    ensure!(verdict == Verdict::default(), "{verdict:?}");
    ensure!(errors == 0 && beyond == 0, "{errors} draws failed, {beyond} times beyond a block");
    ensure!(home_draws > 500 && guest_draws > 30_000 && loaded.len() > RESERVED, "too little happened");
    Ok(())
}

/// The judge sees it where the lock is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn blocks_that_are_reserved_without_a_lock_are_found_out() -> Result<()> {
    let Played { verdict, .. } = Rig::open().await?.play(Way::Unlocked).await?;
    println!("{verdict:?}");
    ensure!(verdict.in_blocks > 0, "nothing was noticed");
    Ok(())
}

/// The connection is ended at any moment of a reserve, then the server is: what was answered is handed out once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_reserve_that_is_killed_hands_no_block_out_twice() -> Result<()> {
    let mut rng = seed::rng("sequences killed");
    let rig = Rig::open().await?;
    let at_home = Drawers::at_home(&rig.scene, 4, &mut rng).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let tasks: Vec<_> = (0..3)
        .map(|_| tokio::spawn(stubborn(rig.home.clone(), rig.pairs.clone(), rng.random(), Arc::clone(&stop))))
        .collect();
    let mut killed = 0;
    for _ in 0..2 {
        killed += kill(&rig.scene, &mut rng).await?;
        let cluster = Arc::clone(&rig.scene.source);
        tokio::task::spawn_blocking(move || cluster.stop(StopMode::Immediate).and_then(|()| cluster.start_again()))
            .await??;
    }
    killed += kill(&rig.scene, &mut rng).await?;
    stop.store(true, Ordering::Relaxed);
    let (mut blocks, mut failed) = (Vec::new(), 0);
    for task in tasks {
        let (reserved, lost) = task.await.context("join a reserver")??;
        blocks.extend(reserved.blocks);
        failed += lost;
    }
    let drawn = at_home.stop().await?.kept;
    let verdict = judge::verdict(&drawn, &[], &blocks);
    println!("{} blocks, {failed} reserves failed, {killed} kills, {} drawn", blocks.len(), drawn.len());
    ensure!(verdict == Verdict::default(), "{verdict:?}");
    ensure!(blocks.len() > RESERVED && failed > 10 && drawn.len() > 100, "too little happened");
    Ok(())
}

/// Ends the sessions that reserve, one at a time, at random moments.
async fn kill(scene: &Scene, rng: &mut StdRng) -> Result<i64> {
    let (client, mut killed) = (scene.source_client().await?, 0);
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_micros(rng.random_range(0..20_000))).await;
        let sql = "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity
                    WHERE application_name = 'carveout stubborn' ORDER BY random() LIMIT 1) one";
        killed += client.query_one(sql, &[]).await?.get::<_, i64>(0);
    }
    Ok(killed)
}

/// Reserves blocks, and connects again whenever that fails.
async fn stubborn(home: PgUrl, pairs: Vec<Pair>, seed: u64, stop: Arc<AtomicBool>) -> Result<(Reserved, u32)> {
    let mut rng: StdRng = rand::SeedableRng::seed_from_u64(seed);
    let (mut reserved, mut failed) = (Reserved::default(), 0);
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut client) = client::connect(&home, "stubborn").await else {
            // The server is about to start again.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            let n = rng.random_range(0..pairs.len());
            if let Err(error) = reserved.take(&mut client, n, &pairs[n], 5, Way::Reserved).await {
                let passes = error.downcast_ref::<connectors::postgres::Error>().is_some_and(|error| error.may_pass());
                ensure!(passes, "{error:#}");
                failed += 1;
                break;
            }
        }
    }
    Ok((reserved, failed))
}
