//! `-device virtio-serial-device`, `virtconsole`, `virtserialport` (QEMU, *Invocation*; `-device NAME,help`).

use devices::virtio::console::MAX_PORTS;

use super::devices::DeviceChoice;
use super::error::{Context, OptionError};
use super::syntax::{self, Pair};

/// A port of a virtio-serial device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortChoice {
    /// The option as written, for messages.
    pub option: String,
    /// A console of the guest's, or a port that programs know by its name.
    pub is_console: bool,
    /// What is behind it.
    pub chardev: String,
    /// Its name in the guest.
    pub name: Option<String>,
    /// Its number, if it was said.
    pub number: Option<u32>,
    /// The device's `id`, if it was said.
    pub bus: Option<String>,
}

/// A virtio-serial device with its ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SerialBus {
    /// Ports at most.
    pub max_ports: u32,
    /// The ports, each with its number.
    pub ports: Vec<(u32, PortChoice)>,
}

/// Reads the properties of `virtio-serial-device`.
pub fn bus(context: Context, pairs: Vec<Pair>) -> Result<DeviceChoice, OptionError> {
    let (mut id, mut max_ports) = (None, MAX_PORTS);
    for pair in pairs {
        match pair.key.as_str() {
            "id" => id = Some(pair.value),
            "max_ports" => {
                let number = syntax::integer(&pair.value).and_then(|number| u32::try_from(number).ok());
                let number = number.filter(|number| (1..=MAX_PORTS).contains(number));
                max_ports =
                    number.ok_or_else(|| context.bad(format!("max_ports= takes 1 to {MAX_PORTS}")))?;
            }
            _ => {}
        }
    }
    Ok(DeviceChoice::VirtioSerial { id, max_ports })
}

/// Reads the properties of `virtconsole`.
pub fn console(context: Context, pairs: Vec<Pair>) -> Result<DeviceChoice, OptionError> {
    port(context, pairs, true)
}

/// Reads the properties of `virtserialport`.
pub fn serial_port(context: Context, pairs: Vec<Pair>) -> Result<DeviceChoice, OptionError> {
    port(context, pairs, false)
}

fn port(context: Context, pairs: Vec<Pair>, is_console: bool) -> Result<DeviceChoice, OptionError> {
    let (mut chardev, mut name, mut number, mut bus) = (None, None, None, None);
    for pair in pairs {
        match pair.key.as_str() {
            "chardev" => chardev = Some(pair.value),
            "name" => name = Some(pair.value).filter(|name| !name.is_empty()),
            "nr" => {
                let value = syntax::integer(&pair.value).and_then(|number| u32::try_from(number).ok());
                let value = value.filter(|number| *number < MAX_PORTS);
                number = Some(value.ok_or_else(|| context.bad(format!("nr= takes 0 to {}", MAX_PORTS - 1)))?);
            }
            "bus" => bus = Some(pair.value.strip_suffix(".0").unwrap_or(&pair.value).to_owned()),
            _ => {}
        }
    }
    if number == Some(0) && !is_console {
        return Err(context.bad("nr=0 is for a virtconsole"));
    }
    if let Some(name) = name.as_ref().filter(|name| name.len() > MOST_NAME_BYTES) {
        return Err(context.bad(format!("name= has {} bytes, more than {MOST_NAME_BYTES}", name.len())));
    }
    Ok(DeviceChoice::SerialPort(PortChoice {
        option: format!("{} {}", context.option, context.value),
        is_console,
        chardev: chardev.ok_or_else(|| context.bad("needs chardev=NAME"))?,
        name,
        number,
        bus,
    }))
}

/// Drivers have buffers of a page for messages, of which most is for the name.
const MOST_NAME_BYTES: usize = 1024;

/// Puts each port on its device, in their order.
pub fn buses(devices: &[DeviceChoice]) -> Result<Vec<SerialBus>, OptionError> {
    let mut buses = Vec::new();
    let mut ids = Vec::new();
    for device in devices {
        if let DeviceChoice::VirtioSerial { id, max_ports } = device {
            buses.push(SerialBus { max_ports: *max_ports, ports: Vec::new() });
            ids.push(id.as_deref());
        }
    }
    for device in devices {
        let DeviceChoice::SerialPort(port) = device else { continue };
        let refuse = |why: String| OptionError::SerialPort { option: port.option.clone(), why };
        let found = match &port.bus {
            None => buses.first_mut(),
            Some(name) => {
                // QEMU's name of the first one without an id.
                let index = ids.iter().position(|id| id.map_or(name == "virtio-serial-bus", |id| id == name));
                index.and_then(|index| buses.get_mut(index))
            }
        };
        let bus = found.ok_or_else(|| match &port.bus {
            None => refuse("there is no virtio-serial-device to put it on".into()),
            Some(name) => refuse(format!("there is no virtio-serial-device with id={name}")),
        })?;
        let is_free = |number: u32| bus.ports.iter().all(|(other, _)| *other != number);
        let number = match port.number {
            Some(number) if !is_free(number) => {
                return Err(refuse(format!("there is a port with nr={number} already")));
            }
            Some(number) => number,
            // Port 0 is a console's.
            None => {
                let first = u32::from(!port.is_console);
                (first..).find(|&number| is_free(number)).expect("there are more numbers than ports")
            }
        };
        if number >= bus.max_ports {
            return Err(refuse(format!("its device has max_ports={}", bus.max_ports)));
        }
        bus.ports.push((number, port.clone()));
    }
    Ok(buses)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::devices::device;
    use crate::options::globals::Globals;

    fn buses_of(devices: &[&str]) -> Result<Vec<SerialBus>, String> {
        let read = |value: &&str| {
            device(Context { option: "-device", value }, &Globals::default()).map(|(device, _)| device)
        };
        let devices = devices.iter().map(read).collect::<Result<Vec<_>, _>>();
        devices.and_then(|devices| buses(&devices)).map_err(|error| error.to_string())
    }

    #[test]
    fn ports_have_numbers() {
        let buses = buses_of(&[
            "virtio-serial-device,id=a,max_ports=4",
            "virtserialport,chardev=one,name=org.one",
            "virtconsole,chardev=con",
            "virtserialport,chardev=three,nr=3",
            "virtio-serial-device,id=b",
            "virtconsole,chardev=x,bus=b.0,name=x",
            "virtconsole,chardev=second",
        ])
        .unwrap();
        let numbers = |bus: &SerialBus| -> Vec<(u32, String)> {
            bus.ports.iter().map(|(number, port)| (*number, port.chardev.clone())).collect()
        };
        let named = |ports: &[(u32, &str)]| -> Vec<(u32, String)> {
            ports.iter().map(|&(number, name)| (number, name.to_owned())).collect()
        };
        assert_eq!(numbers(&buses[0]), named(&[(1, "one"), (0, "con"), (3, "three"), (2, "second")]));
        assert_eq!(numbers(&buses[1]), named(&[(0, "x")]));
        assert_eq!((buses[0].max_ports, buses[1].max_ports), (4, 31));
        assert_eq!(buses[0].ports[0].1.name.as_deref(), Some("org.one"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        const BUS: &str = "virtio-serial-device,max_ports=2";
        for (devices, named) in [
            (&["virtio-serial-device,max_ports=32"][..], "max_ports= takes 1 to 31"),
            (&["virtio-serial-device,max_port=3"], "(did you mean 'max_ports'?)"),
            (&["virtconsole"], "needs chardev="),
            (&["virtserialport,chardev=c,nr=0"], "nr=0 is for a virtconsole"),
            (&["virtserialport,chardev=c,nr=31"], "nr= takes 0 to 30"),
            (&["virtserialport,chardve=c"], "(did you mean 'chardev'?)"),
            (&["virtconsole,chardev=c"], "virtconsole,chardev=c: there is no virtio-serial-device"),
            (&[BUS, "virtconsole,chardev=c,bus=b.0"], "with id=b"),
            (&[BUS, "virtserialport,chardev=c", "virtserialport,chardev=d"], "max_ports=2"),
            (&[BUS, "virtserialport,chardev=c,nr=1", "virtserialport,chardev=d,nr=1"], "nr=1 already"),
        ] {
            let error = buses_of(devices).unwrap_err();
            assert!(error.contains(named) && !error.contains('\n'), "{error}");
        }
    }
}
