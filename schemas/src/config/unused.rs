//! Which keys of a file belong to features that this version does not have.
//!
//! They are accepted, so that a file written for a later version works; `check` lists them.

use super::yaml::{Node, Value};

/// Blocks of which no key is used.
const BLOCKS: [&[&str]; 1] = [&["kafka"]];

/// Keys in blocks that are used otherwise.
const KEYS: [&[&str]; 2] = [&["tenant_strategy", "default_type"], &["tenant_strategy", "migration_thresholds"]];

/// The dotted keys that stand in the file with a value.
pub(super) fn keys(file: &Node) -> Vec<String> {
    let set = |path: &&[&str]| file.get(path).is_some_and(|node| !matches!(node.value, Value::Null));
    let single = KEYS.into_iter().filter(set).map(|path| path.join("."));
    let blocks = BLOCKS.into_iter().flat_map(|path| match file.get(path).map(|node| &node.value) {
        Some(Value::Map(entries)) => {
            entries.iter().map(|(key, _)| format!("{}.{}", path.join("."), key.text)).collect()
        }
        _ => Vec::new(),
    });
    single.chain(blocks).collect()
}
