//! Pseudo-terminals (pty(7)).

#![expect(unsafe_code, reason = "the pseudo-terminal calls are C")]

use std::ffi::{CStr, OsStr};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A new pseudo-terminal. It holds its own terminal side open, so that the master side neither hangs up nor
/// fails while no user has connected.
#[derive(Debug)]
pub struct Pty {
    master: File,
    terminal: File,
    name: PathBuf,
}

impl Pty {
    /// Opens a pseudo-terminal in raw mode; the master side is non-blocking.
    pub fn open() -> io::Result<Self> {
        // SAFETY: posix_openpt takes flags only and returns a descriptor or -1.
        let fd =
            unsafe { libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC | libc::O_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is open and nobody else's.
        let master = unsafe { File::from_raw_fd(fd) };
        // SAFETY: both take a descriptor, which `master` keeps open.
        if unsafe { libc::grantpt(fd) } != 0 || unsafe { libc::unlockpt(fd) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut buffer = [0u8; 128];
        // SAFETY: ptsname_r writes a terminated string of at most the given length to the buffer.
        let result = unsafe { libc::ptsname_r(fd, buffer.as_mut_ptr().cast(), buffer.len()) };
        if result != 0 {
            return Err(io::Error::from_raw_os_error(result));
        }
        let name = CStr::from_bytes_until_nul(&buffer).map_err(io::Error::other)?;
        let name = PathBuf::from(OsStr::from_bytes(name.to_bytes()));
        let terminal = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&name)?;
        make_raw(&terminal)?;
        Ok(Self { master, terminal, name })
    }

    /// The side that the serial port reads and writes.
    pub fn master(&self) -> &File {
        &self.master
    }

    /// The master side alone: it hangs up while no user has the terminal open.
    pub fn into_master(self) -> File {
        self.master
    }

    /// The side that users open.
    pub fn terminal(&self) -> &File {
        &self.terminal
    }

    /// The name that users open.
    pub fn name(&self) -> &Path {
        &self.name
    }
}

fn make_raw(terminal: &File) -> io::Result<()> {
    let mut settings = std::mem::MaybeUninit::uninit();
    // SAFETY: tcgetattr writes a whole termios or fails.
    if unsafe { libc::tcgetattr(terminal.as_raw_fd(), settings.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: tcgetattr succeeded and so has filled the buffer.
    let mut settings: libc::termios = unsafe { settings.assume_init() };
    // SAFETY: cfmakeraw changes the termios that the reference is, tcsetattr reads it.
    let result = unsafe {
        libc::cfmakeraw(&mut settings);
        libc::tcsetattr(terminal.as_raw_fd(), libc::TCSANOW, &settings)
    };
    if result != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn bytes_pass_unchanged_both_ways() {
        let pty = Pty::open().unwrap();
        let mut user =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(pty.name()).unwrap();
        let bytes = b"\x03\r\n\x1a\xff";
        user.write_all(bytes).unwrap();
        let mut got = [0; 5];
        pty.master().read_exact(&mut got).unwrap();
        assert_eq!(&got, bytes);
        pty.master().write_all(bytes).unwrap();
        user.read_exact(&mut got).unwrap();
        assert_eq!(&got, bytes);
        drop(user);
        let error = pty.master().read(&mut got).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "no hang-up while nobody is connected");
    }
}
