//! Messages of 9P2000.L, with fields that make sense more often than not, and the folder that they are about.

use std::error::Error;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use devices::p9::{HEADER_BYTES, Multidevs, SecurityModel, Share, ShareOptions};
use vmm_sys_util::tempdir::TempDir;

use crate::input::Input;
use crate::machine::in_memory;

/// Kinds of message, and their fields: a fid (`f`), a name (`n`), an offset of 64 bits (`o`), a count (`c`), flags (`g`), a mode
/// (`m`), bytes with their count (`d`), names with their count (`w`), a version (`v`), a number of 1, 2, 4 or 8 bytes.
const MESSAGES: &[(u8, &str)] = &[
    (8, "f"),
    (12, "fg"),
    (14, "fngm4"),
    (16, "fnn4"),
    (18, "fnm444"),
    (20, "ffn"),
    (22, "f"),
    (24, "f8"),
    (26, "fgm44o8888"),
    (30, "ffn"),
    (32, "fncg"),
    (40, "foc"),
    (50, "fg"),
    (52, "f14oo4n"),
    (54, "f1oo4n"),
    (70, "ffn"),
    (72, "fnm4"),
    (74, "fnfn"),
    (76, "fng"),
    (100, "cv"),
    (104, "f4nn4"),
    (108, "2"),
    (110, "ffw"),
    (110, "ffw"),
    (116, "foc"),
    (118, "fod"),
    (120, "f"),
    (122, "f"),
];

/// Names of files, and what no file may be called.
const NAMES: &[&[u8]] = &[
    b"a",
    b"b",
    b"d",
    b"link",
    b"out",
    b"new",
    b"..",
    b".",
    b"",
    b"/",
    b"a/b",
    b"d/../..",
    b"/etc",
    b"x\0y",
    b"user.x",
    b"user.virtfs.uid",
    b"system.posix_acl_access",
    b"\xff\xfe",
];
const MODES: &[u32] = &[0o644, 0o40755, 0o100600, 0o10644, 0o20666, 0o60666, 0o120777, 0o140777, 0, !0];
const FLAGS: &[u32] = &[0, 1, 2, 0o101, 0o1002, 0o2001, 0o200_000, 0o4_000_000, 0x200, 0x1ff, 8, !0];
const OFFSETS: &[u64] = &[0, 1, 4, 100, 4096, 1 << 31, u64::MAX >> 1, u64::MAX];
const COUNTS: &[u32] = &[0, 1, 8, 30, 512, 4096, 8192, 1 << 19, 1 << 30, !0];

/// What an operation starts from: a client that has said hello, with fid 0 at the root.
pub fn hello() -> [Vec<u8>; 2] {
    let version = [&8192u32.to_le_bytes()[..], &string(b"9P2000.L")].concat();
    let attach = [&0u32.to_le_bytes()[..], &[0xff; 4], &string(b""), &string(b""), &[0; 4]].concat();
    [message(100, 0xffff, &version), message(104, 0, &attach)]
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_le_bytes()[..], bytes].concat()
}

fn message(kind: u8, tag: u16, body: &[u8]) -> Vec<u8> {
    let size = (HEADER_BYTES + body.len()) as u32;
    [&size.to_le_bytes()[..], &[kind], &tag.to_le_bytes(), body].concat()
}

fn name(input: &mut Input) -> Vec<u8> {
    match input.u8() {
        0xff => string(input.short()),
        index => string(NAMES[usize::from(index) % NAMES.len()]),
    }
}

fn one_of<T: Copy>(input: &mut Input, choices: &[T], any: fn(&mut Input) -> T) -> T {
    match input.u8() {
        0xff => any(input),
        index => choices[usize::from(index) % choices.len()],
    }
}

/// The next message.
pub fn next_message(input: &mut Input) -> Vec<u8> {
    let which = input.u8();
    if which == 0xff {
        return input.short().to_vec();
    }
    let (kind, fields) = MESSAGES[usize::from(which) % MESSAGES.len()];
    let mut body = Vec::new();
    for field in fields.chars() {
        match field {
            'f' => body.extend(
                match input.u8() {
                    0xff => input.u32(),
                    fid => u32::from(fid % 6),
                }
                .to_le_bytes(),
            ),
            'n' => body.extend(name(input)),
            'o' => body.extend(one_of(input, OFFSETS, |input| input.u64()).to_le_bytes()),
            'c' => body.extend(one_of(input, COUNTS, |input| input.u32()).to_le_bytes()),
            'g' => body.extend(one_of(input, FLAGS, |input| input.u32()).to_le_bytes()),
            'm' => body.extend(one_of(input, MODES, |input| input.u32()).to_le_bytes()),
            'd' => {
                let data = input.short();
                body.extend((data.len() as u32).to_le_bytes());
                body.extend(data);
            }
            'w' => {
                let count = match input.u8() {
                    0xff => 17,
                    count => u16::from(count % 4),
                };
                body.extend(count.to_le_bytes());
                (0..count).for_each(|_| body.extend(name(input)));
            }
            'v' => body.extend(string(if input.u8() == 0xff { b"9P2000" } else { b"9P2000.L" })),
            '1' => body.push(input.u8() & 3),
            '2' => body.extend(input.u16().to_le_bytes()),
            '4' => body.extend(input.small().to_le_bytes()),
            _ => body.extend(u64::from(input.small()).wrapping_neg().to_le_bytes()),
        }
    }
    message(kind, input.u8().into(), &body)
}

/// A folder that is shared, with a file beside it that no guest may touch.
pub struct Folder {
    folder: TempDir,
    pub share: Arc<Share>,
}

const CANARY: &[u8] = b"the host's";

impl Folder {
    /// A folder, in memory where that has extended attributes: a disk's file system is slow at this.
    pub fn new(kind: u8) -> Self {
        let security = if kind & 1 == 0 { SecurityModel::MAPPED } else { SecurityModel::None };
        let options = ShareOptions { security, read_only: kind & 6 == 6, multidevs: Multidevs::Remap };
        let made = Self::below(&in_memory(), options);
        made.or_else(|_| Self::below(&std::env::temp_dir(), options)).expect("a folder with attributes")
    }

    fn below(place: &Path, options: ShareOptions) -> Result<Self, Box<dyn Error>> {
        let folder = TempDir::new_with_prefix(place.join("fuzz-9p-"))?;
        let root = Self::root(folder.as_path());
        std::fs::create_dir_all(root.join("d"))?;
        std::fs::write(root.join("a"), [7; 5000])?;
        std::fs::write(root.join("d/b"), b"b")?;
        symlink("../canary", root.join("out"))?;
        symlink("d/b", root.join("link"))?;
        std::fs::write(folder.as_path().join("canary"), CANARY)?;
        let share = Share::open(&root, options)?;
        Ok(Self { folder, share })
    }

    fn root(folder: &Path) -> PathBuf {
        folder.join("share")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let beside = std::fs::read(self.folder.as_path().join("canary"));
        let count = std::fs::read_dir(self.folder.as_path()).map(Iterator::count);
        assert!(beside.is_ok_and(|bytes| bytes == CANARY), "a guest has changed a file of the host's");
        assert_eq!(count.ok(), Some(2), "a guest has made a file of the host's");
        // For those who are not root: what a guest has closed is opened.
        open_up(&Self::root(self.folder.as_path()));
    }
}

fn open_up(folder: &Path) {
    let _ = std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700));
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path());
        }
    }
}
