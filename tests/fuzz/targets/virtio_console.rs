//! virtio-console: control messages, and bytes both ways with a host's end that is slow, comes and goes.
#![no_main]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use devices::backend::{CharBackend, CharDevice, CharEvent};
use devices::virtio::VirtioDevice;
use devices::virtio::console::{Console, PortOptions};
use devices::virtio::worker::Pace;
use fuzz::driver::Request;
use fuzz::input::Input;
use fuzz::virtio::{self, NewSubject, Subject, rooms, shape};
use libfuzzer_sys::fuzz_target;

/// The host's end of a port, that takes so many bytes.
#[derive(Default)]
struct End {
    device: Mutex<Option<Weak<dyn CharDevice>>>,
    room: AtomicUsize,
}

impl End {
    fn device(&self) -> Option<Arc<dyn CharDevice>> {
        self.device.lock().expect("one thread").as_ref().and_then(Weak::upgrade)
    }
}

impl CharBackend for End {
    fn write(&self, _bytes: &[u8]) {}

    fn try_write(&self, bytes: &[u8]) -> usize {
        let room = self.room.load(Ordering::Relaxed);
        let taken = room.min(bytes.len());
        self.room.store(room - taken, Ordering::Relaxed);
        taken
    }

    fn can_write(&self) -> bool {
        self.room.load(Ordering::Relaxed) > 0
    }

    fn attach(&self, device: Weak<dyn CharDevice>) {
        *self.device.lock().expect("one thread") = Some(device);
    }
}

struct Consoles {
    device: Arc<Console>,
    ends: Vec<Arc<End>>,
}

impl NewSubject for Consoles {
    fn new(kind: u8, pace: &Pace) -> Self {
        let max_ports = u32::from(kind % 5) + 1;
        let count = u32::from(kind >> 4) % max_ports + 1;
        let ends: Vec<Arc<End>> = (0..count).map(|_| Arc::default()).collect();
        let ports = (0..).zip(&ends).map(|(number, end)| {
            let name = (number % 2 == 1).then(|| format!("org.fuzz.{number}"));
            PortOptions { number, name, is_console: number % 2 == 0, chardev: Arc::clone(end) as _ }
        });
        Self { device: Console::new(ports.collect(), max_ports, pace).expect("an eventfd"), ends }
    }
}

impl Subject for Consoles {
    fn device(&self) -> Arc<dyn VirtioDevice> {
        self.device.clone()
    }

    fn request(&mut self, input: &mut Input) -> Request {
        let queues = self.device.queue_sizes().len() as u16;
        let (cuts, is_indirect) = shape(input);
        match input.u8() & 3 {
            // A control message, mostly.
            0 => {
                let (port, event, value) = (input.small() % 7, input.u8() % 9, input.u8() & 3);
                let mut readable = port.to_le_bytes().to_vec();
                readable.extend(u16::from(event).to_le_bytes());
                readable.extend(u16::from(value).to_le_bytes());
                readable.truncate(usize::from(8 - input.u8() % 16 / 15));
                Request { queue: 3 % queues, readable, cuts, is_indirect, writable: Vec::new() }
            }
            1 => {
                let queue = (u16::from(input.u8()) * 2) % queues;
                Request { queue, writable: rooms(input), is_indirect, ..Request::default() }
            }
            2 => {
                let queue = (u16::from(input.u8()) * 2 + 1) % queues;
                Request { queue, readable: input.short().to_vec(), cuts, is_indirect, writable: Vec::new() }
            }
            _ => {
                let queue = u16::from(input.u8()) % queues;
                let (readable, writable) = (input.short().to_vec(), rooms(input));
                Request { queue, readable, cuts, writable, is_indirect }
            }
        }
    }

    fn host(&mut self, input: &mut Input) {
        let end = &self.ends[usize::from(input.u8()) % self.ends.len()];
        let Some(device) = end.device() else { return };
        match input.u8() & 3 {
            0 => {
                let bytes = input.short().repeat(usize::from(input.u8()) + 1);
                let room = device.can_receive().min(bytes.len());
                assert!(device.receive(&bytes[..room]) <= room);
            }
            1 => device.event(input.pick(&[CharEvent::Opened, CharEvent::Closed, CharEvent::Break])),
            2 => {
                end.room.store(input.u16().into(), Ordering::Relaxed);
                device.writable();
            }
            _ => _ = device.rest(),
        }
    }

    fn proof(&self) -> Request {
        self.ends.iter().for_each(|end| end.room.store(1 << 20, Ordering::Relaxed));
        Request { queue: 1, readable: b"hello".to_vec(), ..Request::default() }
    }
}

fuzz_target!(|bytes: &[u8]| virtio::run::<Consoles>(bytes));
