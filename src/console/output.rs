//! Output to a descriptor that may be slow, full or gone.

#![expect(unsafe_code, reason = "poll is C")]

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use devices::backend::CharBackend;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// What happens to bytes that the host does not take at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// The guest waits, so that a slow reader of a pipe misses nothing.
    Wait,
    /// They are dropped: nobody may be connected.
    Drop,
}

/// At most this much is written at once: a pipe that polls writable takes it without blocking.
const CHUNK: usize = libc::PIPE_BUF;
/// How often a waiting writer looks whether the program ends.
const PATIENCE_MS: i32 = 50;

/// A descriptor as a serial port's backend.
pub struct Output {
    file: File,
    when_full: WhenFull,
    closing: AtomicBool,
    /// The reader went away: told once, then the guest talks to nobody.
    is_broken: AtomicBool,
    input_wanted: Arc<EventFd>,
}

impl Output {
    /// Writes to `file`.
    pub fn new(file: File, when_full: WhenFull) -> io::Result<Arc<Self>> {
        let input_wanted = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        Ok(Arc::new(Self {
            file,
            when_full,
            closing: AtomicBool::new(false),
            is_broken: AtomicBool::new(false),
            input_wanted,
        }))
    }

    /// Readable when the device has room for input again.
    pub fn input_wanted(&self) -> &Arc<EventFd> {
        &self.input_wanted
    }

    /// The program ends: nobody waits for the reader any longer than a moment.
    pub fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
    }

    /// True if the descriptor takes [`CHUNK`] bytes; false if it is better to give up.
    fn wait_writable(&self) -> bool {
        loop {
            let mut poll = libc::pollfd { fd: self.file.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
            // SAFETY: one pollfd, as the count says.
            let ready = unsafe { libc::poll(&mut poll, 1, PATIENCE_MS) };
            let interrupted = ready < 0 && io::Error::last_os_error().kind() == ErrorKind::Interrupted;
            match ready {
                0 if self.when_full == WhenFull::Drop || self.closing.load(Ordering::SeqCst) => return false,
                0 => {}
                _ if interrupted => {}
                // Errors too: write says which.
                _ => return true,
            }
        }
    }
}

impl CharBackend for Output {
    fn write(&self, mut bytes: &[u8]) {
        if self.is_broken.load(Ordering::Relaxed) {
            return;
        }
        while !bytes.is_empty() {
            if self.when_full == WhenFull::Wait && !self.wait_writable() {
                return;
            }
            let chunk = &bytes[..bytes.len().min(CHUNK)];
            match (&self.file).write(chunk) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) => match (error.kind(), self.when_full) {
                    (ErrorKind::Interrupted, _) | (ErrorKind::WouldBlock, WhenFull::Wait) => {}
                    (ErrorKind::WouldBlock, WhenFull::Drop) => return,
                    _ => {
                        self.is_broken.store(true, Ordering::Relaxed);
                        tracing::warn!(target: "serial", %error, "serial output goes nowhere from now on");
                        return;
                    }
                },
            }
        }
    }

    fn accept_input(&self) {
        let _ = self.input_wanted.write(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::time::{Duration, Instant};

    fn pipe() -> (File, File) {
        let (reader, writer) = std::io::pipe().unwrap();
        (File::from(std::os::fd::OwnedFd::from(reader)), File::from(std::os::fd::OwnedFd::from(writer)))
    }

    #[test]
    fn a_slow_reader_misses_nothing() {
        let (mut reader, writer) = pipe();
        let output = Output::new(writer, WhenFull::Wait).unwrap();
        let sent: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
        let copy = sent.clone();
        let writing = std::thread::spawn(move || output.write(&copy));
        std::thread::sleep(Duration::from_millis(20));
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        writing.join().unwrap();
        assert!(got == sent);
    }

    #[test]
    fn a_reader_that_never_reads_does_not_keep_the_program() {
        let (_reader, writer) = pipe();
        let output = Output::new(writer, WhenFull::Wait).unwrap();
        let other = Arc::clone(&output);
        let writing = std::thread::spawn(move || other.write(&[0; 1 << 20]));
        std::thread::sleep(Duration::from_millis(20));
        let start = Instant::now();
        output.close();
        writing.join().unwrap();
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}
