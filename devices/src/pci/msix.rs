//! The table and the pending bits of MSI-X (PCI Local Bus Specification 3.0, *MSI-X Capability and Table Structure*).
//!
//! One BAR holds both, and nothing else: the table first, the pending bits behind it.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::spec::msix::{ENTRY_BYTES, MASK, MAX_VECTORS, VECTOR_CONTROL};
use crate::interrupt::{InterruptSink, MsiMessage, MsiRoute};

/// Bytes of a BAR at least: a page, so that nothing of another function shares it.
const MIN_BAR_BYTES: u64 = 4096;

/// One vector: its table entry, and how it is sent.
struct Vector {
    entry: [u8; ENTRY_BYTES],
    pending: bool,
    route: Option<(MsiMessage, Box<dyn MsiRoute>)>,
    /// Those whose writes are to send it without us, as far as that can be; and whether the route has them.
    events: Vec<(Arc<EventFd>, bool)>,
}

impl Vector {
    fn new() -> Self {
        let mut entry = [0; ENTRY_BYTES];
        entry[VECTOR_CONTROL] = MASK;
        Self { entry, pending: false, route: None, events: Vec::new() }
    }

    fn is_masked(&self) -> bool {
        self.entry[VECTOR_CONTROL] & MASK != 0
    }

    fn message(&self) -> MsiMessage {
        let word = |at: usize| {
            u32::from_le_bytes(<[u8; 4]>::try_from(&self.entry[at..at + 4]).expect("four bytes of sixteen"))
        };
        MsiMessage { address: u64::from(word(0)) | u64::from(word(4)) << 32, data: word(8) }
    }

    fn write(&mut self, at: usize, byte: u8) {
        match at {
            VECTOR_CONTROL => self.entry[at] = byte & MASK,
            // The low bits of an address are zero, and so are reserved bits.
            0 => self.entry[at] = byte & !3,
            1..VECTOR_CONTROL => self.entry[at] = byte,
            _ => {}
        }
    }

    /// Sends the message. A message that no interrupt controller takes is a store to nowhere.
    fn send(&mut self, sink: &dyn InterruptSink) {
        let message = self.message();
        if !message.is_interrupt() {
            tracing::debug!(target: "irq", ?message, "MSI-X: no interrupt message");
            return;
        }
        if let Err(error) = self.set_route(message, sink) {
            // A message gets there without a route too.
            tracing::warn!(target: "irq", %error, "MSI-X: no route for a vector");
            self.drop_route();
        }
        match &self.route {
            Some((_, route)) => route.trigger(),
            None => sink.send_msi(message),
        }
    }

    /// Events send the message while nothing masks it (`is_open`). Otherwise whoever waits for them reads them, and tells us.
    fn follow(&mut self, is_open: bool, sink: &dyn InterruptSink) {
        if self.events.is_empty() {
            return;
        }
        let message = self.message();
        if !is_open || !message.is_interrupt() || self.set_route(message, sink).is_err() {
            self.follow_not();
        } else if let Some((_, route)) = &self.route {
            for (event, attached) in self.events.iter_mut().filter(|(_, attached)| !attached) {
                *attached = route.attach(event);
            }
        }
    }

    fn follow_not(&mut self) {
        if let Some((_, route)) = &self.route {
            for (event, attached) in self.events.iter_mut().filter(|(_, attached)| *attached) {
                route.detach(event);
                *attached = false;
            }
        }
    }

    fn drop_route(&mut self) {
        self.follow_not();
        self.route = None;
    }

    fn remove_event(&mut self, event: &Arc<EventFd>) {
        if let Some(index) = self.events.iter().position(|(other, _)| Arc::ptr_eq(other, event)) {
            let (event, attached) = self.events.swap_remove(index);
            if let Some((_, route)) = self.route.as_ref().filter(|_| attached) {
                route.detach(&event);
            }
        }
    }

    /// The route leads where the table says. It is made when it is first needed, and not masked with the vector: nobody but
    /// [`Vector::send`] triggers it, and events that [`Vector::follow`] has attached.
    fn set_route(
        &mut self,
        message: MsiMessage,
        sink: &dyn InterruptSink,
    ) -> Result<(), crate::interrupt::RouteError> {
        match &mut self.route {
            Some((set, _)) if *set == message => {}
            Some((set, route)) => {
                route.set(Some(message))?;
                *set = message;
            }
            None => {
                let route = sink.new_route()?;
                route.set(Some(message))?;
                self.route = Some((message, route));
            }
        }
        Ok(())
    }
}

/// The vectors of one function.
pub(super) struct Msix {
    vectors: Vec<Vector>,
    enabled: bool,
    /// All vectors are masked, by software or because the function may not reach memory.
    masked: bool,
}

/// Where the pending bits of `vectors` begin.
pub(super) fn pending_offset(vectors: u16) -> u64 {
    u64::from(vectors) * ENTRY_BYTES as u64
}

/// Bytes of the BAR of `vectors`.
pub(super) fn bar_bytes(vectors: u16) -> u64 {
    let pending = u64::from(vectors).div_ceil(64) * 8;
    (pending_offset(vectors) + pending).next_power_of_two().max(MIN_BAR_BYTES)
}

impl Msix {
    /// Vectors after power-on: all masked, and disabled.
    pub(super) fn new(vectors: u16) -> Self {
        assert!(vectors <= MAX_VECTORS, "{vectors} MSI-X vectors");
        Self { vectors: (0..vectors).map(|_| Vector::new()).collect(), enabled: false, masked: false }
    }

    pub(super) fn vectors(&self) -> u16 {
        u16::try_from(self.vectors.len()).expect("2048 at most")
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.enabled
    }

    pub(super) fn configure(&mut self, enabled: bool, masked: bool, sink: &dyn InterruptSink) {
        if self.enabled && !enabled {
            for vector in &mut self.vectors {
                vector.pending = false;
                vector.drop_route();
            }
        }
        (self.enabled, self.masked) = (enabled, masked);
        for index in 0..self.vectors.len() {
            self.send_pending(index, sink);
        }
    }

    pub(super) fn trigger(&mut self, vector: u16, sink: &dyn InterruptSink) {
        let index = usize::from(vector);
        if self.enabled
            && let Some(vector) = self.vectors.get_mut(index)
        {
            vector.pending = true;
            self.send_pending(index, sink);
        }
    }

    /// Writes of `event` are to send `vector`, with nobody of ours between where that can be.
    pub(super) fn add_event(&mut self, vector: u16, event: &Arc<EventFd>, sink: &dyn InterruptSink) {
        let index = usize::from(vector);
        if let Some(vector) = self.vectors.get_mut(index) {
            vector.events.push((Arc::clone(event), false));
            self.send_pending(index, sink);
        }
    }

    /// Undoes [`Msix::add_event`].
    pub(super) fn remove_event(&mut self, vector: u16, event: &Arc<EventFd>) {
        if let Some(vector) = self.vectors.get_mut(usize::from(vector)) {
            vector.remove_event(event);
        }
    }

    /// Sends what waited, unless it is masked; and events do from now on, or do not.
    fn send_pending(&mut self, index: usize, sink: &dyn InterruptSink) {
        let held = !self.enabled || self.masked;
        let vector = &mut self.vectors[index];
        let is_open = !held && !vector.is_masked();
        if vector.pending && is_open {
            vector.pending = false;
            vector.send(sink);
        }
        vector.follow(is_open, sink);
    }

    fn pending_byte(&self, at: usize) -> u8 {
        let bits = self.vectors.iter().skip(at.saturating_mul(8)).take(8);
        bits.enumerate().fold(0, |byte, (bit, vector)| byte | u8::from(vector.pending) << bit)
    }

    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let table = self.vectors.len() * ENTRY_BYTES;
        for (offset, byte) in (offset..).zip(data) {
            let at = usize::try_from(offset).expect("a 64-bit host");
            *byte = match at.checked_sub(table) {
                None => self.vectors[at / ENTRY_BYTES].entry[at % ENTRY_BYTES],
                Some(at) => self.pending_byte(at),
            };
        }
    }

    /// Pending bits cannot be written.
    pub(super) fn write(&mut self, offset: u64, data: &[u8], sink: &dyn InterruptSink) {
        let mut touched = None;
        for (offset, &byte) in (offset..).zip(data) {
            let at = usize::try_from(offset).expect("a 64-bit host");
            let index = at / ENTRY_BYTES;
            let Some(vector) = self.vectors.get_mut(index) else { continue };
            vector.write(at % ENTRY_BYTES, byte);
            // An access of several bytes is one change of the entry, or of two where no driver would make it.
            if let Some(before) = touched.replace(index).filter(|&before| before != index) {
                self.send_pending(before, sink);
            }
        }
        if let Some(index) = touched {
            self.send_pending(index, sink);
        }
    }
}
