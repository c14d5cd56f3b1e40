//! The properties of `vhost-user-fs-device` and `-pci` (QEMU, *Invocation*; virtiofsd(1)).

use devices::virtio::vhost_user::fs::{FsOptions, MAX_REQUEST_QUEUES, QUEUE_SIZES, TAG_BYTES};

use super::chardev::{Chardev, ChardevKind, Place, Socket};
use super::devices::{DeviceChoice, Model, property};
use super::error::{Context, OptionError};
use super::syntax::{self, Pair};

/// The device, as `-device` knows it.
pub(super) const MODEL: Model = Model {
    name: "vhost-user-fs-device",
    alias: Some("vhost-user-fs"),
    help: "a folder that virtiofsd shares (in Linux: mount -t virtiofs TAG FOLDER)",
    properties: &[
        property("id", "NAME"),
        property("chardev", "NAME of a -chardev socket,path= where virtiofsd is"),
        property("tag", "NAME that guests mount it by, of 36 bytes at most"),
        property("queue-size", "N, a power of two from 2 to 1024 (default 128)"),
        property("num-request-queues", "N, 1 to 64 (default 1)"),
    ],
    read: vhost_user_fs,
};

/// A folder that another program serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhostUserFsChoice {
    /// Where that program is.
    pub chardev: String,
    /// What the device shows of itself.
    pub options: FsOptions,
}

/// Reads the properties.
fn vhost_user_fs(context: Context, pairs: Vec<Pair>) -> Result<DeviceChoice, OptionError> {
    let (mut chardev, mut tag, mut queue_size, mut num_request_queues) = (None, None, 128, 1);
    for pair in pairs {
        let number = syntax::integer(&pair.value).and_then(|number| u16::try_from(number).ok());
        match pair.key.as_str() {
            "chardev" => chardev = Some(pair.value),
            "tag" => tag = Some(pair.value),
            "queue-size" => {
                let size = number.filter(|size| size.is_power_of_two() && QUEUE_SIZES.contains(size));
                queue_size =
                    size.ok_or_else(|| context.bad("queue-size= takes a power of two, 2 to 1024"))?;
            }
            "num-request-queues" => {
                let queues = number.filter(|queues| (1..=MAX_REQUEST_QUEUES).contains(queues));
                let bad = || context.bad(format!("num-request-queues= takes 1 to {MAX_REQUEST_QUEUES}"));
                num_request_queues = queues.ok_or_else(bad)?;
            }
            _ => {}
        }
    }
    let chardev = chardev.ok_or_else(|| context.bad("needs chardev=NAME"))?;
    let tag = tag.ok_or_else(|| context.bad("needs tag=NAME"))?;
    if tag.is_empty() || tag.len() > TAG_BYTES {
        return Err(context.bad(format!("tag= takes a name of 1 to {TAG_BYTES} bytes")));
    }
    let options = FsOptions { tag, queue_size, num_request_queues };
    Ok(DeviceChoice::VhostUserFs(VhostUserFsChoice { chardev, options }))
}

/// Adds `devices` to the users of `chardevs`, which must be what back ends can be behind.
pub fn check(
    devices: &[DeviceChoice],
    chardevs: &[Chardev],
    users: &mut Vec<(String, String)>,
) -> Result<(), OptionError> {
    for device in devices {
        let DeviceChoice::VhostUserFs(VhostUserFsChoice { chardev: id, .. }) = device else { continue };
        let is_plain = |chardev: &Chardev| {
            let is_client = |socket: &Socket| {
                !socket.server && socket.reconnect.is_none() && !matches!(socket.place, Place::Tcp { .. })
            };
            let is_socket = matches!(&chardev.kind, ChardevKind::Socket(socket) if is_client(socket));
            is_socket && !chardev.mux && chardev.log.is_none()
        };
        if chardevs.iter().any(|chardev| chardev.id == *id && !is_plain(chardev)) {
            return Err(OptionError::NotBackEnd(id.clone()));
        }
        users.push(("-device vhost-user-fs".into(), id.clone()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::devices::{device, help, properties_help};
    use super::super::globals::Globals;
    use super::*;

    #[test]
    fn folders_of_other_programs() {
        let read = |value| {
            device(Context { option: "-device", value }, &Globals::default()).map(|(device, _)| device)
        };
        let options = FsOptions { tag: "t".into(), queue_size: 1024, num_request_queues: 2 };
        let choice = VhostUserFsChoice { chardev: "c".into(), options };
        assert_eq!(
            read("vhost-user-fs-pci,chardev=c,tag=t,queue-size=1024,num-request-queues=2,addr=4"),
            Ok(DeviceChoice::VhostUserFs(choice))
        );
        let long = format!("vhost-user-fs,chardev=c,tag={}", "x".repeat(37));
        for (value, named) in [
            ("vhost-user-fs-device,tag=t", "needs chardev="),
            ("vhost-user-fs-device,chardev=c", "needs tag="),
            ("vhost-user-fs-device,chardev=c,tag=", "tag= takes a name"),
            (&long, "tag= takes a name of 1 to 36 bytes"),
            ("vhost-user-fs,chardev=c,tag=t,queue-size=100", "queue-size= takes"),
            ("vhost-user-fs,chardev=c,tag=t,queue-size=2048", "queue-size= takes"),
            ("vhost-user-fs,chardev=c,tag=t,num-request-queues=0", "num-request-queues= takes"),
            ("vhost-user-fs,chardev=c,tags=t", "(did you mean 'tag'?)"),
        ] {
            let error = read(value).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        assert!(help().contains("vhost-user-fs-device, vhost-user-fs-pci"));
        assert!(properties_help("vhost-user-fs-pci,help").unwrap().contains("num-request-queues="));
    }
}
