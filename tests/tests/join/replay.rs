//! The judge: rows as bytes, changed only by transactions that the copy does not hold, each old row
//! compared with what stands there.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use connectors::postgres::control::Copied;
use connectors::postgres::pgoutput::{self, Message, Old, Tuple, Value};
use daemon::spool::{Frame, Sealed, SpoolReader};
use futures_util::{StreamExt, pin_mut};
use schemas::{Lsn, Snapshot, TableName};
use tokio_postgres::Client;

/// A row's columns as the wire's binary form; the first is the key.
type Row = Vec<Option<Vec<u8>>>;

/// The rows of a table by key.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct State(BTreeMap<Vec<u8>, Row>);

/// What was seen.
#[derive(Debug, Default)]
pub struct Tally {
    pub snapshots: u64,
    /// Transactions that the copy held, and that were passed over.
    pub held: u64,
    /// Transactions that were replayed, and their changes.
    pub replayed: u64,
    pub changes: u64,
    /// Running in the copy's snapshot, committed after it.
    pub running_then_committed: u64,
    /// Snapshots that `end <= insert position read before` would have joined wrongly.
    pub position_rule_wrong: u64,
}

impl State {
    /// Reads the rows through COPY BINARY.
    pub async fn read(client: &Client, table: &TableName, filter: &str) -> Result<State> {
        let sql = format!(
            "COPY (SELECT id, bid, v, note FROM {}.{} WHERE {filter}) TO STDOUT (FORMAT binary)",
            table.schema, table.name
        );
        let stream = client.copy_out(&sql).await?;
        pin_mut!(stream);
        let mut all = Vec::new();
        while let Some(bytes) = stream.next().await {
            all.extend_from_slice(&bytes?);
        }
        let mut rest = &all[19..];
        let mut state = State::default();
        loop {
            let columns = i16::from_be_bytes(take(&mut rest, 2)?.try_into()?);
            if columns < 0 {
                return Ok(state);
            }
            let mut row = Row::new();
            for _ in 0..columns {
                let length = i32::from_be_bytes(take(&mut rest, 4)?.try_into()?);
                row.push(match usize::try_from(length) {
                    Ok(length) => Some(take(&mut rest, length)?.to_vec()),
                    Err(_) => None,
                });
            }
            state.insert(row)?;
        }
    }

    fn insert(&mut self, row: Row) -> Result<()> {
        let key = row[0].clone().context("a key")?;
        ensure!(self.0.insert(key.clone(), row).is_none(), "key {key:?} is inserted and is there");
        Ok(())
    }

    fn remove(&mut self, old: &Row) -> Result<()> {
        let key = old[0].clone().context("a key")?;
        match self.0.remove(&key) {
            Some(row) if row == *old => Ok(()),
            Some(row) => bail!("the old row of key {key:?} is {old:?}, here stands {row:?}"),
            None => bail!("the old row of key {key:?} is not here"),
        }
    }

    pub fn difference(&self, other: &State) -> String {
        let only = |a: &State, b: &State| a.0.iter().filter(|(key, row)| b.0.get(*key) != Some(row)).count();
        format!("{} rows here, {} there", only(self, other), only(other, self))
    }
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(length).context("the copy's data ends early")?;
    *rest = tail;
    Ok(head)
}

fn row(tuple: Tuple<'_>) -> Result<Row> {
    let column = |value| match value {
        Value::Null => Ok(None),
        Value::Binary(bytes) => Ok(Some(bytes.to_vec())),
        other => bail!("unexpected {other:?}"),
    };
    tuple.iter().map(column).collect()
}

/// Replays what the copy does not hold and `until` shows.
pub fn replay(
    dir: &Path,
    sealed: &Sealed,
    copied: &Copied,
    before: Lsn,
    until: &Snapshot,
    rows: &mut State,
    tally: &mut Tally,
) -> Result<()> {
    let mut reader = SpoolReader::open(dir)?;
    let mut changes: Vec<Bytes> = Vec::new();
    let mut current = None;
    let mut position_rule_right = true;
    while let Some(frame) = reader.next(sealed)? {
        match frame {
            Frame::Begin { xid, commit_lsn, .. } => current = Some((xid, commit_lsn)),
            Frame::Message { bytes, .. } => changes.push(bytes),
            Frame::Commit { end } => {
                let (xid, commit_lsn) = current.take().context("a transaction")?;
                let held = copied.holds(xid, commit_lsn);
                ensure!(held == copied.snapshot.shows_xid(xid), "the copy's position contradicts its snapshot");
                position_rule_right &= held == (end <= before);
                let full = copied.snapshot.widen(xid);
                tally.running_then_committed += u64::from(!held && full < copied.snapshot.xmax);
                tally.held += u64::from(held);
                let changes = std::mem::take(&mut changes);
                if !held && until.shows_xid(xid) {
                    tally.replayed += 1;
                    tally.changes += apply(&changes, rows)
                        .with_context(|| format!("transaction {xid}, snapshot {}", copied.snapshot))?;
                }
            }
            Frame::Segment { .. } => {}
            Frame::Stop { fault, .. } => bail!("an order to stop: {fault:?}"),
        }
    }
    tally.position_rule_wrong += u64::from(!position_rule_right);
    Ok(())
}

fn apply(changes: &[Bytes], rows: &mut State) -> Result<u64> {
    let mut count = 0;
    for bytes in changes {
        match pgoutput::decode(bytes)? {
            Message::Relation(_) => continue,
            Message::Insert { new, .. } => rows.insert(row(new)?)?,
            Message::Update { old: Some(Old::Full(old)), new, .. } => {
                rows.remove(&row(old)?)?;
                rows.insert(row(new)?)?;
            }
            Message::Delete { old: Old::Full(old), .. } => rows.remove(&row(old)?)?,
            other => bail!("unexpected {other:?}"),
        }
        count += 1;
    }
    Ok(count)
}
