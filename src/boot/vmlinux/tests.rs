//! A small kernel, taken in pieces of every size.

use super::*;
use vm_memory::{Bytes, GuestMemoryMmap};

const MIB: u64 = 1 << 20;
const ROOM: Room = Room { link: 16 * MIB, bytes: MIB, alignment: 2 * MIB, top: 64 * MIB };
const MOVED: Place = Place { physical: 20 * MIB, virtual_offset: 18 * MIB };
const CODE_AT: usize = 0x200;

fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Two segments, at 16 MiB (64 bytes) and 64 KiB further (8 of 100 bytes), then section headers, then `table`.
fn kernel(table: &[u8]) -> Vec<u8> {
    let mut file = vec![0; CODE_AT + 64 + 8 + 2 * 64];
    put(&mut file, 0, b"\x7fELF\x02\x01\x01");
    put(&mut file, 18, &62u16.to_le_bytes());
    put(&mut file, 24, &(16 * MIB + 0x20).to_le_bytes());
    put(&mut file, 32, &64u64.to_le_bytes());
    put(&mut file, 40, &(CODE_AT as u64 + 72).to_le_bytes());
    put(&mut file, 54, &56u16.to_le_bytes());
    put(&mut file, 56, &2u16.to_le_bytes());
    put(&mut file, 58, &64u16.to_le_bytes());
    put(&mut file, 60, &2u16.to_le_bytes());
    let segments = [(CODE_AT, 64u64, 16 * MIB, 64u64), (CODE_AT + 64, 8, 16 * MIB + 0x1_0000, 100)];
    for (index, (offset, file_bytes, address, memory_bytes)) in segments.into_iter().enumerate() {
        let at = 64 + index * 56;
        put(&mut file, at, &1u32.to_le_bytes());
        put(&mut file, at + 8, &(offset as u64).to_le_bytes());
        put(&mut file, at + 24, &address.to_le_bytes());
        put(&mut file, at + 32, &file_bytes.to_le_bytes());
        put(&mut file, at + 40, &memory_bytes.to_le_bytes());
    }
    for n in 0..64 {
        file[CODE_AT + n] = n as u8;
    }
    put(&mut file, CODE_AT + 64, &0xffff_ffff_8100_0020u64.to_le_bytes());
    file.extend(table);
    file
}

/// One 64-bit place: the second segment.
fn table() -> Vec<u8> {
    [0, 0x8101_0000, 0, 0].map(u32::to_le_bytes).concat()
}

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap()
}

fn place(
    file: &[u8],
    piece: usize,
    place: Place,
    memory: &GuestMemoryMmap,
) -> Result<(u64, Place), UnpackError> {
    let mut placer = Placer::new(memory, ROOM, place);
    file.chunks(piece).try_for_each(|piece| placer.take(piece))?;
    placer.finish()
}

#[test]
fn moved_and_relocated_in_pieces_of_any_size() {
    for piece in [1, 7, 63, 64, 100, 513, 1 << 20] {
        let memory = memory();
        assert_eq!(place(&kernel(&table()), piece, MOVED, &memory).unwrap(), (20 * MIB + 0x20, MOVED));
        let mut code = [0; 64];
        memory.read_slice(&mut code, GuestAddress(20 * MIB)).unwrap();
        assert!(code.iter().enumerate().all(|(n, &byte)| n == usize::from(byte)), "{piece}");
        let address: u64 = memory.read_obj(GuestAddress(20 * MIB + 0x1_0000)).unwrap();
        assert_eq!(address, 0xffff_ffff_8120_0020, "{piece}");
        assert_eq!(memory.read_obj::<u64>(GuestAddress(20 * MIB + 0x1_0008)).unwrap(), 0);
    }
}

#[test]
fn in_its_own_place_nothing_is_relocated() {
    let memory = memory();
    let (entry, _) = place(&kernel(&[1, 2, 3]), 100, ROOM.fixed(), &memory).unwrap();
    assert_eq!(entry, 16 * MIB + 0x20);
    assert_eq!(memory.read_obj::<u64>(GuestAddress(16 * MIB + 0x1_0000)).unwrap(), 0xffff_ffff_8100_0020);
}

#[test]
fn without_a_table_only_the_physical_address_changes() {
    let (entry, got) = place(&kernel(&[]), 100, MOVED, &memory()).unwrap();
    assert_eq!((entry, got), (20 * MIB + 0x20, Place { virtual_offset: 16 * MIB, ..MOVED }));
}

#[test]
fn damage_is_an_error() {
    let whole = kernel(&table());
    assert!(place(&kernel(&[1, 2, 3]), 100, MOVED, &memory()).is_err());
    let too_large = place(&kernel(&vec![0; 17 << 20]), 1 << 20, MOVED, &memory()).unwrap_err();
    assert!(too_large.to_string().contains("too large"), "{too_large}");
    for length in (0..whole.len() - table().len()).step_by(3) {
        assert!(place(&whole[..length], 100, MOVED, &memory()).is_err(), "{length}");
    }
    // No byte of the headers can make it write outside the kernel's place, or fail in another way than by an error.
    let memory = memory();
    for at in 0..CODE_AT {
        for flip in [1, 0x10, 0x80, 0xff] {
            let mut file = whole.clone();
            file[at] ^= flip;
            let _ = place(&file, 1 << 20, MOVED, &memory);
        }
    }
    assert_eq!(memory.read_obj::<u64>(GuestAddress(20 * MIB - 8)).unwrap(), 0);
    assert_eq!(memory.read_obj::<u64>(GuestAddress(21 * MIB)).unwrap(), 0);
}
