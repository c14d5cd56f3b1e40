//! Where things lie, at the same addresses in the native process and in the guest.
//!
//! The guest's page tables are identity-mapped for these ranges, so that one instruction stream, with its absolute
//! and RIP-relative addresses, runs on both sides unchanged. All are below 2 GiB: reachable with 32-bit addresses.

/// Page size.
pub const PAGE: usize = 4096;

/// One page: `EXIT64` and `EXIT32`, where a stream jumps when it is done. Each side has its own code there.
pub const EXIT_PAGE: u64 = 0x4f00_0000;
/// The end of a 64-bit stream. Above 1 GiB: wild absolute operands are below.
pub const EXIT64: u64 = EXIT_PAGE + 0xa50;
/// The end of a compatibility-mode stream.
pub const EXIT32: u64 = EXIT_PAGE + 0xa90;

/// Native side only: registers on their way in and out.
pub const CONTEXT_PAGE: u64 = 0x4f01_0000;

/// Instruction streams; read-only and executable on both sides, shared between them.
pub const CODE: u64 = 0x1000_0000;
/// Bytes of [`CODE`].
pub const CODE_BYTES: usize = 16 << 20;

/// Two read-write pages. The page before is not present.
pub const DATA: u64 = 0x2000_0000;
/// A read-only page, straight after the read-write ones.
pub const READ_ONLY: u64 = DATA + 2 * PAGE as u64;
/// Nothing is mapped here.
pub const ABSENT: u64 = DATA + 3 * PAGE as u64;
/// A read-write page for the stack; the pages around it are not present.
pub const STACK: u64 = DATA + 4 * PAGE as u64;

/// What streams can write: the data pages and the stack page.
pub const WRITABLE_BYTES: usize = 3 * PAGE;

/// Selectors, as Linux has them (`arch/x86/include/asm/segment.h`): a stream may read them.
pub mod selector {
    pub const KERNEL_CODE: u16 = 0x10;
    pub const KERNEL_DATA: u16 = 0x18;
    pub const USER_CODE_32: u16 = 0x23;
    pub const USER_DATA: u16 = 0x2b;
    pub const USER_CODE_64: u16 = 0x33;
    pub const TASK: u16 = 0x40;
}

/// XSAVE components compared: x87, SSE, AVX, opmask, ZMM_Hi256, Hi16_ZMM.
pub const VECTOR_COMPONENTS: u64 = 0xe7;
/// Room for them in the standard format.
pub const XSAVE_BYTES: usize = 4096;
