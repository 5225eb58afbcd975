//! Turns the frames of a spool into the pieces of one target transaction: whole source
//! transactions, without the changes that the copy already holds.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use connectors::postgres::apply::{Entry, Piece};
use connectors::postgres::control::Copied;
use connectors::postgres::pgoutput::{self, Message};
use connectors::postgres::{Error, Result};
use schemas::record::Fault;
use schemas::{Lsn, TableName};

use crate::spool::{Frame, Sealed, SpoolReader, SpoolState};

/// Bytes of changes in memory at a time; a single larger row counts alone.
const PIECE_BYTES: usize = 4 << 20;

/// When a group is large enough.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Rows; a larger source transaction is taken whole, in pieces of this size.
    pub rows: usize,
    /// Source transactions.
    pub transactions: usize,
}

/// Why no more pieces came.
pub(super) enum Stopped {
    /// The spool says so; `after` transactions of the group come before.
    Ordered { fault: Fault, after: usize },
    /// The spool cannot be read.
    Damaged(io::Error),
}

/// What came of looking for the target's checkpoint in the spool.
pub(super) enum Skipped {
    /// A transaction ends there, and what follows comes next.
    Found,
    /// The spool ends before it.
    Short,
    /// A later transaction is there, and none that ends there.
    Past,
}

/// The group in hand.
pub(super) struct Group {
    copied: HashMap<TableName, Copied>,
    relations: HashMap<u32, TableName>,
    /// Relations that were passed over, which the sink has to hear of before the first group.
    passed_over: Vec<Bytes>,
    told: bool,
    spool: Arc<SpoolState>,
    limits: Limits,
    /// The ends of transactions that a person leaves out, as far as the target is not past them.
    skipped: Vec<Lsn>,
    /// xid and commit position of the transaction that is being read, and whether it is one of those.
    current: Option<(u32, Lsn)>,
    left_out: bool,
    /// It has just begun: none of its rows was handed on yet.
    fresh: bool,
    /// A transaction gave rows to another tenant or took some: nothing that follows may be decided before that is done.
    hands: bool,
    /// The end of the last transaction that was read for the group, and of the last one before it: the target
    /// holds that.
    end: Lsn,
    before: Lsn,
    /// What the target held when this connection began.
    checkpoint: Lsn,
    rows: usize,
    bytes: usize,
    transactions: usize,
    stopped: Option<Stopped>,
}

impl Group {
    pub fn new(copied: &HashMap<TableName, Copied>, skipped: &[Lsn], spool: Arc<SpoolState>) -> Self {
        Group {
            copied: copied.clone(),
            skipped: skipped.to_vec(),
            left_out: false,
            fresh: false,
            hands: false,
            relations: HashMap::new(),
            passed_over: Vec::new(),
            told: false,
            spool,
            limits: Limits { rows: 1, transactions: 1 },
            current: None,
            end: Lsn::ZERO,
            before: Lsn::ZERO,
            checkpoint: Lsn::ZERO,
            rows: 0,
            bytes: 0,
            transactions: 0,
            stopped: None,
        }
    }

    /// A new group begins: the target holds the one before.
    pub fn begin(&mut self, limits: Limits) {
        self.before = self.end;
        self.skipped.retain(|skipped| *skipped > self.before);
        self.reset(limits);
    }

    /// The group begins again, also for a sink that may not have heard of what was passed over. What was read of it
    /// is not held by anyone: a smaller group must not end where the larger one did.
    pub fn again(&mut self, limits: Limits) {
        self.end = self.before;
        self.reset(limits);
        self.told = false;
    }

    fn reset(&mut self, limits: Limits) {
        self.limits = limits;
        (self.rows, self.bytes, self.transactions) = (0, 0, 0);
        self.hands = false;
        (self.current, self.left_out, self.stopped) = (None, false, None);
    }

    pub fn take_stopped(&mut self) -> Option<Stopped> {
        self.stopped.take()
    }

    /// Source transactions of the group.
    pub fn transactions(&self) -> usize {
        self.transactions
    }

    /// Passes over every transaction that ends at or before `lsn`, which the target holds.
    pub fn skip(&mut self, reader: &mut SpoolReader, sealed: &Sealed, lsn: Lsn) -> io::Result<Skipped> {
        (self.end, self.checkpoint) = (lsn, lsn);
        // The end of the last transaction before `place`: at first what the first segment says came before it.
        let mut last = None;
        loop {
            let place = reader.place();
            let mut relations = Vec::new();
            let end = loop {
                match reader.next(sealed)? {
                    None => {
                        reader.seek(place)?;
                        return Ok(if last.unwrap_or(Lsn::ZERO) == lsn { Skipped::Found } else { Skipped::Short });
                    }
                    Some(Frame::Segment { prev_end }) => last = last.or(Some(prev_end)),
                    Some(Frame::Commit { end }) => break end,
                    Some(Frame::Message { bytes, .. }) if bytes.first() == Some(&b'R') => relations.push(bytes),
                    Some(_) => {}
                }
            };
            if end > lsn {
                reader.seek(place)?;
                return Ok(if last == Some(lsn) { Skipped::Found } else { Skipped::Past });
            }
            last = Some(end);
            for bytes in relations {
                self.learn(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                self.passed_over.push(bytes);
            }
        }
    }

    fn learn(&mut self, bytes: &Bytes) -> Result<()> {
        if let Message::Relation(relation) = pgoutput::decode(bytes)? {
            self.relations.insert(relation.id, TableName::new(relation.schema, relation.name));
        }
        Ok(())
    }

    /// The next piece of the group, for the sink.
    pub fn piece(&mut self, reader: &mut SpoolReader, sealed: &Sealed) -> Result<Piece> {
        // The rows went with the last piece; only the group's end is left.
        if self.is_full() && self.current.is_none() {
            return Ok(Piece::End(self.end));
        }
        let mut changes = Vec::new();
        if !std::mem::replace(&mut self.told, true) {
            let entry = |message: &Bytes| Entry { message: message.clone(), claims: Bytes::new(), first: false };
            changes.extend(self.passed_over.iter().map(entry));
        }
        let (mut rows, mut bytes) = (0, 0);
        while rows < self.limits.rows && bytes < PIECE_BYTES {
            match reader.next(sealed).map_err(|error| self.stop(Stopped::Damaged(error)))? {
                Some(Frame::Begin { xid, commit_lsn, commit_ts }) => {
                    (self.current, self.fresh) = (Some((xid, commit_lsn)), true);
                    let left_out = self.is_skipped(reader, sealed);
                    self.left_out = left_out.map_err(|error| self.stop(Stopped::Damaged(error)))?;
                    if self.transactions == 0 {
                        self.spool.set_oldest(commit_ts, commit_lsn);
                    }
                }
                Some(Frame::Message { bytes: message, claims, hands }) => match self.weigh(&message)? {
                    Weight::Held => {}
                    Weight::Relation => changes.push(Entry { message, claims, first: false }),
                    Weight::Row => {
                        rows += 1;
                        bytes += message.len();
                        self.hands |= hands;
                        changes.push(Entry { message, claims, first: std::mem::take(&mut self.fresh) });
                    }
                },
                Some(Frame::Commit { end }) => {
                    (self.current, self.end) = (None, self.end.max(end));
                    self.transactions += 1;
                    if self.rows + rows >= self.limits.rows || self.bytes + bytes >= PIECE_BYTES || self.is_full() {
                        break;
                    }
                }
                Some(Frame::Stop { table, fault }) => {
                    let held = match table {
                        Some(table) => self.is_held(&table)?,
                        None => self.is_applied()?,
                    };
                    if !held {
                        return Err(self.stop(Stopped::Ordered { fault, after: self.transactions }));
                    }
                }
                Some(Frame::Segment { .. }) => {}
                // Only whole transactions are sealed: this is the end of one.
                None => break,
            }
        }
        self.rows += rows;
        self.bytes += bytes;
        match changes.is_empty() {
            true => Ok(Piece::End(self.end)),
            false => Ok(Piece::Changes(changes)),
        }
    }

    /// Whether the transaction that has just begun is left out.
    fn is_skipped(&self, reader: &mut SpoolReader, sealed: &Sealed) -> io::Result<bool> {
        if self.skipped.is_empty() {
            return Ok(false);
        }
        Ok(next_end(reader, sealed)?.is_some_and(|end| self.skipped.contains(&end)))
    }

    /// Whether it ended before the spool did.
    pub fn is_full(&self) -> bool {
        self.rows >= self.limits.rows
            || self.bytes >= PIECE_BYTES
            || self.transactions >= self.limits.transactions
            || self.hands
    }

    fn weigh(&mut self, message: &Bytes) -> Result<Weight> {
        if message.first() == Some(&b'R') {
            self.learn(message)?;
            return Ok(Weight::Relation);
        }
        if message.first() == Some(&b'T') {
            // What a copy holds of the partition may be gone again; and it is not described again.
            let applied = self.transaction()?.1 < self.checkpoint;
            return Ok(if applied { Weight::Held } else { Weight::Relation });
        }
        let relation = message.get(1..5).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
        let Some(table) = relation.and_then(|relation| self.relations.get(&relation)) else {
            return Err(Error::protocol("read the spool", "a change of a relation that was not described"));
        };
        Ok(if self.is_held(table)? { Weight::Held } else { Weight::Row })
    }

    /// Whether the target holds what the current transaction did to the table: its copy does, or the
    /// transaction was applied before.
    fn is_held(&self, table: &TableName) -> Result<bool> {
        let (xid, commit_lsn) = self.transaction()?;
        Ok(self.is_applied()? || self.copied.get(table).is_some_and(|copied| copied.holds(xid, commit_lsn)))
    }

    /// The stream may bring again what the target holds, when the spool ended before it. What is left out counts
    /// as held.
    fn is_applied(&self) -> Result<bool> {
        Ok(self.transaction()?.1 < self.checkpoint || self.left_out)
    }

    fn transaction(&self) -> Result<(u32, Lsn)> {
        self.current.ok_or_else(|| Error::protocol("read the spool", "a change outside any transaction"))
    }

    fn stop(&mut self, why: Stopped) -> Error {
        self.stopped = Some(why);
        Error::state("read the spool", "it ends here")
    }
}

/// The end of the transaction that the reader stands in or before; it stays there.
pub(super) fn next_end(reader: &mut SpoolReader, sealed: &Sealed) -> io::Result<Option<Lsn>> {
    let place = reader.place();
    let end = loop {
        match reader.next(sealed)? {
            Some(Frame::Commit { end }) => break Some(end),
            Some(_) => {}
            None => break None,
        }
    };
    reader.seek(place)?;
    Ok(end)
}

/// What a message of the spool is to the group.
enum Weight {
    Relation,
    /// The copy holds it already.
    Held,
    Row,
}
