//! A CPU's place in its machine, in all the leaves of CPUID that tell it (SDM vol. 2A, *CPUID*; AMD APM vol. 3, *CPUID
//! Functions*). One source for every engine: leaves that contradict each other make kernels doubt all of them.

use super::CpuTopology;

/// EAX, EBX, ECX, EDX.
type Registers = [u32; 4];

const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

/// Leaf 1 EDX: the count in EBX is valid.
const HTT: u32 = 1 << 28;
/// Leaf 8000_0001H ECX, AMD: HTT speaks of cores.
const CMP_LEGACY: u32 = 1 << 1;
/// Level types of leaf 0BH's ECX, bits 15:8.
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// Whose rules the leaves follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// Intel's, and whoever else is not AMD.
    Intel,
    /// AMD's and Hygon's.
    Amd,
}

impl Vendor {
    /// As leaf 0 names it.
    pub fn of_leaf_0(registers: Registers) -> Self {
        // The first letters of "AuthenticAMD" and "HygonGenuine".
        match registers[EBX] {
            0x6874_7541 | 0x6f67_7948 => Self::Amd,
            _ => Self::Intel,
        }
    }
}

/// One CPU of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuPlace {
    /// The machine.
    pub topology: CpuTopology,
    /// The CPU's local APIC ID.
    pub apic_id: u32,
}

impl CpuPlace {
    /// `registers` of a leaf and sub-leaf, where they tell the place; other leaves as they are.
    pub fn apply(self, vendor: Vendor, leaf: u32, subleaf: u32, mut registers: Registers) -> Registers {
        let amd = vendor == Vendor::Amd;
        match leaf {
            1 => self.leaf_1(vendor, &mut registers),
            4 => self.intel_cache(&mut registers),
            0xb | 0x1f => registers = self.level(subleaf),
            0x8000_0001 => {
                let shown = if amd && self.threads() > 1 { CMP_LEGACY } else { 0 };
                registers[ECX] = registers[ECX] & !CMP_LEGACY | shown;
            }
            0x8000_0008 => {
                // Intel reserves the register.
                let size = self.topology.package_shift() << 12 | (self.threads() - 1).min(0xff);
                registers[ECX] = if amd { size } else { 0 };
            }
            0x8000_001d => self.amd_cache(&mut registers),
            0x8000_001e => registers = self.leaf_8000_001e(),
            _ => {}
        }
        registers
    }

    /// Leaves 0BH and 1FH: thread, core, end.
    pub fn level(self, subleaf: u32) -> Registers {
        let CpuTopology { threads, .. } = self.topology;
        let number = subleaf & 0xff;
        match subleaf {
            0 => [self.topology.core_shift(), threads, LEVEL_SMT << 8, self.apic_id],
            1 => [self.topology.package_shift(), self.threads(), LEVEL_CORE << 8 | number, self.apic_id],
            _ => [0, 0, number, self.apic_id],
        }
    }

    /// CPUs of the package.
    fn threads(self) -> u32 {
        self.topology.threads_per_package()
    }

    /// Eight bits of the APIC ID, and how many the package has: Intel counts IDs, AMD threads.
    fn leaf_1(self, vendor: Vendor, registers: &mut Registers) {
        let count = match vendor {
            Vendor::Intel => 1 << self.topology.package_shift(),
            Vendor::Amd => self.threads(),
        };
        registers[EBX] = registers[EBX] & 0xffff | count.min(0xff) << 16 | self.apic_id << 24;
        let htt = if self.threads() > 1 { HTT } else { 0 };
        registers[EDX] = registers[EDX] & !HTT | htt;
    }

    /// The APIC IDs that a cache's sharers are among, less one: level 3 is the package's, the others a core's. `None`
    /// where there is no cache.
    fn sharing(self, eax: u32) -> Option<u32> {
        let (kind, level) = (eax & 0x1f, eax >> 5 & 7);
        let shift = if level >= 3 { self.topology.package_shift() } else { self.topology.core_shift() };
        (kind != 0).then(|| ((1 << shift) - 1).min(0xfff))
    }

    /// Leaf 4, which also tells how many IDs the package's cores have.
    fn intel_cache(self, registers: &mut Registers) {
        let Some(sharing) = self.sharing(registers[EAX]) else { return };
        let cores = (1u32 << (self.topology.package_shift() - self.topology.core_shift())) - 1;
        registers[EAX] = registers[EAX] & 0x3fff | sharing << 14 | cores.min(0x3f) << 26;
    }

    fn amd_cache(self, registers: &mut Registers) {
        let Some(sharing) = self.sharing(registers[EAX]) else { return };
        registers[EAX] = registers[EAX] & 0x3fff | sharing << 14;
    }

    /// The ID, threads of the core and the core's number, and the node: each package is one.
    fn leaf_8000_001e(self) -> Registers {
        let CpuTopology { threads, .. } = self.topology;
        let package = self.apic_id >> self.topology.package_shift();
        let core = self.apic_id >> self.topology.core_shift()
            & ((1 << (self.topology.package_shift() - self.topology.core_shift())) - 1);
        [self.apic_id, (threads - 1) << 8 | core & 0xff, package & 0xff, 0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CPU 9 of two packages of three cores of two threads: package 1, core 1, thread 1.
    fn place() -> CpuPlace {
        let topology = CpuTopology { sockets: 2, cores: 3, threads: 2 };
        CpuPlace { topology, apic_id: topology.apic_id(9) }
    }

    #[test]
    fn intel_s_leaves_count_ids() {
        let shown = |leaf, subleaf, registers| place().apply(Vendor::Intel, leaf, subleaf, registers);
        assert_eq!(place().apic_id, 0b1011);
        assert_eq!(shown(1, 0, [1, 0x0708_0800, 2, 4]), [1, 0x0b08_0800, 2, 4 | HTT]);
        assert_eq!(shown(0xb, 0, [7; 4]), [1, 2, 0x100, 11]);
        assert_eq!(shown(0x1f, 1, [7; 4]), [3, 6, 0x201, 11]);
        assert_eq!(shown(0xb, 2, [7; 4]), [0, 0, 2, 11]);
        // L1 data: two threads; L3: the package's eight IDs; four IDs of cores; sub-leaf 4 ends the list.
        assert_eq!(shown(4, 0, [0x121, 1, 2, 3]), [0x121 | 1 << 14 | 3 << 26, 1, 2, 3]);
        assert_eq!(shown(4, 3, [0x163, 1, 2, 3]), [0x163 | 7 << 14 | 3 << 26, 1, 2, 3]);
        assert_eq!(shown(4, 4, [0; 4]), [0; 4]);
        assert_eq!(shown(0x8000_0001, 0, [0, 0, 3, 0]), [0, 0, 1, 0]);
        assert_eq!(shown(0x8000_0008, 0, [0x3030, 0, 5, 0]), [0x3030, 0, 0, 0]);
        assert_eq!(shown(7, 0, [1, 2, 3, 4]), [1, 2, 3, 4]);
    }

    #[test]
    fn amd_s_leaves_count_threads() {
        let shown = |leaf, subleaf, registers| place().apply(Vendor::Amd, leaf, subleaf, registers);
        assert_eq!(shown(1, 0, [1, 0x0708_0800, 2, 4]), [1, 0x0b06_0800, 2, 4 | HTT]);
        assert_eq!(shown(0x8000_0001, 0, [0, 0, 1, 0])[ECX], 1 | CMP_LEGACY);
        assert_eq!(shown(0x8000_0008, 0, [0x3030, 0, 0, 0])[ECX], 3 << 12 | 5);
        assert_eq!(shown(0x8000_001d, 0, [0x121, 0, 0, 0])[EAX], 0x121 | 1 << 14);
        assert_eq!(shown(0x8000_001d, 3, [0x163, 0, 0, 0])[EAX], 0x163 | 7 << 14);
        assert_eq!(shown(0x8000_001e, 0, [0; 4]), [11, 1 << 8 | 1, 1, 0]);
    }

    #[test]
    fn packages_of_one_thread_have_no_siblings() {
        let topology = CpuTopology { sockets: 4, cores: 1, threads: 1 };
        let place = CpuPlace { topology, apic_id: topology.apic_id(3) };
        assert_eq!(place.apply(Vendor::Intel, 1, 0, [0, 0, 0, HTT]), [0, 3 << 24 | 1 << 16, 0, 0]);
        assert_eq!(place.level(0), [0, 1, 0x100, 3]);
        assert_eq!(place.level(1), [0, 1, 0x201, 3]);
        assert_eq!(place.apply(Vendor::Amd, 0x8000_001e, 0, [0; 4]), [3, 0, 3, 0]);
    }
}
