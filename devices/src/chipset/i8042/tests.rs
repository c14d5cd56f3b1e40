use super::*;
use crate::testing::{Random, Requests};

struct Board {
    chip: Arc<I8042>,
    data: Arc<dyn BusDevice>,
    command: Arc<dyn BusDevice>,
    requests: Arc<Requests>,
}

impl Board {
    fn new() -> Self {
        let requests = Requests::new();
        let chip = I8042::new(IrqLine::detached("keyboard"), IrqLine::detached("aux"), requests.clone());
        let (data, command) = (chip.data_port(), chip.command_port());
        Self { chip, data, command, requests }
    }
    fn status(&self) -> u8 {
        let mut value = [0];
        self.command.read(0, &mut value);
        value[0]
    }
    fn answer(&self) -> u8 {
        assert_eq!(self.status() & status::OBF, status::OBF);
        let mut value = [0];
        self.data.read(0, &mut value);
        value[0]
    }
}

#[test]
fn pulsing_the_reset_line_resets() {
    let board = Board::new();
    assert_eq!(board.status() & 3, 0, "ready for a command");
    board.command.write(0, &[0xfe]);
    assert_eq!(board.requests.take(), [SystemRequest::Reset]);
    board.command.write(0, &[0xff]);
    board.command.write(0, &[0xd1]);
    board.data.write(0, &[0xdf]);
    assert_eq!(board.requests.take(), []);
    board.command.write(0, &[0xd0]);
    assert_eq!(board.answer(), 0xdf);
    board.command.write(0, &[0xd1]);
    board.data.write(0, &[0xde]);
    assert_eq!(board.requests.take(), [SystemRequest::Reset]);
}

#[test]
fn probing_finds_a_controller_and_no_devices() {
    let board = Board::new();
    board.command.write(0, &[0xaa]);
    assert_eq!(board.answer(), 0x55);
    assert_eq!(board.status() & status::SYS, status::SYS);
    board.command.write(0, &[0x60]);
    board.data.write(0, &[0x43]);
    board.command.write(0, &[0x20]);
    assert!(board.chip.keyboard_irq.level());
    assert_eq!(board.answer(), 0x43);
    assert!(!board.chip.keyboard_irq.level());
    board.command.write(0, &[0xd3]);
    board.data.write(0, &[0x5a]);
    assert_eq!(board.status() & status::AUX, 0);
    assert_eq!(board.answer(), 0x5a);
    board.command.write(0, &[0xa9]);
    assert_eq!(board.answer(), 1);
    board.data.write(0, &[0xf2]);
    assert_eq!(board.status() & status::TIMEOUT, status::TIMEOUT);
    assert_eq!(board.answer(), 0xfe);
    board.command.write(0, &[0xd4]);
    board.data.write(0, &[0xf2]);
    assert!(board.chip.aux_irq.level());
    assert_eq!(board.status() & (status::TIMEOUT | status::AUX), status::TIMEOUT | status::AUX);
    board.chip.reset();
    assert!(!board.chip.aux_irq.level());
    assert_eq!(board.status() & status::OBF, 0);
}

#[test]
fn random_accesses_do_no_harm() {
    let board = Board::new();
    let mut random = Random::new(6);
    for _ in 0..50_000 {
        let port = if random.below(2) == 0 { &board.data } else { &board.command };
        match random.below(2) {
            0 => port.write(0, &random.next().to_le_bytes()[..1 << random.below(3)]),
            _ => port.read(0, &mut [0; 4][..1 << random.below(3)]),
        }
    }
}
