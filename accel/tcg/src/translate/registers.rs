//! Where guest registers live on the host; see `code::thunks`.

use iced_x86::Register;

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
    let number = GPR_NUMBERS[register as usize];
    (number != NO_GPR).then_some(number.into())
}

const NO_GPR: u8 = 16;

/// What [`gpr_number`] says of each register.
static GPR_NUMBERS: [u8; 256] = {
    let mut table = [NO_GPR; 256];
    let mut number = 0;
    while number < 16 {
        let at = number as usize;
        table[Register::AX as usize + at] = number;
        table[Register::EAX as usize + at] = number;
        table[Register::RAX as usize + at] = number;
        // AH to BH are between BL and SPL.
        let low = if number < 4 { at } else { at + 4 };
        table[Register::AL as usize + low] = number;
        if number < 4 {
            table[Register::AH as usize + at] = number;
        }
        number += 1;
    }
    table
};

/// The host register for guest register `register`, of the same width; `None` if it is cold. Not for high bytes.
pub fn host_register(register: Register) -> Option<Register> {
    host_number(gpr_number(register)?).map(|number| sized(number, register.size()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::is_high_byte;

    #[test]
    fn numbers_of_general_registers() {
        for register in Register::values() {
            let expected = match register {
                _ if is_high_byte(register) => Some(register.number() - 4),
                _ => register.is_gpr().then(|| register.full_register().number()),
            };
            assert_eq!(gpr_number(register), expected, "{register:?}");
        }
    }
}
