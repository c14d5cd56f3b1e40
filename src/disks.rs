//! The host's ends of disks and other virtio devices, opened before anything is created.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use devices::backend::block::{
    BlockBackend, Overlay, Qcow2Error, Qcow2Image, RawError, RawImage, RawOptions,
};
use devices::p9::Share;
use devices::virtio::balloon::BalloonOptions;
use devices::virtio::blk::BlkOptions;
use devices::virtio::vhost::vsock::VhostStreams;
use devices::virtio::vhost_user::BackEnd;
use devices::virtio::vsock::HostSocket;

use crate::consoles::{self, PortPart};
use crate::networks::CardNetwork;
use crate::options::Options;
use crate::options::attachment::Attachment;
use crate::options::devices::DeviceChoice;
use crate::options::drive::{DriveChoice, ImageFormat};
use crate::options::object::RNG_SOURCE;
use crate::options::vhost_user::VhostUserFsChoice;
use crate::sockets::{self, VsockError};
use crate::vhost::{self, VhostOpenError};

/// The first card's address, and the next ones' but for the last byte: QEMU's.
const DEFAULT_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];

/// Why a disk cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The image cannot be used.
    #[error("{option}")]
    Raw {
        /// The option that named it.
        option: String,
        /// Why.
        source: RawError,
    },
    /// The image cannot be used.
    #[error("{option}")]
    Qcow2 {
        /// The option that named it.
        option: String,
        /// Why.
        source: Qcow2Error,
    },
    /// Nothing was said of the format, and the image is not plainly raw.
    #[error(
        "{option}: this looks like a {looks} image: say format=qcow2 with -drive (or format=raw: the guest then sees its very bytes)"
    )]
    Format {
        /// The option that named it.
        option: String,
        /// What it looks like.
        looks: &'static str,
    },
    /// There is nowhere to write what is thrown away.
    #[error("{option}: no temporary file in {} (TMPDIR moves it)", folder.display())]
    Overlay {
        /// The option that named the image.
        option: String,
        /// Where.
        folder: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// The host's end of a vsock device cannot be had.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// The host's kernel does not do a device's work.
    #[error("-device vhost-vsock")]
    Vhost(#[from] VhostOpenError),
    /// The source of random bytes cannot be opened.
    #[error("-object rng-random: {}", file.display())]
    Rng {
        /// The file.
        file: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
}

/// A virtio device and what is behind it.
#[derive(Clone)]
pub enum VirtioPart {
    /// A disk.
    Blk {
        /// The image.
        backend: Arc<dyn BlockBackend>,
        /// What it shows of itself.
        options: BlkOptions,
    },
    /// Random bytes from here.
    Rng(Arc<File>),
    /// A network card.
    Net {
        /// What it is on.
        network: CardNetwork,
        /// Its address.
        mac: [u8; 6],
    },
    /// A shared folder.
    P9 {
        /// The folder.
        share: Arc<Share>,
        /// The name that guests mount it by.
        tag: String,
    },
    /// Streams to programs of the host.
    Vsock {
        /// The guest's address.
        guest_cid: u32,
        /// The host's end, not made yet.
        socket: Arc<HostSocket>,
    },
    /// Streams to programs of the host, by its kernel.
    VhostVsock(VhostStreams),
    /// A folder that another program serves.
    VhostUserFs {
        /// Where that program is, and what the device shows of itself.
        choice: VhostUserFsChoice,
        /// That program, when it is connected.
        back_end: Option<Arc<BackEnd>>,
    },
    /// Consoles and ports.
    Serial {
        /// Ports at most.
        max_ports: u32,
        /// The ports.
        ports: Vec<PortPart>,
    },
    /// A balloon.
    Balloon(BalloonOptions),
}

/// A virtio device of the command line, and how it is attached.
#[derive(Clone)]
pub struct AttachedPart {
    /// The device.
    pub part: VirtioPart,
    /// To which bus.
    pub attachment: Attachment,
}

impl From<VirtioPart> for AttachedPart {
    /// As the machine does it.
    fn from(part: VirtioPart) -> Self {
        Self { part, attachment: Attachment::default() }
    }
}

/// Opens what the virtio devices of the command line need, in their order. Creates nothing that has a name.
pub fn open(
    options: &Options,
    networks: &BTreeMap<String, CardNetwork>,
    shares: &BTreeMap<String, Arc<Share>>,
) -> Result<Vec<AttachedPart>, DiskError> {
    let mut images = BTreeMap::new();
    for drive in &options.drives {
        images.insert(drive.id.as_str(), (open_drive(drive)?, drive.cache));
    }
    let mut serial_buses = options.serial_buses.iter();
    let (mut parts, mut attachments) = (Vec::new(), Vec::new());
    for (index, device) in options.devices.iter().enumerate() {
        match device {
            DeviceChoice::IsaDebugExit { .. } | DeviceChoice::Board(_) | DeviceChoice::SerialPort(_) => {}
            DeviceChoice::VirtioSerial { .. } => {
                let bus = serial_buses.next().expect("the options are consistent");
                parts.push(VirtioPart::Serial { max_ports: bus.max_ports, ports: consoles::ports(bus) });
            }
            DeviceChoice::VirtioBalloon(options) => parts.push(VirtioPart::Balloon(*options)),
            DeviceChoice::VirtioBlk(blk) => {
                let (backend, cache) = images.get(blk.drive.as_str()).expect("the options are consistent");
                let mut shown = blk.options.clone();
                shown.write_cache = blk.write_cache.unwrap_or(cache.is_writeback());
                parts.push(VirtioPart::Blk { backend: Arc::clone(backend), options: shown });
            }
            DeviceChoice::VirtioRng { rng } => {
                let named = rng.as_ref().and_then(|name| options.rng_sources.get(name));
                let file = named.map_or(Path::new(RNG_SOURCE), PathBuf::as_path);
                let source = File::options().read(true).custom_flags(libc::O_CLOEXEC).open(file);
                let source = source.map_err(|source| DiskError::Rng { file: file.into(), source })?;
                parts.push(VirtioPart::Rng(Arc::new(source)));
            }
            DeviceChoice::Virtio9p { fsdev, mount_tag } => {
                let share = shares.get(fsdev).expect("the options are consistent");
                parts.push(VirtioPart::P9 { share: Arc::clone(share), tag: mount_tag.clone() });
            }
            DeviceChoice::VhostUserFs(choice) => {
                parts.push(VirtioPart::VhostUserFs { choice: choice.clone(), back_end: None });
            }
            DeviceChoice::VirtioVsock { guest_cid, socket } => {
                parts.push(VirtioPart::Vsock { guest_cid: *guest_cid, socket: sockets::find(socket)? });
            }
            DeviceChoice::VhostVsock(choice) => parts.push(VirtioPart::VhostVsock(vhost::streams(choice)?)),
            DeviceChoice::VirtioNet { netdev, mac } => {
                let network = networks.get(netdev).expect("the options are consistent");
                let before = parts.iter().filter(|part| matches!(part, VirtioPart::Net { .. })).count();
                let [.., last] = DEFAULT_MAC;
                let default = [&DEFAULT_MAC[..5], &[last.wrapping_add(before as u8)]].concat();
                let mac = mac.unwrap_or_else(|| default.try_into().expect("six bytes"));
                parts.push(VirtioPart::Net { network: network.clone(), mac });
            }
        }
        let attachment = options.attachments.get(&index).cloned().unwrap_or_default();
        attachments.resize(parts.len(), attachment);
    }
    let attached = |(part, attachment)| AttachedPart { part, attachment };
    Ok(parts.into_iter().zip(attachments).map(attached).collect())
}

fn open_drive(drive: &DriveChoice) -> Result<Arc<dyn BlockBackend>, DiskError> {
    let snapshot = drive.snapshot.unwrap_or(false);
    let options = RawOptions {
        read_only: drive.read_only || snapshot,
        cache: drive.cache,
        unmap: drive.unmap,
        lock: drive.lock,
    };
    let raw = |source| DiskError::Raw { option: drive.option.clone(), source };
    let image: Arc<dyn BlockBackend> = match drive.format {
        ImageFormat::Qcow2 => {
            let image = Qcow2Image::open(&drive.file, options);
            Arc::new(image.map_err(|source| DiskError::Qcow2 { option: drive.option.clone(), source })?)
        }
        ImageFormat::Raw | ImageFormat::Unsaid => {
            let image = RawImage::open(&drive.file, options).map_err(raw)?;
            if drive.format == ImageFormat::Unsaid
                && let Some(looks) = looks_like(&drive.file)
            {
                return Err(DiskError::Format { option: drive.option.clone(), looks });
            }
            Arc::new(image)
        }
    };
    if !snapshot {
        return Ok(image);
    }
    // QEMU's place: /tmp may be in memory.
    let folder = std::env::var_os("TMPDIR").map_or(PathBuf::from("/var/tmp"), PathBuf::from);
    let overlay = Overlay::new(image, &folder);
    let error = |source| DiskError::Overlay { option: drive.option.clone(), folder: folder.clone(), source };
    Ok(Arc::new(overlay.map_err(error)?))
}

/// Whether these are another format's first bytes. A guest can write them to a raw disk of its own: so nobody guesses, and
/// nobody is surprised.
fn looks_like(file: &Path) -> Option<&'static str> {
    const MAGICS: &[(&[u8], &str)] = &[(b"QFI\xfb", "qcow2"), (b"KDMV", "VMDK"), (b"vhdxfile", "VHDX")];
    let mut start = [0; 8];
    File::open(file).ok()?.read_exact(&mut start).ok()?;
    MAGICS.iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, name)| *name)
}
