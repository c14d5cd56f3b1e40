//! A port as the host's end sees it: what comes in waits here for the device's thread.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::backend::{CharBackend, CharDevice, CharEvent, Rest};
use crate::virtio::Doorbell;

const LOCK: &str = "nobody panics with a port's lock held";

/// Input that waits for buffers of the driver. More is not read from the host.
const STAGED_BYTES: usize = 64 << 10;

/// One of the device's ports.
pub struct PortOptions {
    /// Its number; consoles only may have 0.
    pub number: u32,
    /// What programs in the guest know it by.
    pub name: Option<String>,
    /// The guest's consoles are on such.
    pub is_console: bool,
    /// What is behind it.
    pub chardev: Arc<dyn CharBackend>,
}

/// What has come from the host.
#[derive(Default)]
pub(super) struct Input {
    /// Bytes for the driver.
    pub staged: VecDeque<u8>,
    /// Who came and went after those bytes, if the driver is told; no more bytes come until it is.
    pub events: VecDeque<CharEvent>,
    /// A program in the guest has the port open.
    pub is_listening: bool,
    /// The host's end has bytes that found no room.
    refused: bool,
}

/// A port.
pub(super) struct Port {
    pub options: PortOptions,
    input: Mutex<Input>,
    /// The device's thread's.
    doorbell: Arc<Doorbell>,
}

impl Port {
    pub fn new(options: PortOptions, doorbell: Arc<Doorbell>) -> Arc<Self> {
        let port = Arc::new(Self { options, input: Mutex::default(), doorbell });
        let device = Arc::downgrade(&port);
        port.options.chardev.attach(device);
        port
    }

    /// Nothing else is locked, or called, under it.
    pub fn input(&self) -> MutexGuard<'_, Input> {
        self.input.lock().expect(LOCK)
    }

    /// Nobody has it open, and nothing has come.
    pub fn reset(&self) {
        let mut input = self.input();
        *input = Input { refused: input.refused, ..Input::default() };
    }

    /// A program in the guest has opened or closed it.
    pub fn set_listening(&self, is_listening: bool) {
        let mut input = self.input();
        input.is_listening = is_listening;
        if !is_listening {
            // Nobody reads it any more: the driver drops what it has, too.
            input.staged.clear();
        }
        drop(input);
        // The host's end looks again, or finds that it need not wait.
        self.options.chardev.accept_input();
    }

    /// Bytes or events have been taken out of the input.
    pub fn taken(&self) {
        let mut input = self.input();
        let has_room = input.room() >= STAGED_BYTES / 2;
        if has_room && std::mem::take(&mut input.refused) {
            drop(input);
            self.options.chardev.accept_input();
        }
    }
}

impl Input {
    fn room(&self) -> usize {
        if !self.is_listening || !self.events.is_empty() {
            return 0;
        }
        STAGED_BYTES.saturating_sub(self.staged.len())
    }
}

impl CharDevice for Port {
    fn can_receive(&self) -> usize {
        let mut input = self.input();
        let room = input.room();
        input.refused |= room == 0;
        room
    }

    fn receive(&self, bytes: &[u8]) -> usize {
        let mut input = self.input();
        let taken = input.room().min(bytes.len());
        input.staged.extend(&bytes[..taken]);
        input.refused |= taken < bytes.len();
        drop(input);
        self.doorbell.ring();
        taken
    }

    fn event(&self, event: CharEvent) {
        // A console is always open, and has no line that could break.
        if self.options.is_console || event == CharEvent::Break {
            return;
        }
        let mut input = self.input();
        if input.events.len() >= 2 {
            // Gone, there, gone: gone.
            input.events.pop_back();
        } else {
            input.events.push_back(event);
        }
        drop(input);
        self.doorbell.ring();
    }

    fn writable(&self) {
        self.doorbell.ring();
    }

    fn rest(&self) -> Rest {
        if self.input().is_listening { Rest::Awaited } else { Rest::Lost }
    }
}
