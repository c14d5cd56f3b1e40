//! 16550A UART. National Semiconductor PC16550D (June 1995).
//!
//! The line has no speed: a byte is sent the moment it is written, and one that the host has is received as soon as
//! there is room. A reader that is slow makes the transmitter full after a while, so that the guest waits and its CPU does not. (`vm-superio`'s serial port is not used: its interrupts are pulses, reading its IIR drops pending
//! causes, and each byte is a write of its own.)

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use crate::backend::{CharBackend, CharDevice, CharEvent};
use crate::bus::BusDevice;
use crate::clock::Clock;
use crate::device::Device;
use crate::interrupt::IrqLine;
use crate::lock_rank::device::{Mutex, MutexGuard};

pub mod spec;
#[cfg(test)]
mod tests;
mod transmit;

use spec::{fcr, ier, iir, lcr, lsr, mcr, msr, register};
use transmit::Transmitter;

/// What has come over the line.
#[derive(Clone, Copy)]
enum Received {
    Byte(u8),
    /// Reads as zero, with the break bit.
    Break,
}

struct Registers {
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    /// Delta bits; the state bits are computed.
    msr_deltas: u8,
    scr: u8,
    divisor: [u8; 2],
    received: VecDeque<Received>,
    has_overrun: bool,
    /// LSR was read with a break at the front of the FIFO.
    break_seen: bool,
    /// The transmitter became empty and nobody has been told.
    thr_empty_pending: bool,
    /// The host has input that did not fit.
    refused_input: bool,
}

impl Registers {
    fn power_on() -> Self {
        Self {
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            msr_deltas: 0,
            scr: 0,
            // 9600 baud; the data sheet leaves it undefined.
            divisor: [12, 0],
            received: VecDeque::with_capacity(spec::FIFO_DEPTH),
            has_overrun: false,
            break_seen: false,
            thr_empty_pending: false,
            refused_input: false,
        }
    }

    fn is_loop(&self) -> bool {
        self.mcr & mcr::LOOP != 0
    }

    fn capacity(&self) -> usize {
        if self.fcr & fcr::ENABLE != 0 { spec::FIFO_DEPTH } else { 1 }
    }

    fn room(&self) -> usize {
        self.capacity().saturating_sub(self.received.len())
    }

    fn push_received(&mut self, what: Received) {
        if self.room() == 0 {
            self.has_overrun = true;
        } else {
            self.received.push_back(what);
        }
    }

    fn pop_received(&mut self) -> u8 {
        self.break_seen = false;
        match self.received.pop_front() {
            Some(Received::Byte(byte)) => byte,
            Some(Received::Break) | None => 0,
        }
    }

    /// A break is at the front and LSR has not told.
    fn has_break(&self) -> bool {
        !self.break_seen && matches!(self.received.front(), Some(Received::Break))
    }

    /// MSR bits 7:4: the MODEM that is always there, or in loop back what MCR drives.
    fn modem_inputs(&self) -> u8 {
        if !self.is_loop() {
            return msr::CTS | msr::DSR | msr::DCD;
        }
        [(mcr::RTS, msr::CTS), (mcr::DTR, msr::DSR), (mcr::OUT1, msr::RI), (mcr::OUT2, msr::DCD)]
            .into_iter()
            .filter(|(output, _)| self.mcr & output != 0)
            .fold(0, |inputs, (_, input)| inputs | input)
    }

    fn lsr(&self, transmitter_is_full: bool) -> u8 {
        let bit = |is_set, bit| if is_set { bit } else { 0 };
        bit(!self.received.is_empty(), lsr::DR)
            | bit(self.has_overrun, lsr::OE)
            | bit(self.has_break(), lsr::BI)
            | bit(!transmitter_is_full, lsr::THRE | lsr::TEMT)
    }

    /// The pending cause with the highest priority, as IIR bits 3:0.
    fn cause(&self) -> u8 {
        if self.ier & ier::ELSI != 0 && (self.has_overrun || self.has_break()) {
            return iir::LINE_STATUS;
        }
        if self.ier & ier::ERBFI != 0 && !self.received.is_empty() {
            // Bytes below the trigger would ask after four character times without another one: at no speed, at once.
            let trigger = fcr::TRIGGER_BYTES[usize::from(self.fcr >> fcr::TRIGGER_SHIFT)];
            let is_fifo = self.fcr & fcr::ENABLE != 0;
            return if is_fifo && self.received.len() < trigger { iir::TIMEOUT } else { iir::RECEIVED_DATA };
        }
        if self.ier & ier::ETBEI != 0 && self.thr_empty_pending {
            return iir::THR_EMPTY;
        }
        if self.ier & ier::EDSSI != 0 && self.msr_deltas != 0 {
            return iir::MODEM_STATUS;
        }
        iir::NONE
    }

    fn read_iir(&mut self) -> u8 {
        let cause = self.cause();
        if cause == iir::THR_EMPTY {
            self.thr_empty_pending = false;
        }
        cause | if self.fcr & fcr::ENABLE != 0 { iir::FIFOS } else { 0 }
    }

    fn write_ier(&mut self, value: u8, transmitter_is_full: bool) {
        let value = value & ier::WRITABLE;
        // Enabling asks at once, as the transmitter is empty: drivers start sending so.
        if value & !self.ier & ier::ETBEI != 0 && !transmitter_is_full {
            self.thr_empty_pending = true;
        }
        self.ier = value;
    }

    fn write_fcr(&mut self, value: u8) {
        let toggled = (self.fcr ^ value) & fcr::ENABLE != 0;
        if toggled || value & fcr::RESET_RECEIVER != 0 {
            self.received.clear();
            self.break_seen = false;
        }
        // The other bits are only written while FCR bit 0 is.
        self.fcr = if value & fcr::ENABLE != 0 { value & !fcr::RESET_RECEIVER } else { 0 };
    }

    fn write_mcr(&mut self, value: u8) {
        let before = self.modem_inputs();
        self.mcr = value & mcr::WRITABLE;
        let after = self.modem_inputs();
        let changed = (before ^ after) & !msr::RI;
        self.msr_deltas |= changed >> msr::DELTA_SHIFT;
        if before & !after & msr::RI != 0 {
            self.msr_deltas |= msr::TERI;
        }
    }
}

/// One serial port.
pub struct Uart16550 {
    registers: Mutex<Registers>,
    irq: IrqLine,
    transmitter: Arc<Transmitter>,
}

impl Uart16550 {
    /// A port whose bytes go to `backend`. `clock` bounds how long a byte may wait for others to go with it.
    pub fn new(irq: IrqLine, backend: Arc<dyn CharBackend>, clock: &Arc<dyn Clock>) -> Arc<Self> {
        let uart = Arc::new(Self {
            registers: Mutex::new(Registers::power_on()),
            irq,
            transmitter: Transmitter::new(backend, clock),
        });
        let device = Arc::downgrade(&uart);
        uart.transmitter.backend().attach(device as Weak<dyn CharDevice>);
        uart
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().expect("no holder of the UART's lock panics")
    }

    /// Brings everything that the guest has sent to the host, and waits for a slow reader. For every way out of the
    /// program.
    pub fn flush(&self) {
        self.transmitter.flush();
    }

    /// Whether the interrupt is asked for. OUT2 gates it on a PC's card; guests that do not know (and never ran on
    /// one) are let through, as on other virtual machines.
    fn update_irq(&self, registers: &Registers) {
        self.irq.set_level(registers.cause() != iir::NONE);
    }

    fn read_register(&self, offset: u64) -> u8 {
        // Most reads are polls of LSR: they change nothing, so the wire need not be looked at.
        let mut registers = self.lock();
        let dlab = registers.lcr & lcr::DLAB != 0;
        let mut has_room = false;
        let value = match offset {
            register::RBR_THR_DLL if dlab => return registers.divisor[0],
            register::RBR_THR_DLL => {
                let byte = registers.pop_received();
                has_room = std::mem::take(&mut registers.refused_input);
                byte
            }
            register::IER_DLM if dlab => return registers.divisor[1],
            register::IER_DLM => return registers.ier,
            register::IIR_FCR => registers.read_iir(),
            register::LCR => return registers.lcr,
            register::MCR => return registers.mcr,
            register::LSR => {
                let value = registers.lsr(self.transmitter.is_full());
                if value & (lsr::OE | lsr::BI) == 0 {
                    return value;
                }
                registers.has_overrun = false;
                registers.break_seen = value & lsr::BI != 0;
                value
            }
            register::MSR => registers.modem_inputs() | std::mem::take(&mut registers.msr_deltas),
            _ => return registers.scr,
        };
        self.update_irq(&registers);
        drop(registers);
        if has_room {
            self.transmitter.backend().accept_input();
        }
        value
    }

    fn write_register(&self, offset: u64, value: u8) {
        let mut registers = self.lock();
        let dlab = registers.lcr & lcr::DLAB != 0;
        let mut has_room = false;
        let mut transmit = false;
        match offset {
            register::RBR_THR_DLL if dlab => registers.divisor[0] = value,
            register::RBR_THR_DLL => {
                if registers.is_loop() {
                    registers.push_received(Received::Byte(value));
                } else {
                    transmit = self.transmitter.push(value);
                }
                registers.thr_empty_pending = !self.transmitter.is_full();
            }
            register::IER_DLM if dlab => registers.divisor[1] = value,
            register::IER_DLM => registers.write_ier(value, self.transmitter.is_full()),
            register::IIR_FCR => {
                registers.write_fcr(value);
                has_room = std::mem::take(&mut registers.refused_input);
            }
            register::LCR => registers.lcr = value,
            register::MCR => {
                registers.write_mcr(value);
                has_room = std::mem::take(&mut registers.refused_input);
            }
            // LSR and MSR are written in the factory only.
            register::LSR | register::MSR => {}
            _ => registers.scr = value,
        }
        self.update_irq(&registers);
        drop(registers);
        // The host's write takes a while: nobody waits for it who does not send.
        if transmit {
            self.transmitter.send();
        }
        if has_room {
            self.transmitter.backend().accept_input();
        }
    }
}

impl BusDevice for Uart16550 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (offset, byte) in (offset..).zip(data) {
            *byte = self.read_register(offset);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (offset, &byte) in (offset..).zip(data) {
            self.write_register(offset, byte);
        }
    }
}

impl CharDevice for Uart16550 {
    fn can_receive(&self) -> usize {
        let mut registers = self.lock();
        let room = if registers.is_loop() { 0 } else { registers.room() };
        registers.refused_input |= room == 0;
        room
    }

    fn receive(&self, bytes: &[u8]) -> usize {
        let mut registers = self.lock();
        let room = if registers.is_loop() { 0 } else { registers.room() };
        let taken = room.min(bytes.len());
        registers.received.extend(bytes[..taken].iter().copied().map(Received::Byte));
        registers.refused_input |= taken < bytes.len();
        self.update_irq(&registers);
        taken
    }

    fn event(&self, event: CharEvent) {
        if event == CharEvent::Break {
            let mut registers = self.lock();
            if !registers.is_loop() {
                registers.push_received(Received::Break);
                self.update_irq(&registers);
            }
        }
    }

    fn writable(&self) {
        if self.transmitter.resume() {
            let mut registers = self.lock();
            registers.thr_empty_pending = true;
            self.update_irq(&registers);
        }
    }
}

impl Device for Uart16550 {
    fn name(&self) -> &'static str {
        "16550A"
    }

    fn reset(&self) {
        self.transmitter.flush_if_ready();
        let mut registers = self.lock();
        let refused_input = registers.refused_input;
        *registers = Registers::power_on();
        self.update_irq(&registers);
        drop(registers);
        if refused_input {
            self.transmitter.backend().accept_input();
        }
    }

    fn pause(&self) {
        self.transmitter.flush_if_ready();
    }
}

impl Drop for Uart16550 {
    fn drop(&mut self) {
        self.flush();
    }
}
