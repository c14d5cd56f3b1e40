//! CPU models: a base and the features the user added or removed (`-cpu NAME,+feat,-feat`).

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
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// What CPUID starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelBase {
    /// `max`, `host`: all that the engine can do on this host.
    Max,
    /// `base`, `x86-64-v1` ...: exactly these features, so far as the engine has them.
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
}

impl Default for CpuModel {
    fn default() -> Self {
        Self { base: ModelBase::Max, added: Vec::new(), removed: Vec::new() }
    }
}
