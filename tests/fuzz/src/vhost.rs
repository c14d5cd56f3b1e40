//! The host's kernel as vhost devices see it (Linux, `include/uapi/linux/vhost.h`), and a tap interface: a good one, but where the
//! input says otherwise. It answers the calls of this thread for its descriptors, and refuses what Linux refuses. It has no
//! thread: it works on rings when it is told to, and then on those that it was kicked for.
//!
//! What the devices owe the kernel, and the kernel does not check, is asserted: rings that are in guest memory, or in memory
//! of their own; features that it has; nothing of that changed while it runs.

mod memory;
mod requests;
mod worker;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::rc::{Rc, Weak};
use std::sync::Mutex;

use devices::dma::DmaObserver;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use self::memory::{Region, Table};
use self::worker::Worker;
use crate::input::Input;
use crate::rings::{Parts, Ring};

/// Rings of each device.
const RINGS: usize = 2;
/// The ring of what the guest sends.
const TRANSMIT: usize = 1;

/// Features of every device: the kernel tells of a full ring, makes network headers (or: any layout will do), has indirect
/// descriptors, event indices and virtio 1.0.
const OF_ALL: u64 = 1 << 24 | 1 << 27 | INDIRECT_DESC | EVENT_IDX | VERSION_1;
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;
/// Features of streams, and of network cards.
const SEQPACKET: u64 = 1 << 1;
const MRG_RXBUF: u64 = 1 << 15;

/// Bytes of the script from which on a call fails.
const FAILS: u8 = 0xe0;

/// The address of another guest.
pub const TAKEN: u32 = 77;

/// What the device is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Vsock,
    /// With network headers on the interface, or without.
    Net {
        has_header: bool,
    },
}

/// A ring as the kernel was told of it.
#[derive(Default)]
struct VRing {
    size: u16,
    base: u16,
    parts: Option<Parts>,
    kick: Option<EventFd>,
    call: Option<EventFd>,
    errors: Option<EventFd>,
    /// While it is worked on.
    ring: Option<Ring>,
    signalled: Option<u16>,
    /// Somebody waits.
    is_kicked: bool,
}

impl VRing {
    /// Nobody looks at a ring that is not worked on, and nobody remembers that he was to.
    fn listen(&mut self) {
        let is_kicked = self.kick.as_ref().is_some_and(|kick| kick.read().is_ok());
        self.is_kicked = self.ring.is_some() && (self.is_kicked || is_kicked);
    }
}

#[derive(Default)]
struct State {
    /// How the next calls are answered; honestly when it has ended.
    script: VecDeque<u8>,
    is_owned: bool,
    features: u64,
    table: Table,
    rings: [VRing; RINGS],
    /// The device's threads that have something to hear.
    signals: Vec<Signal>,
    /// The guest's bytes that were written: where, and how many.
    written: Vec<(u64, u64)>,
}

/// Whom the kernel tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Who waits for a ring's call.
    Call(usize),
    /// Who waits for errors.
    Error,
}

/// The kernel's end.
pub struct Kernel {
    kind: Kind,
    /// The rings are not the guest's.
    observed: bool,
    offered: u64,
    device: RawFd,
    tap: RawFd,
    tap_inode: u64,
    /// All of the guest's memory.
    memory: Vec<Region>,
    state: RefCell<State>,
    has_failed: Cell<bool>,
    is_stuck: Cell<bool>,
}

thread_local! {
    static KERNEL: RefCell<Weak<Kernel>> = const { RefCell::new(Weak::new()) };
}

/// Takes the place of the C library's (Linux, ioctl(2)). The third argument is passed as if there were always one.
///
/// # Safety
///
/// As the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn ioctl(
    fd: libc::c_int,
    request: libc::c_ulong,
    argument: *mut libc::c_void,
) -> libc::c_int {
    let kernel = KERNEL.with(|kernel| kernel.borrow().upgrade());
    // SAFETY: the argument is what the request wants.
    match kernel.and_then(|kernel| unsafe { kernel.call(fd, request, argument) }) {
        None => {
            // SAFETY: the caller's arguments.
            (unsafe { libc::syscall(libc::SYS_ioctl, fd, request, argument) }) as libc::c_int
        }
        Some(Ok(())) => 0,
        Some(Err(error)) => {
            // SAFETY: the thread's own.
            unsafe { *libc::__errno_location() = error };
            -1
        }
    }
}

/// A file that only the kernel's end knows to be something else.
fn file() -> File {
    // SAFETY: the name ends with a zero.
    let fd = unsafe { libc::memfd_create(c"fuzz".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "a descriptor");
    // SAFETY: it is new.
    unsafe { File::from_raw_fd(fd) }
}

impl Kernel {
    /// One for a device of `kind` whose guest has `memory`, and which has all features but those of `lacks`; and the device's
    /// file and an interface's. `script`: its answers are as the first bytes of the input say.
    pub fn new(
        kind: Kind,
        observed: bool,
        lacks: u64,
        memory: &GuestMemoryMmap,
        script: Option<&mut Input>,
    ) -> (Rc<Self>, OwnedFd, OwnedFd) {
        let region = |region: &vm_memory::GuestRegionMmap| Region {
            guest: region.start_addr().0,
            bytes: region.len(),
            host: region.as_ptr() as u64,
        };
        let script = script.map_or(VecDeque::new(), |input| input.short().iter().copied().collect());
        let of_kind = if kind == Kind::Vsock { SEQPACKET } else { MRG_RXBUF };
        let (device, tap) = (file(), file());
        let kernel = Rc::new(Self {
            kind,
            observed,
            offered: (OF_ALL | of_kind) & !lacks,
            device: device.as_raw_fd(),
            tap: tap.as_raw_fd(),
            tap_inode: tap.metadata().expect("an open file").ino(),
            memory: memory.iter().map(region).collect(),
            state: RefCell::new(State { script, ..State::default() }),
            has_failed: Cell::new(false),
            is_stuck: Cell::new(false),
        });
        KERNEL.set(Rc::downgrade(&kernel));
        (kernel, device.into(), tap.into())
    }

    /// Whether a call has failed that Linux would have answered.
    pub fn has_failed(&self) -> bool {
        self.has_failed.get()
    }

    /// Whether it did not end its work when it was told to: there is nothing that a device could do.
    pub fn is_stuck(&self) -> bool {
        self.is_stuck.get()
    }

    /// From now on its answers are honest, and what it writes is remembered.
    pub fn behave(&self) {
        let mut state = self.state.borrow_mut();
        state.script.clear();
        state.written.clear();
    }

    /// Works on what it was kicked for.
    pub fn work(&self) {
        (0..RINGS).for_each(|index| self.work_on(index, u16::MAX));
    }

    /// The same of one ring, and not more than `most` requests at once.
    fn work_on(&self, index: usize, most: u16) {
        let state = &mut *self.state.borrow_mut();
        let vring = &mut state.rings[index];
        vring.listen();
        let Some(ring) = vring.ring.as_mut().filter(|_| vring.is_kicked) else { return };
        let worker = Worker {
            ring,
            table: &state.table,
            features: state.features,
            signalled: &mut vring.signalled,
            written: &mut state.written,
        };
        let (call, result) = worker.work(most);
        // What it has left it comes back to.
        vring.is_kicked = result.is_ok() && ring.waiting() > 0;
        let mut tell = |event: &Option<EventFd>, signal| {
            if let Some(event) = event {
                event.write(1).expect("not full");
                state.signals.push(signal);
            }
        };
        if call {
            tell(&vring.call, Signal::Call(index));
        }
        if result.is_err() {
            tell(&vring.errors, Signal::Error);
        }
    }

    /// Something that it does by itself.
    pub fn step(&self, input: &mut Input) {
        let what = input.u8();
        let index = usize::from(what >> 7);
        if what & 0x40 == 0 || !self.observed {
            return self.work_on(index, u16::from(what & 0x3f));
        }
        // On rings that are not the guest's: what no good kernel does.
        let state = &mut *self.state.borrow_mut();
        let Some(ring) = &mut state.rings[index].ring else { return };
        ring.step(what & 0x3f, input);
        if let Some(call) = &state.rings[index].call {
            call.write(1).expect("not full");
            state.signals.push(Signal::Call(index));
        }
    }

    /// Whom it has told something since.
    pub fn signals(&self) -> Vec<Signal> {
        std::mem::take(&mut self.state.borrow_mut().signals)
    }

    /// Panics if it works on any ring.
    pub fn assert_idle(&self) {
        let state = self.state.borrow();
        assert!(
            state.rings.iter().all(|ring| ring.ring.is_none()),
            "the kernel works on rings that are not there any more"
        );
    }

    /// Panics if it has written what `told` has not heard of.
    pub fn assert_told(&self, told: &Told) {
        let told = told.0.lock().expect("one thread");
        for (at, len) in &self.state.borrow().written {
            let is_told = told.iter().any(|(from, bytes)| from <= at && at + len <= from + bytes);
            assert!(is_told, "nobody was told of {len} bytes at {at:#x}");
        }
    }
}

/// Hears of what is written to guest memory.
#[derive(Default)]
pub struct Told(Mutex<Vec<(u64, u64)>>);

impl DmaObserver for Told {
    fn written(&self, gpa: u64, len: u64) {
        self.0.lock().expect("one thread").push((gpa, len));
    }
}
