//! Putting files and pieces of them into guest RAM (Linux, sendfile(2), memfd_create(2)).
//!
//! RAM is a file of the host's, so a kernel is copied there from file to file: no page of it need be mapped first, none is
//! cleared only to be overwritten, and it takes half the time of a read into the mapping.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion,
};

/// Reads `length` bytes at `offset` of `file` to `address`. The file's position moves.
pub fn read(
    memory: &GuestMemoryMmap,
    address: GuestAddress,
    mut file: &File,
    mut offset: u64,
    length: u64,
) -> Result<(), GuestMemoryError> {
    let (mut at, mut left) = (address, length);
    while left > 0 {
        let region = memory.find_region(at).ok_or(GuestMemoryError::InvalidGuestAddress(at))?;
        let within = at.unchecked_offset_from(region.start_addr());
        let here = left.min(region.len() - within);
        file.seek(SeekFrom::Start(offset)).map_err(GuestMemoryError::IOError)?;
        match region.file_offset() {
            Some(ram) => {
                copy(file, ram.file(), ram.start() + within, here).map_err(GuestMemoryError::IOError)?
            }
            None => {
                let here = usize::try_from(here).expect("mapped, so it fits");
                memory.read_exact_volatile_from(at, &mut file, here)?;
            }
        }
        left -= here;
        offset += here;
        at = at.checked_add(here).ok_or(GuestMemoryError::GuestAddressOverflow)?;
    }
    Ok(())
}

/// Writes `bytes` to `address`.
pub fn write(
    memory: &GuestMemoryMmap,
    address: GuestAddress,
    mut bytes: &[u8],
) -> Result<(), GuestMemoryError> {
    let mut at = address;
    while !bytes.is_empty() {
        let region = memory.find_region(at).ok_or(GuestMemoryError::InvalidGuestAddress(at))?;
        let within = at.unchecked_offset_from(region.start_addr());
        let here = usize::try_from(region.len() - within).expect("mapped, so it fits").min(bytes.len());
        let (now, later) = bytes.split_at(here);
        match region.file_offset() {
            Some(ram) => {
                ram.file().write_all_at(now, ram.start() + within).map_err(GuestMemoryError::IOError)?
            }
            None => memory.write_slice(now, at)?,
        }
        bytes = later;
        at = at.checked_add(here as u64).ok_or(GuestMemoryError::GuestAddressOverflow)?;
    }
    Ok(())
}

/// `io::copy` between files leaves the copying to the kernel where it can.
fn copy(from: &File, mut ram: &File, offset: u64, length: u64) -> io::Result<()> {
    ram.seek(SeekFrom::Start(offset))?;
    if io::copy(&mut from.take(length), &mut ram)? < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
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
        check(Ram::new(8 << 20).unwrap().map(), &from, &content);
        check(&GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap(), &from, &content);
    }

    #[test]
    fn what_is_written_is_where_it_belongs() {
        let ranges = [(GuestAddress(0), 1 << 20), (GuestAddress(1 << 20), 1 << 20)];
        for memory in [Ram::new(2 << 20).unwrap().map(), &GuestMemoryMmap::from_ranges(&ranges).unwrap()] {
            let at = GuestAddress((1 << 20) - 3);
            write(memory, at, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
            assert_eq!(memory.read_obj::<u64>(at).unwrap(), 0x0807_0605_0403_0201);
            assert!(write(memory, GuestAddress((2 << 20) - 3), &[9; 8]).is_err());
        }
    }

    #[test]
    fn the_end_of_ram_is_not_passed() {
        let (ram, from) = (Ram::new(4 << 20).unwrap(), file(&[7; 64]));
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
