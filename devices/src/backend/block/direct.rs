//! Files that want their accesses aligned: O_DIRECT (open(2)).

use std::fs::File;
use std::io;
use std::sync::RwLock;

use vm_memory::VolatileSlice;

use super::vectored::{ALIGNMENT, AlignedBuffer, read_at, write_at};
use super::{part, total};

const LOCK: &str = "no holder of this lock panics";

/// Most that is copied at a time, a multiple of [`ALIGNMENT`].
const COPY_BYTES: u64 = 1 << 20;

/// A file, and how its accesses are aligned.
pub struct AlignedFile {
    file: File,
    /// Positions, lengths and addresses are multiples of this; 1: no matter.
    align: u64,
    /// Held alone while a block is read, changed and written.
    partial: RwLock<()>,
}

/// The outermost multiples of `align` around the range.
fn around(offset: u64, len: u64, align: u64) -> (u64, u64) {
    let start = offset / align * align;
    (start, (offset + len).next_multiple_of(align) - start)
}

impl AlignedFile {
    /// `file`; `direct`: it is open with O_DIRECT.
    pub fn new(file: File, direct: bool) -> Self {
        let align = if direct { probe(&file) } else { 1 };
        Self { file, align, partial: RwLock::new(()) }
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    fn fits(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> bool {
        let fits = |value: u64| value.is_multiple_of(self.align);
        let in_memory = |buffer: &VolatileSlice<'_>| {
            fits(buffer.ptr_guard().as_ptr() as u64) && fits(buffer.len() as u64)
        };
        self.align == 1 || fits(offset) && buffers.iter().all(in_memory)
    }

    /// Fills `buffers`; what is beyond the end of the file reads as zero.
    pub fn read(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        let len = total(buffers);
        if self.fits(offset, buffers) {
            return read_all(&self.file, offset, buffers);
        }
        let mut done = 0;
        while done < len {
            let here = (len - done).min(COPY_BYTES);
            let (start, around) = around(offset + done, here, self.align);
            let mut copy = AlignedBuffer::new(usize::try_from(around).expect("about a megabyte"));
            read_all(&self.file, start, &[copy.slice()])?;
            let mut skip = usize::try_from(offset + done - start).expect("less than the alignment");
            for piece in part(buffers, done, here) {
                piece.copy_from(&copy.bytes()[skip..][..piece.len()]);
                skip += piece.len();
            }
            done += here;
        }
        Ok(())
    }

    /// Writes `buffers`.
    pub fn write(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        let len = total(buffers);
        if self.fits(offset, buffers) {
            let _shared = self.partial.read().expect(LOCK);
            return write_all(&self.file, offset, buffers);
        }
        let mut done = 0;
        while done < len {
            let here = (len - done).min(COPY_BYTES);
            let (start, around) = around(offset + done, here, self.align);
            let mut copy = AlignedBuffer::new(usize::try_from(around).expect("about a megabyte"));
            let (_shared, _alone);
            if around == here {
                _shared = self.partial.read().expect(LOCK);
            } else {
                _alone = self.partial.write().expect(LOCK);
                read_all(&self.file, start, &[copy.slice()])?;
            }
            let mut skip = usize::try_from(offset + done - start).expect("less than the alignment");
            for piece in part(buffers, done, here) {
                piece.copy_to(&mut copy.bytes()[skip..][..piece.len()]);
                skip += piece.len();
            }
            write_all(&self.file, start, &[copy.slice()])?;
            done += here;
        }
        Ok(())
    }
}

/// What an O_DIRECT file wants: the smallest that works, as the kernel does not say everywhere.
fn probe(file: &File) -> u64 {
    let mut copy = AlignedBuffer::new(ALIGNMENT);
    let slice = copy.slice();
    let works = |align: usize| {
        let small = slice.subslice(0, align).expect("within the buffer");
        // At an address that is a multiple of no more.
        let other = slice.subslice(align % ALIGNMENT, align).expect("within the buffer");
        read_at(file, 0, &[small]).is_ok() && read_at(file, align as u64, &[other]).is_ok()
    };
    if works(512) { 512 } else { ALIGNMENT as u64 }
}

fn read_all(file: &File, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
    let len = total(buffers);
    let mut done = 0;
    while done < len {
        let rest = part(buffers, done, len - done);
        match read_at(file, offset + done, &rest) {
            Ok(0) => {
                for buffer in rest {
                    zero(&buffer);
                }
                return Ok(());
            }
            Ok(read) => done += read as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn write_all(file: &File, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
    let len = total(buffers);
    let mut done = 0;
    while done < len {
        match write_at(file, offset + done, &part(buffers, done, len - done)) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => done += written as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Fills a buffer with zeros.
pub fn zero(buffer: &VolatileSlice<'_>) {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut at = 0;
    while at < buffer.len() {
        let here = (buffer.len() - at).min(ZEROS.len());
        buffer.subslice(at, here).expect("within the buffer").copy_from(&ZEROS[..here]);
        at += here;
    }
}
