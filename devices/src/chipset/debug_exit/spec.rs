//! The `isa-debug-exit` device: one register, known from its users' documentation (kvm-unit-tests, OS tutorials).

/// Default first port (`iobase=`).
pub const DEFAULT_IOBASE: u16 = 0x501;
/// Default number of ports (`iosize=`).
pub const DEFAULT_IOSIZE: u64 = 2;

/// The exit status for a written `value`: odd, so never that of a normal shutdown.
pub const fn exit_status(value: u32) -> u8 {
    ((value << 1) | 1) as u8
}
