//! Compares every value that was drawn anywhere, and every block.

use std::collections::{BTreeMap, HashSet};

use connectors::postgres::sequences::Block;

/// A sequence's number, and a value that was drawn from it.
pub type Draw = (usize, i64);

/// What is not as it has to be.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Values that came twice.
    pub twice: usize,
    /// Values that home drew out of a block.
    pub in_blocks: usize,
    /// Values that the guest drew out of none.
    pub outside: usize,
    /// Blocks that have values in common.
    pub overlapping: usize,
}

pub fn verdict(home: &[Draw], guest: &[Draw], blocks: &[(usize, Block)]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut ranges: BTreeMap<(usize, i64), i64> = BTreeMap::new();
    for (n, Block { first, last }) in blocks {
        let (low, high) = (*first.min(last), *first.max(last));
        let overlaps = within(&ranges, *n, high).is_some_and(|(_, end)| end >= low);
        verdict.overlapping += usize::from(overlaps || ranges.insert((*n, low), high).is_some());
    }
    let in_block = |(n, value): &Draw| within(&ranges, *n, *value).is_some_and(|(_, end)| end >= *value);
    let mut seen = HashSet::new();
    verdict.twice = home.iter().chain(guest).filter(|draw| !seen.insert(**draw)).count();
    verdict.in_blocks = home.iter().filter(|draw| in_block(draw)).count();
    verdict.outside = guest.iter().filter(|draw| !in_block(draw)).count();
    verdict
}

/// The last range of the sequence that begins at `value` or before.
fn within(ranges: &BTreeMap<(usize, i64), i64>, n: usize, value: i64) -> Option<(i64, i64)> {
    let (key, end) = ranges.range((n, i64::MIN)..=(n, value)).next_back()?;
    Some((key.1, *end))
}
