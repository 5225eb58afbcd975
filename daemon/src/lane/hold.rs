//! Standing still at one position: for `verify`, where the target is brought to hold exactly the transactions that a snapshot of the
//! source shows; and for a cutover behind the barrier.

use std::sync::Weak;

use connectors::postgres::apply::PostgresSink;
use schemas::{Lsn, Snapshot};

use super::group::Group;
use super::{End, Lane, LaneCommand};
use crate::spool::{Frame, SpoolReader};
use crate::stop;

impl Lane {
    /// Carries out a command; returns what the target holds then.
    pub(super) async fn command(
        &mut self,
        command: LaneCommand,
        sink: &mut PostgresSink,
        reader: &mut SpoolReader,
        group: &mut Group,
        mut lsn: Lsn,
    ) -> std::result::Result<Lsn, End> {
        match command {
            // When nobody waits for the answer any more, nobody would release it either.
            LaneCommand::Hold(held) => self.held = held.send(lsn).is_ok(),
            LaneCommand::Release => self.held = false,
            LaneCommand::GoOn => self.drained = false,
            LaneCommand::Note { changed, done } => {
                self.changed.upgrade().iter().for_each(|before| before.close());
                changed.upgrade().iter().for_each(|changed| changed.begin());
                sink.note(Weak::clone(&changed));
                self.changed = changed;
                // Whoever asked may be gone.
                let _ = done.send(());
            }
            LaneCommand::Drain { until, mut done, drained } => {
                tokio::select! {
                    passed = self.stream_passed(until) => if !passed {
                        return Err(End::Stopped);
                    },
                    () = done.closed() => return Ok(lsn),
                }
                let sealed = *self.plan.spool.sealed.borrow();
                while reader.place_before(&sealed) {
                    lsn = self.apply(sink, reader, group, usize::MAX).await?;
                }
                while sink.expects() && !done.is_closed() {
                    lsn = self.arrive(sink, reader, group, lsn, true).await?;
                }
                self.drained = true;
                // When nobody takes the answer any more, it goes on.
                drop(done.send(drained));
            }
            LaneCommand::Advance { done, .. } if self.drained => {
                let _ = done.send(Err("its writes were being moved"));
            }
            LaneCommand::Advance { snapshot, until, mut done } => {
                tokio::select! {
                    passed = self.stream_passed(until) => if !passed {
                        return Err(End::Stopped);
                    },
                    // Nobody waits for it any more.
                    () = done.closed() => return Ok(lsn),
                }
                let prefix = self.prefix(reader, &snapshot)?;
                let mut left = prefix.unwrap_or(0);
                while left > 0 {
                    lsn = self.apply(sink, reader, group, left).await?;
                    left = left.saturating_sub(group.transactions());
                }
                let _ = done.send(match (prefix, sink.expects()) {
                    (None, _) => Err("transactions became visible in another order than they were committed"),
                    (_, true) => Err("rows that come from another tenant or partition were still to be read"),
                    _ => Ok(()),
                });
            }
        }
        Ok(lsn)
    }

    /// Waits until everything up to `until` is in the spool; false when told to stop.
    pub(super) async fn stream_passed(&self, until: Lsn) -> bool {
        let mut progress = self.progress.clone();
        tokio::select! {
            passed = progress.wait_for(|progress| progress.received >= until) => passed.is_ok(),
            () = stop::told(&self.stop) => false,
        }
    }

    /// How many of the waiting transactions the snapshot shows; `None` when they are not the first.
    pub(super) fn prefix(
        &self,
        reader: &mut SpoolReader,
        snapshot: &Snapshot,
    ) -> std::result::Result<Option<usize>, End> {
        let sealed = *self.plan.spool.sealed.borrow();
        let start = reader.place();
        let (mut shown, mut hidden, mut prefix) = (0, false, true);
        loop {
            match reader.next(&sealed).map_err(|error| self.spool_broken(&error))? {
                Some(Frame::Begin { xid, .. }) if snapshot.shows_xid(xid) => {
                    prefix &= !hidden;
                    shown += 1;
                }
                Some(Frame::Begin { .. }) => hidden = true,
                Some(_) => {}
                None => break,
            }
        }
        reader.seek(start).map_err(|error| self.spool_broken(&error))?;
        Ok(prefix.then_some(shown))
    }
}
