//! A port on the device's thread: its queues, and what is on the way.

use std::collections::VecDeque;
use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::port::Port;
use crate::backend::CharEvent;
use crate::virtio::ActiveQueue;
use crate::virtio::queue::{Chain, RingError, Segment, split, total};

/// Bytes that go out before it is another port's turn.
const BUDGET: usize = 1 << 20;
/// What a chain counts for at least.
const CHAIN_COST: usize = 64;
const CHUNK_BYTES: usize = 64 << 10;
/// Output of a console that waits for a slow reader. The driver spins until its bytes are taken, with locks held: so they
/// are, and what is more than this is lost.
const BACKLOG_BYTES: usize = 1 << 20;

/// A chain that has been begun, and how far it has been read.
struct Sending {
    chain: Chain,
    at: u64,
}

/// A port between the queues and the host's end.
pub(super) struct Link {
    /// `None`: there are queues, but no port.
    port: Option<Arc<Port>>,
    receive: Option<ActiveQueue>,
    transmit: Option<ActiveQueue>,
    sending: Option<Sending>,
    backlog: VecDeque<u8>,
    /// The driver has taken the port in.
    pub is_ready: bool,
    /// Somebody is at the host's end.
    pub host_is_open: bool,
    chunk: Vec<u8>,
}

impl Link {
    pub fn new(port: Option<Arc<Port>>, receive: Option<ActiveQueue>, transmit: Option<ActiveQueue>) -> Self {
        let host_is_open =
            port.as_ref().is_some_and(|port| port.options.is_console || port.options.chardev.is_open());
        Self {
            port,
            receive,
            transmit,
            sending: None,
            backlog: VecDeque::new(),
            is_ready: false,
            host_is_open,
            chunk: Vec::new(),
        }
    }

    pub fn port(&self) -> Option<&Arc<Port>> {
        self.port.as_ref()
    }

    /// Rings that make no sense are the driver's, not one queue's.
    pub fn fail(&mut self, error: &RingError) {
        for queue in self.receive.iter_mut().chain(&mut self.transmit) {
            queue.fail(error);
        }
    }

    /// Sends what the driver has made available. True if there is more, and it is another's turn.
    pub fn send(&mut self) -> Result<bool, RingError> {
        self.send_backlog();
        let mut budget = BUDGET;
        while budget > 0 {
            let Some(queue) = &mut self.transmit else { return Ok(false) };
            let mut sending = match self.sending.take() {
                Some(sending) => sending,
                None => match queue.pop()? {
                    Some(chain) => Sending { chain, at: 0 },
                    None if queue.has_more()? => continue,
                    None => return Ok(false),
                },
            };
            let before = sending.at;
            let ended = self.send_chain(&mut sending, budget)?;
            let sent = usize::try_from(sending.at - before).unwrap_or(usize::MAX);
            budget = budget.saturating_sub(sent.max(CHAIN_COST));
            let Some(queue) = &mut self.transmit else { return Ok(false) };
            match ended {
                Progress::Ended => queue.finish(&sending.chain, 0)?,
                Progress::Stuck => {
                    // The host's end says when it takes more.
                    self.sending = Some(sending);
                    return Ok(false);
                }
                Progress::OutOfBudget => self.sending = Some(sending),
            }
        }
        Ok(true)
    }

    fn send_chain(&mut self, sending: &mut Sending, budget: usize) -> Result<Progress, RingError> {
        let Some(queue) = &self.transmit else { return Ok(Progress::Stuck) };
        let length = total(&sending.chain.readable);
        let end = sending.at.saturating_add(budget as u64);
        while sending.at < length {
            if sending.at >= end {
                return Ok(Progress::OutOfBudget);
            }
            let port = match &self.port {
                Some(port) if self.host_is_open => port,
                // There is nobody to have it.
                _ => break,
            };
            let (_, rest) = split(&sending.chain.readable, sending.at);
            let (next, _) = split(&rest, CHUNK_BYTES as u64);
            match queue
                .access(|memory| read(&mut self.chunk, next.iter().map(|segment| segment.slice(memory))))
            {
                None => return Ok(Progress::Stuck),
                Some(None) => return Err(queue.bad_buffers(&sending.chain, "are not in memory")),
                Some(Some(())) => {}
            }
            let chardev = &port.options.chardev;
            let taken = if self.backlog.is_empty() { chardev.try_write(&self.chunk) } else { 0 };
            if taken < self.chunk.len() && port.options.is_console {
                let room = BACKLOG_BYTES.saturating_sub(self.backlog.len());
                self.backlog.extend(self.chunk[taken..].iter().take(room));
                sending.at += self.chunk.len() as u64;
            } else {
                sending.at += taken as u64;
                if taken < self.chunk.len() {
                    return Ok(Progress::Stuck);
                }
            }
        }
        Ok(Progress::Ended)
    }

    fn send_backlog(&mut self) {
        let Some(port) = &self.port else { return };
        while !self.backlog.is_empty() {
            let (next, _) = self.backlog.as_slices();
            let (count, taken) = (next.len(), port.options.chardev.try_write(next));
            self.backlog.drain(..taken);
            if taken < count {
                return;
            }
        }
    }

    /// Gives the driver what has come from the host.
    pub fn fetch(&mut self) -> Result<(), RingError> {
        let (Some(port), Some(queue)) = (&self.port, &mut self.receive) else { return Ok(()) };
        loop {
            let waiting = {
                let input = port.input();
                if input.is_listening { input.staged.len() } else { 0 }
            };
            if waiting == 0 {
                break;
            }
            let chain = match queue.pop()? {
                Some(chain) => chain,
                None if queue.has_more()? => continue,
                // The driver notifies when it has room.
                None => break,
            };
            let room = usize::try_from(total(&chain.writable)).unwrap_or(usize::MAX);
            if room == 0 {
                return Err(queue.bad_buffers(&chain, "have no room"));
            }
            let bytes: Vec<u8> = {
                let mut input = port.input();
                let count = room.min(input.staged.len());
                input.staged.drain(..count).collect()
            };
            write(queue, &chain, &bytes)?;
        }
        port.taken();
        Ok(())
    }

    /// Who came or went at the host's end, once the driver has had what was said before.
    pub fn next_event(&mut self) -> Option<bool> {
        let port = self.port.as_ref()?;
        let mut input = port.input();
        if !input.staged.is_empty() {
            return None;
        }
        let event = input.events.pop_front()?;
        drop(input);
        port.taken();
        let is_open = event == CharEvent::Opened;
        self.host_is_open = is_open;
        if !is_open {
            // The rest of what was meant for who is gone.
            self.backlog.clear();
        }
        Some(is_open)
    }
}

enum Progress {
    Ended,
    /// The host's end takes no more now, or the device has been reset.
    Stuck,
    OutOfBudget,
}

/// Reads all slices into `bytes`; `None`: one of them is not in memory.
fn read<'a>(bytes: &mut Vec<u8>, slices: impl Iterator<Item = Option<VolatileSlice<'a>>>) -> Option<()> {
    bytes.clear();
    for slice in slices {
        let slice = slice?;
        let at = bytes.len();
        bytes.resize(at + slice.len(), 0);
        slice.copy_to(&mut bytes[at..]);
    }
    Some(())
}

/// The first bytes of what the driver has sent: [`CHUNK_BYTES`] at most.
pub(super) fn read_start(queue: &ActiveQueue, chain: &Chain, most: usize) -> Result<Vec<u8>, RingError> {
    let (start, _): (Vec<Segment>, _) = split(&chain.readable, most.min(CHUNK_BYTES) as u64);
    let mut bytes = Vec::new();
    match queue.access(|memory| read(&mut bytes, start.iter().map(|segment| segment.slice(memory)))) {
        Some(None) => Err(queue.bad_buffers(chain, "are not in memory")),
        None | Some(Some(())) => Ok(bytes),
    }
}

/// Writes `bytes`, for which there is room, to the driver's buffers and gives them back.
pub(super) fn write(queue: &mut ActiveQueue, chain: &Chain, bytes: &[u8]) -> Result<(), RingError> {
    let placed = queue.access(|memory| {
        let mut rest = bytes;
        chain.writable.iter().all(|segment| {
            let Some(slice) = segment.slice(memory) else { return false };
            let here = rest.len().min(slice.len());
            slice.copy_from(&rest[..here]);
            rest = &rest[here..];
            true
        })
    });
    match placed {
        None => Ok(()),
        Some(false) => Err(queue.bad_buffers(chain, "are not in memory")),
        Some(true) => queue.finish(chain, u32::try_from(bytes.len()).unwrap_or(u32::MAX)),
    }
}
