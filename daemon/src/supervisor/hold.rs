//! Commands that hold a move and let it go on. A move that is held is stored as such first: what follows can be cut
//! off anywhere.

use std::sync::Arc;

use schemas::status::TenantStatus;
use schemas::{Lsn, Phase};

use super::commands::{Wanted, no, not_found};
use super::{Entry, Refusal, Supervisor};

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
            (record.fault, record.stopped_at, record.paused, record.verified_at) = (None, None, false, None);
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
