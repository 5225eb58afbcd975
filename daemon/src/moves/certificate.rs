//! What the last clean comparison is still worth: how old it is, and what the lane has changed since.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use connectors::postgres::apply::Changed;
use schemas::Lsn;
use schemas::record::Kept;
use schemas::status::VerifyReport;

use crate::clock;

/// A comparison that is older counts no more, nor one after which more keys have changed.
const OLDEST: Duration = Duration::from_secs(3600);
const MOST_KEYS: usize = 1_000;

/// By a table's name at home: what it looks like there, and in the target.
pub type Shapes = HashMap<String, (String, String)>;

/// Both sides were equal.
#[derive(Clone)]
pub struct Certificate {
    at: Instant,
    /// What the tables looked like on both sides.
    shapes: Arc<Shapes>,
    /// Rows of each table, by its name at home.
    rows: Arc<HashMap<String, u64>>,
    changed: Arc<Changed>,
    users: Arc<()>,
}

impl Certificate {
    /// They were then; what the lane applies since is noted in `changed`.
    pub fn new(at: Instant, changed: &Arc<Changed>, report: &VerifyReport, shapes: Shapes) -> Certificate {
        let rows = report.tables.iter().map(|table| (table.table.clone(), table.source_rows)).collect();
        let (changed, users) = (Arc::clone(changed), Arc::default());
        Certificate { at, shapes: Arc::new(shapes), rows: Arc::new(rows), changed, users }
    }

    /// For when its lane goes on, which has noted all that is in the target now; `None` when it does not count any more.
    pub fn kept(&self, lsn: Lsn) -> Option<Kept> {
        let changed = self.changed.kept().filter(|_| self.is_young() && self.few_changed())?;
        let at = clock::unix_micros_at(self.at);
        Some(Kept { at, lsn, shapes: (*self.shapes).clone(), rows: (*self.rows).clone(), changed })
    }

    /// The same when its lane goes on; `None` where the clocks say nonsense.
    pub fn of(kept: Kept) -> Option<Certificate> {
        let Kept { at, shapes, rows, changed, .. } = kept;
        let (shapes, rows, changed) = (Arc::new(shapes), Arc::new(rows), Arc::new(Changed::of(changed)));
        let age = Duration::from_micros(u64::try_from(clock::unix_micros() - at).ok()?);
        let at = Instant::now().checked_sub(age)?;
        Some(Certificate { at, shapes, rows, changed, users: Arc::default() })
    }

    /// What had changed was equal too; `changed` notes the rest, and tables have so many rows now.
    pub fn renewed(&self, changed: &Arc<Changed>, rows: HashMap<String, u64>) -> Certificate {
        Certificate { changed: Arc::clone(changed), rows: Arc::new(rows), ..self.clone() }
    }

    /// All that had changed was equal while nobody wrote: from here on the lane of the other direction notes.
    pub fn carried(&self) -> Certificate {
        Certificate { changed: Arc::default(), users: Arc::default(), ..self.clone() }
    }

    /// Since then.
    pub fn changed(&self) -> &Arc<Changed> {
        &self.changed
    }

    /// Rows of each table when all were compared.
    pub fn rows(&self) -> &HashMap<String, u64> {
        &self.rows
    }

    /// How long ago all rows were compared.
    pub fn age(&self) -> Duration {
        self.at.elapsed()
    }

    /// Whether somebody goes by what is noted: nothing is noted elsewhere meanwhile.
    pub fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.users) > 1
    }

    /// Whether it still counts. A lane that began anew has noted nothing.
    pub fn counts(&self) -> bool {
        let noting = Arc::weak_count(&self.changed) > 0 && !self.changed.is_closed();
        noting && self.is_young() && self.few_changed()
    }

    fn is_young(&self) -> bool {
        self.age() < OLDEST
    }

    fn few_changed(&self) -> bool {
        let keys: Option<usize> = self.changed.sizes().into_iter().map(|(_, keys)| keys).sum();
        keys.is_some_and(|keys| keys <= MOST_KEYS)
    }

    /// The same of these tables, as they look now.
    pub fn counts_of(&self, shapes: &Shapes) -> bool {
        self.counts() && shapes.iter().all(|(table, shape)| self.shapes.get(table) == Some(shape))
    }
}

#[cfg(test)]
mod tests {
    use schemas::TenantId;

    use super::*;

    fn of(changed: &Arc<Changed>) -> Certificate {
        let report = VerifyReport { tenant: TenantId("1".to_owned()), lsn: Lsn::ZERO, equal: true, tables: Vec::new() };
        Certificate::new(Instant::now(), changed, &report, shapes(&[("accounts", 1), ("notes", 1), ("kinds", 1)]))
    }

    fn shapes(tables: &[(&str, u32)]) -> Shapes {
        tables.iter().map(|(table, seen)| ((*table).to_owned(), (seen.to_string(), seen.to_string()))).collect()
    }

    #[test]
    fn a_certificate_counts_while_a_lane_notes_and_it_is_young() {
        let changed = Arc::new(Changed::default());
        let certificate = of(&changed);
        assert!(!certificate.counts(), "no lane notes");
        let lane = Arc::downgrade(&changed);
        assert!(certificate.counts() && !certificate.is_in_use());
        assert!(certificate.counts_of(&shapes(&[("accounts", 1), ("notes", 1)])), "one is not asked about");
        assert!(!certificate.counts_of(&shapes(&[("accounts", 2), ("notes", 1)])), "one is another");
        assert!(!certificate.counts_of(&shapes(&[("accounts", 1), ("writes", 1)])), "one came");
        let used = certificate.renewed(&changed, HashMap::new());
        assert!(certificate.is_in_use());
        drop((used, changed));

        let old = Certificate { at: Instant::now().checked_sub(OLDEST).expect("a clock"), ..certificate.clone() };
        assert!(!old.counts());
        lane.upgrade().expect("it is there").close();
        assert!(!certificate.counts(), "noted elsewhere");
    }

    #[test]
    fn a_certificate_that_is_kept_is_as_old_and_waits_for_its_lane() {
        let certificate = of(&Arc::default());
        let kept = certificate.kept(Lsn(7)).expect("it counts but for its lane");
        assert_eq!(kept.lsn, Lsn(7));
        let when = |seconds: i64| Kept { at: kept.at - seconds * 1_000_000, ..kept.clone() };
        assert!(Certificate::of(when(-60)).is_none(), "the clock went back");
        let again = Certificate::of(when(3000)).expect("a clock");
        assert!(!again.counts(), "no lane notes");
        let _lane = Arc::downgrade(again.changed());
        assert!(again.counts_of(&certificate.shapes) && again.rows() == certificate.rows());
        assert!((3000..3060).contains(&again.age().as_secs()));
        assert!(Certificate::of(when(3600)).expect("a clock").kept(Lsn(7)).is_none(), "it is old");
    }

    #[test]
    fn a_certificate_that_is_carried_over_is_as_old_and_waits_for_its_lane() {
        let certificate = of(&Arc::default());
        let carried = certificate.carried();
        assert!(carried.at == certificate.at && !certificate.is_in_use() && !carried.is_in_use());
        assert!(!carried.counts(), "no lane notes");
        let _lane = Arc::downgrade(carried.changed());
        assert!(carried.counts());
    }
}
