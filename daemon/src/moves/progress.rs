//! How a move goes, for dashboards: the rows of `carveout.migration_progress`, made from the move's record and from what its
//! copy has counted. Nothing is decided by them.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use connectors::postgres::control::{Copied, copied_name};
use connectors::postgres::progress::{Row, Status};
use schemas::event::{Detail, MoveEvent};
use schemas::record::{Fault, MoveRecord};
use schemas::{Phase, TableName};

use super::{Moving, lock};
use crate::clock;

/// Between two events about a table that is being copied.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// The tables of a copy, as far as this run of the daemon knows them.
pub(super) type Copies = Mutex<BTreeMap<TableName, TableCopy>>;

/// The copy of a table.
#[derive(Clone)]
pub(super) struct TableCopy {
    status: Status,
    started_at: Option<i64>,
    completed_at: Option<i64>,
    total: u64,
    copied: u64,
    told: Instant,
}

impl TableCopy {
    fn new(status: Status, total: u64, copied: u64) -> TableCopy {
        TableCopy { status, started_at: None, completed_at: None, total, copied, told: Instant::now() }
    }
}

impl Moving {
    /// These tables are copied already.
    pub(super) fn copied_before<'a>(&self, copied: impl IntoIterator<Item = (&'a TableName, &'a Copied)>) {
        let mut copies = lock(&self.copies);
        for (name, Copied { rows, .. }) in copied {
            let done = copies.get(name).is_some_and(|copy| copy.status == Status::Completed);
            if !done {
                copies.insert(name.clone(), TableCopy::new(Status::Completed, *rows, *rows));
            }
        }
    }

    /// These tables, with so many rows by the planner's estimate, are to be copied.
    pub(super) fn will_copy(&self, tables: impl Iterator<Item = (TableName, u64)>) {
        lock(&self.copies).extend(tables.map(|(name, rows)| (name, TableCopy::new(Status::Pending, rows, 0))));
    }

    /// The table's copy begins.
    pub(super) fn begins_copy(&self, table: &TableName) {
        self.count(table, true, |copy| (copy.status, copy.started_at) = (Status::Running, Some(clock::unix_micros())));
    }

    /// So many more rows of it are copied.
    pub(super) fn copies(&self, table: &TableName, rows: u64) {
        self.count(table, false, |copy| copy.copied += rows);
    }

    /// It is copied; it had so many rows.
    pub(super) fn ends_copy(&self, table: &TableName, rows: u64) {
        self.count(table, true, |copy| {
            (copy.status, copy.completed_at) = (Status::Completed, Some(clock::unix_micros()));
            (copy.total, copy.copied) = (rows, rows);
        });
    }

    fn count(&self, table: &TableName, tell: bool, change: impl FnOnce(&mut TableCopy)) {
        let mut copies = lock(&self.copies);
        let Some(copy) = copies.get_mut(table) else { return };
        change(copy);
        if tell || copy.told.elapsed() >= TELL_EVERY {
            copy.told = Instant::now();
            let detail = Detail {
                table: Some(copied_name(table)),
                status: Some(copy.status.word()),
                rows_total: Some(copy.total),
                rows_copied: Some(copy.copied),
                ..Detail::default()
            };
            self.tell("table", detail);
        }
    }

    /// How many tables' copies this run knows.
    pub fn known_copies(&self) -> usize {
        lock(&self.copies).len()
    }

    /// Tells what has happened to it.
    pub fn tell(&self, event: &'static str, detail: Detail) {
        self.events.tell(MoveEvent::of(&self.record(), event, detail));
    }

    /// Its rows of `carveout.migration_progress`.
    pub fn progress(&self) -> Vec<Row> {
        let back = self.way_back().and_then(|reverse| reverse.moving.record().fault);
        let rows_copied = self.rows_copied.load(std::sync::atomic::Ordering::Relaxed);
        let record = self.record();
        let fault = record.fault.clone().or(back);
        let mut rows = phases(&record, rows_copied, fault.as_ref());
        match self.way_back().filter(|_| record.phase == Phase::Returning) {
            Some(reverse) => {
                let lane = reverse.moving.record();
                rows.extend(tables(&lane, &lock(&reverse.moving.copies), fault.as_ref()));
            }
            None => rows.extend(tables(&record, &lock(&self.copies), fault.as_ref())),
        }
        rows
    }
}

/// How what goes on stands.
fn standing(record: &MoveRecord, fault: Option<&Fault>) -> Status {
    match record.phase {
        Phase::Completed => Status::Completed,
        Phase::Cancelled => Status::Cancelled,
        Phase::NeedsCopy => Status::Failed,
        _ if fault.is_some() => Status::Failed,
        _ if record.paused => Status::Paused,
        Phase::Planned => Status::Pending,
        _ => Status::Running,
    }
}

/// How a phase has ended that another one came after.
fn ended(phase: &str, next: &str) -> Status {
    match (phase, next) {
        (_, "cancelling") => Status::Cancelled,
        (_, "needs_copy") => Status::Failed,
        ("cutting_over", "reversing") => Status::Completed,
        ("cutting_over", _) | ("rolling_back", "reversing") => Status::Failed,
        _ => Status::Completed,
    }
}

/// One row for each phase, as it was the last time.
fn phases(record: &MoveRecord, rows_copied: u64, fault: Option<&Fault>) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for (at, event) in record.history.iter().enumerate() {
        let (phase, next) = (event.phase.as_str(), record.history.get(at + 1));
        let status = next.map_or_else(|| standing(record, fault), |next| ended(phase, &next.phase));
        let error = match next {
            Some(_) if status == Status::Failed && matches!(phase, "cutting_over" | "rolling_back") => {
                Some("the writes did not move; they go on where they were".to_owned())
            }
            Some(_) => None,
            None => fault.map(said),
        };
        let over = matches!(record.phase, Phase::Completed | Phase::Cancelled).then_some(event.at);
        let copies = phase == "copying";
        rows.retain(|row| row.phase != phase);
        rows.push(Row {
            tenant: record.tenant.0.clone(),
            phase: phase.to_owned(),
            table: None,
            status,
            started_at: Some(event.at),
            completed_at: next.map_or(over, |next| Some(next.at)),
            records_total: copies.then_some(record.rows_total),
            records_migrated: copies.then_some(rows_copied),
            error,
        });
    }
    rows
}

/// One row for each table, from the copy on.
fn tables(record: &MoveRecord, copies: &BTreeMap<TableName, TableCopy>, fault: Option<&Fault>) -> Vec<Row> {
    let row = |table: &TableName, status: Status, error: Option<String>| {
        let copy = copies.get(table);
        Row {
            tenant: record.tenant.0.clone(),
            phase: "copying".to_owned(),
            table: Some(copied_name(table)),
            status,
            started_at: copy.and_then(|copy| copy.started_at),
            completed_at: copy.and_then(|copy| copy.completed_at),
            records_total: copy.map(|copy| copy.total),
            records_migrated: copy.map(|copy| copy.copied),
            error,
        }
    };
    let all = |status| record.tables.iter().map(|table| row(table, status, None)).collect();
    match record.phase {
        Phase::Planned | Phase::Provisioning | Phase::Returning => Vec::new(),
        Phase::Copying | Phase::NeedsCopy => {
            let known = copies.iter().map(|(table, copy)| match (copy.status, standing(record, fault)) {
                (Status::Running, status @ Status::Failed) => row(table, status, fault.map(said)),
                (Status::Running, status) => row(table, status, None),
                (status, _) => row(table, status, None),
            });
            known.collect()
        }
        Phase::Cancelling | Phase::Cancelled => {
            let began = record.history.iter().any(|event| event.phase == "copying");
            if began { all(Status::Cancelled) } else { Vec::new() }
        }
        Phase::Following
        | Phase::CuttingOver
        | Phase::Moved
        | Phase::RollingBack
        | Phase::Completing
        | Phase::Completed => all(Status::Completed),
    }
}

fn said(fault: &Fault) -> String {
    format!("{}: {}", fault.object, fault.message)
}
