use std::path::Path;
use std::sync::Arc;

use vmm_sys_util::tempfile::TempFile;

use super::vectored::AlignedBuffer;
use super::*;

pub fn image(content: &[u8]) -> TempFile {
    let file = TempFile::new_in(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
    std::fs::write(file.as_path(), content).unwrap();
    file
}

pub fn noise(len: usize) -> Vec<u8> {
    let mut random = crate::testing::Random::new(7);
    (0..len).map(|_| random.next() as u8).collect()
}

pub fn read(backend: &dyn BlockBackend, offset: u64, len: usize) -> Vec<u8> {
    // At an address that O_DIRECT does not like, in two parts.
    let mut bytes = AlignedBuffer::new(len + 8);
    let (first, second) = (len / 3, len - len / 3);
    let slice = bytes.slice();
    let parts = [slice.subslice(8, first).unwrap(), slice.subslice(8 + first, second).unwrap()];
    backend.read(offset, &parts).unwrap();
    bytes.bytes()[8..].to_vec()
}

pub fn write(backend: &dyn BlockBackend, offset: u64, bytes: &[u8]) {
    let mut copy = bytes.to_vec();
    let (first, second) = copy.split_at_mut(bytes.len() / 5);
    backend.write(offset, &[VolatileSlice::from(first), VolatileSlice::from(second)]).unwrap();
}

/// Reads, writes and zeroes anywhere, beside a copy in memory.
pub fn behaves_like_memory(backend: &dyn BlockBackend, mut model: Vec<u8>) -> Vec<u8> {
    let mut random = crate::testing::Random::new(11);
    let sectors = backend.capacity() / SECTOR_BYTES;
    model.resize(usize::try_from(backend.capacity()).unwrap(), 0);
    for round in 0..300 {
        let first = random.below(sectors);
        let count = 1 + random.below((sectors - first).min(40));
        let (offset, len) = (first * SECTOR_BYTES, count * SECTOR_BYTES);
        let range = usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap();
        match random.below(4) {
            0 => {
                let bytes: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
                write(backend, offset, &bytes);
                model[range].copy_from_slice(&bytes);
            }
            1 => {
                backend.write_zeroes(offset, len, random.below(2) == 0).unwrap();
                model[range].fill(0);
            }
            2 => backend.flush().unwrap(),
            _ => assert_eq!(read(backend, offset, range.len()), model[range], "round {round}"),
        }
    }
    assert_eq!(read(backend, 0, model.len()), model);
    model
}

#[test]
fn raw_images_hold_what_is_written() {
    for &(name, cache) in CacheMode::NAMES {
        let content = noise(300_000);
        let file = image(&content);
        let options = RawOptions { cache, unmap: true, lock: true, ..RawOptions::default() };
        let raw = match RawImage::open(file.as_path(), options) {
            // tmpfs has no O_DIRECT.
            Err(RawError::Open(error)) if cache.is_direct() && error.raw_os_error() == Some(libc::EINVAL) => {
                continue;
            }
            raw => raw.unwrap(),
        };
        assert_eq!(raw.capacity(), 586 * 512, "{name}: to a whole sector");
        let model = behaves_like_memory(&raw, content);
        drop(raw);
        let stored = std::fs::read(file.as_path()).unwrap();
        assert_eq!(stored[..], model[..stored.len()], "{name}");
        assert!(model[stored.len()..].iter().all(|&byte| byte == 0), "{name}");
    }
}

#[test]
fn an_overlay_leaves_the_image_as_it_is() {
    let content = noise(300_000);
    let file = image(&content);
    let options = RawOptions { read_only: true, ..RawOptions::default() };
    let below = Arc::new(RawImage::open(file.as_path(), options).unwrap());
    let overlay = Overlay::new(below, &std::env::temp_dir()).unwrap();
    behaves_like_memory(&overlay, content.clone());
    assert_eq!(std::fs::read(file.as_path()).unwrap(), content);
}

/// A disk larger than any file.
struct Vast;

impl BlockBackend for Vast {
    fn capacity(&self) -> u64 {
        1 << 62
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn read(&self, _offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        buffers.iter().for_each(|buffer| buffer.copy_from(&vec![7u8; buffer.len()]));
        Ok(())
    }

    fn write(&self, _offset: u64, _buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        unreachable!("it is below an overlay")
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        unreachable!("it is below an overlay")
    }

    fn write_zeroes(&self, _offset: u64, _len: u64, _may_unmap: bool) -> io::Result<()> {
        unreachable!("it is below an overlay")
    }
}

#[test]
fn an_overlay_is_not_as_large_as_the_image_says_that_it_is() {
    let overlay = Overlay::new(Arc::new(Vast), &std::env::temp_dir()).unwrap();
    write(&overlay, 1 << 40, &[1; 1024]);
    overlay.write_zeroes((1 << 40) - (1 << 34), 1 << 34, true).unwrap();
    write(&overlay, (1 << 40) - 512, &[2; 512]);
    let around = read(&overlay, (1 << 40) - 1024, 4096);
    let expected = [vec![0; 512], vec![2; 512], vec![1; 1024], vec![7; 2048]].concat();
    assert_eq!(around, expected);
    assert_eq!(read(&overlay, (1 << 40) - (1 << 34) - 512, 1024), [[7; 512], [0; 512]].concat());
    assert_eq!(read(&overlay, (1 << 62) - 512, 512), [7; 512]);
}

#[test]
fn discarded_space_is_given_back_where_that_is_asked_for() {
    use std::os::unix::fs::MetadataExt;
    let blocks = |unmap| {
        let file = image(&noise(1 << 20));
        let raw = RawImage::open(file.as_path(), RawOptions { unmap, ..RawOptions::default() }).unwrap();
        raw.flush().unwrap();
        raw.discard(0, 1 << 20).unwrap();
        std::fs::metadata(file.as_path()).unwrap().blocks()
    };
    assert!(blocks(false) >= 2048);
    assert!(blocks(true) < 100);
}

#[test]
fn what_is_no_image_is_refused() {
    let open = |path: &str, read_only| {
        let options = RawOptions { read_only, lock: true, ..RawOptions::default() };
        RawImage::open(Path::new(path), options).map(|_| ()).unwrap_err().to_string()
    };
    assert_eq!(open("/", false), "is a folder, not a file or a block device");
    assert_eq!(open("/dev/null", true), "is a character device, not a file or a block device");
    assert_eq!(open("/no/such/image", false), "cannot be opened");
    let file = image(&[0; 512]);
    let _first = RawImage::open(file.as_path(), RawOptions { lock: true, ..RawOptions::default() }).unwrap();
    assert_eq!(
        open(file.as_path().to_str().unwrap(), false),
        "in use by another process, which writes to it"
    );
}
