//! Disks as the command line opens them: qcow2 images with backing files, and `snapshot=on` over any of them. Whatever is in the
//! files, each is refused, or a disk that holds what is written; the files below an overlay, and backing files, stay as they are.
#![no_main]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use bivisor::disks::{self, VirtioPart};
use bivisor::options::{self, Command};
use devices::backend::block::{BlockBackend, SECTOR_BYTES};
use fuzz::images::qcow2;
use fuzz::input::Input;
use fuzz::machine::in_memory;
use libfuzzer_sys::fuzz_target;
use vm_memory::VolatileSlice;
use vmm_sys_util::tempdir::TempDir;

const SECTOR: usize = SECTOR_BYTES as usize;
/// The files: the one that is opened, and two that may be below it.
const FILES: [&str; 3] = ["a", "b", "c"];
/// What else a backing file may be called.
const NAMES: [&[u8]; 8] = [b"b", b"c", b"./b", b"a", b"x", b".", b"nbd:b", b"\xff"];
const FORMATS: [&[u8]; 6] = [b"qcow2", b"raw", b"qcow2", b"raw", b"", b"vmdk"];
/// Of the disk from its front, and up to its end, are touched so many sectors.
const REACH: u64 = 256;

/// What the file at `index` has.
fn content(input: &mut Input, index: usize) -> Vec<u8> {
    let what = input.u8();
    let next = FILES.get(index + 1).map_or(&b"x"[..], |name| name.as_bytes());
    match what & 7 {
        0 => qcow2(input, None),
        1 | 4.. if index == 2 => [3].repeat(usize::from(input.u8()) * 300),
        1 if index > 0 => [index as u8 + 1].repeat(usize::from(input.u8()) * 300),
        2 => input.short().to_vec(),
        3 => {
            let (name, format) = (input.pick(&NAMES), input.pick(&FORMATS));
            qcow2(input, Some((name, format)))
        }
        _ => qcow2(input, Some((next, if what & 8 == 0 { b"qcow2" } else { b"raw" }))),
    }
}

fn open(folder: &Path, how: &str) -> Option<Arc<dyn BlockBackend>> {
    let drive = format!("file={}/a,if=virtio,{how}", folder.display());
    let words = ["-kernel", "k", "-drive", &drive].map(OsString::from);
    let Ok(Command::Run(options)) = options::parse(words) else { panic!("no good option: {drive}") };
    match disks::open(&options, &BTreeMap::new(), &BTreeMap::new()) {
        Ok(parts) => match parts.into_iter().next().map(|part| part.part) {
            Some(VirtioPart::Blk { backend, .. }) => Some(backend),
            _ => panic!("there is one disk"),
        },
        Err(error) => {
            assert!(!error.to_string().contains('\n'), "{error}");
            None
        }
    }
}

/// A disk beside what is known to be on it, by sector.
struct Known(BTreeMap<u64, [u8; SECTOR]>);

impl Known {
    fn forget(&mut self, first: u64, count: u64) {
        (first..first + count).for_each(|sector| _ = self.0.remove(&sector));
    }

    fn note(&mut self, first: u64, bytes: &[u8]) {
        for (sector, bytes) in (first..).zip(bytes.as_chunks().0) {
            self.0.insert(sector, *bytes);
        }
    }

    fn read(&mut self, disk: &dyn BlockBackend, first: u64, count: u64) {
        let mut bytes = vec![0; count as usize * SECTOR];
        if disk.read(first * SECTOR_BYTES, &[VolatileSlice::from(&mut bytes[..])]).is_err() {
            return;
        }
        for (sector, bytes) in (first..).zip(bytes.as_chunks::<SECTOR>().0) {
            let before = self.0.insert(sector, *bytes);
            assert!(before.is_none_or(|before| before == *bytes), "sector {sector} holds something else");
        }
    }

    fn write(&mut self, disk: &dyn BlockBackend, first: u64, count: u64, fill: u8) {
        let mut bytes = vec![fill; count as usize * SECTOR];
        self.forget(first, count);
        if disk.write(first * SECTOR_BYTES, &[VolatileSlice::from(&mut bytes[..])]).is_ok() {
            self.note(first, &bytes);
        }
    }

    fn zero(&mut self, disk: &dyn BlockBackend, first: u64, count: u64, may_unmap: bool) {
        self.forget(first, count);
        if disk.write_zeroes(first * SECTOR_BYTES, count * SECTOR_BYTES, may_unmap).is_ok() {
            self.note(first, &vec![0; count as usize * SECTOR]);
        }
    }

    fn discard(&mut self, disk: &dyn BlockBackend, first: u64, count: u64) {
        self.forget(first, count);
        let _ = disk.discard(first * SECTOR_BYTES, count * SECTOR_BYTES);
    }
}

/// Where a request goes: sectors of the disk.
fn place(input: &mut Input, sectors: u64) -> (u64, u64) {
    let (what, at) = (input.u8(), u64::from(input.u8()));
    let reach = sectors.min(REACH);
    let first = if what & 0x80 == 0 { at % reach } else { sectors - 1 - at % reach };
    (first, (u64::from(what & 0x3f) + 1).min(sectors - first))
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let kind = input.u8();
    let folder = TempDir::new_with_prefix(in_memory().join("fuzz-disks-")).expect("a temporary folder");
    let folder = folder.as_path();
    let is_raw = kind & 7 == 7;
    let contents: Vec<Vec<u8>> = (0..FILES.len())
        .map(|index| {
            if is_raw && index == 0 { vec![9; usize::from(input.u16())] } else { content(&mut input, index) }
        })
        .collect();
    for (name, content) in FILES.iter().zip(&contents) {
        std::fs::write(folder.join(name), content).expect("there is room");
    }
    let (is_snapshot, is_read_only) = (kind & 8 == 0, kind & 0x30 == 0x30);
    let format = if is_raw { "raw" } else { "qcow2" };
    let snapshot = if is_snapshot { "on" } else { "off" };
    let readonly = if is_read_only && !is_snapshot { "on" } else { "off" };
    let cache = ["writeback", "unsafe", "writethrough", "writeback"][usize::from(kind >> 6)];
    let how = format!("format={format},snapshot={snapshot},readonly={readonly},cache={cache}");
    let Some(disk) = open(folder, &how) else { return };
    let sectors = disk.capacity() / SECTOR_BYTES;
    let mut known = Known(BTreeMap::new());
    let mut is_flushed = false;
    while sectors > 0 && !input.is_empty() {
        let what = input.u8();
        let (first, count) = place(&mut input, sectors);
        match what & 7 {
            0 => is_flushed = disk.flush().is_ok(),
            1 | 2 => known.read(&*disk, first, count),
            _ if disk.is_read_only() => {}
            3 => known.discard(&*disk, first, count),
            4 => known.zero(&*disk, first, count, what & 8 == 0),
            _ => known.write(&*disk, first, count, what),
        }
        is_flushed &= matches!(what & 7, 0..=2) || disk.is_read_only();
    }
    for sector in known.0.keys().copied().collect::<Vec<_>>() {
        known.read(&*disk, sector, 1);
    }
    drop(disk);
    let stays = if is_snapshot || readonly == "on" { 0 } else { 1 };
    for (name, content) in FILES.iter().zip(&contents).skip(stays) {
        assert!(std::fs::read(folder.join(name)).is_ok_and(|now| now == *content), "{name} has changed");
    }
    if is_flushed && stays == 1 {
        let again = open(folder, &format!("format={format},readonly=on")).expect("it was a disk before");
        for sector in known.0.keys().copied().collect::<Vec<_>>() {
            known.read(&*again, sector, 1);
        }
    }
});
