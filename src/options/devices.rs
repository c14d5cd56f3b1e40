//! `-device` (QEMU, *Invocation*).

use std::path::PathBuf;

use devices::pci::Address;
use devices::virtio::balloon::BalloonOptions;
use devices::virtio::blk::{BlkOptions, MAX_QUEUES};

use super::attachment::{Attachment, BusKind, PCI_PROPERTIES};
use super::board;
use super::console::PortChoice;
use super::error::{Context, OptionError};
use super::globals::Globals;
use super::syntax::{self, Pair};
use super::uuid::Uuid;
use super::vhost::{self, VhostVsockChoice};
use super::vhost_user::{self, VhostUserFsChoice};
use super::{balloon, console, shares, vsock};

/// How many serial ports a PC has.
pub const MAX_SERIAL: usize = 4;

/// A device that `-device` added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A write ends the program with status `(value << 1) | 1`.
    IsaDebugExit {
        /// First port.
        iobase: u16,
        /// Number of ports: 1, 2 or 4.
        iosize: u8,
    },
    /// A disk.
    VirtioBlk(BlkChoice),
    /// Random bytes.
    VirtioRng {
        /// The object that they come from; `None`: the host's `/dev/urandom`.
        rng: Option<String>,
    },
    /// A network card.
    VirtioNet {
        /// Which network it is on.
        netdev: String,
        /// Its address, if it is not the usual one.
        mac: Option<[u8; 6]>,
    },
    /// A shared folder.
    Virtio9p {
        /// Which folder.
        fsdev: String,
        /// The name that guests mount it by.
        mount_tag: String,
    },
    /// Streams to and from programs of the host.
    VirtioVsock {
        /// The guest's address.
        guest_cid: u32,
        /// The host's socket.
        socket: PathBuf,
    },
    /// Streams between programs of the guest and of the host, by the host's kernel.
    VhostVsock(VhostVsockChoice),
    /// A folder that another program serves.
    VhostUserFs(VhostUserFsChoice),
    /// A part of the board.
    Board(BoardDevice),
    /// A device for consoles and ports.
    VirtioSerial {
        /// What its ports call it.
        id: Option<String>,
        /// Ports at most.
        max_ports: u32,
    },
    /// A port of such a device.
    SerialPort(PortChoice),
    /// A balloon.
    VirtioBalloon(BalloonOptions),
}

/// A part of the board that is there if it was asked for, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoardDevice {
    /// The guest's kernel tells of its panic.
    Pvpanic {
        /// Its port.
        ioport: u16,
        /// What it can be told, [`devices::chipset::pvpanic::spec::event`].
        events: u8,
    },
    /// A number that is another one in each copy of the machine.
    Vmgenid {
        /// The number; `None`: a random one.
        guid: Option<Uuid>,
    },
    /// The guest's kernel says where its notes for a dump are.
    Vmcoreinfo,
    /// A guest that does not feed it is taken to hang.
    Watchdog {
        /// Where on the PCI bus; `None`: in the first slot that is free.
        address: Option<Address>,
    },
}

impl BoardDevice {
    /// Its name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Pvpanic { .. } => "pvpanic",
            Self::Vmgenid { .. } => "vmgenid",
            Self::Vmcoreinfo => "vmcoreinfo",
            Self::Watchdog { .. } => "i6300esb",
        }
    }
}

/// A virtio-blk device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkChoice {
    /// Which drive.
    pub drive: String,
    /// What it shows of itself. `write_cache` is the drive's unless the device was asked for one.
    pub options: BlkOptions,
    /// `write-cache=`.
    pub write_cache: Option<bool>,
}

impl BlkChoice {
    /// The device of `drive`, as it is unless more is said.
    pub fn of(drive: String) -> Self {
        Self { drive, options: BlkOptions::default(), write_cache: None }
    }
}

/// A property of a device.
pub(super) struct Property {
    name: &'static str,
    /// What it takes.
    takes: &'static str,
}

/// A device that `-device` takes.
pub(super) struct Model {
    pub(super) name: &'static str,
    pub(super) alias: Option<&'static str>,
    pub(super) help: &'static str,
    pub(super) properties: &'static [Property],
    pub(super) read: fn(Context, Vec<Pair>) -> Result<DeviceChoice, OptionError>,
}

pub(super) const fn property(name: &'static str, takes: &'static str) -> Property {
    Property { name, takes }
}

const MODELS: &[Model] = &[
    Model {
        name: "isa-debug-exit",
        alias: None,
        help: "the guest's write of V ends the program with status (V << 1) | 1",
        properties: &[
            property("id", "NAME"),
            property("iobase", "PORT (default 0x501)"),
            property("iosize", "1|2|4 (default 2)"),
        ],
        read: debug_exit,
    },
    Model {
        name: "virtio-blk-device",
        alias: Some("virtio-blk"),
        help: "a disk",
        properties: &[
            property("id", "NAME"),
            property("drive", "NAME of a -drive or -blockdev"),
            property("serial", "TEXT, of which the guest sees 20 bytes"),
            property("num-queues", "N, 1 to 16 (default 1)"),
            property("logical_block_size", "BYTES, 512 to 32768 (default 512)"),
            property("physical_block_size", "BYTES, the same at least (default 512)"),
            property("write-cache", "on|off|auto (default auto: as the drive's cache=)"),
            property("discard", "on|off (default on)"),
        ],
        read: virtio_blk,
    },
    Model {
        name: "virtio-rng-device",
        alias: Some("virtio-rng"),
        help: "random bytes",
        properties: &[
            property("id", "NAME"),
            property("rng", "NAME of an -object (default: the host's /dev/urandom)"),
        ],
        read: virtio_rng,
    },
    Model {
        name: "virtio-net-device",
        alias: Some("virtio-net"),
        help: "a network card",
        properties: &[
            property("id", "NAME"),
            property("netdev", "NAME of a -netdev"),
            property("mac", "ADDRESS (default 52:54:00:12:34:56, the next card's 57 ...)"),
        ],
        read: virtio_net,
    },
    Model {
        name: "virtio-serial-device",
        alias: Some("virtio-serial"),
        help: "what virtconsole and virtserialport are on",
        properties: &[property("id", "NAME"), property("max_ports", "N, 1 to 31 (default 31)")],
        read: console::bus,
    },
    Model {
        name: "virtconsole",
        alias: None,
        help: "a console of the guest's (hvc0 ...)",
        properties: PORT_PROPERTIES,
        read: console::console,
    },
    Model {
        name: "virtserialport",
        alias: None,
        help: "a port that programs in the guest know by its name",
        properties: PORT_PROPERTIES,
        read: console::serial_port,
    },
    Model {
        name: "virtio-balloon-device",
        alias: Some("virtio-balloon"),
        help: "gives memory that the guest does without back to the host",
        properties: &[
            property("id", "NAME"),
            property("deflate-on-oom", "on|off (default off)"),
            property("free-page-reporting", "on|off (default off)"),
            property("free-page-hint", "off"),
            property("page-poison", "off"),
        ],
        read: balloon::balloon,
    },
    Model {
        name: "pvpanic",
        alias: None,
        help: "the guest's kernel tells of its panic (-action panic= says what follows)",
        properties: &[
            property("id", "NAME"),
            property("ioport", "PORT (default 0x505)"),
            property("events", "SUM of 1 panicked, 2 crash kernel loaded, 4 shutdown (default 7)"),
        ],
        read: board::pvpanic,
    },
    Model {
        name: "vmgenid",
        alias: None,
        help: "an identifier of this run, for the guest's random numbers",
        properties: &[property("id", "NAME"), property("guid", "auto|UUID")],
        read: board::vmgenid,
    },
    Model {
        name: "vmcoreinfo",
        alias: None,
        help: "the guest's kernel says where its notes for a dump are (fw_cfg etc/vmcoreinfo)",
        properties: &[property("id", "NAME")],
        read: board::vmcoreinfo,
    },
    Model {
        name: "i6300esb",
        alias: None,
        help: "a watchdog (-action watchdog= says what follows when it is not fed)",
        properties: &[property("id", "NAME")],
        read: board::watchdog,
    },
    shares::MODEL,
    vsock::MODEL,
    vhost::MODEL,
    vhost_user::MODEL,
];

const PORT_PROPERTIES: &[Property] = &[
    property("id", "NAME"),
    property("chardev", "NAME of a -chardev"),
    property("name", "TEXT, what programs in the guest know it by"),
    property("nr", "N, its number (default: the next one; 0 is a virtconsole's)"),
    property("bus", "NAME of a virtio-serial-device (default: the first one)"),
];

/// Those that are on PCI and nowhere else.
const PCI_ONLY: &[&str] = &["i6300esb"];

/// How the names of virtio-mmio devices end, and those of the same on PCI.
const ON_MMIO: &str = "-device";
const ON_PCI: [&str; 2] = ["-pci", "-pci-non-transitional"];

impl Model {
    /// What its names begin with, if it is a virtio device, which can be on either bus.
    fn virtio_name(&self) -> Option<&'static str> {
        self.name.strip_suffix(ON_MMIO)
    }
}

/// The model of that name, and the bus that the name says, if it can be on several.
fn model(name: &str) -> Option<(&'static Model, Option<BusKind>)> {
    let on_pci = ON_PCI.iter().find_map(|end| name.strip_suffix(end));
    MODELS.iter().find_map(|model| match model.virtio_name() {
        None => {
            let bus = PCI_ONLY.contains(&name).then_some(BusKind::Pci);
            (model.name == name || model.alias == Some(name)).then_some((model, bus))
        }
        Some(virtio) => {
            let bus = if on_pci == Some(virtio) {
                BusKind::Pci
            } else if model.name == name {
                BusKind::VirtioMmio
            } else if virtio == name || model.alias == Some(name) {
                BusKind::OfMachine
            } else {
                return None;
            };
            Some((model, Some(bus)))
        }
    })
}

/// Reads the argument of `-device`: the device, and how it is attached if it can be in several ways.
pub fn device(
    context: Context,
    globals: &Globals,
) -> Result<(DeviceChoice, Option<Attachment>), OptionError> {
    let mut pairs = syntax::pairs(context.value, "driver");
    let driver = pairs.remove(0);
    if driver.key != "driver" {
        return Err(context.bad("the device's name comes first"));
    }
    let Some((model, bus)) = model(&driver.value) else {
        return Err(if is_qemu_device(&driver.value) {
            context.not_built(&format!("device '{}'", driver.value))
        } else {
            {
                let known = MODELS.iter().flat_map(|model| [Some(model.name), model.alias]).flatten();
                let nearest = syntax::nearest(&driver.value, known);
                let nearest = nearest.map(|name| format!("did you mean {name}? or ")).unwrap_or_default();
                context.bad(format!("no device '{}' ({nearest}see -device help)", driver.value))
            }
        });
    };
    if let Some(pair) = pairs.iter().find(|pair| !known(model, bus).any(|name| name == pair.key)) {
        return Err(context.unknown_of(&pair.key, known(model, bus)));
    }
    let mut pairs = globals
        .complete(|driver| self::model(driver).is_some_and(|(other, _)| other.name == model.name), pairs);
    // What was said of all devices of the kind may be of the other bus.
    pairs.retain(|pair| known(model, bus).any(|name| name == pair.key));
    let attachment = bus.map(|bus| Attachment::take(context, bus, &mut pairs)).transpose()?;
    Ok(((model.read)(context, pairs)?, attachment))
}

/// The properties of a device on such a bus.
fn known(model: &Model, bus: Option<BusKind>) -> impl Iterator<Item = &'static str> {
    let is_on_pci = bus.is_some_and(|bus| bus != BusKind::VirtioMmio);
    let of_bus = if is_on_pci { PCI_PROPERTIES } else { &[] };
    model.properties.iter().map(|property| property.name).chain(of_bus.iter().map(|(name, _)| *name))
}

/// Whether a device has a property; `None`: there is no such device.
pub fn check_property(context: Context, driver: &str, property: &str) -> Option<Result<(), OptionError>> {
    let (model, bus) = model(driver)?;
    let found = known(model, bus).any(|name| name == property);
    Some(if found { Ok(()) } else { Err(context.unknown_of(property, known(model, bus))) })
}

fn debug_exit(context: Context, pairs: Vec<Pair>) -> Result<DeviceChoice, OptionError> {
    let (mut iobase, mut iosize) = (0x501, 2);
    for pair in pairs {
        let number = syntax::integer(&pair.value);
        match pair.key.as_str() {
            "iobase" => {
                iobase = number
                    .and_then(|n| u16::try_from(n).ok())
                    .ok_or_else(|| context.bad("iobase= takes a port, 0 to 0xffff"))?;
            }
            "iosize" => {
                iosize = number
                    .filter(|n| matches!(n, 1 | 2 | 4))
                    .and_then(|n| u8::try_from(n).ok())
                    .ok_or_else(|| context.bad("iosize= takes 1, 2 or 4"))?;
            }
            _ => {}
        }
    }
    if u32::from(iobase) + u32::from(iosize) > 0x1_0000 {
        return Err(context.bad("the ports end at 0xffff"));
    }
    Ok(DeviceChoice::IsaDebugExit { iobase, iosize })
}

fn virtio_blk(context: Context, pairs: Vec<Pair>) -> Result<DeviceChoice, OptionError> {
    let mut choice = BlkChoice::of(String::new());
    for pair in pairs {
        let block = || {
            let size = syntax::integer(&pair.value).and_then(|n| u32::try_from(n).ok());
            let size = size.filter(|size| size.is_power_of_two() && (512..=32768).contains(size));
            size.ok_or_else(|| context.bad(format!("{}= takes a power of two, 512 to 32768", pair.key)))
        };
        let switch = || {
            syntax::on_off(&pair.value).ok_or_else(|| context.bad(format!("{}= takes on or off", pair.key)))
        };
        match pair.key.as_str() {
            "drive" => choice.drive = pair.value,
            "serial" => choice.options.serial = pair.value,
            "num-queues" => {
                let queues = syntax::integer(&pair.value).and_then(|n| u16::try_from(n).ok());
                let queues = queues.filter(|n| (1..=MAX_QUEUES).contains(n));
                choice.options.num_queues =
                    queues.ok_or_else(|| context.bad(format!("num-queues= takes 1 to {MAX_QUEUES}")))?;
            }
            "logical_block_size" => choice.options.logical_block_size = block()?,
            "physical_block_size" => choice.options.physical_block_size = block()?,
            "write-cache" if pair.value == "auto" => choice.write_cache = None,
            "write-cache" => choice.write_cache = Some(switch()?),
            "discard" => choice.options.discard = switch()?,
            _ => {}
        }
    }
    let options = &mut choice.options;
    options.physical_block_size = options.physical_block_size.max(options.logical_block_size);
    if choice.drive.is_empty() {
        return Err(context.bad("needs drive=NAME"));
    }
    Ok(DeviceChoice::VirtioBlk(choice))
}

fn virtio_rng(_context: Context, pairs: Vec<Pair>) -> Result<DeviceChoice, OptionError> {
    let rng = pairs.into_iter().find(|pair| pair.key == "rng").map(|pair| pair.value);
    Ok(DeviceChoice::VirtioRng { rng })
}

fn virtio_net(context: Context, pairs: Vec<Pair>) -> Result<DeviceChoice, OptionError> {
    let (mut netdev, mut address) = (None, None);
    for pair in pairs {
        match pair.key.as_str() {
            "netdev" => netdev = Some(pair.value),
            "mac" => address = Some(mac(context, &pair.value)?),
            _ => {}
        }
    }
    let netdev = netdev.ok_or_else(|| context.bad("needs netdev=NAME"))?;
    Ok(DeviceChoice::VirtioNet { netdev, mac: address })
}

/// The address of a card: six hexadecimal bytes, not a group's.
pub fn mac(context: Context, text: &str) -> Result<[u8; 6], OptionError> {
    let byte = |text: &str| u8::from_str_radix(text, 16).ok().filter(|_| (1..=2).contains(&text.len()));
    let bytes: Option<Vec<u8>> = text.split([':', '-']).map(byte).collect();
    let bytes = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
    let bytes = bytes.filter(|bytes| bytes[0] & 1 == 0);
    bytes.ok_or_else(|| context.bad("mac= takes a card's address, such as 52:54:00:12:34:56"))
}

/// Families of devices that QEMU has and scripts use.
fn is_qemu_device(name: &str) -> bool {
    const FAMILIES: &[&str] = &[
        "virtio-", "vhost-", "scsi-", "ide-", "usb-", "nvme", "e1000", "rtl8139", "pci", "isa-", "VGA",
        "sga", "tpm-", "ioh3420", "intel-", "AC97", "loader",
    ];
    FAMILIES.iter().any(|family| name.starts_with(family))
}

/// The text of `-device help`.
pub fn help() -> String {
    let mut text = String::from("Devices (NAME,help lists a device's properties):\n");
    for model in MODELS {
        let virtio = model.virtio_name();
        let on_pci = virtio.map(|name| format!(", {name}-pci")).unwrap_or_default();
        let alias = model.alias.or(virtio).map(|alias| format!(" (or {alias})")).unwrap_or_default();
        text += &format!("  {}{on_pci}{alias}: {}\n", model.name, model.help);
    }
    text
}

/// The text of `-device NAME,help`; `None`: there is no such device.
pub fn properties_help(value: &str) -> Option<String> {
    let name = value.strip_suffix(",help").or_else(|| value.strip_suffix(",?"))?;
    let (model, bus) = model(name)?;
    let mut text = format!("{name} properties:\n");
    for Property { name, takes } in model.properties {
        text += &format!("  {name}={takes}\n");
    }
    if bus.is_some_and(|bus| bus != BusKind::VirtioMmio) {
        for (name, takes) in PCI_PROPERTIES {
            text += &format!("  {name}={takes}\n");
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dev(value: &str) -> Result<DeviceChoice, OptionError> {
        device(Context { option: "-device", value }, &Globals::default()).map(|(choice, _)| choice)
    }

    #[test]
    fn debug_exit() {
        assert_eq!(dev("isa-debug-exit"), Ok(DeviceChoice::IsaDebugExit { iobase: 0x501, iosize: 2 }));
        assert_eq!(
            dev("isa-debug-exit,iobase=0xf4,iosize=0x04"),
            Ok(DeviceChoice::IsaDebugExit { iobase: 0xf4, iosize: 4 })
        );
        assert!(dev("isa-debug-exit,foo=1").unwrap_err().to_string().ends_with("unknown property 'foo'"));
        for bad in [
            "isa-debug-exit,iobase=0x10000",
            "isa-debug-exit,iosize=3",
            "isa-debug-exit,iobase=0xffff",
            "frob",
            "iosize=1",
        ] {
            assert!(dev(bad).is_err(), "{bad}");
        }
        assert!(dev("virtio-gpu-device").unwrap_err().to_string().ends_with("not built yet"));
    }

    #[test]
    fn virtio_devices() {
        let text =
            "virtio-blk-device,drive=d,serial=s,num-queues=4,logical_block_size=4096,write-cache=off,id=x";
        let Ok(DeviceChoice::VirtioBlk(choice)) = dev(text) else { panic!() };
        assert_eq!((choice.drive.as_str(), choice.options.serial.as_str()), ("d", "s"));
        assert_eq!((choice.options.num_queues, choice.options.physical_block_size), (4, 4096));
        assert_eq!(choice.write_cache, Some(false));
        assert_eq!(dev("virtio-rng,rng=r"), Ok(DeviceChoice::VirtioRng { rng: Some("r".into()) }));
        for (text, named) in [
            ("virtio-blk", "needs drive=NAME"),
            ("virtio-blk,drive=d,seriel=s", "unknown property 'seriel' (did you mean 'serial'?)"),
            ("virtio-blk,drive=d,num-queues=17", "num-queues= takes 1 to 16"),
            ("virtio-blk,drive=d,logical_block_size=513", "power of two"),
            ("virtio-blk-pci,drive=d,adr=3", "unknown property 'adr' (did you mean 'addr'?)"),
            ("virtio-blk-device,drive=d,addr=3", "unknown property 'addr'"),
        ] {
            let error = dev(text).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn names_say_the_bus() {
        for (text, bus) in [
            ("virtio-rng", BusKind::OfMachine),
            ("virtio-rng-device", BusKind::VirtioMmio),
            ("virtio-rng-pci", BusKind::Pci),
            ("virtio-rng-pci-non-transitional", BusKind::Pci),
        ] {
            let attachment =
                device(Context { option: "-device", value: text }, &Globals::default()).unwrap().1;
            assert_eq!(attachment.unwrap().bus, bus, "{text}");
        }
        let plain = Context { option: "-device", value: "isa-debug-exit" };
        assert!(device(plain, &Globals::default()).unwrap().1.is_none());
        assert!(properties_help("virtio-rng-pci,help").unwrap().contains("addr="));
        assert!(!properties_help("virtio-rng-device,help").unwrap().contains("addr="));
        assert!(help().contains("virtio-blk-device, virtio-blk-pci (or virtio-blk)"));
        assert!(dev("virtio-rng-ccw").unwrap_err().to_string().ends_with("not built yet"));
    }
}
