//! Rows that came to the lane's tenant from another, with what hangs on them: read from the source where the target
//! holds exactly what a snapshot shows.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use connectors::postgres::apply::{self, PostgresSink};
use connectors::postgres::policy::Owned;
use connectors::postgres::{Client, Result, catalog, client, policy, snapshot};
use schemas::config::Config;
use schemas::{Lsn, TenantId};

use super::group::Group;
use super::{End, Lane};
use crate::ack::SharedUnseen;
use crate::spool::SpoolReader;
use crate::stop;

/// Where such rows are read.
#[derive(Clone)]
pub struct Origin {
    /// The source and its tenancy.
    pub config: Config,
    /// The tenant.
    pub tenant: TenantId,
    /// Delivered transactions that no snapshot has shown yet.
    pub unseen: SharedUnseen,
}

/// The pause between two looks: each takes a connection to the source.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// What may wait in the spool when a snapshot is taken: it stays open until all of that is applied.
const NEAR_BYTES: u64 = 16 << 20;

/// The lane's own sight of the source, while one connection to the target lasts.
#[derive(Default)]
pub(super) struct Outlook {
    source: Option<(Client, Vec<Owned>)>,
    looked: Option<Instant>,
}

impl Outlook {
    /// A snapshot with what it takes to read the tenant's rows under it; `None` when it does not show yet what the
    /// stream has delivered.
    async fn look(&mut self, origin: &Origin) -> Result<Option<apply::Origin>> {
        let url = &origin.config.source.url;
        self.looked = Some(Instant::now());
        self.source.take_if(|(source, _)| source.is_closed());
        let (source, tables) = match &mut self.source {
            Some(source) => source,
            none => {
                let source = client::connect(url, "arrive").await?;
                let tables = policy::resolve(catalog::tables(&source).await?, &origin.config.tenancy).owned;
                none.insert((source, tables))
            }
        };
        let demand = origin.unseen.lock().unwrap_or_else(PoisonError::into_inner).demand();
        let held = snapshot::hold(url, "arrive").await?;
        // What it shows reaches the disk before it is applied, and the stream passes it.
        snapshot::tick(source).await?;
        let shown = demand.met_by(&held.snapshot);
        Ok(shown.then(|| apply::Origin { held, tables: tables.clone(), tenant: origin.tenant.clone() }))
    }
}

impl Lane {
    /// Whether the lane is near enough to the source's present to look for rows that have arrived.
    pub(super) fn may_look(&self) -> bool {
        self.plan.spool.bytes() <= NEAR_BYTES && self.outlook.looked.is_none_or(|looked| looked.elapsed() > LOOK_AGAIN)
    }

    /// Tries to stand at a snapshot and to read what has arrived. Returns what the target holds then.
    pub(super) async fn arrive(
        &mut self,
        sink: &mut PostgresSink,
        reader: &mut SpoolReader,
        group: &mut Group,
        mut lsn: Lsn,
    ) -> std::result::Result<Lsn, End> {
        // What came before a restart is delivered again before it counts.
        let sealed = self.plan.spool.sealed.borrow().end;
        if !self.stream_passed(sealed).await {
            return Err(End::Stopped);
        }
        let from = tokio::select! {
            from = self.outlook.look(&self.plan.origin) => from,
            () = stop::told(&self.stop) => return Err(End::Stopped),
        };
        let from = match from {
            Ok(Some(from)) => from,
            Ok(None) => return Ok(lsn),
            // The lane goes on with what it has.
            Err(error) if error.may_pass() => {
                self.meter.set_trouble(Some(format!("rows that came from another tenant are to be read: {error}")));
                return Ok(lsn);
            }
            Err(error) => return Err(error.into()),
        };
        if !self.stream_passed(from.held.wal_insert_lsn).await {
            return Err(End::Stopped);
        }
        let Some(mut left) = self.prefix(reader, &from.held.snapshot)? else { return Ok(lsn) };
        while left > 0 {
            lsn = self.apply(sink, reader, group, left).await?;
            left = left.saturating_sub(group.transactions());
        }
        let rows = sink.fetch(&from).await?;
        self.plan.spool.set_lacks_rows(false, lsn);
        self.meter.set_trouble(None);
        tracing::info!(id = %self.plan.sink.id, rows, at = %lsn, "rows came from another tenant with all that hangs on them");
        Ok(lsn)
    }
}
