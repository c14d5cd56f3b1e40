//! `-M NAME,property=value` (QEMU, *Invocation*; *'microvm' virtual platform*).

use super::accel::{self, AccelChoice, AccelList, KernelIrqchip};
use super::error::{Context, OptionError};
use super::syntax;

/// The machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineKind {
    /// What a kernel needs and no more.
    Microvm {
        /// There is a PCI Express bus.
        pcie: bool,
    },
    /// A PC with a PCI Express bus.
    Q35,
}

impl Default for MachineKind {
    fn default() -> Self {
        Self::Microvm { pcie: false }
    }
}

impl MachineKind {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Microvm { .. } => "microvm",
            Self::Q35 => "q35",
        }
    }

    /// Whether there is a PCI bus, which devices are on then unless something else is said.
    pub fn has_pci(self) -> bool {
        matches!(self, Self::Microvm { pcie: true } | Self::Q35)
    }

    /// Whether devices can be on virtio-mmio.
    pub fn has_virtio_mmio(self) -> bool {
        matches!(self, Self::Microvm { .. })
    }
}

/// What `-M` takes with a meaning here.
const PROPERTIES: &[&str] = &[
    "type",
    "accel",
    "kernel-irqchip",
    "memory-backend",
    "acpi",
    "pic",
    "pit",
    "rtc",
    "isa-serial",
    "auto-kernel-cmdline",
    "pcie",
    "usb",
];

/// What `-M` said.
#[derive(Clone, Debug, Default)]
pub struct MachineArgument {
    /// The machine.
    pub kind: MachineKind,
    /// `accel=`.
    pub accel: AccelList,
    /// `kernel-irqchip=`: for KVM if that is among the engines.
    pub kernel_irqchip: Option<KernelIrqchip>,
    /// `memory-backend=`.
    pub memory_backend: Option<String>,
}

impl MachineArgument {
    /// Adds one `-M`; a later one overrides.
    pub fn add(&mut self, context: Context) -> Result<(), OptionError> {
        for pair in syntax::pairs(context.value, "type") {
            match pair.key.replace('_', "-").as_str() {
                "type" => self.kind = kind(context, &pair.value)?,
                "pcie" => {
                    let pcie = syntax::on_off(&pair.value).or((pair.value == "auto").then_some(false));
                    let pcie = pcie.ok_or_else(|| context.bad("pcie= takes on, off or auto"))?;
                    match &mut self.kind {
                        MachineKind::Microvm { pcie: here } => *here = pcie,
                        MachineKind::Q35 => return Err(context.unknown(&pair.key)),
                    }
                }
                "accel" => {
                    let mut list = AccelList::default();
                    let choices = list.push_names(context, &pair.value)?;
                    list.extend(choices);
                    self.accel = list;
                }
                "kernel-irqchip" => self.kernel_irqchip = Some(accel::kernel_irqchip(context, &pair.value)?),
                property @ ("acpi" | "pic" | "pit" | "rtc" | "isa-serial") => match pair.value.as_str() {
                    "on" | "auto" => {}
                    "off" => return Err(context.not_built(&format!("{property}=off"))),
                    _ => return Err(context.bad(format!("{property}= takes on, off or auto"))),
                },
                // The first writes virtio-mmio devices to the kernel's command line, the second loads option
                // ROMs: there is neither.
                property @ ("auto-kernel-cmdline" | "x-option-roms") => match syntax::on_off(&pair.value) {
                    Some(_) => {}
                    None => return Err(context.bad(format!("{property}= takes on or off"))),
                },
                property @ ("ioapic2" | "usb" | "graphics" | "mem-merge" | "dump-guest-core" | "hpet"
                | "sata" | "smbus" | "smm" | "vmport") => {
                    match pair.value.as_str() {
                        "off" => {}
                        // A machine that has neither takes what suits it.
                        "auto" if matches!(property, "smm" | "vmport") => {}
                        _ => return Err(context.not_built(property)),
                    }
                }
                "memory-backend" => self.memory_backend = Some(pair.value),
                property @ ("dtb" | "dumpdtb" | "phandle-start" | "dt-compatible" | "firmware" | "hmat"
                | "memory-encryption" | "suppress-vmdesc" | "smp" | "boot" | "memory"
                | "kernel" | "initrd" | "append") => {
                    return Err(context.not_built(property));
                }
                key => return Err(context.unknown_of(key, PROPERTIES.iter().copied())),
            }
        }
        Ok(())
    }
}

fn kind(context: Context, name: &str) -> Result<MachineKind, OptionError> {
    match name {
        "microvm" => Ok(MachineKind::default()),
        "q35" => Ok(MachineKind::Q35),
        "pc" | "isapc" | "none" | "x-remote" => Err(context.not_built(&format!("machine '{name}'"))),
        _ if name.starts_with("pc-q35-") || name.starts_with("pc-i440fx-") => {
            Err(context.not_built(&format!("machine '{name}'")))
        }
        _ => Err(context.bad(format!("no machine '{name}' (see -M help)"))),
    }
}

/// Joins what `-M` and `-accel` said about engines.
pub fn merge_accel(machine: MachineArgument, accel: AccelList) -> Result<Vec<AccelChoice>, OptionError> {
    if !machine.accel.is_empty() && !accel.is_empty() {
        return Err(OptionError::Conflict("-accel".into(), "-M accel=".into()));
    }
    let list = if machine.accel.is_empty() { accel } else { machine.accel };
    let mut choices = list.into_choices();
    for choice in &mut choices {
        if let (AccelChoice::Kvm(kvm), Some(irqchip)) = (choice, machine.kernel_irqchip) {
            kvm.irqchip = irqchip;
        }
    }
    Ok(choices)
}

/// The text of `-M help`.
pub const HELP: &str = "\
Machines:
  microvm   serial ports, PIC, PIT, IOAPIC, RTC, i8042, ACPI, virtio-mmio (default); pcie=on adds a PCI Express bus
  q35       the same with a PCI Express bus and no virtio-mmio
";

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(value: &str) -> Result<MachineArgument, OptionError> {
        let mut machine = MachineArgument::default();
        machine.add(Context { option: "-M", value })?;
        Ok(machine)
    }

    #[test]
    fn engines_may_stand_here() {
        let argument = machine("microvm,accel=kvm:tcg,kernel_irqchip=off").unwrap();
        let choices = merge_accel(argument, AccelList::default()).unwrap();
        assert!(
            matches!(&choices[..], [AccelChoice::Kvm(kvm), AccelChoice::Tcg(_)] if kvm.irqchip == KernelIrqchip::Off)
        );
    }

    #[test]
    fn but_not_in_both_places() {
        let mut list = AccelList::default();
        list.add(Context { option: "-accel", value: "tcg" }).unwrap();
        assert!(merge_accel(machine("accel=tcg").unwrap(), list).is_err());
    }

    #[test]
    fn properties() {
        assert!(
            machine("microvm,pit=on,pic=on,rtc=on,isa-serial=on,auto-kernel-cmdline=off,pcie=off").is_ok()
        );
        assert_eq!(
            machine("microvm,foo=1").unwrap_err().to_string(),
            "-M microvm,foo=1: unknown property 'foo'"
        );
        let kind = |value| machine(value).map(|machine| machine.kind);
        assert_eq!(kind("microvm,pcie=on"), Ok(MachineKind::Microvm { pcie: true }));
        assert_eq!(kind("q35,smm=off,vmport=auto,graphics=off"), Ok(MachineKind::Q35));
        assert!(kind("q35,pcie=on").unwrap_err().to_string().ends_with("unknown property 'pcie'"));
        assert!(kind("microvm,pcie=maybe").unwrap_err().to_string().contains("takes on, off or auto"));
        assert!(kind("pc").unwrap_err().to_string().ends_with("machine 'pc': not built yet"));
        assert!(machine("frob").unwrap_err().to_string().contains("'frob'"));
    }
}
