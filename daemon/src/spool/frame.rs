//! One frame of a spool: length, crc32, kind, payload. Bytes from disk never panic.

use bytes::{Buf, BufMut, Bytes};
use schemas::record::Fault;
use schemas::{Lsn, TableName};

/// Length and checksum before the kind.
pub(super) const HEAD: usize = 8;
/// A pgoutput message is at most a gigabyte and a little; anything longer is damage.
const MOST: u32 = (1 << 30) + (1 << 20);

/// What a spool is made of.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// First frame of a segment: the end of the last transaction sealed before it.
    Segment {
        /// End of that transaction.
        prev_end: Lsn,
    },
    /// A transaction begins.
    Begin {
        /// Its top-level id on the source.
        xid: u32,
        /// Where its commit record begins.
        commit_lsn: Lsn,
        /// When it committed, microseconds since 2000-01-01 by the source's clock.
        commit_ts: i64,
    },
    /// A pgoutput message: Relation, Insert, Update or Delete.
    Message {
        /// The message.
        bytes: Bytes,
        /// The lane's claims, where the row may be another tenant's; otherwise empty.
        claims: Bytes,
        /// It may give the row to another tenant, with what hangs on it.
        hands: bool,
    },
    /// The lane must stop here, for this reason.
    Stop {
        /// The table whose rows the reason is about: where its copy holds the transaction, there is none. Without
        /// one, the stream itself does not say any more what the lane needs.
        table: Option<TableName>,
        /// The reason.
        fault: Fault,
    },
    /// The transaction is complete and ends here.
    Commit {
        /// The end of its commit record.
        end: Lsn,
    },
}

/// Appends a frame to `out`.
pub(super) fn put(out: &mut Vec<u8>, kind: u8, payload: &[&[u8]]) {
    let length: usize = payload.iter().map(|part| part.len()).sum();
    let mut crc = crc32fast::Hasher::new();
    crc.update(&[kind]);
    payload.iter().for_each(|part| crc.update(part));
    out.put_u32(length as u32 + 1);
    out.put_u32(crc.finalize());
    out.put_u8(kind);
    payload.iter().for_each(|part| out.put_slice(part));
}

/// The payload's length that a frame's first bytes announce; `None` when it cannot be one.
pub(super) fn length(head: &[u8; HEAD]) -> Option<usize> {
    let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
    (1..=MOST).contains(&length).then_some(length as usize)
}

/// Reads a frame whose `body` (kind and payload) has arrived; `None` when it is damaged.
pub(super) fn parse(head: &[u8; HEAD], mut body: Bytes) -> Option<Frame> {
    if crc32fast::hash(&body).to_be_bytes() != head[4..] || body.is_empty() {
        return None;
    }
    let kind = body.get_u8();
    let frame = match (kind, body.len()) {
        (b'S', 8) => Frame::Segment { prev_end: Lsn(body.get_u64()) },
        (b'B', 20) => Frame::Begin { xid: body.get_u32(), commit_lsn: Lsn(body.get_u64()), commit_ts: body.get_i64() },
        (b'M', _) => Frame::Message { bytes: body, claims: Bytes::new(), hands: false },
        (b'U' | b'H', _) => {
            let length = body.try_get_u32().ok()? as usize;
            let claims = (body.len() >= length).then(|| body.split_to(length))?;
            Frame::Message { bytes: body, claims, hands: kind == b'H' }
        }
        (b'X', _) => {
            let (table, fault) = schemas::record::decode(&body).ok()?;
            Frame::Stop { table, fault }
        }
        (b'C', 8) => Frame::Commit { end: Lsn(body.get_u64()) },
        _ => return None,
    };
    Some(frame)
}
