//! vhost: devices on whose rings the host's kernel works, the guest's own or others, a kernel that does not always do as it should,
//! and a guest.
#![no_main]

use std::rc::Rc;
use std::sync::Arc;

use devices::dma::DmaObserver;
use devices::net::tap::Tap;
use devices::virtio::VirtioDevice;
use devices::virtio::vhost::net::{VhostNet, VhostTap};
use devices::virtio::vhost::vsock::{Seqpacket, VhostStreams, VhostVsock};
use devices::virtio::vhost::{VhostError, VhostFile};
use fuzz::driver::Request;
use fuzz::input::Input;
use fuzz::machine::Machine;
use fuzz::vhost::{Kernel, Kind, Signal, TAKEN, Told};
use fuzz::virtio::{self, Subject, any_request};
use libfuzzer_sys::fuzz_target;

/// Features without which there is no device, and streams of messages.
const NEEDED: [u64; 3] = [1 << 28, 1 << 29, 1 << 32];
const MRG_RXBUF: u64 = 1 << 15;
const SEQPACKET: u64 = 1 << 1;

struct Vhost {
    device: Arc<dyn VirtioDevice>,
    kernel: Rc<Kernel>,
}

impl Vhost {
    /// The device's threads hear what the kernel says.
    fn hear(&self) {
        for signal in self.kernel.signals() {
            let worker = match signal {
                Signal::Call(ring) => self.device.workers().get(ring),
                Signal::Error => self.device.workers().last(),
            };
            worker.expect("each has one").doorbell().ring();
        }
    }
}

impl Subject for Vhost {
    fn device(&self) -> Arc<dyn VirtioDevice> {
        self.device.clone()
    }

    fn request(&mut self, input: &mut Input) -> Request {
        any_request(&*self.device, input)
    }

    fn host(&mut self, input: &mut Input) {
        self.kernel.step(input);
        self.hear();
    }

    fn proof(&self) -> Request {
        Request { queue: 1, readable: vec![7; 44], writable: vec![16], ..Request::default() }
    }

    fn serve(&self) {
        self.kernel.work();
        self.hear();
    }

    fn is_usable(&self) -> bool {
        self.kernel.behave();
        !self.kernel.is_stuck()
    }

    fn assert_idle(&self) {
        self.kernel.assert_idle();
    }
}

/// How a device is made: bits of a byte of the input.
mod kind {
    pub const OBSERVED: u8 = 1;
    pub const NET: u8 = 2;
    pub const SCRIPT: u8 = 4;
    pub const HEADER: u8 = 8;
    /// Both: something is amiss.
    pub const ODD: u8 = 0xc0;
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let (how, kind) = (input.u8(), input.u8());
    let observed = kind & kind::OBSERVED != 0;
    let told = Arc::new(Told::default());
    let observer = observed.then(|| Arc::clone(&told) as Arc<dyn DmaObserver>);
    let machine = Machine::in_two_parts(observer);
    let pace = machine.pace();
    let mut cid = 3;
    let mut lacks = 0;
    if kind & kind::ODD == kind::ODD {
        cid = input.small();
        lacks = input.pick(&[0, NEEDED[0], NEEDED[1], NEEDED[2], MRG_RXBUF, SEQPACKET]);
    }
    let is_net = kind & kind::NET != 0;
    let of = if is_net { Kind::Net { has_header: kind & kind::HEADER != 0 } } else { Kind::Vsock };
    let script = (kind & kind::SCRIPT != 0).then_some(&mut input);
    let (kernel, file, tap) = Kernel::new(of, observed, lacks, machine.memory.memory(), script);
    let is_old = NEEDED.contains(&lacks);
    let (device, is_bad) = if is_net {
        let device = || -> Result<_, VhostError> {
            let Ok(tap) = Tap::inherited(tap, 8) else { return Ok(None) };
            let network = VhostTap::new(VhostFile::inherited(file, 7)?, tap)?;
            Ok(Some(VhostNet::new(network, [2; 6], observed, &pace)? as Arc<dyn VirtioDevice>))
        };
        (device(), is_old || lacks == MRG_RXBUF)
    } else {
        let seqpacket = [Seqpacket::Auto, Seqpacket::On, Seqpacket::Off][usize::from(kind >> 4 & 3) % 3];
        let device = || -> Result<_, VhostError> {
            let streams = VhostStreams::new(VhostFile::inherited(file, 7)?, cid, seqpacket)?;
            Ok(Some(VhostVsock::new(streams, observed, &pace)? as Arc<dyn VirtioDevice>))
        };
        let is_nobodys = cid <= 2 || cid == u32::MAX || cid == TAKEN;
        let lacks_messages = seqpacket == Seqpacket::On && lacks == SEQPACKET;
        (device(), is_old || is_nobodys || lacks_messages)
    };
    match device {
        Ok(Some(device)) => {
            assert!(!is_bad, "a kernel that cannot do it is taken");
            virtio::drive(machine, Vhost { device, kernel: Rc::clone(&kernel) }, how, input);
            if observed {
                kernel.assert_told(&told);
            }
        }
        Ok(None) => assert!(kernel.has_failed(), "a tap is refused"),
        Err(error) => assert!(is_bad || kernel.has_failed(), "a good kernel is refused: {error}"),
    }
});
