//! Inode numbers that are unique across the host's file systems below one folder.

use std::collections::HashMap;
use std::sync::Mutex;

use rustix::io::Errno;

use super::wire::Result;

const LOCK: &str = "nothing panics with the table";

/// What is done about a folder that has other file systems below it (QEMU, `-fsdev`, `multidevs=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Multidevs {
    /// Guests see other inode numbers where the host's are not unique.
    #[default]
    Remap,
    /// The host's inode numbers, unique or not, and one line in the log.
    Warn,
    /// There is no access to other file systems.
    Forbid,
}

/// An inode number's upper bits make up a prefix with the device; guests see the prefix's index there.
const LOWER_BITS: u32 = 48;
const MOST_PREFIXES: usize = 1 << (64 - LOWER_BITS);

pub(super) struct QidPaths {
    multidevs: Multidevs,
    /// The folder's device.
    device: u64,
    /// Index by device and upper bits. The folder's own small inode numbers are index 0: they are the host's.
    prefixes: Mutex<HashMap<(u64, u64), u64>>,
}

impl QidPaths {
    pub(super) fn new(multidevs: Multidevs, device: u64) -> Self {
        Self { multidevs, device, prefixes: Mutex::new(HashMap::from([((device, 0), 0)])) }
    }

    /// The guest's number for a file.
    pub(super) fn path(&self, (device, inode): (u64, u64)) -> Result<u64> {
        if self.multidevs == Multidevs::Forbid && device != self.device {
            return Err(Errno::NODEV);
        }
        if self.multidevs == Multidevs::Warn && device != self.device {
            let mut prefixes = self.prefixes.lock().expect(LOCK);
            if prefixes.insert((device, 0), 0).is_none() && prefixes.len() == 2 {
                tracing::warn!(
                    target: "p9",
                    "a shared folder has other file systems below it: inode numbers may not be unique (multidevs=remap)"
                );
            }
        }
        if self.multidevs != Multidevs::Remap {
            return Ok(inode);
        }
        let prefix = (device, inode >> LOWER_BITS);
        if prefix == (self.device, 0) {
            return Ok(inode);
        }
        let mut prefixes = self.prefixes.lock().expect(LOCK);
        let next = prefixes.len();
        if next == MOST_PREFIXES && !prefixes.contains_key(&prefix) {
            return Err(Errno::NFILE);
        }
        let index = *prefixes.entry(prefix).or_insert(next as u64);
        Ok(index << LOWER_BITS | inode & ((1 << LOWER_BITS) - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_across_devices() {
        let paths = QidPaths::new(Multidevs::Remap, 7);
        let large = 5 | 3 << 60;
        let files = [(7, 5), (8, 5), (9, 5), (7, large), (8, large), (8, 5)];
        let seen = files.map(|file| paths.path(file).unwrap());
        assert_eq!((seen[0], seen[1], seen[1]), (5, 5 | 1 << 48, seen[5]));
        let mut unique = seen[..5].to_vec();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), 5);
    }

    #[test]
    fn other_devices_may_be_refused_or_taken_as_they_are() {
        let forbid = QidPaths::new(Multidevs::Forbid, 7);
        assert_eq!((forbid.path((7, 5)), forbid.path((8, 5))), (Ok(5), Err(Errno::NODEV)));
        let warn = QidPaths::new(Multidevs::Warn, 7);
        assert_eq!((warn.path((7, 5)), warn.path((8, 5))), (Ok(5), Ok(5)));
    }

    #[test]
    fn the_table_has_an_end() {
        let paths = QidPaths::new(Multidevs::Remap, 0);
        for device in 1..MOST_PREFIXES as u64 {
            paths.path((device, 1)).unwrap();
        }
        assert_eq!(paths.path((1 << 40, 1)), Err(Errno::NFILE));
        assert!(paths.path((1, 2)).is_ok());
    }
}
