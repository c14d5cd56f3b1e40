//! `-netdev` and `-nic` (QEMU, *Invocation*).

mod socket;
mod tap;
mod user;

use devices::net::{dgram, stream, user as user_net};

pub use self::tap::{Script, TapChoice, TapSource};
use super::devices::{DeviceChoice, mac};
use super::error::{Context, OptionError};
use super::syntax::{self, Pair};

/// A network that a card can be put on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// What cards call it.
    pub id: String,
    /// What it is.
    pub kind: NetworkKind,
}

/// The kinds of network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkKind {
    /// In the process.
    User(user_net::Config),
    /// An interface of the host's kernel.
    Tap(TapChoice),
    /// A program at the other end of a stream.
    Stream(stream::Config),
    /// One at the other end of a datagram socket.
    Dgram(dgram::Config),
}

/// The kinds of network that QEMU has besides.
const OTHER_KINDS: &[&str] =
    &["af-xdp", "bridge", "hubport", "l2tpv3", "netmap", "passt", "vde", "vhost-user", "vhost-vdpa"];

/// Reads the argument of `-netdev`.
pub fn netdev(context: Context) -> Result<Network, OptionError> {
    let (word, pairs) = begin(context)?;
    let (mut id, mut rest) = (None, Vec::new());
    for pair in pairs {
        if pair.key == "id" { id = Some(pair.value) } else { rest.push(pair) }
    }
    let id = id.ok_or_else(|| context.bad("needs id=, which names it for a card"))?;
    let is_letter = |c: char| c.is_ascii_alphabetic();
    let is_well_formed = id.starts_with(is_letter)
        && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'));
    if !is_well_formed {
        return Err(context.bad("id= takes a letter, then letters, digits, '-', '.' and '_'"));
    }
    Ok(Network { id, kind: kind(context, &word, &rest)? })
}

/// Reads the argument of `-nic`: a network, and a card on it. `index` is the network's number.
pub fn nic(context: Context, index: usize) -> Result<Option<(Network, DeviceChoice)>, OptionError> {
    if context.value == "none" {
        return Ok(None);
    }
    let (word, pairs) = begin(context)?;
    let (mut address, mut rest) = (None, Vec::new());
    for pair in pairs {
        match pair.key.as_str() {
            "mac" => address = Some(mac(context, &pair.value)?),
            "model" => match pair.value.as_str() {
                "virtio" | "virtio-net" | "virtio-net-device" | "virtio-net-pci" => {}
                other => return Err(context.not_built(&format!("model={other}"))),
            },
            "id" => {}
            _ => rest.push(pair),
        }
    }
    // A name that no -netdev can have.
    let id = format!("#nic{index}");
    let card = DeviceChoice::VirtioNet { netdev: id.clone(), mac: address };
    Ok(Some((Network { id, kind: kind(context, &word, &rest)? }, card)))
}

/// The word that says which kind it is, and what follows.
fn begin(context: Context) -> Result<(String, Vec<Pair>), OptionError> {
    let mut pairs = syntax::pairs(context.value, "type");
    let first = pairs.remove(0);
    if first.key != "type" {
        return Err(context.bad("the kind of network comes first"));
    }
    Ok((first.value, pairs))
}

fn kind(context: Context, word: &str, pairs: &[Pair]) -> Result<NetworkKind, OptionError> {
    Ok(match word {
        "user" => NetworkKind::User(user::config(context, pairs)?),
        "tap" => NetworkKind::Tap(tap::choice(context, pairs)?),
        "stream" => NetworkKind::Stream(socket::stream(context, pairs)?),
        "dgram" => NetworkKind::Dgram(socket::dgram(context, pairs)?),
        "socket" => return Err(context.not_built("socket (stream and dgram do the same)")),
        other if OTHER_KINDS.contains(&other) => return Err(context.not_built(other)),
        other => {
            return Err(context.bad(format!("no kind of network '{other}' (see {} help)", context.option)));
        }
    })
}

/// Refuses properties that are not `built`.
fn check_names(
    context: Context,
    pairs: &[Pair],
    built: &'static [&str],
    not_built: &'static [&str],
) -> Result<(), OptionError> {
    for Pair { key, .. } in pairs {
        if not_built.contains(&key.as_str()) {
            return Err(context.not_built(key));
        }
        if !built.contains(&key.as_str()) {
            return Err(context.unknown_of(key, built.iter().chain(not_built).copied()));
        }
    }
    Ok(())
}

fn switch(context: Context, pairs: &[Pair], key: &str, default: bool) -> Result<bool, OptionError> {
    match pairs.iter().rev().find(|pair| pair.key == key) {
        None => Ok(default),
        Some(pair) => {
            syntax::on_off(&pair.value).ok_or_else(|| context.bad(format!("{key}= takes on or off")))
        }
    }
}

/// The text of `-netdev help`.
pub const HELP: &str = "\
Networks:
  user    in the process, without privileges: DHCP, DNS, TCP, UDP and ping through the host's sockets;
          the host is 10.0.2.2 and fec0::2, its name server 10.0.2.3 and fec0::3, the guest 10.0.2.15
  tap     an interface of the host's kernel (ifname= or fd=), which may be on a bridge
  stream  a program at the other end of a stream socket (passt, another guest): each frame behind its length
  dgram   a program at the other end of a datagram socket: a frame each
";

#[cfg(test)]
mod tests;
