//! Each format by what the tools of Linux's build make of [`content`], and what is cut, damaged or too long.

use super::*;
use std::io::Write;

/// What `xz --check=crc32 --x86 --lzma2=dict=1MiB` and `zstd -19` were given: jumps for the x86 filter, and text.
fn content() -> Vec<u8> {
    let mut content = [0xe8, 0x10, 0, 0, 0].repeat(40);
    content.extend(b"kernel ".repeat(100));
    content
}

const XZ: &[u8] = &[
    0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x01, 0x69, 0x22, 0xde, 0x36, 0x02, 0x01, 0x04, 0x00, 0x21,
    0x01, 0x10, 0x00, 0x8b, 0x21, 0x6f, 0x49, 0xe0, 0x03, 0x83, 0x00, 0x5d, 0x5d, 0x00, 0x74, 0x05, 0x3c,
    0x19, 0x3d, 0xf5, 0x57, 0xde, 0xe3, 0xbc, 0x74, 0x48, 0x27, 0x8b, 0x0f, 0xcb, 0x1e, 0x00, 0x7b, 0x46,
    0xf0, 0x19, 0x9d, 0x21, 0x9e, 0x2f, 0x82, 0x8e, 0xbf, 0xb6, 0xac, 0x9c, 0x72, 0x97, 0xec, 0xb3, 0xa5,
    0x58, 0xd7, 0x58, 0x71, 0x71, 0x07, 0xba, 0x7f, 0x42, 0x59, 0x23, 0x69, 0xc8, 0x59, 0x62, 0x0b, 0x83,
    0x7d, 0x4f, 0xa0, 0x3e, 0xfa, 0x9b, 0xbb, 0x2f, 0x1f, 0xb4, 0x61, 0xa1, 0x3b, 0x8e, 0xbc, 0x21, 0x99,
    0xdb, 0x30, 0x65, 0x08, 0xd1, 0x14, 0x36, 0x8f, 0x8e, 0x11, 0xa6, 0xf8, 0x9c, 0xa0, 0xcb, 0x0d, 0x29,
    0xa0, 0x65, 0xc8, 0x20, 0x00, 0x00, 0x00, 0x00, 0x00, 0xed, 0x82, 0xf1, 0x64, 0x00, 0x01, 0x75, 0x84,
    0x07, 0x00, 0x00, 0x00, 0x44, 0x66, 0x0b, 0x41, 0x3e, 0x30, 0x0d, 0x8b, 0x02, 0x00, 0x00, 0x00, 0x00,
    0x01, 0x59, 0x5a,
];

const ZSTD: &[u8] = &[
    0x28, 0xb5, 0x2f, 0xfd, 0x04, 0x68, 0xb5, 0x00, 0x00, 0x60, 0xe8, 0x10, 0x00, 0x00, 0x00, 0x6b, 0x65,
    0x72, 0x6e, 0x65, 0x6c, 0x20, 0x02, 0x00, 0xb2, 0x54, 0x2a, 0x03, 0x04, 0x55, 0xb4, 0x6e, 0x0f, 0xb1,
    0x33,
];

fn gzip() -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&content()).unwrap();
    encoder.finish().unwrap()
}

/// Two blocks.
fn lz4_legacy() -> Vec<u8> {
    let content = content();
    let mut frame = LZ4_LEGACY.to_vec();
    for part in [&content[..500], &content[500..]] {
        let block = lz4_flex::block::compress(part);
        frame.extend((block.len() as u32).to_le_bytes());
        frame.extend(block);
    }
    frame
}

fn all() -> [(Format, Vec<u8>); 4] {
    [
        (Format::Gzip, gzip()),
        (Format::Lz4, lz4_legacy()),
        (Format::Xz, XZ.to_vec()),
        (Format::Zstd, ZSTD.to_vec()),
    ]
}

fn unpack(format: Format, packed: &[u8], limit: u64) -> Result<Vec<u8>, UnpackError> {
    let mut got = Vec::new();
    format.unpack(packed, limit, &mut |piece| {
        got.extend_from_slice(piece);
        Ok(())
    })?;
    Ok(got)
}

#[test]
fn every_format_gives_its_content() {
    let content = content();
    for (format, packed) in all() {
        assert_eq!(Format::of(&packed), Some(format));
        assert_eq!(unpack(format, &packed, content.len() as u64).unwrap(), content, "{format:?}");
    }
    assert_eq!(Format::of(b"BZh9"), None);
    assert_eq!(Format::of(&[]), None);
}

#[test]
fn more_than_announced_is_too_long() {
    for (format, packed) in all() {
        let error = unpack(format, &packed, content().len() as u64 - 1).unwrap_err();
        assert!(matches!(error, UnpackError::TooLong), "{format:?}: {error}");
    }
}

#[test]
fn what_is_cut_never_gives_all() {
    for (format, packed) in all() {
        for length in 0..packed.len() {
            let got = unpack(format, &packed[..length], 1 << 20).unwrap_or_default();
            // LZ4's frame and zstd's checksum may end early without a sign; the kernel's file is then short.
            let whole = got.len() == content().len();
            assert!(!whole || format == Format::Zstd, "{format:?} {length}");
        }
    }
}

#[test]
fn damage_is_an_error_or_other_bytes_and_nothing_worse() {
    for (format, packed) in all() {
        for at in 0..packed.len() {
            for flip in [1, 0x80, 0xff] {
                let mut damaged = packed.clone();
                damaged[at] ^= flip;
                let got = unpack(format, &damaged, 1 << 20).unwrap_or_default();
                assert!(got.len() <= 1 << 20);
            }
        }
    }
}

#[test]
fn a_block_length_that_lies_takes_no_memory() {
    let mut frame = lz4_legacy();
    frame[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(unpack(Format::Lz4, &frame, 1 << 20).is_err());
}
