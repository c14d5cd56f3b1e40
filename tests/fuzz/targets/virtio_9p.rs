//! virtio-9p: messages in chains of any form.
#![no_main]

use std::sync::Arc;

use devices::virtio::VirtioDevice;
use devices::virtio::p9::P9;
use devices::virtio::worker::Pace;
use fuzz::driver::Request;
use fuzz::input::Input;
use fuzz::p9::{Folder, hello, next_message};
use fuzz::virtio::{self, Subject, rooms, shape};
use libfuzzer_sys::fuzz_target;

struct Folders {
    device: Arc<P9>,
    _folder: Folder,
}

impl Subject for Folders {
    fn new(kind: u8, pace: &Pace) -> Self {
        let folder = Folder::new(kind);
        let device = P9::new(Arc::clone(&folder.share), "tag", pace).expect("an eventfd");
        Self { device, _folder: folder }
    }

    fn device(&self) -> Arc<dyn VirtioDevice> {
        self.device.clone()
    }

    fn request(&mut self, input: &mut Input) -> Request {
        let (cuts, is_indirect) = shape(input);
        let [version, attach] = hello();
        let readable = match input.u8() & 15 {
            0 => version,
            1 => attach,
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
