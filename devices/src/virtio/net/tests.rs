//! The card, with a network that says what it is told and remembers what it was sent.

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::net::{Checksum, FrameInfo, FrameSink, IpVersion, Segments};
use crate::virtio::testing::{DATA, Driver, readable, writable};

struct Wire {
    sent: Vec<(FrameInfo, Vec<u8>)>,
    /// Frames that it still takes.
    room: usize,
    coming: VecDeque<(FrameInfo, Vec<u8>)>,
    /// It brings one at a time.
    in_turns: bool,
    offloads: Offloads,
}

impl Default for Wire {
    fn default() -> Self {
        let (sent, coming, offloads) = Default::default();
        Self { sent, room: usize::MAX, coming, in_turns: false, offloads }
    }
}

struct Plug(Arc<Mutex<Wire>>, vmm_sys_util::eventfd::EventFd);

impl NetBackend for Plug {
    fn send(&mut self, info: &FrameInfo, frame: &[u8]) {
        let mut wire = self.0.lock().unwrap();
        wire.sent.push((*info, frame.to_vec()));
        wire.room -= 1;
    }

    fn offloads(&self) -> Offloads {
        Offloads::ALL
    }

    fn is_ready(&self) -> bool {
        self.0.lock().unwrap().room > 0
    }

    fn receive(&mut self, sink: &mut dyn FrameSink) -> bool {
        let mut wire = self.0.lock().unwrap();
        wire.offloads = sink.offloads();
        while let Some((info, frame)) = wire.coming.front() {
            let (first, second) = frame.split_at(frame.len() / 2);
            if !sink.push(info, &[first, &[], second]) {
                return false;
            }
            wire.coming.pop_front();
            if wire.in_turns {
                return true;
            }
        }
        false
    }

    fn wakeup_fd(&self) -> std::os::fd::RawFd {
        use std::os::fd::AsRawFd;
        self.1.as_raw_fd()
    }
}

const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

fn card() -> (Driver, Arc<Mutex<Wire>>) {
    let wire = Arc::new(Mutex::new(Wire::default()));
    let plug = Plug(Arc::clone(&wire), vmm_sys_util::eventfd::EventFd::new(0).unwrap());
    let driver = Driver::new(|pace| Net::new(Arc::new(Mutex::new(Box::new(plug))), MAC, pace).unwrap());
    (driver, wire)
}

fn read(driver: &Driver, at: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    driver.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

#[test]
fn what_the_card_shows() {
    let (driver, _) = card();
    let space = driver.transport.device().config();
    assert_eq!((&space[..6], space[6]), (&MAC[..], 1));
}

#[test]
fn frames_go_down() {
    let (mut driver, wire) = card();
    driver.start();
    assert_eq!(wire.lock().unwrap().offloads, Offloads::ALL);
    let head = [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0];
    driver.memory.write_slice(&[&head[..], b"a frame"].concat(), GuestAddress(DATA)).unwrap();
    // The header and the frame, cut elsewhere than between them.
    driver.add(1, 0, &[readable(DATA, 5), readable(DATA + 5, 14)]);
    // No frame at all.
    driver.add(1, 2, &[readable(DATA, 12)]);
    driver.notify(1);
    let info = FrameInfo {
        checksum: Checksum::Partial { start: 34, offset: 16 },
        segments: Some(Segments { version: IpVersion::V4, bytes: 1460 }),
        header_bytes: 54,
    };
    assert_eq!(wire.lock().unwrap().sent, [(info, b"a frame".to_vec())]);
    assert_eq!((driver.used_index(1), driver.used(1, 0), driver.used(1, 1)), (2, (0, 0), (2, 0)));
    assert!(driver.interrupted());
}

#[test]
fn frames_come_up_when_there_is_room() {
    let (mut driver, wire) = card();
    driver.start();
    let large: Vec<u8> = (0..300u32).map(|n| n as u8).collect();
    let info = FrameInfo {
        checksum: Checksum::Partial { start: 34, offset: 16 },
        segments: Some(Segments { version: IpVersion::V4, bytes: 100 }),
        header_bytes: 54,
    };
    wire.lock().unwrap().coming.extend([(FrameInfo::default(), b"small".to_vec()), (info, large.clone())]);
    driver.add(0, 0, &[writable(DATA, 64)]);
    driver.notify(0);
    assert_eq!((driver.used_index(0), driver.used(0, 0)), (1, (0, 17)));
    assert_eq!(read(&driver, DATA, 17), [&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0][..], b"small"].concat());
    // Not enough for the large one: the driver sees nothing of it.
    for index in 1..3 {
        driver.add(0, index, &[writable(DATA + u64::from(index) * 0x100, 150)]);
    }
    driver.notify(0);
    assert_eq!((driver.used_index(0), wire.lock().unwrap().coming.len()), (1, 1));
    driver.add(0, 3, &[writable(DATA + 0x300, 10), writable(DATA + 0x380, 100)]);
    driver.notify(0);
    assert_eq!(driver.used_index(0), 4);
    assert_eq!([1, 2, 3].map(|n| driver.used(0, n)), [(1, 150), (2, 150), (3, 12)]);
    let got = [(0x100, 150), (0x200, 150), (0x300, 10), (0x380, 2)];
    let got = got.map(|(at, count)| read(&driver, DATA + at, count)).concat();
    assert_eq!(got[..12], [1, 1, 54, 0, 100, 0, 34, 0, 16, 0, 3, 0]);
    assert_eq!(got[12..], large);
}

#[test]
fn what_fits_no_buffer_is_dropped() {
    let (mut driver, wire) = card();
    let features = driver.offered() & !(feature::MRG_RXBUF | crate::virtio::feature::RING_EVENT_IDX);
    driver.start_with(features);
    assert!(!wire.lock().unwrap().offloads.tcp4_segments);
    wire.lock()
        .unwrap()
        .coming
        .extend([vec![1; 100], vec![2; 20]].map(|frame| (FrameInfo::default(), frame)));
    driver.add(0, 0, &[writable(DATA, 64)]);
    driver.notify(0);
    assert_eq!((driver.used_index(0), driver.used(0, 0)), (1, (0, 32)));
    assert_eq!(wire.lock().unwrap().coming.len(), 0);
}

#[test]
fn a_network_without_room_leaves_frames_in_the_queue() {
    let (mut driver, wire) = card();
    wire.lock().unwrap().room = 1;
    driver.start();
    driver.memory.write_slice(&[0; 20], GuestAddress(DATA)).unwrap();
    for index in 0..3 {
        driver.add(1, index, &[readable(DATA, 20)]);
    }
    driver.notify(1);
    assert_eq!((driver.used_index(1), wire.lock().unwrap().sent.len()), (1, 1));
    wire.lock().unwrap().room = 5;
    // As if the network had woken the card.
    driver.notify(1);
    assert_eq!((driver.used_index(1), wire.lock().unwrap().sent.len()), (3, 3));
}

#[test]
fn a_network_is_asked_as_long_as_it_has_more() {
    let (mut driver, wire) = card();
    wire.lock().unwrap().in_turns = true;
    driver.start();
    wire.lock().unwrap().coming.extend(vec![(FrameInfo::default(), b"frame".to_vec()); 3]);
    for index in 0..4 {
        driver.add(0, index, &[writable(DATA, 64)]);
    }
    driver.notify(0);
    assert_eq!((driver.used_index(0), wire.lock().unwrap().coming.len()), (3, 0));
}

#[test]
fn buffers_that_make_no_sense() {
    for buffers in [&[writable(DATA, 4)][..], &[writable(0xffff_0000, 64)]] {
        let (mut driver, wire) = card();
        driver.start();
        wire.lock().unwrap().coming.push_back((FrameInfo::default(), vec![0; 20]));
        driver.add(0, 0, buffers);
        driver.notify(0);
        assert!(driver.needs_reset());
        // A reset makes it whole.
        driver.start();
        driver.memory.write_slice(&[0; 20], GuestAddress(DATA)).unwrap();
        driver.add(1, 0, &[readable(DATA, 20)]);
        driver.notify(1);
        assert_eq!(wire.lock().unwrap().sent.len(), 1);
    }
    let (mut driver, _) = card();
    driver.start();
    driver.add(1, 0, &[readable(0xffff_0000, 64)]);
    driver.notify(1);
    assert!(driver.needs_reset());
}
