//! What the tests of PCI share: a device that remembers, and a sink that does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use super::{Bar, BarKind, FunctionInterrupts, Identity, Layout, PciDevice};
use crate::device::Device;
use crate::interrupt::{Gsi, InterruptSink, MsiMessage, MsiRoute, RouteError};

/// What a sink was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Pin(bool),
    /// A message's address and data, through a route.
    Route(u64, u32),
    /// The same without one.
    Message(u64, u32),
}

type Log = Arc<Mutex<Vec<Seen>>>;

/// Remembers.
#[derive(Default)]
pub(crate) struct Recorder {
    seen: Log,
    pin: AtomicBool,
    no_routes: AtomicBool,
    attached: Attached,
}

/// Events that routes have, with the data of the messages that they send.
type Attached = Arc<Mutex<Vec<(Arc<EventFd>, u32)>>>;

impl Recorder {
    /// What a write of `event` sends, without us.
    pub(crate) fn sent_by(&self, event: &Arc<EventFd>) -> Vec<u32> {
        let attached = self.attached.lock().unwrap();
        let ours = attached.iter().filter(|(other, _)| Arc::ptr_eq(other, event));
        ours.map(|(_, data)| *data).collect()
    }

    pub(crate) fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }

    pub(crate) fn pin(&self) -> bool {
        self.pin.load(Ordering::SeqCst)
    }

    pub(crate) fn refuse_routes(&self) {
        self.no_routes.store(true, Ordering::SeqCst);
    }
}

impl InterruptSink for Recorder {
    fn set_gsi(&self, _gsi: Gsi, level: bool) {
        self.pin.store(level, Ordering::SeqCst);
        self.seen.lock().unwrap().push(Seen::Pin(level));
    }

    fn send_msi(&self, message: MsiMessage) {
        self.seen.lock().unwrap().push(Seen::Message(message.address, message.data));
    }

    fn new_route(&self) -> Result<Box<dyn MsiRoute>, RouteError> {
        if self.no_routes.load(Ordering::SeqCst) {
            return Err(RouteError::Exhausted);
        }
        let (seen, attached) = (Arc::clone(&self.seen), Arc::clone(&self.attached));
        Ok(Box::new(Route { seen, attached, message: Mutex::new(None) }))
    }
}

struct Route {
    seen: Log,
    attached: Attached,
    message: Mutex<Option<MsiMessage>>,
}

impl MsiRoute for Route {
    fn set(&self, message: Option<MsiMessage>) -> Result<(), RouteError> {
        *self.message.lock().unwrap() = message;
        Ok(())
    }

    fn trigger(&self) {
        if let Some(message) = *self.message.lock().unwrap() {
            self.seen.lock().unwrap().push(Seen::Route(message.address, message.data));
        }
    }

    fn eventfd(&self) -> Option<&EventFd> {
        None
    }

    fn attach(&self, event: &Arc<EventFd>) -> bool {
        let message = self.message.lock().unwrap().expect("a route that leads somewhere");
        self.attached.lock().unwrap().push((Arc::clone(event), message.data));
        true
    }

    fn detach(&self, event: &Arc<EventFd>) {
        let mut attached = self.attached.lock().unwrap();
        let index = attached.iter().position(|(other, _)| Arc::ptr_eq(other, event));
        attached.remove(index.expect("it was attached"));
    }
}

/// A device with BARs of every kind, whose bytes are its number and theirs.
pub(crate) struct Probe {
    pub(crate) interrupts: Arc<FunctionInterrupts>,
    number: u8,
    moved: Mutex<[Option<u64>; 6]>,
    master: AtomicBool,
}

impl Probe {
    pub(crate) fn new(interrupts: Arc<FunctionInterrupts>, number: u8) -> Arc<Self> {
        Arc::new(Self { interrupts, number, moved: Mutex::default(), master: AtomicBool::new(false) })
    }

    /// Where it was told that a BAR is.
    pub(crate) fn at(&self, bar: usize) -> Option<u64> {
        self.moved.lock().unwrap()[bar]
    }

    pub(crate) fn is_master(&self) -> bool {
        self.master.load(Ordering::SeqCst)
    }
}

impl Device for Probe {
    fn name(&self) -> &'static str {
        "probe"
    }
    fn reset(&self) {}
}

impl PciDevice for Probe {
    fn layout(&self) -> Layout {
        let identity = Identity {
            vendor: 0x1234,
            device: 0x5678,
            revision: 7,
            class: 0xff_0000,
            subsystem: (0x1234, self.number.into()),
        };
        Layout {
            bars: vec![
                (0, Bar::new(BarKind::Memory32, 4096)),
                (2, Bar::new(BarKind::Memory64 { prefetchable: true }, 16384)),
                (4, Bar::new(BarKind::Io, 32)),
            ],
            interrupt_pin: Some(1),
            ..Layout::new(identity)
        }
    }

    fn interrupts(&self) -> Option<&Arc<FunctionInterrupts>> {
        Some(&self.interrupts)
    }

    fn read_bar(&self, bar: usize, offset: u64, data: &mut [u8]) {
        let bytes = self.layout().bars.iter().find(|(index, _)| *index == bar).unwrap().1.bytes();
        assert!(offset + data.len() as u64 <= bytes, "an access leaves BAR {bar}");
        data.fill(self.number & 0xf8 | bar as u8);
    }

    fn moved(&self, bar: usize, base: Option<u64>) {
        let before = std::mem::replace(&mut self.moved.lock().unwrap()[bar], base);
        assert!(before.is_none() || base.is_none(), "gone before it is elsewhere");
    }

    fn set_bus_master(&self, enabled: bool) {
        self.master.store(enabled, Ordering::SeqCst);
    }
}
