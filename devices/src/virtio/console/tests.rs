//! A driver by hand, rightly and wrongly, and host's ends that take what they like.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, Weak};

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::backend::{CharBackend, CharDevice, CharEvent, Rest};
use crate::testing::Random;
use crate::virtio::testing::{DATA, Driver, MEMORY, readable, writable};

/// A host's end.
#[derive(Default)]
struct Host {
    taken: Mutex<Vec<u8>>,
    /// Bytes that it takes yet.
    room: AtomicUsize,
    accepts: AtomicUsize,
    is_open: AtomicBool,
    device: OnceLock<Weak<dyn CharDevice>>,
}

impl Host {
    fn new(is_open: bool) -> Arc<Self> {
        let host = Self::default();
        host.room.store(usize::MAX, Ordering::SeqCst);
        host.is_open.store(is_open, Ordering::SeqCst);
        Arc::new(host)
    }

    fn device(&self) -> Arc<dyn CharDevice> {
        self.device.get().unwrap().upgrade().unwrap()
    }

    fn taken(&self) -> Vec<u8> {
        std::mem::take(&mut self.taken.lock().unwrap())
    }

    fn set_room(&self, room: usize) {
        self.room.store(room, Ordering::SeqCst);
    }
}

impl CharBackend for Host {
    fn write(&self, _bytes: &[u8]) {
        panic!("nobody waits");
    }
    fn try_write(&self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.room.load(Ordering::SeqCst));
        self.room.fetch_sub(count, Ordering::SeqCst);
        self.taken.lock().unwrap().extend(&bytes[..count]);
        count
    }
    fn accept_input(&self) {
        self.accepts.fetch_add(1, Ordering::SeqCst);
    }
    fn attach(&self, device: Weak<dyn CharDevice>) {
        assert!(self.device.set(device).is_ok());
    }
    fn is_open(&self) -> bool {
        self.is_open.load(Ordering::SeqCst)
    }
}

/// Where the driver has the device's messages.
const MESSAGES: u64 = DATA + 0x1000;
const CONTROL_IN: u16 = queue::CONTROL_RECEIVE as u16;
const CONTROL_OUT: u16 = queue::CONTROL_TRANSMIT as u16;

struct Rig {
    driver: Driver,
    console: Arc<Host>,
    port: Arc<Host>,
    /// Messages of the device that have been looked at.
    seen: u16,
}

impl Rig {
    /// A console on port 0 and a port 2 without a client, whose driver has started.
    fn new() -> Self {
        let (console, port) = (Host::new(true), Host::new(false));
        let ports = vec![
            PortOptions { number: 0, name: None, is_console: true, chardev: console.clone() },
            PortOptions {
                number: 2,
                name: Some("org.test".into()),
                is_console: false,
                chardev: port.clone(),
            },
        ];
        let mut driver = Driver::new(|pace| Console::new(ports, 4, pace).unwrap());
        driver.start();
        let mut rig = Self { driver, console, port, seen: 0 };
        rig.give_message_buffers();
        rig
    }

    fn give_message_buffers(&mut self) {
        for index in 0..8 {
            self.driver.add(CONTROL_IN, index, &[writable(MESSAGES + u64::from(index) * 64, 64)]);
        }
        self.driver.notify(CONTROL_IN);
    }

    fn say(&mut self, number: u32, event: u16, value: u16) {
        let mut message = number.to_le_bytes().to_vec();
        message.extend(event.to_le_bytes());
        message.extend(value.to_le_bytes());
        self.driver.memory.write_slice(&message, GuestAddress(DATA)).unwrap();
        self.driver.add(CONTROL_OUT, 0, &[readable(DATA, 8)]);
        self.driver.notify(CONTROL_OUT);
    }

    /// The device's messages since the last look, as text.
    fn heard(&mut self) -> Vec<String> {
        let mut heard = Vec::new();
        while self.seen != self.driver.used_index(CONTROL_IN) {
            let (head, length) = self.driver.used(CONTROL_IN, self.seen);
            let mut bytes = vec![0; length as usize];
            self.driver.memory.read_slice(&mut bytes, GuestAddress(MESSAGES + u64::from(head) * 64)).unwrap();
            let number = u32::from_le_bytes(bytes[..4].try_into().unwrap());
            let event = match u16::from_le_bytes(bytes[4..6].try_into().unwrap()) {
                control::PORT_ADD => "add",
                control::CONSOLE_PORT => "console",
                control::PORT_OPEN => "open",
                control::PORT_NAME => "name",
                _ => "?",
            };
            let value = u16::from_le_bytes(bytes[6..8].try_into().unwrap());
            let name = String::from_utf8_lossy(&bytes[8..]).replace('\0', "$");
            heard.push(format!("{number} {event} {value} {name}").trim().to_owned());
            self.seen += 1;
        }
        heard
    }

    /// The driver takes the ports in and opens them.
    fn open(&mut self) {
        self.say(u32::MAX, control::DEVICE_READY, 1);
        for number in [0, 2] {
            self.say(number, control::PORT_READY, 1);
            self.say(number, control::PORT_OPEN, 1);
        }
        self.heard();
    }

    fn receive_queue(port: usize) -> u16 {
        queue::receive(port) as u16
    }

    /// What the `n`th buffer of a port's receive queue holds.
    fn got(&self, port: usize, n: u16, at: u64) -> Vec<u8> {
        let (_, length) = self.driver.used(Self::receive_queue(port), n);
        let mut bytes = vec![0; length as usize];
        self.driver.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }
}

#[test]
fn ports_are_introduced() {
    let mut rig = Rig::new();
    rig.say(u32::MAX, control::DEVICE_READY, 1);
    assert_eq!(rig.heard(), ["0 add 1", "2 add 1"]);
    rig.say(0, control::PORT_READY, 1);
    assert_eq!(rig.heard(), ["0 console 1", "0 open 1"], "a console is always open");
    rig.say(2, control::PORT_READY, 1);
    assert_eq!(rig.heard(), ["2 name 1 org.test$"], "nobody is there yet");
    rig.port.device().event(CharEvent::Opened);
    rig.driver.run();
    assert_eq!(rig.heard(), ["2 open 1"]);
    rig.port.device().event(CharEvent::Closed);
    rig.port.device().event(CharEvent::Opened);
    rig.driver.run();
    assert_eq!(rig.heard(), ["2 open 0", "2 open 1"]);
    let mut config = [0; 4];
    rig.driver.transport.device().read_config(4, &mut config);
    assert_eq!(u32::from_le_bytes(config), 4);
}

#[test]
fn output_goes_out_and_a_slow_reader_holds_the_chain() {
    let mut rig = Rig::new();
    rig.port.is_open.store(true, Ordering::SeqCst);
    rig.driver.start();
    let transmit = queue::transmit(2) as u16;
    let sent: Vec<u8> = (0..0x8000u32).map(|n| (n / 3) as u8).collect();
    rig.driver.memory.write_slice(&sent, GuestAddress(DATA)).unwrap();
    rig.port.set_room(0x5001);
    rig.driver.add(transmit, 0, &[readable(DATA, 0x1000), readable(DATA + 0x1000, 0x7000)]);
    rig.driver.notify(transmit);
    assert_eq!(rig.driver.used_index(transmit), 0);
    rig.port.set_room(usize::MAX);
    rig.port.device().writable();
    rig.driver.run();
    assert_eq!(rig.driver.used_index(transmit), 1);
    assert!(rig.port.taken() == sent);
    // A console's driver spins: its bytes are taken at once, and go out later.
    rig.console.set_room(1);
    let transmit = queue::transmit(0) as u16;
    for n in 0..3 {
        rig.driver.add(transmit, n, &[readable(DATA, 0x100)]);
    }
    rig.driver.notify(transmit);
    assert_eq!(rig.driver.used_index(transmit), 3);
    rig.console.set_room(usize::MAX);
    rig.console.device().writable();
    rig.driver.run();
    assert!(rig.console.taken() == [&sent[..0x100]; 3].concat());
}

#[test]
fn what_is_sent_to_nobody_is_gone() {
    let mut rig = Rig::new();
    let transmit = queue::transmit(2) as u16;
    rig.driver.add(transmit, 0, &[readable(DATA, 100)]);
    rig.driver.notify(transmit);
    assert_eq!((rig.driver.used_index(transmit), rig.port.taken().len()), (1, 0));
    // Nor is there anything behind a port that there is not.
    let transmit = queue::transmit(3) as u16;
    rig.driver.add(transmit, 0, &[readable(DATA, 100)]);
    rig.driver.notify(transmit);
    assert_eq!(rig.driver.used_index(transmit), 1);
}

#[test]
fn input_waits_for_the_guest() {
    let mut rig = Rig::new();
    let device = rig.port.device();
    assert_eq!((device.can_receive(), device.receive(b"early")), (0, 0));
    assert_eq!(device.rest(), Rest::Lost);
    rig.open();
    assert!(rig.port.accepts.load(Ordering::SeqCst) > 0 && device.rest() == Rest::Awaited);
    assert_eq!(device.receive(b"hello, guest"), 12);
    rig.driver.run();
    let receive = Rig::receive_queue(2);
    assert_eq!(rig.driver.used_index(receive), 0, "it has nowhere to go");
    rig.driver.add(receive, 0, &[writable(DATA, 4), writable(DATA + 4, 3)]);
    rig.driver.notify(receive);
    assert_eq!(rig.got(2, 0, DATA), b"hello, ");
    // Who said it goes: the guest hears of that after it has read.
    device.event(CharEvent::Opened);
    device.event(CharEvent::Closed);
    assert_eq!(device.can_receive(), 0);
    rig.give_message_buffers();
    assert_eq!(rig.heard(), [""; 0]);
    rig.driver.add(receive, 2, &[writable(DATA + 16, 100)]);
    rig.driver.notify(receive);
    assert_eq!(rig.got(2, 1, DATA + 16), b"guest");
    assert_eq!(rig.heard(), ["2 open 1", "2 open 0"]);
    // Full, and then not.
    let mut given = 0;
    while device.can_receive() > 0 {
        given += device.receive(&vec![7; device.can_receive().min(5000)]);
    }
    let accepts = rig.port.accepts.load(Ordering::SeqCst);
    rig.driver.add(receive, 4, &[writable(DATA, 0x1_0000)]);
    rig.driver.notify(receive);
    assert_eq!(rig.driver.used(receive, 2), (4, given as u32));
    assert_eq!(rig.port.accepts.load(Ordering::SeqCst), accepts + 1);
    // The guest closes it, and is reset.
    rig.say(2, control::PORT_OPEN, 0);
    assert!(device.rest() == Rest::Lost && device.can_receive() == 0);
    rig.say(0, control::PORT_OPEN, 1);
    rig.driver.start();
    assert_eq!(rig.console.device().rest(), Rest::Lost);
}

#[test]
fn a_driver_of_one_port() {
    let mut rig = Rig::new();
    let features = rig.driver.offered() & !feature::MULTIPORT & !crate::virtio::feature::RING_EVENT_IDX;
    rig.driver.start_with(features);
    let device = rig.console.device();
    assert_eq!(device.receive(b"typed"), 5);
    rig.driver.add(0, 0, &[writable(DATA, 100)]);
    rig.driver.notify(0);
    assert_eq!(rig.got(0, 0, DATA), b"typed");
    assert_eq!(rig.port.device().can_receive(), 0);
}

#[test]
fn messages_that_make_no_sense() {
    let mut rig = Rig::new();
    rig.say(u32::MAX, control::DEVICE_READY, 0);
    for number in [1, 3, 4, 99, u32::MAX] {
        for event in 0..10 {
            if (number, event) != (u32::MAX, 0) && event != control::DEVICE_READY {
                rig.say(number, event, 1);
            }
        }
    }
    for event in [1, 2, 4, 5, 7, 8, u16::MAX] {
        rig.say(0, event, 1);
    }
    assert_eq!(rig.heard(), [""; 0]);
    // Too short, empty, long.
    for length in [1, 7, 0] {
        rig.driver.add(CONTROL_OUT, 0, &[readable(DATA, length)]);
        rig.driver.notify(CONTROL_OUT);
    }
    rig.driver.memory.write_slice(&[0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0], GuestAddress(DATA)).unwrap();
    rig.driver.add(CONTROL_OUT, 0, &[readable(DATA, 0x2_0000)]);
    rig.driver.notify(CONTROL_OUT);
    assert_eq!(rig.heard(), ["0 add 1", "2 add 1"]);
    assert!(!rig.driver.needs_reset());
}

#[test]
fn messages_that_nobody_fetches_have_an_end() {
    let mut rig = Rig::new();
    let mut said = 0;
    while said - rig.driver.used_index(CONTROL_OUT) < 10 {
        rig.say(u32::MAX, control::DEVICE_READY, 1);
        said += 1;
        assert!(said < 200);
    }
    let read = rig.driver.used_index(CONTROL_OUT);
    assert!((30..60).contains(&read), "{read}");
    // Once they are fetched, more are read.
    let mut heard = rig.heard().len();
    for _ in 0..100 {
        rig.give_message_buffers();
        heard += rig.heard().len();
    }
    assert!(rig.driver.used_index(CONTROL_OUT) > read && heard > 2 * usize::from(read));
    assert!(!rig.driver.needs_reset());
}

#[test]
fn buffers_that_make_no_sense() {
    type Wrong = fn(&mut Rig);
    let wrongs: [Wrong; 5] = [
        |rig| {
            rig.driver.add(CONTROL_OUT, 0, &[readable(MEMORY - 4, 8)]);
            rig.driver.notify(CONTROL_OUT);
        },
        |rig| {
            rig.driver.add(1, 0, &[readable(0xffff_0000, 0x100)]);
            rig.driver.notify(1);
        },
        |rig| {
            rig.say(0, control::PORT_OPEN, 1);
            rig.console.device().receive(b"x");
            rig.driver.add(0, 0, &[readable(DATA, 8)]);
            rig.driver.notify(0);
        },
        |rig| {
            rig.say(0, control::PORT_OPEN, 1);
            rig.console.device().receive(b"x");
            rig.driver.add(0, 0, &[writable(MEMORY, 8)]);
            rig.driver.notify(0);
        },
        |rig| {
            rig.driver.start();
            rig.driver.add(CONTROL_IN, 0, &[writable(DATA, 7)]);
            rig.say(u32::MAX, control::DEVICE_READY, 1);
        },
    ];
    for (index, wrong) in wrongs.iter().enumerate() {
        let mut rig = Rig::new();
        wrong(&mut rig);
        assert!(rig.driver.needs_reset(), "{index}");
        rig.driver.start();
        assert!(!rig.driver.needs_reset());
    }
}

#[test]
fn random_drivers_do_no_harm() {
    let mut random = Random::new(11);
    for _ in 0..60 {
        let mut rig = Rig::new();
        for _ in 0..100 {
            let queue = random.below(rig.driver.transport.device().queue_sizes().len() as u64) as u16;
            match random.below(9) {
                0 => rig.say(random.below(5) as u32, random.below(9) as u16, random.below(3) as u16),
                1 => rig.say(u32::MAX, control::DEVICE_READY, 1),
                2 => drop(rig.console.device().receive(&vec![1; random.below(70_000) as usize])),
                3 => {
                    let event = if random.below(2) == 0 { CharEvent::Opened } else { CharEvent::Closed };
                    rig.port.device().event(event);
                }
                4 => rig.port.set_room(random.below_bits(20) as usize),
                5 => rig.console.device().writable(),
                6 if random.below(10) == 0 => rig.driver.set_available_index(queue, random.next() as u16),
                6 if random.below(4) == 0 => rig.driver.start(),
                _ => {
                    let buffers: Vec<_> = (0..1 + random.below(4))
                        .map(|_| {
                            let address = random.below(MEMORY + MEMORY / 8);
                            let length = random.below_bits(17) as u32;
                            if random.below(2) == 0 {
                                readable(address, length)
                            } else {
                                writable(address, length)
                            }
                        })
                        .collect();
                    rig.driver.add(queue, random.below(8) as u16, &buffers);
                    rig.driver.notify(queue);
                }
            }
            rig.driver.run();
        }
    }
}
