//! What happens to moves, told once and in one place: to whoever follows `/v1/events`, and to the log.

use schemas::event::{Detail, MoveEvent};
use tokio::sync::broadcast;
use tracing::Level;

/// So many events may wait for a follower who is slow; who is slower is told how many were lost.
const WAITING: usize = 1024;

/// The way to all who follow.
#[derive(Clone)]
pub struct Events(broadcast::Sender<MoveEvent>);

impl Default for Events {
    fn default() -> Self {
        Events(broadcast::Sender::new(WAITING))
    }
}

/// The event's fields by their names; those that it does not have are left out.
macro_rules! write_line {
    ($level:expr, $event:expr) => {{
        let MoveEvent { event, tenant, r#move: id, detail } = $event;
        let Detail { phase, status, table, rows_total, rows_copied, rows_deleted, equal, differences, .. } = detail;
        let Detail { lsn, pause_ms, isolation, route_epoch, code, object, cause, next, .. } = detail;
        let (lsn, isolation, table) = (lsn.map(tracing::field::display), isolation.as_deref(), table.as_deref());
        let (code, object, cause, next) = (code.as_deref(), object.as_deref(), cause.as_deref(), next.as_deref());
        tracing::event!(
            $level, event, %tenant, "move" = %id, phase, status, table, rows_total, rows_copied, rows_deleted, equal,
            differences, lsn, pause_ms, isolation, route_epoch, code, object, cause, next
        );
    }};
}

impl Events {
    /// Tells it.
    pub fn tell(&self, event: MoveEvent) {
        match event.event {
            // A person must look.
            "fault" => write_line!(Level::ERROR, &event),
            "skipped" => write_line!(Level::WARN, &event),
            _ => write_line!(Level::INFO, &event),
        }
        // Nobody may follow.
        self.0.send(event).ok();
    }

    /// What is told from now on.
    pub fn follow(&self) -> broadcast::Receiver<MoveEvent> {
        self.0.subscribe()
    }
}
