//! `-netdev stream` and `-netdev dgram`: a program at the other end of a socket.

use std::time::Duration;

use devices::net::socket::Address;
use devices::net::{dgram, stream};

use super::{check_names, switch};
use crate::options::error::{Context, OptionError};
use crate::options::syntax::{self, Pair};
use crate::options::vhost::descriptor;

const STREAM: &[&str] =
    &["addr.type", "addr.path", "addr.host", "addr.port", "addr.str", "server", "reconnect", "reconnect-ms"];
const STREAM_NOT_BUILT: &[&str] = &[
    "addr.abstract",
    "addr.tight",
    "addr.to",
    "addr.ipv4",
    "addr.ipv6",
    "addr.numeric",
    "addr.keep-alive",
    "addr.mptcp",
];
const DGRAM: &[&str] = &[
    "local.type",
    "local.path",
    "local.host",
    "local.port",
    "local.str",
    "remote.type",
    "remote.path",
    "remote.host",
    "remote.port",
];
const DGRAM_NOT_BUILT: &[&str] = &["local.ipv4", "local.ipv6", "remote.ipv4", "remote.ipv6", "remote.str"];

/// The network of `-netdev stream`.
pub(super) fn stream(context: Context, pairs: &[Pair]) -> Result<stream::Config, OptionError> {
    check_names(context, pairs, STREAM, STREAM_NOT_BUILT)?;
    let server = switch(context, pairs, "server", false)?;
    let address = address(context, pairs, "addr")?;
    let address = address.ok_or_else(|| context.bad("needs addr.type=inet, unix or fd"))?;
    let mut reconnect = None;
    for (key, unit) in [("reconnect", 1000), ("reconnect-ms", 1)] {
        let Some(text) = last(pairs, key) else { continue };
        if reconnect.is_some() {
            return Err(context.bad("reconnect= and reconnect-ms= exclude each other"));
        }
        let number = syntax::integer(text).and_then(|n| u32::try_from(n).ok());
        let number = number.ok_or_else(|| context.bad(format!("{key}= takes a number, 0 for never")))?;
        reconnect = Some(Duration::from_millis(u64::from(number) * unit));
    }
    let reconnect = reconnect.filter(|delay| !delay.is_zero());
    if reconnect.is_some() && (server || matches!(address, Address::Fd(_))) {
        return Err(context.bad("reconnect= is for the end that connects"));
    }
    Ok(stream::Config { address, server, reconnect })
}

/// The network of `-netdev dgram`.
pub(super) fn dgram(context: Context, pairs: &[Pair]) -> Result<dgram::Config, OptionError> {
    check_names(context, pairs, DGRAM, DGRAM_NOT_BUILT)?;
    let remote = address(context, pairs, "remote")?;
    if let Some(Address::Inet { host, .. }) = &remote
        && host.parse().is_ok_and(|address: std::net::IpAddr| address.is_multicast())
    {
        return Err(context.not_built("remote.host= of a multicast group"));
    }
    let local = address(context, pairs, "local")?;
    let local = local.ok_or_else(|| context.bad("needs local.type=inet, unix or fd"))?;
    match (&local, &remote) {
        (Address::Fd(_), None)
        | (Address::Unix(_), Some(Address::Unix(_)))
        | (Address::Inet { .. }, Some(Address::Inet { .. })) => Ok(dgram::Config { local, remote }),
        (Address::Fd(_), Some(_)) => {
            Err(context.bad("local.type=fd takes no remote: the socket is connected"))
        }
        (_, Some(Address::Fd(_))) => Err(context.bad("remote.type= takes inet or unix")),
        (_, None) => Err(context.bad("needs remote.type=, where frames go to")),
        _ => Err(context.bad("local.type= and remote.type= must be the same")),
    }
}

fn last<'a>(pairs: &'a [Pair], key: &str) -> Option<&'a str> {
    pairs.iter().rev().find(|pair| pair.key == key).map(|pair| pair.value.as_str())
}

/// The address that the keys `WHICH.*` describe, if there is one.
fn address(context: Context, pairs: &[Pair], which: &str) -> Result<Option<Address>, OptionError> {
    let get = |key: &str| last(pairs, &format!("{which}.{key}"));
    let need = |key: &str| {
        get(key)
            .filter(|text| !text.is_empty())
            .ok_or_else(|| context.bad(format!("needs {which}.{key}= with this {which}.type=")))
    };
    let Some(kind) = get("type") else { return Ok(None) };
    let fits: &[&str] = match kind {
        "inet" => &["type", "host", "port"],
        "unix" => &["type", "path"],
        "fd" => &["type", "str"],
        "vsock" => return Err(context.not_built(&format!("{which}.type=vsock"))),
        _ => return Err(context.bad(format!("{which}.type= takes inet, unix or fd"))),
    };
    for pair in pairs {
        if let Some(key) = pair.key.strip_prefix(&format!("{which}."))
            && !fits.contains(&key)
        {
            return Err(context.bad(format!("{which}.{key}= does not go with {which}.type={kind}")));
        }
    }
    Ok(Some(match kind {
        "inet" => {
            let port = need("port")?.parse().ok().filter(|port| *port > 0);
            let port = port.ok_or_else(|| context.bad(format!("{which}.port= takes a port, 1 to 65535")))?;
            Address::Inet { host: get("host").unwrap_or_default().into(), port }
        }
        "unix" => {
            let path = need("path")?;
            // The kernel's `sockaddr_un` with its last byte.
            if path.len() > 107 {
                return Err(context.bad(format!("{which}.path= takes at most 107 bytes")));
            }
            Address::Unix(path.into())
        }
        _ => Address::Fd(descriptor(context, &format!("{which}.str"), need("str")?)?),
    }))
}
