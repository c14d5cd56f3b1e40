//! qcow2 images: whatever is in the file, it is opened, read and written, or refused.
#![no_main]

use std::os::fd::AsRawFd;

use devices::backend::block::{BlockBackend, Qcow2Image, RawOptions};
use fuzz::machine::in_memory;
use libfuzzer_sys::fuzz_target;
use vm_memory::VolatileSlice;
use vmm_sys_util::tempfile::TempFile;

fuzz_target!(|input: &[u8]| {
    let Some((&mode, image)) = input.split_first() else { return };
    // The magic is no riddle, and no image names another file: the host's are none of a fuzzer's business.
    let mut image = image.to_vec();
    if image.len() >= 20 {
        image[..4].copy_from_slice(b"QFI\xfb");
        image[8..20].fill(0);
    }
    let file = TempFile::new_in(&in_memory()).expect("a temporary folder").into_file();
    std::os::unix::fs::FileExt::write_all_at(&file, &image, 0).expect("there is room");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let options = RawOptions { read_only: mode & 1 != 0, ..RawOptions::default() };
    let Ok(disk) = Qcow2Image::open(path.as_ref(), options) else { return };
    let mut buffer = [0u8; 4096];
    let capacity = disk.capacity();
    for (step, byte) in image.iter().rev().take(8).enumerate() {
        let offset = (u64::from(*byte) << (step * 5)) & !4095;
        if offset + 4096 > capacity {
            continue;
        }
        let slice = [VolatileSlice::from(&mut buffer[..])];
        let _ = disk.read(offset, &slice);
        if !disk.is_read_only() {
            let _ = disk.write(offset, &slice);
            let _ = disk.flush();
        }
    }
});
