//! virtio-rng: random bytes (Virtio 1.2, *Entropy Device*).

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use super::queue::{ActiveQueue, total};
use super::worker::{Pace, QueueWork, Worker};
use super::{Activation, Doorbell, VirtioDevice};

const DEVICE_ID: u32 = 4;
const QUEUE_SIZES: [u16; 1] = [64];
/// What one request gets at most. It gets one byte at least.
const MOST_BYTES: u64 = 64 << 10;

/// The device.
pub struct Rng {
    source: Arc<File>,
    worker: Worker,
    doorbells: [Arc<Doorbell>; 1],
}

impl Rng {
    /// Bytes come from `source`, such as `/dev/urandom`.
    pub fn new(source: File, pace: &Pace) -> io::Result<Arc<Self>> {
        let worker = Worker::new("virtio-rng", pace)?;
        let doorbells = [Arc::clone(worker.doorbell())];
        Ok(Arc::new(Self { source: Arc::new(source), worker, doorbells }))
    }
}

struct Requests {
    source: Arc<File>,
    queue: ActiveQueue,
}

impl QueueWork for Requests {
    fn notified(&mut self) {
        let source = &self.source;
        self.queue.work(|queue, chain| {
            let wanted = total(&chain.writable).min(MOST_BYTES);
            if wanted == 0 {
                return Err(queue.bad_buffers(&chain, "have no room"));
            }
            let mut bytes = vec![0; usize::try_from(wanted).expect("64 KiB at most")];
            // The source may block for as long as it likes: no guest memory is held meanwhile.
            let read = match (&**source).read(&mut bytes) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) => {
                    tracing::warn!(target: "virtio", %error, "no random bytes to be had");
                    return Ok(());
                }
            };
            let placed = queue.access(|memory| {
                let mut rest = &bytes[..read];
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
                Some(false) => Err(queue.bad_buffers(&chain, "are not in memory")),
                Some(true) => queue.finish(&chain, u32::try_from(read).expect("64 KiB at most")),
            }
        });
    }
}

impl VirtioDevice for Rng {
    fn name(&self) -> &'static str {
        "virtio-rng"
    }

    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn doorbells(&self) -> &[Arc<Doorbell>] {
        &self.doorbells
    }

    fn workers(&self) -> &[Worker] {
        std::slice::from_ref(&self.worker)
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn activate(&self, activation: Activation) {
        if let Some(queue) = activation.queues.into_iter().next().flatten() {
            self.worker.start(Box::new(Requests { source: Arc::clone(&self.source), queue }));
        }
    }
}
