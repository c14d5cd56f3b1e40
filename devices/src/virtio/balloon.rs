//! virtio-balloon: memory that a guest does without (Virtio 1.2, *Traditional Memory Balloon Device*).
//!
//! Pages in the balloon, and pages that the driver reports as free, are given back to the host at once. They stay RAM: whoever
//! touches one has a zero page. So taking pages out of the balloon is the driver's business alone.

mod release;
pub mod spec;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use vm_memory::GuestAddress;

use self::release::release;
use self::spec::{config, feature, statistic};
use super::queue::{Chain, RingError, Segment, split, total};
use super::worker::{Pace, QueueWork, Worker};
use super::{Activation, ActiveQueue, Doorbell, VirtioDevice, VirtioInterrupt, read_config_bytes};

const QUEUE_SIZE: u16 = 128;
const LOCK: &str = "nobody panics with a balloon's lock held";
/// Page numbers of one message: 4 GiB of pages. No driver sends near as many.
const MOST_PFNS: u64 = 1 << 20;
/// Page numbers that are read at once.
const CHUNK_BYTES: u64 = 16 << 10;
/// Entries of a statistics buffer that are looked at.
const MOST_STATISTICS: usize = 64;
/// Chains of one queue in a row; then the thread looks whether it should pause.
const BATCH: usize = 64;

/// What a balloon is asked to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonOptions {
    /// The driver may take pages back when it runs out of memory.
    pub deflate_on_oom: bool,
    /// The driver reports pages that are free.
    pub free_page_reporting: bool,
}

/// The device.
pub struct Balloon {
    features: u64,
    sizes: Vec<u16>,
    shared: Arc<Shared>,
    worker: Worker,
    /// The same one for all queues.
    doorbells: Vec<Arc<Doorbell>>,
}

/// What the device's thread and its users share.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// The driver's statistics are wanted anew.
    wants_statistics: AtomicBool,
}

#[derive(Default)]
struct State {
    target_pages: u32,
    actual_pages: u32,
    /// Tags and values, as the driver last gave them.
    statistics: Vec<(u16, u64)>,
    /// Bytes that were given back to the host, pages that were touched again included.
    released_bytes: u64,
    /// While a driver is there.
    interrupt: Option<Arc<dyn VirtioInterrupt>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(LOCK)
    }
}

impl Balloon {
    /// An empty balloon.
    pub fn new(options: BalloonOptions, pace: &Pace) -> io::Result<Arc<Self>> {
        let worker = Worker::new("virtio-balloon", pace)?;
        let mut features = feature::STATS_VQ;
        if options.deflate_on_oom {
            features |= feature::DEFLATE_ON_OOM;
        }
        // One more than is used: drivers differ in whether they leave a place for a queue that was not agreed on.
        let queues = if options.free_page_reporting { 5 } else { 3 };
        if options.free_page_reporting {
            features |= feature::REPORTING;
        }
        Ok(Arc::new(Self {
            features,
            sizes: vec![QUEUE_SIZE; queues],
            shared: Arc::default(),
            doorbells: vec![Arc::clone(worker.doorbell()); queues],
            worker,
        }))
    }

    /// What the balloon should hold, in bytes. The driver does what it can.
    pub fn set_target(&self, bytes: u64) {
        let interrupt = {
            let mut state = self.shared.lock();
            state.target_pages = u32::try_from(bytes >> spec::PFN_SHIFT).unwrap_or(u32::MAX);
            state.interrupt.clone()
        };
        if let Some(interrupt) = interrupt {
            interrupt.config_changed();
        }
    }

    /// What it holds, in bytes, as the driver says.
    pub fn actual(&self) -> u64 {
        u64::from(self.shared.lock().actual_pages) << spec::PFN_SHIFT
    }

    /// Asks the driver for statistics.
    pub fn poll_statistics(&self) {
        self.shared.wants_statistics.store(true, Ordering::SeqCst);
        self.worker.doorbell().ring();
    }

    /// The last ones that it gave: tags ([`spec::statistic`]) and values.
    pub fn statistics(&self) -> Vec<(u16, u64)> {
        self.shared.lock().statistics.clone()
    }

    /// Bytes that were given back to the host since the start, pages that were touched again and given back again included.
    pub fn released_bytes(&self) -> u64 {
        self.shared.lock().released_bytes
    }
}

impl VirtioDevice for Balloon {
    fn name(&self) -> &'static str {
        "virtio-balloon"
    }

    fn device_id(&self) -> u32 {
        spec::DEVICE_ID
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn doorbells(&self) -> &[Arc<Doorbell>] {
        &self.doorbells
    }

    fn workers(&self) -> &[Worker] {
        std::slice::from_ref(&self.worker)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut space = [0; config::BYTES];
        let state = self.shared.lock();
        space[config::NUM_PAGES..][..4].copy_from_slice(&state.target_pages.to_le_bytes());
        space[config::ACTUAL..][..4].copy_from_slice(&state.actual_pages.to_le_bytes());
        drop(state);
        read_config_bytes(&space, offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        let mut state = self.shared.lock();
        let mut actual = state.actual_pages.to_le_bytes();
        for (index, &byte) in (0u64..).zip(data) {
            let at = offset.saturating_add(index).checked_sub(config::ACTUAL as u64);
            let place = at.and_then(|at| usize::try_from(at).ok());
            if let Some(place) = place.and_then(|at| actual.get_mut(at)) {
                *place = byte;
            }
        }
        state.actual_pages = u32::from_le_bytes(actual);
    }

    fn activate(&self, activation: Activation) {
        let mut queues = activation.queues.into_iter();
        let (inflate, deflate) = (queues.next().flatten(), queues.next().flatten());
        // Of the queues that follow there is one for each feature, in this order.
        let mut rest = queues.flatten();
        let mut take = |bit| if activation.features & bit != 0 { rest.next() } else { None };
        let (statistics, reporting) = (take(feature::STATS_VQ), take(feature::REPORTING));
        self.shared.lock().interrupt = Some(activation.interrupt);
        self.worker.start(Box::new(Traffic {
            shared: Arc::clone(&self.shared),
            inflate,
            deflate,
            statistics,
            reporting,
            held: None,
            doorbell: Arc::clone(self.worker.doorbell()),
        }));
    }

    fn reset(&self) {
        self.worker.stop();
        let mut state = self.shared.lock();
        let (target_pages, released_bytes) = (state.target_pages, state.released_bytes);
        *state = State { target_pages, released_bytes, ..State::default() };
    }
}

/// What the thread works on.
struct Traffic {
    shared: Arc<Shared>,
    inflate: Option<ActiveQueue>,
    deflate: Option<ActiveQueue>,
    statistics: Option<ActiveQueue>,
    reporting: Option<ActiveQueue>,
    /// The driver's statistics buffer, which goes back when new ones are wanted.
    held: Option<Chain>,
    doorbell: Arc<Doorbell>,
}

impl QueueWork for Traffic {
    fn notified(&mut self) {
        match self.work() {
            Ok(false) => {}
            Ok(true) => self.doorbell.ring(),
            Err(error) => {
                let queues =
                    [&mut self.inflate, &mut self.deflate, &mut self.statistics, &mut self.reporting];
                queues.into_iter().flatten().for_each(|queue| queue.fail(&error));
            }
        }
    }
}

impl Traffic {
    /// True if there is more.
    fn work(&mut self) -> Result<bool, RingError> {
        let shared = &self.shared;
        let mut released = 0;
        let mut more = batch(&mut self.inflate, |queue, chain| {
            released += inflate(queue, &chain)?;
            queue.finish(&chain, 0)
        })?;
        more |= batch(&mut self.deflate, |queue, chain| queue.finish(&chain, 0))?;
        more |= batch(&mut self.reporting, |queue, chain| {
            let given = queue.access(|memory| {
                let segments = chain.writable.iter();
                segments.map(|segment| release(memory, segment.address, segment.len.into())).sum::<u64>()
            });
            released += given.unwrap_or(0);
            queue.finish(&chain, 0)
        })?;
        let held = &mut self.held;
        more |= batch(&mut self.statistics, |queue, chain| {
            let statistics = read_statistics(queue, &chain)?;
            tracing::debug!(target: "virtio", ?statistics, "the balloon's statistics");
            shared.lock().statistics = statistics;
            match held.replace(chain) {
                Some(earlier) => queue.finish(&earlier, 0),
                None => Ok(()),
            }
        })?;
        if let (Some(queue), Some(chain)) = (&mut self.statistics, held.take_if(|_| wants_statistics(shared)))
        {
            queue.finish(&chain, 0)?;
        }
        if released > 0 {
            shared.lock().released_bytes += released;
        }
        Ok(more)
    }
}

/// Whether they are wanted; not any more then.
fn wants_statistics(shared: &Shared) -> bool {
    shared.wants_statistics.swap(false, Ordering::SeqCst)
}

/// Has `each` work on the next chains, of which there may be more than a batch then.
fn batch(
    queue: &mut Option<ActiveQueue>,
    mut each: impl FnMut(&mut ActiveQueue, Chain) -> Result<(), RingError>,
) -> Result<bool, RingError> {
    let Some(queue) = queue else { return Ok(false) };
    for _ in 0..BATCH {
        match queue.pop()? {
            Some(chain) => each(queue, chain)?,
            None if queue.has_more()? => {}
            None => return Ok(false),
        }
    }
    Ok(true)
}

/// Gives the pages back that a message names; how many bytes that were. Numbers that are no pages of RAM, or were named before,
/// do no harm.
fn inflate(queue: &mut ActiveQueue, chain: &Chain) -> Result<u64, RingError> {
    let length = total(&chain.readable);
    if length > MOST_PFNS * 4 {
        return Err(queue.bad_buffers(chain, "hold too many pages"));
    }
    let (mut at, mut released) = (0, 0);
    while at < length {
        let (_, rest) = split(&chain.readable, at);
        let (chunk, _) = split(&rest, CHUNK_BYTES);
        at += total(&chunk);
        let Some(bytes) = read(queue, chain, &chunk)? else { return Ok(released) };
        for (first, pages) in runs(&bytes) {
            let (address, len) = (GuestAddress(first << spec::PFN_SHIFT), pages << spec::PFN_SHIFT);
            released += queue.access(|memory| release(memory, address, len)).unwrap_or(0);
            queue.wrote(address, len);
        }
    }
    Ok(released)
}

/// Little-endian page numbers as runs: the first page and how many.
fn runs(bytes: &[u8]) -> Vec<(u64, u64)> {
    let number = |bytes: &[u8; 4]| u64::from(u32::from_le_bytes(*bytes));
    let mut numbers: Vec<u64> = bytes.as_chunks().0.iter().map(number).collect();
    // Drivers give them away from the top down.
    numbers.sort_unstable();
    numbers.dedup();
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((first, pages)) if *first + *pages == number => *pages += 1,
            _ => runs.push((number, 1)),
        }
    }
    runs
}

fn read_statistics(queue: &ActiveQueue, chain: &Chain) -> Result<Vec<(u16, u64)>, RingError> {
    let (start, _) = split(&chain.readable, (MOST_STATISTICS * statistic::BYTES) as u64);
    let bytes = read(queue, chain, &start)?.unwrap_or_default();
    let entry = |&[t0, t1, ref value @ ..]: &[u8; statistic::BYTES]| {
        (u16::from_le_bytes([t0, t1]), u64::from_le_bytes(*value))
    };
    Ok(bytes.as_chunks().0.iter().map(entry).collect())
}

/// The bytes of some of a chain's segments; `None` after a reset.
fn read(queue: &ActiveQueue, chain: &Chain, segments: &[Segment]) -> Result<Option<Vec<u8>>, RingError> {
    let bytes = queue.access(|memory| {
        let mut bytes = Vec::new();
        for segment in segments {
            let slice = segment.slice(memory)?;
            let at = bytes.len();
            bytes.resize(at + slice.len(), 0);
            slice.copy_to(&mut bytes[at..]);
        }
        Some(bytes)
    });
    match bytes {
        None => Ok(None),
        Some(None) => Err(queue.bad_buffers(chain, "are not in memory")),
        Some(bytes) => Ok(bytes),
    }
}

#[cfg(test)]
mod tests;
