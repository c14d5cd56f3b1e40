//! Synthetic kernels: each is loaded and found in its place, or refused for its reason.

use super::*;
use accel::arch_state::reg;
use linux_loader::loader::bootparam::boot_params;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::GuestMemoryMmap;

const MIB: u64 = 1 << 20;
const RSDP: u64 = layout::ACPI;

/// A file of its own in a folder of its own, removed afterwards.
struct TempFile(PathBuf);

impl TempFile {
    fn new(name: &str, content: &[u8]) -> Self {
        let folder = std::env::temp_dir().join(format!("bivisor-boot-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(name);
        std::fs::write(&path, content).unwrap();
        Self(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
        let _ = std::fs::remove_dir(self.0.parent().unwrap());
    }
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A bzImage of one setup sector and `payload`.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 0x400];
    put(&mut image, 0, b"MZ");
    put(&mut image, 0x1f1, &[1]);
    put(&mut image, 0x1f4, &((payload.len() / 16) as u32).to_le_bytes());
    put(&mut image, 0x1fe, &0xaa55u16.to_le_bytes());
    put(&mut image, 0x202, b"HdrS");
    put(&mut image, 0x206, &0x20fu16.to_le_bytes());
    put(&mut image, 0x211, &[1]);
    put(&mut image, 0x214, &0x10_0000u32.to_le_bytes());
    put(&mut image, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut image, 0x230, &0x20_0000u32.to_le_bytes());
    put(&mut image, 0x234, &[1]);
    put(&mut image, 0x236, &1u16.to_le_bytes());
    put(&mut image, 0x238, &2047u32.to_le_bytes());
    put(&mut image, 0x258, &(16 * MIB).to_le_bytes());
    put(&mut image, 0x260, &(8 * MIB as u32).to_le_bytes());
    image.extend(payload);
    image
}

/// An ELF64 file: headers, a note segment, and one segment at 2 MiB of which the file has `code` only.
fn elf(note: &[u8], code: &[u8], memory_bytes: u64) -> Vec<u8> {
    let mut image = vec![0; 64 + 2 * 56];
    put(&mut image, 0, b"\x7fELF\x02\x01\x01");
    put(&mut image, 18, &62u16.to_le_bytes());
    put(&mut image, 24, &(2 * MIB + 0x10).to_le_bytes());
    put(&mut image, 32, &64u64.to_le_bytes());
    put(&mut image, 54, &56u16.to_le_bytes());
    put(&mut image, 56, &2u16.to_le_bytes());
    let headers = [(4u32, note, 0, note.len() as u64), (1, code, 2 * MIB, memory_bytes)];
    for (index, (kind, content, address, memory)) in headers.into_iter().enumerate() {
        let (at, offset) = (64 + index * 56, image.len() as u64);
        put(&mut image, at, &kind.to_le_bytes());
        put(&mut image, at + 8, &offset.to_le_bytes());
        put(&mut image, at + 24, &address.to_le_bytes());
        put(&mut image, at + 32, &(content.len() as u64).to_le_bytes());
        put(&mut image, at + 40, &memory.to_le_bytes());
        image.extend(content);
    }
    image
}

fn memory(bytes: u64) -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes as usize)]).unwrap()
}

fn refusal(name: &str, image: &[u8], append: &str, bytes: u64) -> String {
    let file = TempFile::new(name, image);
    let text = BootSource::open(&file.0, None, append, bytes).unwrap_err().to_string();
    assert!(!text.contains('\n'));
    text
}

#[test]
fn bzimage_with_initrd() {
    let payload: Vec<u8> = (0..4096u32).map(|n| n as u8).collect();
    let kernel = TempFile::new("bz", &bzimage(&payload));
    let initrd = TempFile::new("bz-initrd", &[0x5a; 5000]);
    let source = BootSource::open(&kernel.0, Some(&initrd.0), "console=ttyS0", 64 * MIB).unwrap();
    let memory = memory(64 * MIB);
    // Twice: a reset loads again from the same files.
    source.load(&memory, RSDP, Unpacking::ByGuest).unwrap();
    let state = source.load(&memory, RSDP, Unpacking::ByGuest).unwrap();
    assert_eq!((state.rip, state.gpr[reg::RSI]), (16 * MIB + 0x200, layout::ZERO_PAGE));
    let mut got = vec![0; payload.len()];
    memory.read_slice(&mut got, GuestAddress(16 * MIB)).unwrap();
    assert_eq!(got, payload);

    let params: boot_params = memory.read_obj(GuestAddress(layout::ZERO_PAGE)).unwrap();
    assert_eq!(({ params.hdr.ramdisk_size }, params.hdr.type_of_loader), (5000, 0xff));
    let initrd_at = u64::from(params.hdr.ramdisk_image);
    assert_eq!(initrd_at, 64 * MIB - 8192);
    assert_eq!(memory.read_obj::<u8>(GuestAddress(initrd_at + 4999)).unwrap(), 0x5a);
    assert_eq!({ params.acpi_rsdp_addr }, RSDP);
    let mut text = [0; 14];
    memory.read_slice(&mut text, GuestAddress(u64::from(params.hdr.cmd_line_ptr))).unwrap();
    assert_eq!(&text, b"console=ttyS0\0");
    let map = { params.e820_table };
    let ram_end = map[..usize::from(params.e820_entries)]
        .iter()
        .filter(|e| { e.r#type } == 1)
        .map(|e| e.addr + e.size)
        .max();
    assert_eq!(ram_end, Some(64 * MIB));
}

/// What cannot be unpacked here is the guest's to unpack: loaded as if nobody had tried.
#[test]
fn a_payload_of_no_known_kind_is_left_to_the_guest() {
    let mut image = bzimage(&[0x1f; 4096]);
    for payload in [&[0u8; 16][..], b"\x1f\x8b\x08 no gzip, by far"] {
        put(&mut image, 0x248, &0x20u32.to_le_bytes());
        put(&mut image, 0x24c, &0x800u32.to_le_bytes());
        put(&mut image, 0x420, payload);
        put(&mut image, 0x400 + 0x20 + 0x7fc, &0x1000u32.to_le_bytes());
        let kernel = TempFile::new("payload", &image);
        let memory = memory(64 * MIB);
        let source = BootSource::open(&kernel.0, None, "", 64 * MIB).unwrap();
        let state = source.load(&memory, RSDP, Unpacking::ByHost).unwrap();
        assert_eq!(state.rip, 16 * MIB + 0x200);
        let mut got = vec![0; 4096];
        memory.read_slice(&mut got, GuestAddress(16 * MIB)).unwrap();
        assert_eq!(got, image[0x400..]);
    }
    // Lengths that lie.
    for (at, value) in [(0x248, u32::MAX), (0x24c, u32::MAX), (0x24c, 0)] {
        let mut image = image.clone();
        put(&mut image, at, &value.to_le_bytes());
        let kernel = TempFile::new("lie", &image);
        let source = BootSource::open(&kernel.0, None, "", 64 * MIB).unwrap();
        let state = source.load(&memory(64 * MIB), RSDP, Unpacking::ByHost).unwrap();
        assert_eq!(state.rip, 16 * MIB + 0x200);
    }
}

#[test]
fn a_compressed_initrd_is_unpacked_where_there_is_room() {
    use std::io::Write;
    let archive = [b"070701".as_slice(), &[7; 5000]].concat();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&archive).unwrap();
    let (kernel, initrd) =
        (TempFile::new("gz-kernel", &bzimage(&[0; 4096])), TempFile::new("gz", &gzip.finish().unwrap()));
    let memory = memory(64 * MIB);
    let source = BootSource::open(&kernel.0, Some(&initrd.0), "", 64 * MIB).unwrap();
    source.load(&memory, RSDP, Unpacking::ByHost).unwrap();
    let params: boot_params = memory.read_obj(GuestAddress(layout::ZERO_PAGE)).unwrap();
    assert_eq!({ params.hdr.ramdisk_size }, 5006);
    let mut got = vec![0; archive.len()];
    memory.read_slice(&mut got, GuestAddress(u64::from(params.hdr.ramdisk_image))).unwrap();
    assert_eq!(got, archive);
}

#[test]
fn elf_by_its_64_bit_entry() {
    let kernel = TempFile::new("elf64", &elf(&[], &[0x90; 100], 4096));
    let memory = memory(8 * MIB);
    let state = BootSource::open(&kernel.0, None, "", 8 * MIB)
        .unwrap()
        .load(&memory, RSDP, Unpacking::ByGuest)
        .unwrap();
    assert_eq!((state.rip, state.gpr[reg::RSI], state.efer), (2 * MIB + 0x10, layout::ZERO_PAGE, 0x500));
    assert_eq!(memory.read_obj::<u8>(GuestAddress(2 * MIB + 99)).unwrap(), 0x90);
    let params: boot_params = memory.read_obj(GuestAddress(layout::ZERO_PAGE)).unwrap();
    assert_eq!({ params.hdr.header }, 0x5372_6448);
}

#[test]
fn elf_by_its_pvh_entry() {
    let mut note = [4u32, 4, 18].map(u32::to_le_bytes).concat();
    note.extend(b"Xen\0");
    note.extend(0x20_0040u32.to_le_bytes());
    let kernel = TempFile::new("pvh", &elf(&note, &[0x90; 100], 4096));
    let initrd = TempFile::new("pvh-initrd", &[7; 100]);
    let memory = memory(8 * MIB);
    let state = BootSource::open(&kernel.0, Some(&initrd.0), "x", 8 * MIB)
        .unwrap()
        .load(&memory, RSDP, Unpacking::ByGuest)
        .unwrap();
    assert_eq!((state.rip, state.efer, state.cr0), (0x20_0040, 0, 0x11));
    let info: hvm_start_info = memory.read_obj(GuestAddress(state.gpr[reg::RBX])).unwrap();
    assert_eq!((info.magic, info.nr_modules, info.rsdp_paddr), (0x336e_c578, 1, RSDP));
    let module: hvm_modlist_entry = memory.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
    assert_eq!((module.paddr, module.size), (8 * MIB - 4096, 100));
    let last = info.memmap_paddr + u64::from(info.memmap_entries - 1) * 24;
    let range: hvm_memmap_table_entry = memory.read_obj(GuestAddress(last)).unwrap();
    assert_eq!((range.addr, range.type_), (layout::SYSTEM_WINDOWS, 2));
}

#[test]
fn what_is_no_kernel_is_named_for_what_it_is() {
    let whole = bzimage(&[0; 4096]);
    assert!(refusal("text", b"hello, world\n", "", 64 * MIB).contains("text: a text file, not a kernel"));
    assert!(refusal("empty", b"", "", 64 * MIB).contains("an empty file"));
    assert!(refusal("gz", b"\x1f\x8b\x08", "", 64 * MIB).contains("gzip"));
    assert!(refusal("noise", &[1, 2, 3, 0, 5], "", 64 * MIB).contains("not a kernel"));
    for length in [0x100, 0x240, 0x400, whole.len() - 1] {
        assert!(refusal("cut", &whole[..length], "", 64 * MIB).contains("truncated"), "{length:#x}");
    }
    let image = elf(&[], &[0x90; 100], 4096);
    for length in [50, 100, image.len() - 1] {
        assert!(refusal("elf-cut", &image[..length], "", 64 * MIB).contains("truncated"), "{length}");
    }
    let mut old = whole.clone();
    put(&mut old, 0x206, &0x204u16.to_le_bytes());
    assert!(refusal("old", &old, "", 64 * MIB).contains("too old"));
    let mut narrow = whole;
    put(&mut narrow, 0x236, &0u16.to_le_bytes());
    assert!(refusal("narrow", &narrow, "", 64 * MIB).contains("32-bit"));
    let mut foreign = image;
    put(&mut foreign, 18, &183u16.to_le_bytes());
    assert!(refusal("foreign", &foreign, "", 64 * MIB).contains("another architecture"));
}

#[test]
fn what_does_not_fit_is_refused() {
    let image = bzimage(&[0; 4096]);
    assert!(
        refusal("big", &image, "", 16 * MIB)
            .ends_with("needs memory up to 24 MiB, the guest has 16 MiB; give more with -m")
    );
    let mut nowhere = image.clone();
    put(&mut nowhere, 0x258, &u64::MAX.to_le_bytes());
    assert!(refusal("nowhere", &nowhere, "", 64 * MIB).contains("needs memory up to"));
    assert!(
        refusal("long", &image, &"x".repeat(2048), 64 * MIB)
            .contains("2048 bytes, but this kernel takes 2047")
    );
    assert!(refusal("nul", &image, "a\0b", 64 * MIB).contains("NUL"));
    let kernel = TempFile::new("kernel", &image);
    let initrd = TempFile::new("fat", &[]);
    File::options().write(true).open(&initrd.0).unwrap().set_len(60 * MIB).unwrap();
    let text = BootSource::open(&kernel.0, Some(&initrd.0), "", 64 * MIB).unwrap_err().to_string();
    assert!(text.contains("fat: 62914560 bytes do not fit"), "{text}");
    let absent = BootSource::open(Path::new("/no/such/kernel"), None, "", 64 * MIB).unwrap_err().to_string();
    assert_eq!(absent, "-kernel /no/such/kernel: no such file");
    assert!(
        BootSource::open(Path::new("/"), None, "", 64 * MIB)
            .unwrap_err()
            .to_string()
            .contains("is a directory")
    );
}
