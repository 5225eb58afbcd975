//! A move's progress on stderr: one line that is drawn over on a terminal, otherwise a line per change.

use std::collections::VecDeque;
use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use schemas::status::TenantStatus;

use super::format::{bytes, count, percent, seconds};
use super::output::{note, plain};

/// The rate is that of so much time.
const RATE_WINDOW: Duration = Duration::from_secs(5);
/// Characters of the bar.
const BAR_WIDTH: usize = 20;
/// Without a terminal: percent that are worth a line.
const LINE_PERCENT: u64 = 10;

/// What has been shown so far.
pub struct Progress {
    terminal: bool,
    /// Phase, tenths of the copy, and whether it was throttled, of the last line without a terminal.
    shown: Option<(String, u64, bool)>,
    /// When, and how many rows were copied then; no older than the window, but one.
    samples: VecDeque<(Instant, u64)>,
}

impl Progress {
    /// Nothing is shown yet.
    pub fn on_stderr() -> Self {
        Progress { terminal: stderr().is_terminal(), shown: None, samples: VecDeque::new() }
    }

    /// Shows where the move is now.
    pub fn show(&mut self, status: &TenantStatus) {
        let rate = self.rate(Instant::now(), status.rows_copied);
        if self.terminal {
            return note(&format!("\r{}\x1b[K", line(status, rate)));
        }
        let tenths = percent(status.rows_copied, status.rows_total) / LINE_PERCENT;
        let key = (status.phase.clone(), tenths, status.throttled_by.is_some());
        if self.shown.as_ref() != Some(&key) {
            note(&format!("{}\n", line(status, rate)));
            self.shown = Some(key);
        }
    }

    /// Leaves the line.
    pub fn end(&self) {
        if self.terminal {
            note("\n");
        }
    }

    /// Rows per second in the last seconds.
    fn rate(&mut self, now: Instant, rows: u64) -> Option<u64> {
        self.samples.push_back((now, rows));
        while self.samples.get(1).is_some_and(|(when, _)| now.duration_since(*when) >= RATE_WINDOW) {
            self.samples.pop_front();
        }
        let (since, before) = *self.samples.front()?;
        let elapsed = now.duration_since(since).as_secs_f64();
        (elapsed > 0.0).then(|| (rows.saturating_sub(before) as f64 / elapsed) as u64)
    }
}

fn line(status: &TenantStatus, rate: Option<u64>) -> String {
    let start = format!("{}  {}", plain(&status.tenant.0), status.phase);
    let behind = bytes(status.lag_bytes);
    match (status.phase.as_str(), status.lag_seconds) {
        ("copying", _) if status.rows_total > 0 => {
            let done = percent(status.rows_copied, status.rows_total);
            let full = BAR_WIDTH * done as usize / 100;
            let bar = format!("{}{}", "#".repeat(full), "-".repeat(BAR_WIDTH - full));
            let rate = match &status.throttled_by {
                Some(load) => format!("  throttled: {}", plain(load)),
                None => rate.map_or(String::new(), |rate| format!("  {} rows/s", count(rate))),
            };
            let (copied, total) = (count(status.rows_copied), count(status.rows_total));
            format!("{start}  [{bar}] {done:>3}%  {copied}/{total} rows{rate}  {behind} behind")
        }
        (_, Some(lag)) => format!("{start}  lag {}  {behind} behind", seconds(lag)),
        (_, None) => start,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::{Lsn, MoveId, TenantId};

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let mut progress = Progress { terminal: false, shown: None, samples: VecDeque::new() };
        let start = Instant::now();
        let mut at = |second: u64, rows| progress.rate(start + Duration::from_secs(second), rows);
        assert_eq!(at(0, 0), None);
        assert_eq!(at(1, 1000), Some(1000));
        assert_eq!(at(2, 2000), Some(1000));
        assert_eq!(at(10, 2000), Some(0));
        assert_eq!(at(12, 1000), Some(0), "an emptied table does not count backwards");
    }

    #[test]
    fn a_copy_shows_a_bar() {
        let status = TenantStatus {
            tenant: TenantId("7".to_owned()),
            r#move: MoveId(1),
            isolation: "shared".to_owned(),
            to: "schema".to_owned(),
            target: "bid_7".to_owned(),
            server: None,
            phase: "copying".to_owned(),
            rows_copied: 60_000,
            rows_total: 120_000,
            received_lsn: Lsn::ZERO,
            applied_lsn: Lsn::ZERO,
            lag_bytes: 1536,
            lag_seconds: None,
            spool_bytes: 0,
            can_cutover: false,
            blocked_by: Vec::new(),
            fault: None,
            paused: false,
            skipped: Vec::new(),
            throttled_by: None,
            waiting_for: None,
            left_out: Vec::new(),
            warnings: Vec::new(),
            changes_applied: 0,
            verified_at_lsn: None,
            certificate: None,
            route_epoch: None,
        };
        let expected = "7  copying  [##########----------]  50%  60,000/120,000 rows  5,000 rows/s  1.5 KiB behind";
        assert_eq!(line(&status, Some(5000)), expected);
        let throttled = TenantStatus { throttled_by: Some("active_sessions 9 (limit 8)".to_owned()), ..status.clone() };
        let expected = "120,000 rows  throttled: active_sessions 9 (limit 8)  1.5 KiB behind";
        assert!(line(&throttled, Some(0)).ends_with(expected), "{}", line(&throttled, Some(0)));
        let status = TenantStatus { phase: "catching_up".to_owned(), lag_seconds: Some(12.3), ..status };
        assert_eq!(line(&status, Some(5000)), "7  catching_up  lag 12.3 s  1.5 KiB behind");
    }
}
