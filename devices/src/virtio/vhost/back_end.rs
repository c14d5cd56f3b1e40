//! A vhost device of the kernel's: what it is told, in which order, and that it works only while it is to.

use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard};

use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::relay::{RingUser, Wires};
use crate::virtio::{Session, VirtioInterrupt, feature};

const LOCK: &str = "no holder of a vhost device's lock panics";

/// Why the kernel cannot do a device's work.
#[derive(Debug, thiserror::Error)]
pub enum VhostError {
    /// There is no such device, or not for this user.
    #[error("{path}")]
    Open {
        /// The device's file.
        path: &'static str,
        /// The host's answer.
        source: io::Error,
    },
    /// A descriptor that was handed down is something else, or in use.
    #[error("descriptor {0} is no new vhost device")]
    NotVhost(RawFd),
    /// The kernel does not do as it should.
    #[error("{0}")]
    Kernel(#[from] vhost::Error),
    /// The kernel is too old for something.
    #[error("the kernel's vhost lacks {0}")]
    Lacks(&'static str),
    /// Another guest has the address.
    #[error("guest-cid={0} is another guest's")]
    CidTaken(u32),
    /// The host refused a descriptor.
    #[error("the host has no descriptor left")]
    Host(#[from] io::Error),
}

/// A ring as the kernel is told of it.
pub(super) struct Ring {
    pub index: usize,
    pub size: u16,
    /// Descriptors, available ring and used ring.
    pub places: [GuestAddress; 3],
    pub wires: Wires,
    /// Written when the ring makes no sense.
    pub errors: Arc<EventFd>,
}

/// What a kind of vhost devices does.
pub(super) trait KernelDevice: Send + Sync {
    /// The rings' features, and the device's own. While it does not run.
    fn set_features(&self, features: u64) -> Result<(), vhost::Error>;
    /// What descriptors refer to.
    fn set_memory(&self, memory: &GuestMemoryMmap) -> Result<(), vhost::Error>;
    /// Where a ring is in `memory`; it begins anew. While it does not run.
    fn set_ring(&self, memory: &GuestMemoryMmap, ring: &Ring) -> Result<(), vhost::Error>;
    /// Which chain of the available ring comes next.
    fn base(&self, ring: usize) -> Result<u16, vhost::Error>;
    /// Sets that. While it does not run.
    fn set_base(&self, ring: usize, base: u16) -> Result<(), vhost::Error>;
    /// The kernel works on these rings.
    fn run(&self, rings: &[usize]) -> Result<(), vhost::Error>;
    /// It does not, and touches no memory, when this returns.
    fn halt(&self, rings: &[usize]) -> Result<(), vhost::Error>;
}

/// Whom to tell that the rings make no sense.
pub(super) type Listener = (Arc<Session>, Arc<dyn VirtioInterrupt>);

#[derive(Default)]
struct State {
    /// The rings that it has been told of.
    rings: Vec<usize>,
    /// Which chains come next, while it is paused.
    paused: Option<Vec<u16>>,
    listener: Option<Listener>,
}

/// A device of the kernel's.
pub(super) struct BackEnd {
    name: &'static str,
    device: Box<dyn KernelDevice>,
    state: Mutex<State>,
}

/// What every kernel's vhost has had for long, and guests are offered.
const NEEDED: [(u64, &str); 3] = [
    (feature::VERSION_1, "virtio 1.0"),
    (feature::RING_INDIRECT_DESC, "indirect descriptors"),
    (feature::RING_EVENT_IDX, "event indices"),
];

impl BackEnd {
    /// `device`, which messages call `name`; the kernel can do `features`.
    pub fn new(
        name: &'static str,
        device: Box<dyn KernelDevice>,
        features: u64,
    ) -> Result<Arc<Self>, VhostError> {
        match NEEDED.iter().find(|(feature, _)| features & feature == 0) {
            Some((_, what)) => Err(VhostError::Lacks(what)),
            None => Ok(Arc::new(Self { name, device, state: Mutex::default() })),
        }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(LOCK)
    }

    /// It works on `rings`, which are in `rings_memory`, and what they refer to is in `memory`.
    pub fn start(
        &self,
        memory: &GuestMemoryMmap,
        rings_memory: &GuestMemoryMmap,
        features: u64,
        rings: &[Ring],
        listener: Listener,
    ) -> Result<(), vhost::Error> {
        let mut state = self.lock();
        self.halt(&mut state);
        state.listener = Some(listener);
        self.device.set_features(features)?;
        self.device.set_memory(memory)?;
        rings.iter().try_for_each(|ring| self.device.set_ring(rings_memory, ring))?;
        state.rings = rings.iter().map(|ring| ring.index).collect();
        self.device.run(&state.rings)
    }

    /// It works on no ring any more, and touches no memory, when this returns.
    pub fn stop(&self) {
        self.halt(&mut self.lock());
    }

    fn halt(&self, state: &mut State) {
        state.listener = None;
        let rings = std::mem::take(&mut state.rings);
        if state.paused.take().is_none() && !rings.is_empty() {
            self.halt_rings(&rings);
        }
    }

    fn halt_rings(&self, rings: &[usize]) {
        if let Err(error) = self.device.halt(rings) {
            tracing::error!(target: "virtio", %error, "{}: the kernel does not stop", self.name);
        }
    }

    /// It touches no memory when this returns, and knows where it was.
    pub fn pause(&self) {
        let mut state = self.lock();
        if state.rings.is_empty() || state.paused.is_some() {
            return;
        }
        self.halt_rings(&state.rings);
        let bases = state.rings.iter().map(|ring| self.device.base(*ring)).collect();
        match bases {
            Ok(bases) => state.paused = Some(bases),
            Err(error) => {
                state.rings.clear();
                self.fail(state, &format!("does not pause: {error}"));
            }
        }
    }

    /// It goes on where it was.
    pub fn resume(&self) {
        let mut state = self.lock();
        let Some(bases) = state.paused.take() else { return };
        let mut set = state.rings.iter().zip(bases);
        let set = set.try_for_each(|(ring, base)| self.device.set_base(*ring, base));
        if let Err(error) = set.and_then(|()| self.device.run(&state.rings)) {
            self.fail(state, &format!("does not go on: {error}"));
        }
    }

    /// Its driver is told that nothing is done before a reset, and the user why.
    fn fail(&self, mut state: MutexGuard<'_, State>, why: &str) {
        let listener = state.listener.take();
        drop(state);
        if let Some((session, interrupt)) = listener {
            tracing::error!(target: "virtio", "{}: the kernel's vhost {why}; the device needs a reset", self.name);
            session.run(|| interrupt.needs_reset());
        }
    }
}

impl RingUser for BackEnd {
    fn give_up(&self, why: &str) {
        let mut state = self.lock();
        let listener = state.listener.take();
        self.halt(&mut state);
        state.listener = listener;
        self.fail(state, why);
    }
}
