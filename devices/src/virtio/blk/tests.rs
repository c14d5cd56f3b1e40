use std::io;
use std::sync::Mutex;

use vm_memory::{Bytes, GuestAddress, VolatileSlice};

use super::spec::{request, status};
use super::*;
use crate::testing::Random;
use crate::virtio::testing::{Buffer, DATA, Driver, MEMORY, readable, writable};

const HEADER: u64 = 0x3_0000;
const STATUS: u64 = 0x3_0100;
const SECTORS: u64 = 64;

/// A disk in memory that remembers what was asked of it.
struct MemoryDisk {
    bytes: Mutex<Vec<u8>>,
    read_only: bool,
    asked: Mutex<Vec<&'static str>>,
    fails: Mutex<bool>,
}

impl MemoryDisk {
    fn new(read_only: bool) -> Arc<Self> {
        let bytes = (0..SECTORS * SECTOR_BYTES).map(|at| (at / SECTOR_BYTES) as u8).collect();
        Arc::new(Self {
            bytes: Mutex::new(bytes),
            read_only,
            asked: Mutex::default(),
            fails: Mutex::default(),
        })
    }

    fn note(&self, what: &'static str) -> io::Result<()> {
        self.asked.lock().unwrap().push(what);
        if *self.fails.lock().unwrap() { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }
}

impl BlockBackend for MemoryDisk {
    fn capacity(&self) -> u64 {
        SECTORS * SECTOR_BYTES
    }
    fn is_read_only(&self) -> bool {
        self.read_only
    }
    fn read(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.note("read")?;
        let mut at = offset as usize;
        for buffer in buffers {
            buffer.copy_from(&self.bytes.lock().unwrap()[at..at + buffer.len()]);
            at += buffer.len();
        }
        Ok(())
    }
    fn write(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.note("write")?;
        let mut at = offset as usize;
        for buffer in buffers {
            buffer.copy_to(&mut self.bytes.lock().unwrap()[at..at + buffer.len()]);
            at += buffer.len();
        }
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        self.note("flush")
    }
    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        self.note("discard")
    }
    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        self.note(if may_unmap { "unmap" } else { "zero" })?;
        self.bytes.lock().unwrap()[offset as usize..(offset + len) as usize].fill(0);
        Ok(())
    }
}

struct Bench {
    driver: Driver,
    disk: Arc<MemoryDisk>,
    served: u16,
}

fn bench_of(disk: Arc<MemoryDisk>, options: &BlkOptions) -> Bench {
    let backend = Arc::clone(&disk) as Arc<dyn BlockBackend>;
    let driver = Driver::new(|pace| Blk::new(backend, options, pace).unwrap());
    Bench { driver, disk, served: 0 }
}

fn bench() -> Bench {
    let mut bench = bench_of(MemoryDisk::new(false), &BlkOptions::default());
    bench.driver.start();
    bench
}

impl Bench {
    fn header(&self, kind: u32, sector: u64) -> Buffer {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.driver.memory.write_slice(&header, GuestAddress(HEADER)).unwrap();
        readable(HEADER, 16)
    }

    /// Sends a chain; status and bytes written.
    fn send(&mut self, chain: &[Buffer]) -> (u8, u32) {
        self.driver.memory.write_obj(0xeeu8, GuestAddress(STATUS)).unwrap();
        self.driver.add(0, 0, chain);
        self.driver.notify(0);
        self.served += 1;
        assert_eq!(self.driver.used_index(0), self.served);
        (self.byte(STATUS), self.driver.used(0, self.served - 1).1)
    }

    fn ask(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        let mut chain = vec![self.header(kind, sector)];
        chain.extend(data);
        chain.push(writable(STATUS, 1));
        self.send(&chain)
    }

    fn byte(&self, address: u64) -> u8 {
        self.driver.memory.read_obj(GuestAddress(address)).unwrap()
    }

    fn range(&self, sector: u64, sectors: u32, flags: u32) -> Buffer {
        let mut range = sector.to_le_bytes().to_vec();
        range.extend(sectors.to_le_bytes());
        range.extend(flags.to_le_bytes());
        self.driver.memory.write_slice(&range, GuestAddress(DATA)).unwrap();
        readable(DATA, 16)
    }

    fn asked(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.disk.asked.lock().unwrap())
    }
}

#[test]
fn sectors_are_read_and_written() {
    let mut bench = bench();
    let into = [writable(DATA, 512), writable(DATA + 0x2000, 1024)];
    assert_eq!(bench.ask(request::IN, 5, &into), (status::OK, 1537));
    assert_eq!([bench.byte(DATA), bench.byte(DATA + 0x2000), bench.byte(DATA + 0x23ff)], [5, 6, 7]);
    let told = bench.driver.written.0.lock().unwrap().clone();
    assert!(told.contains(&(DATA, 512)) && told.contains(&(DATA + 0x2000, 1024)), "{told:x?}");
    bench.driver.memory.write_slice(&[0xaa; 512], GuestAddress(DATA)).unwrap();
    assert_eq!(bench.ask(request::OUT, 63, &[readable(DATA, 512)]), (status::OK, 1));
    assert_eq!(bench.disk.bytes.lock().unwrap()[63 * 512..], [0xaa; 512]);
    assert_eq!(bench.asked(), ["read", "write"]);
    assert_eq!(bench.ask(request::FLUSH, 0, &[]), (status::OK, 1));
    assert_eq!(bench.asked(), ["flush"]);
}

#[test]
fn a_request_may_be_cut_anywhere() {
    let mut bench = bench();
    bench.header(request::IN, 9);
    let chain = [readable(HEADER, 3), readable(HEADER + 3, 13), writable(DATA, 511), writable(DATA + 511, 2)];
    assert_eq!(bench.send(&chain).1, 513);
    assert_eq!((bench.byte(DATA + 510), bench.byte(DATA + 511), bench.byte(DATA + 512)), (9, 9, status::OK));
    // Header and data in one.
    bench.header(request::OUT, 8);
    assert_eq!(bench.send(&[readable(HEADER, 16 + 512), writable(STATUS, 1)]), (status::OK, 1));
}

#[test]
fn the_name_and_the_geometry() {
    let options = BlkOptions {
        serial: "a-name-of-more-than-twenty-bytes".into(),
        num_queues: 3,
        logical_block_size: 512,
        physical_block_size: 4096,
        ..BlkOptions::default()
    };
    let mut bench = bench_of(MemoryDisk::new(false), &options);
    bench.driver.start();
    assert_eq!(bench.ask(request::GET_ID, 0, &[writable(DATA, 20)]), (status::OK, 21));
    let mut id = [0; 20];
    bench.driver.memory.read_slice(&mut id, GuestAddress(DATA)).unwrap();
    assert_eq!(&id, b"a-name-of-more-than-");
    let get = |at: usize| bench.driver.get(0x100 + at as u64);
    assert_eq!((get(config::CAPACITY), get(config::CAPACITY + 4)), (64, 0));
    assert_eq!((get(config::BLK_SIZE), get(config::TOPOLOGY) & 0xff), (512, 3));
    assert_eq!(get(config::NUM_QUEUES - 2) >> 16, 3);
    assert_eq!(get(0xfc), 0);
    // Each queue works.
    bench.driver.add(2, 0, &[readable(HEADER, 16), writable(DATA, 20), writable(STATUS, 1)]);
    bench.driver.notify(2);
    assert_eq!(bench.driver.used_index(2), 1);
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    let mut bench = bench();
    let range = bench.range(4, 2, 0);
    assert_eq!(bench.ask(request::DISCARD, 0, &[range]).0, status::OK);
    assert_eq!(bench.ask(request::WRITE_ZEROES, 0, &[range]).0, status::OK);
    assert_eq!(bench.disk.bytes.lock().unwrap()[4 * 512..6 * 512], [0; 1024]);
    let range = bench.range(4, 2, spec::UNMAP);
    assert_eq!(bench.ask(request::WRITE_ZEROES, 0, &[range]).0, status::OK);
    assert_eq!(bench.asked(), ["discard", "zero", "unmap"]);
    assert_eq!(bench.ask(request::DISCARD, 0, &[range]).0, status::UNSUPP);
    let range = bench.range(63, 2, 0);
    assert_eq!(bench.ask(request::DISCARD, 0, &[range]).0, status::IOERR);
    let range = bench.range(u64::MAX / 512, u32::MAX, 0);
    assert_eq!(bench.ask(request::WRITE_ZEROES, 0, &[range]).0, status::IOERR);
    assert!(bench.asked().is_empty());
}

#[test]
fn bad_requests_are_refused() {
    let mut bench = bench();
    let cases: [(u32, u64, &[Buffer], u8); 9] = [
        (request::IN, SECTORS, &[writable(DATA, 512)], status::IOERR),
        (request::IN, u64::MAX, &[writable(DATA, 512)], status::IOERR),
        (request::IN, SECTORS - 1, &[writable(DATA, 1024)], status::IOERR),
        (request::IN, 0, &[writable(DATA, 511)], status::IOERR),
        (request::IN, 0, &[writable(MEMORY - 256, 512)], status::IOERR),
        (request::OUT, 0, &[readable(u64::MAX - 100, 512)], status::IOERR),
        (request::DISCARD, 0, &[readable(DATA, 8)], status::IOERR),
        (2, 0, &[], status::UNSUPP),
        (0xffff_ffff, 0, &[writable(DATA, 512)], status::UNSUPP),
    ];
    for (kind, sector, data, expected) in cases {
        assert_eq!(bench.ask(kind, sector, data).0, expected, "{kind} {sector:#x} {data:x?}");
    }
    // No whole header.
    assert_eq!(bench.send(&[readable(HEADER, 15), writable(STATUS, 1)]).0, status::IOERR);
    assert!(bench.asked().is_empty());
    *bench.disk.fails.lock().unwrap() = true;
    assert_eq!(bench.ask(request::FLUSH, 0, &[]).0, status::IOERR);
    assert!(!bench.driver.needs_reset());
}

#[test]
fn a_read_only_disk_is_not_written_to() {
    let mut bench = bench_of(MemoryDisk::new(true), &BlkOptions::default());
    assert_ne!(bench.driver.offered() & feature::RO, 0);
    assert_eq!(bench.driver.offered() & (feature::FLUSH | feature::DISCARD), 0);
    bench.driver.start();
    assert_eq!(bench.ask(request::OUT, 0, &[readable(DATA, 512)]).0, status::IOERR);
    let range = bench.range(0, 1, 0);
    assert_eq!(bench.ask(request::WRITE_ZEROES, 0, &[range]).0, status::IOERR);
    assert_eq!(bench.ask(request::IN, 0, &[writable(DATA, 512)]).0, status::OK);
    assert_eq!(bench.asked(), ["read"]);
}

#[test]
fn a_driver_without_flush_gets_a_disk_without_cache() {
    let mut bench = bench_of(MemoryDisk::new(false), &BlkOptions::default());
    bench.driver.start_with(crate::virtio::feature::VERSION_1);
    bench.ask(request::OUT, 0, &[readable(DATA, 512)]);
    assert_eq!(bench.asked(), ["write", "flush"]);
    let options = BlkOptions { write_cache: false, ..BlkOptions::default() };
    assert_eq!(bench_of(MemoryDisk::new(false), &options).driver.offered() & feature::FLUSH, 0);
}

/// Any content of rings and tables ends in answers or in DEVICE_NEEDS_RESET; a reset always helps.
#[test]
fn malformed_rings_never_panic() {
    let mut random = Random::new(3);
    for round in 0..2000 {
        let mut bench = bench();
        for index in 0..16 {
            let buffer = Buffer {
                address: match random.below(4) {
                    0 => random.next(),
                    1 => MEMORY - random.below(64),
                    2 => HEADER,
                    _ => DATA + random.below(0x1000),
                },
                len: match random.below(4) {
                    0 => random.next() as u32,
                    1 => 1,
                    2 => 16,
                    _ => 512,
                },
                writable: random.below(2) == 0,
            };
            let next = (random.below(3) != 0).then(|| random.below(20) as u16);
            bench.driver.describe(0, index, buffer, next);
            if random.below(10) == 0 {
                // An indirect table, perhaps.
                let flags = GuestAddress(0x1000 + u64::from(index) * 16 + 12);
                bench.driver.memory.write_obj(random.below(8) as u16, flags).unwrap();
            }
        }
        bench.header(random.below(16) as u32, random.below(80));
        for _ in 0..random.below(6) {
            bench.driver.offer(0, random.below(18) as u16);
        }
        if random.below(8) == 0 {
            bench.driver.set_available_index(0, random.next() as u16);
        }
        bench.driver.notify(0);
        bench.driver.start();
        bench.served = 0;
        *bench.disk.fails.lock().unwrap() = false;
        assert_eq!(bench.ask(request::IN, 0, &[writable(DATA, 512)]).0, status::OK, "round {round}");
    }
}
