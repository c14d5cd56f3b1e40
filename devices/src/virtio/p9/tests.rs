//! The device, with a folder behind it.

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::p9::{Multidevs, SecurityModel, ShareOptions};
use crate::virtio::testing::{DATA, Driver, readable, writable};

fn folder() -> std::path::PathBuf {
    let name = std::thread::current().name().unwrap_or("test").replace(':', "-");
    let folder = std::env::temp_dir().join(format!("bivisor-virtio-9p-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn device() -> Driver {
    let folder = folder();
    let security = SecurityModel::None;
    let options = ShareOptions { security, read_only: true, multidevs: Multidevs::Remap };
    let share = Share::open(&folder, options).unwrap();
    std::fs::remove_dir(&folder).unwrap();
    let mut driver = Driver::new(|pace| P9::new(share, "tag", pace).unwrap());
    driver.start();
    driver
}

/// `Tversion` of 9P2000.L and 8192 bytes.
fn hello() -> Vec<u8> {
    [&[21, 0, 0, 0, 100, 0xff, 0xff, 0, 32, 0, 0, 8, 0][..], b"9P2000.L"].concat()
}

fn read(driver: &Driver, at: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    driver.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

#[test]
fn a_request_is_answered() {
    let mut driver = device();
    assert_eq!(driver.transport.device().config(), b"\x03\0tag");
    assert_eq!(driver.offered() & MOUNT_TAG, MOUNT_TAG);
    driver.memory.write_slice(&hello(), GuestAddress(DATA)).unwrap();
    // Cut anywhere, with more room than the message takes on both sides.
    for (head, cut) in [(0, 2), (4, 7), (8, 20)] {
        let after = DATA + 0x1000 + u64::from(head) * 0x100;
        let buffers = [
            readable(DATA, cut),
            readable(DATA + u64::from(cut), 100),
            writable(after, cut),
            writable(after + u64::from(cut), 100),
        ];
        driver.add(0, head, &buffers);
        driver.notify(0);
        assert_eq!(driver.used(0, head / 4), (u32::from(head), 21));
        let mut answer = hello();
        answer[4] = 101;
        assert_eq!(read(&driver, after, 21), answer);
    }
    assert!(driver.interrupted());
    // A new session after a reset.
    driver.start();
    driver.add(0, 0, &[readable(DATA, 21), writable(DATA + 0x1000, 11)]);
    driver.notify(0);
    assert_eq!(driver.used(0, 0), (0, 11));
    assert_eq!(read(&driver, DATA + 0x1004, 1), [7], "there is room for an error");
}

#[test]
fn messages_that_are_cut_or_lie() {
    let mut driver = device();
    for (head, (size, there)) in (0u16..).step_by(2).zip([(22, 21), (u32::MAX, 0x1_0000), (0, 21), (6, 21)]) {
        let mut message = hello();
        message[..4].copy_from_slice(&u32::to_le_bytes(size));
        driver.memory.write_slice(&message, GuestAddress(DATA)).unwrap();
        driver.add(0, head, &[readable(DATA, there), writable(DATA + 0x2_0000, 4096)]);
        driver.notify(0);
        assert_eq!(driver.used(0, head / 2), (u32::from(head), 11), "{size}");
    }
    assert!(!driver.needs_reset());
}

#[test]
fn buffers_that_make_no_sense() {
    let cases: [&[_]; 5] = [
        &[readable(DATA, 21), writable(DATA + 0x1000, 10)],
        &[readable(DATA, 6), writable(DATA + 0x1000, 100)],
        &[readable(DATA, 21)],
        &[readable(0xffff_0000, 21), writable(DATA + 0x1000, 100)],
        &[readable(DATA, 21), writable(0xffff_0000, 100)],
    ];
    for buffers in cases {
        let mut driver = device();
        driver.memory.write_slice(&hello(), GuestAddress(DATA)).unwrap();
        driver.add(0, 0, buffers);
        driver.notify(0);
        assert!(driver.needs_reset());
    }
}
