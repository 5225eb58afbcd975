//! Watches for what the stream does not say: a column that was dropped and added again under the same
//! name and type looks the same in it, and the rows that had a value in the old one would differ for
//! ever. Such a move stops; every other change of a table is noticed by its lane.

use std::sync::Arc;
use std::time::Duration;

use connectors::postgres::{Client, Result, catalog, client};
use schemas::TableName;
use schemas::record::{Fault, MoveRecord};

use super::{Entry, Supervisor};

/// How often the catalogs are looked at.
const EVERY: Duration = Duration::from_secs(1);

impl Supervisor {
    /// Runs as long as the daemon.
    pub(super) async fn watch_columns(self: Arc<Self>) {
        let mut connection = None;
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !*self.stop.borrow() {
            tick.tick().await;
            if let Err(error) = self.compare_columns(&mut connection).await {
                tracing::debug!(%error, "the columns could not be looked at");
                connection = None;
            }
        }
    }

    async fn compare_columns(&self, connection: &mut Option<Client>) -> Result<()> {
        let entries: Vec<Entry> = self.lock().values().cloned().collect();
        let watched: Vec<(Entry, MoveRecord)> = entries
            .into_iter()
            .map(|entry| (entry.clone(), entry.moving.record()))
            .filter(|(_, record)| record.phase.has_lane() && record.fault.is_none())
            .collect();
        let mut tables: Vec<TableName> = watched.iter().flat_map(|(_, record)| record.tables.clone()).collect();
        tables.sort_unstable();
        tables.dedup();
        if tables.is_empty() {
            return Ok(());
        }
        let source = match connection {
            Some(source) => source,
            None => connection.insert(client::connect(&self.context.config.source.url, "watch").await?),
        };
        let now = catalog::column_numbers(source, &tables).await?;
        for (entry, record) in watched {
            let columns = record.tables.iter().zip(&record.columns);
            let replaced = columns.into_iter().find_map(|(table, columns)| {
                let numbers = now.get(table)?;
                let other = |(name, number): &&(String, i16)| numbers.get(name).is_some_and(|now| now != number);
                columns.iter().find(other).map(|(name, _)| (table.clone(), name.clone()))
            });
            if let Some((table, column)) = replaced {
                self.stop_replaced(&entry, &table, &column).await;
            }
        }
        Ok(())
    }

    async fn stop_replaced(&self, entry: &Entry, table: &TableName, column: &str) {
        let fault = Fault::new(
            "column_replaced",
            table.to_string(),
            format!("column \"{column}\" was dropped and added again on the source"),
            "`carveout cancel` the move, then `carveout move` it again",
        );
        tracing::error!(id = %entry.moving.record().id, %table, column, "the move stopped: a column was dropped and added again");
        Self::stop_driver(entry).await;
        if let Err(error) = entry.moving.update(&self.context.store, |record| record.fault = Some(fault)) {
            tracing::error!(%error, "the fault could not be stored");
        }
    }
}
