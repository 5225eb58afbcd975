//! What the lane has applied since both sides were compared is compared once more, by its keys, before the writes move. Much of it
//! in rounds, each at one position as `verify` is, while the tenant writes; the few keys of the last round in the pause, when both
//! sides are at rest.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use connectors::postgres::apply::{Changed, Keys, Rows};
use connectors::postgres::catalog::{self, Table};
use connectors::postgres::checksum::{Side, compare, compare_keys};
use connectors::postgres::{Client, client};
use futures_util::future::try_join_all;
use schemas::TableName;
use schemas::event::Detail;
use schemas::record::Fault;
use schemas::status::{TableReport, VerifyReport};

use super::certificate::Certificate;
use super::cutover::{NOT_EQUAL, not_ready};
use super::verify::{self, Compared, PATIENCE, PAUSE, Verifying, stand, still};
use super::{Context, Moving, StepError};

/// So many keys may be left for the pause without another round, and so many at all.
const FEW_KEYS: usize = 2_000;
const MOST_KEYS: usize = 20_000;
/// Rows of tables that are compared whole in the pause.
const MOST_ROWS: u64 = 50_000;
/// Rounds before it is given up.
const ROUNDS: u32 = 5;
/// Differing keys that the message names of each table.
const NAMED: usize = 5;

/// Both sides, and what is noted of them.
pub struct Recheck {
    tables: Vec<Both>,
    /// Open before anybody waits: at home, and in the target.
    home: Client,
    own: Client,
    /// Whether the lane leads home.
    back: bool,
    changed: Arc<Changed>,
    /// A `verify` leaves that alone.
    _used: Option<Arc<()>>,
    /// Rows of each table when both sides were compared.
    rows: HashMap<String, u64>,
}

/// One table as it stands on both sides.
struct Both {
    /// What the lane calls it.
    name: TableName,
    home: (TableName, String, Table),
    own: (TableName, String, Table),
    reference: bool,
}

impl Recheck {
    /// Compares both sides; from that position on it is noted what the lane applies.
    pub async fn begin(context: &Context, moving: &Moving) -> Result<(VerifyReport, Recheck), StepError> {
        let changed = Arc::new(Changed::default());
        let report = verify::verify_noting(context, moving, Some(&changed)).await?;
        let used = super::lock(&moving.certificate).as_ref().map(Certificate::used);

        let record = moving.record();
        let (source, target) = (&context.config.source.url, context.target(&record)?);
        let back = record.back.is_some();
        let compared = verify::tables(context, moving, &target).await?;
        let (home, own) = if back { (&target.url, source) } else { (source, &target.url) };
        let (home, own) = tokio::try_join!(client::connect(home, "recheck"), client::connect(own, "recheck"))?;
        let tables = both(compared, back, &own).await.map_err(|error| match error {
            Lost::Table(table) => not_ready(&record, &format!("{table} is gone from the target"), "carveout verify"),
            Lost::Asking(error) => error.into(),
        })?;
        let rows = report.tables.iter().map(|table| (table.table.clone(), table.source_rows)).collect();
        let recheck = Recheck { tables, home, own, back, changed, _used: used, rows };
        // The first time the server has to read up on the tables, and that is not for the pause.
        for table in &recheck.tables {
            if let Some(key) = table.home.2.best_key() {
                table.keys((&recheck.home, &recheck.own), &Keys::none(key.columns.clone())).await?;
            }
        }
        Ok((report, recheck))
    }

    /// How much there is to compare: keys, and rows of whole tables. Of reference tables nothing: their writers are not held.
    fn size(&self) -> (usize, u64) {
        let mut size = (0, 0);
        for (name, keys) in self.changed.sizes() {
            match (self.tables.iter().find(|table| table.name == name && !table.reference), keys) {
                (None, _) => {}
                (Some(_), Some(keys)) => size.0 += keys,
                (Some(table), None) => {
                    size.1 += self.rows.get(&table.home.2.name.to_string()).copied().unwrap_or_default();
                }
            }
        }
        size
    }

    /// Compares, while the tenant writes, until few keys are left; returns in how many rounds.
    pub async fn narrow(&mut self, context: &Context, moving: &Moving) -> Result<u32, StepError> {
        let mut rounds = 0;
        while rounds < ROUNDS && (self.size().0 > FEW_KEYS || self.size().1 > MOST_ROWS) {
            self.round(context, moving).await?;
            rounds += 1;
        }
        let (keys, rows) = self.size();
        if keys > MOST_KEYS || rows > MOST_ROWS {
            let why = format!(
                "too much changes while it is compared: after {rounds} rounds {keys} keys, and tables whose changed rows are not known \
                 by their keys, with {rows} rows"
            );
            let next = "try again when the tenant is less busy; a primary key makes a table's changed rows known";
            return Err(not_ready(&moving.record(), &why, next));
        }
        Ok(rounds)
    }

    /// At one position everything is compared that was noted before it.
    async fn round(&mut self, context: &Context, moving: &Moving) -> Result<(), StepError> {
        let _verifying = Verifying::begin(moving)?;
        let (record, began) = (moving.record(), Instant::now());
        let target = context.target(&record)?;
        let next = Arc::new(Changed::default());
        let (source, target) = loop {
            match stand(context, moving, &target.url, Some(&next)).await? {
                // The lane goes on while both are read.
                Ok((source, client, _lane)) => break (source, client),
                Err(why) if began.elapsed() > PATIENCE => {
                    return Err(not_ready(
                        &record,
                        &format!("no position was found to compare at: {why}"),
                        "try again",
                    ));
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        };
        let before = std::mem::replace(&mut self.changed, next);
        if !before.is_closed() {
            return Err(began_anew(moving));
        }
        let sides = if self.back { (&target, &source.client) } else { (&source.client, &target) };
        let reports = self.compare(sides, &before, true).await?;
        if !still(context, moving, &record).await? {
            return Err(not_ready(&record, "partitions came or went while it was compared", "try again"));
        }
        for report in &reports {
            let rows = self.rows.entry(report.table.clone()).or_default();
            *rows = report.source_rows.max(*rows);
        }
        equal(context, moving, &reports)?;
        let mut certificate = super::lock(&moving.certificate);
        *certificate = certificate.as_ref().map(|certificate| certificate.renewed(&self.changed));
        Ok(())
    }

    /// Compares what is left, while nobody writes. Returns how many rows were looked at.
    pub async fn last(&self, context: &Context, moving: &Moving) -> Result<u64, StepError> {
        if Arc::weak_count(&self.changed) == 0 {
            return Err(began_anew(moving));
        }
        let (_, rows) = self.size();
        if rows > MOST_ROWS {
            let why = "more changed meanwhile than can be compared while the writers wait";
            return Err(not_ready(&moving.record(), why, "try again when the tenant is less busy"));
        }
        let keys = self.size().0 as u64;
        let reports = self.compare((&self.home, &self.own), &self.changed, false).await?;
        equal(context, moving, &reports)?;
        Ok(keys + rows)
    }

    /// All tables at a time: each side is asked for all before it has answered for one.
    async fn compare(
        &self,
        (home, own): (&Client, &Client),
        changed: &Changed,
        references: bool,
    ) -> Result<Vec<TableReport>, StepError> {
        let changed = changed.tables();
        let compared = changed.iter().filter_map(|(name, rows)| {
            let table = self.tables.iter().find(|table| &table.name == name && (references || !table.reference))?;
            Some(async move {
                match rows {
                    Rows::Keys(keys) => table.keys((home, own), keys).await,
                    Rows::All => table.all((home, own)).await,
                }
            })
        });
        Ok(try_join_all(compared).await?)
    }
}

impl Both {
    fn sides<'a>(&self, (home, own): (&'a Client, &'a Client)) -> (Side<'a>, Side<'a>) {
        let side = |client, (table, filter, _): &(TableName, String, Table)| Side {
            client,
            table: table.clone(),
            filter: filter.clone(),
        };
        (side(home, &self.home), side(own, &self.own))
    }

    async fn keys(&self, clients: (&Client, &Client), keys: &Keys) -> connectors::postgres::Result<TableReport> {
        let (home, own) = self.sides(clients);
        compare_keys((&home, &self.home.2), (&own, &self.own.2), keys).await
    }

    async fn all(&self, clients: (&Client, &Client)) -> connectors::postgres::Result<TableReport> {
        let (home, own) = self.sides(clients);
        compare(&home, &own, &self.home.2).await
    }
}

/// Why the tables could not be put together.
enum Lost {
    Table(TableName),
    Asking(connectors::postgres::Error),
}

/// The tables with what the target's catalog says of them: types that people made are others there.
async fn both(compared: Vec<Compared>, back: bool, own: &Client) -> Result<Vec<Both>, Lost> {
    let here = |table: &Compared| if back { table.source.0.clone() } else { table.target.0.clone() };
    let mut schemas: Vec<String> = compared.iter().map(|table| here(table).schema).collect();
    schemas.sort_unstable();
    schemas.dedup();
    let found = catalog::tables_in(own, &schemas).await.map_err(Lost::Asking)?;
    let mut found: HashMap<TableName, Table> = found.into_iter().map(|table| (table.name.clone(), table)).collect();
    let mut tables = Vec::new();
    for table in compared {
        let name = here(&table);
        let there = found.remove(&name).ok_or(Lost::Table(name))?;
        let Compared { shape, source, target, reference } = table;
        let name = source.0.clone();
        let (home, own) = if back { (target, source) } else { (source, target) };
        tables.push(Both { name, home: (home.0, home.1, shape), own: (own.0, own.1, there), reference });
    }
    Ok(tables)
}

fn began_anew(moving: &Moving) -> StepError {
    not_ready(&moving.record(), "its lane began anew while it was compared", "try again")
}

/// Whether nothing differs; otherwise names what does, and the move is not proved equal any more.
fn equal(context: &Context, moving: &Moving, reports: &[TableReport]) -> Result<(), StepError> {
    let unequal: Vec<&TableReport> = reports.iter().filter(|report| report.differences > 0).collect();
    if unequal.is_empty() {
        return Ok(());
    }
    let differences = unequal.iter().map(|report| report.differences).sum();
    *super::lock(&moving.differences) = Some(differences);
    *super::lock(&moving.certificate) = None;
    moving.update(&context.store, |record| record.verified_at = None)?;
    moving.tell("verify", Detail { equal: Some(false), differences: Some(differences), ..Detail::default() });
    let names = unequal.iter().map(|report| {
        let rows = report.examples.iter().take(NAMED).map(|row| format!("{} {}", row.kind, row.key));
        format!("{}: {} rows differ, {}", report.table, report.differences, rows.collect::<Vec<_>>().join(", "))
    });
    let why = format!(
        "what has changed since source and target were compared is not the same on both: {}",
        names.collect::<Vec<_>>().join("; ")
    );
    let next = "`carveout verify` compares all rows and names those that differ";
    Err(StepError::Fault(Fault::new(NOT_EQUAL, moving.record().id.to_string(), why, next)))
}
