//! Deletes a moved tenant's rows where it came from: only those that a certificate covers, those that refer to others
//! before these, in short transactions. Never a row that came or changed since, nor one that a row refers to which stays.
//!
//! Nothing but the rows themselves is remembered: whoever begins again finds what is left.
//!
//! Where the role may, it deletes as `session_replication_role = replica`: the application's triggers are about rows that
//! are deleted, not about rows that live elsewhere, and a CASCADE takes along what came since. What PostgreSQL then no
//! longer checks is checked here, the way it does: the rows are locked FOR UPDATE, which whoever refers to them waits for,
//! and then, in a snapshot taken after that, everything that refers to them is looked at (`batch.rs`).

mod batch;
mod covered;
mod left;
mod obstacles;
mod order;
mod references;

use std::collections::{HashSet, VecDeque};

use schemas::{TableName, TenantId};
use tokio_postgres::{Client, SimpleQueryMessage};

use super::policy::{Owned, Path};
use super::quote::table as qualified;
use super::{Doing, Error, Result};

pub use covered::Covered;
pub use left::{foreign_rows, residue};
pub use obstacles::obstacles;

use batch::{Deletion, Id};
use references::{Part, Reference};

/// The ctids of a table's rows, kept by the server. WITH HOLD: the table is read once, whatever indexes it has, and no
/// snapshot stays open meanwhile.
const CURSOR: &str = "carveout_purge";
/// Passes over tables that refer to each other in circles in which a batch takes along but few rows that refer to its own.
const SHORT_PASSES: u32 = 2;

/// What is to be deleted.
#[derive(Clone, Debug)]
pub struct Work {
    /// The move's tables; those that are every tenant's are left alone.
    pub tables: Vec<Owned>,
    /// The tenant.
    pub tenant: TenantId,
    /// The rows that the certificate covers.
    pub covered: Covered,
    /// Rows of a batch. More only where rows refer to each other in circles.
    pub rows: u32,
}

/// Rows that have been deleted, and committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The table: of partitions the whole one.
    pub table: TableName,
    /// How many; 0 where all that was looked at has to stay.
    pub rows: u64,
}

/// A purge under way.
pub struct Purge {
    client: Client,
    work: Work,
    references: Vec<Reference>,
    /// Tables by their place in `work`, those that refer to each other in circles together; whoever refers to others first.
    groups: VecDeque<Vec<usize>>,
    pass: Option<Pass>,
    done: VecDeque<Batch>,
    replica: bool,
}

/// One way through the tables of a group.
#[derive(Default)]
struct Pass {
    number: u32,
    parts: Vec<Part>,
    /// How many of them have been begun.
    begun: usize,
    /// Whether the cursor is open, on the one begun last.
    open: bool,
    deleted: u64,
    /// Rows that stay, where tables refer to each other in circles.
    stuck: HashSet<Id>,
    /// Rows were locked or gone, or too many refer to them for a short pass.
    missed: bool,
    /// A batch failed.
    failed: bool,
}

impl Purge {
    /// Begins on a connection of its own. `settings` let it pass the fence.
    pub async fn open(client: Client, work: Work, settings: &[(String, String)]) -> Result<Purge> {
        work.covered.assert_fits(&client).await?;
        for (name, value) in settings {
            let sql = "SELECT set_config($1, $2, false)";
            client.execute(sql, &[name, value]).await.doing(format!("set {name}"))?;
        }
        let replica = match client.batch_execute("SET session_replication_role = replica").await {
            Ok(()) => true,
            Err(error) if error.code().is_some_and(|code| code.code() == "42501") => false,
            Err(error) => return Err(error).doing("set the session's role"),
        };
        let references = references::load(&client, &work.tables).await?;
        let edges: Vec<(usize, usize)> = references.iter().filter_map(|key| Some((key.child?, key.parent))).collect();
        let own = |group: &Vec<usize>| group.iter().any(|place| !matches!(work.tables[*place].path, Path::Reference));
        let groups = order::from_below(work.tables.len(), &edges).into_iter().filter(own).collect();
        Ok(Purge { client, work, references, groups, pass: None, done: VecDeque::new(), replica })
    }

    /// Whether the application's triggers stay silent.
    pub fn is_silent(&self) -> bool {
        self.replica
    }

    /// Deletes a batch; `None` when there is nothing more to delete, which does not say that nothing is left
    /// ([`residue`]). After an error that may pass it can be called again.
    pub async fn next(&mut self) -> Result<Option<Batch>> {
        loop {
            if let Some(batch) = self.done.pop_front() {
                return Ok(Some(batch));
            }
            let Some(group) = self.groups.front() else { return Ok(None) };
            match &mut self.pass {
                None => {
                    let parts = references::parts(&self.client, &self.work.tables, group).await?;
                    self.pass = Some(Pass { parts, ..Pass::default() });
                }
                Some(pass) if pass.open => {
                    let seeds = fetch(&self.client, self.work.rows).await.inspect_err(|_| pass.failed = true)?;
                    match seeds.is_empty() {
                        true => close(&self.client, pass).await?,
                        false => self.delete(seeds).await?,
                    }
                }
                Some(pass) if pass.begun < pass.parts.len() => declare(&self.client, &self.work, pass).await?,
                Some(_) => self.end_pass().await?,
            }
        }
    }

    /// Deletes these rows of the part that was begun last, and what refers to them within the group.
    async fn delete(&mut self, mut seeds: Vec<String>) -> Result<()> {
        let (Some(pass), Some(group)) = (&mut self.pass, self.groups.front()) else { return Ok(()) };
        let (inner, outer): (Vec<&Reference>, Vec<&Reference>) =
            self.references.iter().filter(|key| group.contains(&key.parent)).partition(
                |key: &&Reference| matches!(key.child, Some(child) if group.contains(&child) && !key.is_every_tenants),
            );
        let short = pass.number < SHORT_PASSES;
        let Pass { parts, stuck, .. } = &*pass;
        seeds.retain(|seed| stuck.is_empty() || !stuck.contains(&(pass.begun - 1, seed.clone())));
        let circular = !inner.is_empty();
        let deletion = Deletion { client: &self.client, work: &self.work, inner, outer, parts, short, stuck };
        let outcome = match deletion.run(pass.begun - 1, seeds).await {
            Ok(outcome) => outcome,
            Err(error) => {
                pass.failed = true;
                // The cause counts; a connection that is gone has rolled back.
                self.client.batch_execute("ROLLBACK").await.ok();
                return Err(error);
            }
        };
        pass.missed |= outcome.missed;
        if circular {
            pass.stuck.extend(outcome.stay);
        }
        let table = |place: usize| self.work.tables[place].table.name.clone();
        if outcome.deleted.is_empty() {
            self.done.push_back(Batch { table: table(pass.parts[pass.begun - 1].table), rows: 0 });
        }
        for (place, rows) in outcome.deleted {
            pass.deleted += rows;
            self.done.push_back(Batch { table: table(place), rows });
        }
        Ok(())
    }

    /// Another pass, while that may help; otherwise the next group.
    async fn end_pass(&mut self) -> Result<()> {
        let (Some(pass), Some(group)) = (&self.pass, self.groups.front()) else { return Ok(()) };
        let number = match () {
            () if pass.failed => Some(pass.number),
            () if pass.missed && pass.deleted > 0 => Some(pass.number + 1),
            // Nothing came of the short ones.
            () if pass.missed && pass.number < SHORT_PASSES => Some(SHORT_PASSES),
            () => None,
        };
        match number {
            Some(number) => {
                let parts = references::parts(&self.client, &self.work.tables, group).await?;
                self.pass = Some(Pass { number, parts, ..Pass::default() });
            }
            None => {
                self.groups.pop_front();
                self.pass = None;
            }
        }
        Ok(())
    }
}

/// Finds the rows of the next part. The newest first, then the oldest: of rows of one table that refer to each other,
/// those that came later mostly refer to those before.
async fn declare(client: &Client, work: &Work, pass: &mut Pass) -> Result<()> {
    let part = &pass.parts[pass.begun];
    let direction = if pass.number.is_multiple_of(2) { "DESC" } else { "ASC" };
    let sql = format!(
        "DECLARE {CURSOR} NO SCROLL CURSOR WITH HOLD FOR
           SELECT t.ctid::text FROM ONLY {} t WHERE {} ORDER BY t.ctid {direction}",
        qualified(&part.name),
        work.covered.rows(&work.tables[part.table], "t", &work.tenant)
    );
    client.batch_execute(&sql).await.doing(format!("find the tenant's rows of {}", part.name))?;
    pass.begun += 1;
    pass.open = true;
    Ok(())
}

async fn fetch(client: &Client, rows: u32) -> Result<Vec<String>> {
    let doing = "fetch the rows to delete";
    let mut seeds = Vec::new();
    for message in client.simple_query(&format!("FETCH {} FROM {CURSOR}", rows.max(1))).await.doing(doing)? {
        if let SimpleQueryMessage::Row(row) = message {
            let ctid = row.get(0).ok_or_else(|| Error::protocol(doing, "a row without its place"))?;
            seeds.push(ctid.to_owned());
        }
    }
    Ok(seeds)
}

async fn close(client: &Client, pass: &mut Pass) -> Result<()> {
    client.batch_execute(&format!("CLOSE {CURSOR}")).await.doing("close the rows to delete")?;
    pass.open = false;
    Ok(())
}
