//! `-netdev tap`: an interface of the host's kernel.

use std::os::fd::RawFd;
use std::path::PathBuf;

use devices::net::tap::MAX_NAME_BYTES;

use crate::options::error::{Context, OptionError};
use crate::options::syntax::{self, Pair};
use crate::options::vhost::{VhostSource, descriptor};

/// A tap interface to be used, or made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapChoice {
    /// The interface.
    pub source: TapSource,
    /// Frames have headers with what is left to do, where the kernel has them.
    pub vnet_header: bool,
    /// The kernel moves frames; `None`: this process does.
    pub vhost: Option<VhostSource>,
    /// What is run with the interface's name when it is there; `None`: nothing.
    pub script: Option<Script>,
    /// What is run with it at the end.
    pub down_script: Option<Script>,
}

/// Where the interface comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TapSource {
    /// Its name; `None`: the kernel chooses one.
    Named(Option<String>),
    /// Whoever started the process opened it.
    Fd(RawFd),
}

/// A script of the user's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// The program.
    pub path: PathBuf,
    /// It was not asked for: it need not be there.
    pub is_default: bool,
}

#[rustfmt::skip]
const BUILT: &[&str] = &[
    "ifname", "fd", "fds", "script", "downscript", "vhost", "vhostforce", "vhostfd", "vhostfds", "vnet_hdr", "queues",
];
const NOT_BUILT: &[&str] = &["br", "helper", "poll-us", "sndbuf"];

/// The network that `pairs` describe.
pub(super) fn choice(context: Context, pairs: &[Pair]) -> Result<TapChoice, OptionError> {
    super::check_names(context, pairs, BUILT, NOT_BUILT)?;
    let last = |key: &str| pairs.iter().rev().find(|pair| pair.key == key).map(|pair| pair.value.as_str());
    let switch = |key: &str, default| super::switch(context, pairs, key, default);
    let queues = last("queues").map(|text| syntax::integer(text).ok_or(()));
    match queues {
        None | Some(Ok(1)) => {}
        Some(Ok(0) | Err(())) => return Err(context.bad("queues= takes a number, 1 or more")),
        Some(Ok(_)) => return Err(context.not_built("queues= of more than 1")),
    }
    let source = match (last("ifname"), last("fd"), last("fds")) {
        (name, None, None) => {
            if name.is_some_and(|name| name.is_empty() || name.len() > MAX_NAME_BYTES || name.contains('/')) {
                return Err(context.bad(format!("ifname= takes 1 to {MAX_NAME_BYTES} bytes, and no '/'")));
            }
            TapSource::Named(name.map(Into::into))
        }
        (None, Some(fd), None) => TapSource::Fd(descriptor(context, "fd", fd)?),
        (None, None, Some(fds)) if fds.contains(':') => {
            return Err(context.not_built("fds= of more than one, several queues"));
        }
        (None, None, Some(fd)) => TapSource::Fd(descriptor(context, "fds", fd)?),
        _ => return Err(context.bad("ifname=, fd= and fds= exclude each other")),
    };
    let is_inherited = matches!(source, TapSource::Fd(_));
    if is_inherited {
        let excluded = ["script", "downscript", "vnet_hdr"].iter().find(|key| last(key).is_some());
        if let Some(key) = excluded {
            return Err(
                context.bad(format!("{key}= and fd= exclude each other: the interface is there already"))
            );
        }
    }
    let script = |key: &str, default: &str| match last(key) {
        Some("no" | "") => None,
        Some(path) => Some(Script { path: path.into(), is_default: false }),
        None if is_inherited => None,
        None => Some(Script { path: default.into(), is_default: true }),
    };
    Ok(TapChoice {
        source,
        vnet_header: switch("vnet_hdr", true)?,
        vhost: vhost(context, pairs)?,
        script: script("script", "/etc/qemu-ifup"),
        down_script: script("downscript", "/etc/qemu-ifdown"),
    })
}

/// What is said of vhost. `vhostforce=` is an older word for it.
fn vhost(context: Context, pairs: &[Pair]) -> Result<Option<VhostSource>, OptionError> {
    let last = |keys: &[&str]| pairs.iter().rev().find(|pair| keys.contains(&pair.key.as_str()));
    let force = super::switch(context, pairs, "vhostforce", false)?;
    let is_on = super::switch(context, pairs, "vhost", force)?;
    match last(&["vhostfd", "vhostfds"]) {
        None => Ok(is_on.then_some(VhostSource::Device)),
        Some(pair) if !is_on => Err(context.bad(format!("{}= is for vhost=on", pair.key))),
        Some(Pair { key, value }) if key == "vhostfds" && value.contains(':') => {
            Err(context.not_built("vhostfds= of more than one, several queues"))
        }
        Some(Pair { key, value }) => Ok(Some(VhostSource::Fd(descriptor(context, key, value)?))),
    }
}
