//! What one side's log says was written there, by whomever: a change that came round again is in it twice.

use std::fmt;

use anyhow::{Context, Result, ensure};
use tokio_postgres::Client;

const SLOT: &str = "judge";
/// Changes that are read at a time, at least.
const PART: i32 = 200_000;
/// Lines of the transactions that read it themselves.
const FEW: i64 = 100;

/// A slot of its own, from which the changes of one side are read at the end.
pub struct Log {
    side: &'static str,
}

/// How often a table of the tenant was changed in one way, and how many different changes that were.
pub struct Changes {
    table: String,
    what: String,
    count: i64,
    different: i64,
}

impl Log {
    /// Begins to keep it, before anybody writes.
    pub async fn keep(side: &'static str, client: &Client) -> Result<Log> {
        let sql = format!("SELECT pg_create_logical_replication_slot('{SLOT}', 'test_decoding')");
        client.batch_execute(&sql).await.with_context(|| format!("keep the log of the {side}"))?;
        Ok(Log { side })
    }

    /// What was done to the tenant's rows since. A change of `writes` and `drawn` names its client and number, one of `notes`
    /// the write that made it: no client makes the same one twice.
    pub async fn read(&self, client: &Client, tenant: &str) -> Result<Vec<Changes>> {
        client.batch_execute("CREATE TEMP TABLE said (name text, what text, change text)").await?;
        // In parts, each of which the server keeps on disk.
        let part = format!(
            "WITH log AS MATERIALIZED (
                    SELECT data, split_part(data, ' ', 2) AS name, split_part(data, ' ', 3) AS what
                      FROM pg_logical_slot_get_changes('{SLOT}', NULL, {PART})),
                  own AS (
                    INSERT INTO said
                    SELECT name, what, CASE name
                           WHEN 'public.notes:' THEN substring(data FROM '.*note\\[text\\]:(''[^'']*'')')
                           ELSE substring(data FROM '.*(client\\[integer\\]:\\d+ number\\[bigint\\]:\\d+)') END
                      FROM log WHERE name = 'public.notes:'
                        OR name IN ('public.writes:', 'public.drawn:') AND data ~ ' bid\\[integer\\]:{tenant}( |$)')
             SELECT count(*) FROM log"
        );
        // What this writes itself is in the log too, as a transaction without changes.
        while client
            .query_one(&part, &[])
            .await
            .with_context(|| format!("read the log of the {}", self.side))?
            .get::<_, i64>(0)
            > FEW
        {}
        let sql = "SELECT name, what, count(*), count(DISTINCT change) FROM said GROUP BY 1, 2 ORDER BY 1, 2";
        let rows = client.query(sql, &[]).await?;
        let change = |row: &tokio_postgres::Row| Changes {
            table: row.get(0),
            what: row.get(1),
            count: row.get(2),
            different: row.get(3),
        };
        Ok(rows.iter().map(change).collect())
    }

    /// Each row that the tenant has was made here once, and every other change too.
    pub async fn assert_nothing_came_twice(&self, client: &Client, tenant: &str) -> Result<()> {
        let changes = self.read(client, tenant).await?;
        let text: Vec<String> = changes.iter().map(Changes::to_string).collect();
        println!("log of the {}: {}", self.side, text.join(", "));
        ensure!(changes.iter().all(|change| change.count == change.different), "{}: {text:?}", self.side);
        for table in ["writes", "drawn"] {
            let sql = format!("SELECT count(*) FROM {table} WHERE bid = {tenant}");
            let rows: i64 = client.query_one(&sql, &[]).await?.get(0);
            let of_table: Vec<&Changes> = changes.iter().filter(|of| of.table == format!("public.{table}:")).collect();
            let made = of_table.first().filter(|of| of_table.len() == 1 && of.what == "INSERT:" && of.count == rows);
            ensure!(made.is_some(), "{}: {table} has {rows} rows, and was written otherwise: {text:?}", self.side);
        }
        Ok(())
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} ({} different)", self.table, self.what, self.count, self.different)
    }
}
