//! qcow2 images, with their backing files (QEMU, `docs/interop/qcow2.txt`); the format is imago's work.

mod layout;
mod refcounts;

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use imago::FormatAccess;
use imago::file::File as Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::storage::StorageOpenOptions;
use vm_memory::VolatileSlice;

use super::raw::{RawError, RawOptions, open_file};
use super::{BlockBackend, CacheMode, SECTOR_BYTES};

type Access = FormatAccess<Storage>;

/// Images in a chain at most.
const MAX_CHAIN: usize = 64;

/// Why a qcow2 image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Qcow2Error {
    /// One of its files cannot be used.
    #[error("{}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: RawError,
    },
    /// The content of one of its files makes no sense.
    #[error("{}: not a usable qcow2 image", path.display())]
    Format {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The image needs something that is not built.
    #[error("{}: {what}", path.display())]
    Unsupported {
        /// Which.
        path: PathBuf,
        /// What.
        what: &'static str,
    },
    /// A file is among its own backing files.
    #[error("{}: its backing files lead back to it", path.display())]
    Circle {
        /// Which.
        path: PathBuf,
    },
}

/// An open qcow2 image.
pub struct Qcow2Image {
    access: Access,
    options: RawOptions,
    /// The image is as long as a cluster at least: the library's way to zero a shorter one zeroes what is beside the range.
    has_cluster: bool,
}

/// What has been opened of a chain: device and inode of each file.
#[derive(Default)]
struct Chain(BTreeSet<(u64, u64)>);

impl Chain {
    fn open(&mut self, path: &Path, options: &RawOptions) -> Result<Storage, Qcow2Error> {
        let error = |source| Qcow2Error::File { path: path.into(), source };
        let file = open_file(path, options).map_err(error)?;
        let known = file.metadata().map_err(|source| error(RawError::Open(source)))?;
        if !self.0.insert((known.dev(), known.ino())) || self.0.len() > MAX_CHAIN {
            return Err(Qcow2Error::Circle { path: path.into() });
        }
        let opened = StorageOpenOptions::new()
            .filename(path)
            .write(!options.read_only)
            .direct(options.cache.is_direct());
        Storage::from_open_file(file, opened).map_err(|source| error(RawError::Open(source)))
    }

    /// The image, and the bytes of its clusters.
    fn qcow2(&mut self, path: &Path, options: &RawOptions) -> Result<(Access, u64), Qcow2Error> {
        let bad = |source| Qcow2Error::Format { path: path.into(), source };
        let unsupported = |what| Qcow2Error::Unsupported { path: path.into(), what };
        let storage = self.open(path, options)?;
        let read_back = std::fs::File::open(path).map_err(bad)?;
        let cluster = layout::check(&read_back, !options.read_only).map_err(bad)?;
        let mut image = Qcow2::<Storage, Access>::open_image(storage, !options.read_only).map_err(bad)?;
        if image.requires_external_data_file() {
            return Err(unsupported("a qcow2 image with its data in another file is not built yet"));
        }
        let backing = match image.implicit_backing_file().cloned() {
            None => None,
            Some(name) if name.contains(':') => {
                return Err(unsupported("a backing file that is not a file of this host is not built yet"));
            }
            Some(name) => {
                let below = path.parent().unwrap_or(Path::new(".")).join(name);
                let format = image.implicit_backing_format().cloned();
                Some(self.backing(path, &below, format.as_deref(), options)?)
            }
        };
        image.set_backing(backing);
        Ok((FormatAccess::new(image), cluster))
    }

    fn backing(
        &mut self,
        above: &Path,
        path: &Path,
        format: Option<&str>,
        options: &RawOptions,
    ) -> Result<Access, Qcow2Error> {
        let options = RawOptions { read_only: true, ..*options };
        let unsupported = |what| Qcow2Error::Unsupported { path: above.into(), what };
        match format {
            Some("qcow2") => Ok(self.qcow2(path, &options)?.0),
            Some("raw") => {
                let image = Raw::open_image(self.open(path, &options)?, false);
                image
                    .map(FormatAccess::new)
                    .map_err(|source| Qcow2Error::Format { path: path.into(), source })
            }
            Some(_) => Err(unsupported("the format of its backing file is not built yet")),
            // What the guest wrote there could be made to look like any format.
            None => Err(unsupported("does not say of which format its backing file is")),
        }
    }
}

impl Qcow2Image {
    /// Opens `path` and its backing files, these read-only. Creates nothing.
    pub fn open(path: &Path, options: RawOptions) -> Result<Self, Qcow2Error> {
        let (access, cluster) = Chain::default().qcow2(path, &options)?;
        let has_cluster = access.size() >= cluster;
        Ok(Self { access, options, has_cluster })
    }
}

impl BlockBackend for Qcow2Image {
    fn capacity(&self) -> u64 {
        self.access.size() / SECTOR_BYTES * SECTOR_BYTES
    }

    fn is_read_only(&self) -> bool {
        self.options.read_only
    }

    fn read(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        let (vector, _guards) = IoVectorMut::from_volatile_slice(buffers);
        self.access.readv(vector, offset)
    }

    fn write(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        let (vector, _guards) = IoVector::from_volatile_slice(buffers);
        self.access.writev(vector, offset)
    }

    fn flush(&self) -> io::Result<()> {
        if self.options.read_only {
            return Ok(());
        }
        // The tables first come out of their cache, then everything to the disk.
        self.access.flush()?;
        if self.options.cache == CacheMode::Unsafe { Ok(()) } else { self.access.sync() }
    }

    /// Giving clusters back needs the image for oneself, which other queues' requests have too: the guest is told that it
    /// may do without the content, which is all that it asks for.
    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, _may_unmap: bool) -> io::Result<()> {
        if self.has_cluster {
            return self.access.write_zeroes(offset, len);
        }
        let end = offset.checked_add(len).filter(|&end| end <= self.access.size());
        end.ok_or(io::ErrorKind::InvalidInput)?;
        self.write(offset, &[VolatileSlice::from(&mut vec![0; len as usize][..])])
    }
}

#[cfg(test)]
mod tests;
