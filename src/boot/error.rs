//! Why a guest cannot be booted. Each message is one line that names the file and the cure.

use std::io;
use std::path::PathBuf;

/// Why a guest cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file cannot be read.
    #[error("{option} {}: {}", path.display(), describe(error))]
    Open {
        /// The option that named it.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// The host's answer.
        error: io::Error,
    },
    /// The file is not a kernel that this program can boot.
    #[error("-kernel {}: {what}", path.display())]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What it is, and what to give instead.
        what: &'static str,
    },
    /// The file ends before the kernel does.
    #[error("-kernel {}: truncated: the kernel has {needed} bytes, the file {actual}; fetch or build it again", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What its header promises.
        needed: u64,
        /// Its length.
        actual: u64,
    },
    /// The kernel does not fit.
    #[error("-kernel {}: needs memory up to {} MiB, the guest has {} MiB; give more with -m", path.display(), needed.div_ceil(1 << 20), available >> 20)]
    KernelTooBig {
        /// The file.
        path: PathBuf,
        /// Where it ends, in guest-physical bytes.
        needed: u64,
        /// Where memory ends.
        available: u64,
    },
    /// The initial RAM disk does not fit.
    #[error("-initrd {}: {size} bytes do not fit in the guest's memory beside the kernel; give more with -m", path.display())]
    InitrdTooBig {
        /// The file.
        path: PathBuf,
        /// Its length.
        size: u64,
    },
    /// The command line does not fit.
    #[error("-append: {length} bytes, but this kernel takes {limit} at most")]
    CommandLineTooLong {
        /// Its length.
        length: usize,
        /// What the kernel takes.
        limit: usize,
    },
    /// The command line cannot be passed.
    #[error("-append: a NUL character cannot be passed to a kernel")]
    CommandLineNul,
    /// A file changed or failed after it was checked.
    #[error("{option} {}: could not be loaded into guest memory", path.display())]
    Load {
        /// The option that named it.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// What failed.
        source: vm_memory::GuestMemoryError,
    },
    /// A boot structure could not be written.
    #[error("boot structures could not be written to guest memory")]
    Write(#[from] vm_memory::GuestMemoryError),
}

/// The host's answer in a user's words.
fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file".into(),
        io::ErrorKind::PermissionDenied => "no permission to read it".into(),
        io::ErrorKind::IsADirectory => "is a directory".into(),
        _ => error.to_string(),
    }
}
