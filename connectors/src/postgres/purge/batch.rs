//! One transaction of a purge: some rows, and within the group what refers to them, or nothing of either.
//!
//! Rows are locked, but never waited for: what somebody else holds is left for another pass, so there is no deadlock.
//! Whoever begins to refer to a locked row waits until this has ended, and then does not find it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use tokio_postgres::Client;

use super::super::quote::table as qualified;
use super::super::{Doing, Error, Result};
use super::Work;
use super::references::{Part, Reference};

/// How long a batch may wait for somebody who has locked the whole table.
const BEGIN: &str = "BEGIN; SET LOCAL lock_timeout = '1s'; SET LOCAL plan_cache_mode = force_custom_plan";
/// In a short pass: steps from a row to those that refer to it, and rows for each that the batch began with.
const SHORT_STEPS: u32 = 20;
const SHORT_ROWS: usize = 4;

/// A row: the part's place, and the row's in it.
pub(super) type Id = (usize, String);

/// What a batch works with.
pub(super) struct Deletion<'a> {
    pub client: &'a Client,
    pub work: &'a Work,
    /// The foreign keys within the group.
    pub inner: Vec<&'a Reference>,
    /// Those that lead to it from elsewhere: what refers to a row by them stays, and the row too.
    pub outer: Vec<&'a Reference>,
    pub parts: &'a [Part],
    pub short: bool,
    /// Rows that were seen to stay in this pass: nobody goes that way again.
    pub stuck: &'a HashSet<Id>,
}

/// What came of it.
#[derive(Default)]
pub(super) struct Outcome {
    /// Rows by the place of their table.
    pub deleted: BTreeMap<usize, u64>,
    /// Whether rows were left that another pass may delete.
    pub missed: bool,
    /// Rows that stay.
    pub stay: HashSet<Id>,
}

/// The rows of a batch.
#[derive(Default)]
struct Rows {
    locked: BTreeSet<Id>,
    /// Not to be deleted.
    stay: HashSet<Id>,
    /// From a row to those that it refers to.
    refers: HashMap<Id, Vec<Id>>,
    missed: bool,
}

impl Deletion<'_> {
    /// Deletes the rows of a part that have these ctids. On an error the transaction is to be rolled back.
    pub(super) async fn run(&self, part: usize, seeds: Vec<String>) -> Result<Outcome> {
        self.client.batch_execute(BEGIN).await.doing(self.doing(part))?;
        let mut rows = Rows::default();
        let most = seeds.len() * SHORT_ROWS;
        let mut frontier = self.lock(&mut rows, part, seeds).await?;
        let mut steps = 0;
        while !self.inner.is_empty() && !frontier.is_empty() {
            if self.short && (steps == SHORT_STEPS || rows.locked.len() > most) {
                rows.missed = true;
                rows.stay.extend(frontier);
                break;
            }
            frontier = self.step(&mut rows, &frontier).await?;
            steps += 1;
        }
        for key in &self.outer {
            self.keep_referred_to(&mut rows, key).await?;
        }
        rows.keep_what_stays_refer_to();
        let deleted = self.delete(&rows).await?;
        self.client.batch_execute("COMMIT").await.doing(self.doing(part))?;
        Ok(Outcome { deleted, missed: rows.missed, stay: rows.stay })
    }

    /// Locks rows of a part that are the tenant's and covered still; the others of them are missed.
    async fn lock(&self, rows: &mut Rows, part: usize, ctids: Vec<String>) -> Result<Vec<Id>> {
        let Part { name, table, .. } = &self.parts[part];
        let sql = format!(
            "SELECT t.ctid::text FROM ONLY {} t WHERE t.ctid = ANY ($1::text[]::tid[]) AND {} FOR UPDATE OF t SKIP LOCKED",
            qualified(name),
            self.work.covered.rows(&self.work.tables[*table], "t", &self.work.tenant)
        );
        let found = self.client.query(&sql, &[&ctids]).await.doing(format!("lock rows of {name}"))?;
        let locked: Vec<Id> = found.iter().map(|row| (part, row.get(0))).collect();
        rows.missed |= locked.len() < ctids.len();
        rows.locked.extend(locked.iter().cloned());
        Ok(locked)
    }

    /// The rows within the group that refer to these, as far as they are new; locked. Those that cannot go stay.
    async fn step(&self, rows: &mut Rows, frontier: &[Id]) -> Result<Vec<Id>> {
        let mut new: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
        for key in &self.inner {
            let Some(child) = key.child else { continue };
            let own = self.work.covered.rows(&self.work.tables[child], "c", &self.work.tenant);
            for (part, ctids) in by_part(frontier.iter()) {
                let Part { name, .. } = &self.parts[part];
                if !self.parts[part].is_referred_to(key) {
                    continue;
                }
                let sql = format!(
                    "SELECT p.ctid::text, c.tableoid, c.ctid::text, ({own}) IS TRUE FROM ONLY {} p JOIN {} c ON {}
                      WHERE p.ctid = ANY ($1::text[]::tid[])",
                    qualified(name),
                    qualified(&key.from),
                    key.matches("c", "p")
                );
                let doing = || format!("look for rows of {} that refer to {name}", key.from);
                for row in self.client.query(&sql, &[&ctids]).await.doing(doing())? {
                    let parent: Id = (part, row.get(0));
                    let place = self.parts.iter().position(|part| part.oid == row.get::<_, u32>(1));
                    // Of a partition that is younger than this pass.
                    let Some(place) = place else {
                        rows.missed = true;
                        rows.stay.insert(parent);
                        continue;
                    };
                    let id: Id = (place, row.get(2));
                    rows.refers.entry(id.clone()).or_default().push(parent);
                    match row.get::<_, bool>(3) {
                        false => _ = rows.stay.insert(id),
                        true if self.stuck.contains(&id) => _ = rows.stay.insert(id),
                        true if rows.locked.contains(&id) || rows.stay.contains(&id) => {}
                        true => _ = new.entry(place).or_default().insert(id.1),
                    }
                }
            }
        }
        let mut found = Vec::new();
        for (part, ctids) in new {
            let locked = self.lock(rows, part, ctids.iter().cloned().collect()).await?;
            let ids = ctids.into_iter().map(|ctid| (part, ctid));
            rows.stay.extend(ids.filter(|id| !rows.locked.contains(id)).collect::<Vec<_>>());
            found.extend(locked);
        }
        Ok(found)
    }

    /// What a row of another group, or of a table outside the move, refers to stays.
    async fn keep_referred_to(&self, rows: &mut Rows, key: &Reference) -> Result<()> {
        for (part, ctids) in by_part(rows.locked.iter()) {
            let Part { name, .. } = &self.parts[part];
            if !self.parts[part].is_referred_to(key) {
                continue;
            }
            let sql = format!(
                "SELECT p.ctid::text FROM ONLY {} p WHERE p.ctid = ANY ($1::text[]::tid[])
                    AND EXISTS (SELECT FROM {} c WHERE {})",
                qualified(name),
                qualified(&key.from),
                key.matches("c", "p")
            );
            let doing = format!("look for rows of {} that refer to {name}", key.from);
            let found = self.client.query(&sql, &[&ctids]).await.doing(doing)?;
            rows.stay.extend(found.iter().map(|row| (part, row.get(0))));
        }
        Ok(())
    }

    /// Deletes what need not stay, in one statement: PostgreSQL's own checks come at its end.
    async fn delete(&self, rows: &Rows) -> Result<BTreeMap<usize, u64>> {
        let parts = by_part(rows.locked.iter().filter(|id| !rows.stay.contains(*id)));
        let mut deleted = BTreeMap::new();
        if parts.is_empty() {
            return Ok(deleted);
        }
        let mut lists: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> = Vec::new();
        let (mut deletions, mut counts) = (Vec::new(), Vec::new());
        for (place, (part, ctids)) in parts.iter().enumerate() {
            let name = qualified(&self.parts[*part].name);
            deletions.push(format!(
                "d{place} AS (DELETE FROM ONLY {name} t WHERE t.ctid = ANY (${}::text[]::tid[]) RETURNING 1)",
                place + 1
            ));
            counts.push(format!("(SELECT count(*) FROM d{place})"));
            lists.push(ctids);
        }
        let sql = format!("WITH {} SELECT {}", deletions.join(", "), counts.join(", "));
        let first = parts.keys().next().copied().unwrap_or_default();
        let counts = self.client.query_one(&sql, &lists).await.doing(self.doing(first))?;
        for (place, (part, ctids)) in parts.iter().enumerate() {
            let count = counts.get::<_, i64>(place).unsigned_abs();
            if count != ctids.len() as u64 {
                let why = format!("{count} of {} rows went: a trigger or rule of the table keeps them", ctids.len());
                return Err(Error::state(self.doing(*part), why));
            }
            *deleted.entry(self.parts[*part].table).or_default() += count;
        }
        Ok(deleted)
    }

    fn doing(&self, part: usize) -> String {
        format!("delete the tenant's rows of {}", self.parts[part].name)
    }
}

impl Rows {
    fn keep_what_stays_refer_to(&mut self) {
        let mut left: Vec<Id> = self.stay.iter().cloned().collect();
        while let Some(id) = left.pop() {
            for parent in self.refers.get(&id).into_iter().flatten() {
                if self.stay.insert(parent.clone()) {
                    left.push(parent.clone());
                }
            }
        }
    }
}

fn by_part<'a>(ids: impl Iterator<Item = &'a Id>) -> BTreeMap<usize, Vec<String>> {
    let mut parts: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for (part, ctid) in ids {
        parts.entry(*part).or_default().push(ctid.clone());
    }
    parts
}
