//! One host's end on the thread of all: reads what comes in as far as the device takes it, and takes note of who comes
//! and goes.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::timerfd::TimerFd;

use super::connections::{Client, Server};
use super::stream::{Stream, Wish, Writer};
use crate::backend::{CharBackend, CharEvent, Rest};

const BUFFER_BYTES: usize = 64 << 10;
/// Reads in a row, then it is another one's turn.
const BATCH: usize = 16;
/// What is kept of those who have gone, and a buffer more.
const MOST_KEPT_BYTES: usize = 64 << 10;
/// How often somebody is looked for on a pseudo-terminal, which does not tell: as QEMU does.
const LOOK: Duration = Duration::from_secs(1);

/// Which descriptor an event is about.
mod token {
    pub const WAKEUP: u32 = 0;
    pub const READ: u32 = 1;
    pub const WRITE: u32 = 2;
    /// Who comes: a listening socket, a timer.
    pub const SOURCE: u32 = 3;
    pub const PENDING: u32 = 4;
}

/// Whence connections come.
enum Source {
    /// There is the one, for ever.
    Fixed,
    /// The terminal's user, who does not tell when he comes.
    Terminal {
        timer: TimerFd,
        present: bool,
    },
    Server(Server),
    Client(Client),
}

/// For what the way in is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watch {
    Nothing,
    /// The device takes nothing; whether the other side goes.
    HangUp,
    Readable,
    /// It cannot be watched (a regular file, `/dev/null`): always ready.
    AlwaysReady,
}

/// The way in.
struct Reader {
    file: File,
    watch: Watch,
    /// Reading waits if there is nothing.
    blocking: bool,
}

/// One host's end, for [`CharThread`](super::CharThread).
pub struct Driver {
    stream: Arc<Stream>,
    source: Source,
    reader: Option<Reader>,
    /// The descriptor that is watched for room.
    watched_writer: Option<RawFd>,
    /// Read, but not taken by the device.
    unread: Vec<u8>,
    buffer: Box<[u8]>,
}

impl Driver {
    fn new(stream: Arc<Stream>, source: Source, reader: Option<Reader>) -> Self {
        let buffer = vec![0; BUFFER_BYTES].into();
        Self { stream, source, reader, watched_writer: None, unread: Vec::new(), buffer }
    }

    /// Reads `input`, if there is any: a descriptor that is there for ever, and whose reads may block.
    pub fn fixed(stream: Arc<Stream>, input: Option<File>) -> Self {
        let reader = input.map(|file| Reader { file, watch: Watch::Nothing, blocking: true });
        Self::new(stream, Source::Fixed, reader)
    }

    /// Reads the master side of a pseudo-terminal, which is non-blocking.
    pub fn terminal(stream: Arc<Stream>, master: File) -> io::Result<Self> {
        let reader = Reader { file: master, watch: Watch::Nothing, blocking: false };
        Ok(Self::new(stream, Source::Terminal { timer: TimerFd::new()?, present: false }, Some(reader)))
    }

    /// Takes one client after the other, `first` to begin with.
    pub fn server(stream: Arc<Stream>, server: Server, first: Option<File>) -> io::Result<Self> {
        Self::new(stream, Source::Server(server), None).with(first)
    }

    /// Keeps the connection that `client` makes, `first` to begin with.
    pub fn client(stream: Arc<Stream>, client: Client, first: Option<File>) -> io::Result<Self> {
        Self::new(stream, Source::Client(client), None).with(first)
    }

    fn with(mut self, first: Option<File>) -> io::Result<Self> {
        if let Some(file) = first {
            self.take(file)?;
        }
        Ok(self)
    }

    /// The connection is this one now.
    fn take(&mut self, file: File) -> io::Result<()> {
        let writer = file.try_clone()?;
        self.reader = Some(Reader { file, watch: Watch::Nothing, blocking: false });
        self.stream.set_writer(Some(Writer::NonBlocking(writer)));
        Ok(())
    }

    fn connect(&mut self, file: File, ops: &mut EventOps) {
        if let Err(error) = self.take(file) {
            tracing::warn!(target: "chardev", %error, "{}: a connection is lost", self.stream.label());
            self.seek(ops);
            return;
        }
        self.tell(CharEvent::Opened);
        self.pump(ops);
    }

    fn disconnect(&mut self, ops: &mut EventOps) {
        self.set_watch(Watch::Nothing, ops);
        self.unwatch_writer(ops);
        self.reader = None;
        self.stream.set_writer(None);
        self.tell(CharEvent::Closed);
        self.seek(ops);
    }

    /// Nobody is there: the next one may come.
    fn seek(&mut self, ops: &mut EventOps) {
        match &mut self.source {
            Source::Fixed | Source::Terminal { .. } => {}
            Source::Server(server) => watch(ops, server.fd(), token::SOURCE, EventSet::IN),
            Source::Client(client) => client.try_later(),
        }
    }

    fn tell(&self, event: CharEvent) {
        if let Some(device) = self.stream.front.get() {
            device.event(event);
        }
    }

    /// The descriptor of the way in has come to its end.
    fn input_ended(&mut self, ops: &mut EventOps) {
        match self.source {
            Source::Fixed => {
                self.set_watch(Watch::Nothing, ops);
                self.reader = None;
            }
            Source::Terminal { .. } => self.terminal_hung_up(ops),
            Source::Server(_) | Source::Client(_) => self.disconnect(ops),
        }
    }

    /// Reads as far as the device takes it.
    fn pump(&mut self, ops: &mut EventOps) {
        let device = self.stream.front.get();
        for _ in 0..BATCH {
            let room = device.as_ref().map_or(0, |device| device.can_receive());
            let (Some(device), 1..) = (&device, room) else {
                self.set_watch(Watch::HangUp, ops);
                return;
            };
            if !self.unread.is_empty() {
                let count = room.min(self.unread.len());
                let taken = device.receive(&self.unread[..count]);
                self.unread.drain(..taken);
                continue;
            }
            let Some(reader) = &mut self.reader else { return };
            let room = room.min(self.buffer.len());
            match reader.read(&mut self.buffer[..room]) {
                Ok(0) => {
                    self.input_ended(ops);
                    return;
                }
                Ok(count) => {
                    let taken = device.receive(&self.buffer[..count]);
                    self.unread.extend_from_slice(&self.buffer[taken..count]);
                }
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::WouldBlock => {
                        self.set_watch(Watch::Readable, ops);
                        return;
                    }
                    // A terminal that went away, a descriptor that was closed before the program started.
                    _ => {
                        tracing::debug!(target: "chardev", %error, "{}: the input ends", self.stream.label());
                        self.input_ended(ops);
                        return;
                    }
                },
            }
        }
        self.set_watch(Watch::Readable, ops);
        // What is already here wakes nobody.
        if !self.unread.is_empty()
            || self.reader.as_ref().is_some_and(|reader| reader.watch == Watch::AlwaysReady)
        {
            self.stream.wish(Wish::Input);
        }
    }

    fn set_watch(&mut self, wanted: Watch, ops: &mut EventOps) {
        let Some(reader) = &mut self.reader else { return };
        let events = |watch| {
            let set = match watch {
                Watch::HangUp => EventSet::READ_HANG_UP,
                _ => EventSet::IN,
            };
            Events::with_data_raw(reader.file.as_raw_fd(), token::READ, set)
        };
        let result = match (reader.watch, wanted) {
            (Watch::AlwaysReady, _) => return,
            (now, wanted) if now == wanted => return,
            (Watch::Nothing, _) => ops.add(events(wanted)),
            (_, Watch::Nothing) => ops.remove(events(reader.watch)),
            _ => ops.modify(events(wanted)),
        };
        reader.watch = match result {
            Ok(()) => wanted,
            Err(_) if reader.watch == Watch::Nothing => {
                self.stream.wish(Wish::Input);
                Watch::AlwaysReady
            }
            Err(error) => {
                tracing::warn!(target: "chardev", ?error, "{}: input cannot be watched", self.stream.label());
                reader.watch
            }
        };
    }

    fn readable(&mut self, set: EventSet, ops: &mut EventOps) {
        let hung_up = set.intersects(EventSet::HANG_UP | EventSet::READ_HANG_UP | EventSet::ERROR);
        let paused = self.reader.as_ref().is_some_and(|reader| reader.watch == Watch::HangUp);
        if !(hung_up && paused) {
            self.pump(ops);
        } else if matches!(self.source, Source::Terminal { .. }) {
            self.terminal_hung_up(ops);
        } else {
            self.other_side_went(ops);
        }
    }

    /// The other side is gone. What it said before is for the device, if that means to read it some time.
    fn other_side_went(&mut self, ops: &mut EventOps) {
        let rest = self.stream.front.get().map_or(Rest::Lost, |device| device.rest());
        match rest {
            // Unwatched: it would wake the thread though nothing is asked for.
            _ if matches!(self.source, Source::Fixed) => self.set_watch(Watch::Nothing, ops),
            Rest::Awaited => self.set_watch(Watch::Nothing, ops),
            Rest::Kept => {
                self.keep_rest();
                self.disconnect(ops);
            }
            Rest::Lost => {
                self.unread.clear();
                self.disconnect(ops);
            }
        }
    }

    /// Reads what there is, for the device to have before what the next one says.
    fn keep_rest(&mut self) {
        let Some(reader) = &mut self.reader else { return };
        while self.unread.len() < MOST_KEPT_BYTES {
            match reader.read(&mut self.buffer) {
                Ok(0) => return,
                Ok(count) => self.unread.extend_from_slice(&self.buffer[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn wished(&mut self, ops: &mut EventOps) {
        let wished = self.stream.take_wishes();
        if wished(Wish::Lost) && self.stream.writer_fd().is_none() {
            self.unwatch_writer(ops);
            let is_connection = matches!(self.source, Source::Server(_) | Source::Client(_));
            if is_connection && self.reader.is_some() {
                self.other_side_went(ops);
            }
            // Nobody waits for room where bytes go nowhere.
            self.room();
            self.pump_if_there(ops);
        }
        if wished(Wish::Room) {
            self.watch_writer(ops);
        }
        if wished(Wish::Input) {
            self.pump_if_there(ops);
        }
    }

    fn pump_if_there(&mut self, ops: &mut EventOps) {
        let is_absent = match &self.source {
            Source::Terminal { .. } => !self.stream.is_open(),
            _ => self.reader.is_none() && self.unread.is_empty(),
        };
        if !is_absent {
            self.pump(ops);
        }
    }

    fn room(&self) {
        if let Some(device) = self.stream.front.get() {
            device.writable();
        }
    }

    fn watch_writer(&mut self, ops: &mut EventOps) {
        if self.watched_writer.is_some() {
            return;
        }
        let Some(fd) = self.stream.writer_fd() else {
            self.room();
            return;
        };
        if ops.add(Events::with_data_raw(fd, token::WRITE, EventSet::OUT)).is_ok() {
            self.watched_writer = Some(fd);
        } else {
            // A regular file.
            self.room();
        }
    }

    fn unwatch_writer(&mut self, ops: &mut EventOps) {
        if let Some(fd) = self.watched_writer.take() {
            let _ = ops.remove(Events::with_data_raw(fd, token::WRITE, EventSet::OUT));
        }
    }

    /// Looks for a user, and at what one has typed who came and went.
    fn look_for_user(&mut self, ops: &mut EventOps) {
        self.set_present(self.stream.is_open());
        let has_room = self.stream.front.get().is_some_and(|device| device.can_receive() > 0);
        if has_room || self.stream.is_open() {
            self.pump(ops);
        }
    }

    /// Takes note of whether a user is there; if not, one is looked for in a while.
    fn set_present(&mut self, is_present: bool) {
        let Source::Terminal { timer, present } = &mut self.source else { return };
        let change = std::mem::replace(present, is_present) != is_present;
        if !is_present && let Err(error) = timer.reset(LOOK, None) {
            tracing::warn!(target: "chardev", %error, "{}: users are not seen any more", self.stream.label());
        }
        if change {
            self.tell(if is_present { CharEvent::Opened } else { CharEvent::Closed });
        }
    }

    fn terminal_hung_up(&mut self, ops: &mut EventOps) {
        self.set_watch(Watch::Nothing, ops);
        self.unwatch_writer(ops);
        self.room();
        self.set_present(false);
    }

    /// Somebody has come, or it is time to try.
    fn source_ready(&mut self, ops: &mut EventOps) {
        match &mut self.source {
            Source::Fixed => {}
            Source::Terminal { timer, .. } => {
                let _ = timer.wait();
                self.look_for_user(ops);
            }
            Source::Server(server) => match server.accept() {
                Ok(None) => {}
                Ok(Some(client)) => {
                    let _ = ops.remove(Events::with_data_raw(server.fd(), token::SOURCE, EventSet::IN));
                    self.connect(client, ops);
                }
                Err(error) => {
                    tracing::warn!(target: "chardev", %error, "{}: a client is lost", self.stream.label());
                }
            },
            Source::Client(client) => {
                client.timer_expired();
                self.try_to_connect(ops);
            }
        }
    }

    fn try_to_connect(&mut self, ops: &mut EventOps) {
        let Source::Client(client) = &mut self.source else { return };
        if let Some(file) = client.try_now() {
            self.connect(file, ops);
        } else if let Some(fd) = client.pending_fd() {
            watch(ops, fd, token::PENDING, EventSet::OUT);
        }
    }

    fn pending_ended(&mut self, ops: &mut EventOps) {
        let Source::Client(client) = &mut self.source else { return };
        if let Some(fd) = client.pending_fd() {
            let _ = ops.remove(Events::with_data_raw(fd, token::PENDING, EventSet::OUT));
        }
        if let Some(file) = client.pending_ended() {
            self.connect(file, ops);
        }
    }
}

fn watch(ops: &mut EventOps, fd: RawFd, data: u32, set: EventSet) {
    if let Err(error) = ops.add(Events::with_data_raw(fd, data, set)) {
        tracing::error!(target: "chardev", ?error, "a descriptor cannot be watched");
    }
}

impl Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.blocking {
            let mut fds = [PollFd::new(&self.file, PollFlags::IN)];
            if poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
        }
        self.file.read(buffer)
    }
}

impl MutEventSubscriber for Driver {
    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, self.stream.wakeup_fd(), token::WAKEUP, EventSet::IN);
        match &self.source {
            Source::Fixed | Source::Server(_) => {}
            Source::Terminal { timer, .. } => watch(ops, timer.as_raw_fd(), token::SOURCE, EventSet::IN),
            Source::Client(client) => watch(ops, client.timer_fd(), token::SOURCE, EventSet::IN),
        }
        match &self.source {
            Source::Terminal { .. } => self.look_for_user(ops),
            _ if self.reader.is_some() => self.pump(ops),
            Source::Fixed => {}
            Source::Server(_) => self.seek(ops),
            Source::Client(_) => self.try_to_connect(ops),
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            token::WAKEUP => self.wished(ops),
            token::READ => self.readable(events.event_set(), ops),
            token::WRITE => {
                self.unwatch_writer(ops);
                self.room();
            }
            token::SOURCE => self.source_ready(ops),
            _ => self.pending_ended(ops),
        }
    }
}
