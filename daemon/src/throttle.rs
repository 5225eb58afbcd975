//! `limits.copy_rows_per_second`: one budget for every copy.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

/// Hands out rows at a rate; 0 is no limit.
pub struct Throttle {
    rows_per_second: u64,
    /// When the rows handed out so far are used up.
    free_at: Mutex<Instant>,
}

impl Throttle {
    /// A budget of so many rows per second.
    pub fn new(rows_per_second: u64) -> Self {
        Throttle { rows_per_second, free_at: Mutex::new(Instant::now()) }
    }

    /// Waits until `rows` more may be read.
    pub async fn take(&self, rows: u64) {
        if self.rows_per_second == 0 || rows == 0 {
            return;
        }
        let cost = Duration::from_secs_f64(rows as f64 / self.rows_per_second as f64);
        let until = {
            let mut free_at = self.free_at.lock().await;
            *free_at = (*free_at).max(Instant::now()) + cost;
            *free_at
        };
        tokio::time::sleep_until(until).await;
    }
}
