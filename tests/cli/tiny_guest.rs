//! Guests of a few instructions, as ELF files with a PVH entry, and the engines that run them here.

use std::path::PathBuf;

use super::support::Scratch;

/// Where the guest is loaded and entered.
const BASE: u32 = 0x20_0000;

/// The serial port, and the debug exit where the tests put it.
pub const COM1: u16 = 0x3f8;
pub const EXIT: u16 = 0xf4;
/// The option that puts it there.
pub const EXIT_DEVICE: &str = "isa-debug-exit,iobase=0xf4,iosize=4";

/// `mov $port, %dx; mov $value, %al; out %al, (%dx)`
pub fn out8(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

/// The same with 16 bits.
pub fn out16(port: u16, value: u16) -> Vec<u8> {
    let ([low, high], [value_low, value_high]) = (port.to_le_bytes(), value.to_le_bytes());
    vec![0x66, 0xba, low, high, 0x66, 0xb8, value_low, value_high, 0x66, 0xef]
}

/// Says `text` on COM1.
pub fn say(text: &str) -> Vec<u8> {
    text.bytes().flat_map(|byte| out8(COM1, byte)).collect()
}

/// `hlt; jmp .-1`, interrupts off: for ever.
pub fn halt() -> Vec<u8> {
    vec![0xf4, 0xeb, 0xfd]
}

/// `ud2`; there is no IDT.
pub fn crash() -> Vec<u8> {
    vec![0x0f, 0x0b]
}

/// Sends back what COM1 receives, until a `q`.
pub fn echo_until_q() -> Vec<u8> {
    #[rustfmt::skip]
    let code = vec![
        0x66, 0xba, 0xfd, 0x03, // mov $LSR, %dx
        0xec,                   // in (%dx), %al
        0xa8, 0x01,             // test $DR, %al
        0x74, 0xf7,             // jz the beginning
        0x66, 0xba, 0xf8, 0x03, // mov $RBR, %dx
        0xec,                   // in (%dx), %al
        0x3c, b'q',             // cmp $'q', %al
        0x74, 0x03,             // je the end
        0xee,                   // out %al, (%dx)
        0xeb, 0xeb,             // jmp the beginning
    ];
    code
}

/// Writes a guest of this code.
pub fn write(scratch: &Scratch, name: &str, code: &[&[u8]]) -> PathBuf {
    let code = code.concat();
    let mut note = [4u32, 4, 18].map(u32::to_le_bytes).concat();
    note.extend(b"Xen\0");
    note.extend(BASE.to_le_bytes());
    let mut image = b"\x7fELF\x01\x01\x01".to_vec();
    image.resize(16, 0);
    image.extend([2u16, 3].map(u16::to_le_bytes).concat());
    image.extend([1, BASE, 52, 0, 0].map(u32::to_le_bytes).concat());
    image.extend([52u16, 32, 2, 0, 0, 0].map(u16::to_le_bytes).concat());
    let at = 52 + 2 * 32;
    let (note_bytes, code_bytes) = (note.len() as u32, code.len() as u32);
    image.extend([4, at, 0, 0, note_bytes, note_bytes, 4, 4].map(u32::to_le_bytes).concat());
    image.extend(
        [1, at + note_bytes, BASE, BASE, code_bytes, code_bytes, 7, 4].map(u32::to_le_bytes).concat(),
    );
    image.extend(note);
    image.extend(code);
    scratch.write(name, &image)
}

/// The engines of this host: a KVM that only emulates runs guests of this size, too.
pub fn engines() -> Vec<&'static str> {
    let mut engines = vec!["tcg"];
    match accel_kvm::Kvm::open(&accel_kvm::KvmOptions::default()) {
        Ok(_) => engines.extend(["kvm", "kvm,kernel-irqchip=off"]),
        Err(error) => eprintln!("LEFT OUT kvm: {error}"),
    }
    engines
}
