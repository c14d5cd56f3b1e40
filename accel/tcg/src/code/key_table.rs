//! An index of blocks by key: open addressing over block numbers (Knuth, *The Art of Computer Programming*, vol. 3,
//! 6.4, algorithm L).
//!
//! A map that held the keys a second time would take ten times the memory, and a block that is looked up is used next: its
//! key is read from where it is.

use std::hash::BuildHasher;

use crate::code::tb::{TbId, TbKey};
use crate::huge_pages::roomy;

const EMPTY: u32 = u32::MAX;
/// Was taken: a search goes on past it.
const REMOVED: u32 = u32::MAX - 1;
const MIN_PLACES: usize = 1024;

/// A block's number, and some of its key's hash: other keys are told apart without a look at their blocks.
#[derive(Clone, Copy)]
struct Place {
    id: u32,
    hash: u32,
}

const EMPTY_PLACE: Place = Place { id: EMPTY, hash: 0 };

/// The index. `key_of` of each method gives the key of a block that is in it.
pub struct KeyTable<S> {
    /// A power of two of them, never all taken.
    places: Vec<Place>,
    /// Places that are not [`EMPTY`].
    taken: usize,
    live: usize,
    hasher: S,
}

impl<S: BuildHasher + Default> Default for KeyTable<S> {
    fn default() -> Self {
        Self { places: vec![EMPTY_PLACE; MIN_PLACES], taken: 0, live: 0, hasher: S::default() }
    }
}

impl<S: BuildHasher> KeyTable<S> {
    /// The hash of `key`: its high bits, which all of the key's bits went into.
    fn hash(&self, key: &TbKey) -> u32 {
        (self.hasher.hash_one(key) >> 32) as u32
    }

    /// Where the search for a key with `hash` begins.
    fn start(&self, hash: u32) -> usize {
        (hash >> (u32::BITS - self.places.len().ilog2())) as usize
    }

    fn next(&self, place: usize) -> usize {
        (place + 1) & (self.places.len() - 1)
    }

    fn place_of<'a>(&self, key: &TbKey, key_of: impl Fn(TbId) -> &'a TbKey) -> Option<usize> {
        let hash = self.hash(key);
        let mut place = self.start(hash);
        loop {
            match self.places[place] {
                Place { id: EMPTY, .. } => return None,
                Place { id: REMOVED, .. } => {}
                found if found.hash == hash && key_of(found.id) == key => return Some(place),
                _ => {}
            }
            place = self.next(place);
        }
    }

    /// The block for `key`.
    pub fn find<'a>(&self, key: &TbKey, key_of: impl Fn(TbId) -> &'a TbKey) -> Option<TbId> {
        self.place_of(key, key_of).map(|place| self.places[place].id)
    }

    /// Enters `id` for `key`, in the place of another block if there is one.
    pub fn insert<'a>(&mut self, key: &TbKey, id: TbId, key_of: impl Fn(TbId) -> &'a TbKey) {
        assert!(id < REMOVED, "code memory is full long before");
        if let Some(place) = self.place_of(key, &key_of) {
            self.places[place].id = id;
            return;
        }
        // Half empty at least: searches that find nothing are the most frequent ones while code is new.
        if (self.taken + 1) * 2 > self.places.len() {
            self.rebuild();
        }
        self.live += 1;
        self.put(Place { id, hash: self.hash(key) });
    }

    /// Into the first empty place: there is no such key yet.
    fn put(&mut self, new: Place) {
        let mut place = self.start(new.hash);
        while self.places[place].id != EMPTY {
            place = self.next(place);
        }
        self.places[place] = new;
        self.taken += 1;
    }

    /// More room, or the same without the places of what was removed.
    fn rebuild(&mut self) {
        let room = ((self.live + 1) * 4).next_power_of_two().max(MIN_PLACES);
        let mut places = roomy(room);
        places.resize(room, EMPTY_PLACE);
        let old = std::mem::replace(&mut self.places, places);
        self.taken = 0;
        for place in old.into_iter().filter(|place| place.id < REMOVED) {
            self.put(place);
        }
    }

    /// Takes the block for `key` out.
    pub fn remove<'a>(&mut self, key: &TbKey, key_of: impl Fn(TbId) -> &'a TbKey) {
        if let Some(place) = self.place_of(key, key_of) {
            self.places[place].id = REMOVED;
            self.live -= 1;
            // What no search passes by need not be kept.
            let mut last = place;
            while self.places[last].id == REMOVED && self.places[self.next(last)].id == EMPTY {
                self.places[last].id = EMPTY;
                self.taken -= 1;
                last = last.wrapping_sub(1) & (self.places.len() - 1);
            }
        }
    }

    /// Takes all out.
    pub fn clear(&mut self) {
        self.places.clear();
        self.places.resize(MIN_PLACES, EMPTY_PLACE);
        (self.taken, self.live) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::cache::KeyHasher;
    use std::collections::HashMap;
    use std::hash::BuildHasherDefault;

    type Table = KeyTable<BuildHasherDefault<KeyHasher>>;

    fn key(n: u64) -> TbKey {
        let key = TbKey::new(n / 3 * 0x10, n, (n % 5) as u32);
        if n.is_multiple_of(7) { key.crossing_into(n as u32) } else { key }
    }

    /// A sequence of numbers that looks random (Knuth's MMIX generator).
    fn numbers() -> impl Iterator<Item = u64> {
        std::iter::successors(Some(1u64), |n| {
            Some(n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407))
        })
        .map(|n| n >> 33)
    }

    #[test]
    fn it_does_what_a_map_does() {
        let (mut table, mut map, mut keys) = (Table::default(), HashMap::new(), Vec::new());
        for n in numbers().take(60_000) {
            let wanted = key(n % 9000);
            if n.is_multiple_of(3) {
                table.remove(&wanted, |id| &keys[id as usize]);
                map.remove(&wanted);
            } else {
                let id = keys.len() as TbId;
                keys.push(wanted);
                table.insert(&wanted, id, |id| &keys[id as usize]);
                map.insert(wanted, id);
            }
            let other = key(n / 9000 % 9000);
            assert_eq!(table.find(&other, |id| &keys[id as usize]), map.get(&other).copied());
        }
        assert_eq!(table.live, map.len());
        assert!(table.places.len() <= 8 * map.len(), "it grows with what is in it, not with what was");
        table.clear();
        assert_eq!(table.find(&key(1), |id| &keys[id as usize]), None);
    }

    #[test]
    fn neighbouring_keys_do_not_crowd() {
        let keys: Vec<TbKey> = (0..40_000).map(|n| TbKey::new(n * 16, n * 16, 1)).collect();
        let mut table = Table::default();
        for (id, key) in keys.iter().enumerate() {
            table.insert(key, id as TbId, |id| &keys[id as usize]);
        }
        let steps = |key: &TbKey| {
            let place = table.place_of(key, |id| &keys[id as usize]).unwrap();
            place.wrapping_sub(table.start(table.hash(key))) & (table.places.len() - 1)
        };
        let total: usize = keys.iter().map(steps).sum();
        assert!(total < 3 * keys.len(), "{total} steps to {} keys", keys.len());
    }
}
