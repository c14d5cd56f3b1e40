//! virtio-9p: messages in chains of any form.
#![no_main]

use std::sync::Arc;

use devices::virtio::VirtioDevice;
use devices::virtio::p9::P9;
use devices::virtio::worker::Pace;
use fuzz::driver::Request;
use fuzz::input::Input;
use fuzz::p9::{Folder, hello, next_message};
use fuzz::virtio::{self, NewSubject, Subject, rooms, shape};
use libfuzzer_sys::fuzz_target;

struct Folders {
    device: Arc<P9>,
    /// Messages that were sent: the first ones are a client's hello.
    sent: u32,
    _folder: Folder,
}

impl NewSubject for Folders {
    fn new(kind: u8, pace: &Pace) -> Self {
        let folder = Folder::new(kind);
        let device = P9::new(Arc::clone(&folder.share), "tag", pace).expect("an eventfd");
        Self { device, sent: 0, _folder: folder }
    }
}

impl Subject for Folders {
    fn device(&self) -> Arc<dyn VirtioDevice> {
        self.device.clone()
    }

    fn request(&mut self, input: &mut Input) -> Request {
        let [version, attach] = hello();
        self.sent += 1;
        match self.sent {
            1 => return Request { readable: version, writable: vec![64], ..Request::default() },
            2 => return Request { readable: attach, writable: vec![64], ..Request::default() },
            _ => {}
        }
        let (cuts, is_indirect) = shape(input);
        let readable = match input.u8() {
            0xfe => version,
            0xff => attach,
            _ => next_message(input),
        };
        let mut writable = rooms(input);
        if input.u8() & 7 != 0 {
            writable.push(input.pick(&[8192, 11, 10, 200]));
        }
        Request { queue: 0, readable, cuts, writable, is_indirect }
    }

    fn proof(&self) -> Request {
        let [version, _] = hello();
        Request { readable: version, writable: vec![64], ..Request::default() }
    }
}

fuzz_target!(|bytes: &[u8]| virtio::run::<Folders>(bytes));
