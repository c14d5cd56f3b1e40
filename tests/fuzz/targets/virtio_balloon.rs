//! virtio-balloon and virtio-rng: pages given away and back, statistics, free pages reported; random bytes.
#![no_main]

use std::sync::Arc;

use devices::virtio::VirtioDevice;
use devices::virtio::balloon::{Balloon, BalloonOptions};
use devices::virtio::rng::Rng;
use devices::virtio::worker::Pace;
use fuzz::driver::Request;
use fuzz::input::Input;
use fuzz::virtio::{self, NewSubject, Subject, rooms, shape};
use libfuzzer_sys::fuzz_target;

enum Devices {
    Balloon(Arc<Balloon>),
    Rng(Arc<Rng>),
}

impl NewSubject for Devices {
    fn new(kind: u8, pace: &Pace) -> Self {
        if kind & 7 == 7 {
            let source = std::fs::File::open("/dev/zero").expect("a device");
            return Self::Rng(Rng::new(source, pace).expect("an eventfd"));
        }
        let options = BalloonOptions { deflate_on_oom: kind & 1 == 0, free_page_reporting: kind & 2 == 0 };
        Self::Balloon(Balloon::new(options, pace).expect("an eventfd"))
    }
}

impl Subject for Devices {
    fn device(&self) -> Arc<dyn VirtioDevice> {
        match self {
            Self::Balloon(device) => device.clone(),
            Self::Rng(device) => device.clone(),
        }
    }

    fn request(&mut self, input: &mut Input) -> Request {
        let queues = self.device().queue_sizes().len() as u16;
        let queue = u16::from(input.u8()) % queues;
        let (cuts, is_indirect) = shape(input);
        let mut readable = Vec::new();
        match input.u8() & 3 {
            // Page numbers: a run of them, or any. Those of the rings' own pages, too.
            0 => {
                let (first, count) = (input.small(), u32::from(input.u8()));
                (0..count).for_each(|page| readable.extend(first.wrapping_add(page).to_le_bytes()));
            }
            1 => readable.extend(input.short()),
            // Statistics.
            2 => {
                for _ in 0..input.u8() & 15 {
                    readable.extend(u16::from(input.u8()).to_le_bytes());
                    readable.extend(u64::from(input.small()).to_le_bytes());
                }
            }
            _ => {}
        }
        Request { queue, readable, cuts, writable: rooms(input), is_indirect }
    }

    fn host(&mut self, input: &mut Input) {
        if let Self::Balloon(balloon) = self {
            match input.u8() & 1 {
                0 => balloon.set_target(input.u64()),
                _ => balloon.poll_statistics(),
            }
            std::hint::black_box((balloon.actual(), balloon.statistics(), balloon.released_bytes()));
        }
    }

    fn proof(&self) -> Request {
        match self {
            Self::Balloon(_) => Request { readable: 63u32.to_le_bytes().to_vec(), ..Request::default() },
            Self::Rng(_) => Request { writable: vec![16], ..Request::default() },
        }
    }
}

fuzz_target!(|bytes: &[u8]| virtio::run::<Devices>(bytes));
