//! Partitions: made as the source has them, and made the same again when they change there. They are not written down
//! in `carveout.objects`: they go with the table that they are parts of.

use schemas::TableName;
use tokio_postgres::Client;

use super::super::catalog::{self, Partition, Table};
use super::super::quote::table as qualified;
use super::super::{Doing, Result};

/// A partition's name in the target: it changes its schema where the whole table does.
pub(super) fn counterpart(source: &Table, target: &TableName, partition: &TableName) -> TableName {
    let schema = if target.schema == source.name.schema { &partition.schema } else { &target.schema };
    TableName::new(schema, &partition.name)
}

/// The clause of CREATE TABLE that says what a table is partitioned by.
pub(super) fn partitioned_by(by: Option<&String>) -> String {
    by.map_or(String::new(), |by| format!(" PARTITION BY {by}"))
}

/// Gives `target` the partitions of `source`, in the caller's transaction. The table must be empty: what it has too
/// many goes, with all that is in it.
pub async fn alike(client: &Client, source: &Table, target: &TableName) -> Result<()> {
    if source.partitioned_by.is_none() {
        return Ok(());
    }
    let doing = || format!("make the partitions of {target}");
    let named =
        |name: &TableName| if name == &source.name { target.clone() } else { counterpart(source, target, name) };
    let wanted: Vec<Partition> = source
        .partitions
        .iter()
        .map(|partition| Partition {
            name: named(&partition.name),
            parent: named(&partition.parent),
            ..partition.clone()
        })
        .collect();
    let same = |one: &Partition, other: &Partition| {
        (&one.name, &one.parent, &one.bound, &one.partitioned_by)
            == (&other.name, &other.parent, &other.bound, &other.partitioned_by)
    };
    let found = catalog::partitions_of(client, target).await?;
    let (mut kept, mut gone): (Vec<TableName>, Vec<&Partition>) = (vec![target.clone()], Vec::new());
    for partition in &found {
        match kept.contains(&partition.parent) && wanted.iter().any(|wanted| same(wanted, partition)) {
            true => kept.push(partition.name.clone()),
            false => gone.push(partition),
        }
    }
    // From below upwards. While foreign keys refer to the whole table, a partition cannot be dropped.
    for Partition { name, parent, .. } in gone.into_iter().rev() {
        let (name, parent) = (qualified(name), qualified(parent));
        let sql = format!("ALTER TABLE {parent} DETACH PARTITION {name}; DROP TABLE {name}");
        client.batch_execute(&sql).await.doing(doing())?;
    }
    for partition in wanted.iter().filter(|partition| !kept.contains(&partition.name)) {
        let sql = format!(
            "CREATE TABLE {} PARTITION OF {} {}{}",
            qualified(&partition.name),
            qualified(&partition.parent),
            partition.bound,
            partitioned_by(partition.partitioned_by.as_ref())
        );
        client.batch_execute(&sql).await.doing(doing())?;
    }
    Ok(())
}
