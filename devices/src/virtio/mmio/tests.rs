use std::fs::File;

use super::spec::status;
use super::*;
use crate::virtio::feature;
use crate::virtio::rng::Rng;
use crate::virtio::testing::{DATA, Driver, readable, writable};

fn rng() -> Driver {
    Driver::new(|pace| Rng::new(File::open("/dev/urandom").unwrap(), pace).unwrap())
}

const UP_TO_FEATURES: u32 = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;

#[test]
fn registers_say_what_it_is() {
    let driver = rng();
    assert_eq!(driver.get(register::MAGIC_VALUE).to_le_bytes(), *b"virt");
    assert_eq!((driver.get(register::VERSION), driver.get(register::DEVICE_ID)), (2, 4));
    assert_eq!(driver.get(register::QUEUE_NUM_MAX), 64);
    driver.set(register::QUEUE_SEL, 1);
    assert_eq!((driver.get(register::QUEUE_NUM_MAX), driver.get(register::QUEUE_READY)), (0, 0));
    driver.set(register::QUEUE_SEL, u32::MAX);
    driver.set(register::QUEUE_READY, 1);
    assert_eq!(driver.get(register::QUEUE_READY), 0);
    assert_eq!(driver.get(register::SHM_LEN_LOW), u32::MAX);
    // Nothing but aligned words.
    let mut half = [0xee; 2];
    driver.transport.read(register::DEVICE_ID, &mut half);
    assert_eq!(half, [0; 2]);
    let mut word = [0xee; 4];
    driver.transport.read(register::DEVICE_ID + 2, &mut word);
    assert_eq!(word, [0; 4]);
    driver.transport.write(register::STATUS, &[1]);
    assert_eq!(driver.status(), 0);
}

#[test]
fn features_are_agreed_on_or_not() {
    let driver = rng();
    let offered = driver.offered();
    assert_ne!(offered & feature::VERSION_1, 0);
    driver.negotiate(offered);
    assert_eq!(driver.status(), UP_TO_FEATURES);
    // Not what was not offered, and not the legacy interface.
    driver.negotiate(offered | 1 << 40);
    assert_eq!(driver.status() & status::FEATURES_OK, 0);
    driver.negotiate(offered & !feature::VERSION_1);
    assert_eq!(driver.status() & status::FEATURES_OK, 0);
    driver.set(register::STATUS, driver.status() | status::DRIVER_OK);
    assert_eq!(driver.status() & status::DRIVER_OK, 0, "not without features");
    // Once agreed on they stay.
    driver.negotiate(feature::VERSION_1);
    driver.set(register::DRIVER_FEATURES_SEL, 1);
    driver.set(register::DRIVER_FEATURES, u32::MAX);
    driver.set(register::STATUS, driver.status() | status::DRIVER_OK);
    assert_eq!(driver.status(), UP_TO_FEATURES | status::DRIVER_OK);
}

#[test]
fn a_buffer_comes_back_with_an_interrupt() {
    let mut driver = rng();
    driver.start();
    driver.add(0, 3, &[writable(DATA, 32), writable(DATA + 0x1000, 32)]);
    driver.notify(0);
    assert_eq!((driver.used_index(0), driver.used(0, 0)), (1, (3, 64)));
    let mut bytes = [0u8; 32];
    vm_memory::Bytes::read_slice(&driver.memory, &mut bytes, vm_memory::GuestAddress(DATA)).unwrap();
    assert_ne!(bytes, [0; 32]);
    let told = driver.written.0.lock().unwrap().clone();
    assert!(told.contains(&(DATA, 32)) && told.contains(&(DATA + 0x1000, 32)), "{told:x?}");
    assert!(driver.interrupted());
    assert_eq!(driver.get(register::INTERRUPT_STATUS), 1);
    driver.set(register::INTERRUPT_ACK, 2);
    assert!(driver.interrupted());
    driver.set(register::INTERRUPT_ACK, 1);
    assert!(!driver.interrupted());
}

#[test]
fn event_indices_spare_interrupts() {
    let mut driver = rng();
    driver.start_with(driver.offered());
    // used_event, behind the available ring: the third chain is the one to interrupt for.
    let used_event = vm_memory::GuestAddress(0x2000 + 4 + 16 * 2);
    vm_memory::Bytes::write_obj(&driver.memory, 2u16, used_event).unwrap();
    for n in 0..3 {
        assert!(!driver.interrupted(), "{n}");
        driver.add(0, n, &[writable(DATA, 4)]);
        driver.notify(0);
    }
    assert!(driver.interrupted());
    assert_eq!(driver.used_index(0), 3);
}

#[test]
fn a_reset_forgets_everything() {
    let mut driver = rng();
    driver.start();
    driver.add(0, 0, &[writable(DATA, 4)]);
    driver.set(register::QUEUE_NOTIFY, 0);
    driver.set(register::STATUS, 0);
    driver.run();
    assert_eq!((driver.used_index(0), driver.status()), (0, 0));
    assert_eq!(driver.get(register::QUEUE_READY), 0);
    assert!(!driver.interrupted());
    driver.start();
    driver.add(0, 0, &[writable(DATA, 4)]);
    driver.notify(0);
    assert_eq!(driver.used_index(0), 1);
    crate::device::Device::reset(&*driver.transport);
    assert_eq!((driver.status(), driver.interrupted()), (0, false));
}

#[test]
fn nothing_happens_before_the_driver_is_ready() {
    let mut driver = rng();
    driver.negotiate(driver.offered());
    driver.set_queue(0);
    driver.add(0, 0, &[writable(DATA, 4)]);
    driver.notify(0);
    driver.set(register::QUEUE_NOTIFY, 77);
    assert_eq!(driver.used_index(0), 0);
    // What was made available before is served.
    driver.set(register::STATUS, driver.status() | status::DRIVER_OK);
    driver.run();
    assert_eq!(driver.used_index(0), 1);
    // A queue does not change under the device.
    driver.set(register::QUEUE_SEL, 0);
    driver.set(register::QUEUE_READY, 0);
    assert_eq!(driver.get(register::QUEUE_READY), 1);
}

#[test]
fn rings_outside_of_memory_need_a_reset() {
    let driver = rng();
    driver.negotiate(driver.offered());
    driver.set(register::QUEUE_SEL, 0);
    driver.set(register::QUEUE_DESC_LOW, 0x7000_0000);
    driver.set(register::QUEUE_READY, 1);
    driver.set(register::STATUS, driver.status() | status::DRIVER_OK);
    assert!(driver.needs_reset() && driver.interrupted());
    assert_eq!(driver.get(register::INTERRUPT_STATUS), 2);
    driver.set(register::STATUS, 0);
    assert!(!driver.needs_reset());
}

#[test]
fn rings_that_make_no_sense_need_a_reset() {
    type Lay = fn(&mut Driver);
    let broken: [(&str, Lay); 5] = [
        ("more chains than there is room for", |driver| driver.set_available_index(0, 17)),
        ("a head outside the table", |driver| driver.offer(0, 16)),
        ("a circle", |driver| {
            driver.describe(0, 0, writable(DATA, 4), Some(1));
            driver.describe(0, 1, writable(DATA, 4), Some(0));
            driver.offer(0, 0);
        }),
        ("no room at all", |driver| driver.add(0, 0, &[readable(DATA, 4)])),
        ("a buffer outside of memory", |driver| driver.add(0, 0, &[writable(u64::MAX - 3, 4)])),
    ];
    for (what, lay) in broken {
        let mut driver = rng();
        driver.start();
        lay(&mut driver);
        driver.notify(0);
        assert!(driver.needs_reset(), "{what}");
        assert_eq!(driver.used_index(0), 0, "{what}");
        // It stays so until the reset, which helps.
        driver.set_available_index(0, 0);
        driver.notify(0);
        driver.start();
        driver.add(0, 0, &[writable(DATA, 4)]);
        driver.notify(0);
        assert!(!driver.needs_reset() && driver.used_index(0) == 1, "{what}");
    }
}
