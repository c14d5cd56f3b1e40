//! virtio-blk: a disk (Virtio 1.2, *Block Device*).

mod request;
pub mod spec;

use std::io;
use std::sync::Arc;

use self::request::{Disk, QueueThread};
use self::spec::{config, feature};
use super::worker::{Pace, Worker};
use super::{Activation, Doorbell, VirtioDevice};
use crate::backend::block::{BlockBackend, SECTOR_BYTES};

/// Segments of a request at most: what a queue of [`QUEUE_SIZE`] holds beside header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
const QUEUE_SIZE: u16 = 256;
/// Queues at most.
pub const MAX_QUEUES: u16 = 16;
/// Sectors and ranges of one request to discard or to zero.
const MAX_RANGE_SECTORS: u32 = u32::MAX;
const MAX_RANGES: u32 = 1;

/// What a disk shows of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkOptions {
    /// Its name, of which 20 bytes are shown.
    pub serial: String,
    /// Queues: 1 to [`MAX_QUEUES`].
    pub num_queues: u16,
    /// Bytes of a block, a power of two from 512 to 32768.
    pub logical_block_size: u32,
    /// Bytes of what the disk writes at once, the same at least.
    pub physical_block_size: u32,
    /// Writes wait in a cache until the guest's flush. Otherwise each is flushed as it is written.
    pub write_cache: bool,
    /// The guest may discard and zero ranges.
    pub discard: bool,
}

impl Default for BlkOptions {
    fn default() -> Self {
        Self {
            serial: String::new(),
            num_queues: 1,
            logical_block_size: 512,
            physical_block_size: 512,
            write_cache: true,
            discard: true,
        }
    }
}

/// The device.
pub struct Blk {
    disk: Arc<Disk>,
    features: u64,
    config: [u8; config::BYTES],
    sizes: Vec<u16>,
    workers: Vec<Worker>,
    doorbells: Vec<Arc<Doorbell>>,
}

impl Blk {
    /// A disk with `backend` behind it.
    pub fn new(backend: Arc<dyn BlockBackend>, options: &BlkOptions, pace: &Pace) -> io::Result<Arc<Self>> {
        let mut features = feature::SEG_MAX | feature::BLK_SIZE | feature::TOPOLOGY;
        if backend.is_read_only() {
            features |= feature::RO;
        } else {
            if options.write_cache {
                features |= feature::FLUSH;
            }
            if options.discard {
                features |= feature::DISCARD | feature::WRITE_ZEROES;
            }
        }
        if options.num_queues > 1 {
            features |= feature::MQ;
        }
        let workers = (0..options.num_queues).map(|_| Worker::new("virtio-blk", pace));
        let workers = workers.collect::<io::Result<Vec<_>>>()?;
        Ok(Arc::new(Self {
            features,
            config: config_space(backend.capacity(), options),
            disk: Arc::new(Disk::new(backend, &options.serial)),
            sizes: vec![QUEUE_SIZE; options.num_queues.into()],
            doorbells: workers.iter().map(|worker| Arc::clone(worker.doorbell())).collect(),
            workers,
        }))
    }

    /// What is behind it.
    pub fn backend(&self) -> &Arc<dyn BlockBackend> {
        self.disk.backend()
    }
}

fn config_space(capacity: u64, options: &BlkOptions) -> [u8; config::BYTES] {
    let mut space = [0; config::BYTES];
    let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
    put(config::CAPACITY, &(capacity / SECTOR_BYTES).to_le_bytes());
    put(config::SEG_MAX, &SEG_MAX.to_le_bytes());
    put(config::BLK_SIZE, &options.logical_block_size.to_le_bytes());
    let exponent = (options.physical_block_size / options.logical_block_size).max(1).ilog2();
    put(config::TOPOLOGY, &[u8::try_from(exponent).expect("below 32")]);
    put(config::NUM_QUEUES, &options.num_queues.to_le_bytes());
    let alignment = options.logical_block_size / SECTOR_BYTES as u32;
    for (at, value) in [(0, MAX_RANGE_SECTORS), (4, MAX_RANGES), (8, alignment)] {
        put(config::MAX_DISCARD_SECTORS + at, &value.to_le_bytes());
    }
    for (at, value) in [(0, MAX_RANGE_SECTORS), (4, MAX_RANGES)] {
        put(config::MAX_WRITE_ZEROES_SECTORS + at, &value.to_le_bytes());
    }
    put(config::MAX_WRITE_ZEROES_SECTORS + 8, &[1]);
    space
}

impl VirtioDevice for Blk {
    fn name(&self) -> &'static str {
        "virtio-blk"
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
        &self.workers
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&self, activation: Activation) {
        // A driver that does not know of a cache relies on there being none.
        let write_through = activation.features & feature::FLUSH == 0;
        for (worker, queue) in self.workers.iter().zip(activation.queues) {
            if let Some(queue) = queue {
                worker.start(Box::new(QueueThread::new(Arc::clone(&self.disk), queue, write_through)));
            }
        }
    }
}

#[cfg(test)]
mod tests;
