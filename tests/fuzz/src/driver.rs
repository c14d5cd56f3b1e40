//! A virtio driver that is as good as its input: it sets the device up well, lays chains of descriptors that make sense, and
//! others.

use devices::virtio::mmio::spec::status;

use crate::input::Input;
use crate::machine::{Machine, RAM_BYTES};
use crate::transport::Transport;

/// Descriptors of each queue.
pub const QUEUE_SIZE: u16 = 16;
/// Where the queues are, a page each; the parts of one.
const QUEUES: u64 = 0x1000;
const AVAIL: u64 = 0x400;
const USED: u64 = 0x800;
/// Where the buffers of good chains are.
const DATA: u64 = 0x1_0000;

/// Flags of a descriptor.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// What a driver asks of its device: a chain.
#[derive(Debug, Default)]
pub struct Request {
    pub queue: u16,
    /// What the device reads, cut into buffers at these places.
    pub readable: Vec<u8>,
    pub cuts: Vec<u8>,
    /// Bytes of the buffers that it writes.
    pub writable: Vec<u32>,
    /// The descriptors are in a table of their own.
    pub is_indirect: bool,
}

/// The driver's memory of what it has done.
pub struct Driver {
    pub machine: Machine,
    pub transport: Transport,
    /// By queue: entries of the available ring, and the next descriptor.
    avail: Vec<u16>,
    next: Vec<u16>,
    /// Where the next buffer goes.
    data: u64,
}

impl Driver {
    pub fn new(machine: Machine, transport: Transport) -> Self {
        let queues = transport.queues().into();
        assert!(QUEUES + 0x1000 * queues as u64 <= DATA, "rings and data do not overlap");
        Self { machine, transport, avail: vec![0; queues], next: vec![0; queues], data: DATA }
    }

    fn base(queue: u16) -> u64 {
        QUEUES + 0x1000 * u64::from(queue)
    }

    /// What a good driver does, with the features that `mask` leaves of those that are offered.
    pub fn set_up(&mut self, mask: u32) {
        let (machine, transport) = (&self.machine, &self.transport);
        transport.place(machine);
        transport.set_status(machine, 0);
        transport.set_status(machine, status::ACKNOWLEDGE | status::DRIVER);
        transport.negotiate(machine, mask);
        transport.set_status(machine, status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        for queue in 0..transport.queues() {
            let base = Self::base(queue);
            machine.put(base, &[0; 0x1000]);
            let places = [base, base + AVAIL, base + USED].map(|at| at as u32);
            transport.set_queue(machine, queue, QUEUE_SIZE, places);
        }
        self.avail.fill(0);
        self.next.fill(0);
        let ready = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
        transport.set_status(machine, ready);
    }

    /// What a driver does that does not know where its memory is.
    fn misplace(&self, input: &mut Input) {
        let (machine, transport) = (&self.machine, &self.transport);
        let (what, queue) = (input.u8(), u16::from(input.u8()) % transport.queues());
        let size = 1 << (what & 7);
        // Multiples of the most that is asked for, before or after an edge.
        let mut place = || {
            let at = input.pick(&[0, 0x8000, RAM_BYTES as u32, 0x1000]);
            at.wrapping_add_signed(16 * i32::from(input.u8() as i8))
        };
        let places = std::array::from_fn(|_| place());
        transport.set_status(machine, 0);
        transport.set_status(machine, status::ACKNOWLEDGE | status::DRIVER);
        transport.negotiate(machine, if what & 8 == 0 { !0 } else { 0 });
        transport.set_status(machine, status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        for other in 0..transport.queues() {
            let base = Self::base(other);
            let good = [base, base + AVAIL, base + USED].map(|at| at as u32);
            let places = if other == queue { places } else { good };
            let size = if other == queue { size } else { QUEUE_SIZE };
            transport.set_queue(machine, other, size, places);
        }
        let ready = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
        transport.set_status(machine, ready);
    }

    /// Room for `bytes` in memory.
    fn room(&mut self, bytes: u64) -> u64 {
        let bytes = bytes.min(RAM_BYTES - DATA);
        if self.data + bytes > RAM_BYTES {
            self.data = DATA;
        }
        let at = self.data;
        self.data += bytes.next_multiple_of(16);
        at
    }

    /// Lays the chain of `request` and makes it available, without a notification.
    pub fn ask(&mut self, request: &Request) {
        let mut buffers = Vec::new();
        let mut rest = &request.readable[..];
        for &cut in request.cuts.iter().take(4) {
            let (piece, more) = rest.split_at(usize::from(cut).min(rest.len()));
            rest = more;
            buffers.push((piece, 0, 0));
        }
        if !rest.is_empty() {
            buffers.push((rest, 0, 0));
        }
        buffers.extend(request.writable.iter().take(8).map(|&bytes| (&[][..], bytes, WRITE)));
        let count = buffers.len();
        let mut table = Vec::new();
        let queue = usize::from(request.queue) % self.next.len();
        let first = if request.is_indirect { 0 } else { self.next[queue] };
        for (index, (bytes, room, flags)) in buffers.into_iter().enumerate() {
            let len = if flags == WRITE { room } else { bytes.len() as u32 };
            let at = self.room(len.into());
            self.machine.put(at, bytes);
            let next = (first + index as u16 + 1) % QUEUE_SIZE;
            let more = if index + 1 < count { NEXT } else { 0 };
            table.push(descriptor(at, len, flags | more, next));
        }
        let queue = queue as u16;
        let head = self.next[usize::from(queue)];
        if request.is_indirect {
            let at = self.room(16 * table.len() as u64);
            self.machine.put(at, &table.concat());
            let bytes = 16 * table.len() as u32;
            self.describe(queue, head, descriptor(at, bytes, INDIRECT, 0));
            self.next[usize::from(queue)] = (head + 1) % QUEUE_SIZE;
        } else {
            for (index, descriptor) in (head..).zip(table) {
                self.describe(queue, index % QUEUE_SIZE, descriptor);
            }
            self.next[usize::from(queue)] = (head + count as u16) % QUEUE_SIZE;
        }
        self.offer(queue, head);
    }

    fn describe(&self, queue: u16, index: u16, descriptor: [u8; 16]) {
        self.machine.put(Self::base(queue) + 16 * u64::from(index), &descriptor);
    }

    /// Makes the chain that begins with descriptor `head` available.
    fn offer(&mut self, queue: u16, head: u16) {
        let index = &mut self.avail[usize::from(queue)];
        let slot = Self::base(queue) + AVAIL + 4 + 2 * u64::from(*index % QUEUE_SIZE);
        *index = index.wrapping_add(1);
        let index = *index;
        self.machine.put(slot, &head.to_le_bytes());
        self.machine.put(Self::base(queue) + AVAIL + 2, &index.to_le_bytes());
    }

    /// Chains that the device has given back.
    pub fn used(&self, queue: u16) -> u16 {
        self.machine.half(Self::base(queue) + USED + 2)
    }

    /// Lets the device work.
    pub fn run(&self) {
        self.machine.clock.advance(1_000_000);
    }

    /// Notifies, and lets the device work.
    pub fn kick(&self, queue: u16) {
        self.transport.notify(&self.machine, queue);
        self.run();
    }

    /// A step that has nothing to do with what the device is. Bad ones among them.
    pub fn step(&mut self, input: &mut Input) {
        let what = input.u8();
        let queue = u16::from(what >> 4) % self.transport.queues();
        match what & 15 {
            0 | 1 => self.transport.poke(&self.machine, input),
            2 | 3 => self.transport.poke_bus(&self.machine, input),
            4 => {
                let at = input.u32() % RAM_BYTES as u32;
                self.machine.put(at.into(), input.short());
            }
            // A descriptor that any byte may be wrong of.
            5 | 6 => {
                let index = u16::from(input.u8()) % QUEUE_SIZE;
                let (at, len) = (u64::from(input.u32() & 0x7_ffff), input.small());
                let (flags, next) = (input.u8() & 7, input.u8());
                self.describe(queue, index, descriptor(at, len, flags.into(), next.into()));
            }
            7 => {
                let (at, len, flags, next) = (input.u64(), input.u32(), input.u16(), input.u16());
                self.describe(queue, next % QUEUE_SIZE, descriptor(at, len, flags, next));
            }
            8 | 9 => {
                let head = input.u8().into();
                self.offer(queue, head);
                self.transport.notify(&self.machine, queue);
            }
            10 => {
                let index = input.u16();
                self.machine.put(Self::base(queue) + AVAIL + 2, &index.to_le_bytes());
                self.avail[usize::from(queue)] = index;
                self.transport.notify(&self.machine, queue);
            }
            // Whether it wants to be told.
            11 => {
                let flags = input.u16();
                self.machine.put(Self::base(queue) + AVAIL, &(flags & 1).to_le_bytes());
                let event = Self::base(queue) + AVAIL + 4 + 2 * u64::from(QUEUE_SIZE);
                self.machine.put(event, &(flags >> 1).to_le_bytes());
            }
            12 if what >> 4 == 15 => self.misplace(input),
            12 => self.set_up(input.u32()),
            13 => self.transport.device().reset(),
            14 => {
                self.transport.device().pause();
                self.run();
                self.transport.device().resume();
            }
            _ => self.kick(queue),
        }
    }
}

fn descriptor(at: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&at.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}
