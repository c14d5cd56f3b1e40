//! How a device is attached: to which bus, and where there.

use std::collections::BTreeMap;

use devices::pci::Address;

use super::error::{Context, OptionError};
use super::machine::MachineKind;
use super::syntax::{self, Pair};

/// Which kind of bus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BusKind {
    /// PCI where the machine has it, else virtio-mmio.
    #[default]
    OfMachine,
    /// virtio-mmio.
    VirtioMmio,
    /// PCI.
    Pci,
}

/// How one device is attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attachment {
    /// The argument of `-device`, for messages.
    pub argument: String,
    /// To which bus.
    pub bus: BusKind,
    /// Where on the PCI bus; `None`: in the first slot that is free.
    pub address: Option<Address>,
    /// MSI-X vectors, 0 for none; `None`: as many as the device can use.
    pub vectors: Option<u16>,
}

/// Properties of every virtio device on PCI, and what they take.
pub const PCI_PROPERTIES: &[(&str, &str)] = &[
    ("addr", "SLOT[.FUNCTION], in hexadecimal (default: the first free slot)"),
    ("bus", "pcie.0"),
    ("vectors", "N, 0 to 2048: MSI-X vectors (default: what the device can use; 0: INTx)"),
    ("multifunction", "on|off: a slot with several functions says so by itself"),
    ("disable-legacy", "on|auto: there is no legacy interface"),
    ("disable-modern", "off"),
    ("romfile", "nothing: there are no option ROMs"),
    ("rombar", "0"),
];

/// MSI-X vectors at most.
const MAX_VECTORS: u16 = devices::pci::spec::msix::MAX_VECTORS;
/// The slot of the ISA bridge of a PC.
pub const ISA_BRIDGE: Address = Address::new(31, 0).expect("a slot");
/// The host bridge.
pub const HOST_BRIDGE: Address = Address::new(0, 0).expect("a slot");

impl Attachment {
    /// To `bus`, with the properties that are its, which are taken out of `pairs`.
    pub fn take(context: Context, bus: BusKind, pairs: &mut Vec<Pair>) -> Result<Self, OptionError> {
        let mut attachment = Self { argument: context.value.into(), bus, ..Self::default() };
        if bus == BusKind::VirtioMmio {
            return Ok(attachment);
        }
        let is_ours = |pair: &Pair| PCI_PROPERTIES.iter().any(|(name, _)| *name == pair.key);
        let (ours, others) = std::mem::take(pairs).into_iter().partition(is_ours);
        *pairs = others;
        let ours: Vec<Pair> = ours;
        for Pair { key, value } in ours {
            match (key.as_str(), value.as_str()) {
                ("addr", text) => {
                    let expected = "addr= takes SLOT or SLOT.FUNCTION, 0 to 1f and 0 to 7";
                    attachment.address = Some(address(text).ok_or_else(|| context.bad(expected))?);
                }
                ("bus", "pcie.0" | "pci.0") => {}
                ("bus", _) => return Err(context.bad("bus= takes pcie.0: there is no other PCI bus")),
                ("vectors", text) => {
                    let vectors = syntax::integer(text).and_then(|n| u16::try_from(n).ok());
                    let vectors = vectors.filter(|&n| n <= MAX_VECTORS);
                    let expected = format!("vectors= takes 0 to {MAX_VECTORS}");
                    attachment.vectors = Some(vectors.ok_or_else(|| context.bad(expected))?);
                }
                ("disable-legacy", "auto" | "on" | "true") | ("disable-modern", "off" | "false") => {}
                ("romfile", "") | ("rombar", "0") => {}
                ("romfile" | "rombar", _) => return Err(context.not_built("an option ROM")),
                ("multifunction", text) if syntax::on_off(text).is_some() => {}
                ("disable-legacy", "off" | "false") => {
                    return Err(context.not_built("the legacy interface of virtio"));
                }
                ("disable-modern", "on" | "true") => {
                    return Err(context.not_built("a device without the modern interface of virtio"));
                }
                (key, value) => return Err(context.bad(format!("{key}= does not take '{value}'"))),
            }
        }
        Ok(attachment)
    }

    fn bad(&self, why: String) -> OptionError {
        Context { option: "-device", value: &self.argument }.bad(why)
    }
}

/// `SLOT` or `SLOT.FUNCTION`.
fn address(text: &str) -> Option<Address> {
    let (slot, function) = text.split_once('.').unwrap_or((text, "0"));
    let number = |text: &str| {
        let digits = text.strip_prefix("0x").unwrap_or(text);
        u8::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))
    };
    Address::new(number(slot)?, number(function)?)
}

/// Refuses what cannot be on this machine, or not where it says.
pub fn check(machine: MachineKind, attachments: &BTreeMap<usize, Attachment>) -> Result<(), OptionError> {
    let mut taken = vec![HOST_BRIDGE];
    if machine == MachineKind::Q35 {
        taken.push(ISA_BRIDGE);
    }
    for attachment in attachments.values() {
        let driver = attachment.argument.split(',').next().unwrap_or_default();
        let name = driver.trim_end_matches("-non-transitional");
        match attachment.bus {
            BusKind::Pci if !machine.has_pci() => {
                let Some(other) = name.strip_suffix("-pci") else {
                    let cure = "use -M microvm,pcie=on or -M q35";
                    return Err(attachment.bad(format!("there is no PCI on this machine: {cure}")));
                };
                return Err(attachment.bad(format!(
                    "there is no PCI on this machine: use {other}-device, -M microvm,pcie=on or -M q35"
                )));
            }
            BusKind::VirtioMmio if !machine.has_virtio_mmio() => {
                let other = name.trim_end_matches("-device");
                return Err(
                    attachment.bad(format!("there is no virtio-mmio on this machine: use {other}-pci"))
                );
            }
            BusKind::OfMachine if !machine.has_pci() && attachment.address.is_some() => {
                return Err(attachment.bad("addr= is for PCI, which this machine does not have".into()));
            }
            _ => {}
        }
        if let Some(address) = attachment.address {
            if taken.contains(&address) {
                return Err(attachment.bad(format!("addr={address} is taken")));
            }
            taken.push(address);
        }
    }
    for attachment in attachments.values() {
        if let Some(address) = attachment.address.filter(|address| address.function() > 0)
            && !taken.iter().any(|other| other.slot() == address.slot() && other.function() == 0)
        {
            let slot = address.slot();
            return Err(
                attachment.bad(format!("no guest looks at addr={address} without a device at {slot:x}.0"))
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICROVM: MachineKind = MachineKind::Microvm { pcie: false };

    fn take(value: &str, bus: BusKind) -> Result<(Attachment, Vec<Pair>), OptionError> {
        let context = Context { option: "-device", value };
        let mut pairs = syntax::pairs(value, "driver");
        pairs.remove(0);
        Attachment::take(context, bus, &mut pairs).map(|attachment| (attachment, pairs))
    }

    #[track_caller]
    fn checked(machine: MachineKind, values: &[(&str, BusKind)]) -> Result<(), String> {
        let attachments = values.iter().map(|(value, bus)| take(value, *bus).unwrap().0);
        check(machine, &attachments.enumerate().collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn properties_of_the_bus_are_taken() {
        let (attachment, rest) =
            take("virtio-blk-pci,drive=d,addr=1e.7,vectors=0,bus=pcie.0,disable-legacy=on", BusKind::Pci)
                .unwrap();
        assert_eq!((attachment.address, attachment.vectors), (Address::new(30, 7), Some(0)));
        assert_eq!(rest, [Pair { key: "drive".into(), value: "d".into() }]);
        assert_eq!(take("virtio-blk-device,addr=3", BusKind::VirtioMmio).unwrap().1.len(), 1);
        for bad in [
            "addr=20",
            "addr=3.8",
            "addr=x",
            "addr=+3",
            "addr=",
            "vectors=2049",
            "bus=pci.1",
            "disable-legacy=off",
            "multifunction=perhaps",
            "addr=-1",
            "addr=3.1.1",
        ] {
            assert!(take(&format!("virtio-rng-pci,{bad}"), BusKind::Pci).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_a_machine_does_not_have() {
        use BusKind::{OfMachine, Pci, VirtioMmio};
        let pcie = MachineKind::Microvm { pcie: true };
        for machine in [pcie, MachineKind::Q35] {
            assert_eq!(
                checked(machine, &[("virtio-rng-pci", Pci), ("virtio-rng,addr=4", OfMachine)]),
                Ok(())
            );
        }
        assert_eq!(checked(pcie, &[("virtio-rng-device", VirtioMmio)]), Ok(()));
        let error = checked(MICROVM, &[("virtio-rng-pci-non-transitional,id=x", Pci)]).unwrap_err();
        assert!(
            error.contains("no PCI on this machine: use virtio-rng-device, -M microvm,pcie=on"),
            "{error}"
        );
        let error = checked(MachineKind::Q35, &[("virtio-rng-device", VirtioMmio)]).unwrap_err();
        assert!(error.ends_with("use virtio-rng-pci"), "{error}");
        assert!(checked(MICROVM, &[("virtio-rng,addr=4", OfMachine)]).unwrap_err().contains("addr="));
    }

    #[test]
    fn places_that_are_taken() {
        use BusKind::Pci;
        let q35 = |values: &[(&str, BusKind)]| checked(MachineKind::Q35, values);
        assert!(q35(&[("virtio-rng-pci,addr=1f", Pci)]).unwrap_err().ends_with("addr=1f.0 is taken"));
        assert!(q35(&[("a-pci,addr=0", Pci)]).unwrap_err().ends_with("addr=00.0 is taken"));
        assert!(q35(&[("a-pci,addr=3", Pci), ("a-pci,addr=3.0", Pci)]).is_err());
        assert_eq!(q35(&[("a-pci,addr=3.1", Pci), ("a-pci,addr=3", Pci), ("a-pci,addr=1f.2", Pci)]), Ok(()));
        assert!(q35(&[("a-pci,addr=3.1", Pci)]).unwrap_err().ends_with("without a device at 3.0"));
    }
}
