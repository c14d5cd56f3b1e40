//! The block device's requests.

use std::io;
use std::sync::Arc;

use vm_memory::{Bytes, GuestMemoryMmap, VolatileSlice};

use super::spec::{HEADER_BYTES, ID_BYTES, RANGE_BYTES, SECTOR_BYTES, UNMAP, request, status};
use crate::backend::block::BlockBackend;
use crate::virtio::queue::{ActiveQueue, Chain, RingError, Segment, split, total};
use crate::virtio::worker::QueueWork;

/// What the queues of a disk share.
pub struct Disk {
    backend: Arc<dyn BlockBackend>,
    id: [u8; ID_BYTES],
}

impl Disk {
    pub fn new(backend: Arc<dyn BlockBackend>, serial: &str) -> Self {
        let mut id = [0; ID_BYTES];
        let len = serial.len().min(ID_BYTES);
        id[..len].copy_from_slice(&serial.as_bytes()[..len]);
        Self { backend, id }
    }

    pub fn backend(&self) -> &Arc<dyn BlockBackend> {
        &self.backend
    }
}

/// Why a request is refused.
#[derive(Debug)]
enum Refusal {
    /// It makes no sense, or is outside the disk.
    Bad(&'static str),
    /// There is no such request.
    Unsupported,
    /// The host could not.
    Host(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

/// Works on one queue of a disk.
pub struct QueueThread {
    disk: Arc<Disk>,
    queue: Option<ActiveQueue>,
    write_through: bool,
}

impl QueueThread {
    pub fn new(disk: Arc<Disk>, queue: ActiveQueue, write_through: bool) -> Self {
        Self { disk, queue: Some(queue), write_through }
    }
}

impl QueueWork for QueueThread {
    fn notified(&mut self) {
        let Some(mut queue) = self.queue.take() else { return };
        let work = Work { disk: &self.disk, write_through: self.write_through };
        queue.work(|queue, chain| work.serve(queue, &chain));
        self.queue = Some(queue);
    }
}

struct Work<'a> {
    disk: &'a Disk,
    write_through: bool,
}

/// The buffers between header and status.
struct Data {
    /// To write.
    from_guest: Vec<Segment>,
    /// To read into.
    to_guest: Vec<Segment>,
}

impl Work<'_> {
    /// Serves one request and gives it back. `Err`: there is nowhere to put the status.
    fn serve(&self, queue: &mut ActiveQueue, chain: &Chain) -> Result<(), RingError> {
        let room = total(&chain.writable);
        if room == 0 {
            return Err(queue.bad_buffers(chain, "have no room for the status"));
        }
        let (header, from_guest) = split(&chain.readable, HEADER_BYTES);
        let (to_guest, status_byte) = split(&chain.writable, room - 1);
        let data = Data { from_guest, to_guest };
        let served = queue.access(|memory| {
            let mut bytes = [0; HEADER_BYTES as usize];
            let whole = gather(memory, &header, &mut bytes);
            let result = if whole {
                let kind = u32::from_le_bytes(bytes[..4].try_into().expect("4 bytes"));
                let sector = u64::from_le_bytes(bytes[8..].try_into().expect("8 bytes"));
                self.perform(memory, kind, sector, &data)
            } else {
                Err(Refusal::Bad("the header is not whole"))
            };
            let (code, written) = match result {
                Ok(written) => (status::OK, written),
                Err(refusal) => (refused(&refusal), 0),
            };
            let placed =
                status_byte.iter().all(|segment| memory.write_slice(&[code], segment.address).is_ok());
            // The status is the last byte of what was written, whatever lies before it.
            let written = if code == status::OK { written + 1 } else { room };
            placed.then(|| u32::try_from(written).unwrap_or(u32::MAX))
        });
        match served {
            // Reset meanwhile: nobody waits for it.
            None => Ok(()),
            Some(None) => Err(queue.bad_buffers(chain, "have the status outside of memory")),
            Some(Some(written)) => queue.finish(chain, written),
        }
    }

    /// Bytes that were written for the guest.
    fn perform(&self, memory: &GuestMemoryMmap, kind: u32, sector: u64, data: &Data) -> Result<u64, Refusal> {
        let backend = &self.disk.backend;
        let writes = matches!(kind, request::OUT | request::DISCARD | request::WRITE_ZEROES);
        if writes && backend.is_read_only() {
            return Err(Refusal::Bad("the disk is read-only"));
        }
        match kind {
            request::IN => {
                let (offset, slices) = self.place(memory, sector, &data.to_guest)?;
                backend.read(offset, &slices)?;
                Ok(total(&data.to_guest))
            }
            request::OUT => {
                let (offset, slices) = self.place(memory, sector, &data.from_guest)?;
                backend.write(offset, &slices)?;
                self.written()
            }
            request::FLUSH => {
                backend.flush()?;
                Ok(0)
            }
            request::GET_ID => {
                let len = total(&data.to_guest).min(ID_BYTES as u64);
                let (room, _) = split(&data.to_guest, len);
                let mut id = &self.disk.id[..];
                for segment in &room {
                    let slice = segment.slice(memory).ok_or(Refusal::Bad("a buffer is not in memory"))?;
                    slice.copy_from(&id[..slice.len()]);
                    id = &id[slice.len()..];
                }
                Ok(len)
            }
            request::DISCARD | request::WRITE_ZEROES => {
                let mut range = [0; RANGE_BYTES as usize];
                if total(&data.from_guest) != RANGE_BYTES || !gather(memory, &data.from_guest, &mut range) {
                    return Err(Refusal::Bad("not one range"));
                }
                self.change_range(kind, &range)?;
                self.written()
            }
            _ => Err(Refusal::Unsupported),
        }
    }

    fn change_range(&self, kind: u32, range: &[u8; RANGE_BYTES as usize]) -> Result<(), Refusal> {
        let word = |at: usize| u32::from_le_bytes(range[at..at + 4].try_into().expect("4 bytes"));
        let sector = u64::from_le_bytes(range[..8].try_into().expect("8 bytes"));
        let (sectors, flags) = (word(8), word(12));
        let len = u64::from(sectors) * SECTOR_BYTES;
        let offset = self.offset(sector, len)?;
        // Discarding knows no flag, zeroing one (Virtio 1.2, *Device Operation*).
        let known = if kind == request::WRITE_ZEROES { UNMAP } else { 0 };
        if flags & !known != 0 {
            return Err(Refusal::Unsupported);
        }
        if len == 0 {
            return Ok(());
        }
        match kind {
            request::DISCARD => self.disk.backend.discard(offset, len)?,
            _ => self.disk.backend.write_zeroes(offset, len, flags & UNMAP != 0)?,
        }
        Ok(())
    }

    /// The disk was written to.
    fn written(&self) -> Result<u64, Refusal> {
        if self.write_through {
            self.disk.backend.flush()?;
        }
        Ok(0)
    }

    /// Where `len` bytes at `sector` are, if they are on the disk.
    fn offset(&self, sector: u64, len: u64) -> Result<u64, Refusal> {
        let offset = sector.checked_mul(SECTOR_BYTES);
        let end = offset.and_then(|offset| offset.checked_add(len));
        match (offset, end) {
            (Some(offset), Some(end)) if end <= self.disk.backend.capacity() => Ok(offset),
            _ => Err(Refusal::Bad("behind the end of the disk")),
        }
    }

    fn place<'m>(
        &self,
        memory: &'m GuestMemoryMmap,
        sector: u64,
        segments: &[Segment],
    ) -> Result<(u64, Vec<VolatileSlice<'m>>), Refusal> {
        let len = total(segments);
        if !len.is_multiple_of(SECTOR_BYTES) {
            return Err(Refusal::Bad("not whole sectors"));
        }
        let offset = self.offset(sector, len)?;
        let slices = segments.iter().map(|segment| segment.slice(memory)).collect::<Option<_>>();
        Ok((offset, slices.ok_or(Refusal::Bad("a buffer is not in memory"))?))
    }
}

fn refused(refusal: &Refusal) -> u8 {
    match refusal {
        Refusal::Bad(why) => {
            tracing::debug!(target: "virtio", why, "disk request refused");
            status::IOERR
        }
        Refusal::Unsupported => status::UNSUPP,
        Refusal::Host(error) => {
            tracing::warn!(target: "virtio", %error, "disk request failed");
            status::IOERR
        }
    }
}

/// Copies what `segments` hold; false where they are not in memory or hold less.
fn gather(memory: &GuestMemoryMmap, segments: &[Segment], into: &mut [u8]) -> bool {
    let mut rest = into;
    for segment in segments {
        let Some(slice) = segment.slice(memory) else { return false };
        let len = slice.len().min(rest.len());
        let (here, behind) = rest.split_at_mut(len);
        slice.copy_to(here);
        rest = behind;
    }
    rest.is_empty()
}
