//! Tables that are read again as a whole: partitions were attached, detached, emptied or rewritten on the source, of
//! which the stream says nothing. What happens to such a table is passed over until the lane stands exactly where a
//! snapshot of the source shows it; then it gets the source's partitions and the tenant's rows.

use std::collections::BTreeSet;

use schemas::TableName;

use super::super::provision::partitions;
use super::super::quote::table as qualified;
use super::super::{Doing, Error, Result, catalog, control, copy, spare};
use super::hands::{Arriving, Hands, Name, Origin};
use super::{PostgresSink, Session};

/// What is written down for all rows of a table: a name without values, which no row has.
const ALL: Name = Name::new();

/// Whether the table is to be read again.
pub(super) fn awaited(arriving: &Arriving, table: &TableName) -> bool {
    arriving.get(table).is_some_and(|names| names.contains(&ALL))
}

impl PostgresSink {
    /// Whether the table is to be read again.
    pub fn reads_again(&self, table: &TableName) -> bool {
        awaited(&self.arriving, table)
    }

    /// The tables that are.
    pub fn read_again_whole(&self) -> BTreeSet<TableName> {
        self.arriving.iter().filter(|(_, names)| names.contains(&ALL)).map(|(table, _)| table.clone()).collect()
    }

    /// The tables are read again, as rows that arrive are: from here on what happens to them is passed over.
    pub async fn read_again(&mut self, tables: &[TableName]) -> Result<()> {
        let doing = "write down tables that are read again";
        let tx = self.client.transaction().await.doing(doing)?;
        control::hold_epoch(&tx, self.id, self.epoch).await?;
        for table in tables {
            control::write_arriving(tx.client(), self.id, table, &[]).await?;
        }
        tx.commit().await.doing(doing)?;
        for table in tables {
            self.arriving.entry(table.clone()).or_default().insert(ALL);
        }
        Ok(())
    }

    /// From here on these partitions are known.
    pub fn knows(&mut self, partitions: BTreeSet<(TableName, u32)>) {
        self.partitions = partitions;
    }

    /// Rows of a partition come in the group in hand. One that nobody knows may be gone again, with them.
    pub(super) fn note_partition(&self, relations: &[u32], hands: &mut Hands) -> Result<()> {
        let &[table, partition] = relations else {
            return Err(Error::protocol("apply a change", "a TRUNCATE in a spool"));
        };
        let known = (self.targets.described(table)?, partition);
        if !self.partitions.contains(&known) {
            hands.arriving.entry(known.0).or_default().insert(ALL);
        }
        Ok(())
    }
}

/// Reads a table. Returns how many rows it has.
pub(super) async fn fetch(
    session: &mut Session<'_>,
    source: &TableName,
    target: &TableName,
    from: &Origin,
) -> Result<u64> {
    let owned = from.owned(source)?;
    let doing = || format!("empty {target}");
    // Not TRUNCATE: whoever reads here, an older snapshot too, goes on.
    let empty = format!("DELETE FROM {}", qualified(target));
    session.client.batch_execute(&empty).await.doing(doing())?;
    partitions::alike(session.client, &owned.table, target).await?;
    let filter = owned.filter(&from.tenant);
    let rows = copy::pour(&from.held.client, session.client, &owned.table, &filter, target).await?;
    // A partition may have come in this moment. What was read cannot go while the snapshot is held: it is seen here.
    let shown = catalog::partition_numbers(&from.held.client, &owned.table).await?;
    let another = spare::take(&from.url, "arrive").await?;
    let now = catalog::partition_numbers(&another, &owned.table).await?;
    another.keep();
    match now.is_subset(&shown) {
        true => Ok(rows),
        false => Err(Error::connection(format!("read {source} again"), "a partition came meanwhile")),
    }
}
