//! Input from a descriptor to a serial port, with the escape keys taken out.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use devices::backend::CharDevice;
use vmm_sys_util::eventfd::EventFd;

use super::output::Output;
use crate::terminal::escape::{EscapeFilter, Typed};
use crate::terminal::pty::Pty;

/// Typed bytes that wait for a guest that does not read. More is not read from the host, so that a file or a pipe as
/// input waits; but a terminal's escape keys work however long the guest sleeps.
const QUEUE_BYTES: usize = 64 << 10;
const READ_BYTES: usize = 1024;

/// What the main loop does after reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Call again when the descriptor is readable.
    WhenReadable,
    /// Call again when the device wants input; the descriptor's readiness does not matter.
    WhenWanted,
    /// There will be no more input.
    Ended,
}

/// A key that is the program's, not the guest's.
pub type Command = Typed;

/// The way from a descriptor to a serial port.
pub struct Input {
    source: File,
    filter: Option<EscapeFilter>,
    queue: VecDeque<u8>,
    wanted: Arc<EventFd>,
    ended: bool,
    /// The pseudo-terminal whose master side `source` is.
    _pty: Option<Pty>,
}

impl Input {
    /// Reads `source`; `output` belongs to the same device and says when that wants more.
    pub fn new(source: File, filter: Option<EscapeFilter>, output: &Output) -> io::Result<Self> {
        let wanted = Arc::clone(output.input_wanted());
        Ok(Self { source, filter, queue: VecDeque::new(), wanted, ended: false, _pty: None })
    }

    /// Keeps `pty` open as long as its input is read.
    pub fn keeping(self, pty: Pty) -> Self {
        Self { _pty: Some(pty), ..self }
    }

    /// The descriptor to watch for input. Regular files and `/dev/null` cannot be watched: they are always ready.
    pub fn source_fd(&self) -> RawFd {
        self.source.as_raw_fd()
    }

    /// The descriptor to watch for the device's wish.
    pub fn wanted_fd(&self) -> RawFd {
        self.wanted.as_raw_fd()
    }

    /// The escape keys, for help texts.
    pub fn filter(&self) -> Option<&EscapeFilter> {
        self.filter.as_ref()
    }

    /// Passes on what waits. The device's wish is fulfilled as far as it goes.
    pub fn deliver(&mut self, device: &dyn CharDevice) {
        // Clear, then look: a wish that comes while this runs is seen the next time.
        let _ = self.wanted.read();
        while !self.queue.is_empty() {
            let room = device.can_receive();
            if room == 0 {
                return;
            }
            let count = room.min(self.queue.len());
            let bytes: Vec<u8> = self.queue.iter().take(count).copied().collect();
            let taken = device.receive(&bytes);
            self.queue.drain(..taken);
            if taken == 0 {
                return;
            }
        }
    }

    /// Reads once from the descriptor, which is readable (or always ready), and delivers. Commands go to `command`.
    pub fn read(&mut self, device: &dyn CharDevice, mut command: impl FnMut(Command, &EscapeFilter)) -> Next {
        if self.ended {
            return Next::Ended;
        }
        if self.queue.len() >= QUEUE_BYTES {
            self.deliver(device);
            if self.queue.len() >= QUEUE_BYTES {
                return Next::WhenWanted;
            }
        }
        let mut buffer = [0; READ_BYTES];
        match self.source.read(&mut buffer) {
            Ok(0) => {
                self.ended = true;
                self.deliver(device);
                return Next::Ended;
            }
            Ok(count) => {
                for &byte in &buffer[..count] {
                    let Some(filter) = &mut self.filter else {
                        self.queue.push_back(byte);
                        continue;
                    };
                    match filter.feed(byte) {
                        Some(Typed::Byte(byte)) => self.queue.push_back(byte),
                        Some(typed) => command(typed, filter),
                        None => {}
                    }
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            // A terminal that went away, a descriptor that was closed before the program started.
            Err(error) => {
                tracing::debug!(target: "serial", %error, "no more input");
                self.ended = true;
                return Next::Ended;
            }
        }
        self.deliver(device);
        Next::WhenReadable
    }
}

#[cfg(test)]
mod tests {
    use super::super::output::WhenFull;
    use super::*;
    use std::io::Write;
    use std::sync::Mutex;

    /// Takes 16 bytes until it is emptied, as a UART does.
    #[derive(Default)]
    struct Fifo(Mutex<Vec<u8>>);

    impl CharDevice for Fifo {
        fn can_receive(&self) -> usize {
            16 - self.0.lock().unwrap().len()
        }
        fn receive(&self, bytes: &[u8]) -> usize {
            let count = bytes.len().min(self.can_receive());
            self.0.lock().unwrap().extend(&bytes[..count]);
            count
        }
    }

    fn input(filter: Option<EscapeFilter>) -> (Input, File) {
        let (reader, writer) = std::io::pipe().unwrap();
        let file = |fd: std::os::fd::OwnedFd| File::from(fd);
        let output = Output::new(file(writer.try_clone().unwrap().into()), WhenFull::Wait).unwrap();
        (Input::new(file(reader.into()), filter, &output).unwrap(), file(writer.into()))
    }

    #[test]
    fn a_full_device_gets_the_rest_later() {
        let (mut input, mut user) = input(None);
        let fifo = Fifo::default();
        user.write_all(b"0123456789abcdefghijkl").unwrap();
        assert_eq!(input.read(&fifo, |_, _| panic!("no commands")), Next::WhenReadable);
        assert_eq!(std::mem::take(&mut *fifo.0.lock().unwrap()), b"0123456789abcdef");
        input.deliver(&fifo);
        assert_eq!(*fifo.0.lock().unwrap(), b"ghijkl");
    }

    #[test]
    fn escape_keys_work_though_the_guest_does_not_read() {
        let (mut input, mut user) = input(Some(EscapeFilter::new(1)));
        let fifo = Fifo(Mutex::new(vec![0; 16]));
        user.write_all(b"lots of typing\x01x").unwrap();
        let mut commands = Vec::new();
        input.read(&fifo, |command, _| commands.push(command));
        assert_eq!(commands, [Typed::Quit]);
    }

    #[test]
    fn the_end_of_input_is_not_an_error() {
        let (mut input, user) = input(None);
        // The other writing end is the test output's.
        let fifo = Fifo::default();
        drop(user);
        input.source = File::open("/dev/null").unwrap();
        assert_eq!(input.read(&fifo, |_, _| ()), Next::Ended);
        assert_eq!(input.read(&fifo, |_, _| ()), Next::Ended);
    }
}
