//! `-serial` and `-device` (QEMU, *Invocation*).

use std::path::PathBuf;

use super::error::{Context, OptionError};
use super::syntax;

/// What is behind a serial port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SerialBackend {
    /// The program's standard input and output, with the escape character.
    Stdio,
    /// Output is dropped; no input.
    Null,
    /// There is no such port.
    None,
    /// Output goes to a file; no input.
    File(PathBuf),
    /// A new pseudo-terminal, whose name is printed.
    Pty,
}

/// How many serial ports a PC has.
pub const MAX_SERIAL: usize = 4;

/// Reads the argument of `-serial`.
pub fn serial(context: Context) -> Result<SerialBackend, OptionError> {
    match context.value {
        // `mon:` shares the terminal with the monitor, whose place the escape character keeps.
        "stdio" | "mon:stdio" => Ok(SerialBackend::Stdio),
        "null" => Ok(SerialBackend::Null),
        "none" => Ok(SerialBackend::None),
        "pty" => Ok(SerialBackend::Pty),
        "file" | "file:" => Err(context.bad("needs a path, file:PATH")),
        value => {
            if let Some(path) = value.strip_prefix("file:") {
                return Ok(SerialBackend::File(path.into()));
            }
            let kind = value.split([':', ',']).next().unwrap_or(value);
            match kind {
                "chardev" | "tcp" | "telnet" | "websocket" | "udp" | "unix" | "vc" | "pipe" | "con"
                | "mon" | "msmouse" | "braille" | "ringbuf" | "spicevmc" => Err(context.not_built(kind)),
                _ if kind.starts_with("/dev/") => Err(context.not_built(kind)),
                _ => Err(context.bad("takes stdio, null, none, file:PATH or pty")),
            }
        }
    }
}

/// A device that `-device` added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A write ends the program with status `(value << 1) | 1`.
    IsaDebugExit {
        /// First port.
        iobase: u16,
        /// Number of ports: 1, 2 or 4.
        iosize: u8,
    },
}

/// Reads the argument of `-device`.
pub fn device(context: Context) -> Result<DeviceChoice, OptionError> {
    let mut pairs = syntax::pairs(context.value, "driver").into_iter();
    let driver = pairs.next().expect("a list has at least one item");
    if driver.key != "driver" {
        return Err(context.bad("the device's name comes first"));
    }
    if driver.value != "isa-debug-exit" {
        return Err(if is_qemu_device(&driver.value) {
            context.not_built(&format!("device '{}'", driver.value))
        } else {
            context.bad(format!("no device '{}' (see -device help)", driver.value))
        });
    }
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
            "id" => {}
            _ => return Err(context.unknown(&pair.key)),
        }
    }
    if u32::from(iobase) + u32::from(iosize) > 0x1_0000 {
        return Err(context.bad("the ports end at 0xffff"));
    }
    Ok(DeviceChoice::IsaDebugExit { iobase, iosize })
}

/// Families of devices that QEMU has and scripts use.
fn is_qemu_device(name: &str) -> bool {
    const FAMILIES: &[&str] = &[
        "virtio-",
        "vhost-",
        "virtserialport",
        "virtconsole",
        "scsi-",
        "ide-",
        "usb-",
        "nvme",
        "e1000",
        "rtl8139",
        "pci",
        "isa-",
        "i6300esb",
        "pvpanic",
        "vmcoreinfo",
        "VGA",
        "sga",
        "tpm-",
        "ioh3420",
        "intel-",
        "AC97",
        "loader",
    ];
    FAMILIES.iter().any(|family| name.starts_with(family))
}

/// The text of `-device help`.
pub const HELP: &str = "\
Devices:
  isa-debug-exit   iobase=PORT (default 0x501), iosize=1|2|4 (default 2)
                   the guest's write of V ends the program with status (V << 1) | 1
";

#[cfg(test)]
mod tests {
    use super::*;

    fn port(value: &str) -> Result<SerialBackend, OptionError> {
        serial(Context { option: "-serial", value })
    }

    fn dev(value: &str) -> Result<DeviceChoice, OptionError> {
        device(Context { option: "-device", value })
    }

    #[test]
    fn serial_backends() {
        assert_eq!(port("stdio"), Ok(SerialBackend::Stdio));
        assert_eq!(port("mon:stdio"), Ok(SerialBackend::Stdio));
        assert_eq!(port("file:/tmp/a,b"), Ok(SerialBackend::File("/tmp/a,b".into())));
        assert!(port("file:").is_err());
        assert!(port("tcp::4444").unwrap_err().to_string().ends_with("tcp: not built yet"));
        assert!(port("frob").unwrap_err().to_string().starts_with("-serial frob: takes"));
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
        assert!(dev("virtio-blk-device,drive=d").unwrap_err().to_string().ends_with("not built yet"));
    }
}
