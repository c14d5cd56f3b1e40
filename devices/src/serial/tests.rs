use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::backend::BufferBackend;
use crate::clock::ManualClock;
use crate::testing::Random;

#[derive(Default)]
struct Host {
    writes: Mutex<Vec<Vec<u8>>>,
    accepts: AtomicUsize,
    is_stuck: AtomicBool,
}

impl CharBackend for Host {
    fn write(&self, bytes: &[u8]) {
        self.writes.lock().unwrap().push(bytes.to_vec());
    }
    fn can_write(&self) -> bool {
        !self.is_stuck.load(Ordering::SeqCst)
    }
    fn accept_input(&self) {
        self.accepts.fetch_add(1, Ordering::SeqCst);
    }
}

struct Port {
    uart: Arc<Uart16550>,
    host: Arc<Host>,
    clock: Arc<ManualClock>,
}

impl Port {
    fn new() -> Self {
        let (host, clock) = (Arc::new(Host::default()), ManualClock::new());
        let uart =
            Uart16550::new(IrqLine::detached("test"), host.clone(), &(clock.clone() as Arc<dyn Clock>));
        Self { uart, host, clock }
    }
    fn read(&self, offset: u64) -> u8 {
        let mut data = [0];
        self.uart.read(offset, &mut data);
        data[0]
    }
    fn write(&self, offset: u64, value: u8) {
        self.uart.write(offset, &[value]);
    }
    fn irq(&self) -> bool {
        self.uart.irq.level()
    }
    fn writes(&self) -> Vec<String> {
        let writes = std::mem::take(&mut *self.host.writes.lock().unwrap());
        writes.into_iter().map(|bytes| String::from_utf8(bytes).unwrap()).collect()
    }
}

#[test]
fn output_goes_out_by_the_line_or_after_a_moment() {
    let port = Port::new();
    for byte in *b"hello\r\nlogin: " {
        port.write(0, byte);
    }
    assert_eq!(port.writes(), ["hello\r\n"]);
    port.clock.advance(MAX_WAIT_NS);
    assert_eq!(port.writes(), ["login: "]);
    port.write(0, b'x');
    port.uart.pause();
    assert_eq!(port.writes(), ["x"]);
    for _ in 0..1000 {
        port.write(0, b'y');
    }
    assert_eq!(port.writes().len(), 1);
    let host = Arc::clone(&port.host);
    drop(port);
    assert_eq!(host.writes.lock().unwrap().concat().len(), 1000 - 512);
}

const MAX_WAIT_NS: u64 = 1_000_000;

#[test]
fn the_clock_s_thread_does_not_wait_for_a_reader() {
    let port = Port::new();
    port.host.is_stuck.store(true, Ordering::SeqCst);
    port.write(0, b'x');
    port.clock.advance(1_000_000_000);
    port.uart.pause();
    port.uart.reset();
    assert_eq!(port.writes(), [""; 0]);
    port.host.is_stuck.store(false, Ordering::SeqCst);
    port.clock.advance(100_000_000);
    assert_eq!(port.writes(), ["x"]);
    assert_eq!(port.clock.next_deadline_ns(), None);
}

#[test]
fn probing_finds_a_16550a() {
    let port = Port::new();
    port.write(1, 0xff);
    assert_eq!(port.read(1), 0x0f);
    port.write(1, 0);
    port.write(7, 0xa5);
    assert_eq!(port.read(7), 0xa5);
    assert_eq!(port.read(2), 0x01);
    port.write(2, 0x01);
    assert_eq!(port.read(2), 0xc1);
    // Neither a 64-byte FIFO nor an extended feature register.
    port.write(3, 0x80);
    port.write(2, 0x21);
    assert_eq!(port.read(2) >> 5, 6);
    port.write(0, 0x34);
    port.write(1, 0x12);
    assert_eq!((port.read(0), port.read(1)), (0x34, 0x12));
    port.write(3, 0x03);
    assert_eq!(port.read(3), 0x03);
    // Loop back: MCR drives MSR.
    port.write(4, 0x1a);
    assert_eq!(port.read(6) & 0xf0, 0x90);
    port.write(4, 0x0b);
    assert_eq!(port.read(6) & 0xf0, 0xb0);
    assert_eq!(port.read(5), 0x60);
    assert_eq!(port.writes(), [""; 0]);
}

#[test]
fn the_empty_transmitter_asks_when_enabled_and_after_each_byte() {
    let port = Port::new();
    port.write(1, ier::ETBEI);
    assert!(port.irq());
    assert_eq!(port.read(2), 0x02);
    assert!(!port.irq());
    assert_eq!(port.read(2), 0x01);
    // Off and on again asks again: Linux tests for UARTs that do not.
    port.write(1, 0);
    port.write(1, ier::ETBEI);
    assert_eq!(port.read(2), 0x02);
    port.write(0, b'a');
    assert!(port.irq());
    port.write(1, 0);
    assert!(!port.irq());
}

#[test]
fn received_bytes_ask_until_read() {
    let port = Port::new();
    port.write(2, 0x81);
    port.write(1, ier::ERBFI);
    assert_eq!(port.uart.can_receive(), 16);
    assert_eq!(port.uart.receive(b"abc"), 3);
    assert!(port.irq());
    assert_eq!(port.read(2), 0xcc, "below the trigger of 8: timeout");
    assert_eq!(port.uart.receive(b"defgh"), 5);
    assert_eq!(port.read(2), 0xc4);
    for byte in *b"abcdefgh" {
        assert_eq!(port.read(5) & lsr::DR, lsr::DR);
        assert_eq!(port.read(0), byte);
    }
    assert!(!port.irq());
    assert_eq!(port.read(5) & lsr::DR, 0);
}

#[test]
fn input_that_does_not_fit_waits_for_room() {
    let port = Port::new();
    assert_eq!(port.uart.receive(b"ab"), 1, "without FIFOs there is one byte");
    assert_eq!(port.uart.can_receive(), 0);
    assert_eq!(port.host.accepts.load(Ordering::SeqCst), 0);
    assert_eq!(port.read(0), b'a');
    assert_eq!(port.host.accepts.load(Ordering::SeqCst), 1);
    port.read(0);
    assert_eq!(port.host.accepts.load(Ordering::SeqCst), 1);
    port.write(2, 1);
    assert_eq!(port.uart.receive(&[0; 20]), 16);
    port.write(2, 3);
    assert_eq!(port.uart.can_receive(), 16);
    assert_eq!(port.host.accepts.load(Ordering::SeqCst), 2);
    // A port in loop back hears nobody else.
    port.write(4, mcr::LOOP);
    assert_eq!(port.uart.can_receive(), 0);
    port.write(4, 0);
    assert_eq!(port.host.accepts.load(Ordering::SeqCst), 3);
}

#[test]
fn loop_back_overruns_and_modem_status() {
    let port = Port::new();
    port.write(1, ier::ELSI | ier::EDSSI);
    port.write(4, mcr::LOOP);
    assert!(port.irq());
    assert_eq!(port.read(2), iir::MODEM_STATUS);
    assert_eq!(port.read(6), 0x0b, "CTS, DSR and DCD went");
    assert!(!port.irq());
    port.write(4, mcr::LOOP | mcr::OUT1);
    assert_eq!(port.read(6), msr::RI);
    port.write(4, mcr::LOOP);
    assert_eq!(port.read(6), msr::TERI);
    port.write(0, b'a');
    port.write(0, b'b');
    assert_eq!(port.read(2), iir::LINE_STATUS);
    assert_eq!(port.read(5), lsr::THRE | lsr::TEMT | lsr::DR | lsr::OE);
    assert_eq!(port.read(5), lsr::THRE | lsr::TEMT | lsr::DR);
    assert_eq!(port.read(0), b'a');
    assert!(!port.irq());
    assert_eq!(port.writes(), [""; 0]);
}

#[test]
fn random_accesses_do_no_harm() {
    let clock = ManualClock::new();
    let uart =
        Uart16550::new(IrqLine::detached("test"), BufferBackend::new(64), &(clock.clone() as Arc<dyn Clock>));
    let mut random = Random::new(3);
    for _ in 0..100_000 {
        let (offset, width) = (random.below(8), 1 << random.below(4));
        match random.below(5) {
            0 | 1 => uart.write(offset, &random.next().to_le_bytes()[..width]),
            2 => uart.read(offset, &mut [0; 8][..width]),
            3 => assert!(uart.receive(&[1; 20]) <= 16),
            _ => clock.advance(random.below(1_000_000)),
        }
    }
    uart.reset();
    assert!(!uart.irq.level());
}

/// Takes so many bytes, then none until there is more room.
#[derive(Default)]
struct Slow {
    room: AtomicUsize,
    taken: Mutex<Vec<u8>>,
}

impl CharBackend for Slow {
    fn write(&self, _bytes: &[u8]) {
        panic!("nobody waits");
    }
    fn try_write(&self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.room.load(Ordering::SeqCst));
        self.room.fetch_sub(count, Ordering::SeqCst);
        self.taken.lock().unwrap().extend(&bytes[..count]);
        count
    }
}

#[test]
fn a_slow_reader_makes_the_guest_wait_and_not_its_cpu() {
    let (slow, clock) = (Arc::new(Slow::default()), crate::clock::HostClock::new().unwrap());
    let uart = Uart16550::new(IrqLine::detached("test"), slow.clone(), &(clock as Arc<dyn Clock>));
    let read = |offset| {
        let mut data = [0];
        uart.read(offset, &mut data);
        data[0]
    };
    uart.write(1, &[ier::ETBEI]);
    let mut sent = 0u32;
    while read(5) & lsr::THRE != 0 {
        uart.write(0, &[if sent % 80 == 79 { b'\n' } else { sent as u8 }]);
        sent += 1;
    }
    assert!((4096..5000).contains(&sent), "{sent}");
    assert_eq!(read(2) & 0xf, iir::NONE, "nothing asks for more");
    // A guest that does not look is kept for a while.
    uart.write(0, b"!");
    slow.room.store(usize::MAX, Ordering::SeqCst);
    uart.writable();
    assert_eq!(read(5) & lsr::THRE, lsr::THRE);
    assert_eq!(read(2), iir::THR_EMPTY);
    let taken = slow.taken.lock().unwrap();
    assert_eq!((taken.len(), taken.last()), (sent as usize + 1, Some(&b'!')));
}

#[test]
fn what_is_kept_for_a_reader_that_does_not_read_has_an_end() {
    let (slow, clock) = (Arc::new(Slow::default()), crate::clock::HostClock::new().unwrap());
    let uart = Uart16550::new(IrqLine::detached("test"), slow.clone(), &(clock as Arc<dyn Clock>));
    for _ in 0..200_000 {
        uart.write(0, b"\n");
    }
    slow.room.store(usize::MAX, Ordering::SeqCst);
    uart.writable();
    assert_eq!(slow.taken.lock().unwrap().len(), 64 << 10);
    uart.write(0, b"\n");
    assert_eq!(slow.taken.lock().unwrap().len(), (64 << 10) + 1);
}

#[test]
fn a_break_comes_in_its_place() {
    let port = Port::new();
    port.write(2, 1);
    port.write(1, ier::ELSI);
    port.uart.receive(b"a");
    port.uart.event(CharEvent::Break);
    port.uart.receive(b"h");
    assert_eq!((port.read(2) & 0xf, port.read(5) & lsr::BI), (iir::NONE, 0), "not yet");
    assert_eq!(port.read(0), b'a');
    assert_eq!(port.read(2) & 0xf, iir::LINE_STATUS);
    assert_eq!(port.read(5) & (lsr::BI | lsr::DR), lsr::BI | lsr::DR);
    assert_eq!(port.read(5) & (lsr::BI | lsr::DR), lsr::DR, "told once");
    assert_eq!((port.read(0), port.read(0)), (0, b'h'));
}
