//! Decompression of what Linux's build compresses (Linux, *The Linux/x86 Boot Protocol*, `payload_offset`; lib/decompress.c;
//! LZ4, *Legacy frame*).
//!
//! The output is handed on piece by piece: nobody holds a whole kernel, and no length in the input is believed further than
//! `limit`.

use std::io::{self, BufRead, BufReader, Read};

/// A compression that kernels and initial RAM disks of Debian and Ubuntu come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Gzip,
    Xz,
    Lz4,
    Zstd,
}

/// Why something could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The input cannot be read, or is not what its format says.
    #[error("cannot be decompressed")]
    Input(#[from] io::Error),
    /// There is more of it than there may be.
    #[error("is longer than announced")]
    TooLong,
    /// What is inside is not what is looked for.
    #[error("holds {0}")]
    Content(&'static str),
    /// It could not be put into guest memory.
    #[error("could not be written to guest memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// Where output goes.
pub type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> Result<(), UnpackError>;

const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// What a block of the legacy frame holds at most, and what that becomes if it cannot be compressed.
const LZ4_BLOCK: usize = 8 << 20;
const LZ4_BLOCK_PACKED: usize = LZ4_BLOCK + LZ4_BLOCK / 255 + 16;
/// The dictionary of Linux's build is 32 or 128 MiB at most.
const XZ_MEMORY_KIB: u32 = 192 << 10;
const PIECE: usize = 256 << 10;

impl Format {
    /// The format of what begins with `start`.
    pub fn of(start: &[u8]) -> Option<Self> {
        match start {
            [0x1f, 0x8b, 8, ..] => Some(Format::Gzip),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Format::Xz),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Format::Zstd),
            _ if start.starts_with(&LZ4_LEGACY) => Some(Format::Lz4),
            _ => None,
        }
    }

    /// Whether the kernel's build appends the unpacked length: gzip has it of its own.
    pub fn length_is_appended(self) -> bool {
        self != Format::Gzip
    }

    /// Unpacks `from`, which ends with the packed data, to `sink`: at most `limit` bytes.
    pub fn unpack(self, from: impl Read, limit: u64, sink: Sink) -> Result<(), UnpackError> {
        let from = BufReader::with_capacity(PIECE, from);
        match self {
            Format::Gzip => stream(flate2::bufread::GzDecoder::new(from), limit, sink),
            Format::Xz => {
                stream(lzma_rust2::XzReader::new_mem_limit(from, false, XZ_MEMORY_KIB), limit, sink)
            }
            Format::Zstd => {
                let decoder = ruzstd::decoding::StreamingDecoder::new(from).map_err(io::Error::other)?;
                stream(decoder, limit, sink)
            }
            Format::Lz4 => lz4(from, limit, sink),
        }
    }
}

fn stream(mut from: impl Read, limit: u64, sink: Sink) -> Result<(), UnpackError> {
    let (mut piece, mut left) = (vec![0; PIECE], limit);
    loop {
        let got = match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        left = left.checked_sub(got as u64).ok_or(UnpackError::TooLong)?;
        sink(&piece[..got])?;
    }
}

/// The legacy frame: blocks without links, each behind its length.
fn lz4(mut from: impl BufRead, limit: u64, sink: Sink) -> Result<(), UnpackError> {
    let mut word = [0; 4];
    from.read_exact(&mut word)?;
    if word != LZ4_LEGACY {
        return Err(io::Error::from(io::ErrorKind::InvalidData).into());
    }
    let (mut packed, mut block, mut left) = (Vec::new(), Vec::new(), limit);
    while !from.fill_buf()?.is_empty() {
        from.read_exact(&mut word)?;
        let length = u32::from_le_bytes(word) as usize;
        if length > LZ4_BLOCK_PACKED {
            return Err(io::Error::from(io::ErrorKind::InvalidData).into());
        }
        packed.resize(length, 0);
        from.read_exact(&mut packed)?;
        block.resize(LZ4_BLOCK, 0);
        let got = lz4_flex::block::decompress_into(&packed, &mut block).map_err(io::Error::other)?;
        left = left.checked_sub(got as u64).ok_or(UnpackError::TooLong)?;
        sink(&block[..got])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
