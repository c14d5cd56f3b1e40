//! Locks on ranges of files, between the processes of one guest (9P2000.L, *lock*, *getlock*; POSIX, fcntl).
//!
//! As with QEMU they are the guest's among itself: the host's programs neither see them nor hinder them.

use std::collections::HashMap;

use rustix::io::Errno;

use super::wire::Result;

/// Locks of all files at most.
const MOST_LOCKS: usize = 1 << 16;

/// A range, and who has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lock {
    /// Nobody else may have it. Otherwise others may read, too.
    pub(super) is_exclusive: bool,
    pub(super) start: u64,
    /// The last byte.
    pub(super) last: u64,
    pub(super) process: u32,
    pub(super) client: Vec<u8>,
}

impl Lock {
    /// A `length` of 0 is up to the end, wherever that will be.
    pub(super) fn new(
        is_exclusive: bool,
        start: u64,
        length: u64,
        process: u32,
        client: &[u8],
    ) -> Result<Self> {
        let last = match length {
            0 => u64::MAX,
            length => start.checked_add(length - 1).ok_or(Errno::OVERFLOW)?,
        };
        Ok(Self { is_exclusive, start, last, process, client: client.to_vec() })
    }

    /// As a message has it.
    pub(super) fn length(&self) -> u64 {
        if self.last == u64::MAX { 0 } else { self.last - self.start + 1 }
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.start <= other.last && other.start <= self.last
    }

    fn is_of(&self, other: &Self) -> bool {
        (self.process, &self.client) == (other.process, &other.client)
    }
}

/// All locks of a session.
#[derive(Default)]
pub(super) struct Locks {
    files: HashMap<(u64, u64), Vec<Lock>>,
    count: usize,
}

impl Locks {
    /// The lock of somebody else that stands in the way of `wanted`.
    pub(super) fn conflict(&self, file: (u64, u64), wanted: &Lock) -> Option<&Lock> {
        let conflicts = |held: &&Lock| {
            held.overlaps(wanted) && !held.is_of(wanted) && (held.is_exclusive || wanted.is_exclusive)
        };
        self.files.get(&file)?.iter().find(conflicts)
    }

    /// Takes a lock; what its owner had of the range is replaced. False: it is in somebody's way.
    pub(super) fn lock(&mut self, file: (u64, u64), wanted: Lock) -> Result<bool> {
        if self.conflict(file, &wanted).is_some() {
            return Ok(false);
        }
        // A range that is cut makes two, and here is a third.
        if self.count + 2 > MOST_LOCKS {
            return Err(Errno::NOLCK);
        }
        self.unlock(file, &wanted)?;
        self.files.entry(file).or_default().push(wanted);
        self.count += 1;
        Ok(true)
    }

    /// Gives back what the owner of `range` has of it.
    pub(super) fn unlock(&mut self, file: (u64, u64), range: &Lock) -> Result<()> {
        let Some(held) = self.files.get_mut(&file) else { return Ok(()) };
        let is_cut = |lock: &Lock| lock.is_of(range) && lock.start < range.start && lock.last > range.last;
        if self.count >= MOST_LOCKS && held.iter().any(is_cut) {
            return Err(Errno::NOLCK);
        }
        let before = held.len();
        let (mut kept, cut): (Vec<_>, Vec<_>) =
            std::mem::take(held).into_iter().partition(|lock| !(lock.is_of(range) && lock.overlaps(range)));
        for lock in cut {
            if lock.start < range.start {
                kept.push(Lock { last: range.start - 1, ..lock.clone() });
            }
            if lock.last > range.last {
                kept.push(Lock { start: range.last + 1, ..lock });
            }
        }
        self.count = self.count - before + kept.len();
        if kept.is_empty() {
            self.files.remove(&file);
        } else {
            *held = kept;
        }
        Ok(())
    }

    /// Nobody has the file open any more.
    pub(super) fn forget(&mut self, file: (u64, u64)) {
        self.count -= self.files.remove(&file).map_or(0, |locks| locks.len());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: (u64, u64) = (1, 2);

    fn lock(is_exclusive: bool, start: u64, length: u64, process: u32) -> Lock {
        Lock::new(is_exclusive, start, length, process, b"guest").unwrap()
    }

    #[test]
    fn readers_share_and_writers_do_not() {
        let mut locks = Locks::default();
        assert_eq!(locks.lock(FILE, lock(false, 0, 10, 1)), Ok(true));
        assert_eq!(locks.lock(FILE, lock(false, 5, 10, 2)), Ok(true));
        assert_eq!(locks.lock(FILE, lock(true, 9, 1, 2)), Ok(false));
        assert_eq!(locks.conflict(FILE, &lock(true, 9, 1, 2)), Some(&lock(false, 0, 10, 1)));
        assert_eq!(locks.lock((1, 3), lock(true, 9, 1, 2)), Ok(true));
        locks.unlock(FILE, &lock(false, 0, 0, 1)).unwrap();
        assert_eq!(locks.lock(FILE, lock(true, 9, 1, 2)), Ok(true));
        // Nor is another machine's process the same one.
        let other = Lock { client: b"other".to_vec(), ..lock(true, 9, 1, 2) };
        assert_eq!(locks.lock(FILE, other), Ok(false));
    }

    #[test]
    fn a_range_is_cut() {
        let mut locks = Locks::default();
        locks.lock(FILE, lock(true, 0, 0, 1)).unwrap();
        locks.unlock(FILE, &lock(true, 10, 10, 1)).unwrap();
        assert_eq!(locks.count, 2);
        assert_eq!(locks.conflict(FILE, &lock(true, 10, 10, 2)), None);
        assert_eq!(locks.conflict(FILE, &lock(true, 9, 1, 2)), Some(&lock(true, 0, 10, 1)));
        assert_eq!(locks.conflict(FILE, &lock(true, 20, 1, 2)).map(Lock::length), Some(0));
        // Its owner may change it in part.
        locks.lock(FILE, lock(false, 5, 5, 1)).unwrap();
        assert_eq!(locks.conflict(FILE, &lock(false, 5, 5, 2)), None);
        assert!(locks.conflict(FILE, &lock(false, 4, 1, 2)).is_some());
        locks.forget(FILE);
        assert!(locks.is_empty() && locks.files.is_empty());
    }

    #[test]
    fn ranges_that_are_none_and_too_many() {
        assert_eq!(Lock::new(true, u64::MAX, 2, 1, b""), Err(Errno::OVERFLOW));
        assert_eq!(lock(true, u64::MAX, 1, 1).last, u64::MAX);
        let mut locks = Locks::default();
        for file in 0..MOST_LOCKS as u64 - 1 {
            assert_eq!(locks.lock((0, file), lock(true, 0, 1, 1)), Ok(true));
        }
        assert_eq!(locks.lock((1, 0), lock(true, 0, 1, 1)), Err(Errno::NOLCK));
        // Nor are there more by cutting.
        locks.forget((0, 0));
        assert_eq!(locks.lock((1, 0), lock(true, 0, 0, 1)), Ok(true));
        locks.unlock((1, 0), &lock(true, 10, 1, 1)).unwrap();
        assert_eq!(locks.unlock((1, 0), &lock(true, 20, 1, 1)), Err(Errno::NOLCK));
        assert_eq!(locks.count, MOST_LOCKS);
    }
}
