//! What the firmware configuration device holds: items by key, and files by name.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::spec::{FILE_NAME_BYTES, id, key};

/// The content of an item.
#[derive(Debug)]
pub enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// A part of a file, read when the guest asks for it.
    File {
        /// The file.
        file: File,
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u32,
    },
    /// Bytes that a guest may overwrite, by DMA; these again after a reset.
    Writable(Vec<u8>),
}

impl Content {
    /// Length in bytes. What is longer than 32 bits can tell ends there.
    pub fn len(&self) -> u32 {
        match self {
            Self::Bytes(bytes) | Self::Writable(bytes) => u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            Self::File { len, .. } => *len,
        }
    }

    /// There is nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buffer` from `offset` on, which lies within.
    pub(super) fn read(&self, at: u32, buffer: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Bytes(bytes) | Self::Writable(bytes) => {
                let at = usize::try_from(at).expect("a 64-bit host");
                buffer.copy_from_slice(&bytes[at..at + buffer.len()]);
                Ok(())
            }
            Self::File { file, offset, .. } => file.read_exact_at(buffer, offset + u64::from(at)),
        }
    }
}

/// Why a file cannot be among the items.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// The directory has no room for such a name.
    #[error("a name has 1 to {} bytes", FILE_NAME_BYTES - 1)]
    Name,
    /// There is one.
    #[error("there are two files of that name")]
    Twice,
    /// No key is left.
    #[error("there is room for {MOST_FILES} files")]
    Full,
}

const MOST_FILES: u16 = key::WRITE_CHANNEL - key::FILE_FIRST;

/// The items of a machine.
#[derive(Debug, Default)]
pub struct Items {
    by_key: BTreeMap<u16, Content>,
    files: BTreeMap<String, Content>,
}

impl Items {
    /// The signature and the interface's features; no files.
    pub fn new() -> Self {
        let mut items = Self::default();
        items.set(key::SIGNATURE, b"QEMU");
        items.set(key::ID, &(id::TRADITIONAL | id::DMA).to_le_bytes());
        items
    }

    /// The item of `key` is this; numbers are little-endian.
    pub fn set(&mut self, key: u16, bytes: &[u8]) {
        self.set_content(key, Content::Bytes(bytes.to_vec()));
    }

    /// The item of `key` is this.
    pub fn set_content(&mut self, key: u16, content: Content) {
        self.by_key.insert(key, content);
    }

    /// Adds a file.
    pub fn add_file(&mut self, name: &str, content: Content) -> Result<(), FileError> {
        if name.is_empty() || name.len() >= FILE_NAME_BYTES || name.contains('\0') {
            return Err(FileError::Name);
        }
        if self.files.len() >= usize::from(MOST_FILES) {
            return Err(FileError::Full);
        }
        if self.files.contains_key(name) {
            return Err(FileError::Twice);
        }
        self.files.insert(name.to_owned(), content);
        Ok(())
    }

    /// All items by their keys. Files follow each other in the order of their names; their directory is an item, too.
    pub(super) fn finish(mut self) -> BTreeMap<u16, Content> {
        let count = u32::try_from(self.files.len()).expect("add_file has a limit");
        let mut directory = count.to_be_bytes().to_vec();
        for (key, (name, content)) in (key::FILE_FIRST..).zip(self.files) {
            let mut field = [0; FILE_NAME_BYTES];
            field[..name.len()].copy_from_slice(name.as_bytes());
            directory.extend(content.len().to_be_bytes());
            directory.extend(key.to_be_bytes());
            directory.extend([0, 0]);
            directory.extend(field);
            self.by_key.insert(key, content);
        }
        self.by_key.insert(key::FILE_DIR, Content::Bytes(directory));
        self.by_key
    }
}
