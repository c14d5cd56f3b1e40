//! A CPU's architectural state, independent of the engine that runs it.

/// A segment register with its descriptor cache (SDM vol. 3A, *Segment Registers*).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentState {
    /// Visible selector.
    pub selector: u16,
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes (granularity applied).
    pub limit: u32,
    /// Access rights in descriptor layout, bits 8 to 23 of its second word shifted right by 8: type 3:0, S 4, DPL 6:5,
    /// P 7, AVL 12, L 13, D/B 14, G 15. Zero marks an unusable (null) segment.
    pub access: u16,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableState {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// Whether the CPU executes (SDM vol. 3A, *MP Initialization*).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunMode {
    /// Executes instructions.
    #[default]
    Running,
    /// HLT: waits for an interrupt.
    Halted,
    /// After INIT on an AP: waits for a start-up IPI.
    WaitForSipi,
}

/// The architectural state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuArchState {
    /// RAX RCX RDX RBX RSP RBP RSI RDI R8..R15: the encoding's order.
    pub gpr: [u64; 16],
    /// Offset in CS of the next instruction.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// ES CS SS DS FS GS: the encoding's order.
    pub segments: [SegmentState; 6],
    /// LDTR.
    pub ldt: SegmentState,
    /// TR.
    pub task: SegmentState,
    /// GDTR.
    pub gdt: TableState,
    /// IDTR.
    pub idt: TableState,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// CR8.
    pub cr8: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// XCR0.
    pub xcr0: u64,
    /// DR0 DR1 DR2 DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// x87, SSE, AVX ... in the standard (non-compacted) XSAVE format of this host. Empty: initial state.
    pub xsave: Vec<u8>,
    /// Further MSRs by index, those that the engine has (index, value), ascending.
    pub msrs: Vec<(u32, u64)>,
    /// Executing, halted or waiting for SIPI.
    pub run_mode: RunMode,
    /// NMIs are blocked until IRET.
    pub nmi_blocked: bool,
    /// Interrupts are held off for one instruction (STI, MOV SS).
    pub interrupt_shadow: bool,
}

/// Index of a segment register in [`CpuArchState::segments`].
pub mod seg {
    /// Extra segment.
    pub const ES: usize = 0;
    /// Code segment.
    pub const CS: usize = 1;
    /// Stack segment.
    pub const SS: usize = 2;
    /// Data segment.
    pub const DS: usize = 3;
    /// FS.
    pub const FS: usize = 4;
    /// GS.
    pub const GS: usize = 5;
}

/// Index of a general register in [`CpuArchState::gpr`].
pub mod reg {
    /// RAX.
    pub const RAX: usize = 0;
    /// RCX.
    pub const RCX: usize = 1;
    /// RDX.
    pub const RDX: usize = 2;
    /// RBX.
    pub const RBX: usize = 3;
    /// RSP.
    pub const RSP: usize = 4;
    /// RBP.
    pub const RBP: usize = 5;
    /// RSI.
    pub const RSI: usize = 6;
    /// RDI.
    pub const RDI: usize = 7;
}

impl CpuArchState {
    /// Power-on state (SDM vol. 3A, *Processor State After Reset*): real mode at F000:FFF0.
    pub fn power_on() -> Self {
        const DATA: u16 = 0x93;
        let data = SegmentState { selector: 0, base: 0, limit: 0xffff, access: DATA };
        let code = SegmentState { selector: 0xf000, base: 0xffff_0000, limit: 0xffff, access: 0x9b };
        let mut state = Self {
            rip: 0xfff0,
            rflags: 2,
            segments: [data, code, data, data, data, data],
            ldt: SegmentState { limit: 0xffff, access: 0x82, ..SegmentState::default() },
            task: SegmentState { limit: 0xffff, access: 0x8b, ..SegmentState::default() },
            gdt: TableState { base: 0, limit: 0xffff },
            idt: TableState { base: 0, limit: 0xffff },
            cr0: 0x6000_0010,
            xcr0: 1,
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            ..Self::default()
        };
        state.gpr[reg::RDX] = 0x600;
        state
    }

    /// The state after INIT and SIPI with `vector`: as at power-on, at `vector << 12` in real mode. INIT keeps the
    /// caches' and the vector state; the caller keeps those.
    pub fn after_sipi(vector: u8) -> Self {
        let mut state = Self::power_on();
        state.rip = 0;
        state.segments[seg::CS] = SegmentState {
            selector: u16::from(vector) << 8,
            base: u64::from(vector) << 12,
            limit: 0xffff,
            access: 0x9b,
        };
        state
    }
}
