//! How the CPUs of a machine make up packages, cores and threads, and the APIC IDs that say so (SDM vol. 3A, *Managing
//! Processor Topologies and APIC ID Information*).

/// Packages of cores of threads, all alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuTopology {
    /// Packages.
    pub sockets: u32,
    /// Cores of a package.
    pub cores: u32,
    /// Threads of a core.
    pub threads: u32,
}

/// Bits that number `count` things.
fn bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

impl CpuTopology {
    /// One package of `cpus` cores with a thread each.
    pub fn flat(cpus: u32) -> Self {
        Self { sockets: 1, cores: cpus, threads: 1 }
    }

    /// How many CPUs that makes.
    pub fn cpus(self) -> u32 {
        self.sockets * self.threads_per_package()
    }

    /// CPUs of a package.
    pub fn threads_per_package(self) -> u32 {
        self.cores * self.threads
    }

    /// How many low bits of an APIC ID number the threads of a core.
    pub fn core_shift(self) -> u32 {
        bits(self.threads)
    }

    /// How many low bits of an APIC ID number the CPUs of a package.
    pub fn package_shift(self) -> u32 {
        self.core_shift() + bits(self.cores)
    }

    /// The APIC ID of CPU `index`: CPUs are counted thread by thread, core by core, package by package, and each of the
    /// three numbers has bits of its own. With counts that are no powers of two there are gaps.
    pub fn apic_id(self, index: u32) -> u32 {
        let (core, thread) = (index / self.threads, index % self.threads);
        let (package, core) = (core / self.cores, core % self.cores);
        package << self.package_shift() | core << self.core_shift() | thread
    }

    /// The APIC IDs of all CPUs, in the order of the CPUs.
    pub fn apic_ids(self) -> impl Iterator<Item = u32> {
        (0..self.cpus()).map(move |index| self.apic_id(index))
    }
}

impl Default for CpuTopology {
    fn default() -> Self {
        Self::flat(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_machine_numbers_its_cpus() {
        let flat = CpuTopology::flat(5);
        assert_eq!(flat.apic_ids().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert_eq!((flat.cpus(), flat.core_shift(), flat.package_shift()), (5, 0, 3));
    }

    #[test]
    fn each_level_has_bits_of_its_own() {
        let topology = CpuTopology { sockets: 2, cores: 3, threads: 2 };
        let ids: Vec<_> = topology.apic_ids().collect();
        assert_eq!(ids, [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]);
        assert_eq!((topology.core_shift(), topology.package_shift()), (1, 3));
    }
}
