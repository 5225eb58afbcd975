//! Which versions of rows a certificate covers.
//!
//! A row's `xmin` is the transaction that made this version of it: an UPDATE makes another, a lock does not, and a frozen
//! row keeps it. It may be a subtransaction's, which no snapshot names: of what is not below a snapshot's xmin, the
//! snapshot alone does not say whether it shows it. It has 32 bits.

use schemas::{Snapshot, TenantId};
use tokio_postgres::Client;

use super::super::policy::{Owned, Path};
use super::super::quote::{ident, table as qualified};
use super::super::{Doing, Error, Result};

/// Transactions that are listed one by one.
const MOST_SHOWN: usize = 10_000;
/// Ids that are taken while one statement runs, at most: a row version that it waited for may be younger than its snapshot.
const DURING_A_STATEMENT: u64 = 1 << 24;
/// As far as 32 bits tell ids apart.
const HORIZON: u64 = 1 << 31;

/// The row versions that a snapshot showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Covered {
    /// Every transaction below had ended.
    pub before: u64,
    /// And these, from there on, were shown too; the lower 32 bits.
    pub shown: Vec<u32>,
}

impl Covered {
    /// What the snapshot shows for certain, whoever wrote it: what ended before any transaction that it saw running.
    pub fn certain(snapshot: &Snapshot) -> Covered {
        Covered { before: snapshot.xmin, shown: Vec::new() }
    }

    /// Exactly what it shows of the tenant's rows. `client` reads under it.
    pub async fn under(client: &Client, snapshot: &Snapshot, tables: &[Owned], tenant: &TenantId) -> Result<Covered> {
        let mut covered = Covered::certain(snapshot);
        let window = snapshot.xmax.saturating_sub(snapshot.xmin);
        for owned in tables.iter().filter(|owned| !matches!(owned.path, Path::Reference)) {
            let sql = format!(
                "SELECT DISTINCT t.xmin::text::bigint FROM {} t WHERE {} AND t.xmin::text::bigint > 2
                    AND {} < {window} LIMIT {}",
                qualified(&owned.table.name),
                owned.condition("t", tenant),
                covered.distance("t"),
                MOST_SHOWN + 1
            );
            let doing = || format!("list the last transactions of {}", owned.table.name);
            let rows = client.query(&sql, &[]).await.doing(doing())?;
            covered.shown.extend(rows.iter().map(|row| row.get::<_, i64>(0) as u32));
            covered.shown.sort_unstable();
            covered.shown.dedup();
            if covered.shown.len() > MOST_SHOWN {
                let why =
                    "the tenant has written more often than that since the oldest transaction that is still open began";
                return Err(Error::state(doing(), format!("{why} ({MOST_SHOWN}); wait for it, and verify again")));
            }
        }
        Ok(covered)
    }

    /// An error where ids have gone on so far that 32 bits do not tell them apart, or are others'.
    pub(super) async fn assert_fits(&self, client: &Client) -> Result<()> {
        let doing = "compare the certificate with the server's transactions";
        let sql = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint";
        let next = client.query_one(sql, &[]).await.doing(doing)?.get::<_, i64>(0).unsigned_abs();
        match next.checked_sub(self.before) {
            None => {
                Err(Error::state(doing, "it is of another server, or of a later time than this one was restored to"))
            }
            Some(since) if since >= HORIZON - DURING_A_STATEMENT => {
                Err(Error::state(doing, "it is too old to tell which rows came since; verify again"))
            }
            Some(_) => Ok(()),
        }
    }

    /// Whether a row version is covered, in SQL. What is neither below nor between here and now is many rounds old; what is
    /// between may be a frozen row of an earlier round, which then counts as not covered.
    fn condition(&self, row: &str) -> String {
        let raw = format!("{row}.xmin::text::bigint");
        let shown = match self.shown.is_empty() {
            true => String::new(),
            false => {
                let shown: Vec<String> = self.shown.iter().map(u32::to_string).collect();
                format!(" OR {raw} = ANY ('{{{}}}'::bigint[])", shown.join(","))
            }
        };
        format!(
            "({raw} < 3 OR {} >= (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint - {} + {DURING_A_STATEMENT}){shown})",
            self.distance(row),
            self.before
        )
    }

    /// How far behind `before` a version's transaction is, in the circle of 32 bits.
    fn distance(&self, row: &str) -> String {
        format!("(({row}.xmin::text::bigint - {}) & {})", self.before as u32, u32::MAX)
    }

    /// Whether `row` is the tenant's and covered, in SQL. So must be those that say whose it is: one that changed hands
    /// since leads to rows that were somebody else's.
    pub(super) fn rows(&self, owned: &Owned, row: &str, tenant: &TenantId) -> String {
        let whose = match &owned.path {
            Path::Via(via) => {
                let parent = format!("parent{}", owned.depth());
                let pairs = via.key.referenced.iter().zip(&via.key.columns);
                let same =
                    pairs.map(|(theirs, ours)| format!("{parent}.{} = {row}.{} AND ", ident(theirs), ident(ours)));
                format!(
                    "EXISTS (SELECT FROM {} {parent} WHERE {}{})",
                    qualified(&via.key.parent),
                    same.collect::<String>(),
                    self.rows(&via.parent, &parent, tenant)
                )
            }
            Path::Key { .. } | Path::Reference | Path::Whole(_) => owned.condition(row, tenant),
        };
        format!("{whose} AND {}", self.condition(row))
    }
}
