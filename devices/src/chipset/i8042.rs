//! 8042 keyboard controller without devices: what resets need, and what drivers probe. IBM PS/2 Hardware Interface
//! Technical Reference, *Keyboard and Auxiliary Device Controller*.
//!
//! No keyboard and no mouse are connected, and every question has an answer at once: drivers wait half a second for
//! those that have none.

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::device::Device;
use crate::interrupt::IrqLine;
use crate::lock_rank::device::{Mutex, MutexGuard};
use crate::system::{SystemControl, SystemRequest};

pub mod spec;
#[cfg(test)]
mod tests;

use spec::{command, command_byte, output_port, status};

/// A byte in the output buffer, and the status bits that come with it.
#[derive(Clone, Copy, Debug)]
struct Output {
    byte: u8,
    status: u8,
}

#[derive(Debug)]
struct State {
    ram: [u8; 32],
    output_port: u8,
    output: Option<Output>,
    /// The command whose data byte is next at the data port.
    awaits_data: Option<u8>,
    last_was_command: bool,
}

impl State {
    fn power_on() -> Self {
        let mut ram = [0; 32];
        ram[0] = command_byte::KEYBOARD_DISABLED | command_byte::AUX_DISABLED;
        Self {
            ram,
            output_port: output_port::AT_RESET,
            output: None,
            awaits_data: None,
            last_was_command: false,
        }
    }

    fn answer(&mut self, byte: u8) {
        self.output = Some(Output { byte, status: 0 });
    }

    fn no_device(&mut self, aux: u8) {
        self.output = Some(Output { byte: spec::RESEND, status: status::TIMEOUT | aux });
    }

    fn status(&self) -> u8 {
        let output = self.output.map_or(0, |output| status::OBF | output.status);
        let system = if self.ram[0] & command_byte::SYS != 0 { status::SYS } else { 0 };
        let command = if self.last_was_command { status::COMMAND } else { 0 };
        status::UNLOCKED | output | system | command
    }

    /// True if the command resets the machine.
    fn write_command(&mut self, value: u8) -> bool {
        self.last_was_command = true;
        self.awaits_data = None;
        match value {
            command::READ_RAM..=0x3f => self.answer(self.ram[usize::from(value & 0x1f)]),
            command::DISABLE_AUX => self.ram[0] |= command_byte::AUX_DISABLED,
            command::ENABLE_AUX => self.ram[0] &= !command_byte::AUX_DISABLED,
            command::DISABLE_KEYBOARD => self.ram[0] |= command_byte::KEYBOARD_DISABLED,
            command::ENABLE_KEYBOARD => self.ram[0] &= !command_byte::KEYBOARD_DISABLED,
            command::TEST_AUX | command::TEST_KEYBOARD => self.answer(spec::CLOCK_STUCK_LOW),
            command::SELF_TEST => {
                self.ram[0] |= command_byte::SYS;
                self.answer(spec::SELF_TEST_PASSED);
            }
            command::READ_INPUT_PORT => self.answer(0x80),
            command::READ_OUTPUT_PORT => self.answer(self.output_port),
            command::WRITE_RAM..=0x7f
            | command::WRITE_OUTPUT_PORT
            | command::WRITE_KEYBOARD_BUFFER
            | command::WRITE_AUX_BUFFER
            | command::WRITE_AUX => self.awaits_data = Some(value),
            command::PULSE.. => return value & output_port::NOT_RESET == 0,
            _ => {}
        }
        false
    }

    /// True if the byte resets the machine.
    fn write_data(&mut self, value: u8) -> bool {
        self.last_was_command = false;
        match self.awaits_data.take() {
            Some(command @ command::WRITE_RAM..=0x7f) => self.ram[usize::from(command & 0x1f)] = value,
            Some(command::WRITE_OUTPUT_PORT) => {
                self.output_port = value;
                return value & output_port::NOT_RESET == 0;
            }
            // An auxiliary port that is not there echoes into the keyboard's place: drivers tell it by that.
            Some(command::WRITE_KEYBOARD_BUFFER | command::WRITE_AUX_BUFFER) => self.answer(value),
            Some(command::WRITE_AUX) => self.no_device(status::AUX),
            _ => self.no_device(0),
        }
        false
    }
}

/// The keyboard controller.
pub struct I8042 {
    state: Mutex<State>,
    keyboard_irq: IrqLine,
    aux_irq: IrqLine,
    control: Arc<dyn SystemControl>,
}

impl I8042 {
    /// A controller after power-on that asks `control` for resets.
    pub fn new(keyboard_irq: IrqLine, aux_irq: IrqLine, control: Arc<dyn SystemControl>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State::power_on()), keyboard_irq, aux_irq, control })
    }

    /// Port 0x60.
    pub fn data_port(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(Port { chip: Arc::clone(self), is_command: false })
    }

    /// Port 0x64.
    pub fn command_port(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(Port { chip: Arc::clone(self), is_command: true })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the 8042's lock panics")
    }

    fn update_irqs(&self, state: &State) {
        let aux = state.output.map(|output| output.status & status::AUX != 0);
        let enables = state.ram[0];
        self.keyboard_irq.set_level(aux == Some(false) && enables & command_byte::KEYBOARD_INTERRUPT != 0);
        self.aux_irq.set_level(aux == Some(true) && enables & command_byte::AUX_INTERRUPT != 0);
    }
}

struct Port {
    chip: Arc<I8042>,
    is_command: bool,
}

impl BusDevice for Port {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        let mut state = self.chip.lock();
        if self.is_command {
            data.fill(state.status());
            return;
        }
        data.fill(state.output.take().map_or(0, |output| output.byte));
        self.chip.update_irqs(&state);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        let mut state = self.chip.lock();
        let reset = if self.is_command { state.write_command(value) } else { state.write_data(value) };
        self.chip.update_irqs(&state);
        drop(state);
        if reset {
            self.chip.control.request(SystemRequest::Reset);
        }
    }
}

impl Device for I8042 {
    fn name(&self) -> &'static str {
        "8042"
    }

    fn reset(&self) {
        let mut state = self.lock();
        *state = State::power_on();
        self.update_irqs(&state);
    }
}
