//! Blocks at the edges of what a sequence and its columns can hold, and in the way of others.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use connectors::postgres::sequences::{self, Block, Pair, Sequence, Used};
use connectors::postgres::{Error, client};
use daemon::demo::cluster::ClusterOptions;
use schemas::TableName;
use schemas::url::PgUrl;
use tests::scene::{Scene, connect};
use tests::wait::until;
use tokio_postgres::Client;

use super::SOON;

/// One sequence after the other, by name; home and guest have the same.
const TABLES: &str = "
    CREATE TABLE big (id bigserial);
    CREATE TABLE down (id integer GENERATED ALWAYS AS IDENTITY (INCREMENT -10));
    CREATE TABLE fifty (id serial);
    ALTER SEQUENCE fifty_id_seq INCREMENT 50 CACHE 100;
    CREATE TABLE narrow (id integer);
    CREATE SEQUENCE narrow_id_seq;
    ALTER TABLE narrow ALTER id SET DEFAULT nextval('narrow_id_seq');
    CREATE TABLE small (id smallserial)";
const NAMES: [&str; 5] = ["big", "down", "fifty", "narrow", "small"];
const NO_PATIENCE: Duration = Duration::ZERO;

struct Rig {
    url: PgUrl,
    home: Client,
    guest: Client,
    pairs: Vec<Pair>,
}

impl Rig {
    /// A home and a guest of their own in the scene's server.
    async fn open(scene: &Scene, name: &str) -> Result<Rig> {
        let (ours, theirs) = (format!("home_{name}"), format!("guest_{name}"));
        let url: PgUrl = scene.source.url(&ours).parse()?;
        let plain = scene.source_client().await?;
        for database in [&ours, &theirs] {
            plain.batch_execute(&format!("CREATE DATABASE {database}")).await?;
            scene.target_client(database).await?.batch_execute(TABLES).await?;
        }
        let home = client::connect(&url, "test").await?;
        let guest = client::connect(&url.with_dbname(&theirs), "test").await?;
        let tables = NAMES.map(|name| TableName::new("public", name));
        let found = (sequences::of_tables(&home, &tables).await?, sequences::of_tables(&guest, &tables).await?);
        let both: Vec<(TableName, TableName)> = tables.iter().cloned().zip(tables.clone()).collect();
        Ok(Rig { pairs: sequences::pair(&found.0, &found.1, &both)?, url, home, guest })
    }

    /// Somebody else at home.
    async fn another(&self) -> Result<Client> {
        connect(&self.url.to_string()).await
    }

    fn of(&self, table: &str) -> Pair {
        let number = NAMES.iter().position(|name| *name == table);
        number.map(|number| self.pairs[number].clone()).expect("a table of this test")
    }

    async fn reserve(&mut self, table: &str, size: i64) -> Result<Block, Error> {
        let sequence = self.of(table).home;
        sequences::reserve(&mut self.home, &sequence, size, NO_PATIENCE).await
    }
}

async fn next(client: &Client, table: &str) -> Result<i64> {
    Ok(client.query_one(&format!("SELECT nextval('public.{table}_id_seq')"), &[]).await?.get(0))
}

/// The sequence as the catalogs have it, with its owner and what owns it.
async fn options(client: &Client, sequence: &Sequence) -> Result<String> {
    let sql = "SELECT concat_ws(' ', s, c.relowner, c.relacl, (SELECT string_agg(concat_ws(' ', d.refobjid, d.refobjsubid, d.deptype), ',')
                                       FROM pg_depend d WHERE d.objid = c.oid AND d.classid = 'pg_class'::regclass))
                 FROM pg_class c JOIN pg_sequence s ON s.seqrelid = c.oid WHERE c.relname = $1";
    Ok(client.query_one(sql, &[&sequence.name.name]).await?.get(0))
}

/// Blocks at the edges, in the way of others, and given twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_is_exact_waits_for_who_has_drawn_and_is_given_once() -> Result<()> {
    let scene = Scene::single(ClusterOptions::default()).await?;
    a_block_is_exact_and_leaves_room_at_home(Rig::open(&scene, "room").await?).await?;
    a_reserve_waits_for_those_that_have_drawn_and_then_gives_up(Rig::open(&scene, "wait").await?).await?;
    the_guest_draws_its_block_and_home_goes_on_behind_it(Rig::open(&scene, "give").await?).await
}

/// Upwards, downwards, in steps; what is left decides how much is taken, and the narrowest column what there is.
async fn a_block_is_exact_and_leaves_room_at_home(mut rig: Rig) -> Result<()> {
    let cases = [
        ("big", 100, Block { first: 1, last: 100 }, 101, 1_000_000),
        ("down", 100, Block { first: -1, last: -991 }, -1_001, 1_000_000),
        ("fifty", 3, Block { first: 1, last: 101 }, 151, 429_496),
        ("narrow", 1, Block { first: 1, last: 1 }, 2, 1_000_000),
        ("small", 20, Block { first: 1, last: 20 }, 21, 327),
    ];
    for (table, size, expected, after, size_for) in cases {
        let sequence = rig.of(table).home;
        let before = options(&rig.home, &sequence).await?;
        let wanted = sequences::size_for(&rig.home, &sequence).await?;
        let block = rig.reserve(table, size).await?;
        let went_on = next(&rig.home, table).await?;
        ensure!((block, went_on, wanted) == (expected, after, size_for), "{table}: {block:?}, {went_on}, {wanted}");
        ensure!(options(&rig.home, &sequence).await? == before, "{table} was changed");
    }
    // The sequence is a bigint, its column is not.
    let narrow = rig.of("narrow").home;
    rig.home.batch_execute("SELECT setval('public.narrow_id_seq', 2147483647 - 150000)").await?;
    ensure!(sequences::size_for(&rig.home, &narrow).await? == 1_500, "a hundredth of what is left");
    let error = rig.reserve("narrow", 150_001).await.err().context("no error")?.to_string();
    for words in ["public.narrow_id_seq", "2147333647", "2147483647", "public.narrow.id", "TYPE bigint"] {
        ensure!(error.contains(words), "{words:?} is not in: {error}");
    }
    ensure!(next(&rig.home, "narrow").await? == 2_147_333_648, "nothing was taken");
    ensure!(rig.reserve("narrow", 149_999).await?.last == i64::from(i32::MAX), "all that is left");
    let error = sequences::size_for(&rig.home, &narrow).await.err().context("no error")?;
    ensure!(error.to_string().contains("do not fit") && !error.is_transient(), "{error}");
    // At the very end of what a bigint holds.
    rig.home.batch_execute("SELECT setval('public.big_id_seq', 9223372036854775800)").await?;
    ensure!(rig.reserve("big", 8).await.is_err() && rig.reserve("big", i64::MAX).await.is_err(), "there are seven");
    ensure!(rig.reserve("big", 7).await?.last == i64::MAX, "seven");
    Ok(())
}

/// Who has drawn and stays open is waited for, and named; who only reads is in nobody's way.
async fn a_reserve_waits_for_those_that_have_drawn_and_then_gives_up(mut rig: Rig) -> Result<()> {
    let (reader, drawer) = (rig.another().await?, rig.another().await?);
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT * FROM big_id_seq").await?;
    rig.reserve("big", 10).await.context("behind a reader")?;
    let pid: i32 = drawer.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
    drawer.batch_execute("BEGIN; SELECT nextval('big_id_seq')").await?;
    let (began, patience) = (Instant::now(), Duration::from_millis(300));
    let sequence = rig.of("big").home;
    let error = sequences::reserve(&mut rig.home, &sequence, 10, patience).await.err().context("no error")?;
    ensure!(error.is_transient() && error.to_string().contains(&format!("(pid: {pid})")), "{error}");
    ensure!(began.elapsed() >= patience, "it gave up after {:?}", began.elapsed());
    ensure!(next(&drawer, "big").await? == 12 && next(&reader, "big").await? == 13, "the sequence is where it was");

    // With patience it comes as soon as they are done; both of them have drawn.
    let waiting = async {
        until("a lock that is waited for", SOON, async || {
            let sql = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'public.big_id_seq'::regclass";
            ensure!(drawer.query_one(sql, &[]).await?.get::<_, i64>(0) == 1, "nobody waits");
            Ok(())
        })
        .await?;
        reader.batch_execute("COMMIT").await?;
        Ok(drawer.batch_execute("COMMIT").await?)
    };
    let reserved = sequences::reserve(&mut rig.home, &sequence, 10, SOON);
    let (block, waited): (_, Result<()>) = tokio::join!(reserved, waiting);
    waited?;
    ensure!(block? == Block { first: 14, last: 23 }, "behind what both have drawn");

    rig.home.batch_execute("ALTER SEQUENCE public.big_id_seq INCREMENT 2").await?;
    let error = rig.reserve("big", 10).await.err().context("no error")?.to_string();
    ensure!(error.contains("changed or replaced"), "{error}");
    rig.home.batch_execute("ALTER SEQUENCE public.big_id_seq INCREMENT 1 CYCLE").await?;
    let error = rig.reserve("big", 10).await.err().context("no error")?.to_string();
    let cycles = "SELECT seqcycle FROM pg_sequence WHERE seqrelid = 'public.big_id_seq'::regclass";
    ensure!(error.contains("changed or replaced") && rig.home.query_one(cycles, &[]).await?.get(0), "{error}");
    Ok(())
}

/// A block is given once, however often that is asked for; where the guest has left it, that shows, and home goes on behind
/// all of it.
async fn the_guest_draws_its_block_and_home_goes_on_behind_it(mut rig: Rig) -> Result<()> {
    for (table, step) in [("big", 1), ("down", -10)] {
        let pair = rig.of(table);
        let (home, guest) = (pair.home.clone(), pair.guest.clone());
        rig.home.batch_execute(&format!("SELECT setval('public.{table}_id_seq', {step})")).await?;
        let first = rig.reserve(table, 10).await?;
        next(&rig.home, table).await?;
        let second = rig.reserve(table, 10).await?;
        sequences::give(&rig.guest, &guest, first).await?;
        let none = Used { values: 0, beyond: false };
        ensure!(sequences::used(&rig.guest, &guest, first).await? == none, "nothing was drawn");
        ensure!(next(&rig.guest, table).await? == first.first, "the block's first value");
        sequences::give(&rig.guest, &guest, first).await?;
        ensure!(next(&rig.guest, table).await? == first.first + step, "it was given before");
        ensure!(sequences::used(&rig.guest, &guest, first).await? == Used { values: 2, beyond: false }, "two");
        sequences::give(&rig.guest, &guest, second).await?;
        let behind = sequences::give(&rig.guest, &guest, first).await.err().context("no error")?.to_string();
        ensure!(behind.contains("behind the block"), "{behind}");
        for n in 0..10 {
            let value = next(&rig.guest, table).await?;
            ensure!(value == second.first + n * step, "{value}, the {n}th of {second:?}");
        }
        let used = sequences::used(&rig.guest, &guest, second).await?;
        ensure!(used == Used { values: 10, beyond: false }, "{used:?}");

        // Home is behind all that: nothing to be done, so nobody is waited for.
        let drawer = rig.another().await?;
        drawer.batch_execute(&format!("BEGIN; SELECT nextval('{table}_id_seq')")).await?;
        let blocks = [second, first];
        sequences::hand_back(&mut rig.home, &rig.guest, &pair, &blocks, NO_PATIENCE).await?;
        let beyond = next(&rig.guest, table).await?;
        ensure!(sequences::used(&rig.guest, &guest, second).await?.beyond, "{beyond} is beyond");
        let held = sequences::hand_back(&mut rig.home, &rig.guest, &pair, &blocks, NO_PATIENCE).await;
        ensure!(held.is_err_and(|error| error.is_transient()), "who has drawn is waited for");
        drawer.batch_execute("COMMIT").await?;
        for _ in 0..5 {
            next(&rig.guest, table).await?;
        }
        let last = next(&rig.guest, table).await?;
        sequences::hand_back(&mut rig.home, &rig.guest, &pair, &blocks, NO_PATIENCE).await?;
        let goes_on = next(&rig.home, table).await?;
        ensure!(goes_on == last + step, "home goes on at {goes_on}, the guest drew {last}");
        sequences::advance(&mut rig.home, &home, last, NO_PATIENCE).await?;
        ensure!(next(&rig.home, table).await? == goes_on + step, "never back");

        // Somebody has emptied the guest's table and restarted its sequence.
        rig.guest.batch_execute(&format!("ALTER SEQUENCE public.{table}_id_seq RESTART")).await?;
        ensure!(sequences::used(&rig.guest, &guest, second).await?.beyond, "it stands before the block");
    }
    let narrow = rig.of("small").guest;
    let error = sequences::give(&rig.guest, &narrow, Block { first: 32_000, last: 33_000 }).await;
    ensure!(error.is_err_and(|error| error.to_string().contains("public.small_id_seq")), "it does not fit");
    Ok(())
}
