//! A driver by hand, rightly and wrongly.

use vm_memory::{Bytes, GuestMemoryMmap};

use super::spec::queue;
use super::*;
use crate::testing::Random;
use crate::virtio::testing::{DATA, Driver, MEMORY, readable, writable};

const INFLATE: u16 = queue::INFLATE as u16;
const DEFLATE: u16 = queue::DEFLATE as u16;
const STATISTICS: u16 = 2;
const REPORTING: u16 = 3;
/// Pages that the tests give away.
const PAGES: u64 = 0x8_0000;

const ALL: BalloonOptions = BalloonOptions { deflate_on_oom: true, free_page_reporting: true };

fn balloon(options: BalloonOptions) -> (Driver, Arc<Balloon>) {
    let mut made = None;
    let driver = Driver::new(|pace| {
        let balloon = Balloon::new(options, pace).unwrap();
        made = Some(Arc::clone(&balloon));
        balloon
    });
    (driver, made.unwrap())
}

fn fill(memory: &GuestMemoryMmap) {
    for page in (PAGES..MEMORY).step_by(4096) {
        memory.write_obj(page, GuestAddress(page)).unwrap();
    }
}

fn is_filled(driver: &Driver, page: u64) -> bool {
    driver.memory.read_obj::<u64>(GuestAddress(page)).unwrap() == page
}

/// Names pages to a queue.
fn name(driver: &mut Driver, queue: u16, numbers: &[u32]) {
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    driver.memory.write_slice(&bytes, GuestAddress(DATA)).unwrap();
    driver.add(queue, 0, &[readable(DATA, bytes.len() as u32)]);
    driver.notify(queue);
}

#[test]
fn what_is_offered() {
    let (driver, _) = balloon(ALL);
    assert_eq!(driver.offered() & 0xff, 0b10_0110);
    let (driver, _) = balloon(BalloonOptions::default());
    assert_eq!(driver.offered() & 0xff, 0b10);
}

#[test]
fn pages_in_the_balloon_are_the_host_s() {
    let (mut driver, balloon) = balloon(ALL);
    driver.start();
    fill(&driver.memory);
    let page = (PAGES >> 12) as u32;
    // From the top down, one twice, others nowhere in RAM.
    name(&mut driver, INFLATE, &[page + 3, page + 2, page + 1, page + 1, 0xfff_ffff, u32::MAX, page + 9]);
    assert_eq!(driver.used(INFLATE, 0), (0, 0));
    for (index, page) in (PAGES..MEMORY).step_by(4096).enumerate() {
        assert_eq!(is_filled(&driver, page), !matches!(index, 1 | 2 | 3 | 9), "{index}");
    }
    assert_eq!(balloon.released_bytes(), 4 * 4096);
    let told = driver.written.0.lock().unwrap().clone();
    assert!(
        told.contains(&(PAGES + 4096, 3 * 4096)) && told.contains(&(PAGES + 9 * 4096, 4096)),
        "{told:x?}"
    );
    // Again, and back: no harm.
    name(&mut driver, INFLATE, &[page + 1]);
    name(&mut driver, DEFLATE, &[page + 1, page + 1, u32::MAX]);
    driver.memory.write_obj(7u64, GuestAddress(PAGES + 4096)).unwrap();
    assert_eq!((driver.used_index(INFLATE), driver.used_index(DEFLATE)), (2, 1));
    assert!(!driver.needs_reset());
}

#[test]
fn the_target_is_told_and_the_driver_answers() {
    let (mut driver, balloon) = balloon(ALL);
    let config = |driver: &Driver, offset| {
        let mut data = [0; 4];
        driver.transport.device().read_config(offset, &mut data);
        u32::from_le_bytes(data)
    };
    balloon.set_target(5 << 12);
    driver.start();
    assert_eq!((config(&driver, 0), driver.interrupted()), (5, false));
    balloon.set_target(64 << 20);
    assert!(driver.interrupted());
    assert_eq!(config(&driver, 0), 16384);
    driver.transport.device().write_config(4, &700u32.to_le_bytes());
    assert_eq!((balloon.actual(), config(&driver, 4)), (700 << 12, 700));
    driver.transport.device().write_config(0, &[0xff; 4]);
    driver.transport.device().write_config(5, &[1]);
    driver.transport.device().write_config(6, &[0xee; 8]);
    assert_eq!(config(&driver, 0), 16384, "the target is not the driver's");
    assert_eq!(config(&driver, 4), 0xeeee_01bc);
    driver.transport.device().write_config(u64::MAX, &[1; 4]);
    driver.start();
    assert_eq!((balloon.actual(), config(&driver, 0)), (0, 16384));
    balloon.set_target(u64::MAX);
    assert_eq!(config(&driver, 0), u32::MAX);
}

#[test]
fn statistics_come_when_they_are_wanted() {
    let (mut driver, balloon) = balloon(BalloonOptions::default());
    driver.start();
    let give = |driver: &mut Driver, free: u64| {
        let mut bytes = statistic::MEMFREE.to_le_bytes().to_vec();
        bytes.extend(free.to_le_bytes());
        bytes.extend(statistic::MEMTOT.to_le_bytes());
        bytes.extend(1000u64.to_le_bytes());
        bytes.extend([0xff; 3]);
        driver.memory.write_slice(&bytes, GuestAddress(DATA)).unwrap();
        driver.add(STATISTICS, 0, &[readable(DATA, bytes.len() as u32)]);
        driver.notify(STATISTICS);
    };
    balloon.poll_statistics();
    give(&mut driver, 1);
    assert_eq!(driver.used_index(STATISTICS), 1, "wanted before it was there");
    assert_eq!(balloon.statistics(), [(statistic::MEMFREE, 1), (statistic::MEMTOT, 1000)]);
    give(&mut driver, 2);
    assert_eq!(driver.used_index(STATISTICS), 1, "kept");
    balloon.poll_statistics();
    driver.run();
    assert_eq!(driver.used_index(STATISTICS), 2);
    give(&mut driver, 3);
    assert_eq!(balloon.statistics()[0], (statistic::MEMFREE, 3));
    // One that is not waited for replaces the other.
    give(&mut driver, 4);
    assert_eq!(driver.used_index(STATISTICS), 3);
}

#[test]
fn free_pages_that_are_reported_are_the_host_s() {
    // With and without statistics, and with a place for a queue that was not agreed on.
    for (without, reporting) in [(0, REPORTING), (feature::STATS_VQ, STATISTICS)] {
        let (mut driver, balloon) = balloon(ALL);
        let features = driver.offered() & !crate::virtio::feature::RING_EVENT_IDX & !without;
        driver.start_with(features);
        fill(&driver.memory);
        driver.add(reporting, 0, &[writable(PAGES, 0x4000), writable(PAGES + 0x8800, 0x2000)]);
        driver.notify(reporting);
        assert_eq!(driver.used(reporting, 0), (0, 0));
        for (index, page) in (PAGES..MEMORY).step_by(4096).enumerate() {
            assert_eq!(is_filled(&driver, page), !matches!(index, 0..4 | 9), "{index}");
        }
        assert_eq!(balloon.released_bytes(), 5 * 4096);
        assert!(driver.written.0.lock().unwrap().contains(&(PAGES, 0x4000)));
        // Not in RAM, half in RAM.
        driver.add(reporting, 4, &[writable(MEMORY, 0x4000), writable(MEMORY - 0x1000, 0x8000)]);
        driver.notify(reporting);
        assert_eq!((driver.used_index(reporting), balloon.released_bytes()), (2, 6 * 4096));
        assert!(!driver.needs_reset());
    }
}

#[test]
fn messages_that_make_no_sense() {
    let wrongs = [
        (INFLATE, readable(MEMORY - 4, 8), true),
        (INFLATE, readable(0xffff_0000, 4), true),
        (INFLATE, readable(0, u32::MAX), true),
        (STATISTICS, readable(MEMORY, 10), true),
        (INFLATE, readable(DATA, 3), false),
        (INFLATE, writable(DATA, 8), false),
        (STATISTICS, readable(DATA, 0x1_0000), false),
        (STATISTICS, writable(DATA, 8), false),
        (DEFLATE, readable(MEMORY, 8), false),
        (REPORTING, readable(DATA, 4096), false),
    ];
    for (index, (queue, buffer, is_wrong)) in wrongs.into_iter().enumerate() {
        let (mut driver, balloon) = balloon(ALL);
        driver.start();
        driver.add(queue, 0, &[buffer]);
        driver.notify(queue);
        assert_eq!((driver.needs_reset(), balloon.released_bytes()), (is_wrong, 0), "{index}");
        driver.start();
        assert!(!driver.needs_reset());
    }
}

#[test]
fn random_drivers_do_no_harm() {
    let mut random = Random::new(17);
    for _ in 0..60 {
        let (mut driver, balloon) = balloon(ALL);
        driver.start();
        for _ in 0..100 {
            let queue = random.below(5) as u16;
            match random.below(8) {
                0 => balloon.set_target(random.below_bits(40)),
                1 => balloon.poll_statistics(),
                2 => driver.transport.device().write_config(random.below(16), &random.next().to_le_bytes()),
                3 => {
                    let numbers: Vec<_> =
                        (0..random.below(600)).map(|_| random.below_bits(9) as u32).collect();
                    name(&mut driver, queue, &numbers);
                }
                4 if random.below(10) == 0 => driver.set_available_index(queue, random.next() as u16),
                4 if random.below(4) == 0 => driver.start(),
                _ => {
                    let (address, length) = (random.below(MEMORY + MEMORY / 8), random.below_bits(22) as u32);
                    let is_writable = random.below(2) == 0;
                    let buffer =
                        if is_writable { writable(address, length) } else { readable(address, length) };
                    driver.add(queue, random.below(8) as u16, &[buffer]);
                    driver.notify(queue);
                }
            }
            driver.run();
        }
    }
}
