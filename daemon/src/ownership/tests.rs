//! The index against a model: whatever changes while a lane's keys are read, in the end it says whose each row is.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use super::*;

const LANE: MoveId = MoveId(1);
const OTHER: MoveId = MoveId(2);

#[derive(Clone, Debug)]
enum Step {
    /// A root comes or changes hands: 0 nobody, 1 the lane, 2 the other one.
    Root(u8, u8),
    /// A root goes, and with it what refers to it.
    NoRoot(u8),
    /// A row below refers to a root.
    Row(u8, u8),
    NoRow(u8),
    /// The lane's next few keys are read from its target.
    Read(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..12_u8;
    prop_oneof![
        (key.clone(), 0..3_u8).prop_map(|(root, owner)| Step::Root(root, owner)),
        key.clone().prop_map(Step::NoRoot),
        (key.clone(), key.clone()).prop_map(|(row, root)| Step::Row(row, root)),
        key.clone().prop_map(Step::NoRow),
        key.prop_map(Step::Read),
    ]
}

fn name(key: u8) -> [u8; 4] {
    u32::from(key).to_be_bytes()
}

/// What is true: roots with their owner, rows with their root.
#[derive(Clone, Default)]
struct Model {
    roots: BTreeMap<u8, u8>,
    rows: BTreeMap<u8, u8>,
}

impl Model {
    fn owner(&self, row: u8) -> Option<u8> {
        self.rows.get(&row).and_then(|root| self.roots.get(root)).copied()
    }
}

struct Rig {
    index: Ownership,
    roots: Reference,
    rows: Reference,
    model: Model,
}

impl Rig {
    fn new() -> Rig {
        let mut index = Ownership::default();
        let table = |name: &str| TableName::new("public", name);
        let roots = index.reference(&table("roots"), &["id".to_owned()], None);
        let rows = index.reference(&table("rows"), &["id".to_owned()], Some(roots));
        index.open(LANE);
        // The other lane's keys are known from the beginning.
        index.open(OTHER);
        index.begin_reading(OTHER);
        assert!(index.end_reading(OTHER, true));
        Rig { index, roots, rows, model: Model::default() }
    }

    /// One transaction.
    fn take(&mut self, step: &Step) {
        match *step {
            Step::Root(root, owner) => {
                // With the old one goes what refers to it.
                self.take(&Step::NoRoot(root));
                self.model.roots.insert(root, owner);
                let owner = match owner {
                    1 => Owner::Lane(LANE),
                    2 => Owner::Lane(OTHER),
                    _ => Owner::Nobody,
                };
                self.index.settle(self.roots, &name(root), Some(&owner), None);
            }
            Step::NoRoot(root) => {
                if self.model.roots.remove(&root).is_some() {
                    self.index.settle(self.roots, &name(root), None, None);
                }
                let below: Vec<u8> = self.model.rows.iter().filter(|(_, r)| **r == root).map(|(row, _)| *row).collect();
                below.into_iter().for_each(|row| self.take(&Step::NoRow(row)));
            }
            Step::Row(row, root) if self.model.roots.contains_key(&root) => {
                self.model.rows.insert(row, root);
                let owner = self.index.owner(self.roots, &name(root));
                self.index.settle(self.rows, &name(row), Some(&owner), Some(&name(root)));
            }
            Step::NoRow(row) => {
                if self.model.rows.remove(&row).is_some() {
                    self.index.settle(self.rows, &name(row), None, None);
                }
            }
            Step::Row(..) | Step::Read(_) => {}
        }
    }
}

proptest! {
    #[test]
    fn what_the_stream_said_last_counts_and_the_target_for_the_rest(
        before in proptest::collection::vec(step(), 0..40),
        meanwhile in proptest::collection::vec(step(), 0..60),
    ) {
        let mut rig = Rig::new();
        // What happened before the lane opened is in no index.
        let mut hidden = Rig::new();
        before.iter().for_each(|step| hidden.take(step));
        for (root, owner) in &hidden.model.roots {
            if *owner == 2 {
                rig.index.settle(rig.roots, &name(*root), Some(&Owner::Lane(OTHER)), None);
            }
        }
        for row in hidden.model.rows.keys().filter(|row| hidden.model.owner(**row) == Some(2)) {
            rig.index.settle(rig.rows, &name(*row), Some(&Owner::Lane(OTHER)), None);
        }
        rig.model = hidden.model;
        rig.index.begin_reading(LANE);
        // The target holds what was there when the reading began, or what came until each key is read.
        let mut base: HashMap<(bool, u8), ()> = HashMap::new();
        let of_lane = |model: &Model| {
            let roots = model.roots.iter().filter(|(_, owner)| **owner == 1).map(|(root, _)| (false, *root));
            let rows = model.rows.keys().filter(|row| model.owner(**row) == Some(1)).map(|row| (true, *row));
            roots.chain(rows).collect::<Vec<_>>()
        };
        base.extend(of_lane(&rig.model).into_iter().map(|key| (key, ())));
        for step in &meanwhile {
            rig.take(step);
            if let Step::Read(key) = step {
                for row in [false, true] {
                    if base.remove(&(row, *key)).is_some() {
                        let reference = if row { rig.rows } else { rig.roots };
                        prop_assert!(rig.index.add(LANE, reference, &name(*key)));
                    }
                }
            }
        }
        for (row, key) in base.into_keys() {
            let reference = if row { rig.rows } else { rig.roots };
            prop_assert!(rig.index.add(LANE, reference, &name(key)));
        }
        prop_assert!(rig.index.end_reading(LANE, true));
        let expected = |owner: Option<u8>| match owner {
            Some(1) => Owner::Lane(LANE),
            Some(2) => Owner::Lane(OTHER),
            _ => Owner::Nobody,
        };
        for key in 0..12 {
            let root = rig.model.roots.get(&key).copied();
            prop_assert_eq!(rig.index.owner(rig.roots, &name(key)), expected(root), "root {}", key);
            prop_assert_eq!(rig.index.owner(rig.rows, &name(key)), expected(rig.model.owner(key)), "row {}", key);
        }
    }

    #[test]
    fn keys_of_any_length_are_kept_and_counted(
        keys in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..20), any::<bool>()), 0..200),
    ) {
        let (mut map, mut model) = (Keys::default(), HashMap::new());
        for (n, (key, keep)) in keys.iter().enumerate() {
            if *keep {
                map.insert(key, n);
                model.insert(key.clone(), n);
            } else {
                map.remove(key);
                model.remove(key);
            }
        }
        prop_assert_eq!(map.count(), model.len());
        for (key, value) in &model {
            prop_assert_eq!(map.get(key), Some(value));
        }
        prop_assert_eq!(map.iter().map(|(key, value)| (key.to_vec(), *value)).collect::<HashMap<_, _>>(), model);
    }
}

#[test]
fn the_estimate_is_what_a_full_index_takes() {
    for (width, number) in [(8, 100_000_u32), (16, 50_000), (4, 1000)] {
        let mut keys = Keys::default();
        for n in 0..number {
            let mut key = vec![0; width];
            key[..4].copy_from_slice(&n.to_be_bytes());
            keys.insert(&key, pack(LANE));
        }
        assert_eq!(keys.bytes(), estimate(number.into(), width), "{number} keys of {width} bytes");
    }
}
