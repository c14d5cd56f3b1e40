//! The way out: what the guest sends, to a descriptor that may be slow, full or gone.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, Weak};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Front;
use crate::backend::{CharBackend, CharDevice};

/// At most this much is written at once to what blocks: a pipe that polls writable takes it without blocking.
const CHUNK_BYTES: usize = 4096;
/// How often a waiting writer looks whether the program ends.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

const LOCK: &str = "nobody panics with a stream's lock held";

/// What to write to.
#[derive(Debug)]
pub enum Writer {
    /// Shared with other programs, which would not like it to be non-blocking: standard output. Regular files, too.
    Blocking(File),
    /// Ours, and non-blocking.
    NonBlocking(File),
    /// The master side of a pseudo-terminal, non-blocking. While no user has its other side open, bytes go nowhere.
    Terminal(File),
}

impl Writer {
    fn file(&self) -> &File {
        match self {
            Self::Blocking(file) | Self::NonBlocking(file) | Self::Terminal(file) => file,
        }
    }

    fn poll(&self, timeout: &Timespec) -> io::Result<PollFlags> {
        let mut fds = [PollFd::new(self.file(), PollFlags::OUT)];
        match poll(&mut fds, Some(timeout)) {
            Ok(_) => Ok(fds[0].revents()),
            Err(rustix::io::Errno::INTR) => Ok(PollFlags::empty()),
            Err(error) => Err(error.into()),
        }
    }

    /// One write that does not wait.
    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::NonBlocking(file) => (&*file).write(bytes),
            Self::Blocking(file) => {
                if self.poll(&AT_ONCE)?.is_empty() {
                    return Err(ErrorKind::WouldBlock.into());
                }
                (&*file).write(&bytes[..bytes.len().min(CHUNK_BYTES)])
            }
            Self::Terminal(file) => {
                if self.poll(&AT_ONCE)?.contains(PollFlags::HUP) {
                    return Ok(bytes.len());
                }
                (&*file).write(bytes)
            }
        }
    }
}

/// What the thread of the host's ends is asked for.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(super) enum Wish {
    /// The device has room for input.
    Input = 1,
    /// There is more to write.
    Room = 2,
    /// The connection is no good any more.
    Lost = 4,
}

/// A host's end with a descriptor, or at times without one.
pub struct Stream {
    label: String,
    writer: Mutex<Option<Arc<Writer>>>,
    /// The writer is there, but no good any more.
    lost: AtomicBool,
    pub(super) front: Front,
    closing: AtomicBool,
    wishes: AtomicU8,
    wakeup: EventFd,
}

impl Stream {
    /// One that writes to `writer`, if that is there already. `label` names it in diagnostics.
    pub fn new(label: &str, writer: Option<Writer>) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            label: label.into(),
            writer: Mutex::new(writer.map(Arc::new)),
            lost: AtomicBool::new(false),
            front: Front::default(),
            closing: AtomicBool::new(false),
            wishes: AtomicU8::new(0),
            wakeup: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        }))
    }

    /// The program ends: nobody waits for the reader any longer than a moment.
    pub fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
    }

    pub(super) fn label(&self) -> &str {
        &self.label
    }

    /// Readable when there is a wish.
    pub(super) fn wakeup_fd(&self) -> RawFd {
        self.wakeup.as_raw_fd()
    }

    pub(super) fn wish(&self, wish: Wish) {
        if self.wishes.fetch_or(wish as u8, Ordering::SeqCst) & wish as u8 == 0 {
            let _ = self.wakeup.write(1);
        }
    }

    /// Clears what was wished for, to be looked at then.
    pub(super) fn take_wishes(&self) -> impl Fn(Wish) -> bool + use<> {
        let _ = self.wakeup.read();
        let wishes = self.wishes.swap(0, Ordering::SeqCst);
        move |wish| wishes & wish as u8 != 0
    }

    pub(super) fn set_writer(&self, writer: Option<Writer>) {
        let mut current = self.writer.lock().expect(LOCK);
        *current = writer.map(Arc::new);
        self.lost.store(false, Ordering::SeqCst);
    }

    pub(super) fn writer_fd(&self) -> Option<RawFd> {
        self.writer().map(|writer| writer.file().as_raw_fd())
    }

    fn writer(&self) -> Option<Arc<Writer>> {
        let writer = self.writer.lock().expect(LOCK);
        writer.clone().filter(|_| !self.lost.load(Ordering::SeqCst))
    }

    /// As [`CharBackend::try_write`], without a wish for more.
    fn write_now(&self, bytes: &[u8]) -> usize {
        let Some(writer) = self.writer() else { return bytes.len() };
        let mut taken = 0;
        while taken < bytes.len() {
            match writer.write(&bytes[taken..]) {
                Ok(count) => taken += count,
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::WouldBlock => break,
                    _ => {
                        self.lose(&writer, &error);
                        return bytes.len();
                    }
                },
            }
        }
        taken
    }

    fn lose(&self, writer: &Arc<Writer>, error: &io::Error) {
        let current = self.writer.lock().expect(LOCK);
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, writer)) {
            // The descriptor stays open as long as the thread may be watching it.
            self.lost.store(true, Ordering::SeqCst);
            drop(current);
            let label = &self.label;
            tracing::debug!(target: "chardev", %error, "{label}: what the guest sends goes nowhere from now on");
            self.wish(Wish::Lost);
        }
    }
}

impl CharBackend for Stream {
    fn write(&self, mut bytes: &[u8]) {
        loop {
            bytes = &bytes[self.write_now(bytes)..];
            let Some(writer) = self.writer().filter(|_| !bytes.is_empty()) else { return };
            let ready = writer.poll(&PATIENCE);
            if ready.is_ok_and(|ready| ready.is_empty()) && self.closing.load(Ordering::SeqCst) {
                return;
            }
        }
    }

    fn try_write(&self, bytes: &[u8]) -> usize {
        let taken = self.write_now(bytes);
        if taken < bytes.len() {
            self.wish(Wish::Room);
        }
        taken
    }

    fn can_write(&self) -> bool {
        // Errors, too: a write says which.
        self.writer().is_none_or(|writer| writer.poll(&AT_ONCE).is_ok_and(|ready| !ready.is_empty()))
    }

    fn accept_input(&self) {
        self.wish(Wish::Input);
    }

    fn attach(&self, device: Weak<dyn CharDevice>) {
        self.front.set(device);
    }

    fn is_open(&self) -> bool {
        match self.writer() {
            None => false,
            Some(writer) => match &*writer {
                Writer::Terminal(_) => {
                    writer.poll(&AT_ONCE).is_ok_and(|ready| !ready.contains(PollFlags::HUP))
                }
                _ => true,
            },
        }
    }
}
