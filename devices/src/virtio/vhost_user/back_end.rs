//! The connection to a back end: what both can do, memory, rings, and its end.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::virtio::vhost::relay::RingUser;
use crate::virtio::vhost::shadow::ShadowMemory;
use crate::virtio::{Session, VirtioInterrupt, feature};

const LOCK: &str = "no holder of a back end's lock panics";

/// How long a back end may take to say who it is, and to finish what it is at.
const HELLO_LIMIT: Duration = Duration::from_secs(10);
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// Why a back end cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BackEndError {
    /// It says something else than the protocol lets it, or nothing.
    #[error("no answer of a vhost-user back end")]
    Protocol(#[from] vhost::Error),
    /// It cannot do what is needed.
    #[error("the back end lacks {0}")]
    Lacks(&'static str),
    /// It has fewer queues.
    #[error("the back end has {has} queues, and {wanted} are wanted")]
    Queues {
        /// How many it has.
        has: u64,
        /// How many are wanted.
        wanted: usize,
    },
    /// It cannot map guest memory.
    #[error(
        "guest memory is not shared with the back end: add -object memory-backend-memfd,id=mem,size=SIZE,share=on -machine memory-backend=mem"
    )]
    Memory,
    /// It has ended, or was given up.
    #[error("the back end has gone")]
    Gone,
    /// The host refused a descriptor or a thread.
    #[error("the host has no room for the back end's rings")]
    Host(#[from] io::Error),
}

/// Whom to tell when the back end is gone.
type Listener = (Arc<Session>, Arc<dyn VirtioInterrupt>);

#[derive(Default)]
struct State {
    gone: bool,
    listener: Option<Listener>,
    memory: GuestMemoryMmap,
    /// The rings that it works on.
    rings: Vec<usize>,
}

/// A back end that has answered.
pub struct BackEnd {
    name: String,
    frontend: Frontend,
    socket: UnixStream,
    features: u64,
    state: Mutex<State>,
}

/// One ring as a back end is told of it: its number, the host's addresses of descriptors, available ring and used ring, and
/// how both sides wake each other.
pub(super) struct RingPlace<'a> {
    pub index: usize,
    pub size: u16,
    pub addresses: [u64; 3],
    pub kick: &'a EventFd,
    pub call: &'a EventFd,
}

impl BackEnd {
    /// The back end at the other end of `socket`, which messages call `name`, for a device of `queues` queues.
    pub fn greet(name: String, socket: UnixStream, queues: usize) -> Result<Arc<Self>, BackEndError> {
        let mut frontend = Frontend::from_stream(socket.try_clone()?, queues as u64);
        let features = within(&socket, HELLO_LIMIT, || agree(&mut frontend, queues))?;
        let back_end = Self { name, frontend, socket, features, state: Mutex::default() };
        let back_end = Arc::new(back_end);
        back_end.watch()?;
        Ok(back_end)
    }

    /// It is to work on guest memory `memory`, which it must be able to map.
    pub fn set_memory(&self, memory: &GuestMemoryMmap) -> Result<(), BackEndError> {
        let is_shared = |flags: libc::c_int| flags & libc::MAP_SHARED != 0;
        if !memory.iter().all(|region| region.file_offset().is_some() && is_shared(region.flags())) {
            return Err(BackEndError::Memory);
        }
        self.lock().memory = memory.clone();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(LOCK)
    }

    /// It works on these rings in `shadow`, empty ones, from now on; `listener` is told when it ends. It is the same `shadow`
    /// each time: some back ends look for the rings that they had as soon as they are told of memory.
    pub(super) fn start(
        &self,
        shadow: &ShadowMemory,
        rings: &[RingPlace],
        listener: Listener,
    ) -> Result<(), BackEndError> {
        self.stop();
        shadow.clear();
        let regions = {
            let mut state = self.lock();
            if state.gone {
                return Err(BackEndError::Gone);
            }
            state.listener = Some(listener);
            state.rings = rings.iter().map(|ring| ring.index).collect();
            let regions = state.memory.iter().chain(shadow.memory().iter());
            regions.map(VhostUserMemoryRegionInfo::from_guest_region).collect::<Result<Vec<_>, _>>()?
        };
        let mut frontend = self.frontend.clone();
        within(&self.socket, ANSWER_LIMIT, || {
            frontend.set_features(self.features)?;
            frontend.set_mem_table(&regions)?;
            rings.iter().try_for_each(|ring| self.start_ring(&mut frontend, ring))
        })?;
        Ok(())
    }

    fn start_ring(&self, frontend: &mut Frontend, ring: &RingPlace) -> Result<(), vhost::Error> {
        let [descriptors, available, used] = ring.addresses;
        frontend.set_vring_num(ring.index, ring.size)?;
        frontend.set_vring_base(ring.index, 0)?;
        let place = VringConfigData {
            queue_max_size: ring.size,
            queue_size: ring.size,
            flags: 0,
            desc_table_addr: descriptors,
            used_ring_addr: used,
            avail_ring_addr: available,
            log_addr: None,
        };
        frontend.set_vring_addr(ring.index, &place)?;
        frontend.set_vring_kick(ring.index, ring.kick)?;
        frontend.set_vring_call(ring.index, ring.call)?;
        // Without these features rings are enabled as they are started.
        if self.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0 {
            frontend.set_vring_enable(ring.index, true)?;
        }
        Ok(())
    }

    /// It works on no ring any more, and touches no memory, when this returns.
    pub(super) fn stop(&self) {
        let (rings, gone) = {
            let mut state = self.lock();
            state.listener = None;
            (std::mem::take(&mut state.rings), state.gone)
        };
        let stopped = if gone || rings.is_empty() {
            Ok(())
        } else {
            within(&self.socket, ANSWER_LIMIT, || {
                // The answer comes when what was begun is done.
                rings.into_iter().try_for_each(|ring| self.frontend.get_vring_base(ring).map(drop))
            })
        };
        if let Err(error) = stopped {
            self.give_up(&format!("does not stop: {error}"));
        }
    }

    /// Waits for its end on a thread, which ends with the connection.
    fn watch(self: &Arc<Self>) -> io::Result<()> {
        let (back_end, socket) = (Arc::downgrade(self), self.socket.try_clone()?);
        let thread = std::thread::Builder::new().name("vhost-user".into());
        thread.spawn(move || wait_for_end(&socket, &back_end)).map(drop)
    }
}

impl RingUser for BackEnd {
    /// Nothing is heard or said any more. Its driver is told, if it is at work.
    fn give_up(&self, why: &str) {
        let listener = {
            let mut state = self.lock();
            if std::mem::replace(&mut state.gone, true) {
                return;
            }
            state.listener.take()
        };
        let _ = self.socket.shutdown(Shutdown::Both);
        tracing::error!(target: "virtio", "{}: the back end {why}; the guest's device does nothing until the machine is started again", self.name);
        if let Some((session, interrupt)) = listener {
            session.run(|| interrupt.needs_reset());
        }
    }
}

impl Drop for BackEnd {
    fn drop(&mut self) {
        // The thread that watches it holds another descriptor.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

fn wait_for_end(socket: &UnixStream, back_end: &Weak<BackEnd>) {
    loop {
        let mut fds = [PollFd::new(socket, PollFlags::RDHUP)];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => {}
            _ => break,
        }
    }
    if let Some(back_end) = back_end.upgrade() {
        back_end.give_up("has gone");
    }
}

/// Finds out what the back end can do; the features of rings and protocol that both have.
fn agree(frontend: &mut Frontend, queues: usize) -> Result<u64, BackEndError> {
    use VhostUserProtocolFeatures as Protocol;
    frontend.set_owner()?;
    let offered = frontend.get_features()?;
    if offered & feature::VERSION_1 == 0 {
        return Err(BackEndError::Lacks("virtio 1.0"));
    }
    let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
    if offered & protocol != 0 {
        let both = frontend.get_protocol_features()? & (Protocol::MQ | Protocol::REPLY_ACK);
        frontend.set_protocol_features(both)?;
        if both.contains(Protocol::REPLY_ACK) {
            // What it cannot do is heard of where it is asked for.
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        if both.contains(Protocol::MQ) {
            let has = frontend.get_queue_num()?;
            if has < queues as u64 {
                return Err(BackEndError::Queues { has, wanted: queues });
            }
        }
    }
    Ok(offered & (feature::VERSION_1 | protocol))
}

/// Does `work`, which waits for the other side; if that takes longer than `limit`, the connection is ended.
fn within<R, E>(
    socket: &UnixStream,
    limit: Duration,
    work: impl FnOnce() -> Result<R, E>,
) -> Result<R, BackEndError>
where
    BackEndError: From<E>,
{
    let (done, wait) = mpsc::channel::<()>();
    let other = socket.try_clone()?;
    let thread = std::thread::Builder::new().name("vhost-user".into());
    thread.spawn(move || {
        if wait.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            let _ = other.shutdown(Shutdown::Both);
        }
    })?;
    let result = work();
    drop(done);
    Ok(result?)
}
