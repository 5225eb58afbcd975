//! Moves of tenants whose move is complete. `--to shared`: the tenant comes home, which is that move once more with its ends
//! exchanged. `--to database` from a schema: it goes on from there.

use std::sync::Arc;

use connectors::postgres::apply::silence;
use connectors::postgres::{client, policy, purge};
use schemas::config::Isolation;
use schemas::phase::Event;
use schemas::record::{Completion, MoveRecord, Published, Stage};
use schemas::status::CompletionReport;
use schemas::{Phase, TableName, TablePath};

use super::commands::{Wanted, no};
use super::{Entry, Refusal, Supervisor};
use crate::moves::complete;
use crate::moves::cutover::Wish;

impl Supervisor {
    /// Asked before the commands' lock is taken, since it reads whole tables: whether nothing is in the way of a return.
    pub(super) async fn may_return(&self, record: &MoveRecord) -> Result<(), Refusal> {
        if record.phase != Phase::Completed {
            return Ok(());
        }
        let tables = self.context.tables(&record.tables).await?;
        let source = client::connect(&self.context.config.source.url, "plan").await?;
        // Its rows are written past what fires for others'.
        silence(&source).await?;
        match purge::residue(&source, &tables, &record.tenant).await?.into_iter().next() {
            None => Ok(()),
            Some((table, rows)) => {
                let message =
                    format!("{rows} rows of the tenant are there already, which `complete` left or somebody wrote");
                Err(no("residue", &table.to_string(), &message, "delete them: the tenant brings its own"))
            }
        }
    }

    /// Begins a return; asking twice changes nothing. The caller has the commands' lock.
    pub(super) async fn return_home(
        &self,
        entry: &Entry,
        (published, fresh_xid): (Published, u64),
    ) -> Result<(), Refusal> {
        let record = entry.moving.record();
        let refuse = |message: &str, next: &str| Err(no("phase", &record.id.to_string(), message, next));
        match record.phase {
            Phase::Completed => {}
            // It is under way, and may stand.
            _ if record.returning => return Ok(()),
            _ if record.from.is_some() => {
                return refuse("the tenant is on its way from its schema to a database", "`carveout cancel` it first");
            }
            Phase::Moved => return refuse("it has not been completed: the way back is open", "`carveout rollback`"),
            _ => return refuse("the tenant lives in the shared database", "carveout status"),
        }
        let tables = self.context.tables(&record.tables).await?;
        Self::stop_driver(entry).await;
        entry.moving.advance_with(&self.context.store, Event::Return, |record| {
            (record.returning, record.completion) = (true, None);
            record.unproved();
            record.skipped.clear();
            (record.paths, record.published, record.fresh_xid) = (policy::paths(&tables), published, fresh_xid);
            record.published.tables.retain(|(table, _)| record.tables.contains(table));
        })?;
        self.spawn_driver(entry);
        Ok(())
    }

    /// Whether the tenant goes on from a schema to a database.
    pub(super) fn goes_on(&self, record: &MoveRecord, wanted: &Wanted) -> bool {
        record.phase == Phase::Completed && record.to == Isolation::Schema && wanted.to == Some(Isolation::Database)
    }

    /// Begins that move.
    pub(super) async fn next_stage(&self, earlier: &MoveRecord, wanted: Wanted) -> Result<(), Refusal> {
        let (target, source) = (self.context.target(earlier)?, &self.context.config.source.url);
        let here = target.url.same_server(source) && source.database() == Some(target.database.as_str());
        let Some(schema) = earlier.schema.clone().filter(|_| here) else {
            let message = "its schema is in another database, from which this version moves a tenant home only";
            return Err(no("target", &earlier.id.to_string(), message, "`carveout move --to shared` first"));
        };
        let shared = self.context.tables(&earlier.tables).await?;
        let record = self.planned(&earlier.tenant, wanted, &shared)?;
        let own = |home: &TableName| TableName::new(&schema, &home.name);
        self.begin_move(MoveRecord {
            tables: earlier.tables.iter().map(own).collect(),
            paths: earlier.tables.iter().map(|_| TablePath::Reference).collect(),
            from: Some(Stage { schema: schema.clone(), homes: earlier.tables.clone(), paths: earlier.paths.clone() }),
            after: Some(earlier.id),
            epoch: earlier.epoch,
            ..record
        })
    }

    /// A return is given up: what was copied home goes, and the tenant stays where it lives.
    pub(super) async fn stay_away(&self, entry: &Entry) -> Result<(), Refusal> {
        Self::stop_driver(entry).await;
        let ended = entry.moving.advance_with(&self.context.store, Event::Complete, |record| {
            (record.fault, record.stopped_at, record.paused) = (None, None, false);
            (record.completion, record.copy_again) = (Some(Completion::default()), false);
        });
        self.spawn_driver(entry);
        Ok(ended?)
    }

    /// Ends a return: what the tenant had elsewhere is dropped.
    pub(super) async fn complete_return(
        self: &Arc<Self>,
        entry: &Entry,
        keep_source: bool,
    ) -> Result<CompletionReport, Refusal> {
        let record = entry.moving.record();
        if keep_source {
            let next = "`carveout complete` drops it";
            return Err(no(
                "keep_source",
                &record.id.to_string(),
                "what a tenant that came home had cannot be kept",
                next,
            ));
        }
        if record.phase == Phase::Following {
            let completion = complete::prepare_return(&self.context, &entry.moving).await?;
            let _one = self.commands.lock().await;
            if entry.moving.record().phase == Phase::Following {
                Self::stop_driver(entry).await;
                let ended = entry.moving.advance_with(&self.context.store, Event::Cancel, |record| {
                    (record.completion, record.paused) = (Some(completion), false);
                    record.unproved();
                });
                self.spawn_driver(entry);
                ended?;
            }
        }
        if entry.moving.record().phase == Phase::Cancelling && entry.moving.record().fault.is_some() {
            let _one = self.commands.lock().await;
            Self::stop_driver(entry).await;
            entry.moving.update(&self.context.store, |record| record.fault = None)?;
            self.spawn_driver(entry);
        }
        if !matches!(entry.moving.record().phase, Phase::Cancelling | Phase::Cancelled) {
            return Err(no(
                "phase",
                &record.id.to_string(),
                "the tenant's writes were moved meanwhile",
                "carveout status",
            ));
        }
        entry.ended(Phase::Cancelled).await?;
        Ok(complete::report(&self.context, &entry.moving).await?)
    }
}

impl Entry {
    /// Waits for a move's end, or what keeps it from that.
    pub(super) async fn ended(&self, end: Phase) -> Result<(), Refusal> {
        let mut phase = self.moving.watch_phase();
        // Its sender lives as long as this.
        drop(phase.wait_for(|(phase, fault)| *phase == end || *fault).await);
        match self.moving.record().fault {
            Some(fault) => Err(Refusal { kind: super::RefusalKind::Conflict, fault }),
            None => Ok(()),
        }
    }
}

/// Of a tenant that comes home, what it lived in is where the move's writes come from.
pub(super) fn meant(wish: Wish, record: &MoveRecord) -> Wish {
    match wish {
        Wish::CutOver if record.returning => Wish::RollBack,
        Wish::RollBack if record.returning => Wish::CutOver,
        wish => wish,
    }
}
