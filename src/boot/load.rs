//! Putting files and pieces of them into guest RAM.

use std::fs::File;
use std::io::{Seek, SeekFrom};

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// Reads `length` bytes at `offset` of `file` to `address`. The file's position moves.
pub fn read(
    memory: &GuestMemoryMmap,
    address: GuestAddress,
    mut file: &File,
    offset: u64,
    length: u64,
) -> Result<(), GuestMemoryError> {
    let length = usize::try_from(length).map_err(|_| GuestMemoryError::InvalidGuestAddress(address))?;
    file.seek(SeekFrom::Start(offset)).map_err(GuestMemoryError::IOError)?;
    memory.read_exact_volatile_from(address, &mut file, length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::memory::Ram;
    use std::io::Write;

    /// A file without a name.
    fn file(content: &[u8]) -> File {
        let path =
            std::env::temp_dir().join(format!("bivisor-load-{}-{}", std::process::id(), content.len()));
        let mut file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn check(memory: &GuestMemoryMmap, from: &File, content: &[u8]) {
        let at = GuestAddress(0x1f_fe00);
        let length = content.len() - 5;
        read(memory, at, from, 3, length as u64).unwrap();
        let mut got = vec![0xff; length + 2];
        memory.read_slice(&mut got, GuestAddress(at.0 - 1)).unwrap();
        assert_eq!((got[0], got[length + 1]), (0, 0));
        assert_eq!(got[1..=length], content[3..3 + length]);
        // A file that has become shorter than it was.
        assert!(read(memory, at, from, 0, content.len() as u64 + 1).is_err());
        assert!(read(memory, GuestAddress(1 << 40), from, 0, 1).is_err());
    }

    #[test]
    fn what_is_read_is_where_it_belongs_and_nowhere_else() {
        let content: Vec<u8> = (0..100_003u32).map(|n| (n % 251) as u8).collect();
        let from = file(&content);
        check(Ram::new(8 << 20, None).unwrap().map(), &from, &content);
    }

    #[test]
    fn the_end_of_ram_is_not_passed() {
        let (ram, from) = (Ram::new(4 << 20, None).unwrap(), file(&[7; 64]));
        assert!(read(ram.map(), GuestAddress((4 << 20) - 32), &from, 0, 64).is_err());
        assert_eq!(ram.map().read_obj::<u8>(GuestAddress((4 << 20) - 1)).unwrap(), 7);
    }

    #[test]
    fn regions_that_join_are_filled_one_after_the_other() {
        let ranges = [(GuestAddress(0), 1 << 20), (GuestAddress(1 << 20), 1 << 20)];
        let memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        read(&memory, GuestAddress((1 << 20) - 32), &file(&[7; 65]), 0, 65).unwrap();
        assert_eq!(memory.read_obj::<u64>(GuestAddress((1 << 20) + 25)).unwrap(), 0x0707_0707_0707_0707);
        assert_eq!(memory.read_obj::<u8>(GuestAddress((1 << 20) + 33)).unwrap(), 0);
    }
}
