//! The manufacturing test port of the IBM PC AT (Technical Reference, *I/O Address Map*).

/// POST codes; software also writes here to let an ISA bus cycle pass.
pub const PORT: u16 = 0x80;
