//! What the CPUs of a machine ask of each other: to forget what their soft TLBs and jump caches have.
//!
//! Only a CPU's own thread touches its tables. Another CPU leaves a request, kicks it, and waits until it has been served, or
//! is seen outside [`crate::exec::Vcpu::run`]: then it serves before it enters generated code again. A CPU serves between
//! blocks, never in one: a block may hold on to an address that it has checked. While it waits for others it serves too,
//! so that two CPUs may wait for each other; in the midst of a block it then leaves the block
//! ([`Cpu::code_changed`]).
//!
//! ```text
//!   who asks                              who is asked
//!   request, then a fence                 inside = true, then a fence
//!   inside? kick it and wait: it sees     requests? serve them
//!   the request, or has served it
//! ```

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::Duration;

use accel::CpuHandle;

use crate::code::cache::Gone;
use crate::cpu::Cpu;
use crate::env::{EnvMapping, KICKED};
use crate::ram::RamPage;
use crate::windows::{self, Tenure};

const LOCK: &str = "no holder of a lock of the CPUs' requests panics";

/// Looks at an unserved request before the thread that looks gives up its time.
const SPINS: u32 = 200;
/// Looks before a thread that is no CPU's sleeps in between, and for how long.
const YIELDS: u32 = 1000;
const NAP: Duration = Duration::from_micros(50);

/// What one CPU asks of another.
#[derive(Clone, Copy, Debug)]
enum Request {
    /// To have no write entry for the page: code is going to be translated from it.
    RevokeWrite(RamPage),
    /// To have no cached jump to a block: it is no longer valid.
    ForgetJump { rip: u64, class: usize },
    /// To reach no windows of the tenure any more: another program's come to lie there.
    CloseWindows(Tenure),
}

#[derive(Default)]
struct Queue {
    requests: Vec<Request>,
    /// Requests so far.
    asked: u64,
}

/// A CPU as the others see it.
pub struct Peer {
    index: usize,
    mapping: Arc<EnvMapping>,
    /// It may be in generated code, or on its way there.
    inside: AtomicBool,
    queue: Mutex<Queue>,
    /// The queue is not empty.
    pending: AtomicBool,
    /// Requests that have been served.
    served: AtomicU64,
}

impl Peer {
    /// CPU `index` over the environment `mapping`.
    pub fn new(index: usize, mapping: Arc<EnvMapping>) -> Arc<Self> {
        Arc::new(Self {
            index,
            mapping,
            inside: AtomicBool::new(false),
            queue: Mutex::default(),
            pending: AtomicBool::new(false),
            served: AtomicU64::new(0),
        })
    }

    /// The CPU is going to enter generated code: the caller serves first.
    pub fn go_inside(&self) {
        self.inside.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// The CPU has come out.
    pub fn go_outside(&self) {
        self.inside.store(false, Ordering::SeqCst);
    }

    /// Has the CPU leave generated code at its next poll. SeqCst pairs with the loop's clear-then-look.
    fn kick(&self) {
        self.mapping.icount_decr().store(KICKED, Ordering::SeqCst);
    }

    /// Leaves `requests`, to be served before the CPU enters generated code again.
    fn leave(&self, requests: &[Request]) -> u64 {
        let mut queue = self.queue.lock().expect(LOCK);
        queue.requests.extend_from_slice(requests);
        queue.asked += requests.len() as u64;
        self.pending.store(true, Ordering::SeqCst);
        queue.asked
    }

    /// Leaves `requests`. Which is to be waited for, if the CPU is inside.
    fn ask(&self, requests: &[Request]) -> Option<u64> {
        let ticket = self.leave(requests);
        fence(Ordering::SeqCst);
        self.inside.load(Ordering::SeqCst).then(|| {
            self.kick();
            ticket
        })
    }

    fn is_served(&self, ticket: u64) -> bool {
        self.served.load(Ordering::Acquire) >= ticket || !self.inside.load(Ordering::SeqCst)
    }
}

/// The CPUs that share an engine.
#[derive(Default)]
pub struct Peers {
    list: RwLock<Vec<Arc<Peer>>>,
    count: AtomicUsize,
    /// [`membarrier`] can be used.
    registered: OnceLock<()>,
}

impl Peers {
    /// From now on the others ask it, too.
    pub fn join(&self, peer: &Arc<Peer>) {
        let mut list = self.list.write().expect(LOCK);
        list.push(Arc::clone(peer));
        self.count.store(list.len(), Ordering::SeqCst);
        if list.len() == 2 {
            self.register();
        }
    }

    /// Before the first thread patches code that another one may be executing.
    fn register(&self) {
        self.registered.get_or_init(|| {
            membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE);
        });
    }

    /// No CPU goes on to these blocks, which were invalidated by a thread that executes no guest code, when this returns.
    /// No lock is held that a CPU in the guest may want.
    ///
    /// On the thread of a CPU (a device at work there, which is between blocks or outside, as all CPUs of that thread are): they
    /// forget before they execute more.
    pub fn forget_blocks(&self, gone: &[Gone]) {
        if gone.is_empty() {
            return;
        }
        self.register();
        let patched = membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE);
        let cpus = gone.iter().fold(0, |cpus, block| cpus | block.cpus);
        let requests: Vec<_> = gone.iter().filter_map(Gone::request).collect();
        if requests.is_empty() {
            return;
        }
        let list = self.list.read().expect(LOCK).clone();
        let asked = list.iter().filter(|peer| !patched || cpus >> peer.index & 1 != 0);
        if CpuHandle::current().is_some() {
            for peer in asked {
                peer.leave(&requests);
            }
            return;
        }
        let tickets: Vec<_> =
            asked.filter_map(|peer| peer.ask(&requests).map(|ticket| (peer, ticket))).collect();
        for (peer, ticket) in tickets {
            let mut looks = 0;
            while !peer.is_served(ticket) {
                looks += 1;
                match looks {
                    ..SPINS => std::hint::spin_loop(),
                    SPINS..YIELDS => std::thread::yield_now(),
                    _ => std::thread::sleep(NAP),
                }
            }
        }
    }

    /// The CPU is gone.
    pub fn leave(&self, peer: &Arc<Peer>) {
        let mut list = self.list.write().expect(LOCK);
        list.retain(|other| !Arc::ptr_eq(other, peer));
        self.count.store(list.len(), Ordering::SeqCst);
    }

    /// Jumps were patched that no CPU is to take as they were, when it enters generated code again.
    pub fn serialize(&self) {
        if self.several() {
            membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE);
        }
    }

    /// Whether there is more than one CPU.
    pub fn several(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 1
    }

    /// The CPUs but `me` that `which` names.
    fn others(&self, me: &Peer, which: impl Fn(usize) -> bool) -> Vec<Arc<Peer>> {
        let list = self.list.read().expect(LOCK);
        list.iter().filter(|peer| peer.index != me.index && which(peer.index)).cloned().collect()
    }
}

impl Gone {
    /// What its CPUs are asked, if it can be in their jump caches.
    fn request(&self) -> Option<Request> {
        self.class.map(|class| Request::ForgetJump { rip: self.rip, class })
    }
}

/// Makes every running thread of the process serialize, so that none executes bytes of code that it fetched before they were
/// patched (SDM vol. 3A, *Handling Self- and Cross-Modifying Code*). False: the kernel cannot.
fn membarrier(command: libc::c_int) -> bool {
    #[expect(unsafe_code, reason = "door: a system call without memory operands")]
    // SAFETY: it touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) };
    result == 0
}

impl Cpu {
    /// Does what other CPUs have asked. Between blocks, or in a helper.
    pub fn serve(&mut self) {
        if !self.peer.pending.load(Ordering::SeqCst) {
            return;
        }
        let peer = Arc::clone(&self.peer);
        let (requests, asked) = {
            let mut queue = peer.queue.lock().expect(LOCK);
            peer.pending.store(false, Ordering::SeqCst);
            (std::mem::take(&mut queue.requests), queue.asked)
        };
        for request in requests {
            match request {
                Request::RevokeWrite(page) => {
                    self.mmu.revoke_write(self.ram.write_notes(self.index), page);
                    self.code_changed = true;
                }
                Request::ForgetJump { rip, class } => self.mmu.forget_jump(rip, class),
                Request::CloseWindows(tenure) => {
                    self.close_windows_if(|open| open == tenure);
                    self.code_changed = true;
                }
            }
        }
        peer.served.store(asked, Ordering::Release);
    }

    /// Nobody has a write entry for `page` any more when this returns. Its code mark is set. No lock is held.
    pub fn revoke_write(&mut self, page: RamPage) {
        windows::revoke(page.host);
        self.mmu.revoke_write(self.ram.write_notes(self.index), page);
        let Some(engine) = self.engine.clone().filter(|engine| engine.peers.several()) else { return };
        let ram = Arc::clone(&self.ram);
        let others = engine.peers.others(&self.peer, |index| ram.write_notes(index).may_have(page.index));
        self.ask(&others, &[Request::RevokeWrite(page)]);
    }

    /// No CPU whose bit is set in `cpus` reaches windows of `tenure` any more when this returns.
    pub fn close_windows_of(&mut self, tenure: Tenure, cpus: u64) {
        self.close_windows_if(|open| open == tenure);
        let Some(engine) = self.engine.clone() else { return };
        let others = engine.peers.others(&self.peer, |index| cpus >> index & 1 != 0);
        self.ask(&others, &[Request::CloseWindows(tenure)]);
    }

    /// This CPU does not go on to the block any more.
    pub fn forget_block_here(&mut self, block: &Gone) {
        if let Some(class) = block.class {
            self.mmu.forget_jump(block.rip, class);
        }
    }

    /// No CPU goes on to these blocks, which were invalidated, when this returns. No lock is held.
    pub fn forget_blocks(&mut self, gone: &[Gone]) {
        if gone.is_empty() {
            return;
        }
        let mut cpus = 0;
        let mut requests = Vec::new();
        for block in gone {
            cpus |= block.cpus;
            self.forget_block_here(block);
            requests.extend(block.request());
        }
        let Some(engine) = self.engine.clone().filter(|engine| engine.peers.several()) else { return };
        // Jumps to these blocks were patched.
        let patched = membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE);
        let others = engine.peers.others(&self.peer, |index| !patched || cpus >> index & 1 != 0);
        self.ask(&others, &requests);
    }

    /// Asks `others` and waits until they have done it.
    fn ask(&mut self, others: &[Arc<Peer>], requests: &[Request]) {
        let tickets: Vec<_> =
            others.iter().filter_map(|peer| peer.ask(requests).map(|ticket| (peer, ticket))).collect();
        for (peer, ticket) in tickets {
            let mut looks = 0;
            while !peer.is_served(ticket) {
                self.serve();
                looks += 1;
                if looks < SPINS {
                    std::hint::spin_loop();
                } else {
                    std::thread::yield_now();
                }
            }
        }
    }
}
