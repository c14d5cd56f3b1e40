//! What the host's kernel does in our place (vhost): where its files come from, and the properties of `vhost-vsock-device` and `-pci`
//! (QEMU, *Invocation*).

use std::os::fd::RawFd;

use devices::virtio::vhost::vsock::Seqpacket;

use super::devices::{DeviceChoice, Model, property};
use super::error::{Context, OptionError};
use super::syntax::{self, Pair};
use super::vsock::guest_cid;

/// The device, as `-device` knows it.
pub(super) const MODEL: Model = Model {
    name: "vhost-vsock-device",
    alias: Some("vhost-vsock"),
    help: "streams between programs of the guest and of the host (both AF_VSOCK), by the host's kernel",
    properties: &[
        property("id", "NAME"),
        property("guest-cid", "NUMBER, the guest's address, 3 or more (the host's is 2)"),
        property("seqpacket", "on|off|auto (default auto: where the kernel has streams of messages)"),
        property("vhostfd", "N, a descriptor of /dev/vhost-vsock that was opened already"),
    ],
    read: vhost_vsock,
};

/// Where a vhost device of the kernel's comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VhostSource {
    /// It is opened.
    Device,
    /// Whoever started the process opened it.
    Fd(RawFd),
}

/// A device whose streams the host's kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VhostVsockChoice {
    /// The guest's address.
    pub guest_cid: u32,
    /// Streams of messages.
    pub seqpacket: Seqpacket,
    /// The kernel's device.
    pub source: VhostSource,
}

/// The number of a descriptor that was handed down.
pub(super) fn descriptor(context: Context, key: &str, text: &str) -> Result<RawFd, OptionError> {
    let number = text.parse::<RawFd>().ok().filter(|fd| *fd > 2);
    number.ok_or_else(|| {
        context.bad(format!(
            "{key}= takes the number of an open descriptor, 3 or more (names are not built yet)"
        ))
    })
}

/// Reads the properties.
fn vhost_vsock(context: Context, pairs: Vec<Pair>) -> Result<DeviceChoice, OptionError> {
    let (mut cid, mut seqpacket, mut source) = (None, Seqpacket::Auto, VhostSource::Device);
    for pair in pairs {
        match pair.key.as_str() {
            "guest-cid" => cid = Some(guest_cid(context, &pair.value)?),
            "seqpacket" if pair.value == "auto" => seqpacket = Seqpacket::Auto,
            "seqpacket" => {
                let is_on = syntax::on_off(&pair.value);
                let is_on = is_on.ok_or_else(|| context.bad("seqpacket= takes on, off or auto"))?;
                seqpacket = if is_on { Seqpacket::On } else { Seqpacket::Off };
            }
            "vhostfd" => source = VhostSource::Fd(descriptor(context, "vhostfd", &pair.value)?),
            _ => {}
        }
    }
    let guest_cid = cid.ok_or_else(|| context.bad("needs guest-cid=NUMBER"))?;
    Ok(DeviceChoice::VhostVsock(VhostVsockChoice { guest_cid, seqpacket, source }))
}

#[cfg(test)]
mod tests {
    use super::super::devices::{device, help, properties_help};
    use super::super::globals::Globals;
    use super::*;

    #[test]
    fn streams_of_the_kernel() {
        let read = |value| {
            device(Context { option: "-device", value }, &Globals::default()).map(|(device, _)| device)
        };
        let choice = |seqpacket, source| {
            Ok(DeviceChoice::VhostVsock(VhostVsockChoice { guest_cid: 3, seqpacket, source }))
        };
        assert_eq!(read("vhost-vsock-device,guest-cid=3,id=v"), choice(Seqpacket::Auto, VhostSource::Device));
        assert_eq!(
            read("vhost-vsock-pci,guest-cid=3,seqpacket=on,vhostfd=7,addr=4"),
            choice(Seqpacket::On, VhostSource::Fd(7))
        );
        assert_eq!(
            read("vhost-vsock,guest-cid=3,seqpacket=off"),
            choice(Seqpacket::Off, VhostSource::Device)
        );
        for (value, named) in [
            ("vhost-vsock-device", "needs guest-cid="),
            ("vhost-vsock-device,guest-cid=2", "guest-cid= takes"),
            ("vhost-vsock-pci,guest-cid=4294967295", "guest-cid= takes"),
            ("vhost-vsock-pci,guest-cid=3,seqpacket=2", "seqpacket= takes"),
            ("vhost-vsock-pci,guest-cid=3,vhostfd=1", "vhostfd= takes the number"),
            ("vhost-vsock-pci,guest-cid=3,vhostfds=7", "(did you mean 'vhostfd'?)"),
        ] {
            let error = read(value).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        assert!(help().contains("vhost-vsock-device, vhost-vsock-pci"));
        assert!(properties_help("vhost-vsock-pci,help").unwrap().contains("seqpacket="));
    }
}
