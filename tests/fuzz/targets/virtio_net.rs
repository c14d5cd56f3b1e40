//! virtio-net: headers in front of frames, merged receive buffers, offloads. What the guest sends comes back.
#![no_main]

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use devices::net::{Checksum, FrameInfo, FrameSink, IpVersion, MAX_FRAME_BYTES, NetBackend, Offloads};
use devices::virtio::VirtioDevice;
use devices::virtio::net::Net;
use devices::virtio::worker::Pace;
use fuzz::driver::Request;
use fuzz::input::Input;
use fuzz::virtio::{self, NewSubject, Subject, rooms, shape};
use libfuzzer_sys::fuzz_target;
use vmm_sys_util::eventfd::EventFd;

/// A mirror.
struct Mirror {
    frames: VecDeque<(FrameInfo, Vec<u8>)>,
    wakeup: EventFd,
    is_ready: bool,
}

/// Whether a guest with these offloads can be given the frame.
fn is_for(offloads: Offloads, info: &FrameInfo) -> bool {
    (info.checksum == Checksum::Complete || offloads.checksum)
        && info.segments.is_none_or(|segments| match segments.version {
            IpVersion::V4 => offloads.tcp4_segments,
            IpVersion::V6 => offloads.tcp6_segments,
        })
}

impl NetBackend for Mirror {
    fn offloads(&self) -> Offloads {
        Offloads::ALL
    }

    fn send(&mut self, info: &FrameInfo, frame: &[u8]) {
        assert!(frame.len() <= MAX_FRAME_BYTES);
        if self.frames.len() < 16 && !frame.is_empty() {
            self.frames.push_back((*info, frame.to_vec()));
        }
    }

    fn is_ready(&self) -> bool {
        self.is_ready
    }

    fn receive(&mut self, sink: &mut dyn FrameSink) -> bool {
        while let Some((info, frame)) = self.frames.front() {
            let (head, rest) = frame.split_at(frame.len() / 2);
            if is_for(sink.offloads(), info) && !sink.push(info, &[head, rest]) {
                return false;
            }
            self.frames.pop_front();
        }
        false
    }

    fn wakeup_fd(&self) -> RawFd {
        self.wakeup.as_raw_fd()
    }
}

struct Nets {
    device: Arc<Net>,
    network: Arc<Mutex<Box<dyn NetBackend>>>,
}

impl NewSubject for Nets {
    fn new(kind: u8, pace: &Pace) -> Self {
        let wakeup = EventFd::new(0).expect("an eventfd");
        let mirror = Mirror { frames: VecDeque::new(), wakeup, is_ready: kind & 3 != 3 };
        let network: Arc<Mutex<Box<dyn NetBackend>>> = Arc::new(Mutex::new(Box::new(mirror)));
        let device = Net::new(Arc::clone(&network), [2, 0, 0, 0, 0, 1], pace).expect("an eventfd");
        Self { device, network }
    }
}

impl Subject for Nets {
    fn device(&self) -> Arc<dyn VirtioDevice> {
        self.device.clone()
    }

    fn request(&mut self, input: &mut Input) -> Request {
        let (cuts, is_indirect) = shape(input);
        if input.u8() & 1 == 0 {
            let mut writable = rooms(input);
            writable.push(input.pick(&[1526, 12, 11, 65550, 60]));
            return Request { queue: 0, writable, cuts, is_indirect, ..Request::default() };
        }
        let header = input.bytes(12);
        let mut readable = header.to_vec();
        readable.resize(12, 0);
        readable.extend([0x55].repeat(usize::from(input.u16() % 2048)));
        readable.extend(input.short());
        Request { queue: 1, readable, cuts, is_indirect, writable: Vec::new() }
    }

    fn host(&mut self, input: &mut Input) {
        let (len, partial) = (usize::from(input.u16()) % MAX_FRAME_BYTES + 1, input.u8());
        let mut info = FrameInfo::default();
        if partial & 1 != 0 {
            info.checksum = Checksum::Partial { start: input.u16(), offset: input.u16() };
        }
        self.network.lock().expect("one thread").send(&info, &vec![0xaa; len]);
    }

    fn proof(&self) -> Request {
        // Where the network is not ready no frame is taken; a buffer for one is not given back before there is one.
        let mut network = self.network.lock().expect("one thread");
        if network.is_ready() {
            return Request { queue: 1, readable: vec![0; 72], ..Request::default() };
        }
        let mut all = Everything;
        network.receive(&mut all);
        network.send(&FrameInfo::default(), &[1; 60]);
        Request { queue: 0, writable: vec![1526], ..Request::default() }
    }
}

/// Takes all frames.
struct Everything;

impl FrameSink for Everything {
    fn offloads(&self) -> Offloads {
        Offloads::ALL
    }

    fn push(&mut self, _info: &FrameInfo, _pieces: &[&[u8]]) -> bool {
        true
    }
}

fuzz_target!(|bytes: &[u8]| virtio::run::<Nets>(bytes));
