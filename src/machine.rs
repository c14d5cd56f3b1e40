//! The machine: RAM, buses, interrupt controllers, devices and CPUs, put together for an engine that was chosen.

pub mod cpu_io;
pub mod memory;
mod memory_file;
mod microvm;
mod onboard;
pub mod pci;
pub mod virtio;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use accel::cpu_model::CpuTopology;
use accel::cpu_set::{CpuSet, SpawnError};
use accel::machine_lifecycle::MachineResetError;
use accel::{Accelerator, CpuModel, Irqchip, MachineLifecycle, MemoryError, VcpuConfig, VcpuError};
use devices::backend::CharBackend;
use devices::backend::block::BlockBackend;
use devices::bus::{Bus, BusError};
use devices::chipset::fw_cfg::FileError;
use devices::clock::Clock;
use devices::device::Device;
use devices::interrupt::{InterruptSink, MsiMessage};
use devices::irqchip::UserspaceIrqchip;
use devices::serial::Uart16550;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use self::cpu_io::MachineIo;
use self::memory::{Ram, RamError};
use crate::boot::error::BootError;
use crate::boot::{BootSource, Unpacking, layout};
use crate::disks::{AttachedPart, VirtioPart};
use crate::firmware::Firmware;
use crate::options::devices::DeviceChoice;
use crate::options::icount::RtcBase;
use crate::options::machine::MachineKind;
use crate::options::memory_backend::MemoryBackend;
use crate::run_state::RunState;
use crate::{acpi, back_ends, mp_table};

/// Why a machine could not be built or set going.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// No RAM.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The engine does not take the memory map.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The engine has its limits.
    #[error("-smp {cpus}: -accel {accelerator} runs {limit} CPUs at most")]
    TooManyCpus {
        /// How many were asked for.
        cpus: u32,
        /// The engine.
        accelerator: &'static str,
        /// Its limit.
        limit: usize,
    },
    /// A CPU could not be reserved.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// A CPU could not be created.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// Two devices are at one place.
    #[error("-device isa-debug-exit")]
    Bus(#[from] BusError),
    /// Another device is there.
    #[error("-device {device}")]
    Ports {
        /// The device.
        device: &'static str,
        /// Who is there.
        source: BusError,
    },
    /// A file of the firmware configuration device cannot be there.
    #[error("-fw_cfg {name}")]
    FwCfg {
        /// The file's name.
        name: String,
        /// Why.
        source: FileError,
    },
    /// The host refused a file's second descriptor.
    #[error("fw_cfg")]
    FwCfgFile(#[source] io::Error),
    /// A back end cannot have guest memory.
    #[error(transparent)]
    BackEnd(#[from] back_ends::ConnectError),
    /// The virtio devices cannot be there.
    #[error(transparent)]
    Virtio(#[from] virtio::VirtioError),
    /// The kernel could not be loaded.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The machine could not be reset.
    #[error(transparent)]
    Reset(#[from] MachineResetError),
    /// A CPU went away.
    #[error("the bootstrap CPU does not answer")]
    Cpu(#[from] accel::RunOnError),
    /// RAM could not be cleared.
    #[error("guest memory could not be cleared")]
    Clear(#[source] io::Error),
}

/// What a machine is made of, beside its engine.
pub struct Blueprint {
    /// Which machine.
    pub machine: MachineKind,
    /// Guest RAM in bytes.
    pub memory_bytes: u64,
    /// What it is made of, if that was said.
    pub memory_backend: Option<MemoryBackend>,
    /// Its CPUs.
    pub topology: CpuTopology,
    /// What CPUID shows.
    pub cpu: CpuModel,
    /// The kernel.
    pub boot: BootSource,
    /// What the real-time clock shows at first.
    pub rtc: RtcBase,
    /// Added devices.
    pub devices: Vec<DeviceChoice>,
    /// Those of them that are virtio devices, with what is behind them.
    pub virtio: Vec<AttachedPart>,
    /// What the guest is told of the machine.
    pub firmware: Firmware,
}

/// CPUs and interrupt controllers on buses that have no devices yet. Making one touches nothing outside the process.
pub struct Board {
    blueprint: Blueprint,
    accelerator: Arc<dyn Accelerator>,
    clock: Arc<dyn Clock>,
    ram: Ram,
    pio: Arc<Bus>,
    mmio: Arc<Bus>,
    sink: Arc<dyn InterruptSink>,
    irqchip: Vec<Arc<dyn Device>>,
    /// The interrupt controllers where they are ours; the PIT is then, too.
    own_chips: Option<Arc<UserspaceIrqchip>>,
    cpus: Arc<CpuSet>,
    run_state: Arc<RunState>,
}

/// MAXPHYADDR as the local APIC checks it: the architecture's limit. The engine checks the CPU's.
const ADDRESS_BITS: u8 = 52;

impl Board {
    /// Builds what can be built before a file is created.
    pub fn new(
        blueprint: Blueprint,
        accelerator: Arc<dyn Accelerator>,
        run_state: Arc<RunState>,
    ) -> Result<Self, MachineError> {
        let topology = blueprint.topology;
        let (cpus, limit) = (topology.cpus(), accelerator.max_cpus());
        let cpu_count = usize::try_from(cpus).expect("a 64-bit host");
        if cpu_count > limit {
            return Err(MachineError::TooManyCpus { cpus, accelerator: accelerator.name(), limit });
        }
        let ram = match &blueprint.memory_backend {
            None if accelerator.translates() => Ram::shared(blueprint.memory_bytes)?,
            backend => Ram::new(blueprint.memory_bytes, backend.as_ref())?,
        };
        back_ends::share(&blueprint.virtio, ram.map())?;
        accelerator.memory_listener().set_map(ram.map())?;
        let clock = accelerator.clock();
        let (pio, mmio) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
        let mut irqchip: Vec<Arc<dyn Device>> = accelerator.irqchip_device().into_iter().collect();
        let own = match accelerator.irqchip() {
            Irqchip::Kernel(_) => None,
            Irqchip::Split(_) => return Err(VcpuError::Unsupported("kernel-irqchip=split").into()),
            Irqchip::Userspace => Some(UserspaceIrqchip::new(Arc::clone(&clock), ADDRESS_BITS)),
        };
        let sink: Arc<dyn InterruptSink> = match (accelerator.irqchip(), &own) {
            (Irqchip::Kernel(sink) | Irqchip::Split(sink), _) => sink,
            (Irqchip::Userspace, Some(own)) => Arc::clone(own) as Arc<dyn InterruptSink>,
            (Irqchip::Userspace, None) => unreachable!("made above"),
        };
        if let Some(own) = &own {
            irqchip.push(Arc::clone(own) as Arc<dyn Device>);
        }
        let cpus = CpuSet::new(&*accelerator, Arc::clone(&run_state) as Arc<dyn accel::CpuObserver>);
        let model = Arc::new(CpuModel { topology: Some(topology), ..blueprint.cpu.clone() });
        for (index, apic_id) in topology.apic_ids().enumerate() {
            let config = VcpuConfig { index, apic_id, cpu_count, model: Arc::clone(&model) };
            let seed = accelerator.new_vcpu(&config)?;
            let cpu = cpus.new_cpu(index);
            let local_apic = own.as_ref().map(|own| own.add_cpu(apic_id, Arc::new(cpu.clone()), seed.tsc()));
            let io = Arc::new(MachineIo { pio: Arc::clone(&pio), mmio: Arc::clone(&mmio), local_apic });
            cpus.spawn(seed, cpu, io)?;
        }
        let cpus = Arc::new(cpus);
        Ok(Self {
            blueprint,
            accelerator,
            clock,
            ram,
            pio,
            mmio,
            sink,
            irqchip,
            own_chips: own,
            cpus,
            run_state,
        })
    }

    /// Guest time, which drives the devices.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Puts the host's ends behind the ports of virtio-serial devices: `end` has them by the names that the ports say, and whether
    /// it is for a console.
    pub fn connect_ports(&mut self, mut end: impl FnMut(&str, bool) -> Arc<dyn CharBackend>) {
        for part in &mut self.blueprint.virtio {
            if let VirtioPart::Serial { ports, .. } = &mut part.part {
                ports.iter_mut().for_each(|port| port.connect(&mut end));
            }
        }
    }

    /// Adds the devices: `serial` are the host's ends of the serial ports.
    pub fn equip(mut self, serial: microvm::SerialEnds) -> Result<Machine, MachineError> {
        let firmware = std::mem::take(&mut self.blueprint.firmware);
        let mut equipment = microvm::equip(&self, serial)?;
        let onboard = onboard::place(&self, firmware)?;
        equipment.devices.extend(onboard.devices);
        let mut platform = microvm::platform(self.blueprint.topology, &equipment);
        platform.onboard = onboard.acpi;
        let mut tables = onboard.tables;
        tables.push((layout::ACPI, acpi::tables(&platform, layout::ACPI)));
        tables.push((layout::MP_TABLE, mp_table::table(&platform, layout::MP_TABLE)));
        let lifecycle =
            MachineLifecycle::new(self.cpus, Arc::clone(&self.clock), equipment.devices, self.irqchip);
        Ok(Machine {
            lifecycle,
            accelerator: self.accelerator,
            clock: self.clock,
            sink: self.sink,
            ram: self.ram,
            boot: self.blueprint.boot,
            tables,
            serial: equipment.serial,
            virtio: equipment.virtio,
            disks: disks(&self.blueprint.virtio),
        })
    }
}

/// A machine that is ready to run.
pub struct Machine {
    lifecycle: MachineLifecycle,
    accelerator: Arc<dyn Accelerator>,
    clock: Arc<dyn Clock>,
    sink: Arc<dyn InterruptSink>,
    ram: Ram,
    boot: BootSource,
    /// Tables for the operating system, each with its address.
    tables: Vec<(u64, Vec<u8>)>,
    serial: Vec<Option<Arc<Uart16550>>>,
    virtio: Vec<Arc<dyn Device>>,
    disks: Vec<Arc<dyn BlockBackend>>,
}

/// How long the end waits for disks. A disk that takes longer is not going to come back.
const FLUSH_LIMIT: Duration = Duration::from_secs(60);

fn disks(parts: &[AttachedPart]) -> Vec<Arc<dyn BlockBackend>> {
    let disk = |attached: &AttachedPart| match &attached.part {
        VirtioPart::Blk { backend, .. } => Some(Arc::clone(backend)),
        _ => None,
    };
    parts.iter().filter_map(disk).collect()
}

impl Machine {
    /// Pause, resume, and the CPUs.
    pub fn lifecycle(&self) -> &MachineLifecycle {
        &self.lifecycle
    }

    /// Guest time.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// The engine.
    pub fn accelerator(&self) -> &dyn Accelerator {
        &*self.accelerator
    }

    /// COM1 to COM4, those that are there.
    pub fn serial(&self) -> &[Option<Arc<Uart16550>>] {
        &self.serial
    }

    /// Guest RAM.
    pub fn memory(&self) -> &GuestMemoryMmap {
        self.ram.map()
    }

    /// At the end: requests that were begun are finished, and what the images' caches hold is on the host's disk. CPUs may
    /// run on; their further requests are not served.
    pub fn flush_disks(&self) {
        if self.disks.is_empty() {
            return;
        }
        let (transports, disks) = (self.virtio.clone(), self.disks.clone());
        let (done, wait) = std::sync::mpsc::channel();
        let flush = move || {
            transports.iter().for_each(|transport| transport.pause());
            for disk in disks {
                if let Err(error) = disk.flush() {
                    tracing::error!(target: "virtio", %error, "a disk could not be flushed at the end");
                }
            }
            let _ = done.send(());
        };
        // On a thread that may be left behind: a disk that hangs, or a CPU that does not take notice.
        let thread = std::thread::Builder::new().name("flush".into()).spawn(flush);
        if thread.is_err() || wait.recv_timeout(FLUSH_LIMIT).is_err() {
            tracing::error!(target: "virtio", "disks could not be flushed at the end");
        }
    }

    /// Interrupts the bootstrap CPU, whose APIC ID is 0, though its interrupts may be off.
    pub fn inject_nmi(&self) {
        /// Delivery mode NMI, to the local APIC with ID 0 (SDM vol. 3A, *Message Signalled Interrupts*).
        const NMI: MsiMessage = MsiMessage { address: 0xfee0_0000, data: 0b100 << 8 };
        self.sink.send_msi(NMI);
    }

    /// Loads the kernel and sets the machine going. Once.
    pub fn start(&self) -> Result<(), MachineError> {
        self.load()?;
        self.lifecycle.resume().map_err(MachineResetError::from)?;
        Ok(())
    }

    /// Power-on state, the kernel loaded again; the machine then goes on. For the main loop's thread. `while_stopped` runs
    /// when no CPU does any more and none does yet.
    pub fn reset(&self, while_stopped: impl FnOnce()) -> Result<(), MachineError> {
        self.lifecycle.pause().map_err(MachineResetError::from)?;
        while_stopped();
        self.lifecycle.reset()?;
        self.ram.clear().map_err(MachineError::Clear)?;
        // The same map, but not the same content: what the engine derived from that is void.
        self.accelerator.memory_listener().set_map(self.ram.map())?;
        self.load()?;
        self.lifecycle.resume().map_err(MachineResetError::from)?;
        Ok(())
    }

    /// Fills RAM and sets the bootstrap CPU to the kernel's entry.
    fn load(&self) -> Result<(), MachineError> {
        let memory = self.ram.map();
        for (address, table) in &self.tables {
            memory.write_slice(table, GuestAddress(*address)).map_err(BootError::Write)?;
        }
        let unpacking = if self.accelerator.translates() { Unpacking::ByHost } else { Unpacking::ByGuest };
        let state = self.boot.load(memory, layout::ACPI, unpacking)?;
        let cpu = self.lifecycle.cpus().cpu(0).ok_or(accel::RunOnError::Gone)?;
        cpu.run_on(move |cpu| cpu.backend.set_state(&state))??;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
