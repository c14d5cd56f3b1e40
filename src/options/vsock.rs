//! The properties of `virtio-vsock-device` and `-pci`. QEMU has vsock in the host's kernel only ([`super::vhost`]); the socket is as Firecracker's.

use std::path::PathBuf;

use super::devices::{DeviceChoice, Model, property};
use super::error::{Context, OptionError};
use super::syntax::{self, Pair};

/// The device, as `-device` knows it.
pub(super) const MODEL: Model = Model {
    name: "virtio-vsock-device",
    alias: Some("virtio-vsock"),
    help: "streams between programs of the guest (AF_VSOCK) and of the host, by a socket of the host's",
    properties: &[
        property("id", "NAME"),
        property("guest-cid", "NUMBER, the guest's address, 3 or more (the host's is 2)"),
        property(
            "socket",
            "PATH: write 'CONNECT PORT' and a newline to get to the guest's port; its connections to port N get to PATH_N",
        ),
    ],
    read: virtio_vsock,
};

/// The first address that is a guest's, and the first that is none any more.
const FIRST_CID: u64 = 3;
const END_CID: u64 = u32::MAX as u64;

/// Reads a guest's address.
pub(super) fn guest_cid(context: Context, text: &str) -> Result<u32, OptionError> {
    let cid = syntax::integer(text).filter(|cid| (FIRST_CID..END_CID).contains(cid));
    let bad = || context.bad(format!("guest-cid= takes a number from {FIRST_CID} on"));
    Ok(u32::try_from(cid.ok_or_else(bad)?).expect("below the end"))
}

/// Reads the properties.
fn virtio_vsock(context: Context, pairs: Vec<Pair>) -> Result<DeviceChoice, OptionError> {
    let (mut guest_cid, mut socket) = (None, None);
    for pair in pairs {
        match pair.key.as_str() {
            "guest-cid" => guest_cid = Some(self::guest_cid(context, &pair.value)?),
            "socket" => socket = Some(PathBuf::from(pair.value)).filter(|path| !path.as_os_str().is_empty()),
            _ => {}
        }
    }
    let guest_cid = guest_cid.ok_or_else(|| context.bad("needs guest-cid=NUMBER"))?;
    let socket = socket.ok_or_else(|| context.bad("needs socket=PATH"))?;
    Ok(DeviceChoice::VirtioVsock { guest_cid, socket })
}

#[cfg(test)]
mod tests {
    use super::super::devices::device;
    use super::super::globals::Globals;
    use super::*;

    #[test]
    fn addresses_and_sockets() {
        let read = |value| {
            device(Context { option: "-device", value }, &Globals::default()).map(|(device, _)| device)
        };
        let vsock = DeviceChoice::VirtioVsock { guest_cid: 3, socket: "/run/v.sock".into() };
        assert_eq!(read("virtio-vsock-device,guest-cid=3,socket=/run/v.sock"), Ok(vsock));
        for (value, named) in [
            ("virtio-vsock,guest-cid=2,socket=v", "guest-cid= takes"),
            ("virtio-vsock,guest-cid=4294967295,socket=v", "guest-cid= takes"),
            ("virtio-vsock,socket=v", "needs guest-cid="),
            ("virtio-vsock,guest-cid=3", "needs socket=PATH"),
            ("virtio-vsock,guest-cid=3,socket=", "needs socket=PATH"),
            ("virtio-vsock,guest-cid=3,sockets=v", "(did you mean 'socket'?)"),
        ] {
            let error = read(value).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
