//! Options about the board: its name plate, its files for the guest, what follows what the guest does.

use devices::chipset::pvpanic::spec as pvpanic_spec;

use super::action::{Actions, WatchdogAction};
use super::devices::{BoardDevice, DeviceChoice};
use super::error::{Context, OptionError};
use super::fw_cfg::{self, FwCfgFile};
use super::smbios::Smbios;
use super::syntax::{self, Pair};
use super::table::Value;
use super::uuid::Uuid;

/// What the command line says of the board.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BoardOptions {
    /// What the SMBIOS tables say, and the machine's UUID.
    pub smbios: Smbios,
    /// Files of the firmware configuration device.
    pub fw_cfg: Vec<FwCfgFile>,
    /// What follows what the guest does.
    pub actions: Actions,
}

impl BoardOptions {
    /// Reads one of these options.
    pub fn add(&mut self, value: Value, context: Context) -> Result<(), OptionError> {
        match value {
            Value::Action => self.actions.add(context)?,
            Value::FwCfg => self.add_file(context)?,
            Value::Smbios => self.smbios.add(context)?,
            Value::Uuid => self.smbios.uuid = Some(uuid(context, context.value)?),
            Value::WatchdogAction => {
                self.actions.watchdog = WatchdogAction::of(context, context.value)?;
            }
            _ => unreachable!("another option's"),
        }
        Ok(())
    }

    fn add_file(&mut self, context: Context) -> Result<(), OptionError> {
        let file = fw_cfg::file(context)?;
        if self.fw_cfg.iter().any(|other| other.name == file.name) {
            return Err(context.bad(format!("there is a file '{}' already", file.name)));
        }
        self.fw_cfg.push(file);
        Ok(())
    }
}

fn uuid(context: Context, text: &str) -> Result<Uuid, OptionError> {
    let expected = "takes a UUID, such as 12345678-1234-1234-1234-123456789abc";
    Uuid::parse(text).ok_or_else(|| context.bad(expected))
}

/// Reads `-device pvpanic`.
pub fn pvpanic(context: Context, pairs: Vec<Pair>) -> Result<DeviceChoice, OptionError> {
    let (mut ioport, mut events) = (pvpanic_spec::PORT, pvpanic_spec::event::ALL);
    for pair in pairs {
        let number = syntax::integer(&pair.value);
        match pair.key.as_str() {
            "ioport" => {
                let port = number.and_then(|port| u16::try_from(port).ok());
                ioport = port.ok_or_else(|| context.bad("ioport= takes a port, 0 to 0xffff"))?;
            }
            "events" => {
                let known = number.filter(|&events| events <= pvpanic_spec::event::ALL.into());
                let known = known.and_then(|events| u8::try_from(events).ok());
                let expected = "events= takes a sum of 1 (panicked), 2 (crash kernel), 4 (shutdown)";
                events = known.ok_or_else(|| context.bad(expected))?;
            }
            _ => {}
        }
    }
    Ok(DeviceChoice::Board(BoardDevice::Pvpanic { ioport, events }))
}

/// Reads `-device vmgenid`.
pub fn vmgenid(context: Context, pairs: Vec<Pair>) -> Result<DeviceChoice, OptionError> {
    let guid = pairs.into_iter().find(|pair| pair.key == "guid").map(|pair| pair.value);
    let guid = match guid.as_deref() {
        None => return Err(context.bad("needs guid=auto or guid=UUID")),
        Some("auto") => None,
        Some(text) => Some(Uuid::parse(text).ok_or_else(|| context.bad("guid= takes auto or a UUID"))?),
    };
    Ok(DeviceChoice::Board(BoardDevice::Vmgenid { guid }))
}

/// Reads `-device vmcoreinfo`.
pub fn vmcoreinfo(_context: Context, _pairs: Vec<Pair>) -> Result<DeviceChoice, OptionError> {
    Ok(DeviceChoice::Board(BoardDevice::Vmcoreinfo))
}

/// Reads `-device i6300esb`. Where it is, it does not say itself.
pub fn watchdog(_context: Context, _pairs: Vec<Pair>) -> Result<DeviceChoice, OptionError> {
    Ok(DeviceChoice::Board(BoardDevice::Watchdog { address: None }))
}

/// Refuses what cannot be there twice, and under `-icount` what would be another thing in each run.
pub fn check(devices: &[DeviceChoice], icount: bool) -> Result<(), OptionError> {
    let board = devices.iter().filter_map(|device| match device {
        DeviceChoice::Board(device) => Some(device),
        _ => None,
    });
    let mut seen = Vec::new();
    for device in board {
        if seen.contains(&device.name()) {
            return Err(OptionError::DeviceTwice(device.name()));
        }
        seen.push(device.name());
        if icount && *device == (BoardDevice::Vmgenid { guid: None }) {
            return Err(OptionError::IcountGuid);
        }
    }
    Ok(())
}
