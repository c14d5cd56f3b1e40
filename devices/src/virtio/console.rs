//! virtio-console: consoles and serial ports (Virtio 1.2, *Console Device*).
//!
//! One thread works on all queues. The host's ends put what comes in into [`port`]s and ring its doorbell; it takes what goes
//! out to them without waiting, and keeps a chain that a slow reader has not taken whole. So a guest's writer
//! sleeps for as long as a reader does, and no CPU does.

mod link;
mod port;
pub mod spec;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use self::link::{Link, read_start, write};
use self::port::Port;
use self::spec::{config, control, feature, queue};
use super::queue::{RingError, total};
use super::worker::{Pace, QueueWork, Worker};
use super::{Activation, ActiveQueue, Doorbell, Session, VirtioDevice};

pub use port::PortOptions;

const QUEUE_SIZE: u16 = 128;
/// Ports at most, QEMU's.
pub const MAX_PORTS: u32 = 31;
/// Messages that wait for room in the driver's queue before more of the driver's are read.
const MOST_MESSAGES: usize = 64;
/// Rounds in a row; then the thread looks whether it should pause.
const ROUNDS: usize = 16;

/// The device.
pub struct Console {
    ports: Vec<Arc<Port>>,
    max_ports: u32,
    config: [u8; config::BYTES],
    sizes: Vec<u16>,
    worker: Worker,
    /// The same one for all queues.
    doorbells: Vec<Arc<Doorbell>>,
}

impl Console {
    /// A device with these ports, whose numbers differ and are below `max_ports`, which is 1 to [`MAX_PORTS`].
    pub fn new(ports: Vec<PortOptions>, max_ports: u32, pace: &Pace) -> io::Result<Arc<Self>> {
        let worker = Worker::new("virtio-serial", pace)?;
        let queues = if max_ports > 1 { 2 * (max_ports as usize + 1) } else { 2 };
        let mut space = [0; config::BYTES];
        space[config::MAX_NR_PORTS..][..4].copy_from_slice(&max_ports.to_le_bytes());
        let port = |options| Port::new(options, Arc::clone(worker.doorbell()));
        Ok(Arc::new(Self {
            ports: ports.into_iter().map(port).collect(),
            max_ports,
            config: space,
            sizes: vec![QUEUE_SIZE; queues],
            doorbells: vec![Arc::clone(worker.doorbell()); queues],
            worker,
        }))
    }
}

impl VirtioDevice for Console {
    fn name(&self) -> &'static str {
        "virtio-serial"
    }

    fn device_id(&self) -> u32 {
        spec::DEVICE_ID
    }

    fn features(&self) -> u64 {
        if self.max_ports > 1 { feature::MULTIPORT } else { 0 }
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn doorbells(&self) -> &[Arc<Doorbell>] {
        &self.doorbells
    }

    fn workers(&self) -> &[Worker] {
        std::slice::from_ref(&self.worker)
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&self, activation: Activation) {
        let is_multiport = activation.features & feature::MULTIPORT != 0;
        let mut queues = activation.queues;
        let mut take = |index: usize| queues.get_mut(index).and_then(Option::take);
        let numbers = if is_multiport { self.max_ports } else { 1 };
        let mut links = Vec::new();
        for number in 0..numbers {
            let port = self.ports.iter().find(|port| port.options.number == number);
            if let Some(port) = port {
                port.reset();
            }
            let index = number as usize;
            let (receive, transmit) = (take(queue::receive(index)), take(queue::transmit(index)));
            links.push(Link::new(port.cloned(), receive, transmit));
        }
        let (receive, transmit) = match is_multiport {
            true => (take(queue::CONTROL_RECEIVE), take(queue::CONTROL_TRANSMIT)),
            false => (None, None),
        };
        if !is_multiport && let Some(port) = links[0].port() {
            // Such a driver does not say.
            port.set_listening(true);
        }
        self.worker.start(Box::new(Traffic {
            links,
            control: Control { receive, transmit, messages: VecDeque::new() },
            session: activation.session,
            doorbell: Arc::clone(self.worker.doorbell()),
        }));
    }

    fn reset(&self) {
        self.worker.stop();
        self.ports.iter().for_each(|port| port.reset());
    }
}

/// The control queues.
struct Control {
    receive: Option<ActiveQueue>,
    transmit: Option<ActiveQueue>,
    /// For the driver.
    messages: VecDeque<Vec<u8>>,
}

/// What the thread works on.
struct Traffic {
    links: Vec<Link>,
    control: Control,
    session: Arc<Session>,
    doorbell: Arc<Doorbell>,
}

impl QueueWork for Traffic {
    fn notified(&mut self) {
        if let Err(error) = self.work() {
            let control = &mut self.control;
            control.receive.iter_mut().chain(&mut control.transmit).for_each(|queue| queue.fail(&error));
            self.links.iter_mut().for_each(|link| link.fail(&error));
        }
    }
}

impl Traffic {
    fn work(&mut self) -> Result<(), RingError> {
        for _ in 0..ROUNDS {
            let mut more = self.listen()?;
            for link in &mut self.links {
                more |= link.send()?;
                link.fetch()?;
                while let Some(is_open) = link.next_event() {
                    if link.is_ready
                        && let Some(port) = link.port()
                    {
                        let number = port.options.number;
                        self.control.say(number, control::PORT_OPEN, is_open.into(), None);
                    }
                }
            }
            more |= self.control.tell()?;
            if !more {
                return Ok(());
            }
        }
        self.doorbell.ring();
        Ok(())
    }

    /// Reads the driver's control messages. True if there were any.
    fn listen(&mut self) -> Result<bool, RingError> {
        let mut heard = false;
        while self.control.messages.len() < MOST_MESSAGES {
            let Some(queue) = &mut self.control.transmit else { break };
            let chain = match queue.pop()? {
                Some(chain) => chain,
                None if queue.has_more()? => continue,
                None => break,
            };
            let message = read_start(queue, &chain, control::BYTES)?;
            queue.finish(&chain, 0)?;
            heard = true;
            match <[u8; control::BYTES]>::try_from(message) {
                Ok(message) => self.heard(message),
                Err(message) => {
                    tracing::debug!(target: "virtio", bytes = message.len(), "a control message that is none");
                }
            }
        }
        Ok(heard)
    }

    fn heard(&mut self, message: [u8; control::BYTES]) {
        let [p0, p1, p2, p3, e0, e1, v0, v1] = message;
        let number = u32::from_le_bytes([p0, p1, p2, p3]);
        let (event, value) = (u16::from_le_bytes([e0, e1]), u16::from_le_bytes([v0, v1]));
        if event == control::DEVICE_READY {
            if value == 0 {
                tracing::debug!(target: "virtio", "the driver could not take the serial ports in");
                return;
            }
            for port in self.links.iter().filter_map(Link::port) {
                self.control.say(port.options.number, control::PORT_ADD, 1, None);
            }
            return;
        }
        let link = usize::try_from(number).ok().and_then(|number| self.links.get_mut(number));
        let Some((link, port)) = link.and_then(|link| link.port().cloned().map(|port| (link, port))) else {
            tracing::debug!(target: "virtio", number, event, "a control message for a port that there is not");
            return;
        };
        match event {
            control::PORT_READY if value != 0 => {
                link.is_ready = true;
                if port.options.is_console {
                    self.control.say(number, control::CONSOLE_PORT, 1, None);
                }
                if let Some(name) = &port.options.name {
                    self.control.say(number, control::PORT_NAME, 1, Some(name));
                }
                if link.host_is_open {
                    self.control.say(number, control::PORT_OPEN, 1, None);
                }
            }
            // Not after a reset, which has said already that nobody listens.
            control::PORT_OPEN => drop(self.session.run(|| port.set_listening(value != 0))),
            _ => {
                tracing::debug!(target: "virtio", number, event, value, "a control message without a meaning")
            }
        }
    }
}

impl Control {
    /// To the driver, when it has room.
    fn say(&mut self, number: u32, event: u16, value: u16, name: Option<&str>) {
        let mut message = number.to_le_bytes().to_vec();
        message.extend(event.to_le_bytes());
        message.extend(value.to_le_bytes());
        if let Some(name) = name {
            // As QEMU ends it; drivers take either.
            message.extend(name.bytes().chain([0]));
        }
        self.messages.push_back(message);
    }

    /// Gives the driver its messages. True if there were any that it had room for.
    fn tell(&mut self) -> Result<bool, RingError> {
        let Some(queue) = &mut self.receive else {
            self.messages.clear();
            return Ok(false);
        };
        let mut told = false;
        while let Some(message) = self.messages.front() {
            let chain = match queue.pop()? {
                Some(chain) => chain,
                None if queue.has_more()? => continue,
                None => break,
            };
            if total(&chain.writable) < message.len() as u64 {
                return Err(queue.bad_buffers(&chain, "have no room for a control message"));
            }
            write(queue, &chain, message)?;
            self.messages.pop_front();
            told = true;
        }
        Ok(told)
    }
}

#[cfg(test)]
mod tests;
