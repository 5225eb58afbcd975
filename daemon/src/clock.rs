//! The wall clock, for showing ages only. Order is always by position, never by time.

use std::time::{SystemTime, UNIX_EPOCH};

/// Microseconds since 1970-01-01 by this machine's clock.
pub fn unix_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
