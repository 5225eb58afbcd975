//! A lane's queue on disk: append-only segment files of checksummed frames.
//!
//! The pipeline appends changes as they arrive; a Commit frame seals its transaction, and only
//! sealed transactions are read. An unsealed tail is cut at reconnect and at start. Every segment
//! can be read by itself: it repeats the relations it uses and says which transaction came last
//! before it. Files are synced only when an acknowledgement needs it.

mod frame;
mod reader;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use schemas::Lsn;
use tokio::sync::watch;

pub use frame::Frame;
pub use reader::{Place, SpoolReader};
pub use writer::{SpoolWriter, SyncJob, is_full};

/// A segment is closed at the first frame after this many bytes.
const SEGMENT_BYTES: u64 = 4 << 20;
/// A segment whose every transaction has been applied is closed after this many bytes, so that an
/// idle lane keeps little.
const IDLE_SEGMENT_BYTES: u64 = 256 << 10;

/// Up to where the spool is sealed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sealed {
    /// The segment's number.
    pub segment: u64,
    /// The offset in it.
    pub offset: u64,
    /// End of the last sealed transaction.
    pub end: Lsn,
}

/// What the writer and the reader of one spool share.
#[derive(Debug)]
pub struct SpoolState {
    /// Where the sealed part ends; the lane waits for it to change.
    pub sealed: watch::Sender<Sealed>,
    /// Bytes ever appended.
    written: AtomicU64,
    /// Bytes that the lane needs no more.
    consumed: AtomicU64,
    /// End of the last transaction that the lane's target holds.
    applied: AtomicU64,
    /// What the target held once, as the last acknowledge record says.
    known_applied: AtomicU64,
    /// Commit time of the first transaction that the target does not hold.
    oldest: AtomicI64,
    /// Where that one's commit record begins.
    oldest_lsn: AtomicU64,
    /// Commit time and position of a transaction with which rows arrived that the target does not hold yet; zeros
    /// where nothing is missing.
    arriving: Mutex<Option<(i64, Lsn)>>,
}

impl SpoolState {
    fn new(sealed: Sealed, written: u64) -> Self {
        SpoolState {
            sealed: watch::Sender::new(sealed),
            written: AtomicU64::new(written),
            consumed: AtomicU64::new(0),
            applied: AtomicU64::new(0),
            known_applied: AtomicU64::new(0),
            oldest: AtomicI64::new(0),
            oldest_lsn: AtomicU64::new(0),
            arriving: Mutex::new(None),
        }
    }

    /// Bytes in the spool that the target does not hold yet.
    pub fn bytes(&self) -> u64 {
        self.written.load(Ordering::Relaxed).saturating_sub(self.consumed.load(Ordering::Relaxed))
    }

    /// End of the last transaction that the target holds; zero when none.
    pub fn applied(&self) -> Lsn {
        Lsn(self.applied.load(Ordering::Acquire))
    }

    /// The most that the target was ever seen to hold; it must not hold less.
    pub fn known_applied(&self) -> Lsn {
        Lsn(self.known_applied.load(Ordering::Acquire)).max(self.applied())
    }

    /// The acknowledge record says that the target held this.
    pub fn set_known_applied(&self, lsn: Lsn) {
        self.known_applied.store(lsn.0, Ordering::Release);
    }

    /// Whether the target holds every sealed transaction.
    pub fn caught_up(&self) -> bool {
        self.applied() >= self.sealed.borrow().end
    }

    /// Commit time of the oldest transaction not in the target (source's clock, microseconds since
    /// 2000-01-01); `None` when there is none.
    pub fn oldest(&self) -> Option<i64> {
        let waiting = || (!self.caught_up()).then(|| self.oldest.load(Ordering::Relaxed));
        self.arriving().map(|(commit_ts, _)| commit_ts).or_else(waiting)
    }

    fn arriving(&self) -> Option<(i64, Lsn)> {
        *self.arriving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the target lacks rows that arrived with a transaction that it holds.
    pub fn lacks_rows(&self) -> bool {
        self.arriving().is_some()
    }

    /// Whether rows have arrived that the target does not hold yet; `before` is where it held everything. Where no
    /// transaction waits that could have brought them, they count from `now` on, by the source's clock.
    pub fn set_lacks_rows(&self, lacks: bool, before: Lsn, now: i64) {
        let since = (if self.caught_up() { now } else { self.oldest.load(Ordering::Relaxed) }, before);
        let mut arriving = self.arriving.lock().unwrap_or_else(PoisonError::into_inner);
        *arriving = lacks.then(|| arriving.unwrap_or(since));
    }

    /// The transaction that is about to be applied, or the first after a time of rest, committed then.
    pub fn set_oldest(&self, commit_ts: i64, commit_lsn: Lsn) {
        self.oldest.store(commit_ts, Ordering::Relaxed);
        self.oldest_lsn.store(commit_lsn.0, Ordering::Relaxed);
    }

    /// Up to where the target holds everything of its tenant: a lane that had nothing to apply for long is at
    /// the transaction that came then.
    pub fn position(&self) -> Lsn {
        let held = || Lsn(self.oldest_lsn.load(Ordering::Relaxed)).max(self.known_applied());
        self.arriving().map_or_else(held, |(_, before)| before)
    }

    /// The lane's target holds everything up to `end`, which ends at `place`.
    pub fn set_applied(&self, end: Lsn, place: Place) {
        self.consumed.store(place.consumed, Ordering::Relaxed);
        self.applied.fetch_max(end.0, Ordering::AcqRel);
    }
}

/// The file of a segment.
fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016}.seg"))
}

/// The numbers of the segments in a folder, in order.
fn segments(dir: &Path) -> std::io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number =
            name.to_str().and_then(|name| name.strip_suffix(".seg")).and_then(|digits| digits.parse::<u64>().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

#[cfg(test)]
mod tests;
