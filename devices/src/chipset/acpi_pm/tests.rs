use super::*;
use crate::clock::ManualClock;
use crate::testing::{Random, Requests};

struct Board {
    pm: Arc<AcpiPm>,
    clock: Arc<ManualClock>,
    requests: Arc<Requests>,
}

impl Board {
    fn new() -> Self {
        let (clock, requests) = (ManualClock::new(), Requests::new());
        let pm = AcpiPm::new(IrqLine::detached("sci"), clock.clone(), requests.clone());
        Self { pm, clock, requests }
    }
    fn read16(&self, offset: u64) -> u16 {
        let mut data = [0; 2];
        self.pm.read(offset, &mut data);
        u16::from_le_bytes(data)
    }
    fn write16(&self, offset: u64, value: u16) {
        self.pm.write(offset, &value.to_le_bytes());
    }
    fn timer(&self) -> u32 {
        let mut data = [0; 4];
        self.pm.read(spec::PM_TMR_BLK, &mut data);
        u32::from_le_bytes(data)
    }
}

#[test]
fn soft_off() {
    let board = Board::new();
    assert_eq!(board.read16(4), pm1_cnt::SCI_EN);
    // Linux writes the type first, then again with SLP_EN.
    board.write16(4, spec::SLP_TYP_S5 << 10 | 1);
    assert_eq!(board.requests.take(), []);
    board.write16(4, spec::SLP_TYP_S5 << 10 | pm1_cnt::SLP_EN | 1);
    assert_eq!(board.requests.take(), [SystemRequest::PowerOff]);
    board.write16(4, 1 << 10 | pm1_cnt::SLP_EN);
    assert_eq!(board.requests.take(), []);
    assert_eq!(board.read16(4), 1 << 10 | 1, "SLP_EN is write-only");
    board.pm.write(5, &[(spec::SLP_TYP_S5 << 2 | pm1_cnt::SLP_EN >> 8) as u8]);
    assert_eq!(board.requests.take(), [SystemRequest::PowerOff]);
}

#[test]
fn the_timer_counts_and_carries() {
    let board = Board::new();
    board.clock.advance(1_000_000_000);
    assert_eq!(board.timer(), 3_579_545);
    board.write16(2, pm1::TMR);
    board.clock.advance(598_000_000_000);
    assert!(!board.pm.sci.level());
    board.clock.advance(2_000_000_000);
    assert!(board.pm.sci.level());
    assert_eq!(board.timer() >> 31, 1);
    board.write16(0, pm1::TMR);
    assert!(!board.pm.sci.level());
    board.clock.advance(600_000_000_000);
    assert!(board.pm.sci.level());
    assert_eq!(board.timer() >> 31, 0);
}

#[test]
fn power_button() {
    let board = Board::new();
    board.pm.press_power_button();
    assert!(!board.pm.sci.level());
    board.write16(2, 0xffff);
    assert_eq!(board.read16(2), pm1::ENABLES);
    assert!(board.pm.sci.level());
    assert_eq!(board.read16(0), pm1::PWRBTN);
    board.write16(0, pm1::PWRBTN);
    assert!(!board.pm.sci.level());
    board.pm.press_power_button();
    board.pm.reset();
    assert!(!board.pm.sci.level());
    assert_eq!((board.read16(0), board.read16(2)), (0, 0));
}

#[test]
fn random_accesses_do_no_harm() {
    let board = Board::new();
    let mut random = Random::new(5);
    for _ in 0..100_000 {
        let (offset, width) = (random.below(spec::PORTS), 1 << random.below(4));
        match random.below(3) {
            0 => board.pm.write(offset, &random.next().to_le_bytes()[..width]),
            1 => board.pm.read(offset, &mut [0; 8][..width]),
            _ => board.clock.advance(random.below_bits(40)),
        }
    }
}
