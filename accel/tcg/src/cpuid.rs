//! CPUID (SDM vol. 2A, *CPUID*): what the model leaves of what the engine offers, and the bits that change at run time.

use std::sync::{Arc, LazyLock};

use accel::cpu_model::{CpuModel, CpuPlace, CpuTopology, Vendor};
use accel::{VcpuConfig, VcpuError};

use crate::cpu::Cpu;
use crate::msr::spec::{IA32_APIC_BASE, efer};

pub mod features;
mod offer;

use offer::{Component, Offer};
pub use offer::{Registers, host_xcr0};

static OFFER: LazyLock<Offer> = LazyLock::new(Offer::of_host);

/// A lone CPU of the `max` model.
pub static MAX: LazyLock<Arc<Cpuid>> = LazyLock::new(|| {
    let place = CpuPlace { topology: CpuTopology::default(), apic_id: 0 };
    Arc::new(Cpuid::build(&CpuModel::default(), place))
});

/// CR4.OSXSAVE.
const CR4_OSXSAVE: u64 = 1 << 18;
/// IA32_APIC_BASE: the local APIC is enabled.
const APIC_ENABLED: u64 = 1 << 11;
/// Bytes of the legacy region and the header of an XSAVE area.
const XSAVE_HEADER_END: u32 = 576;

/// What CPUID shows on one CPU.
pub struct Cpuid {
    /// Sorted by leaf and sub-leaf.
    leaves: Vec<(u32, u32, Registers)>,
    place: CpuPlace,
    xcr0: u64,
    components: Vec<Component>,
    cr4_bits: u64,
    efer_bits: u64,
}

impl Cpuid {
    /// What the CPU `config` shows; an error if its model insists on a feature that is not on offer.
    pub fn new(config: &VcpuConfig) -> Result<Self, VcpuError> {
        config.model.check(|leaf, subleaf| OFFER.get(leaf, subleaf))?;
        Ok(Self::build(&config.model, config.place()))
    }

    fn build(model: &CpuModel, place: CpuPlace) -> Self {
        let offer = &*OFFER;
        let xcr0 = model.xcr0(offer.xcr0);
        let mut leaves: Vec<_> = offer
            .leaves()
            .map(|(leaf, subleaf, registers)| (leaf, subleaf, model.apply(leaf, subleaf, registers)))
            .filter(|&(leaf, subleaf, _)| leaf != 0xd || subleaf < 2 || xcr0 >> subleaf & 1 != 0)
            .collect();
        leaves.sort_by_key(|&(leaf, subleaf, _)| (leaf, subleaf));
        let components =
            offer.components.iter().copied().filter(|component| xcr0 >> component.bit & 1 != 0).collect();
        let mut cpuid = Self { leaves, place, xcr0, components, cr4_bits: 0, efer_bits: 0 };
        cpuid.show_place();
        cpuid.cr4_bits = cpuid.allowed_cr4();
        cpuid.efer_bits = cpuid.allowed_efer();
        cpuid
    }

    fn show_place(&mut self) {
        let vendor = Vendor::of_leaf_0(self.leaf(0, 0));
        for (leaf, subleaf, registers) in &mut self.leaves {
            *registers = self.place.apply(vendor, *leaf, *subleaf, *registers);
        }
    }

    fn leaf(&self, leaf: u32, subleaf: u32) -> Registers {
        match self.leaves.binary_search_by_key(&(leaf, subleaf), |&(l, s, _)| (l, s)) {
            Ok(index) => self.leaves[index].2,
            Err(_) => [0; 4],
        }
    }

    /// A feature bit.
    fn has(&self, leaf: u32, register: usize, bit: u32) -> bool {
        self.leaf(leaf, 0)[register] >> bit & 1 != 0
    }

    /// XCR0 bits that XSETBV takes.
    pub fn xcr0(&self) -> u64 {
        self.xcr0
    }

    /// CR4 bits that exist.
    pub fn cr4_bits(&self) -> u64 {
        self.cr4_bits
    }

    /// EFER bits that WRMSR takes.
    pub fn efer_bits(&self) -> u64 {
        self.efer_bits
    }

    /// IA32_ARCH_CAPABILITIES exists.
    pub fn arch_capabilities(&self) -> bool {
        self.has(7, 3, 29)
    }

    /// IA32_SPEC_CTRL and IA32_PRED_CMD exist.
    pub fn spec_ctrl(&self) -> bool {
        self.has(7, 3, 26)
    }

    /// RDPID exists.
    pub fn rdpid(&self) -> bool {
        self.has(7, 2, 22)
    }

    /// RDTSCP exists.
    pub fn rdtscp(&self) -> bool {
        self.has(0x8000_0001, 3, 27)
    }

    /// INVPCID exists.
    pub fn invpcid(&self) -> bool {
        self.has(7, 1, 10)
    }

    fn allowed_cr4(&self) -> u64 {
        // TSD PCE: always. DE PSE PAE MCE PGE OSFXSR OSXMMEXCPT UMIP FSGSBASE PCIDE OSXSAVE SMEP SMAP: as shown.
        [
            (3, 1, 3, 2),
            (4, 1, 3, 3),
            (5, 1, 3, 6),
            (6, 1, 3, 7),
            (7, 1, 3, 13),
            (9, 1, 3, 24),
            (10, 1, 3, 25),
            (11, 7, 2, 2),
            (16, 7, 1, 0),
            (17, 1, 2, 17),
            (18, 1, 2, 26),
            (20, 7, 1, 7),
            (21, 7, 1, 20),
        ]
        .into_iter()
        .filter(|&(_, leaf, register, bit)| self.has(leaf, register, bit))
        .fold(1 << 2 | 1 << 8, |mask, (position, ..)| mask | 1 << position)
    }

    fn allowed_efer(&self) -> u64 {
        [(efer::SCE, 11), (efer::LME, 29), (efer::NXE, 20)]
            .into_iter()
            .filter(|&(_, bit)| self.has(0x8000_0001, 3, bit))
            .fold(0, |mask, (position, _)| mask | position)
    }

    /// Bytes of an XSAVE area in standard format for the components of `xcr0`.
    fn standard_size(&self, xcr0: u64) -> u32 {
        self.components
            .iter()
            .filter(|component| xcr0 >> component.bit & 1 != 0)
            .map(|component| component.offset + component.size)
            .fold(XSAVE_HEADER_END, u32::max)
    }

    /// Bytes of an XSAVE area in compacted format for the components of `xcr0`.
    fn compacted_size(&self, xcr0: u64) -> u32 {
        const ALIGNED: u32 = 1 << 1;
        self.components.iter().filter(|component| xcr0 >> component.bit & 1 != 0).fold(
            XSAVE_HEADER_END,
            |end, component| {
                let start = if component.flags & ALIGNED != 0 { end.next_multiple_of(64) } else { end };
                start + component.size
            },
        )
    }

    /// The answer where CR4 is `cr4` and XCR0 is `xcr0`, with the local APIC enabled.
    pub fn query(&self, leaf: u32, subleaf: u32, cr4: u64, xcr0: u64) -> Registers {
        let max = self.leaf(leaf & 0xc000_0000, 0)[0];
        // Beyond the last leaf: the last basic one answers (SDM).
        let leaf = if leaf > max { self.leaf(0, 0)[0] } else { leaf };
        match (leaf, subleaf) {
            (1, _) => {
                let mut registers = self.leaf(1, 0);
                if registers[2] & 1 << 26 != 0 && cr4 & CR4_OSXSAVE != 0 {
                    registers[2] |= 1 << 27;
                }
                registers
            }
            (4 | 7, _) => self.leaf(leaf, subleaf),
            (0xb | 0x1f, _) => self.place.level(subleaf),
            (0xd, _) if !self.has(1, 2, 26) => [0; 4],
            (0xd, 0) => {
                let [low, _, _, high] = self.leaf(0xd, 0);
                [low, self.standard_size(xcr0), self.standard_size(self.xcr0), high]
            }
            (0xd, 1) => {
                let [features, ..] = self.leaf(0xd, 1);
                let size = if features & 2 != 0 { self.compacted_size(xcr0) } else { 0 };
                [features, size, 0, 0]
            }
            (0xd, _) => self.leaf(0xd, subleaf),
            _ => self.leaf(leaf, 0),
        }
    }
}

impl Cpu {
    /// CPUID as the guest sees it now.
    pub fn cpuid(&self, leaf: u32, subleaf: u32) -> Registers {
        let mut registers = self.cpuid.query(leaf, subleaf, self.env.cr4, self.env.xcr0);
        if leaf == 1 {
            let base = self.io().interrupts().map(|interrupts| interrupts.read_msr(IA32_APIC_BASE));
            if let Some(Ok(base)) = base
                && base & APIC_ENABLED == 0
            {
                registers[3] &= !(1 << 9);
            }
        }
        registers
    }
}

#[cfg(test)]
mod tests;
