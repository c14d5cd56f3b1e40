//! One input's driver and device, from power-on to the proof that a good driver still finds it well.

use std::sync::Arc;

use devices::virtio::VirtioDevice;
use devices::virtio::mmio::spec::status;
use devices::virtio::worker::Pace;

use crate::driver::{Driver, Request};
use crate::input::Input;
use crate::machine::Machine;
use crate::transport::Transport;

/// A kind of device, with what is behind it.
pub trait Subject {
    /// The device.
    fn device(&self) -> Arc<dyn VirtioDevice>;
    /// A request that makes sense, or nearly.
    fn request(&mut self, input: &mut Input) -> Request;
    /// Something happens on the host's side.
    fn host(&mut self, _input: &mut Input) {}
    /// A request that has to be answered at once.
    fn proof(&self) -> Request;
    /// The host's side does its part in that.
    fn serve(&self) {}
    /// The host's side has left the device able to.
    fn is_usable(&self) -> bool {
        true
    }
    /// Panics if the host's side is at work. Called after a reset, and while the device is paused.
    fn assert_idle(&self) {}
}

/// One of which there is a new one for each input.
pub trait NewSubject: Subject {
    /// One, as `kind` says.
    fn new(kind: u8, pace: &Pace) -> Self;
}

/// Runs an input. Its first bytes are the transport and the kind of device.
pub fn run<S: NewSubject>(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (how, kind) = (input.u8(), input.u8());
    let machine = Machine::default();
    let subject = S::new(kind, &machine.pace());
    drive(machine, subject, how, input);
}

/// The same from there on: the features that the driver takes, and what it does.
pub fn drive(machine: Machine, mut subject: impl Subject, how: u8, mut input: Input) {
    let transport = Transport::new(&machine, subject.device(), how);
    let mut driver = Driver::new(machine, transport);
    if how & 0x80 == 0 {
        let mask = u32::from_le_bytes([input.u8(); 4]);
        driver.set_up(mask | if how & 0x40 == 0 { !0 << 31 } else { 0 });
    }
    while !input.is_empty() {
        match input.u8() % 8 {
            0..4 => {
                let request = subject.request(&mut input);
                driver.ask(&request);
                driver.transport.notify(&driver.machine, request.queue);
            }
            4 => subject.host(&mut input),
            5 => driver.run(),
            _ => driver.step(&mut input),
        }
    }
    driver.run();
    if subject.is_usable() {
        assert_works(&mut driver, &subject, how & 0x20 != 0);
    }
}

/// A pause of the machine, before the device has done anything about a request, must lose nothing.
fn assert_works(driver: &mut Driver, subject: &impl Subject, pauses: bool) {
    driver.transport.device().resume();
    driver.transport.device().reset();
    subject.assert_idle();
    driver.set_up(0);
    driver.run();
    let proof = subject.proof();
    let before = driver.used(proof.queue);
    driver.ask(&proof);
    driver.transport.notify(&driver.machine, proof.queue);
    if pauses {
        driver.transport.device().pause();
        subject.assert_idle();
        driver.transport.device().resume();
    }
    driver.run();
    subject.serve();
    driver.run();
    let seen = driver.transport.status(&driver.machine);
    let ready = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
    assert_eq!(seen, ready, "a good driver's device needs a reset, or was never ready");
    assert_eq!(driver.used(proof.queue), before + 1, "a good driver's request is not answered");
    driver.transport.device().pause();
    subject.assert_idle();
}

/// A request of any bytes, for a device that does not look at them itself.
pub fn any_request(device: &dyn VirtioDevice, input: &mut Input) -> Request {
    let queue = u16::from(input.u8()) % device.queue_sizes().len() as u16;
    let (cuts, is_indirect) = shape(input);
    Request { queue, readable: input.short().to_vec(), cuts, writable: rooms(input), is_indirect }
}

/// Where a request's bytes are cut into buffers, and whether its descriptors have a table of their own.
pub fn shape(input: &mut Input) -> (Vec<u8>, bool) {
    let what = input.u8();
    let cuts = (0..what & 3).map(|_| input.u8() & 0x3f).collect();
    (cuts, what & 0x10 != 0)
}

/// Bytes of buffers for the device to write, a few.
pub fn rooms(input: &mut Input) -> Vec<u32> {
    let what = input.u8();
    (0..what & 3)
        .map(|_| input.pick(&[0, 1, 16, 100, 512, 4096, 5000, 40000]) + (u32::from(what) >> 6))
        .collect()
}
