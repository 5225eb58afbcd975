//! The wall clock, for showing ages only. Order is always by position, never by time.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Microseconds since 1970-01-01 by this machine's clock.
pub fn unix_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// The same for a moment that has passed.
pub fn unix_micros_at(moment: Instant) -> i64 {
    unix_micros() - i64::try_from(moment.elapsed().as_micros()).unwrap_or(i64::MAX)
}
