//! CPU models: a base and the features the user added or removed (`-cpu NAME,+feat,-feat`).
//!
//! An engine says what it offers, leaf by leaf; the model takes away from that ([`CpuModel::apply`]) and names what it
//! insists on and does not get ([`CpuModel::check`]). Only feature bits are the model's business: vendor, family,
//! cache and frequency leaves stay the engine's. Where a CPU is among
//! the others is said in one place, too ([`CpuPlace`]).

use crate::contract::VcpuError;

mod features;
mod models;
mod parse;
mod place;
mod topology;

pub use features::{all as features, by_name as feature};
pub use parse::{CpuModelError, help, parse};
pub use place::{CpuPlace, Vendor};
pub use topology::CpuTopology;

/// One bit of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// QEMU's name, such as `avx2`.
    pub name: &'static str,
    /// CPUID leaf (EAX).
    pub leaf: u32,
    /// CPUID sub-leaf (ECX).
    pub subleaf: u32,
    /// Register.
    pub register: CpuidRegister,
    /// Bit, 0 to 31.
    pub bit: u8,
}

/// An output register of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuidRegister {
    /// EAX.
    Eax = 0,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

impl CpuidRegister {
    /// Its place in the order EAX, EBX, ECX, EDX.
    pub fn index(self) -> usize {
        self as usize
    }
}

/// What CPUID starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelBase {
    /// `max`, `host`: all that the engine can do on this host.
    Max,
    /// `x86-64-v3`, `EPYC` ...: exactly these features, so far as the engine has them.
    Named {
        /// The name on the command line.
        name: &'static str,
        /// Its features.
        features: Vec<Feature>,
    },
}

/// What CPUID shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuModel {
    /// What CPUID starts from.
    pub base: ModelBase,
    /// Features that must be there.
    pub added: Vec<Feature>,
    /// Features that must not be there.
    pub removed: Vec<Feature>,
    /// How the machine's CPUs make up packages and cores. `None`: one package of single-threaded cores.
    pub topology: Option<CpuTopology>,
}

/// Shown with every named model if the engine has them: the machine's doing and the system software's, not the chip's.
const OF_THE_MACHINE: &[&str] =
    &["osxsave", "ospke", "hypervisor", "ht", "cmp-legacy", "x2apic", "tsc-deadline", "tsc-adjust", "arat"];

/// Bits of leaf 0x8000_0001 EDX that repeat leaf 1 EDX on AMD's CPUs.
const AMD_ALIASES: u32 = 0x0183_f3ff;

/// XCR0's bits and the feature each belongs to (SDM vol. 1, *Enabling the XSAVE Feature Set*). x87 and SSE have none.
const XCR0: &[(u64, &str)] =
    &[(1 << 2, "avx"), (3 << 3, "mpx"), (7 << 5, "avx512f"), (1 << 9, "pku"), (3 << 17, "amx-tile")];

impl Default for CpuModel {
    fn default() -> Self {
        Self { base: ModelBase::Max, added: Vec::new(), removed: Vec::new(), topology: None }
    }
}

impl CpuModel {
    /// The named model `name`: [`ModelBase::Max`] for `max` and `host`.
    pub fn named(name: &str) -> Option<Self> {
        let base = match name {
            "max" | "host" => ModelBase::Max,
            _ => {
                let (name, features) = models::by_name(name)?;
                ModelBase::Named { name, features }
            }
        };
        Some(Self { base, ..Self::default() })
    }

    /// Rules out the feature of this name, whatever the user asked for.
    pub fn hide(&mut self, name: &str) {
        self.removed.extend(feature(name));
    }

    /// What the guest sees of `offered`, the engine's EAX, EBX, ECX and EDX for this leaf and sub-leaf.
    pub fn apply(&self, leaf: u32, subleaf: u32, offered: [u32; 4]) -> [u32; 4] {
        let removed = features::with_dependents(&self.removed);
        let mut shown = offered;
        for word in features::WORDS.iter().filter(|word| (word.leaf, word.subleaf) == (leaf, subleaf)) {
            let here = |feature: &&Feature| {
                (feature.leaf, feature.subleaf, feature.register) == (leaf, subleaf, word.register)
            };
            let bits = |features: &[Feature]| features.iter().filter(here).fold(0, |bits, f| bits | f.mask());
            let register = &mut shown[word.register.index()];
            if let ModelBase::Named { features, .. } = &self.base {
                let of_machine = OF_THE_MACHINE.iter().filter_map(|name| feature(name)).collect::<Vec<_>>();
                *register &= bits(features) | bits(&self.added) | bits(&of_machine) | repeated(word, offered);
            }
            *register &= !bits(&removed);
        }
        match (leaf, subleaf) {
            (0x8000_0001, 0) => {
                let gone = removed
                    .iter()
                    .filter(|f| (f.leaf, f.register) == (1, CpuidRegister::Edx))
                    .fold(0, |bits, f| bits | f.mask());
                shown[CpuidRegister::Edx.index()] &= !(gone & AMD_ALIASES);
            }
            (0xd, 0) => {
                let xcr0 = self.xcr0(u64::from(offered[3]) << 32 | u64::from(offered[0]));
                // The halves of a 64-bit mask.
                shown[0] = xcr0 as u32;
                shown[3] = (xcr0 >> 32) as u32;
            }
            _ => {}
        }
        shown
    }

    /// The XCR0 bits of `offered` whose features the model does not rule out. The sizes in CPUID leaf 0DH follow from
    /// the result; the engine recomputes them.
    pub fn xcr0(&self, offered: u64) -> u64 {
        XCR0.iter().fold(offered, |mask, &(bits, name)| {
            let feature = feature(name).expect("a name of the table");
            if self.allows(feature) { mask } else { mask & !bits }
        })
    }

    /// Whether the guest sees `feature` if the engine offers it.
    pub fn allows(&self, feature: Feature) -> bool {
        let mut offered = [0; 4];
        offered[feature.register.index()] = feature.mask();
        self.apply(feature.leaf, feature.subleaf, offered) != [0; 4]
    }

    /// Whether all that the user added is in `offered`, which answers with the engine's EAX, EBX, ECX and EDX for a
    /// leaf and sub-leaf. Names the first feature that is not.
    pub fn check(&self, mut offered: impl FnMut(u32, u32) -> [u32; 4]) -> Result<(), VcpuError> {
        for feature in &self.added {
            let registers = offered(feature.leaf, feature.subleaf);
            if registers[feature.register.index()] & feature.mask() == 0 {
                return Err(VcpuError::MissingFeature(feature.name));
            }
        }
        Ok(())
    }
}

/// The aliases of leaf 1 that the extended leaf repeats: not in the table, so not the model's to withhold.
fn repeated(word: &features::Word, offered: [u32; 4]) -> u32 {
    match (word.leaf, word.register) {
        (0x8000_0001, CpuidRegister::Edx) => offered[CpuidRegister::Edx.index()] & AMD_ALIASES,
        _ => 0,
    }
}

impl Feature {
    /// Its bit in its register.
    pub fn mask(&self) -> u32 {
        1 << self.bit
    }
}

#[cfg(test)]
mod tests;
