//! Rows that came to the lane's tenant from another, with what hangs on them: read from the source where the target
//! holds exactly what a snapshot shows.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use connectors::postgres::apply::{self, PostgresSink};
use connectors::postgres::policy::Owned;
use connectors::postgres::{Client, Error, Result, catalog, policy, slot, snapshot, spare};
use schemas::config::Config;
use schemas::record::Published;
use schemas::{Lsn, TableName, TenantId};
use tokio::sync::oneshot;

use super::group::Group;
use super::{End, Lane, Partitions};
use crate::ack::SharedUnseen;
use crate::gently::gently;
use crate::spool::SpoolReader;
use crate::{clock, stop};

/// Where such rows are read.
#[derive(Clone)]
pub struct Origin {
    /// The source and its tenancy.
    pub config: Config,
    /// The tenant.
    pub tenant: TenantId,
    /// The tables, each with the column that names the tenant, where one does: `Some` where every row of them is the tenant's.
    pub own: Option<Vec<(TableName, Option<String>)>>,
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
    tables: Option<Vec<Owned>>,
    looked: Option<Instant>,
}

impl Outlook {
    /// A snapshot with what it takes to read the tenant's rows under it; `None` when it does not show yet what the
    /// stream has delivered, or shows other partitions than are known.
    async fn look(&mut self, origin: &Origin, sink: &PostgresSink, known: &Published) -> Result<Option<apply::Origin>> {
        let (url, again) = (&origin.config.source.url, !sink.read_again_whole().is_empty());
        self.looked = Some(Instant::now());
        // After an error they may have changed; what is read as a whole is read as it is now.
        let known_tables = self.tables.take().filter(|_| !again);
        let source = spare::take(url, "arrive").await?;
        let mut tables = match known_tables {
            Some(tables) => tables,
            None => origin.tables(&source, known, |table| sink.reads_again(table)).await?,
        };
        let demand = origin.unseen.lock().unwrap_or_else(PoisonError::into_inner).demand();
        let held = snapshot::hold(url, "arrive").await?;
        // What it shows reaches the disk before it is applied, and the stream passes it.
        snapshot::tick(&source).await?;
        source.keep();
        self.tables = Some(tables.clone());
        if again {
            let names: Vec<TableName> = known.tables.iter().map(|(name, _)| name.clone()).collect();
            let shown = slot::published(&held.client, &origin.config.source.publication, &names).await?;
            if !known.repartitioned(&shown).is_empty() {
                return Ok(None);
            }
            for owned in tables.iter_mut().filter(|owned| sink.reads_again(&owned.table.name)) {
                catalog::take_partitions(&held.client, &mut owned.table).await?;
            }
        }
        if !demand.met_by(&held.snapshot) {
            held.client.let_go().await;
            return Ok(None);
        }
        Ok(Some(apply::Origin { url: url.clone(), held, tables, tenant: origin.tenant.clone() }))
    }
}

impl Origin {
    /// The tables as the source has them; an error that may pass, where one that is read again is not fit for it.
    async fn tables(
        &self,
        source: &Client,
        known: &Published,
        again: impl Fn(&TableName) -> bool,
    ) -> Result<Vec<Owned>> {
        if let Some(own) = &self.own {
            let schemas: Vec<String> = own.iter().map(|(table, _)| table.schema.clone()).collect();
            let tables = policy::whole(catalog::tables_in(source, &schemas).await?, own.iter().cloned());
            return tables.map_err(|gone| Error::connection(format!("read {gone} again"), "it is gone"));
        }
        let found = policy::resolve(catalog::tables(source).await?, &self.config.tenancy);
        let unfit = |finding: &&schemas::status::Finding| {
            let is = |table: &TableName| table.to_string() == finding.object && again(table);
            known.tables.iter().any(|(table, _)| is(table))
        };
        match found.findings.iter().find(unfit) {
            Some(finding) => Err(Error::connection(format!("read {} again", finding.object), &finding.cause)),
            None => Ok(found.owned),
        }
    }
}

impl Partitions {
    /// Whether the source has others.
    pub(super) fn differ(&self) -> bool {
        !self.known.repartitioned(&self.seen.borrow().1).is_empty()
    }
}

impl Lane {
    /// Has tables read again whose partitions are others now; whether there are any.
    pub(super) async fn take_partitions(
        &mut self,
        sink: &mut PostgresSink,
        lsn: Lsn,
    ) -> std::result::Result<bool, End> {
        let seen = self.partitions.seen.borrow_and_update().1.clone();
        let tables = self.partitions.known.repartitioned(&seen);
        if tables.is_empty() || self.drained {
            return Ok(false);
        }
        let names = tables.iter().map(TableName::to_string).collect::<Vec<_>>().join(", ");
        tracing::info!(id = %self.plan.sink.id, tables = names, "partitions have changed; these tables are read again");
        sink.read_again(&tables).await?;
        self.set_lacks_rows(true, lsn);
        // Recorded only now: who is stopped in between finds the difference again.
        let (recorded, answer) = oneshot::channel();
        self.partitions.record.send((seen.clone(), recorded)).await.map_err(|_| End::Stopped)?;
        answer.await.map_err(|_| Error::connection("record the partitions", "the record could not be stored"))?;
        self.partitions.known.take_partitions(&seen);
        self.plan.sink.partitions = self.partitions.known.partitions().collect();
        sink.knows(self.plan.sink.partitions.clone());
        Ok(true)
    }

    /// Whether a change does not fit because partitions have changed on the source: waits until somebody has looked.
    pub(super) async fn partitions_changed(
        &mut self,
        sink: &mut PostgresSink,
        lsn: Lsn,
    ) -> std::result::Result<bool, End> {
        if !self.partitions.known.is_partitioned() {
            return Ok(false);
        }
        // The first look that ends from now on may have begun before.
        let wanted = self.partitions.seen.borrow().0 + 2;
        tokio::select! {
            looked = self.partitions.seen.wait_for(|(looks, _)| *looks >= wanted) => drop(looked.map_err(|_| End::Stopped)?),
            () = stop::told(&self.stop) => return Err(End::Stopped),
        }
        self.take_partitions(sink, lsn).await
    }

    /// Says so of rows that arrive, for the lag.
    pub(super) fn set_lacks_rows(&self, lacks: bool, before: Lsn) {
        let now = clock::unix_micros() + self.progress.borrow().server_clock_offset;
        self.plan.spool.set_lacks_rows(lacks, before, now);
    }

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
        waited_for: bool,
    ) -> std::result::Result<Lsn, End> {
        // What came before a restart is delivered again before it counts.
        let sealed = self.plan.spool.sealed.borrow().end;
        if !self.stream_passed(sealed).await {
            return Err(End::Stopped);
        }
        let look = self.outlook.look(&self.plan.origin, sink, &self.partitions.known);
        let look = async { if waited_for { look.await } else { gently(look).await } };
        let from = tokio::select! {
            from = look => from,
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
        let looked_for = (self.partitions.known.clone(), sink.read_again_whole());
        let Some(mut left) = self.prefix(reader, &from.held.snapshot)? else {
            from.held.client.let_go().await;
            return Ok(lsn);
        };
        while left > 0 {
            lsn = self.apply(sink, reader, group, left).await?;
            left = left.saturating_sub(group.transactions());
        }
        // What these transactions told of partitions, the snapshot was not compared with.
        if looked_for != (self.partitions.known.clone(), sink.read_again_whole()) {
            return Ok(lsn);
        }
        let rows = sink.fetch(&from).await?;
        from.held.client.let_go().await;
        self.set_lacks_rows(false, lsn);
        self.meter.set_trouble(None);
        tracing::info!(id = %self.plan.sink.id, rows, at = %lsn, "rows came from another tenant with all that hangs on them");
        Ok(lsn)
    }
}
