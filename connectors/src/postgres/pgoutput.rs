//! Decodes pgoutput messages, protocol version 1 without streaming and two-phase (PostgreSQL
//! manual, "Logical Replication Message Formats"). Borrows the values from the message.
//!
//! Never panics, whatever the bytes; never allocates more than the message is long; never prints
//! a row's values.

mod encode;
mod read;
#[cfg(test)]
mod tests;
mod tuple;

use std::fmt;

use schemas::Lsn;

use self::read::{Reader, broken};
use super::Result;

pub use self::encode::{encode_delete, encode_insert, encode_insert_raw, encode_partition};
pub use self::tuple::{Old, Tuple, Value, Values};

/// One message. Times are microseconds since 2000-01-01 00:00 UTC.
#[derive(Clone, PartialEq, Eq)]
pub enum Message<'a> {
    /// A transaction begins. Transactions come whole and in commit order.
    Begin {
        /// Where its commit record starts: equal to `Commit::commit_lsn`.
        final_lsn: Lsn,
        /// When it was committed.
        commit_ts: i64,
        /// The transaction, without its epoch.
        xid: u32,
    },
    /// The transaction ends.
    Commit {
        /// Where the commit record starts. To acknowledge this sends the transaction again.
        commit_lsn: Lsn,
        /// Where the commit record ends: what is stored and acknowledged.
        end_lsn: Lsn,
        /// When it was committed.
        commit_ts: i64,
    },
    /// The transaction was first committed somewhere else; comes after Begin.
    Origin {
        /// Its commit there.
        lsn: Lsn,
        /// The replication origin's name.
        name: &'a str,
    },
    /// Describes a table; comes before its first change and again whenever it may have changed.
    Relation(Relation),
    /// Names a type that is not built in; for a domain, the type below it.
    Type {
        /// `pg_type.oid` on the source.
        oid: u32,
        /// Its schema; empty for `pg_catalog`.
        schema: &'a str,
        /// Its name.
        name: &'a str,
    },
    /// A row was inserted.
    Insert {
        /// The table, as [`Relation::id`].
        relation: u32,
        /// The row.
        new: Tuple<'a>,
    },
    /// A row was updated.
    Update {
        /// The table, as [`Relation::id`].
        relation: u32,
        /// The row before, where the replica identity has it sent.
        old: Option<Old<'a>>,
        /// The row after; TOAST values that it kept are [`Value::Unchanged`].
        new: Tuple<'a>,
    },
    /// A row was deleted.
    Delete {
        /// The table, as [`Relation::id`].
        relation: u32,
        /// The row before.
        old: Old<'a>,
    },
    /// Tables were emptied, for all tenants.
    Truncate {
        /// The tables, as [`Relation::id`].
        relations: Vec<u32>,
        /// With CASCADE.
        cascade: bool,
        /// With RESTART IDENTITY.
        restart_identity: bool,
    },
    /// From `pg_logical_emit_message`, which anyone may call.
    Logical {
        /// Inside its transaction; otherwise it comes outside Begin and Commit.
        transactional: bool,
        /// Where it stands in the WAL.
        lsn: Lsn,
        /// Whom it is for.
        prefix: &'a str,
        /// What it says.
        content: &'a [u8],
    },
}

/// A table as the source describes it. Columns are mapped by name: their order is that of the
/// physical table, and differs between partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// `pg_class.oid` on the source.
    pub id: u32,
    /// Its schema; empty for `pg_catalog`.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// `pg_class.relreplident`: 'd' default, 'n' nothing, 'f' full, 'i' index.
    pub identity: u8,
    /// Its published columns, in the order of the tuples.
    pub columns: Vec<Column>,
}

/// A column of a [`Relation`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Whether it belongs to the replica identity; under FULL, every column does.
    pub key: bool,
    /// Its name.
    pub name: String,
    /// `pg_type.oid` on the source.
    pub type_oid: u32,
    /// `pg_attribute.atttypmod`; -1 for none.
    pub typmod: i32,
}

/// Decodes one message: the payload of one XLogData, or of the spool.
pub fn decode(bytes: &[u8]) -> Result<Message<'_>> {
    let mut from = Reader::new(bytes);
    let message = match from.u8()? {
        b'B' => Message::Begin { final_lsn: Lsn(from.u64()?), commit_ts: from.i64()?, xid: from.u32()? },
        b'C' => {
            no_flags(from.u8()?, 0)?;
            Message::Commit { commit_lsn: Lsn(from.u64()?), end_lsn: Lsn(from.u64()?), commit_ts: from.i64()? }
        }
        b'O' => Message::Origin { lsn: Lsn(from.u64()?), name: from.text()? },
        b'R' => Message::Relation(relation(&mut from)?),
        b'Y' => Message::Type { oid: from.u32()?, schema: from.text()?, name: from.text()? },
        b'I' => Message::Insert { relation: from.u32()?, new: new_image(&mut from)? },
        b'U' => Message::Update { relation: from.u32()?, old: old_image(&mut from)?, new: new_image(&mut from)? },
        b'D' => Message::Delete {
            relation: from.u32()?,
            old: old_image(&mut from)?.ok_or_else(|| broken("a delete has no old row"))?,
        },
        b'T' => truncate(&mut from)?,
        b'M' => logical(&mut from)?,
        other => return Err(broken(format_args!("unknown message kind {other}"))),
    };
    from.end()?;
    Ok(message)
}

/// A flag that we do not know could change what the message means.
fn no_flags(flags: u8, known: u8) -> Result<()> {
    if flags & !known == 0 { Ok(()) } else { Err(broken(format_args!("unknown flags {flags}"))) }
}

fn tuple<'a>(from: &mut Reader<'a>) -> Result<Tuple<'a>> {
    let (tuple, rest) = Tuple::parse(from.rest())?;
    *from = Reader::new(rest);
    Ok(tuple)
}

fn new_image<'a>(from: &mut Reader<'a>) -> Result<Tuple<'a>> {
    match from.u8()? {
        b'N' => tuple(from),
        other => Err(broken(format_args!("unknown kind {other} of a new row"))),
    }
}

/// The old row, where there is one: whatever else follows is left to the caller.
fn old_image<'a>(from: &mut Reader<'a>) -> Result<Option<Old<'a>>> {
    let mut ahead = *from;
    let old = match ahead.u8()? {
        b'K' => Old::Key(tuple(&mut ahead)?),
        b'O' => Old::Full(tuple(&mut ahead)?),
        _ => return Ok(None),
    };
    *from = ahead;
    Ok(Some(old))
}

fn relation(from: &mut Reader<'_>) -> Result<Relation> {
    let (id, schema, name) = (from.u32()?, from.text()?.to_owned(), from.text()?.to_owned());
    let identity = from.u8()?;
    if !matches!(identity, b'd' | b'n' | b'f' | b'i') {
        return Err(broken(format_args!("unknown replica identity {identity}")));
    }
    let count = from.count16()?;
    // The shortest column takes 10 bytes: flags, an empty name, type, modifier.
    let mut columns = Vec::with_capacity(count.min(from.rest().len() / 10));
    for _ in 0..count {
        // Other flags than 1 are ignored, as PostgreSQL's own subscriber does.
        let key = from.u8()? & 1 == 1;
        let name = from.text()?.to_owned();
        columns.push(Column { key, name, type_oid: from.u32()?, typmod: from.i32()? });
    }
    Ok(Relation { id, schema, name, identity, columns })
}

fn truncate<'a>(from: &mut Reader<'a>) -> Result<Message<'a>> {
    let (count, flags) = (from.count32()?, from.u8()?);
    no_flags(flags, 3)?;
    let mut relations = Vec::with_capacity(count.min(from.rest().len() / 4));
    for _ in 0..count {
        relations.push(from.u32()?);
    }
    Ok(Message::Truncate { relations, cascade: flags & 1 != 0, restart_identity: flags & 2 != 0 })
}

fn logical<'a>(from: &mut Reader<'a>) -> Result<Message<'a>> {
    let flags = from.u8()?;
    no_flags(flags, 1)?;
    let (lsn, prefix, len) = (Lsn(from.u64()?), from.text()?, from.count32()?);
    Ok(Message::Logical { transactional: flags == 1, lsn, prefix, content: from.bytes(len)? })
}

impl fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Message::Begin { final_lsn, xid, .. } => write!(f, "Begin(xid {xid}, final {final_lsn})"),
            Message::Commit { end_lsn, .. } => write!(f, "Commit(end {end_lsn})"),
            Message::Origin { lsn, name } => write!(f, "Origin({name}, {lsn})"),
            Message::Relation(relation) => relation.fmt(f),
            Message::Type { oid, schema, name } => write!(f, "Type({oid}, {schema}.{name})"),
            Message::Insert { relation, new } => write!(f, "Insert({relation}, {new:?})"),
            Message::Update { relation, old, new } => write!(f, "Update({relation}, {old:?}, {new:?})"),
            Message::Delete { relation, old } => write!(f, "Delete({relation}, {old:?})"),
            Message::Truncate { relations, cascade, restart_identity } => {
                write!(f, "Truncate({relations:?}, cascade {cascade}, restart {restart_identity})")
            }
            Message::Logical { transactional, lsn, prefix, content } => {
                let (prefix, content) = (prefix.len(), content.len());
                write!(f, "Logical({lsn}, transactional {transactional}, {prefix} + {content} bytes)")
            }
        }
    }
}
