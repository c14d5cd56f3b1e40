//! RAM of all kinds.

use super::*;
use crate::options::memory_backend::MemorySource;

const MIB: u64 = 1 << 20;
const AT: GuestAddress = GuestAddress(0x12_3456);

fn backend(source: MemorySource, share: bool) -> MemoryBackend {
    MemoryBackend { id: "m".into(), source, size: None, share, prealloc: false }
}

fn folder(name: &str) -> std::path::PathBuf {
    let folder = std::env::temp_dir().join(format!("bivisor-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[track_caller]
fn is_cleared(ram: &Ram) {
    assert_eq!(ram.map().read_obj::<u64>(AT).unwrap(), 0);
    ram.map().write_obj(0x1122_3344_5566_7788u64, AT).unwrap();
    ram.clear().unwrap();
    assert_eq!(ram.map().read_obj::<u64>(AT).unwrap(), 0);
    ram.map().write_obj(1u64, AT).unwrap();
    assert_eq!(ram.map().read_obj::<u64>(AT).unwrap(), 1);
}

#[test]
fn cleared_ram_is_zero_and_stays_mapped() {
    is_cleared(&Ram::new(4 * MIB, None).unwrap());
    let folder = folder("ram-clear");
    let old = folder.join("old");
    for share in [false, true] {
        for prealloc in [false, true] {
            std::fs::write(&old, vec![0xaa; 8 << 20]).unwrap();
            let sources = [
                MemorySource::Ram,
                MemorySource::Memfd { huge_page: None },
                MemorySource::File(folder.clone()),
                MemorySource::File(folder.join(format!("new-{share}-{prealloc}"))),
                MemorySource::File(old.clone()),
            ];
            for source in sources {
                let backend = MemoryBackend { prealloc, ..backend(source, share) };
                is_cleared(&Ram::new(4 * MIB, Some(&backend)).unwrap());
            }
            // A private mapping leaves the file alone; no mapping touches what is behind its end.
            let content = std::fs::read(&old).unwrap();
            assert_eq!(content[0x1000] == 0xaa, !share);
            assert_eq!((content.len(), content[4 << 20]), (8 << 20, 0xaa));
        }
    }
    let names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 5, "a file in a folder has no name: {names:?}");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn shared_memory_is_in_the_file() {
    let folder = folder("ram-share");
    let file = folder.join("ram");
    let ram = Ram::new(5 << 30, Some(&backend(MemorySource::File(file.clone()), true))).unwrap();
    ram.map().write_obj(0x55u8, GuestAddress(7)).unwrap();
    ram.map().write_obj(0x66u8, GuestAddress(0x1_0000_0000)).unwrap();
    use std::os::unix::fs::FileExt;
    let mut byte = [0];
    let opened = File::open(&file).unwrap();
    for (offset, value) in [(7, 0x55), (0xc000_0000, 0x66)] {
        opened.read_exact_at(&mut byte, offset).unwrap();
        assert_eq!(byte[0], value);
    }
    assert_eq!(opened.metadata().unwrap().len(), 5 << 30);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn memory_that_cannot_be_had() {
    let folder = folder("ram-refused");
    let short = folder.join("short");
    std::fs::write(&short, [1; 1 << 20]).unwrap();
    let error = |source| {
        let error = Ram::new(4 * MIB, Some(&backend(source, true))).unwrap_err();
        crate::accelerator::chain(&error)
    };
    let text = error(MemorySource::File(short.clone()));
    assert_eq!(text, "memory backend 'm': 4 MiB: the file has 1 MiB, and guest memory has 4");
    assert_eq!(std::fs::read(&short).unwrap(), [1; 1 << 20]);
    assert!(error(MemorySource::File("/no/such/file".into())).contains("No such file"));
    let pages = MemorySource::Memfd { huge_page: Some(1 << 30) };
    assert!(error(pages).contains("no multiple of its pages of 1048576 KiB"));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn ram_goes_on_above_4_gib() {
    let ram = Ram::new(5 << 30, None).unwrap();
    assert!(ram.map().check_address(GuestAddress(0xbfff_ffff)).is_some());
    assert!(ram.map().check_address(GuestAddress(0xc000_0000)).is_none());
    ram.map().write_obj(7u8, GuestAddress(0x1_0000_0000)).unwrap();
    assert_eq!(ram.map().read_obj::<u8>(GuestAddress(0)).unwrap(), 0);
    assert!(ram.map().check_address(GuestAddress(0x1_8000_0000)).is_none());
}
