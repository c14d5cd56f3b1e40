//! Frames on a stream: the length in four bytes, then the frame.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;

use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::net::poller::Readiness;
use crate::net::{FrameInfo, FrameSink, MAX_FRAME_BYTES};

const LENGTH_BYTES: usize = 4;
/// What is gathered before it is sent within a batch.
const GATHER_BYTES: usize = 64 << 10;
/// What may wait for the other end.
const MAX_WAITING_BYTES: usize = 256 << 10;
/// What is read at once.
const BUFFER_BYTES: usize = 256 << 10;
/// Frames before it is the guest's turn.
const TURN_FRAMES: usize = 256;

/// The stream makes no sense any more, or has ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("it has closed the connection")]
    Ended,
    #[error("it sent a frame of {0} bytes")]
    Length(usize),
    #[error(transparent)]
    Host(#[from] io::Error),
}

/// A connection that stands.
pub(super) struct Connection {
    socket: OwnedFd,
    ready: Readiness,
    /// What goes out, of which the first `sent` bytes have gone.
    out: Vec<u8>,
    sent: usize,
    /// What has come: between `start` and `end`.
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Connection {
    pub(super) fn new(socket: OwnedFd) -> Self {
        // What was reported before, reading and writing say.
        let ready = Readiness { readable: true, writable: true, hung_up: false };
        let buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
        Self { socket, ready, out: Vec::new(), sent: 0, buffer, start: 0, end: 0 }
    }

    /// The socket has something to say.
    pub(super) fn report(&mut self, readiness: Readiness) {
        self.ready = self.ready.and(readiness);
    }

    /// Whether there is room for a batch of frames.
    pub(super) fn is_ready(&self) -> bool {
        self.out.len() - self.sent < MAX_WAITING_BYTES
    }

    pub(super) fn send(&mut self, frame: &[u8]) -> Result<(), Broken> {
        let Ok(length) = u32::try_from(frame.len()) else { return Ok(()) };
        self.out.extend(length.to_be_bytes());
        self.out.extend(frame);
        if self.out.len() - self.sent >= GATHER_BYTES { self.flush() } else { Ok(()) }
    }

    /// Sends what waits, as far as it goes.
    pub(super) fn flush(&mut self) -> Result<(), Broken> {
        while self.ready.writable && self.sent < self.out.len() {
            match send(&self.socket, &self.out[self.sent..], SendFlags::NOSIGNAL) {
                Ok(count) => self.sent += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => self.ready.writable = false,
                Err(error) => return Err(Broken::Host(error.into())),
            }
        }
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        } else if self.sent >= GATHER_BYTES {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
        Ok(())
    }

    /// The first whole frame of the buffer.
    fn frame(&self) -> Result<Option<std::ops::Range<usize>>, Broken> {
        let held = &self.buffer[self.start..self.end];
        let Some((length, rest)) = held.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length > MAX_FRAME_BYTES {
            return Err(Broken::Length(length));
        }
        let from = self.start + LENGTH_BYTES;
        Ok((rest.len() >= length).then(|| from..from + length))
    }

    /// Brings frames to the guest; true if there are more and it is the guest's turn.
    pub(super) fn receive(&mut self, sink: &mut dyn FrameSink) -> Result<bool, Broken> {
        for _ in 0..TURN_FRAMES {
            let frame = loop {
                if let Some(frame) = self.frame()? {
                    break frame;
                }
                if !self.ready.readable {
                    return Ok(false);
                }
                self.fill()?;
            };
            if !frame.is_empty() && !sink.push(&FrameInfo::default(), &[&self.buffer[frame.clone()]]) {
                return Ok(false);
            }
            self.start = frame.end;
        }
        Ok(true)
    }

    /// Reads what has come. The buffer holds no whole frame, so there is room.
    fn fill(&mut self) -> Result<(), Broken> {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        match recv(&self.socket, &mut self.buffer[self.end..], RecvFlags::empty()) {
            Ok((0, _)) => return Err(Broken::Ended),
            Ok((count, _)) => self.end += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => self.ready.readable = false,
            Err(error) if io::Error::from(error).kind() == ErrorKind::ConnectionReset => {
                return Err(Broken::Ended);
            }
            Err(error) => return Err(Broken::Host(error.into())),
        }
        Ok(())
    }
}
