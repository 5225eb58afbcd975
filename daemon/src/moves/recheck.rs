//! What the lane has applied since both sides were compared is compared once more, by its keys, before the writes move. Much of it
//! in rounds, each at one position as `verify` is, while the tenant writes; the few keys of the last round in the pause, when both
//! sides are at rest.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use connectors::postgres::apply::{Changed, Keys, Rows};
use connectors::postgres::catalog::{self, Column, Table};
use connectors::postgres::checksum::{Pace, Side, compare, compare_keys, seen};
use connectors::postgres::spare::{self, Spare};
use connectors::postgres::{Client, quote};
use futures_util::future::try_join_all;
use schemas::TableName;
use schemas::event::Detail;
use schemas::record::{Fault, MoveRecord};
use schemas::status::TableReport;
use schemas::url::PgUrl;

use super::certificate::{Certificate, Shapes};
use super::cutover::{NOT_EQUAL, not_ready};
use super::verify::{self, Compared, PATIENCE, PAUSE, Verifying, in_order, stand, still};
use super::{Context, Moving, StepError};
use crate::gently::gently;

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
    /// At home, and in the target.
    sides: (PgUrl, PgUrl),
    /// Open before anybody waits; others have them during a round.
    asking: Option<(Spare, Spare)>,
    /// Whether the lane leads home.
    back: bool,
    /// Whether all rows were compared for this.
    anew: bool,
    /// A `verify` leaves alone where it says that is noted.
    certificate: Certificate,
}

/// One table as it stands on both sides.
pub(super) struct Both {
    /// What the lane calls it.
    name: TableName,
    home: (TableName, String, Table),
    own: (TableName, String, Table),
    reference: bool,
}

impl Recheck {
    /// Goes by the last comparison where it still says something, or compares both sides anew; from that position on it is noted what
    /// the lane applies. Returns too whether they were compared anew.
    pub async fn begin(context: &Context, moving: &Moving) -> Result<(bool, Recheck), StepError> {
        let record = moving.record();
        let (source, target) = (&context.config.source.url, context.target(&record)?);
        let back = record.back.is_some();
        let sides = if back { (target.url.clone(), source.clone()) } else { (source.clone(), target.url.clone()) };
        let compared = gently(verify::tables(context, moving, &target)).await?;
        let asking = sessions(&sides).await?;
        let tables = gently(both(&record, compared.clone(), &asking.1)).await?;
        let known = super::lock(&moving.certificate).clone();
        let shapes = gently(shapes(&tables, (&asking.0, &asking.1))).await?;
        let silent = writes_unseen(&tables, back, if back { &asking.0 } else { &asking.1 }).await?;
        asking.0.keep();
        asking.1.keep();
        let holds = known.filter(|certificate| !silent && certificate.counts_of(&shapes));
        let (anew, certificate) = match holds {
            Some(certificate) => (false, certificate),
            None => {
                let (report, certificate) = verify::certify(context, moving, compared, shapes).await?;
                let why = || format!("source and target are not equal: {}", differing(&report.tables));
                let unequal = || not_ready(&record, &why(), "`carveout verify` names the rows");
                (true, certificate.ok_or_else(unequal)?)
            }
        };
        let (home, own) = sessions(&sides).await?;
        // The first time the server has to read up on the tables, and that is not for the pause.
        for table in &tables {
            if let Some(key) = table.home.2.best_key() {
                let none = Keys::none(key.columns.clone());
                gently(table.keys((&home, &own), &none, Pace::Quick)).await?;
            }
        }
        Ok((anew, Recheck { tables, sides, asking: Some((home, own)), back, anew, certificate }))
    }

    /// What this was begun with, as it holds behind a flip.
    pub fn carried(&self) -> Certificate {
        self.certificate.carried()
    }

    /// Nothing is compared any more.
    pub fn end(self) -> impl Iterator<Item = Spare> {
        self.asking.into_iter().flat_map(|(home, own)| [home, own])
    }

    /// How old the comparison of all rows is.
    pub fn age(&self) -> Duration {
        self.certificate.age()
    }

    /// How much there is to compare: keys, and rows of whole tables. Of reference tables nothing: their writers are not held.
    fn size(&self) -> (usize, u64) {
        let rows = |table: &Both| self.certificate.table(&table.name()).map_or(0, |compared| compared.source_rows);
        let mut size = (0, 0);
        for (name, keys) in self.certificate.changed().sizes() {
            match (self.tables.iter().find(|table| table.name == name && !table.reference), keys) {
                (None, _) => {}
                (Some(_), Some(keys)) => size.0 += keys,
                (Some(table), None) => size.1 += rows(table),
            }
        }
        size
    }

    /// Compares, while the tenant writes, until few keys are left; returns in how many rounds. There is one at least where not all rows
    /// have just been compared: of reference tables nothing is left for the pause.
    pub async fn narrow(&mut self, context: &Context, moving: &Moving) -> Result<u32, StepError> {
        let mut rounds = 0;
        while rounds < ROUNDS && (self.size().0 > FEW_KEYS || self.size().1 > MOST_ROWS || rounds == 0 && !self.anew) {
            self.round(context, moving).await?;
            rounds += 1;
        }
        if self.asking.is_none() {
            self.asking = Some(sessions(&self.sides).await?);
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
        // A `verify` that had begun before this may have the lane note for itself.
        if self.certificate.changed().is_closed() {
            return Err(began_anew(moving));
        }
        // Both sides are read by these, which have met the tables; the next ones are those again.
        if let Some((home, own)) = self.asking.take() {
            home.keep();
            own.keep();
        }
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
        if !self.certificate.changed().is_closed() {
            return Err(began_anew(moving));
        }
        let sides = in_order(self.back, &source.client, &target);
        let reports = self.compare(sides, self.certificate.changed(), Pace::Gentle).await?;
        if !still(context, moving, &record).await? {
            return Err(not_ready(&record, "partitions came or went while it was compared", "try again"));
        }
        source.client.let_go().await;
        target.let_go().await;
        equal(context, moving, &reports)?;
        self.certificate = self.certificate.renewed(&next, &reports);
        if let Some(certificate) = super::lock(&moving.certificate).as_mut() {
            *certificate = self.certificate.clone();
        }
        Ok(())
    }

    /// Compares what is left, while nobody writes. Returns how many rows were looked at.
    pub async fn last(&self, context: &Context, moving: &Moving) -> Result<u64, StepError> {
        if Arc::weak_count(self.certificate.changed()) == 0 || self.certificate.changed().is_closed() {
            return Err(began_anew(moving));
        }
        if super::lock(&moving.certificate).is_none() {
            return Err(not_ready(
                &moving.record(),
                "a `verify` has found differences meanwhile",
                "`carveout verify` names them",
            ));
        }
        let (_, rows) = self.size();
        if rows > MOST_ROWS {
            let why = "more changed meanwhile than can be compared while the writers wait";
            return Err(not_ready(&moving.record(), why, "try again when the tenant is less busy"));
        }
        let keys = self.size().0 as u64;
        let (home, own) = self.asking.as_ref().ok_or_else(|| began_anew(moving))?;
        let reports = self.compare((home, own), self.certificate.changed(), Pace::Quick).await?;
        equal(context, moving, &reports)?;
        Ok(keys + rows)
    }

    /// All tables at a time: each side is asked for all before it has answered for one. Reference tables are for when there is time.
    async fn compare(
        &self,
        (home, own): (&Client, &Client),
        changed: &Changed,
        pace: Pace,
    ) -> Result<Vec<TableReport>, StepError> {
        let references = pace == Pace::Gentle;
        let changed = changed.tables();
        let compared = changed.iter().filter_map(|(name, rows)| {
            let table = self.tables.iter().find(|table| &table.name == name && (references || !table.reference))?;
            Some(async move {
                match rows {
                    Rows::Keys(keys) => table.keys((home, own), keys, pace).await,
                    Rows::All => table.all((home, own), pace).await,
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

    async fn keys(
        &self,
        clients: (&Client, &Client),
        keys: &Keys,
        pace: Pace,
    ) -> connectors::postgres::Result<TableReport> {
        let (home, own) = self.sides(clients);
        compare_keys((&home, &self.home.2), (&own, &self.own.2), keys, pace).await
    }

    /// What it is called at home.
    pub(super) fn name(&self) -> String {
        self.home.2.name.to_string()
    }

    /// Whether what has changed of it is equal, as far as that is known.
    pub(super) async fn is_still_equal(
        &self,
        clients: (&Client, &Client),
        changed: &[(TableName, Rows)],
    ) -> connectors::postgres::Result<bool> {
        match changed.iter().find(|(name, _)| *name == self.name) {
            None => Ok(true),
            Some((_, Rows::Keys(keys))) => Ok(self.keys(clients, keys, Pace::Gentle).await?.differences == 0),
            Some((_, Rows::All)) => Ok(false),
        }
    }

    async fn all(&self, clients: (&Client, &Client), pace: Pace) -> connectors::postgres::Result<TableReport> {
        let (home, own) = self.sides(clients);
        compare(&home, &own, &self.home.2, pace).await
    }
}

/// The tables with what the target's catalog says of them: types that people made are others there.
pub(super) async fn both(record: &MoveRecord, compared: Vec<Compared>, own: &Client) -> Result<Vec<Both>, StepError> {
    let back = record.back.is_some();
    let here = |table: &Compared| if back { table.source.0.clone() } else { table.target.0.clone() };
    let mut schemas: Vec<String> = compared.iter().map(|table| here(table).schema).collect();
    schemas.sort_unstable();
    schemas.dedup();
    let found = catalog::tables_in(own, &schemas).await?;
    let mut found: HashMap<TableName, Table> = found.into_iter().map(|table| (table.name.clone(), table)).collect();
    let mut tables = Vec::new();
    for table in compared {
        let name = here(&table);
        let gone = || not_ready(record, &format!("{name} is gone from the target"), "carveout verify");
        let there = found.remove(&name).ok_or_else(gone)?;
        let Compared { shape, source, target, reference, .. } = table;
        let name = source.0.clone();
        let (home, own) = if back { (target, source) } else { (source, target) };
        tables.push(Both { name, home: (home.0, home.1, shape), own: (own.0, own.1, there), reference });
    }
    Ok(tables)
}

/// At home, and in the target.
async fn sessions((home, own): &(PgUrl, PgUrl)) -> connectors::postgres::Result<(Spare, Spare)> {
    Ok((spare::take(home, "recheck").await?, spare::take(own, "recheck").await?))
}

/// Whether a trigger of somebody else fires for what the lane writes: what that changes is not noted.
pub(super) async fn writes_unseen(tables: &[Both], back: bool, sink: &Client) -> Result<bool, StepError> {
    let written: Vec<&TableName> = tables.iter().map(|table| if back { &table.home.0 } else { &table.own.0 }).collect();
    Ok(seen::fires(sink, &written).await?)
}

/// What the tables look like on both sides, as far as their rows are compared by it, by their names at home. Not reference tables:
/// they do not come back, and are noted as a whole when they are read again.
pub(super) async fn shapes(tables: &[Both], (home, own): (&Client, &Client)) -> Result<Shapes, StepError> {
    let columns = |table: &Table| -> Vec<_> {
        let seen = |column: &Column| (column.name.clone(), column.number, column.type_oid, column.type_sql.clone());
        table.stored().map(seen).collect()
    };
    let keys =
        |table: &Table| -> Vec<_> { table.keys.iter().map(|key| (key.columns.clone(), key.identifies)).collect() };
    let looks = |table: &Table, files: &HashMap<String, String>| {
        let files = files.get(&quote::table(&table.name));
        format!("{:?}", (table.oid, columns(table), keys(table), files))
    };
    let tables: Vec<&Both> = tables.iter().filter(|table| !table.reference).collect();
    let names = |side: fn(&Both) -> &TableName| -> Vec<&TableName> { tables.iter().map(|table| side(table)).collect() };
    let (at_home, there) = (names(|table| &table.home.2.name), names(|table| &table.own.2.name));
    let (at_home, there) = tokio::try_join!(seen::files(home, &at_home), seen::files(own, &there))?;
    let shape = |table: &&Both| {
        let (home, own) = (&table.home.2, &table.own.2);
        (home.name.to_string(), (looks(home, &at_home), looks(own, &there)))
    };
    Ok(tables.iter().map(shape).collect())
}

fn began_anew(moving: &Moving) -> StepError {
    not_ready(&moving.record(), "its lane began anew while it was compared", "try again")
}

/// Whether nothing differs; otherwise names what does, and the move is not proved equal any more.
fn equal(context: &Context, moving: &Moving, reports: &[TableReport]) -> Result<(), StepError> {
    let differences = reports.iter().map(|report| report.differences).sum();
    if differences == 0 {
        return Ok(());
    }
    *super::lock(&moving.differences) = Some(differences);
    *super::lock(&moving.certificate) = None;
    moving.update(&context.store, MoveRecord::unproved)?;
    moving.tell("verify", Detail { equal: Some(false), differences: Some(differences), ..Detail::default() });
    let why = "what has changed since source and target were compared is not the same on both";
    let why = format!("{why}: {}", differing(reports));
    let next = "`carveout verify` compares all rows and names those that differ";
    Err(StepError::Fault(Fault::new(NOT_EQUAL, moving.record().id.to_string(), why, next)))
}

/// The tables whose rows differ, with some of those.
fn differing(reports: &[TableReport]) -> String {
    let unequal = reports.iter().filter(|report| report.differences > 0);
    let tables = unequal.map(|report| {
        let rows = report.examples.iter().take(NAMED).map(|row| format!("{} {}", row.kind, row.key));
        format!("{}: {} rows differ, {}", report.table, report.differences, rows.collect::<Vec<_>>().join(", "))
    });
    tables.collect::<Vec<_>>().join("; ")
}
