//! Where guest registers live on the host; see `code::thunks`.

use iced_x86::Register;

use crate::cpu::is_high_byte;

/// Number of the host register that holds guest register `guest`, or `None` where it is in the environment.
pub fn host_number(guest: usize) -> Option<usize> {
    match guest {
        4 => Some(9),
        9..=11 => None,
        other => Some(other),
    }
}

/// The general register `number` of `size` bytes; for one byte the low one.
pub fn sized(number: usize, size: usize) -> Register {
    let number = number as u32;
    match size {
        1 if number < 4 => Register::AL + number,
        1 if number < 8 => Register::SPL + (number - 4),
        1 => Register::R8L + (number - 8),
        2 => Register::AX + number,
        4 => Register::EAX + number,
        _ => Register::RAX + number,
    }
}

/// Number (0 to 15) of the general register that `register` is or is part of; `None` for other registers.
pub fn gpr_number(register: Register) -> Option<usize> {
    if is_high_byte(register) {
        return Some(register.number() - 4);
    }
    register.is_gpr().then(|| register.full_register().number())
}

/// The host register for guest register `register`, of the same width; `None` if it is cold. Not for high bytes.
pub fn host_register(register: Register) -> Option<Register> {
    host_number(gpr_number(register)?).map(|number| sized(number, register.size()))
}
