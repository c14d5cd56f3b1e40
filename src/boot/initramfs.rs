//! Unpacking an initial RAM disk before the guest has to (Linux, *initramfs buffer format*).
//!
//! A kernel takes an archive as it is or compressed. Only a file that is wholly gzip around cpio archives is touched; what is
//! unpacked costs the guest that much more memory until it has been read, so there is a limit.

use std::io::Read;

use flate2::bufread::GzDecoder;

use super::unpack::Format;

/// `newc` and `crc` archives begin with one of these.
const MAGIC: [&[u8]; 2] = [b"070701", b"070702"];
/// Deflate makes no more than so many bytes of one.
const MOST_RATIO: usize = 1032;
/// Archives begin at multiples of this.
const ALIGNMENT: usize = 4;

/// The archives in `packed`, if that is what it is and they have at most `limit` bytes.
pub fn unpack(packed: &[u8], limit: usize) -> Option<Vec<u8>> {
    // The last member's length, modulo 4 GiB, ends the file: a lie costs time, not memory.
    let promised = u32::from_le_bytes(packed.last_chunk().copied()?) as usize;
    if promised > limit || packed.len() > limit {
        return None;
    }
    let mut archives = Vec::with_capacity(promised.min(packed.len().saturating_mul(MOST_RATIO)));
    let mut rest = packed;
    while !rest.is_empty() {
        if Format::of(rest) != Some(Format::Gzip) {
            return None;
        }
        archives.resize(archives.len().next_multiple_of(ALIGNMENT), 0);
        let start = archives.len();
        let mut decoder = GzDecoder::new(rest);
        let left = (limit + 1).checked_sub(start)?;
        decoder.by_ref().take(left as u64).read_to_end(&mut archives).ok()?;
        if archives.len() > limit || !MAGIC.contains(&archives[start..].get(..6)?) {
            return None;
        }
        rest = decoder.into_inner();
        // Zeros between archives are skipped.
        rest = &rest[rest.iter().position(|&byte| byte != 0).unwrap_or(rest.len())..];
    }
    Some(archives)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn one_archive() {
        let archive = [b"070701".as_slice(), &[7; 5000]].concat();
        assert_eq!(unpack(&gzip(&archive), 5006).as_deref(), Some(&archive[..]));
        assert_eq!(unpack(&gzip(&archive), 5005), None);
    }

    #[test]
    fn archives_in_a_row_are_aligned() {
        let mut packed = gzip(b"070701abc");
        packed.extend([0; 3]);
        packed.extend(gzip(b"070702de"));
        packed.extend([0; 9]);
        assert_eq!(unpack(&packed, 1000).as_deref(), Some(&b"070701abc\x00\x00\x00070702de"[..]));
    }

    #[test]
    fn anything_else_is_left_alone() {
        let whole = gzip(&[b"070701".as_slice(), &[7; 5000]].concat());
        for cut in 0..whole.len() {
            assert_eq!(unpack(&whole[..cut], 1 << 20), None);
        }
        assert_eq!(unpack(&[&whole[..], b"070701"].concat(), 1 << 20), None);
        assert_eq!(unpack(&gzip(b"no archive"), 1 << 20), None);
        assert_eq!(unpack(b"070701", 1 << 20), None);
        // A length that lies: far more than it says, and far more than may be.
        let mut bomb = gzip(&[b"070701".as_slice(), &[0; 1 << 20]].concat());
        let at = bomb.len() - 4;
        bomb[at..].copy_from_slice(&10u32.to_le_bytes());
        assert_eq!(unpack(&bomb, 5000), None);
    }
}
