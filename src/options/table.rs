//! Every option's name, what it takes and whether it is built (QEMU, *Invocation*).

use super::refused::NEVER;

/// What this program does with an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Built; without an argument.
    Flag(Flag),
    /// Built; with an argument.
    Value(Value),
    /// Accepted without effect: asks for what is so anyway.
    NoOp,
    /// Accepted without effect with one of these arguments; not built with others.
    NoOpWith(&'static [&'static str]),
    /// Accepted without effect, whatever its argument is.
    NoOpAny,
    /// QEMU has it; it will never be here, for this reason.
    Never(&'static str),
    /// QEMU has it; not built yet.
    NotBuilt,
}

/// Options without an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    EnableKvm,
    Help,
    NoDefaults,
    NoGraphic,
    NoReboot,
    MemPrealloc,
    NoShutdown,
    Snapshot,
    Version,
}

/// Options with an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    Accel,
    Action,
    Append,
    Audio,
    Blockdev,
    Boot,
    Cdrom,
    Chardev,
    Cpu,
    Debug,
    DebugFile,
    Device,
    Display,
    Drive,
    Echr,
    FwCfg,
    Fsdev,
    Global,
    HardDisk,
    Icount,
    Initrd,
    Kernel,
    Machine,
    Memory,
    MemPath,
    Msg,
    Name,
    Object,
    Numa,
    Overcommit,
    Netdev,
    Nic,
    PidFile,
    ReadConfig,
    Rtc,
    Sandbox,
    Serial,
    Smbios,
    Smp,
    Timeout,
    Uuid,
    Vga,
    WatchdogAction,
    Virtfs,
}

/// One option.
pub struct Row {
    /// Name, without dashes.
    pub name: &'static str,
    /// What is done with it.
    pub kind: Kind,
    /// What follows it, for the help text.
    pub argument: &'static str,
    /// One line of help; empty for an alias and for what is not built.
    pub help: &'static str,
}

const fn flag(name: &'static str, flag: Flag, help: &'static str) -> Row {
    Row { name, kind: Kind::Flag(flag), argument: "", help }
}

const fn value(name: &'static str, value: Value, argument: &'static str, help: &'static str) -> Row {
    Row { name, kind: Kind::Value(value), argument, help }
}

const fn no_op(name: &'static str) -> Row {
    Row { name, kind: Kind::NoOp, argument: "", help: "" }
}

const fn no_op_with(name: &'static str, values: &'static [&'static str]) -> Row {
    Row { name, kind: Kind::NoOpWith(values), argument: "", help: "" }
}

const fn no_op_any(name: &'static str) -> Row {
    Row { name, kind: Kind::NoOpAny, argument: "", help: "" }
}

/// The options that are built, and those that ask for what is so anyway.
pub const ROWS: &[Row] = &[
    flag("help", Flag::Help, "this text"),
    flag("h", Flag::Help, ""),
    flag("version", Flag::Version, "the version"),
    value(
        "M",
        Value::Machine,
        "NAME[,accel=LIST][,kernel-irqchip=on|split|off]",
        "the machine ('help' lists them)",
    ),
    value("machine", Value::Machine, "", ""),
    value(
        "accel",
        Value::Accel,
        "NAME[:NAME][,thread=single|multi][,kernel-irqchip=on|split|off][,device=PATH]",
        "the engines to try in turn ('help' lists them); default kvm:tcg",
    ),
    flag("enable-kvm", Flag::EnableKvm, "the same as -accel kvm"),
    value(
        "cpu",
        Value::Cpu,
        "NAME[,+FEATURE][,-FEATURE]",
        "what the guest's CPU can do ('help' lists models and features)",
    ),
    value(
        "smp",
        Value::Smp,
        "N[,sockets=N][,cores=N][,threads=N][,maxcpus=N]",
        "number of CPUs, and how they make up packages and cores",
    ),
    value(
        "m",
        Value::Memory,
        "SIZE[,slots=N][,maxmem=SIZE]",
        "guest memory in MiB, or with a suffix K M G T; default 128M",
    ),
    value(
        "icount",
        Value::Icount,
        "shift=N|auto[,sleep=on|off][,align=on|off]",
        "guest time is 2^N ns for each executed instruction, so that every run is the same (needs tcg)",
    ),
    value(
        "rtc",
        Value::Rtc,
        "base=utc|localtime|DATE[,clock=host|vm]",
        "what the real-time clock shows at first; default: the host's time, under -icount 2024-01-01",
    ),
    value("kernel", Value::Kernel, "FILE", "a bzImage, or an ELF kernel (vmlinux, PVH)"),
    value("initrd", Value::Initrd, "FILE", "the initial RAM disk"),
    value("append", Value::Append, "TEXT", "the kernel's command line"),
    value(
        "serial",
        Value::Serial,
        "stdio|null|none|file:PATH|pty|pipe:PATH|unix:PATH[,...]|tcp:HOST:PORT[,...]|chardev:ID",
        "what is behind COM1; give it again for COM2 to COM4 (mon: before it puts the escape keys in)",
    ),
    value(
        "chardev",
        Value::Chardev,
        "KIND,id=ID[,mux=on][,logfile=FILE][,...]",
        "what can be behind serial ports and consoles ('help' lists the kinds)",
    ),
    flag("nographic", Flag::NoGraphic, "no display, COM1 on stdio (Ctrl-A h says how to leave)"),
    value("display", Value::Display, "none", "no display"),
    value("echr", Value::Echr, "N", "the escape character's code instead of 1 (Ctrl-A)"),
    value(
        "drive",
        Value::Drive,
        "file=IMAGE[,format=raw|qcow2][,if=virtio|none][,id=NAME][,cache=MODE][,readonly=on][,snapshot=on][,discard=unmap]",
        "a disk; with if=none it is for a -device to name",
    ),
    value("hda", Value::HardDisk, "IMAGE", "a disk, as -drive (-hdb, -hdc, -hdd the same)"),
    value("hdb", Value::HardDisk, "", ""),
    value("hdc", Value::HardDisk, "", ""),
    value("hdd", Value::HardDisk, "", ""),
    value("cdrom", Value::Cdrom, "IMAGE", "a disk that can only be read"),
    value(
        "blockdev",
        Value::Blockdev,
        "driver=file|raw|qcow2,node-name=NAME,filename=IMAGE|file=NODE[,read-only=on][,cache.direct=on]",
        "an image for a -device to name",
    ),
    flag("snapshot", Flag::Snapshot, "what guests write to disks is thrown away at the end"),
    value(
        "device",
        Value::Device,
        "NAME[,PROPERTY=VALUE]...",
        "adds a device ('help' lists them, 'NAME,help' its properties)",
    ),
    value(
        "object",
        Value::Object,
        "rng-random|memory-backend-memfd|...,id=NAME[,PROPERTY=VALUE]...",
        "where random bytes, or guest memory, are from ('help' lists them)",
    ),
    value(
        "netdev",
        Value::Netdev,
        "user,id=ID[,net=ADDR/BITS][,host=ADDR][,dns=ADDR][,dhcpstart=ADDR][,hostname=NAME]\n        [,domainname=NAME][,restrict=on|off][,ipv4=on|off][,ipv6=on|off][,ipv6-net=ADDR/BITS][,ipv6-host=ADDR]\n        [,ipv6-dns=ADDR][,hostfwd=tcp|udp:[ADDR]:PORT-[ADDR]:PORT]...",
        "a network for a card: the guest goes where you can go, and is reached through forwarded ports;\n        or tap,id=ID[,ifname=NAME][,fd=N][,script=FILE|no][,downscript=FILE|no]; or stream,id=ID,addr.type=unix|inet|fd,\n        addr.path=PATH[,server=on|off][,reconnect-ms=N]; or dgram,id=ID,local.type=...,remote.type=...",
    ),
    value("nic", Value::Nic, "none|user|tap|stream|dgram[,...]", "a network and its card; none: no card"),
    value(
        "fsdev",
        Value::Fsdev,
        "local,id=ID,path=FOLDER,security_model=none|mapped-xattr|passthrough[,readonly=on]\n        [,multidevs=remap|warn|forbid][,fmode=MODE][,dmode=MODE]",
        "a folder of the host's for a virtio-9p device: the guest does not get out of it",
    ),
    value(
        "virtfs",
        Value::Virtfs,
        "local,path=FOLDER,mount_tag=TAG,security_model=MODEL[,...]",
        "a folder, as -fsdev, and its device",
    ),
    flag("no-reboot", Flag::NoReboot, "a reset ends the program"),
    flag("no-shutdown", Flag::NoShutdown, "a power-off stops the guest and keeps the program"),
    value(
        "timeout",
        Value::Timeout,
        "SECONDS",
        "ends the program with code 124 and says where the guest was",
    ),
    value(
        "action",
        Value::Action,
        "EVENT=ACTION,...",
        "what follows: reboot=reset|shutdown, shutdown=poweroff|pause, panic=shutdown|exit-failure|pause|none,\n        watchdog=reset|poweroff|pause|debug|none|inject-nmi",
    ),
    value("watchdog-action", Value::WatchdogAction, "ACTION", "the same as -action watchdog=ACTION"),
    value("uuid", Value::Uuid, "UUID", "the machine's UUID"),
    value(
        "smbios",
        Value::Smbios,
        "type=0|1|2|3|4|11|17[,PROPERTY=VALUE]...",
        "what the SMBIOS tables say (type=11,value=TEXT or path=FILE: strings for the guest)",
    ),
    value(
        "fw_cfg",
        Value::FwCfg,
        "[name=]NAME,file=FILE|string=TEXT",
        "a file for the guest, in /sys/firmware/qemu_fw_cfg/by_name (call it opt/...)",
    ),
    value("name", Value::Name, "NAME[,process=NAME]", "names the guest and the process"),
    value("pidfile", Value::PidFile, "FILE", "the process ID is written there"),
    value("d", Value::Debug, "ITEM,...", "what to log ('help' lists the items)"),
    value("D", Value::DebugFile, "FILE", "the log goes there instead of to stderr"),
    flag("nodefaults", Flag::NoDefaults, "no devices that were not asked for"),
    value(
        "global",
        Value::Global,
        "DRIVER.PROPERTY=VALUE",
        "a property of all devices of this kind that do not say otherwise",
    ),
    value(
        "readconfig",
        Value::ReadConfig,
        "FILE",
        "options from a file, as [GROUP \"ID\"] and KEY = \"VALUE\"",
    ),
    value(
        "mem-path",
        Value::MemPath,
        "PATH",
        "guest memory in this file, or in a file without a name in this folder",
    ),
    flag("mem-prealloc", Flag::MemPrealloc, "all guest memory is had before the guest starts"),
    value("numa", Value::Numa, "node[,memdev=NAME]", "guest memory is this -object; there is one node"),
    value(
        "boot",
        Value::Boot,
        "[order=DRIVES][,strict=on|off]",
        "accepted: the kernel is on the command line",
    ),
    value("overcommit", Value::Overcommit, "mem-lock=off,cpu-pm=off", "accepted"),
    value("msg", Value::Msg, "timestamp=off", "accepted"),
    value("sandbox", Value::Sandbox, "off", "accepted"),
    value("audio", Value::Audio, "none", "accepted"),
    value("audiodev", Value::Audio, "", ""),
    value("vga", Value::Vga, "none", "accepted"),
    no_op_any("L"),
    no_op("no-user-config"),
    no_op("no-hpet"),
    no_op("no-fd-bootchk"),
    no_op_with("net", &["none"]),
    no_op_with("monitor", &["none"]),
    no_op_with("parallel", &["none"]),
];

/// What QEMU has and we do not have yet.
pub const NOT_BUILT: &[&str] = &[
    "S",
    "acpitable",
    "add-fd",
    "async-teardown",
    "bios",
    "chroot",
    "compat",
    "daemonize",
    "debugcon",
    "dfilter",
    "dump-vmstate",
    "enable-sync-profile",
    "gdb",
    "incoming",
    "iscsi",
    "loadvm",
    "mon",
    "no-acpi",
    "only-migratable",
    "option-rom",
    "perfmap",
    "jitdump",
    "pflash",
    "plugin",
    "preconfig",
    "qmp",
    "qmp-pretty",
    "qtest",
    "qtest-log",
    "run-with",
    "runas",
    "s",
    "seed",
    "set",
    "singlestep",
    "tb-size",
    "tpmdev",
    "trace",
];

/// What is done with the option `name` (without dashes); `None` if nobody knows it.
pub fn find(name: &str) -> Option<Kind> {
    match ROWS.iter().find(|row| row.name == name) {
        Some(row) => Some(row.kind),
        None => match NEVER.iter().find(|(never, _)| *never == name) {
            Some((_, why)) => Some(Kind::Never(why)),
            None => NOT_BUILT.contains(&name).then_some(Kind::NotBuilt),
        },
    }
}

/// Whether something follows the option.
pub fn takes_argument(kind: Kind) -> bool {
    matches!(kind, Kind::Value(_) | Kind::NoOpWith(_) | Kind::NoOpAny)
}

/// The names of all options that are built.
pub fn names() -> impl Iterator<Item = &'static str> {
    ROWS.iter().map(|row| row.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_name_stands_once() {
        let mut seen = HashSet::new();
        for name in names().chain(NOT_BUILT.iter().copied()).chain(NEVER.iter().map(|(name, _)| *name)) {
            assert!(seen.insert(name), "{name} stands twice");
        }
    }

    #[test]
    fn unknown_is_not_the_same_as_not_built() {
        assert_eq!(find("gdb"), Some(Kind::NotBuilt));
        assert!(matches!(find("vnc"), Some(Kind::Never(_))));
        assert_eq!(find("frobnicate"), None);
        assert_eq!(find("M"), Some(Kind::Value(Value::Machine)));
    }
}
