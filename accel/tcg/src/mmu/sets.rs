//! What a context notes of what it holds, so that a flush looks at no more than it must.

/// A set of page numbers that may say yes to one that is not in it, never no to one that is.
#[repr(C)]
pub struct PageSet {
    bits: [u64; 64],
    used: bool,
}

// Refills write sets too.
const _: () = assert!(std::mem::offset_of!(PageSet, used) == 512);

impl PageSet {
    /// Empty.
    pub const NEW: Self = Self { bits: [0; 64], used: false };

    fn place(number: u64) -> (usize, u64) {
        let hash = (number ^ number >> 12) as usize & 0xfff;
        (hash / 64, 1 << (hash % 64))
    }
    /// Enters `number`.
    pub fn insert(&mut self, number: u64) {
        let (word, bit) = Self::place(number);
        self.bits[word] |= bit;
        self.used = true;
    }
    /// Whether it may have `number`.
    pub fn may_have(&self, number: u64) -> bool {
        let (word, bit) = Self::place(number);
        self.used && self.bits[word] & bit != 0
    }
    /// Empties it.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.used) {
            self.bits = [0; 64];
        }
    }
}

/// Pieces of each table that [`Used`] tells apart.
pub const PIECES: usize = 64;

/// Which pieces of a table something was entered in. A flush empties no others: an address space that a kernel switches to
/// for the sake of one store (Linux's `text_poke`) has a few entries, and tables of a hundred KiB.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Used([bool; PIECES]);

impl Used {
    /// Nothing is.
    pub const NONE: Self = Self([false; PIECES]);

    /// Entry `index` of `table` is used.
    pub fn set<T>(&mut self, table: &[T], index: usize) {
        self.0[index / (table.len() / PIECES) % PIECES] = true;
    }

    /// Whether anything is used.
    pub fn any(&self) -> bool {
        self.0 != [false; PIECES]
    }

    /// Has what is used of `table` be as it is in `empty`.
    pub fn flush<T: Copy>(&mut self, table: &mut [T], empty: impl Fn(usize) -> T) {
        if !self.any() {
            return;
        }
        let len = table.len() / PIECES;
        for (piece, used) in self.0.iter_mut().enumerate() {
            if std::mem::take(used) {
                let first = piece * len;
                for (index, entry) in table[first..first + len].iter_mut().enumerate() {
                    *entry = empty(first + index);
                }
            }
        }
    }
}
