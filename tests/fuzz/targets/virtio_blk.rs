//! virtio-blk: requests, queues, registers.
#![no_main]

use std::io;
use std::sync::{Arc, Mutex};

use devices::backend::block::BlockBackend;
use devices::virtio::VirtioDevice;
use devices::virtio::blk::{Blk, BlkOptions};
use devices::virtio::worker::Pace;
use fuzz::driver::Request;
use fuzz::input::Input;
use fuzz::virtio::{self, NewSubject, Subject, rooms, shape};
use libfuzzer_sys::fuzz_target;
use vm_memory::VolatileSlice;

const DISK_BYTES: usize = 64 << 10;

/// A disk that is a piece of memory. What is asked of it lies within it, or it panics.
struct Disk {
    bytes: Mutex<Vec<u8>>,
    is_read_only: bool,
    /// Its host's disk is full, or broken.
    fails: bool,
}

impl Disk {
    fn part(
        &self,
        offset: u64,
        buffers: &[VolatileSlice<'_>],
        mut each: impl FnMut(&VolatileSlice<'_>, &mut [u8]),
    ) -> io::Result<()> {
        let mut disk = self.bytes.lock().expect("one thread");
        let mut at = offset as usize;
        for buffer in buffers {
            each(buffer, &mut disk[at..at + buffer.len()]);
            at += buffer.len();
        }
        self.result()
    }

    fn result(&self) -> io::Result<()> {
        if self.fails { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl BlockBackend for Disk {
    fn capacity(&self) -> u64 {
        DISK_BYTES as u64
    }

    fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    fn read(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.part(offset, buffers, |buffer, disk| buffer.copy_from(disk))
    }

    fn write(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        assert!(!self.is_read_only);
        self.part(offset, buffers, |buffer, disk| _ = buffer.copy_to(disk))
    }

    fn flush(&self) -> io::Result<()> {
        self.result()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write_zeroes(offset, len, true)
    }

    fn write_zeroes(&self, offset: u64, len: u64, _may_unmap: bool) -> io::Result<()> {
        assert!(!self.is_read_only);
        self.bytes.lock().expect("one thread")[offset as usize..][..len as usize].fill(0);
        self.result()
    }
}

struct Blks(Arc<Blk>);

impl NewSubject for Blks {
    fn new(kind: u8, pace: &Pace) -> Self {
        let options = BlkOptions {
            num_queues: u16::from(kind & 3) + 1,
            write_cache: kind & 4 == 0,
            discard: kind & 8 == 0,
            logical_block_size: if kind & 0x40 == 0 { 512 } else { 4096 },
            physical_block_size: 4096,
            serial: "fuzz".into(),
        };
        let bytes = Mutex::new(vec![7; DISK_BYTES]);
        let disk = Disk { bytes, is_read_only: kind & 0x30 == 0x30, fails: kind & 0x30 == 0x10 };
        Self(Blk::new(Arc::new(disk), &options, pace).expect("an eventfd"))
    }
}

impl Subject for Blks {
    fn device(&self) -> Arc<dyn VirtioDevice> {
        self.0.clone()
    }

    fn request(&mut self, input: &mut Input) -> Request {
        let queue = u16::from(input.u8()) % self.0.queue_sizes().len() as u16;
        let kind = input.pick(&[0u32, 1, 4, 8, 11, 13, 2, u32::MAX]);
        let sector = match input.u8() {
            0xff => input.u64(),
            sector => sector.into(),
        };
        let mut readable = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        let mut writable = rooms(input);
        match kind {
            1 => readable.extend([1].repeat(512 * usize::from(input.u8() % 5) + usize::from(input.u8() & 1))),
            // Ranges: first sector, sectors, flags.
            11 | 13 => {
                for _ in 0..input.u8() % 4 {
                    let (first, count, flags) = (u64::from(input.small()), input.small(), input.u8());
                    readable.extend(first.to_le_bytes());
                    readable.extend(count.to_le_bytes());
                    readable.extend(u32::from(flags & 3).to_le_bytes());
                }
            }
            _ => {
                let more = input.u8() & 7;
                readable.extend(input.bytes(more.into()));
            }
        }
        if input.u8() & 7 != 0 {
            // Where the status goes.
            writable.push(1);
        }
        let (cuts, is_indirect) = shape(input);
        Request { queue, readable, cuts, writable, is_indirect }
    }

    fn proof(&self) -> Request {
        Request { readable: vec![0; 16], writable: vec![512, 1], ..Request::default() }
    }
}

fuzz_target!(|bytes: &[u8]| virtio::run::<Blks>(bytes));
