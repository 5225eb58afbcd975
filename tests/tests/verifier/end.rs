//! One end of a move, to be spoilt past the lane and past the fence, and mended.

use anyhow::{Context, Result, bail};
use rand::rngs::StdRng;
use tokio_postgres::Client;

use super::judge::{self, Contents, Differences};
use super::mutants::{Among, Kind, Mutant, draw};
use super::tables::Table;

/// Draws until one changes something.
const DRAWS: u32 = 200;
/// What a constraint says to a key that is there, a value that is too long, none, or a bound that cannot be.
const REFUSED: [&str; 4] = ["23505", "22001", "23502", "22000"];

/// A side, and the rows of it that are the tenant's.
pub struct End {
    pub client: Client,
    pub rows: String,
    pub is_source: bool,
}

/// A mutant that is in place.
pub struct Spoilt {
    pub mutant: Mutant,
    /// What has to be found, and how many rows the table has less or more.
    pub expected: Differences,
    pub rows: u64,
    /// Draws that changed nothing, or could not be.
    pub in_vain: u32,
}

impl End {
    /// Makes a mutant of this kind; what it has changed is compared with what was there.
    pub async fn spoil(&self, rng: &mut StdRng, kind: Kind, among: &Among<'_>) -> Result<Spoilt> {
        let rows = format!("{} AND {}", self.rows, among.rows);
        let among = Among { rows: &rows, ..*among };
        for in_vain in 0..DRAWS {
            let Some(mutant) = draw(rng, &self.client, kind, &among).await? else { continue };
            let before = self.contents(mutant.table).await?;
            if !self.change(mutant.table, &mutant.sql).await? {
                continue;
            }
            let after = self.contents(mutant.table).await?;
            let (source, target) = if self.is_source { (&after, &before) } else { (&before, &after) };
            let expected = judge::differences(source, target);
            if expected.is_empty() {
                self.mend(mutant.table).await?;
                continue;
            }
            let rows = judge::rows(&before).abs_diff(judge::rows(&after));
            return Ok(Spoilt { mutant, expected, rows, in_vain });
        }
        bail!("{kind:?}: {DRAWS} draws changed nothing")
    }

    /// What a table holds of the tenant.
    pub async fn contents(&self, table: &Table) -> Result<Contents> {
        judge::contents(&self.client, table, &self.rows).await
    }

    /// Runs a statement, and keeps what the table held; false when a constraint refused it.
    pub async fn change(&self, table: &Table, sql: &str) -> Result<bool> {
        let kept =
            format!("CREATE TEMP TABLE kept AS SELECT {} FROM {} WHERE {}", columns(table), table.name, self.rows);
        let sql = self.unseen(table, &format!("{kept}; {sql}"));
        let Err(error) = self.client.batch_execute(&sql).await else { return Ok(true) };
        self.client.batch_execute("ROLLBACK").await?;
        if error.code().is_some_and(|code| REFUSED.contains(&code.code())) {
            Ok(false)
        } else {
            Err(error).context(sql)
        }
    }

    /// What was kept is there again.
    pub async fn mend(&self, table: &Table) -> Result<()> {
        let (name, columns) = (table.name, columns(table));
        let sql = format!(
            "DELETE FROM {name} WHERE {}; INSERT INTO {name} ({columns}) SELECT {columns} FROM kept; DROP TABLE kept",
            self.rows
        );
        let sql = self.unseen(table, &sql);
        self.client.batch_execute(&sql).await.context(sql)
    }

    /// In a transaction that no trigger sees: those of a fence fire always, so they are switched off and on again.
    fn unseen(&self, table: &Table, sql: &str) -> String {
        let name = table.name;
        let (off, on) = match self.is_source {
            false => (String::new(), String::new()),
            true => (
                format!("ALTER TABLE {name} DISABLE TRIGGER USER;"),
                format!(
                    "; DO $on$ DECLARE t name; BEGIN
                       FOR t IN SELECT tgname FROM pg_trigger WHERE tgrelid = '{name}'::regclass AND tgname LIKE 'carveout%' LOOP
                         EXECUTE format('ALTER TABLE {name} ENABLE ALWAYS TRIGGER %I', t);
                       END LOOP; END $on$"
                ),
            ),
        };
        format!("BEGIN; SET LOCAL session_replication_role = replica; {off} {sql}{on}; COMMIT")
    }
}

fn columns(table: &Table) -> String {
    table.columns.iter().map(|(column, _)| *column).collect::<Vec<_>>().join(", ")
}
