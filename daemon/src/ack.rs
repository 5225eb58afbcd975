//! The acknowledge rule: a position passes to the slot only after every lane holds everything up to
//! it, in its target or in its synced spool, and after the record that says so is on disk.
//!
//! Also keeps the list of transactions that were delivered and that no snapshot shows yet: a copy
//! that begins now must not count on them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use connectors::postgres::{self, client, slot, snapshot};
use schemas::record::AckRecord;
use schemas::url::PgUrl;
use schemas::{Lsn, MoveId, Snapshot};

use crate::spool::SyncJob;
use crate::store::Store;

/// Transactions delivered by the stream that no polled snapshot has shown.
#[derive(Debug, Default)]
pub struct Unseen {
    xids: Vec<u32>,
    fresh_xid: Option<u64>,
}

impl Unseen {
    /// What the acknowledge record remembers; on a fresh start an id that is new counts.
    pub fn new(xids: Vec<u32>, fresh_xid: Option<u64>) -> Self {
        Unseen { xids, fresh_xid }
    }

    /// The stream delivered a transaction.
    pub fn delivered(&mut self, xid: u32) {
        self.xids.push(xid);
    }

    /// A snapshot taken later shows these; every snapshot after it does too.
    fn polled(&mut self, snapshot: &Snapshot) {
        self.xids.retain(|xid| !snapshot.shows_xid(*xid));
        self.fresh_xid = self.fresh_xid.filter(|xid| snapshot.xmin < *xid);
    }

    /// What a copy's snapshot must show, as of now.
    pub fn demand(&self) -> Demand {
        Demand { xids: self.xids.clone(), fresh_xid: self.fresh_xid }
    }
}

/// What a snapshot must show before it counts for a copy.
#[derive(Clone, Debug, Default)]
pub struct Demand {
    xids: Vec<u32>,
    fresh_xid: Option<u64>,
}

impl Demand {
    /// Whether the snapshot shows every transaction that was delivered before the lane was open.
    pub fn met_by(&self, snapshot: &Snapshot) -> bool {
        self.fresh_xid.is_none_or(|xid| snapshot.xmin >= xid) && self.xids.iter().all(|xid| snapshot.shows_xid(*xid))
    }
}

/// The list, shared between the pipeline and the copies.
pub type SharedUnseen = Arc<Mutex<Unseen>>;

/// What the source said about itself while a position was being acknowledged.
#[derive(Clone, Copy, Debug)]
pub struct Polled {
    /// The end of its log.
    pub wal_end: Lsn,
    /// Log kept for our slot, in bytes.
    pub retained_bytes: u64,
    /// Whether the server has dropped log that the slot needs.
    pub lost: bool,
}

/// One round: everything needed to let `position` pass.
pub struct Round {
    /// The position, a transaction end or a keepalive's end with nothing in flight.
    pub position: Lsn,
    /// Who the source is.
    pub base: AckRecord,
    /// Spools of lanes that are not caught up, to be synced.
    pub jobs: Vec<SyncJob>,
    /// Lanes that were taken out.
    pub quarantined: Vec<MoveId>,
    /// For these lanes: the end of the last transaction they hold.
    pub held: Vec<(MoveId, Lsn)>,
    /// For every lane: the end of the last transaction that its target holds.
    pub applied: Vec<(MoveId, Lsn)>,
}

/// What a round came to.
pub struct Done {
    /// What may be acknowledged now.
    pub position: Lsn,
    /// What the source said; `None` when it could not be asked, as while it shuts down.
    pub polled: Option<Polled>,
}

/// Runs rounds one after the other, beside the pipeline, which never waits for them.
pub struct Acknowledger {
    url: PgUrl,
    slot: String,
    store: Store,
    unseen: SharedUnseen,
    client: Option<connectors::postgres::Client>,
    last: Option<AckRecord>,
}

/// A spool could not be synced, or the record not written: nothing may be acknowledged.
#[derive(Debug, thiserror::Error)]
#[error("make what was received durable: {0}")]
pub struct AckError(String);

/// How long the source may take to answer a poll.
const POLL_PATIENCE: Duration = Duration::from_secs(3);

/// With more delivered transactions than this that no snapshot was seen to show, nothing more is acknowledged
/// until the source can be asked again.
const MOST_UNSEEN: usize = 100_000;

impl Acknowledger {
    /// For a slot of the source behind `url`.
    pub fn new(url: PgUrl, slot: String, store: Store, unseen: SharedUnseen) -> Self {
        Acknowledger { url, slot, store, unseen, client: None, last: None }
    }

    /// Syncs, polls, records. Afterwards the position may be sent.
    pub async fn run(&mut self, round: Round) -> Result<Done, AckError> {
        let durable = |error: &dyn std::fmt::Display| AckError(error.to_string());
        let Round { position, base, jobs, held, applied, quarantined } = round;
        let synced = tokio::task::spawn_blocking(move || jobs.iter().try_for_each(SyncJob::run)).await;
        synced.map_err(|error| durable(&error))?.map_err(|error| durable(&error))?;
        // Not asked, the list of unseen transactions is only longer than it need be. A source that
        // shuts down answers no questions but waits for this very acknowledgement.
        let polled = match tokio::time::timeout(POLL_PATIENCE, self.poll()).await {
            Ok(Ok(polled)) => Some(polled),
            Ok(Err(error)) => {
                tracing::debug!(%error, "the source could not be asked");
                self.client = None;
                None
            }
            Err(_) => {
                self.client = None;
                None
            }
        };
        let unpolled = polled.is_none();
        let (unseen, fresh_xid) = {
            let unseen = self.unseen.lock().unwrap_or_else(PoisonError::into_inner);
            (unseen.xids.clone(), unseen.fresh_xid)
        };
        // A list that only grows, because the source answers no questions, must not grow for ever.
        if let Some(last) = self.last.as_ref().filter(|_| unpolled && unseen.len() > MOST_UNSEEN) {
            return Ok(Done { position: last.position, polled });
        }
        let record = AckRecord { position, unseen, fresh_xid, held, applied, quarantined, ..base };
        if self.last.as_ref() != Some(&record) {
            let (store, written) = (self.store.clone(), record.clone());
            let put = tokio::task::spawn_blocking(move || store.put_ack(&written)).await;
            put.map_err(|error| durable(&error))?.map_err(|error| durable(&error))?;
            self.last = Some(record);
        }
        Ok(Done { position, polled })
    }

    async fn poll(&mut self) -> postgres::Result<Polled> {
        let client = match self.client.take() {
            Some(client) if !client.is_closed() => self.client.insert(client),
            _ => self.client.insert(client::connect(&self.url, "monitor").await?),
        };
        let shown = snapshot::current(client).await?;
        self.unseen.lock().unwrap_or_else(PoisonError::into_inner).polled(&shown);
        let wal_end = slot::wal_end(client).await?;
        let slot = slot::find(client, &self.slot).await?;
        let lost = slot.as_ref().is_none_or(|slot| slot.wal_status == "lost");
        Ok(Polled { wal_end, retained_bytes: slot.map_or(0, |slot| slot.retained_bytes), lost })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivered_transaction_is_demanded_until_a_snapshot_showed_it() {
        let mut unseen = Unseen::new(vec![8], Some(12));
        unseen.delivered(10);
        unseen.polled(&"9:11:10".parse().unwrap());
        let demand = unseen.demand();
        assert!(!demand.met_by(&"10:20:10".parse().unwrap()), "10 is running");
        assert!(!demand.met_by(&"11:20:".parse().unwrap()), "xmin is below the fresh xid");
        assert!(demand.met_by(&"12:20:".parse().unwrap()));
        unseen.polled(&"12:20:".parse().unwrap());
        assert!(unseen.demand().met_by(&"3:3:".parse().unwrap()), "nothing is demanded any more");
    }
}
