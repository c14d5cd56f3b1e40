//! vhost-user: a back end that answers messages as it likes and does with its rings what it likes, and a guest.
#![no_main]

use std::rc::Rc;
use std::sync::Arc;

use devices::virtio::VirtioDevice;
use devices::virtio::vhost_user::BackEnd;
use devices::virtio::vhost_user::fs::{FsOptions, VhostUserFs};
use fuzz::driver::Request;
use fuzz::input::Input;
use fuzz::machine::Machine;
use fuzz::vhost_user::{Peer, RINGS};
use fuzz::virtio::{self, Subject, any_request};
use libfuzzer_sys::fuzz_target;

struct Folder {
    device: Arc<VhostUserFs>,
    peer: Rc<Peer>,
}

impl Subject for Folder {
    fn device(&self) -> Arc<dyn VirtioDevice> {
        self.device.clone()
    }

    fn request(&mut self, input: &mut Input) -> Request {
        any_request(&*self.device, input)
    }

    fn host(&mut self, input: &mut Input) {
        self.peer.step(input);
        // That it has something is told by the doorbell, where there is no thread.
        self.device.doorbells().iter().for_each(|doorbell| doorbell.ring());
    }

    fn proof(&self) -> Request {
        Request { queue: 1, readable: vec![0; 40], writable: vec![16], ..Request::default() }
    }

    fn serve(&self) {
        self.peer.work();
        self.device.doorbells().iter().for_each(|doorbell| doorbell.ring());
    }

    fn is_usable(&self) -> bool {
        self.peer.behave();
        !self.peer.is_hostile()
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let (how, kind) = (input.u8(), input.u8());
    let machine = Machine::shared();
    let num_request_queues = u16::from(kind) % (RINGS as u16 - 1) + 1;
    let options = FsOptions { tag: "fuzz".into(), queue_size: 128, num_request_queues };
    let (peer, socket) = Peer::new(kind, &mut input);
    let back_end = match BackEnd::greet("fuzz".into(), socket, options.queues()) {
        Ok(back_end) => back_end,
        Err(error) => return assert!(peer.is_hostile(), "a good back end is refused: {error}"),
    };
    back_end.set_memory(machine.memory.memory()).expect("memory that is shared");
    let device = VhostUserFs::new(back_end, &options, &machine.pace()).expect("an eventfd");
    virtio::drive(machine, Folder { device, peer }, how, input);
});
