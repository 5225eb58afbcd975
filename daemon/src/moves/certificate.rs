//! What the last clean comparison is still worth: how old it is, and what the lane has changed since. One that has not ended is worth
//! something too: the next one goes on from there.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use connectors::postgres::apply::Changed;
use schemas::Lsn;
use schemas::record::Kept;
use schemas::status::TableReport;

use crate::clock;

/// A comparison that is older counts no more.
const OLDEST: Duration = Duration::from_secs(3600);
/// Nor does the next one go on from one that had not ended.
const OLDEST_BEGUN: Duration = Duration::from_secs(24 * 3600);
/// With so many changed keys a tenant is still as good as just compared.
const FEW_KEYS: usize = 1_000;
/// To look up that part of the rows by their keys takes about as long as to read all.
const PART: u64 = 10;
/// Keys of each table that are written down.
const MOST_KEPT: usize = 5_000;

/// By a table's name at home: what it looks like there, and in the target.
pub type Shapes = HashMap<String, (String, String)>;

/// Both sides were equal, in the tables that have been compared.
#[derive(Clone)]
pub struct Certificate {
    at: Instant,
    /// These are all.
    whole: bool,
    /// What the tables looked like on both sides.
    shapes: Arc<Shapes>,
    tables: Arc<Vec<TableReport>>,
    changed: Arc<Changed>,
    users: Arc<()>,
}

impl Certificate {
    /// A comparison begins; what the lane applies since is noted in `changed`.
    pub fn begin(changed: &Arc<Changed>, shapes: Shapes) -> Certificate {
        let (changed, shapes) = (Arc::clone(changed), Arc::new(shapes));
        Certificate { at: Instant::now(), whole: false, shapes, tables: Arc::default(), changed, users: Arc::default() }
    }

    /// The comparison goes on with those of its tables that look like this; `changed` notes the rest.
    pub fn go_on(&self, changed: &Arc<Changed>, shapes: Shapes) -> Certificate {
        // Reference tables have no shape.
        let same = |table: &&TableReport| {
            self.shapes.get(&table.table).is_some_and(|shape| shapes.get(&table.table) == Some(shape))
        };
        let tables = self.tables.iter().filter(same).cloned().collect();
        Certificate {
            shapes: Arc::new(shapes),
            tables: Arc::new(tables),
            changed: Arc::clone(changed),
            users: Arc::default(),
            ..self.clone()
        }
    }

    /// What is noted does not say that this table is still equal.
    pub fn forget(&mut self, name: &str) {
        Arc::make_mut(&mut self.tables).retain(|table| table.table != name);
    }

    /// This table is equal too.
    pub fn add(&mut self, table: TableReport) {
        Arc::make_mut(&mut self.tables).push(table);
    }

    /// All have been compared.
    pub fn end(&mut self) {
        self.whole = true;
    }

    /// For when its lane goes on, which has noted all that is in the target now; `None` when it is worth nothing any more.
    pub fn kept(&self, lsn: Lsn) -> Option<Kept> {
        let changed = self.changed.kept(MOST_KEPT).filter(|_| self.is_young())?;
        // Without all keys it would not count.
        let all_known = || changed.iter().all(|(_, keys)| keys.is_some());
        if self.whole && !(self.few_changed() && all_known()) {
            return None;
        }
        let (at, whole) = (self.at(), self.whole);
        Some(Kept { at, whole, lsn, shapes: (*self.shapes).clone(), tables: (*self.tables).clone(), changed })
    }

    /// The same when its lane goes on with a target that stands here; `None` where somebody else has gone on meanwhile, or the clocks say
    /// nonsense.
    pub fn of(kept: Kept, here: Lsn) -> Option<Certificate> {
        let Kept { at, whole, lsn, shapes, tables, changed } = kept;
        if lsn != here {
            return None;
        }
        let (shapes, tables, changed) = (Arc::new(shapes), Arc::new(tables), Arc::new(Changed::of(changed)));
        let age = Duration::from_micros(u64::try_from(clock::unix_micros() - at).ok()?);
        let at = Instant::now().checked_sub(age)?;
        Some(Certificate { at, whole, shapes, tables, changed, users: Arc::default() })
    }

    /// What had changed was equal too; `changed` notes the rest, and tables have so many rows now.
    pub fn renewed(&self, changed: &Arc<Changed>, reports: &[TableReport]) -> Certificate {
        let mut tables = (*self.tables).clone();
        for table in &mut tables {
            let now = reports.iter().find(|report| report.table == table.table);
            table.source_rows = now.map_or(0, |now| now.source_rows).max(table.source_rows);
        }
        Certificate { changed: Arc::clone(changed), tables: Arc::new(tables), ..self.clone() }
    }

    /// All that had changed was equal while nobody wrote: from here on the lane of the other direction notes.
    pub fn carried(&self) -> Certificate {
        Certificate { changed: Arc::default(), users: Arc::default(), ..self.clone() }
    }

    /// Since then.
    pub fn changed(&self) -> &Arc<Changed> {
        &self.changed
    }

    /// A table that has been compared.
    pub fn table(&self, name: &str) -> Option<&TableReport> {
        self.tables.iter().find(|table| table.table == name)
    }

    /// When the comparison began, as Unix time in microseconds.
    pub fn at(&self) -> i64 {
        clock::unix_micros_at(self.at)
    }

    /// How long ago the comparison began.
    pub fn age(&self) -> Duration {
        self.at.elapsed()
    }

    /// Whether somebody goes by what is noted: nothing is noted elsewhere meanwhile.
    pub fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.users) > 1
    }

    /// Whether it still counts.
    pub fn counts(&self) -> bool {
        self.whole && self.is_young() && self.is_noted() && self.few_changed()
    }

    /// Whether hardly anything has changed since.
    pub fn is_fresh(&self) -> bool {
        self.counts() && self.keys_changed().is_some_and(|keys| keys <= FEW_KEYS)
    }

    /// Whether it is worth that more is noted for it: there is `room` for the keys, where they are not few.
    pub fn fits(&self, room: &mut usize) -> bool {
        let left = room.checked_sub(self.changed.bytes());
        let fits = self.is_begun() || self.is_fresh() || self.counts() && left.is_some();
        if fits {
            *room = left.unwrap_or(0);
        }
        fits
    }

    /// Whether the next comparison can go on from here.
    pub fn is_begun(&self) -> bool {
        !self.whole && self.is_young() && self.is_noted()
    }

    /// A lane that began anew has noted nothing.
    fn is_noted(&self) -> bool {
        Arc::weak_count(&self.changed) > 0 && !self.changed.is_closed()
    }

    fn is_young(&self) -> bool {
        self.age() < if self.whole { OLDEST } else { OLDEST_BEGUN }
    }

    /// Whether what has changed is compared sooner than all rows are; never where it is not known by its keys.
    fn few_changed(&self) -> bool {
        let rows: u64 = self.tables.iter().map(|table| table.source_rows).sum();
        self.keys_changed().is_some_and(|keys| keys <= FEW_KEYS || keys as u64 <= rows / PART)
    }

    fn keys_changed(&self) -> Option<usize> {
        self.changed.sizes().into_iter().map(|(_, keys)| keys).sum()
    }

    /// The same of these tables, as they look now.
    pub fn counts_of(&self, shapes: &Shapes) -> bool {
        self.counts() && shapes.iter().all(|(table, shape)| self.shapes.get(table) == Some(shape))
    }
}

#[cfg(test)]
mod tests {
    use schemas::TableName;
    use schemas::record::ChangedKeys;

    use super::*;

    fn report(table: &str) -> TableReport {
        TableReport {
            table: table.to_owned(),
            lsn: Some(Lsn(5)),
            source_rows: 2,
            target_rows: 2,
            source_digest: "1".to_owned(),
            target_digest: "1".to_owned(),
            differences: 0,
            examples: Vec::new(),
        }
    }

    /// Of three tables, of which two have been compared.
    fn begun(changed: &Arc<Changed>) -> Certificate {
        let mut certificate = Certificate::begin(changed, shapes(&[("accounts", 1), ("notes", 1), ("kinds", 1)]));
        ["accounts", "notes"].into_iter().for_each(|table| certificate.add(report(table)));
        certificate
    }

    fn keys(count: usize) -> Arc<Changed> {
        let names = (0..count).map(|n| vec![format!("t{n}").into_bytes()]).collect();
        let keys = ChangedKeys { columns: vec!["id".to_owned()], names };
        Arc::new(Changed::of(vec![(TableName::new("public", "accounts"), Some(keys))]))
    }

    fn of(changed: &Arc<Changed>) -> Certificate {
        let mut certificate = begun(changed);
        certificate.end();
        certificate
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
        let used = certificate.renewed(&changed, &[]);
        assert!(certificate.is_in_use());
        drop((used, changed));

        let old = Certificate { at: Instant::now().checked_sub(OLDEST).expect("a clock"), ..certificate.clone() };
        assert!(!old.counts());
        lane.upgrade().expect("it is there").close();
        assert!(!certificate.counts(), "noted elsewhere");
    }

    #[test]
    fn the_larger_a_tenant_the_more_of_it_may_have_changed() {
        for (rows, changed, counts, fresh) in [
            (10, 1_000, true, true),
            (10_000, 1_001, false, false),
            (10_010, 1_001, true, false),
            (200_000, 20_000, true, false),
            (200_000, 20_001, false, false),
        ] {
            let changed = keys(changed);
            let _lane = Arc::downgrade(&changed);
            let mut certificate = of(&changed);
            Arc::make_mut(&mut certificate.tables)[0].source_rows = rows - 2;
            assert_eq!((certificate.counts(), certificate.is_fresh()), (counts, fresh), "{rows} rows");
        }
    }

    #[test]
    fn what_is_noted_beyond_few_keys_has_to_fit() {
        let changed = keys(2_000);
        let _lane = Arc::downgrade(&changed);
        let mut certificate = of(&changed);
        Arc::make_mut(&mut certificate.tables)[0].source_rows = 100_000;
        let takes = changed.bytes();
        assert!((200_000..500_000).contains(&takes), "{takes}");
        let mut room = takes + 1;
        assert!(certificate.fits(&mut room) && room == 1);
        assert!(!certificate.fits(&mut room) && room == 1);
        let few = keys(1_000);
        let _lane = Arc::downgrade(&few);
        assert!(of(&few).fits(&mut room) && room == 0);
        let kept = certificate.kept(Lsn(7)).expect("it counts");
        assert!(kept.changed[0].1.is_some());
        let many = keys(MOST_KEPT + 1);
        let _lane = Arc::downgrade(&many);
        let many = Certificate { changed: Arc::clone(&many), ..certificate };
        assert!(many.counts() && many.kept(Lsn(7)).is_none(), "not all of its keys can be written down");
    }

    #[test]
    fn a_certificate_that_is_kept_is_as_old_and_waits_for_its_lane() {
        let certificate = of(&Arc::default());
        let kept = certificate.kept(Lsn(7)).expect("it counts but for its lane");
        assert_eq!(kept.lsn, Lsn(7));
        let when = |seconds: i64| Kept { at: kept.at - seconds * 1_000_000, ..kept.clone() };
        assert!(Certificate::of(when(-60), Lsn(7)).is_none(), "the clock went back");
        assert!(Certificate::of(when(3000), Lsn(8)).is_none(), "another state of the target");
        let again = Certificate::of(when(3000), Lsn(7)).expect("a clock");
        assert!(!again.counts(), "no lane notes");
        let _lane = Arc::downgrade(again.changed());
        assert!(again.counts_of(&certificate.shapes) && again.tables == certificate.tables);
        assert!((3000..3060).contains(&again.age().as_secs()));
        assert!(Certificate::of(when(3600), Lsn(7)).expect("a clock").kept(Lsn(7)).is_none(), "it is old");
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

    #[test]
    fn a_comparison_that_was_interrupted_goes_on_with_what_is_still_good() {
        let (changed, next) = (Arc::new(Changed::default()), Arc::new(Changed::default()));
        let certificate = begun(&changed);
        let lanes = (Arc::downgrade(&changed), Arc::downgrade(&next));
        assert!(certificate.is_begun() && !certificate.counts());
        let seen = |notes| shapes(&[("accounts", 1), ("notes", notes), ("kinds", 1)]);
        let names =
            |again: &Certificate| -> Vec<String> { again.tables.iter().map(|table| table.table.clone()).collect() };
        let mut again = certificate.go_on(&next, seen(1));
        assert_eq!(names(&again), ["accounts", "notes"]);
        again.forget("accounts");
        assert_eq!(names(&again), ["notes"]);
        let mut again = certificate.go_on(&next, seen(2));
        assert_eq!(names(&again), ["accounts"], "another table of the same name");
        let unseen = shapes(&[("accounts", 1)]);
        assert_eq!(names(&certificate.go_on(&next, unseen)), ["accounts"], "nobody knows what it looks like");
        assert!(again.at == certificate.at && Arc::ptr_eq(again.changed(), &next) && !again.is_in_use());
        again.end();
        assert!(again.counts() && again.counts_of(&seen(2)) && !again.is_begun());

        let kept = certificate.kept(Lsn(7)).expect("it can go on");
        let old = Kept { at: kept.at - 7_200_000_000, ..kept.clone() };
        assert!(Certificate::of(old, Lsn(7)).expect("a clock").kept(Lsn(7)).is_some(), "two hours are not too long");
        let older = Kept { at: kept.at - 86_400_000_000, ..kept };
        assert!(Certificate::of(older, Lsn(7)).expect("a clock").kept(Lsn(7)).is_none(), "a day is");
        drop(lanes);
        assert!(!certificate.is_begun(), "no lane notes");
    }
}
