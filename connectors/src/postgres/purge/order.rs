//! In which order tables are emptied.

use std::collections::BTreeSet;

/// Groups of tables, each behind all that refer to it: `edges` lead from the table that refers to the other one. Tables that
/// lead to each other are in one group.
pub(super) fn from_below(tables: usize, edges: &[(usize, usize)]) -> Vec<Vec<usize>> {
    let reach: Vec<BTreeSet<usize>> = (0..tables).map(|start| reached(start, edges)).collect();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for table in 0..tables {
        let with = |group: &&mut Vec<usize>| reach[table].contains(&group[0]) && reach[group[0]].contains(&table);
        match groups.iter_mut().find(with) {
            Some(group) => group.push(table),
            None => groups.push(vec![table]),
        }
    }
    // Whoever leads to another reaches all that this one does, and itself.
    groups.sort_by_key(|group| std::cmp::Reverse(reach[group[0]].len()));
    groups
}

fn reached(start: usize, edges: &[(usize, usize)]) -> BTreeSet<usize> {
    let mut reached = BTreeSet::from([start]);
    let mut left = vec![start];
    while let Some(table) = left.pop() {
        for (_, parent) in edges.iter().filter(|(child, _)| *child == table) {
            if reached.insert(*parent) {
                left.push(*parent);
            }
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn circles_stay_together() {
        // 0 and 1 refer to each other, 2 to 0, 1 to 3, 4 to itself.
        let edges = [(0, 1), (1, 0), (2, 0), (1, 3), (4, 4)];
        assert_eq!(from_below(5, &edges), [vec![2], vec![0, 1], vec![3], vec![4]]);
    }

    proptest! {
        #[test]
        fn nobody_comes_before_who_refers_to_it(edges in proptest::collection::vec((0usize..8, 0usize..8), 0..14)) {
            let groups = from_below(8, &edges);
            let place = |table: usize| groups.iter().position(|group| group.contains(&table)).unwrap();
            prop_assert_eq!(groups.iter().map(Vec::len).sum::<usize>(), 8);
            for (child, parent) in edges.iter().copied() {
                prop_assert!(place(child) <= place(parent));
                prop_assert!(place(child) < place(parent) || reached(parent, &edges).contains(&child));
            }
        }
    }
}
