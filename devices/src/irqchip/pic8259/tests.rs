use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

struct Board {
    pic: Arc<Pic8259>,
    intr: Arc<AtomicBool>,
    master: Arc<dyn BusDevice>,
    slave: Arc<dyn BusDevice>,
}

impl Board {
    fn new() -> Self {
        let intr = Arc::new(AtomicBool::new(false));
        let output = Arc::clone(&intr);
        let pic = Pic8259::new(Box::new(move |level| output.store(level, Ordering::SeqCst)));
        let (master, slave) = (pic.master_ports(), pic.slave_ports());
        Self { pic, intr, master, slave }
    }

    /// As Linux's init_8259A does.
    fn initialised(icw4: u8) -> Self {
        let board = Self::new();
        for (chip, base, icw3) in [(&board.master, 0x30, 4), (&board.slave, 0x38, 2)] {
            chip.write(0, &[0x11]);
            for word in [base, icw3, icw4, 0] {
                chip.write(1, &[word]);
            }
        }
        board
    }

    fn intr(&self) -> bool {
        self.intr.load(Ordering::SeqCst)
    }

    fn read(&self, ocw3: u8) -> (u8, u8) {
        let read = |chip: &Arc<dyn BusDevice>| {
            chip.write(0, &[ocw3]);
            let mut value = [0];
            chip.read(0, &mut value);
            value[0]
        };
        (read(&self.master), read(&self.slave))
    }
}

const READ_IRR: u8 = 0x0a;
const READ_ISR: u8 = 0x0b;
const EOI: u8 = 0x20;

#[test]
fn an_edge_is_latched_served_once_and_ended() {
    let board = Board::initialised(1);
    board.pic.set_irq(4, true);
    board.pic.set_irq(4, false);
    assert!(board.intr());
    assert_eq!(board.pic.acknowledge(), 0x34);
    assert!(!board.intr());
    assert_eq!(board.read(READ_ISR), (0x10, 0));
    board.pic.set_irq(4, true);
    assert!(!board.intr());
    board.master.write(0, &[EOI]);
    assert!(board.intr());
    assert_eq!(board.pic.acknowledge(), 0x34);
    board.master.write(0, &[EOI]);
    assert!(!board.intr(), "the line still high is no new edge");
}

#[test]
fn priorities_nest() {
    let board = Board::initialised(1);
    board.pic.set_irq(5, true);
    assert_eq!(board.pic.acknowledge(), 0x35);
    board.pic.set_irq(6, true);
    assert!(!board.intr());
    board.pic.set_irq(1, true);
    assert!(board.intr());
    assert_eq!(board.pic.acknowledge(), 0x31);
    board.master.write(0, &[EOI]);
    assert_eq!(board.read(READ_ISR).0, 0x20);
    board.master.write(0, &[0x65]);
    assert!(board.intr());
    assert_eq!(board.pic.acknowledge(), 0x36);
}

#[test]
fn the_slave_comes_through_the_cascade() {
    let board = Board::initialised(1);
    board.pic.set_irq(8, true);
    assert_eq!(board.read(READ_IRR), (4, 1));
    assert_eq!(board.pic.acknowledge(), 0x38);
    assert_eq!(board.read(READ_ISR), (4, 1));
    board.pic.set_irq(12, true);
    assert!(!board.intr());
    board.slave.write(0, &[EOI]);
    assert!(!board.intr(), "the master still serves the cascade");
    board.master.write(0, &[EOI]);
    assert!(board.intr());
    assert_eq!(board.pic.acknowledge(), 0x3c);
}

#[test]
fn a_withdrawn_request_is_spurious() {
    let board = Board::initialised(1);
    board.pic.elcr_ports().write(0, &[0x20, 0x02]);
    board.pic.set_irq(5, true);
    assert!(board.intr());
    board.pic.set_irq(5, false);
    assert!(!board.intr());
    assert_eq!(board.pic.acknowledge(), 0x37);
    assert_eq!(board.read(READ_ISR), (0, 0));
    board.pic.set_irq(9, true);
    board.pic.set_irq(9, false);
    assert!(!board.intr(), "the cascade follows the slave");
}

#[test]
fn level_inputs_ask_until_lowered() {
    let board = Board::initialised(1);
    let elcr = board.pic.elcr_ports();
    elcr.write(0, &[0xff, 0xff]);
    let mut value = [0; 2];
    elcr.read(0, &mut value);
    assert_eq!(value, [0xf8, 0xde]);
    board.pic.set_irq(10, true);
    for _ in 0..3 {
        assert_eq!(board.pic.acknowledge(), 0x3a);
        board.slave.write(0, &[EOI]);
        board.master.write(0, &[EOI]);
        assert!(board.intr());
    }
    board.pic.set_irq(10, false);
    assert!(!board.intr());
}

#[test]
fn masked_requests_wait() {
    let board = Board::initialised(1);
    board.master.write(1, &[0xff]);
    board.pic.set_irq(0, true);
    assert!(!board.intr());
    let mut imr = [0];
    board.master.read(1, &mut imr);
    assert_eq!(imr, [0xff]);
    board.master.write(1, &[0xfe]);
    assert!(board.intr());
}

#[test]
fn automatic_eoi_and_rotation() {
    let board = Board::initialised(3);
    board.master.write(0, &[0x80]);
    board.pic.set_irq(0, true);
    board.pic.set_irq(0, false);
    assert_eq!(board.pic.acknowledge(), 0x30);
    assert_eq!(board.read(READ_ISR).0, 0);
    board.pic.set_irq(0, true);
    board.pic.set_irq(1, true);
    assert_eq!(board.pic.acknowledge(), 0x31, "input 0 has the lowest priority now");
    assert_eq!(board.pic.acknowledge(), 0x30);
}

#[test]
fn poll_acknowledges() {
    let board = Board::initialised(1);
    assert_eq!(board.read(0x0c), (0, 0));
    board.pic.set_irq(3, true);
    board.master.write(0, &[0x0c]);
    let mut word = [0];
    board.master.read(0, &mut word);
    assert_eq!(word, [0x83]);
    assert!(!board.intr());
    assert_eq!(board.read(READ_ISR).0, 8);
}

#[test]
fn special_mask_mode_lets_lower_priorities_through() {
    let board = Board::initialised(1);
    board.pic.set_irq(1, true);
    assert_eq!(board.pic.acknowledge(), 0x31);
    board.pic.set_irq(6, true);
    assert!(!board.intr());
    board.master.write(1, &[0x02]);
    board.master.write(0, &[0x68]);
    assert!(board.intr());
    assert_eq!(board.pic.acknowledge(), 0x36);
}

#[test]
fn random_accesses_do_no_harm() {
    let board = Board::new();
    let elcr = board.pic.elcr_ports();
    let mut random = crate::testing::Random::new(8);
    for _ in 0..200_000 {
        let port = [&board.master, &board.slave, &elcr][random.below(3) as usize];
        let (offset, width) = (random.below(2), 1 << random.below(3));
        match random.below(4) {
            0 => port.write(offset, &random.next().to_le_bytes()[..width]),
            1 => port.read(offset, &mut [0; 4][..width]),
            2 => board.pic.set_irq(random.below(20) as u8, random.below(2) == 0),
            _ => {
                board.pic.acknowledge();
            }
        }
        let pair = board.pic.lock();
        assert_eq!(board.intr(), pair.master.requested().is_some(), "{:?} {:?}", pair.master, pair.slave);
    }
}
