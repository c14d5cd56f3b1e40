//! The command line: QEMU's options, each built, without effect, or refused by name (QEMU, *Invocation*).

pub mod accel;
mod accepted;
pub mod action;
pub mod attachment;
pub mod balloon;
pub mod board;
pub mod chardev;
mod config_file;
pub mod console;
pub mod cpu;
pub mod devices;
pub mod drive;
pub mod error;
pub mod fw_cfg;
mod globals;
pub mod icount;
mod json;
mod line;
pub mod log;
pub mod machine;
pub mod memory;
pub mod memory_backend;
pub mod network;
pub mod object;
mod refused;
pub mod shares;
pub mod smbios;
pub mod smp;
pub mod syntax;
mod table;
pub mod uuid;
pub mod vhost;
pub mod vhost_user;
pub mod vsock;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use ::accel::cpu_model::{CpuModel, CpuTopology};
use ::devices::clock::icount::Pace;

use self::accel::{AccelChoice, AccelList, KvmChoice};
use self::attachment::Attachment;
use self::board::BoardOptions;
use self::chardev::{Chardev, SerialChoice};
use self::console::SerialBus;
use self::devices::{BlkChoice, BoardDevice, DeviceChoice, MAX_SERIAL};
use self::drive::{DriveChoice, Interface, Nodes};
use self::error::{Context, OptionError};
use self::globals::Globals;
use self::icount::RtcBase;
use self::line::Item;
use self::log::LogItem;
use self::machine::{MachineArgument, MachineKind};
use self::memory_backend::{MemoryArgument, MemoryBackend};
use self::network::Network;
use self::shares::SharedFolder;
use self::smp::SmpArgument;
use self::table::{Flag, Kind, Value};

/// What the command line asks for.
#[derive(Debug)]
pub enum Command {
    /// Run a guest.
    Run(Box<Options>),
    /// Print this text.
    Print(String),
}

/// A guest to run and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Engines to try in turn.
    pub accel: Vec<AccelChoice>,
    /// The machine.
    pub machine: MachineKind,
    /// Guest time is what was executed.
    pub icount: Option<Pace>,
    /// What the real-time clock shows at first.
    pub rtc: RtcBase,
    /// What CPUID shows.
    pub cpu: CpuModel,
    /// How many CPUs, in which packages and cores.
    pub smp: CpuTopology,
    /// Guest RAM in bytes.
    pub memory_bytes: u64,
    /// What it is made of, if that was said.
    pub memory_backend: Option<MemoryBackend>,
    /// The kernel's file.
    pub kernel: PathBuf,
    /// The initial RAM disk's file.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub append: String,
    /// COM1 to COM4: the names of what is behind them; `None`: there is no such port.
    pub serial: Vec<Option<String>>,
    /// What is behind character devices. Whatever names one finds it, and none serves too many.
    pub chardevs: Vec<Chardev>,
    /// The virtio-serial devices among the added ones, in their order.
    pub serial_buses: Vec<SerialBus>,
    /// Added devices. The drives and objects that they name are there.
    pub devices: Vec<DeviceChoice>,
    /// How they are attached, by their indices; one that is not here is as the machine has it.
    pub attachments: BTreeMap<usize, Attachment>,
    /// Images; `snapshot` is said of each.
    pub drives: Vec<DriveChoice>,
    /// Files that random bytes come from, by the names of their objects.
    pub rng_sources: BTreeMap<String, PathBuf>,
    /// Networks for cards.
    pub networks: Vec<Network>,
    /// Folders for 9p devices.
    pub shares: Vec<SharedFolder>,
    /// The escape character of a stdio serial port.
    pub escape: u8,
    /// Name plate, files for the guest, what follows what the guest does.
    pub board: BoardOptions,
    /// What was said and nothing here has an ear for: lines for the user.
    pub unheard: Vec<String>,
    /// When to give up.
    pub timeout: Option<Duration>,
    /// The guest's name.
    pub name: Option<String>,
    /// The process's name.
    pub process_name: Option<String>,
    /// Where to write the process ID.
    pub pidfile: Option<PathBuf>,
    /// Where the log goes.
    pub log_file: Option<PathBuf>,
    /// What is logged.
    pub log: BTreeSet<LogItem>,
}

impl Options {
    /// What devices name as what is behind them, once for each device, in the order in which they are made.
    pub fn chardev_users(&self) -> impl Iterator<Item = &str> {
        let ports = self.serial_buses.iter().flat_map(|bus| &bus.ports);
        let ports = ports.map(|(_, port)| port.chardev.as_str());
        self.serial.iter().flatten().map(String::as_str).chain(ports)
    }
}

/// The text of `-version`.
pub fn version() -> String {
    format!("bivisor version {}\nLicensed under Apache-2.0 or MIT.\n", env!("CARGO_PKG_VERSION"))
}

/// Reads a command line without the program's name. Opens no files but those of `-readconfig`.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, OptionError> {
    let mut words = Vec::new();
    for (index, word) in arguments.into_iter().enumerate() {
        words.push(word.into_string().map_err(|_| OptionError::NotUtf8(index + 1))?);
    }
    let items = line::items(words);
    let mut draft = Draft { globals: Globals::of(&items)?, ..Draft::default() };
    for item in items {
        let Item { option, kind, value } = item?;
        let context = Context { option: &option, value: value.as_deref().unwrap_or_default() };
        match kind {
            Kind::NotBuilt => return Err(OptionError::NotBuilt(option)),
            Kind::Never(why) => return Err(OptionError::Never { option, why }),
            Kind::NoOp | Kind::NoOpAny => {}
            Kind::NoOpWith(values) if values.contains(&context.value) => {}
            Kind::NoOpWith(_) => return Err(OptionError::NotBuilt(format!("{option} {}", context.value))),
            Kind::Flag(Flag::Help) => return Ok(Command::Print(help())),
            Kind::Flag(Flag::Version) => return Ok(Command::Print(version())),
            Kind::Flag(flag) => draft.flag(flag)?,
            Kind::Value(value) => {
                if matches!(context.value, "help" | "?")
                    && let Some(text) = topic(value)
                {
                    return Ok(Command::Print(text));
                }
                if value == Value::Device
                    && let Some(text) = devices::properties_help(context.value)
                {
                    return Ok(Command::Print(text));
                }
                draft.value(value, context)?;
            }
        }
    }
    draft.finish().map(|options| Command::Run(Box::new(options)))
}

/// The text of `-OPTION help`.
fn topic(value: Value) -> Option<String> {
    match value {
        Value::Accel => Some(accel::HELP.into()),
        Value::Machine => Some(machine::HELP.into()),
        Value::Chardev => Some(chardev::HELP.into()),
        Value::Device => Some(devices::help()),
        Value::Object => Some(object::OBJECT_HELP.into()),
        Value::Cpu => Some(cpu::help()),
        Value::Debug => Some(log::help()),
        Value::Netdev | Value::Nic => Some(network::HELP.into()),
        _ => None,
    }
}

fn help() -> String {
    let mut text =
        version() + "\nusage: bivisor [options]      (options as in QEMU, with one or two dashes)\n\n";
    for row in table::ROWS.iter().filter(|row| !row.help.is_empty()) {
        text += &format!("-{} {}\n        {}\n", row.name, row.argument, row.help);
    }
    text
}

/// What has been read so far.
#[derive(Default)]
struct Draft {
    accel: AccelList,
    icount: Option<Pace>,
    rtc: Option<RtcBase>,
    machine: MachineArgument,
    cpu: CpuModel,
    smp: SmpArgument,
    memory_bytes: Option<u64>,
    memory: MemoryArgument,
    globals: Globals,
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    append: String,
    serial: Vec<SerialChoice>,
    chardevs: Vec<Chardev>,
    devices: Vec<DeviceChoice>,
    attachments: BTreeMap<usize, Attachment>,
    drives: Vec<DriveChoice>,
    nodes: Nodes,
    rng_sources: BTreeMap<String, PathBuf>,
    snapshot: bool,
    networks: Vec<Network>,
    shares: Vec<SharedFolder>,
    escape: Option<u8>,
    no_defaults: bool,
    no_graphic: bool,
    board: BoardOptions,
    display_none: bool,
    timeout: Option<Duration>,
    name: Option<String>,
    process_name: Option<String>,
    pidfile: Option<PathBuf>,
    log_file: Option<PathBuf>,
    log: BTreeSet<LogItem>,
}

impl Draft {
    fn flag(&mut self, flag: Flag) -> Result<(), OptionError> {
        match flag {
            Flag::EnableKvm => self.accel.extend(vec![AccelChoice::Kvm(KvmChoice::default())]),
            Flag::NoDefaults => self.no_defaults = true,
            Flag::NoGraphic => self.no_graphic = true,
            Flag::NoReboot => self.board.actions.no_reboot = true,
            Flag::MemPrealloc => self.memory.prealloc = true,
            Flag::NoShutdown => self.board.actions.no_shutdown = true,
            Flag::Snapshot => self.snapshot = true,
            Flag::Help | Flag::Version => unreachable!("answered where they are read"),
        }
        Ok(())
    }

    fn value(&mut self, value: Value, context: Context) -> Result<(), OptionError> {
        match value {
            Value::Accel => self.accel.add(context)?,
            Value::Append => self.append = context.value.into(),
            Value::Blockdev => self.nodes.add(context)?,
            Value::Cdrom | Value::HardDisk => {
                let read_only = value == Value::Cdrom;
                let drive = drive::image(context, self.drives.len(), read_only)?;
                self.add_drive(drive, Interface::Virtio)?;
            }
            Value::Chardev => self.chardevs.push(chardev::chardev(context)?),
            Value::Cpu => self.cpu = cpu::model(context)?,
            Value::Debug => self.log.extend(log::items(context)?),
            Value::DebugFile => self.log_file = Some(path(context)?),
            Value::Device => self.add_device(context)?,
            Value::Display => match context.value {
                "none" => self.display_none = true,
                _ => return Err(OptionError::Never { option: line_of(context), why: refused::DISPLAY }),
            },
            Value::Drive => {
                let (drive, interface) = drive::drive(context, self.drives.len())?;
                self.add_drive(drive, interface)?;
            }
            Value::Object if memory_backend::is_memory(context) => {
                let backend = memory_backend::object(context)?;
                self.check_object(context, &backend.id)?;
                self.memory.backends.push(backend);
            }
            Value::Object => {
                let (name, file) = object::object(context)?;
                self.check_object(context, &name)?;
                self.rng_sources.insert(name, file);
            }
            Value::Action | Value::FwCfg | Value::Smbios | Value::Uuid | Value::WatchdogAction => {
                self.board.add(value, context)?;
            }
            Value::Audio => accepted::audio(context)?,
            Value::Boot => accepted::boot(context)?,
            Value::Msg => accepted::all_off(context, "timestamp", &["timestamp", "guest-name"])?,
            Value::Overcommit => accepted::all_off(context, "mem-lock", &["mem-lock", "cpu-pm"])?,
            Value::Sandbox => accepted::all_off(context, "enable", &["enable"])?,
            Value::Vga if context.value == "none" => {}
            Value::Vga => return Err(OptionError::Never { option: line_of(context), why: refused::DISPLAY }),
            Value::MemPath => self.memory.path = Some(path(context)?),
            Value::Numa => self.memory.add_numa(context)?,
            // They were read before all others.
            Value::Global | Value::ReadConfig => {}
            Value::Echr => {
                let code = syntax::integer(context.value).and_then(|n| u8::try_from(n).ok());
                self.escape = Some(code.ok_or_else(|| context.bad("takes a character's code, 0 to 255"))?);
            }
            Value::Fsdev => self.add_share(shares::fsdev(context)?)?,
            Value::Icount => self.icount = Some(icount::pace(context)?),
            Value::Initrd => self.initrd = Some(path(context)?),
            Value::Kernel => self.kernel = Some(path(context)?),
            Value::Machine => self.machine.add(context)?,
            Value::Memory => self.memory_bytes = Some(memory::bytes(context)?),
            Value::Name => self.name(context)?,
            Value::Netdev => {
                let network = network::netdev(context)?;
                if self.networks.iter().any(|other| other.id == network.id) {
                    return Err(OptionError::NetworkTaken(network.id));
                }
                self.networks.push(network);
            }
            Value::Nic => {
                if let Some((network, card)) = network::nic(context, self.networks.len())? {
                    self.networks.push(network);
                    self.devices.push(card);
                }
            }
            Value::PidFile => self.pidfile = Some(path(context)?),
            Value::Rtc => self.rtc = icount::rtc(context)?.or(self.rtc),
            Value::Serial => {
                if self.serial.len() == MAX_SERIAL {
                    return Err(context.bad(format!("there are {MAX_SERIAL} serial ports")));
                }
                self.serial.push(chardev::serial(context, self.serial.len())?);
            }
            Value::Smp => self.smp.add(context)?,
            Value::Virtfs => {
                let (folder, device) = shares::virtfs(context)?;
                self.add_share(folder)?;
                self.devices.push(device);
            }
            Value::Timeout => {
                let seconds = context.value.parse::<f64>().ok().filter(|&s| s > 0.0 && s < 1e9);
                let seconds = seconds.ok_or_else(|| context.bad("takes seconds, more than 0"))?;
                self.timeout = Some(Duration::from_secs_f64(seconds));
            }
        }
        Ok(())
    }

    fn add_device(&mut self, context: Context) -> Result<(), OptionError> {
        let (mut device, attachment) = devices::device(context, &self.globals)?;
        if let (DeviceChoice::Board(BoardDevice::Watchdog { address }), Some(attachment)) =
            (&mut device, &attachment)
        {
            *address = attachment.address;
        }
        self.attachments.extend(attachment.map(|attachment| (self.devices.len(), attachment)));
        self.devices.push(device);
        Ok(())
    }

    fn add_share(&mut self, folder: SharedFolder) -> Result<(), OptionError> {
        if self.shares.iter().any(|other| other.id == folder.id) {
            return Err(OptionError::ShareTaken(folder.id));
        }
        self.shares.push(folder);
        Ok(())
    }

    /// Device `fsdev` has its folder. What a guest writes under icount would have the host's times.
    fn check_share(&self, fsdev: &str) -> Result<(), OptionError> {
        let Some(folder) = self.shares.iter().find(|folder| folder.id == fsdev) else {
            return Err(OptionError::NoShare { fsdev: fsdev.to_owned() });
        };
        if self.icount.is_some() && !folder.rules.read_only {
            return Err(OptionError::IcountShare);
        }
        Ok(())
    }

    fn add_drive(&mut self, drive: DriveChoice, interface: Interface) -> Result<(), OptionError> {
        if interface == Interface::Virtio {
            let device = format!("virtio-blk,drive={}", drive.id.replace(',', ",,"));
            self.add_device(Context { option: &drive.option, value: &device })?;
        }
        self.drives.push(drive);
        Ok(())
    }

    /// Objects of all kinds have names of their own.
    fn check_object(&self, context: Context, name: &str) -> Result<(), OptionError> {
        let is_memory = self.memory.backends.iter().any(|backend| backend.id == name);
        if is_memory || self.rng_sources.contains_key(name) {
            return Err(context.bad("there is an object of that name already"));
        }
        Ok(())
    }

    /// The drives, with the nodes that devices name. Each device has what it names, and for itself.
    fn drives(&mut self) -> Result<Vec<DriveChoice>, OptionError> {
        let mut drives = std::mem::take(&mut self.drives);
        let mut ids = BTreeSet::new();
        if let Some(twice) = drives.iter().find(|drive| !ids.insert(drive.id.clone())) {
            return Err(OptionError::DriveTaken(twice.id.clone()));
        }
        let (mut taken, mut cards) = (BTreeSet::new(), BTreeSet::new());
        for device in &self.devices {
            match device {
                DeviceChoice::IsaDebugExit { .. }
                | DeviceChoice::Board(_)
                | DeviceChoice::VirtioSerial { .. }
                | DeviceChoice::SerialPort(_)
                | DeviceChoice::VirtioBalloon(_)
                | DeviceChoice::VirtioRng { rng: None } => {}
                DeviceChoice::VirtioRng { rng: Some(object) } => {
                    if !self.rng_sources.contains_key(object) {
                        return Err(OptionError::NoObject { device: "virtio-rng", object: object.clone() });
                    }
                }
                DeviceChoice::VirtioNet { netdev, .. } => {
                    if !self.networks.iter().any(|network| network.id == *netdev) {
                        return Err(OptionError::NoNetwork { netdev: netdev.clone() });
                    }
                    if !cards.insert(netdev) {
                        return Err(OptionError::CardTaken(netdev.clone()));
                    }
                }
                DeviceChoice::Virtio9p { fsdev, .. } => self.check_share(fsdev)?,
                DeviceChoice::VhostUserFs(_) if self.icount.is_some() => {
                    return Err(OptionError::IcountVhostUser);
                }
                DeviceChoice::VhostUserFs(_) => {}
                DeviceChoice::VirtioVsock { .. } | DeviceChoice::VhostVsock(_) if self.icount.is_some() => {
                    return Err(OptionError::IcountVsock);
                }
                DeviceChoice::VirtioVsock { .. } | DeviceChoice::VhostVsock(_) => {}
                DeviceChoice::VirtioBlk(BlkChoice { drive, .. }) => {
                    if !ids.contains(drive) {
                        let node = self.nodes.get(drive);
                        let missing = || OptionError::NoDrive { device: "virtio-blk", drive: drive.clone() };
                        drives.push(node.ok_or_else(missing)?.clone());
                        ids.insert(drive.clone());
                    }
                    if !taken.insert(drive) {
                        return Err(OptionError::DriveTaken(drive.clone()));
                    }
                }
            }
        }
        for drive in &mut drives {
            // A disk that can only be read has nothing to throw away.
            drive.snapshot = Some(!drive.read_only && drive.snapshot.unwrap_or(self.snapshot));
        }
        Ok(drives)
    }

    /// The serial ports, and what is behind all that names it.
    fn chardevs(&mut self, buses: &[SerialBus]) -> Result<(Vec<Option<String>>, Vec<Chardev>), OptionError> {
        let mut chardevs = std::mem::take(&mut self.chardevs);
        let mut ports = std::mem::take(&mut self.serial);
        if ports.is_empty() && (!self.no_defaults || self.no_graphic) {
            // There is no display: unless `-display none` says that nobody looks, COM1 is what there is to see.
            let visible = self.no_graphic || !self.display_none;
            ports.push(SerialChoice::Own(if visible { chardev::stdio(0) } else { chardev::null(0) }));
        }
        let mut users = Vec::new();
        let mut serial = Vec::new();
        for port in ports {
            let id = match port {
                SerialChoice::None => None,
                SerialChoice::Named(id) => Some(id),
                SerialChoice::Own(chardev) => {
                    let id = chardev.id.clone();
                    chardevs.push(chardev);
                    Some(id)
                }
            };
            users.extend(id.iter().map(|id| ("-serial".to_owned(), id.clone())));
            serial.push(id);
        }
        for (_, port) in buses.iter().flat_map(|bus| &bus.ports) {
            users.push((port.option.clone(), port.chardev.clone()));
            let has_input = |chardev: &Chardev| chardev.id == port.chardev && chardev.has_input();
            if self.icount.is_some() && chardevs.iter().any(has_input) {
                return Err(OptionError::IcountPort(port.chardev.clone()));
            }
        }
        vhost_user::check(&self.devices, &chardevs, &mut users)?;
        chardev::check(&chardevs, &users)?;
        Ok((serial, chardevs))
    }

    fn name(&mut self, context: Context) -> Result<(), OptionError> {
        for pair in syntax::pairs(context.value, "guest") {
            match pair.key.as_str() {
                "guest" => self.name = Some(pair.value),
                "process" => self.process_name = Some(pair.value),
                // Threads always have names.
                "debug-threads" if syntax::on_off(&pair.value).is_some() => {}
                "debug-threads" => return Err(context.bad("debug-threads= takes on or off")),
                _ => return Err(context.unknown(&pair.key)),
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Options, OptionError> {
        let drives = self.drives()?;
        board::check(&self.devices, self.icount.is_some())?;
        balloon::check(&self.devices)?;
        let serial_buses = console::buses(&self.devices)?;
        let (serial, chardevs) = self.chardevs(&serial_buses)?;
        let kernel = self.kernel.ok_or(OptionError::NoKernel)?;
        let machine = self.machine.kind;
        let named = self.machine.memory_backend.take();
        let (memory_backend, memory_bytes) = self.memory.choose(named, self.memory_bytes)?;
        let memory_bytes = memory_bytes.unwrap_or(memory::DEFAULT_BYTES);
        let size = memory_bytes.to_string();
        memory::check(Context { option: "-object", value: &format!("size={size}") }, memory_bytes)?;
        attachment::check(machine, &self.attachments)?;
        let smp = self.smp.topology()?;
        let asked = !self.accel.is_empty() || !self.machine.accel.is_empty();
        let mut accel = machine::merge_accel(self.machine, self.accel)?;
        let mut rtc = RtcBase::Host;
        if self.icount.is_some() {
            if self.devices.iter().any(|device| matches!(device, DeviceChoice::VirtioNet { .. })) {
                return Err(OptionError::IcountNetwork);
            }
            accel = icount::restrict(accel, asked)?;
            rtc = icount::ICOUNT_DATE;
        }
        Ok(Options {
            accel,
            machine,
            icount: self.icount,
            rtc: self.rtc.unwrap_or(rtc),
            cpu: self.cpu,
            smp,
            memory_bytes,
            memory_backend,
            unheard: self.globals.unheard,
            kernel,
            initrd: self.initrd,
            append: self.append,
            serial,
            chardevs,
            serial_buses,
            devices: self.devices,
            attachments: self.attachments,
            drives,
            rng_sources: self.rng_sources,
            networks: self.networks,
            shares: self.shares,
            escape: self.escape.unwrap_or(1),
            board: self.board,
            timeout: self.timeout,
            name: self.name,
            process_name: self.process_name,
            pidfile: self.pidfile,
            log_file: self.log_file,
            log: self.log,
        })
    }
}

/// The option with its argument.
fn line_of(context: Context) -> String {
    format!("{} {}", context.option, context.value)
}

fn path(context: Context) -> Result<PathBuf, OptionError> {
    if context.value.is_empty() { Err(context.bad("needs a path")) } else { Ok(context.value.into()) }
}

#[cfg(test)]
mod tests;
