//! A map from keys, as the wire carries them, with little memory beside the bytes themselves.

use std::collections::HashMap;

/// Keys to values. Keys of 4, 8 and 16 bytes (integers and uuids) lie in the table itself.
pub struct Keys<V> {
    four: HashMap<[u8; 4], V>,
    eight: HashMap<[u8; 8], V>,
    sixteen: HashMap<[u8; 16], V>,
    other: HashMap<Box<[u8]>, V>,
    /// Bytes of the keys in `other`.
    boxed: usize,
}

/// What a key in `other` takes beside its bytes: pointer, length, and the allocator's share.
const BOX_BYTES: usize = 32;

impl<V> Default for Keys<V> {
    fn default() -> Self {
        Keys { four: HashMap::new(), eight: HashMap::new(), sixteen: HashMap::new(), other: HashMap::new(), boxed: 0 }
    }
}

impl<V> Keys<V> {
    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Option<&V> {
        match key.len() {
            4 => self.four.get(key),
            8 => self.eight.get(key),
            16 => self.sixteen.get(key),
            _ => self.other.get(key),
        }
    }

    /// The value of a key, to change it.
    pub fn get_mut(&mut self, key: &[u8]) -> Option<&mut V> {
        match key.len() {
            4 => self.four.get_mut(key),
            8 => self.eight.get_mut(key),
            16 => self.sixteen.get_mut(key),
            _ => self.other.get_mut(key),
        }
    }

    /// Sets the value of a key.
    pub fn insert(&mut self, key: &[u8], value: V) {
        if let Ok(key) = key.try_into() {
            self.sixteen.insert(key, value);
        } else if let Ok(key) = key.try_into() {
            self.eight.insert(key, value);
        } else if let Ok(key) = key.try_into() {
            self.four.insert(key, value);
        } else if self.other.insert(key.into(), value).is_none() {
            self.boxed += key.len();
        }
    }

    /// Forgets a key.
    pub fn remove(&mut self, key: &[u8]) {
        match key.len() {
            4 => drop(self.four.remove(key)),
            8 => drop(self.eight.remove(key)),
            16 => drop(self.sixteen.remove(key)),
            _ => self.boxed -= self.other.remove(key).map_or(0, |_| key.len()),
        }
    }

    /// Keeps the keys whose value is one to be kept, and gives memory back.
    pub fn retain(&mut self, mut keep: impl FnMut(&V) -> bool) {
        self.four.retain(|_, value| keep(value));
        self.eight.retain(|_, value| keep(value));
        self.sixteen.retain(|_, value| keep(value));
        let boxed = &mut self.boxed;
        self.other.retain(|key, value| {
            let kept = keep(value);
            *boxed -= if kept { 0 } else { key.len() };
            kept
        });
        self.four.shrink_to_fit();
        self.eight.shrink_to_fit();
        self.sixteen.shrink_to_fit();
        self.other.shrink_to_fit();
    }

    /// Every key with its value, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &V)> {
        let four = self.four.iter().map(|(key, value)| (&key[..], value));
        let eight = self.eight.iter().map(|(key, value)| (&key[..], value));
        let sixteen = self.sixteen.iter().map(|(key, value)| (&key[..], value));
        let other = self.other.iter().map(|(key, value)| (&key[..], value));
        four.chain(eight).chain(sixteen).chain(other)
    }

    /// How many keys there are.
    pub fn count(&self) -> usize {
        self.four.len() + self.eight.len() + self.sixteen.len() + self.other.len()
    }

    /// The memory that it takes.
    pub fn bytes(&self) -> u64 {
        let value = size_of::<V>();
        let tables = table_bytes(self.four.capacity(), 4 + value)
            + table_bytes(self.eight.capacity(), 8 + value)
            + table_bytes(self.sixteen.capacity(), 16 + value)
            + table_bytes(self.other.capacity(), 16 + value);
        (tables + self.boxed + self.other.len() * (BOX_BYTES - 16)) as u64
    }
}

/// The memory of a hash table that has room for `entries`: an eighth stays free, the number of places is a
/// power of two, and each takes a byte of its own.
fn table_bytes(entries: usize, entry: usize) -> usize {
    match entries {
        0 => 0,
        some => (some * 8).div_ceil(7).next_power_of_two() * (entry + 1),
    }
}

/// The memory that `keys` keys of `width` bytes will take with their owners.
pub fn estimate(keys: u64, width: usize) -> u64 {
    let keys = usize::try_from(keys).unwrap_or(usize::MAX / 1024);
    let inside = matches!(width, 4 | 8 | 16);
    let (in_table, beside) = if inside { (width, 0) } else { (16, width + BOX_BYTES - 16) };
    (table_bytes(keys, in_table + size_of::<super::Lane>()) + keys * beside) as u64
}
