//! What `/v1/events` and the log say when something happens to a move. Field names are held by other people's scripts:
//! adding is free, changing is not. Never a row's values, never a secret.

use serde::Serialize;

use crate::record::{Fault, MoveRecord};
use crate::{Lsn, MoveId, TenantId};

/// Something that happened to a move. Which fields an event has is in docs/operations.md; the others are left out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MoveEvent {
    /// Its name: `phase`, `fault`, `paused`, `resumed`, `skipped`, `table`, `verify`, `rehearse`, `cutover`, `rollback`, `complete`.
    pub event: &'static str,
    /// The tenant.
    pub tenant: TenantId,
    /// The move; of what happens to a lane back, the move that it belongs to.
    pub r#move: MoveId,
    /// The rest.
    #[serde(flatten)]
    pub detail: Detail,
}

/// What else an event says.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Detail {
    /// The phase that began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<&'static str>,
    /// As in `carveout.migration_progress`: `running`, `completed`, `failed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<&'static str>,
    /// The table at the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// Rows that there are to copy: an estimate until the table is copied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows_total: Option<u64>,
    /// Rows copied so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows_copied: Option<u64>,
    /// Rows deleted at the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows_deleted: Option<u64>,
    /// Whether both sides were found equal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub equal: Option<bool>,
    /// Rows that differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub differences: Option<u64>,
    /// The position that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lsn: Option<Lsn>,
    /// For how long the tenant's writers were held, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_ms: Option<f64>,
    /// Where the tenant lives: `shared`, `schema` or `database`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolation: Option<String>,
    /// The route's epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route_epoch: Option<i64>,
    /// As [`Fault::code`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// As [`Fault::object`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// As [`Fault::message`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// As [`Fault::next`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl Detail {
    /// The same with the reason why something stands, or was refused.
    pub fn because(self, fault: &Fault) -> Detail {
        let Fault { code, object, message, next } = fault.clone();
        Detail { code: Some(code), object: Some(object), cause: Some(message), next: Some(next), ..self }
    }
}

impl MoveEvent {
    /// One about this move.
    pub fn of(record: &MoveRecord, event: &'static str, detail: Detail) -> MoveEvent {
        let id = record.back.as_ref().map_or(record.id, |back| back.of);
        MoveEvent { event, tenant: record.tenant.clone(), r#move: id, detail }
    }

    /// What has happened between two states of a record.
    pub fn between(was: &MoveRecord, is: &MoveRecord) -> Vec<MoveEvent> {
        let mut events = Vec::new();
        let mut tell = |event, detail| events.push(MoveEvent::of(is, event, detail));
        // Of a lane back only what stops it counts: the move's phase says the rest.
        if is.phase != was.phase && is.back.is_none() {
            tell("phase", Detail { phase: Some(is.stage()), ..Detail::default() });
        }
        if let Some(fault) = is.fault.as_ref().filter(|fault| was.fault.as_ref() != Some(fault)) {
            tell("fault", Detail::default().because(fault));
        }
        if is.paused && !was.paused {
            tell("paused", Detail::default());
        }
        if let Some(end) = is.skipped.get(was.skipped.len()) {
            tell("skipped", Detail { lsn: Some(*end), ..Detail::default() });
        }
        let stands = |record: &MoveRecord| record.paused || record.fault.is_some();
        if stands(was) && !stands(is) && is.phase == was.phase {
            tell("resumed", Detail::default());
        }
        events
    }
}
