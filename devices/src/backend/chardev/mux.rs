//! Several devices on one host's end: all write, one reads; an escape character says which, and more (QEMU, *Keys in the
//! character backend multiplexer*).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use super::Front;
use super::escape::{EscapeFilter, Typed};
use crate::backend::{CharBackend, CharDevice, CharEvent};

const LOCK: &str = "nobody panics with a multiplexer's lock held";

/// Typed bytes that wait for a guest that does not read. More is not read from the host, so that a file or a pipe as
/// input waits; but a terminal's escape keys work however long the guest sleeps.
const QUEUE_BYTES: usize = 64 << 10;

/// A key that is the program's, not the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// End the program.
    Quit,
}

struct State {
    filter: EscapeFilter,
    /// Which device has the input.
    focus: usize,
    /// What was typed, for each device.
    queues: Vec<VecDeque<u8>>,
}

/// One device's share.
#[derive(Default)]
struct Share {
    front: Front,
    wants_room: AtomicBool,
}

/// The multiplexer, which is the host's end's device.
pub struct Mux {
    main: Arc<dyn CharBackend>,
    shares: Vec<Share>,
    /// Devices are given input with it held.
    state: Mutex<State>,
    command: Box<dyn Fn(Command) + Send + Sync>,
}

impl Mux {
    /// Shares `main` among `devices`, of which the first has the input to begin with. `escape` is the escape character's code;
    /// `command` is called for keys that are the program's.
    pub fn share(
        main: Arc<dyn CharBackend>,
        devices: usize,
        escape: u8,
        command: impl Fn(Command) + Send + Sync + 'static,
    ) -> Vec<Arc<MuxFront>> {
        let state = State {
            filter: EscapeFilter::new(escape),
            focus: 0,
            queues: (0..devices).map(|_| VecDeque::new()).collect(),
        };
        let mux = Arc::new(Self {
            main,
            shares: (0..devices).map(|_| Share::default()).collect(),
            state: Mutex::new(state),
            command: Box::new(command),
        });
        let device = Arc::downgrade(&mux);
        mux.main.attach(device);
        (0..devices).map(|index| Arc::new(MuxFront { mux: Arc::clone(&mux), index })).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(LOCK)
    }

    fn device(&self, index: usize) -> Option<Arc<dyn CharDevice>> {
        self.shares.get(index)?.front.get()
    }

    /// Passes on what waits for a device.
    fn deliver(&self, state: &mut State, index: usize) {
        let (Some(device), Some(queue)) = (self.device(index), state.queues.get_mut(index)) else { return };
        while !queue.is_empty() {
            let room = device.can_receive().min(queue.len());
            let bytes: Vec<u8> = queue.iter().take(room).copied().collect();
            let taken = device.receive(&bytes);
            queue.drain(..taken);
            if taken == 0 {
                return;
            }
        }
    }

    fn typed(&self, state: &mut State, typed: Typed) {
        let devices = self.shares.len();
        match typed {
            Typed::Byte(byte) => {
                if let Some(queue) = state.queues.get_mut(state.focus) {
                    queue.push_back(byte);
                }
            }
            Typed::Quit => (self.command)(Command::Quit),
            Typed::Help => self.say(&state.filter.help(devices)),
            Typed::Next if devices > 1 => {
                self.deliver(state, state.focus);
                state.focus = (state.focus + 1) % devices;
            }
            Typed::Next => self.not_built(&state.filter, "the monitor"),
            Typed::Break => {
                self.deliver(state, state.focus);
                if let Some(device) = self.device(state.focus) {
                    device.event(CharEvent::Break);
                }
            }
            Typed::NotBuilt(key) => {
                let what = format!("{} {}", state.filter.name(), char::from(key));
                self.not_built(&state.filter, &what);
            }
        }
    }

    fn not_built(&self, filter: &EscapeFilter, what: &str) {
        self.say(&format!("\r\nbivisor: {what} is not built yet ({} h for help)\r\n", filter.name()));
    }

    /// Says something to the user, who is reading if he types.
    fn say(&self, text: &str) {
        self.main.try_write(text.as_bytes());
    }
}

impl CharDevice for Mux {
    fn can_receive(&self) -> usize {
        let mut state = self.lock();
        let focus = state.focus;
        self.deliver(&mut state, focus);
        QUEUE_BYTES.saturating_sub(state.queues.get(focus).map_or(0, VecDeque::len))
    }

    fn receive(&self, bytes: &[u8]) -> usize {
        let mut state = self.lock();
        for &byte in bytes {
            if let Some(typed) = state.filter.feed(byte) {
                self.typed(&mut state, typed);
            }
        }
        let focus = state.focus;
        self.deliver(&mut state, focus);
        bytes.len()
    }

    fn event(&self, event: CharEvent) {
        for index in 0..self.shares.len() {
            if let Some(device) = self.device(index) {
                device.event(event);
            }
        }
    }

    fn writable(&self) {
        for share in &self.shares {
            if share.wants_room.swap(false, Ordering::SeqCst)
                && let Some(device) = share.front.get()
            {
                device.writable();
            }
        }
    }
}

/// One device's host's end.
pub struct MuxFront {
    mux: Arc<Mux>,
    index: usize,
}

impl CharBackend for MuxFront {
    fn write(&self, bytes: &[u8]) {
        self.mux.main.write(bytes);
    }

    fn try_write(&self, bytes: &[u8]) -> usize {
        let wants_room = &self.mux.shares[self.index].wants_room;
        // Said before, since the room may come at once.
        wants_room.store(true, Ordering::SeqCst);
        let taken = self.mux.main.try_write(bytes);
        if taken == bytes.len() {
            wants_room.store(false, Ordering::SeqCst);
        }
        taken
    }

    fn can_write(&self) -> bool {
        self.mux.main.can_write()
    }

    fn flush(&self) {
        self.mux.main.flush();
    }

    fn accept_input(&self) {
        self.mux.deliver(&mut self.mux.lock(), self.index);
        self.mux.main.accept_input();
    }

    fn attach(&self, device: Weak<dyn CharDevice>) {
        self.mux.shares[self.index].front.set(device);
    }

    fn is_open(&self) -> bool {
        self.mux.main.is_open()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::BufferBackend;

    /// Takes 16 bytes until it is emptied, as a UART does.
    #[derive(Default)]
    struct Fifo {
        bytes: Mutex<Vec<u8>>,
        events: Mutex<Vec<CharEvent>>,
    }

    impl Fifo {
        fn take(&self) -> Vec<u8> {
            std::mem::take(&mut self.bytes.lock().unwrap())
        }
    }

    impl CharDevice for Fifo {
        fn can_receive(&self) -> usize {
            16 - self.bytes.lock().unwrap().len()
        }
        fn receive(&self, bytes: &[u8]) -> usize {
            let count = bytes.len().min(self.can_receive());
            self.bytes.lock().unwrap().extend(&bytes[..count]);
            count
        }
        fn event(&self, event: CharEvent) {
            self.events.lock().unwrap().push(event);
        }
    }

    struct Rig {
        mux: Arc<Mux>,
        fronts: Vec<Arc<MuxFront>>,
        devices: Vec<Arc<Fifo>>,
        host: Arc<BufferBackend>,
        commands: Arc<Mutex<Vec<Command>>>,
    }

    fn rig(count: usize) -> Rig {
        let (host, commands) = (BufferBackend::new(4096), Arc::new(Mutex::new(Vec::new())));
        let heard = Arc::clone(&commands);
        let fronts = Mux::share(host.clone(), count, 1, move |command| heard.lock().unwrap().push(command));
        let devices: Vec<_> = fronts
            .iter()
            .map(|front| {
                let device = Arc::new(Fifo::default());
                front.attach(Arc::downgrade(&device) as Weak<dyn CharDevice>);
                device
            })
            .collect();
        Rig { mux: Arc::clone(&fronts[0].mux), fronts, devices, host, commands }
    }

    #[test]
    fn input_goes_round() {
        let rig = rig(2);
        rig.mux.receive(b"one\x01ctwo\x01cthree\x01");
        rig.mux.receive(b"\x01");
        assert_eq!(
            (rig.devices[0].take(), rig.devices[1].take()),
            (b"onethree\x01".to_vec(), b"two".to_vec())
        );
        rig.mux.receive(b"\x01c\x01b");
        assert_eq!(rig.devices[1].events.lock().unwrap()[..], [CharEvent::Break]);
        assert!(rig.devices[0].events.lock().unwrap().is_empty());
        rig.fronts[1].write(b"from two ");
        rig.fronts[0].try_write(b"from one");
        assert_eq!(rig.host.take(), b"from two from one");
        rig.mux.event(CharEvent::Closed);
        assert_eq!(rig.devices[0].events.lock().unwrap()[..], [CharEvent::Closed]);
    }

    #[test]
    fn a_full_device_gets_the_rest_later() {
        let rig = rig(2);
        rig.mux.receive(b"0123456789abcdefghijkl\x01cother");
        assert_eq!(
            (rig.devices[0].take(), rig.devices[1].take()),
            (b"0123456789abcdef".to_vec(), b"other".to_vec())
        );
        rig.fronts[0].accept_input();
        assert_eq!(rig.devices[0].take(), b"ghijkl");
    }

    #[test]
    fn escape_keys_work_though_the_guest_does_not_read() {
        let rig = rig(1);
        rig.mux.receive(&[b'x'; 4000]);
        rig.mux.receive(b"\x01x");
        assert_eq!(rig.commands.lock().unwrap()[..], [Command::Quit]);
        rig.mux.receive(b"\x01h");
        let help = String::from_utf8(rig.host.take()).unwrap();
        assert!(help.contains("C-a x    ends the program"), "{help}");
        rig.mux.receive(b"\x01c");
        assert!(String::from_utf8(rig.host.take()).unwrap().contains("the monitor is not built yet"));
        // No more is read from the host than is kept.
        let mut typed = 4000;
        while rig.mux.can_receive() > 0 {
            typed += rig.mux.receive(&vec![b'y'; rig.mux.can_receive().min(1000)]);
        }
        assert_eq!(typed, QUEUE_BYTES + 16);
    }
}
