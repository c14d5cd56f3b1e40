//! A throw-away overlay: what the guest writes goes to a file without a name, the image below stays as it is
//! (QEMU, *-snapshot*).

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, RwLock};

use vm_memory::VolatileSlice;

use super::direct::AlignedFile;
use super::raw::is_unsupported;
use super::vectored::{AlignedBuffer, fallocate};
use super::{BlockBackend, part, total};

const LOCK: &str = "no holder of the map's lock panics";

/// Unit in which the overlay hides the image, in bytes.
const CLUSTER: u64 = 4096;

/// Which clusters are in the overlay: stretches of them, the first one and the one after the last, that do not touch. So it is as
/// large as what is written is scattered, however large the image says that it is.
#[derive(Default)]
struct Map(BTreeMap<u64, u64>);

impl Map {
    fn has(&self, cluster: u64) -> bool {
        self.0.range(..=cluster).next_back().is_some_and(|(_, &end)| cluster < end)
    }

    /// Whether `cluster` is there, and the next one of which the opposite is true, if there is one.
    fn look(&self, cluster: u64) -> (bool, Option<u64>) {
        match self.0.range(..=cluster).next_back() {
            Some((_, &end)) if cluster < end => (true, Some(end)),
            _ => (false, self.0.range(cluster..).next().map(|(&start, _)| start)),
        }
    }

    fn set(&mut self, clusters: Range<u64>) {
        let Range { mut start, mut end } = clusters;
        if let Some((&before, &ends)) = self.0.range(..start).next_back()
            && ends >= start
        {
            start = before;
        }
        while let Some((&within, &ends)) = self.0.range(start..=end).next() {
            end = end.max(ends);
            self.0.remove(&within);
        }
        self.0.insert(start, end);
    }
}

/// An image that is never written to, under a file that goes with the program.
pub struct Overlay {
    image: Arc<dyn BlockBackend>,
    file: AlignedFile,
    map: RwLock<Map>,
}

impl Overlay {
    /// An empty overlay over `image`, which is open read-only. Its file is in `folder`, without a name there.
    pub fn new(image: Arc<dyn BlockBackend>, folder: &Path) -> io::Result<Self> {
        let file = nameless_file(folder)?;
        Ok(Self { image, file: AlignedFile::new(file, false), map: RwLock::default() })
    }

    /// The range in stretches that are each wholly in the overlay or wholly not: offset from its start, bytes, which.
    fn stretches(map: &Map, offset: u64, len: u64) -> Vec<(u64, u64, bool)> {
        let (mut stretches, mut at, range_end) = (Vec::new(), offset, offset + len);
        while at < range_end {
            let (ours, next) = map.look(at / CLUSTER);
            let end = next.map_or(range_end, |next| range_end.min(next * CLUSTER));
            stretches.push((at - offset, end - at, ours));
            at = end;
        }
        stretches
    }

    /// Brings the cluster over from the image, if it is not there yet: a part of it is going to be written.
    fn copy_up(&self, map: &mut Map, cluster: u64) -> io::Result<()> {
        let start = cluster * CLUSTER;
        if start >= self.image.capacity() || map.has(cluster) {
            return Ok(());
        }
        let len = CLUSTER.min(self.image.capacity() - start);
        let mut copy = AlignedBuffer::new(usize::try_from(len).expect("a cluster"));
        self.image.read(start, &[copy.slice()])?;
        self.file.write(start, &[copy.slice()])?;
        map.set(cluster..cluster + 1);
        Ok(())
    }

    /// Has `write` fill the range in the file, which from then on hides the image there.
    fn replace(&self, offset: u64, len: u64, write: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let end = offset + len;
        let mut map = self.map.write().expect(LOCK);
        if !offset.is_multiple_of(CLUSTER) {
            self.copy_up(&mut map, offset / CLUSTER)?;
        }
        if !end.is_multiple_of(CLUSTER) && end < self.capacity() {
            self.copy_up(&mut map, end / CLUSTER)?;
        }
        write()?;
        map.set(offset / CLUSTER..end.div_ceil(CLUSTER));
        Ok(())
    }
}

/// A file that is gone when the program is. A file system without such files gets one whose name is taken away at once.
fn nameless_file(folder: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    match options.clone().custom_flags(libc::O_TMPFILE | libc::O_CLOEXEC).open(folder) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {
            vmm_sys_util::tempfile::TempFile::new_in(folder)
                .map(|file| file.into_file())
                .map_err(|error| io::Error::from_raw_os_error(error.errno()))
        }
        result => result,
    }
}

impl BlockBackend for Overlay {
    fn capacity(&self) -> u64 {
        self.image.capacity()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        let map = self.map.read().expect(LOCK);
        for (skip, len, ours) in Self::stretches(&map, offset, total(buffers)) {
            let buffers = part(buffers, skip, len);
            if ours {
                self.file.read(offset + skip, &buffers)?;
            } else {
                self.image.read(offset + skip, &buffers)?;
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        let len = total(buffers);
        if len == 0 {
            return Ok(());
        }
        self.replace(offset, len, || self.file.write(offset, buffers))
    }

    /// Nothing of it outlives the program.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, _may_unmap: bool) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        self.replace(offset, len, || {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            match fallocate(self.file.file(), mode, offset, len) {
                Err(error) if is_unsupported(&error) => {}
                result => return result,
            }
            let mut zeros =
                AlignedBuffer::new(usize::try_from(len.min(1 << 20)).expect("a megabyte at most"));
            let zeros = zeros.slice();
            let mut done = 0;
            while done < len {
                let here = (len - done).min(1 << 20);
                let piece = zeros.subslice(0, usize::try_from(here).expect("a megabyte at most"));
                self.file.write(offset + done, &[piece.expect("within the buffer")])?;
                done += here;
            }
            Ok(())
        })
    }
}
