//! Guest exceptions as values (SDM vol. 3A, *Exception and Interrupt Reference*).

/// Vector numbers.
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XM: u8 = 19;
}

/// An exception that an instruction raises. Nothing of the instruction has taken effect, except where the manual
/// says that it has (a trap, a string instruction's finished elements).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Vector, 0 to 31.
    pub vector: u8,
    /// Error code for the vectors that push one.
    pub error_code: Option<u32>,
    /// CR2 for #PF; DR6 bits to set for #DB; otherwise 0.
    pub payload: u64,
}

/// The result of what may raise an exception.
pub type Exec<T> = Result<T, Exception>;

impl Exception {
    /// An exception without an error code.
    pub const fn plain(vector: u8) -> Self {
        Self { vector, error_code: None, payload: 0 }
    }

    /// An exception with an error code.
    pub const fn with_code(vector: u8, code: u32) -> Self {
        Self { vector, error_code: Some(code), payload: 0 }
    }

    /// #UD.
    pub const UD: Self = Self::plain(vector::UD);
    /// #NM.
    pub const NM: Self = Self::plain(vector::NM);

    /// #GP(code).
    pub const fn gp(code: u32) -> Self {
        Self::with_code(vector::GP, code)
    }

    /// #SS(code).
    pub const fn ss(code: u32) -> Self {
        Self::with_code(vector::SS, code)
    }

    /// #NP(code).
    pub const fn np(code: u32) -> Self {
        Self::with_code(vector::NP, code)
    }

    /// #TS(code).
    pub const fn ts(code: u32) -> Self {
        Self::with_code(vector::TS, code)
    }

    /// #PF(code) at linear address `address`.
    pub const fn page_fault(address: u64, code: u32) -> Self {
        Self { vector: vector::PF, error_code: Some(code), payload: address }
    }

    /// #DB with these DR6 bits (B0..B3, BD, BS, BT).
    pub const fn debug(dr6_bits: u64) -> Self {
        Self { vector: vector::DB, error_code: None, payload: dr6_bits }
    }
}

/// Page-fault error code bits (SDM vol. 3A, *Page-Fault Exceptions*).
pub mod pf {
    pub const PRESENT: u32 = 1 << 0;
    pub const WRITE: u32 = 1 << 1;
    pub const USER: u32 = 1 << 2;
    pub const RESERVED: u32 = 1 << 3;
    pub const FETCH: u32 = 1 << 4;
}
