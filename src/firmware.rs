//! What firmware would tell the guest: SMBIOS tables and the files of the firmware configuration device. Read before anything
//! is created.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::boot::layout;
use crate::options::Options;
use crate::options::devices::{BoardDevice, DeviceChoice};
use crate::options::fw_cfg::FwCfgContent;
use crate::options::smbios::OemString;
use crate::options::uuid::Uuid;
use crate::smbios::{self, SmbiosError, Tables};

/// Why it cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum FirmwareError {
    /// A file cannot be read.
    #[error("{option}: {}", path.display())]
    Read {
        /// The option that named it.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// A file is too long for the device, or the string of a table is no text.
    #[error("{option}: {}: {what}", path.display())]
    Content {
        /// The option that named it.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// The tables cannot be.
    #[error(transparent)]
    Smbios(#[from] SmbiosError),
    /// There are no random bytes for the machine's identifier.
    #[error("-device vmgenid,guid=auto: /dev/urandom")]
    Random(#[source] io::Error),
}

/// What the guest is told.
#[derive(Debug, Default)]
pub struct Firmware {
    /// Files by name.
    pub files: Vec<(String, Vec<u8>)>,
    /// SMBIOS tables, made for [`layout::SMBIOS`]; none if they are empty.
    pub smbios: Tables,
    /// The machine's UUID.
    pub uuid: Uuid,
    /// The identifier of this run, if there is a device that shows it.
    pub generation: Option<Uuid>,
}

/// Longer than this no file of the device can be.
const MOST_BYTES: u64 = u32::MAX as u64;

/// Reads the files that the options name.
pub fn open(options: &Options) -> Result<Firmware, FirmwareError> {
    let board = &options.board;
    let mut files = Vec::new();
    for file in &board.fw_cfg {
        let content = match &file.content {
            FwCfgContent::Text(text) => text.clone().into_bytes(),
            FwCfgContent::File(path) => read("-fw_cfg", path, MOST_BYTES)?,
        };
        files.push((file.name.clone(), content));
    }
    let machine = smbios::Machine {
        product: options.machine.name(),
        topology: options.smp,
        memory_bytes: options.memory_bytes,
    };
    let room = layout::HIGH_RAM - layout::SMBIOS;
    let strings = board.smbios.oem_strings.iter().map(|string| oem_string(string, room));
    let strings: Vec<String> = strings.collect::<Result<_, _>>()?;
    let room = usize::try_from(room).expect("a few pages");
    let smbios = Tables::new(&board.smbios, &strings, &machine, layout::SMBIOS, room)?;
    let generation = options.devices.iter().find_map(|device| match device {
        DeviceChoice::Board(BoardDevice::Vmgenid { guid }) => Some(guid.map_or_else(random_uuid, Ok)),
        _ => None,
    });
    let generation = generation.transpose().map_err(FirmwareError::Random)?;
    Ok(Firmware { files, smbios, uuid: board.smbios.uuid.unwrap_or_default(), generation })
}

fn oem_string(string: &OemString, most: u64) -> Result<String, FirmwareError> {
    match string {
        OemString::Value(text) => Ok(text.clone()),
        OemString::File(path) => {
            let option = "-smbios type=11,path=";
            let content = |what| FirmwareError::Content { option, path: path.clone(), what };
            let text = String::from_utf8(read(option, path, most)?);
            let text = text.map_err(|_| content("not UTF-8"))?;
            if text.contains('\0') { Err(content("a NUL ends a string")) } else { Ok(text) }
        }
    }
}

/// The whole file, or device: it may be one that ends.
fn read(option: &'static str, path: &Path, most: u64) -> Result<Vec<u8>, FirmwareError> {
    let error = |source| FirmwareError::Read { option, path: path.into(), source };
    let file = std::fs::File::open(path).map_err(error)?;
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(error)?;
    if bytes.len() as u64 > most {
        return Err(FirmwareError::Content { option, path: path.into(), what: "too long" });
    }
    Ok(bytes)
}

fn random_uuid() -> io::Result<Uuid> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(Uuid::of_random(bytes))
}
