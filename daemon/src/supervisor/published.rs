//! Watches for what the stream does not say: a column that was dropped and added again looks the same in it,
//! a table that left the publication for a moment was not in it. Such a move must be copied again; every other
//! change of a table is noticed by its lane. Partitions that come, go or are emptied take their rows along without a
//! word too: the lanes compare what is seen here with what they know.

use std::sync::Arc;
use std::time::Duration;

use connectors::postgres::{Client, Result, client, slot};
use schemas::record::{Fault, MoveRecord};
use schemas::{MoveId, TableName};

use super::{Entry, Supervisor};
use crate::moves::reverse::{self, Reverse};

/// How often the catalogs are looked at.
const EVERY: Duration = Duration::from_secs(1);

/// That part of `limits.memory` is for what lanes note of comparisons.
const NOTES: u64 = 4;

impl Supervisor {
    /// Runs as long as the daemon.
    pub(super) async fn watch_source(self: Arc<Self>) {
        let mut connection = None;
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !*self.stop.borrow() {
            tick.tick().await;
            self.forget_noted();
            if let Err(error) = self.compare_published(&mut connection).await {
                tracing::debug!(%error, "what is published could not be looked at");
                connection = None;
            }
        }
    }

    /// What lanes note of comparisons that do not count any more is of no use.
    fn forget_noted(&self) {
        let entries: Vec<Entry> = self.lock().values().cloned().collect();
        let memory = self.context.config.limits.memory;
        let mut room = usize::try_from(memory.0 / NOTES).unwrap_or(usize::MAX);
        for entry in entries {
            entry.moving.forget_noted(&mut room);
            entry.moving.reverse().iter().for_each(|back| back.moving.forget_noted(&mut room));
        }
    }

    async fn compare_published(&self, connection: &mut Option<Client>) -> Result<()> {
        let entries: Vec<Entry> = self.lock().values().cloned().collect();
        let watched: Vec<(Entry, MoveRecord)> = entries
            .into_iter()
            .map(|entry| (entry.clone(), entry.moving.record()))
            .filter(|(_, record)| record.phase.has_lane() && record.fault.is_none())
            .collect();
        let backs = self.shared_ways_back();
        if watched.is_empty() && backs.is_empty() {
            return Ok(());
        }
        let source = match connection {
            Some(source) => source,
            None => connection.insert(client::connect(&self.context.config.source.url, "watch").await?),
        };
        for (entry, back) in backs {
            let record = back.moving.record();
            // Lanes go by what is seen of partitions below, and a lane back knows none: it reads them by their root.
            let now = slot::published(source, &self.context.config.source.publication, &record.tables).await?;
            if let Some(fault) = reverse::target_changed(&record, &now) {
                self.break_way_back(&entry, &back, fault).await;
            }
        }
        let mut tables: Vec<TableName> = watched.iter().flat_map(|(_, record)| record.tables.clone()).collect();
        tables.sort_unstable();
        tables.dedup();
        if tables.is_empty() {
            return Ok(());
        }
        let now = slot::published(source, &self.context.config.source.publication, &tables).await?;
        for (entry, record) in watched {
            if let Some((object, cause)) = record.published.change(&now) {
                self.stop_changed(&entry, &record, object, cause).await;
            }
        }
        self.context.published.send_modify(|(looks, published)| (*looks, *published) = (*looks + 1, now));
        Ok(())
    }

    /// Those whose tables are in the source's publication: schemas of its database.
    fn shared_ways_back(&self) -> Vec<(Entry, Arc<Reverse>)> {
        let entries: Vec<Entry> = self.lock().values().cloned().collect();
        let backs = entries.into_iter().filter_map(|entry| Some((entry.clone(), entry.moving.reverse()?)));
        let runs = |back: &Reverse| back.is_shared() && back.moving.record().phase.has_lane();
        backs.filter(|(_, back)| runs(back)).collect()
    }

    async fn break_way_back(&self, entry: &Entry, back: &Arc<Reverse>, fault: Fault) {
        // Whoever takes it away says so before its tables leave the publication.
        if !entry.moving.reverse().is_some_and(|now| Arc::ptr_eq(&now, back)) {
            return;
        }
        back.broken(fault);
        self.drop_lane(back.moving.record().id).await;
    }

    async fn stop_changed(&self, entry: &Entry, seen: &MoveRecord, object: String, cause: &str) {
        let _one = self.commands.lock().await;
        // Meanwhile it may have been planned again, from what is there now.
        if entry.moving.record().published != seen.published {
            return;
        }
        let message = format!("{cause}: changes may not have been in the stream");
        let next = "`carveout move` copies the tenant again (`carveout check` says what else is missing)";
        if self.break_move(entry, Fault::new("source_changed", object, message, next)) {
            self.drop_lane(seen.id).await;
        }
    }

    /// Takes a lane that is of no use any more out of the pipeline, with its spool.
    async fn drop_lane(&self, id: MoveId) {
        if let Ok(Some(lane)) = self.context.pipeline.close(id).await
            && let Err(error) = lane.spool.remove()
        {
            tracing::warn!(%error, "a spool could not be removed");
        }
    }
}
