//! Writes `carveout.migration_progress` in the source's database: once a second what has changed since, in one statement on a
//! connection of its own. It only tells: no move waits for it, and what could not be written is written later.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use connectors::postgres::progress::{self, Row};
use connectors::postgres::{Client, Result};
use schemas::record::{Fault, MoveRecord};
use schemas::{MoveId, Phase, TenantId};

use super::{Entry, Supervisor};

/// How often it is looked at what has changed.
const EVERY: Duration = Duration::from_secs(1);

/// What has been written.
#[derive(Default)]
struct Written {
    connection: Option<Client>,
    moves: HashMap<MoveId, (Stand, Vec<Row>)>,
    failed: bool,
}

/// As long as this is the same, so are the rows, unless the move copies.
#[derive(PartialEq)]
struct Stand {
    events: usize,
    fault: Option<Fault>,
    paused: bool,
    copies: usize,
}

impl Supervisor {
    /// Runs as long as the daemon.
    pub(super) async fn write_progress(self: Arc<Self>) {
        let mut written = Written::default();
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !*self.stop.borrow() {
            tick.tick().await;
            match self.write_changed(&mut written).await {
                Ok(()) => written.failed = false,
                Err(error) => {
                    if !std::mem::replace(&mut written.failed, true) {
                        tracing::warn!(%error, "the moves' progress could not be written; trying again");
                    }
                    // What the source has of it is not known any more.
                    (written.connection, written.moves) = (None, HashMap::new());
                }
            }
        }
    }

    async fn write_changed(&self, written: &mut Written) -> Result<()> {
        let (mut begun, mut changed, mut now) = (Vec::new(), Vec::new(), Vec::new());
        let newest = self.newest();
        for (entry, record) in newest.values() {
            let back = entry.moving.way_back().and_then(|reverse| reverse.moving.record().fault);
            let stand = Stand {
                events: record.history.len(),
                fault: record.fault.clone().or(back),
                paused: record.paused,
                copies: entry.moving.known_copies(),
            };
            let before = written.moves.get(&record.id);
            if before
                .is_some_and(|(was, _)| *was == stand && !matches!(record.phase, Phase::Copying | Phase::Returning))
            {
                continue;
            }
            let rows = entry.moving.progress();
            let known = before.map(|(_, rows)| rows.as_slice()).unwrap_or_default();
            changed.extend(rows.iter().filter(|row| !known.contains(row)).cloned());
            if before.is_none() {
                begun.extend(record.history.first().map(|first| (record.tenant.0.clone(), first.at)));
            }
            now.push((record.id, (stand, rows)));
        }
        if !changed.is_empty() {
            let source = match &written.connection {
                Some(source) => source,
                None => written.connection.insert(progress::connect(&self.context.config.source.url).await?),
            };
            progress::write(source, &begun, &changed).await?;
        }
        written.moves.extend(now);
        if newest.values().all(|(_, record)| matches!(record.phase, Phase::Completed | Phase::Cancelled)) {
            written.connection = None;
        }
        Ok(())
    }

    /// The move of each tenant: the newest one, those that are not cancelled first.
    fn newest(&self) -> BTreeMap<TenantId, (Entry, MoveRecord)> {
        let mut newest: BTreeMap<TenantId, (Entry, MoveRecord)> = BTreeMap::new();
        for entry in self.lock().values() {
            let record = entry.moving.record();
            let other = newest.get(&record.tenant).is_some_and(|(_, other)| other.phase != Phase::Cancelled);
            if !(other && record.phase == Phase::Cancelled) {
                newest.insert(record.tenant.clone(), (entry.clone(), record));
            }
        }
        newest
    }
}
