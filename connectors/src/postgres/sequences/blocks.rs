//! Reserves blocks of values at home, and lets the guest draw from them.
//!
//! nextval keeps RowExclusiveLock on its sequence until its transaction ends. ALTER SEQUENCE … NO CYCLE, of a sequence
//! that does not cycle, changes nothing and waits for all of them: nobody draws until its transaction ends. It gives the
//! sequence a new file, so that setval behind it is undone with the transaction, which it otherwise is not: a reserve
//! happens as a whole or not at all. (ALTER … OWNER TO would wait for whoever reads the sequence too, as pg_dump does all its
//! time.) It is one message to the server, so no client that has gone away keeps the lock.

use std::time::{Duration, Instant};

use tokio_postgres::{Client, SimpleQueryMessage};

use super::super::quote::{literal, table as qualified};
use super::super::{Doing, Error, Result};
use super::{Block, Pair, Sequence, Used};

/// How long one attempt may wait for those that have drawn: others queue behind it.
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '50ms'";
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(100);
/// Not got in time; in the way of another transaction that waits.
const TRY_AGAIN: [&str; 2] = ["55P03", "40P01"];

/// Of a sequence that has room: no refill for long.
const MOST: i128 = 1_000_000;
/// What a block has at least, where half of the room is more.
const LEAST: i128 = 1_000;
/// The same of a sequence that has no more values than a smallint.
const LEAST_OF_FEW: i128 = 100;
const SMALLINTS: i128 = 1 << 15;
/// So many sessions may take their cache from a block before it has to be refilled.
const CACHES: i128 = 20;

/// The size of the next block: a hundredth of the values that are left, and a million at most. Never more than half of
/// them, for home needs values too.
pub async fn size_for(home: &Client, sequence: &Sequence) -> Result<i64> {
    let drawn = drawn(home, sequence).await?;
    let step = i128::from(sequence.increment).abs();
    let room = sequence.ahead(drawn, sequence.limit.into()) / step;
    let few = (i128::from(sequence.max) - i128::from(sequence.min)).min(i128::from(sequence.limit).abs()) / step;
    let least = if few > SMALLINTS { LEAST } else { LEAST_OF_FEW };
    let least = least.max(CACHES * i128::from(sequence.cache));
    let size = (room / 100).max(least).min(room / 2).min(MOST);
    if size < 1 { Err(full(sequence, 1, drawn)) } else { Ok(narrowed(size)) }
}

/// Reserves the next `size` values at home: nobody else has drawn them, or will. Waits for the transactions that have
/// drawn from the sequence, at most for `patience`.
pub async fn reserve(home: &mut Client, sequence: &Sequence, size: i64, patience: Duration) -> Result<Block> {
    if size < 1 {
        return Err(Error::state(doing(sequence), format!("{size} is no number of values")));
    }
    let span = i128::from(sequence.increment) * (i128::from(size) - 1);
    let name = literal(&qualified(&sequence.name));
    // All of it in one statement, as numbers that are wide enough.
    let sql = format!(
        "SELECT first, CASE WHEN {} THEN setval({name}, (first + {span})::bigint) END
           FROM (SELECT last_value::numeric + CASE WHEN is_called THEN {} ELSE 0 END AS first FROM {}) next",
        if sequence.increment < 0 {
            format!("first + {span} >= {}", sequence.limit)
        } else {
            format!("first + {span} <= {}", sequence.limit)
        },
        sequence.increment,
        qualified(&sequence.name)
    );
    let row = under_lock(home, sequence, &sql, patience).await?;
    let first = number(sequence, row.first())?;
    match row.get(1) {
        Some(Some(last)) => {
            let last = last.parse().map_err(|_| unreadable(sequence))?;
            Ok(Block { first: narrowed(first), last })
        }
        _ => Err(full(sequence, size, first - i128::from(sequence.increment))),
    }
}

/// Lets the guest draw the block's first value next. A sequence that stands in the block already stays where it is, so
/// this may be done twice; none is ever set back. An error where it stands behind the block: values that are not its own were drawn,
/// and home has to be taken past them ([`hand_back`]) before another block is reserved.
pub async fn give(guest: &Client, sequence: &Sequence, block: Block) -> Result<()> {
    let doing = || format!("give a block of values to {}", sequence.name);
    refuse_cycle(sequence)?;
    let (first, last) = (i128::from(block.first), i128::from(block.last));
    if sequence.ahead(last, sequence.limit.into()) < 0 || sequence.ahead(first, last) < 0 {
        let why = format!(
            "{} to {} does not fit up to {}, the last value that it and its columns ({}) can hold",
            block.first,
            block.last,
            sequence.limit,
            sequence.users_text()
        );
        return Err(Error::state(doing(), why));
    }
    let drawn = drawn(guest, sequence).await?;
    if sequence.ahead(last, drawn) > 0 {
        let why = format!("it stands at {drawn} already, behind the block's last value {}", block.last);
        return Err(Error::state(doing(), why));
    }
    if sequence.ahead(first, drawn) >= 0 {
        return Ok(());
    }
    let sql = format!("SELECT setval({}, {}, false)", literal(&qualified(&sequence.name)), block.first);
    guest.batch_execute(&sql).await.doing(doing())
}

/// How much of the block the guest has used.
pub async fn used(guest: &Client, sequence: &Sequence, block: Block) -> Result<Used> {
    let drawn = drawn(guest, sequence).await?;
    let (first, last) = (i128::from(block.first), i128::from(block.last));
    let before = first - i128::from(sequence.increment);
    let beyond = sequence.ahead(before, drawn) < 0 || sequence.ahead(last, drawn) > 0;
    let reached = sequence.ahead(before, drawn).clamp(0, sequence.ahead(before, last));
    Ok(Used { values: narrowed(reached / i128::from(sequence.increment).abs()), beyond })
}

/// Home goes on by itself: makes sure that its sequence is past every block that was given, and past what the guest drew
/// elsewhere. Nobody may draw at the guest any more. Normally it is, and nobody is kept waiting.
pub async fn hand_back(
    home: &mut Client,
    guest: &Client,
    pair: &Pair,
    given: &[Block],
    patience: Duration,
) -> Result<()> {
    if pair.shared {
        return Ok(());
    }
    let ours = &pair.home;
    let lasts = given.iter().map(|block| i128::from(block.last));
    let given = lasts.reduce(|furthest, last| if ours.ahead(furthest, last) > 0 { last } else { furthest });
    let (drawn_there, drawn_here) = tokio::try_join!(drawn(guest, &pair.guest), drawn(home, ours))?;
    let elsewhere = given.is_none_or(|given| ours.ahead(given, drawn_there) > 0);
    let past = if elsewhere { drawn_there } else { given.unwrap_or(drawn_there) };
    // What others drew at home a crash may take back, a block not.
    let behind = ours.ahead(past, drawn_here) < 0;
    if behind || elsewhere && given.is_some() { advance(home, ours, narrowed(past), patience).await } else { Ok(()) }
}

/// Takes home's sequence forward to `past`, so that nobody draws that any more; never back.
pub async fn advance(home: &mut Client, sequence: &Sequence, past: i64, patience: Duration) -> Result<()> {
    if sequence.ahead(past.into(), sequence.limit.into()) < 0 {
        return Err(full(sequence, 1, past.into()));
    }
    let name = qualified(&sequence.name);
    let forward = if sequence.increment < 0 { "least" } else { "greatest" };
    let sql = format!("SELECT setval({}, {forward}(last_value, {past})) FROM {name}", literal(&name));
    under_lock(home, sequence, &sql, patience).await.map(drop)
}

/// The last value that was drawn, or the one that would come before the first.
async fn drawn(client: &Client, sequence: &Sequence) -> Result<i128> {
    let sql = format!(
        "SELECT (last_value::numeric - CASE WHEN is_called THEN 0 ELSE {} END)::text FROM {}",
        sequence.increment,
        qualified(&sequence.name)
    );
    let row = client.query_typed_one(&sql, &[]).await.doing(format!("read sequence {}", sequence.name))?;
    number(sequence, Some(&row.get(0)))
}

/// Runs a query in a transaction while nobody draws from the sequence, again and again as long as those that have drawn
/// are in the way. Its one row.
async fn under_lock(
    home: &mut Client,
    sequence: &Sequence,
    sql: &str,
    patience: Duration,
) -> Result<Vec<Option<String>>> {
    let began = Instant::now();
    let name = qualified(&sequence.name);
    let sql = format!("BEGIN; {LOCK_TIMEOUT}; ALTER SEQUENCE {name} NO CYCLE; {sql}; COMMIT");
    loop {
        still_the_same(home, sequence).await?;
        let error = match home.simple_query(&sql).await.doing(doing(sequence)) {
            Ok(said) => return Ok(said.iter().find_map(columns).unwrap_or_default()),
            Err(error) => error,
        };
        if !error.sqlstate().is_some_and(|code| TRY_AGAIN.contains(&code)) {
            // Where the connection has ended there is nothing to roll back.
            home.batch_execute("ROLLBACK").await.ok();
            return Err(error);
        }
        home.batch_execute("ROLLBACK").await.doing(doing(sequence))?;
        if began.elapsed() >= patience {
            return Err(busy(home, sequence).await);
        }
        tokio::time::sleep(BETWEEN_ATTEMPTS).await;
    }
}

fn columns(message: &SimpleQueryMessage) -> Option<Vec<Option<String>>> {
    let SimpleQueryMessage::Row(row) = message else { return None };
    Some((0..row.len()).map(|n| row.get(n).map(str::to_owned)).collect())
}

/// Whether it is what was looked at: what takes the lock would otherwise change it.
async fn still_the_same(home: &Client, sequence: &Sequence) -> Result<()> {
    refuse_cycle(sequence)?;
    let sql = "SELECT seqincrement, seqcycle FROM pg_sequence WHERE seqrelid = $1 AND seqrelid = to_regclass($2)";
    let name = qualified(&sequence.name);
    let row = home.query_opt(sql, &[&sequence.place.oid, &name]).await.doing(doing(sequence))?;
    match row {
        Some(row) if row.get::<_, i64>(0) == sequence.increment && !row.get::<_, bool>(1) => Ok(()),
        _ => Err(Error::state(
            doing(sequence),
            "somebody has changed or replaced it; look at the tables' sequences again",
        )),
    }
}

fn refuse_cycle(sequence: &Sequence) -> Result<()> {
    match sequence.cycle {
        false => Ok(()),
        true => Err(Error::state(doing(sequence), "it begins again behind its last value; ALTER SEQUENCE … NO CYCLE")),
    }
}

/// Who keeps the lock from us.
async fn busy(home: &Client, sequence: &Sequence) -> Error {
    let sql = "SELECT coalesce(string_agg(DISTINCT coalesce(l.pid::text, 'a prepared transaction'), ', '), 'nobody any more')
                 FROM pg_locks l WHERE l.locktype = 'relation' AND l.relation = $1 AND l.granted AND l.mode <> 'AccessShareLock'
                  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let holders = match home.query_one(sql, &[&sequence.place.oid]).await {
        Ok(row) => row.get(0),
        Err(_) => "not known".to_owned(),
    };
    let why = format!("transactions that have drawn from it stay open (pid: {holders}); end them, or try again later");
    Error::connection(doing(sequence), why)
}

fn full(sequence: &Sequence, size: i64, drawn: i128) -> Error {
    let why = format!(
        "it stands at {drawn}, and {size} more do not fit up to {}, the last value that it and its columns ({}) can hold; \
         ALTER SEQUENCE … AS bigint, ALTER TABLE … ALTER COLUMN … TYPE bigint",
        sequence.limit,
        sequence.users_text()
    );
    Error::state(doing(sequence), why)
}

fn doing(sequence: &Sequence) -> String {
    format!("reserve values of sequence {}", sequence.name)
}

fn number(sequence: &Sequence, text: Option<&Option<String>>) -> Result<i128> {
    let parsed = text.and_then(Option::as_deref).and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| unreadable(sequence))
}

fn unreadable(sequence: &Sequence) -> Error {
    Error::protocol(doing(sequence), "the server's answer is no number")
}

/// What lies between two values of a sequence, or is one.
fn narrowed(number: i128) -> i64 {
    i64::try_from(number).unwrap_or(if number < 0 { i64::MIN } else { i64::MAX })
}
