//! `-kernel` and `-initrd` of junk: headers of bzImage and ELF files, what is compressed in them, and their loading.
#![no_main]

use std::os::fd::AsRawFd;
use std::path::PathBuf;

use bivisor::boot::{BootSource, Randomness, Unpacking, memory_map};
use fuzz::input::Input;
use fuzz::machine::in_memory;
use libfuzzer_sys::fuzz_target;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::tempfile::TempFile;

/// Of a small guest, and of one that has memory on both sides of the gap below 4 GiB.
const MEMORY_BYTES: [u64; 2] = [32 << 20, 5 << 30];
/// Fields of a bzImage's header that numbers are made of, and their bytes.
const FIELDS: [(usize, usize); 12] = [
    (0x1f1, 1),
    (0x1f4, 4),
    (0x211, 1),
    (0x214, 4),
    (0x22c, 4),
    (0x230, 4),
    (0x234, 1),
    (0x248, 4),
    (0x24c, 4),
    (0x258, 8),
    (0x258, 8),
    (0x260, 4),
];
const RSDP: u64 = 0xe_0000;

fn file(bytes: &[u8]) -> (std::fs::File, PathBuf) {
    let file = TempFile::new_in(&in_memory()).expect("a temporary folder").into_file();
    std::os::unix::fs::FileExt::write_all_at(&file, bytes, 0).expect("there is room");
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    (file, path)
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A gzip file of one stored block.
fn gzip(content: &[u8]) -> Vec<u8> {
    let len = content.len() as u16;
    let mut crc = !0u32;
    for byte in content {
        crc ^= u32::from(*byte);
        (0..8).for_each(|_| crc = crc >> 1 ^ if crc & 1 == 0 { 0 } else { 0xedb8_8320 });
    }
    let head = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 1];
    [&head[..], &len.to_le_bytes(), &(!len).to_le_bytes(), content, &(!crc).to_le_bytes()].concat()
}

/// A bzImage around a payload: an input finds such a header by chance only after a long time.
fn bzimage(input: &mut Input, holds_kernel: bool) -> Vec<u8> {
    let (sectors, odd) = (input.u8() % 4 + 1, input.u8());
    let fields = input.bytes(8);
    let edges = if odd & 0x80 != 0 { odd & 3 } else { 0 };
    let edges: Vec<_> = (0..edges).map(|_| (input.pick(&FIELDS), input.edge())).collect();
    let magic = input.pick(&[
        &b"\x1f\x8b\x08\0"[..],
        b"\xfd7zXZ\0",
        b"\x28\xb5\x2f\xfd",
        b"\x02\x21\x4c\x18",
        b"\x04\x22\x4d\x18",
        b"",
    ]);
    let payload = if holds_kernel {
        let content = elf(input);
        [&gzip(&content)[..], &(content.len() as u32).to_le_bytes()].concat()
    } else {
        let promised = input.small();
        [magic, input.rest(), &promised.to_le_bytes()].concat()
    };
    let setup = (usize::from(sectors) + 1) * 512;
    let mut image = vec![0; setup];
    image.extend(&payload);
    image.resize(image.len().next_multiple_of(16), 0);
    let paragraphs = ((image.len() - setup) / 16) as u32;
    put(&mut image, 0x1f1, &[sectors]);
    put(&mut image, 0x1f4, &paragraphs.to_le_bytes());
    put(&mut image, 0x202, b"HdrS");
    put(&mut image, 0x206, &0x20fu16.to_le_bytes());
    // Loaded high, with a 64-bit entry, relocatable, to 16 MiB, in steps of 2 MiB.
    put(&mut image, 0x211, &[1]);
    put(&mut image, 0x214, &0x10_0000u32.to_le_bytes());
    put(&mut image, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut image, 0x230, &0x20_0000u32.to_le_bytes());
    put(&mut image, 0x234, &[1, 21, 1, 0]);
    put(&mut image, 0x238, &255u32.to_le_bytes());
    put(&mut image, 0x24c, &(payload.len() as u32).to_le_bytes());
    put(&mut image, 0x258, &0x100_0000u64.to_le_bytes());
    put(&mut image, 0x260, &0x40_0000u32.to_le_bytes());
    if odd & 0x80 != 0 {
        let at = 0x1f1 + usize::from(odd & 0x7f) % 0x6f;
        put(&mut image, at, fields);
    }
    for ((at, bytes), value) in edges {
        put(&mut image, at, &value.to_le_bytes()[..bytes]);
    }
    image
}

/// An ELF file with program headers.
fn elf(input: &mut Input) -> Vec<u8> {
    let count = input.u8() % 4 + 1;
    let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    image.extend(0x100_0000u64.to_le_bytes());
    image.extend(64u64.to_le_bytes());
    image.extend([0; 12]);
    image.extend([64, 0, 56, 0, count, 0, 64, 0, 0, 0, 0, 0]);
    let notes = (64 + 56 * usize::from(count)) as u64;
    for _ in 0..count {
        let kind = input.pick(&[1u32, 1, 4, 2]);
        image.extend(kind.to_le_bytes());
        image.extend([5, 0, 0, 0]);
        let offset = if kind == 4 { notes } else { input.small().into() };
        let address = 0xf_0000 + (u64::from(input.small()) << 16);
        let (file_bytes, more) = (u64::from(input.small()), u64::from(input.small()) << 6);
        for word in [
            offset,
            address.wrapping_add(0xff_ffff_ff80 << 24),
            address,
            file_bytes,
            file_bytes.wrapping_add(more),
            0,
        ] {
            image.extend(word.to_le_bytes());
        }
    }
    let more = input.u8();
    for _ in 0..more >> 6 {
        let word = usize::from(input.u8()) % (image.len() / 8);
        let value = input.edge();
        put(&mut image, word * 8, &value.to_le_bytes());
    }
    if more & 1 == 0 {
        // Where PVH begins.
        image.extend(b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0\0\0\0\x01");
    }
    image.extend(input.rest());
    image
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let what = input.u8();
    let memory_bytes = MEMORY_BYTES[usize::from(what >> 3 & 1)];
    let (initrd, append) =
        if what & 4 == 0 { (&[][..], "nokaslr") } else { (input.short(), "console=ttyS0") };
    let image = match what & 3 {
        0 => input.rest().to_vec(),
        1 => elf(&mut input),
        kind => bzimage(&mut input, kind == 3),
    };
    let (_kernel, kernel_path) = file(&image);
    let (_initrd, initrd_path) = file(initrd);
    let initrd_path = (what & 4 != 0).then_some(&*initrd_path);
    let source = match BootSource::open(&kernel_path, initrd_path, append, memory_bytes) {
        Ok(source) => source.with_randomness(Randomness::None),
        Err(error) => {
            assert!(!error.to_string().contains('\n'), "{error}");
            return;
        }
    };
    for unpacking in [Unpacking::ByGuest, Unpacking::ByHost] {
        let ranges = memory_map::ram(memory_bytes).into_iter();
        let ranges: Vec<_> = ranges.map(|(at, bytes)| (GuestAddress(at), bytes as usize)).collect();
        let memory = GuestMemoryMmap::from_ranges(&ranges).expect("memory that is not touched");
        let _ = source.load(&memory, RSDP, unpacking);
    }
});
