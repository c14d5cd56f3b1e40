//! Numbers of 9P2000.L (the protocol's page of diod, *9P2000.L Extensions to 9P2000*; Linux, `include/net/9p/9p.h`).

/// Message types. An answer's is its request's and one.
pub mod message {
    pub const R_LERROR: u8 = 7;
    pub const T_STATFS: u8 = 8;
    pub const T_LOPEN: u8 = 12;
    pub const T_LCREATE: u8 = 14;
    pub const T_SYMLINK: u8 = 16;
    pub const T_MKNOD: u8 = 18;
    pub const T_RENAME: u8 = 20;
    pub const T_READLINK: u8 = 22;
    pub const T_GETATTR: u8 = 24;
    pub const T_SETATTR: u8 = 26;
    pub const T_XATTRWALK: u8 = 30;
    pub const T_XATTRCREATE: u8 = 32;
    pub const T_READDIR: u8 = 40;
    pub const T_FSYNC: u8 = 50;
    pub const T_LOCK: u8 = 52;
    pub const T_GETLOCK: u8 = 54;
    pub const T_LINK: u8 = 70;
    pub const T_MKDIR: u8 = 72;
    pub const T_RENAMEAT: u8 = 74;
    pub const T_UNLINKAT: u8 = 76;
    pub const T_VERSION: u8 = 100;
    pub const T_ATTACH: u8 = 104;
    pub const T_FLUSH: u8 = 108;
    pub const T_WALK: u8 = 110;
    pub const T_READ: u8 = 116;
    pub const T_WRITE: u8 = 118;
    pub const T_CLUNK: u8 = 120;
    pub const T_REMOVE: u8 = 122;
}

/// The one dialect that is spoken.
pub const VERSION: &[u8] = b"9P2000.L";
/// The answer to all others.
pub const VERSION_UNKNOWN: &[u8] = b"unknown";

/// `size[4] type[1] tag[2]`.
pub const HEADER_BYTES: usize = 7;
/// A header and an error number.
pub const ERROR_BYTES: usize = HEADER_BYTES + 4;
/// A header and a count, before the data that is read.
pub const READ_OVERHEAD: u32 = 11;
/// What a client sets aside for the header of a read or a write.
pub const IO_OVERHEAD: u32 = 24;
/// The smallest size of messages that Linux asks for.
pub const MIN_MSIZE: u32 = 4096;
/// The largest that is granted. More does not fit Linux's queue.
pub const MAX_MSIZE: u32 = 512 << 10;
/// Names in one walk at most.
pub const MAX_WALK: u16 = 16;

/// Kinds of file in a qid.
pub mod qid_type {
    pub const DIRECTORY: u8 = 0x80;
    pub const SYMLINK: u8 = 0x02;
    pub const FILE: u8 = 0;
}

/// Bits of `Tsetattr.valid`.
pub mod set {
    pub const MODE: u32 = 0x1;
    pub const UID: u32 = 0x2;
    pub const GID: u32 = 0x4;
    pub const SIZE: u32 = 0x8;
    pub const ATIME: u32 = 0x10;
    pub const MTIME: u32 = 0x20;
    pub const CTIME: u32 = 0x40;
    /// The time is in the message; otherwise it is now.
    pub const ATIME_SET: u32 = 0x80;
    pub const MTIME_SET: u32 = 0x100;
}

/// Bits of `Tgetattr.request_mask`: all that a `stat` has, but not a birth time, a generation and a data version.
pub const GET_BASIC: u64 = 0x7ff;

/// Open flags as clients send them, which are Linux's on most machines, this one among them.
pub mod open {
    pub const ACCESS_MODE: u32 = 0o3;
    pub const WRITE_ONLY: u32 = 0o1;
    pub const READ_WRITE: u32 = 0o2;
    pub const EXCLUSIVE: u32 = 0o200;
    pub const TRUNCATE: u32 = 0o1000;
    pub const APPEND: u32 = 0o2000;
    pub const DATA_SYNC: u32 = 0o10000;
    pub const DIRECTORY: u32 = 0o200000;
    pub const SYNC: u32 = 0o4000000;
}

/// `Tunlinkat.flags`: it is a directory.
pub const UNLINK_DIRECTORY: u32 = 0x200;

/// Kinds and answers of locks.
pub mod lock {
    pub const READ: u8 = 0;
    pub const WRITE: u8 = 1;
    pub const UNLOCK: u8 = 2;

    pub const SUCCESS: u8 = 0;
    pub const BLOCKED: u8 = 1;
}
