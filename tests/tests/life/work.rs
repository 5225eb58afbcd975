//! What a client's transaction writes, and how that is found again.

use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

/// What pgbench makes of each branch.
const ACCOUNTS: i64 = 100_000;
const TELLERS: i64 = 10;

/// Which tables a client writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Rows of `writes`, as many in an account's balance, and a note of the last one.
    #[default]
    Writes,
    /// Rows of `drawn`, whose keys come from sequences.
    Drawn,
    /// pgbench's own transaction; the filler of its history says whose it is.
    TpcB,
}

/// What a client does, again and again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// The tables.
    pub kind: Kind,
    /// So many rows in one transaction, with a number each.
    pub rows: i64,
    /// From the beginning of one transaction to that of the next; as fast as they go where it is zero.
    pub every: Duration,
}

impl Work {
    pub fn of(kind: Kind, rows: i64) -> Work {
        Work { kind, rows, every: Duration::ZERO }
    }

    pub fn every(self, every: Duration) -> Work {
        Work { every, ..self }
    }

    /// A transaction of client `who`, with the numbers from `first` on.
    pub fn sql(self, schema: &str, tenant: &str, who: i32, first: i64, rng: &mut StdRng) -> String {
        let (rows, last) = (self.rows, first + self.rows - 1);
        match self.kind {
            Kind::Writes => {
                let offset = (first * 7 + i64::from(who)) % 100;
                let account = format!(
                    "(SELECT id FROM {schema}.accounts WHERE bid = {tenant} ORDER BY id OFFSET {offset} LIMIT 1)"
                );
                format!(
                    "BEGIN;
                     INSERT INTO {schema}.writes (bid, client, number, body)
                     SELECT {tenant}, {who}, n, repeat('x', n % 50) FROM generate_series({first}, {last}) n;
                     UPDATE {schema}.accounts SET balance = balance + {rows} WHERE id = {account};
                     UPDATE {schema}.notes SET note = '{who}.{last}' WHERE account = {account} AND number = 1;
                     COMMIT"
                )
            }
            Kind::Drawn => format!(
                "INSERT INTO {schema}.drawn (bid, client, number)
                 SELECT {tenant}, {who}, n FROM generate_series({first}, {last}) n"
            ),
            Kind::TpcB => tpc_b(schema, tenant, &format!("{who}.{first}"), rng),
        }
    }

    /// Client and number of every row of the tenant.
    pub fn written(self, schema: &str, tenant: &str) -> String {
        match self.kind {
            Kind::Writes => format!("SELECT client, number FROM {schema}.writes WHERE bid = {tenant}"),
            Kind::Drawn => format!("SELECT client, number FROM {schema}.drawn WHERE bid = {tenant}"),
            Kind::TpcB => format!(
                "SELECT split_part(filler, '.', 1)::int, split_part(filler, '.', 2)::bigint
                   FROM {schema}.pgbench_history WHERE bid = {tenant}"
            ),
        }
    }

    /// What the writes have to add up to, and each sum of theirs.
    pub fn sums(self, schema: &str, tenant: &str) -> Option<String> {
        let sum = |what: &str, table: &str| {
            format!("(SELECT coalesce(sum({what}), 0)::bigint FROM {schema}.{table} WHERE bid = {tenant})")
        };
        let sums = match self.kind {
            Kind::Drawn => return None,
            Kind::Writes => vec![sum("1", "writes"), sum("balance", "accounts")],
            Kind::TpcB => vec![
                sum("delta", "pgbench_history"),
                sum("abalance", "pgbench_accounts"),
                sum("tbalance", "pgbench_tellers"),
                sum("bbalance", "pgbench_branches"),
            ],
        };
        Some(format!("SELECT ARRAY[{}]", sums.join(", ")))
    }
}

/// As pgbench writes it, but all of it within one branch.
fn tpc_b(schema: &str, tenant: &str, said: &str, rng: &mut StdRng) -> String {
    let (account, teller) = (rng.random_range(1..=ACCOUNTS), rng.random_range(1..=TELLERS));
    let delta = rng.random_range(-5_000..=5_000);
    let of_branch = |each: i64, n: i64| format!("({tenant} - 1) * {each} + {n}");
    let (aid, tid) = (of_branch(ACCOUNTS, account), of_branch(TELLERS, teller));
    format!(
        "BEGIN;
         UPDATE {schema}.pgbench_accounts SET abalance = abalance + {delta} WHERE aid = {aid};
         SELECT abalance FROM {schema}.pgbench_accounts WHERE aid = {aid};
         UPDATE {schema}.pgbench_tellers SET tbalance = tbalance + {delta} WHERE tid = {tid};
         UPDATE {schema}.pgbench_branches SET bbalance = bbalance + {delta} WHERE bid = {tenant};
         INSERT INTO {schema}.pgbench_history (tid, bid, aid, delta, mtime, filler)
         VALUES ({tid}, {tenant}, {aid}, {delta}, CURRENT_TIMESTAMP, '{said}');
         END"
    )
}
