//! Commands that hold a move and let it go on. A move that is held is stored as such first: what follows can be cut
//! off anywhere.

use std::sync::Arc;

use connectors::postgres::policy::{self, Owned};
use schemas::config::Isolation;
use schemas::phase::Event;
use schemas::record::{MoveRecord, Published};
use schemas::status::TenantStatus;
use schemas::{Lsn, Phase};

use super::commands::{Wanted, no, not_found, one_name_each};
use super::{Entry, Refusal, Supervisor};
use crate::moves::Moving;

impl Supervisor {
    /// Holds copy and apply; the lane's spool goes on filling, within its budget. Asking twice changes nothing.
    pub async fn pause(&self, tenant: &str) -> Result<TenantStatus, Refusal> {
        let _one = self.commands.lock().await;
        let entry = self.held(tenant)?;
        let record = entry.moving.record();
        if matches!(record.phase, Phase::CuttingOver | Phase::RollingBack | Phase::Completing) {
            let message = format!("the move is {}, which cannot be held", record.word(None, false));
            return Err(no("phase", tenant, &message, "wait for that to end"));
        }
        if !record.paused {
            entry.moving.update(&self.context.store, |record| record.paused = true)?;
            Self::stop_driver(&entry).await;
            entry.moving.meter.set_trouble(None);
        }
        self.tenant(tenant).ok_or_else(|| not_found(tenant))
    }

    /// Lets a move go on that was paused, or that stood with a fault; with `skip` without the transaction that its
    /// fault names.
    pub async fn resume_tenant(self: &Arc<Self>, tenant: &str, skip: Option<Lsn>) -> Result<TenantStatus, Refusal> {
        let one = self.commands.lock().await;
        let entry = self.held(tenant)?;
        let record = entry.moving.record();
        let back = entry.moving.way_back().and_then(|reverse| reverse.moving.record().fault);
        let stands = record.fault.is_some() || back.is_some();
        match skip {
            Some(skip) => self.leave_out(&entry, skip).await?,
            None if stands || record.phase == Phase::NeedsCopy => {
                drop(one);
                return self.start_move(&record.tenant.0, Wanted { resume: true, ..Wanted::default() }).await;
            }
            None if record.paused => {
                entry.moving.update(&self.context.store, |record| record.paused = false)?;
                self.spawn_driver(&entry);
            }
            None => {}
        }
        self.tenant(tenant).ok_or_else(|| not_found(tenant))
    }

    /// Lets a move go on where it stopped; one whose lane is lost is copied again.
    pub(super) async fn resume_move(
        &self,
        entry: &Entry,
        wanted: &Wanted,
        tables: &[Owned],
        (published, fresh_xid): (Published, u64),
    ) -> Result<(), Refusal> {
        let record = entry.moving.record();
        let bound = if record.returning { Isolation::Shared } else { record.to };
        if wanted.to.is_some_and(|to| to != bound) || !wanted.is_server_of(&record) {
            let what = if wanted.is_server_of(&record) { "kind of target" } else { "server" };
            let message = format!("the tenant is on its way to another {what}");
            return Err(no("exists", &record.id.to_string(), &message, "`carveout cancel` it first"));
        }
        if record.phase == Phase::Completed {
            let message = "the tenant was moved for good, and lives in its target";
            return Err(no("completed", &record.id.to_string(), message, "`carveout complete` shows the report"));
        }
        if record.phase == Phase::Cancelling {
            return Err(no(
                "cancelling",
                &record.id.to_string(),
                "the move is being cancelled",
                "wait until it is cancelled, then move again",
            ));
        }
        if record.paused && !wanted.resume {
            return Err(no(
                "paused",
                &record.id.to_string(),
                "a person holds the move",
                "`carveout resume` lets it go on",
            ));
        }
        let back = entry.moving.way_back().map(|reverse| reverse.moving.record());
        if back.as_ref().is_some_and(|back| back.phase == Phase::NeedsCopy) {
            if !record.returning {
                let next = "`carveout complete` ends the move without a way back";
                return Err(no("reverse", &record.id.to_string(), "the lane back has lost changes for good", next));
            }
            // What has come home is copied once more.
            entry.moving.advance_with(&self.context.store, Event::Return, |record| record.copy_again = true)?;
        }
        let stands =
            record.fault.is_some() || back.is_some_and(|back| back.fault.is_some() || back.phase == Phase::NeedsCopy);
        if !stands && record.phase != Phase::NeedsCopy && !record.paused {
            return Ok(());
        }
        // An order to stop stays in the spool: going on would pass over a change.
        let ordered =
            |code: &str| matches!(code, "truncate" | "toast" | "null_tenant" | "schema_changed" | "tenant_changed");
        let standing = record.fault.as_ref().filter(|fault| record.phase.has_lane() && ordered(&fault.code));
        if let Some(fault) = standing {
            return Err(no(&fault.code, &fault.object, &fault.message, &fault.next));
        }
        if record.phase == Phase::NeedsCopy && record.to == Isolation::Schema {
            one_name_each(tables)?;
        }
        Self::stop_driver(entry).await;
        self.mend_way_back(&entry.moving)?;
        entry.moving.update(&self.context.store, |record| {
            (record.fault, record.stopped_at, record.paused) = (None, None, false);
            if let Ok(phase) = record.phase.after(Event::CopyAgain) {
                // The new copy holds them.
                record.skipped.clear();
                (record.phase, record.copy_again) = (phase, true);
                record.unproved();
                // What is read of a schema of the tenant's own is looked at when it is published.
                if record.from.is_none() {
                    (record.tables, record.paths) = (policy::names(tables), policy::paths(tables));
                    (record.published, record.fresh_xid) = (published, fresh_xid);
                }
            }
        })?;
        self.spawn_driver(entry);
        Ok(())
    }

    /// Its lane back need not stand any more.
    fn mend_way_back(&self, moving: &Moving) -> Result<(), Refusal> {
        if let Some(reverse) = moving.way_back() {
            reverse.moving.update(&self.context.store, |record| (record.fault, record.stopped_at) = (None, None))?;
            return Ok(());
        }
        // It was not opened since the daemon began.
        let id = moving.record().reverse;
        if let Some(lane) = self.context.store.moves()?.into_iter().find(|lane| Some(lane.id) == id) {
            self.context.store.put_move(&MoveRecord { fault: None, stopped_at: None, ..lane })?;
        }
        Ok(())
    }

    /// Goes on without one transaction. That it was left out is stored before, and stays with the move.
    async fn leave_out(&self, entry: &Entry, skip: Lsn) -> Result<(), Refusal> {
        // The lane that runs: while the tenant lives in its target the one back.
        let lane =
            entry.moving.way_back().map_or_else(|| Arc::clone(&entry.moving), |reverse| Arc::clone(&reverse.moving));
        let record = lane.record();
        let object = record.id.to_string();
        let stopped_at = record.stopped_at.filter(|_| record.fault.is_some() && record.phase.has_lane());
        if stopped_at != Some(skip) {
            let message = match stopped_at {
                Some(stands) => format!("the move stands at the transaction that ends at {stands}, not at {skip}"),
                None => "the move does not stand at a transaction: there is none to leave out".to_owned(),
            };
            return Err(no(
                "skip",
                &object,
                &message,
                "`carveout status` shows the fault, which names the transaction",
            ));
        }
        Self::stop_driver(entry).await;
        lane.update(&self.context.store, |record| {
            record.skipped.push(skip);
            (record.fault, record.stopped_at, record.paused) = (None, None, false);
            record.unproved();
        })?;
        // What a lane home says, the move says too.
        entry.moving.update(&self.context.store, |record| {
            if record.returning {
                (record.fault, record.stopped_at) = (None, None);
            }
        })?;
        self.spawn_driver(entry);
        Ok(())
    }

    /// A move that can be held: one that is there and not about to go.
    fn held(&self, tenant: &str) -> Result<Entry, Refusal> {
        let entry = self.find(tenant).ok_or_else(|| not_found(tenant))?;
        let phase = entry.moving.record().phase;
        match phase {
            Phase::Cancelling | Phase::Cancelled | Phase::Completed => {
                let message = format!("the move is {}", phase.shown(None, false));
                Err(no("phase", tenant, &message, "carveout status"))
            }
            _ => Ok(entry),
        }
    }
}
