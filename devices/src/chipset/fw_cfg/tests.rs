//! The device as guests use it, well and badly.

use std::io::Write;
use std::sync::Mutex as StdMutex;

use vm_memory::GuestMemoryMmap;

use super::*;
use crate::dma::DmaObserver;
use crate::testing::Random;

const RAM: u64 = 1 << 20;
/// Where the tests' access structures are.
const AT: u64 = 0x1000;
const BUFFER: u64 = 0x2000;

#[derive(Default)]
struct Told(StdMutex<Vec<(u64, u64)>>);

impl DmaObserver for Told {
    fn written(&self, gpa: u64, len: u64) {
        crate::lock_rank::assert_none_held();
        self.0.lock().unwrap().push((gpa, len));
    }
}

struct Bench {
    device: Arc<FwCfg>,
    ports: Arc<dyn BusDevice>,
    dma: Arc<dyn BusDevice>,
    memory: DmaMemory,
    told: Arc<Told>,
}

fn bench() -> Bench {
    let mut file = vmm_sys_util::tempfile::TempFile::new().unwrap().into_file();
    file.write_all(b"..from a file").unwrap();
    let mut items = Items::new();
    items.set(key::NB_CPUS, &3u16.to_le_bytes());
    items.set_content(key::KERNEL_DATA, Content::File { file, offset: 2, len: 11 });
    items.add_file("opt/b", Content::Bytes(b"second".to_vec())).unwrap();
    items.add_file("opt/a", Content::Bytes(b"first".to_vec())).unwrap();
    items.add_file(spec::vmcoreinfo::FILE, FwCfg::vmcoreinfo()).unwrap();
    let told = Arc::new(Told::default());
    let map = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap();
    let memory = DmaMemory::new(map, Some(told.clone()));
    let device = FwCfg::new(items, memory.clone());
    Bench { ports: device.ports(), dma: device.dma_ports(), device, memory, told }
}

impl Bench {
    fn select(&self, key: u16) {
        self.ports.write(0, &key.to_le_bytes());
    }

    fn read(&self, count: usize) -> Vec<u8> {
        let byte = || {
            let mut byte = [0xee];
            self.ports.read(spec::DATA, &mut byte);
            byte[0]
        };
        (0..count).map(|_| byte()).collect()
    }

    fn item(&self, key: u16, count: usize) -> Vec<u8> {
        self.select(key);
        self.read(count)
    }

    /// Writes the structure, has it done, and says what became of the control word.
    fn access(&self, control: u32, len: u32, address: u64) -> u32 {
        let mut bytes = [control.to_be_bytes(), len.to_be_bytes()].concat();
        bytes.extend(address.to_be_bytes());
        self.memory.write_slice(&bytes, GuestAddress(AT)).unwrap();
        self.dma.write(0, &0u32.to_be_bytes());
        self.dma.write(4, &(AT as u32).to_be_bytes());
        let mut control = [0; 4];
        self.memory.read_slice(&mut control, GuestAddress(AT)).unwrap();
        u32::from_be_bytes(control)
    }

    fn bytes(&self, at: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// The directory's entries: name, key, length.
    fn files(&self) -> Vec<(String, u16, u32)> {
        let count = u32::from_be_bytes(self.item(key::FILE_DIR, 4).try_into().unwrap());
        (0..count)
            .map(|_| {
                let entry = self.read(64);
                let name = String::from_utf8(entry[8..].to_vec()).unwrap();
                let number = |at: usize| u16::from_be_bytes([entry[at], entry[at + 1]]);
                (name.trim_end_matches('\0').to_owned(), number(4), u32::from(number(2)))
            })
            .collect()
    }
}

const fn select(key: u16) -> u32 {
    dma::SELECT | (key as u32) << dma::KEY_SHIFT
}

#[test]
fn what_firmware_looks_for() {
    let bench = bench();
    assert_eq!(bench.read(4), b"QEMU", "selected after power-on");
    assert_eq!(bench.item(key::SIGNATURE, 6), b"QEMU\0\0");
    assert_eq!(bench.item(key::ID, 4), [3, 0, 0, 0]);
    assert_eq!(bench.item(key::NB_CPUS, 2), [3, 0]);
    let mut signature = [0; 8];
    bench.dma.read(0, &mut signature[..4]);
    bench.dma.read(4, &mut signature[4..]);
    assert_eq!(&signature, b"QEMU CFG");
    // The data register's port is the selector's second byte.
    let mut both = [0xee; 2];
    bench.select(key::SIGNATURE);
    bench.ports.read(0, &mut both);
    assert_eq!(both, [0, b'Q']);
}

#[test]
fn files_are_in_the_directory() {
    let bench = bench();
    let files = bench.files();
    let expected = [("etc/vmcoreinfo", 0x20, 16), ("opt/a", 0x21, 5), ("opt/b", 0x22, 6)];
    let expected = expected.map(|(name, key, len)| (name.to_owned(), key, len));
    assert_eq!(files, expected);
    assert_eq!(bench.item(0x21, 5), b"first");
    assert_eq!(bench.item(key::KERNEL_DATA, 13), b"from a file\0\0");
    let mut items = Items::new();
    let add = |items: &mut Items, name: &str| items.add_file(name, Content::Bytes(Vec::new()));
    assert_eq!(add(&mut items, &"x".repeat(56)), Err(FileError::Name));
    assert_eq!(add(&mut items, ""), Err(FileError::Name));
    assert_eq!(add(&mut items, &"x".repeat(55)), Ok(()));
    assert_eq!(add(&mut items, &"x".repeat(55)), Err(FileError::Twice));
    for number in 1..MOST {
        add(&mut items, &number.to_string()).unwrap();
    }
    assert_eq!(add(&mut items, "one more"), Err(FileError::Full));
}

const MOST: usize = 0x4000 - 0x20;

#[test]
fn memory_gets_items_and_its_observer_hears_of_it() {
    let bench = bench();
    assert_eq!(bench.access(select(0x21) | dma::READ, 8, BUFFER), 0);
    assert_eq!(bench.bytes(BUFFER, 8), b"first\0\0\0");
    assert_eq!(*bench.told.0.lock().unwrap(), [(BUFFER, 8), (AT, 4)]);
    // In parts: select; skip; read what is left.
    assert_eq!(bench.access(select(0x22), 0, 0), 0);
    assert_eq!(bench.access(dma::SKIP, 2, 0), 0);
    assert_eq!(bench.access(dma::READ, 2, BUFFER), 0);
    assert_eq!(bench.bytes(BUFFER, 2), b"co");
    assert_eq!(bench.read(2), b"nd");
    // All of the address at once.
    bench.memory.write_slice(&select(key::ID).to_be_bytes(), GuestAddress(AT)).unwrap();
    bench.dma.write(0, &AT.to_be_bytes());
    assert_eq!(bench.read(1), [3]);
}

#[test]
fn a_guest_writes_what_is_writable() {
    let bench = bench();
    bench.memory.write_slice(&[7; 16], GuestAddress(BUFFER)).unwrap();
    assert_eq!(bench.item(0x20, 16)[..2], [1, 0]);
    assert_eq!(bench.access(select(0x20) | dma::WRITE, 16, BUFFER), 0);
    assert_eq!(bench.item(0x20, 17), [&[7; 16][..], &[0]].concat());
    bench.device.reset();
    assert_eq!(bench.item(0x20, 16), [&[1][..], &[0; 15]].concat());
    // Nothing else is, nor a byte behind the end, and what fails changes nothing.
    for (control, len) in [(select(0x21) | dma::WRITE, 5), (select(0x20) | dma::WRITE, 17)] {
        assert_eq!(bench.access(control, len, BUFFER), dma::ERROR);
    }
    assert_eq!(bench.access(select(0x20) | dma::WRITE, 16, RAM - 8), dma::ERROR);
    assert_eq!(bench.access(select(0x3000) | dma::WRITE, 1, BUFFER), dma::ERROR);
    assert_eq!(bench.item(0x20, 16), [&[1][..], &[0; 15]].concat());
}

#[test]
fn accesses_to_nowhere_fail() {
    let bench = bench();
    for (len, address) in [(8, RAM - 4), (1, RAM), (u32::MAX, 0), (2, u64::MAX), (1, u64::MAX)] {
        assert_eq!(bench.access(select(0x21) | dma::READ, len, address), dma::ERROR, "{len} at {address:#x}");
    }
    // Structures that are not in memory, or not whole.
    for at in [u64::MAX, RAM, RAM - 8] {
        bench.dma.write(0, &at.to_be_bytes());
    }
    // No such item: it reads as zeros.
    for key in [0x3000, 0x3fff, 0xffff, 0x8001] {
        assert_eq!(bench.item(key, 2), [0, 0]);
        assert_eq!(bench.access(select(key) | dma::READ, 4, BUFFER), 0);
    }
    // Accesses of other sizes do nothing.
    bench.select(0x21);
    bench.ports.write(0, &[1]);
    bench.ports.write(1, &[1]);
    bench.dma.write(2, &[0; 4]);
    bench.dma.write(4, &[0; 2]);
    assert_eq!(bench.read(5), b"first");
}

#[test]
fn a_file_that_was_cut_short_reads_as_an_error() {
    let file = vmm_sys_util::tempfile::TempFile::new().unwrap().into_file();
    let mut items = Items::new();
    items.set_content(key::KERNEL_DATA, Content::File { file, offset: 0, len: 100 });
    let map = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap();
    let memory = DmaMemory::new(map, None);
    let device = FwCfg::new(items, memory.clone());
    let bench =
        Bench { ports: device.ports(), dma: device.dma_ports(), device, memory, told: Arc::default() };
    assert_eq!(bench.access(select(key::KERNEL_DATA) | dma::READ, 100, BUFFER), dma::ERROR);
    assert_eq!(bench.item(key::KERNEL_DATA, 2), [0, 0]);
}

/// Whatever a guest does: no panic, no end of time, and the device answers afterwards.
#[test]
fn random_guests() {
    let mut random = Random::new(0x510);
    let bench = bench();
    for _ in 0..20_000 {
        let mut bytes = [0; 16];
        bytes.iter_mut().for_each(|byte| *byte = random.next() as u8);
        match random.below(5) {
            0 => bench.select(random.below_bits(16) as u16),
            1 => {
                let len = 1 << random.below(4);
                bench.ports.read(random.below(2), &mut bytes[..len]);
            }
            2 => {
                let len = 1 << random.below(4);
                bench.dma.write(random.below(8), &bytes[..len]);
            }
            3 => {
                let key = random.below(0x30) as u16;
                let control = (random.next() as u32 & 0x1e) | u32::from(key) << 16;
                bench.access(control, random.below_bits(18) as u32, random.below_bits(21));
            }
            _ => {
                bench.memory.write_slice(&bytes, GuestAddress(AT)).unwrap();
                bench.dma.write(0, &AT.to_be_bytes());
            }
        }
    }
    assert_eq!(bench.item(key::SIGNATURE, 4), b"QEMU");
    assert_eq!(bench.files().len(), 3);
}
