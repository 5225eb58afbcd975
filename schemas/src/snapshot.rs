//! An ordinary snapshot of the source and the one question asked of it: does it show this transaction?
//!
//! This rule, and no comparison of positions, decides which transactions a copy already holds.
//! It is exact on a primary; on a standby the list of running transactions is empty and it is wrong.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

/// What `pg_current_snapshot()` prints: `xmin:xmax:running,…`, in 64-bit transaction ids
/// (PostgreSQL manual, "Transaction ID and Snapshot Information Functions").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Every transaction below is finished.
    pub xmin: u64,
    /// No transaction from here on had begun to be finished.
    pub xmax: u64,
    running: HashSet<u64>,
}

impl Snapshot {
    /// Whether the effects of the committed top-level transaction `xid` are seen under this snapshot.
    pub fn shows(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && !self.running.contains(&xid))
    }

    /// The 64-bit id of `xid`, which the stream carries in 32 bits.
    ///
    /// PostgreSQL keeps all ids that can still matter within 2^31 of each other, so the nearest
    /// candidate to `xmax` is the one.
    pub fn widen(&self, xid: u32) -> u64 {
        let distance = xid.wrapping_sub(self.xmax as u32) as i32;
        self.xmax.wrapping_add_signed(i64::from(distance))
    }

    /// Whether the transaction with the stream's 32-bit id is seen under this snapshot.
    pub fn shows_xid(&self, xid: u32) -> bool {
        self.shows(self.widen(xid))
    }

    /// How many transactions were running when the snapshot was taken.
    pub fn running(&self) -> usize {
        self.running.len()
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut running: Vec<u64> = self.running.iter().copied().collect();
        running.sort_unstable();
        let running: Vec<String> = running.iter().map(u64::to_string).collect();
        write!(f, "{}:{}:{}", self.xmin, self.xmax, running.join(","))
    }
}

/// The text is not what `pg_current_snapshot()` prints.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("\"{0}\" is not a snapshot (expected xmin:xmax:running,…)")]
pub struct BadSnapshot(String);

impl FromStr for Snapshot {
    type Err = BadSnapshot;

    fn from_str(text: &str) -> Result<Self, BadSnapshot> {
        let bad = || BadSnapshot(text.chars().take(60).collect());
        let mut parts = text.splitn(3, ':');
        let mut next = || parts.next().ok_or_else(bad);
        let number = |part: &str| part.parse::<u64>().map_err(|_| bad());
        let (xmin, xmax, list) = (number(next()?)?, number(next()?)?, next()?);
        let running = list.split(',').filter(|part| !part.is_empty()).map(number).collect::<Result<_, _>>()?;
        Ok(Snapshot { xmin, xmax, running })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn running_transactions_are_not_shown() {
        let snapshot: Snapshot = "10:20:10,15".parse().unwrap();
        let shown: Vec<u64> = (8..22).filter(|xid| snapshot.shows(*xid)).collect();
        assert_eq!(shown, [8, 9, 11, 12, 13, 14, 16, 17, 18, 19]);
    }

    #[test]
    fn ids_are_widened_over_the_wrap() {
        let snapshot: Snapshot = "4294967290:4294967300:4294967290".parse().unwrap();
        assert_eq!(snapshot.widen(4_294_967_290), 4_294_967_290);
        assert_eq!(snapshot.widen(3), 4_294_967_299);
        assert!(snapshot.shows_xid(3) && !snapshot.shows_xid(4) && !snapshot.shows_xid(4_294_967_290));
    }

    proptest! {
        #[test]
        fn a_snapshot_survives_its_text(xmin in 3u64..1 << 40, more in 0u64..1000, picks in proptest::collection::hash_set(0u64..1000, 0..9)) {
            let running = picks.iter().filter(|p| **p < more).map(|p| xmin + p).collect();
            let snapshot = Snapshot { xmin, xmax: xmin + more, running };
            prop_assert_eq!(snapshot.to_string().parse::<Snapshot>(), Ok(snapshot));
        }

        #[test]
        fn any_near_id_is_widened_back(xmax in 1u64 << 33..1 << 40, near in -(1i64 << 30)..1 << 30) {
            let snapshot = Snapshot { xmin: xmax, xmax, running: HashSet::new() };
            let full = xmax.wrapping_add_signed(near);
            prop_assert_eq!(snapshot.widen(full as u32), full);
        }
    }
}
