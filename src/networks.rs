//! The networks of a run, opened before anything else is created: a port that is taken, or a socket where nobody is, ends it.

mod script;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use devices::net::NetBackend;
use devices::net::dgram::{self, Dgram};
use devices::net::socket::Address;
use devices::net::stream::{self, Stream};
use devices::net::tap::{self, Tap};
use devices::net::user::{self, UserNet};
use devices::virtio::net;
use devices::virtio::vhost::net::{PATH as VHOST_NET, VhostTap};

use self::script::ScriptError;
use crate::options::network::{Network, NetworkKind, TapChoice, TapSource};
use crate::vhost::VhostOpenError;
use crate::{inherited, vhost};

/// Why a network cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("-netdev {kind},id={id}")]
pub struct NetworkError {
    kind: &'static str,
    id: String,
    source: OpenError,
}

/// The same, without its name.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error(transparent)]
    User(#[from] user::OpenError),
    #[error(transparent)]
    Tap(#[from] tap::OpenError),
    #[error("vhost=on")]
    Vhost(#[from] VhostOpenError),
    #[error(transparent)]
    Stream(#[from] stream::OpenError),
    #[error(transparent)]
    Dgram(#[from] dgram::OpenError),
    #[error(transparent)]
    Script(#[from] ScriptError),
    #[error("descriptor {0} is not open")]
    Inherited(RawFd, #[source] io::Error),
}

/// A network as a card is on it.
#[derive(Clone)]
pub enum CardNetwork {
    /// This process moves its frames.
    Here(net::Network),
    /// The host's kernel does.
    Kernel(VhostTap),
}

impl CardNetwork {
    fn here(backend: impl NetBackend + 'static) -> Self {
        Self::Here(Arc::new(Mutex::new(Box::new(backend))))
    }
}

/// The networks. What is to be done when they are no longer needed is done when this is dropped.
#[derive(Default)]
pub struct Networks {
    backends: BTreeMap<String, CardNetwork>,
    ends: Vec<End>,
}

/// What outlives a network in the host.
enum End {
    /// A script to be run with the interface's name.
    Script(PathBuf, String),
    /// A socket's file.
    File(PathBuf),
}

impl Drop for Networks {
    fn drop(&mut self) {
        for end in &self.ends {
            match end {
                End::Script(path, interface) => {
                    if let Err(error) = script::run(path, interface) {
                        tracing::warn!(error = &error as &dyn std::error::Error, "-netdev tap");
                    }
                }
                // Whoever removed it already has.
                End::File(path) => drop(std::fs::remove_file(path)),
            }
        }
    }
}

impl Networks {
    /// Opens the networks.
    pub fn open(networks: &[Network]) -> Result<Self, NetworkError> {
        let mut opened = Self::default();
        for network in networks {
            let (kind, backend) = match &network.kind {
                NetworkKind::User(config) => ("user", open_user(config)),
                NetworkKind::Tap(choice) => ("tap", opened.open_tap(choice)),
                NetworkKind::Stream(config) => ("stream", opened.open_stream(config)),
                NetworkKind::Dgram(config) => ("dgram", opened.open_dgram(config)),
            };
            let error = |source| NetworkError { kind, id: network.id.clone(), source };
            opened.backends.insert(network.id.clone(), backend.map_err(error)?);
        }
        Ok(opened)
    }

    /// The networks by their names.
    pub fn backends(&self) -> &BTreeMap<String, CardNetwork> {
        &self.backends
    }

    fn open_tap(&mut self, choice: &TapChoice) -> Result<CardNetwork, OpenError> {
        // First: without it no interface is made.
        let kernel = choice.vhost.map(|source| vhost::open(source, VHOST_NET)).transpose()?;
        let tap = match &choice.source {
            TapSource::Named(name) => Tap::open(name.as_deref(), choice.vnet_header)?,
            TapSource::Fd(number) => Tap::inherited(claim(*number)?, *number)?,
        };
        let there = |script: &&crate::options::network::Script| !script.is_default || script.path.exists();
        if let Some(script) = choice.script.as_ref().filter(there) {
            script::run(&script.path, tap.name())?;
        }
        if let Some(script) = choice.down_script.as_ref().filter(there) {
            self.ends.push(End::Script(script.path.clone(), tap.name().into()));
        }
        Ok(match kernel {
            None => CardNetwork::here(tap),
            Some(file) => CardNetwork::Kernel(VhostTap::new(file, tap).map_err(VhostOpenError::from)?),
        })
    }

    fn open_stream(&mut self, config: &stream::Config) -> Result<CardNetwork, OpenError> {
        let stream = Stream::open(config, inherited(&config.address)?)?;
        if config.server {
            self.note_file(&config.address);
        }
        Ok(CardNetwork::here(stream))
    }

    fn open_dgram(&mut self, config: &dgram::Config) -> Result<CardNetwork, OpenError> {
        let dgram = Dgram::open(config, inherited(&config.local)?)?;
        self.note_file(&config.local);
        Ok(CardNetwork::here(dgram))
    }

    fn note_file(&mut self, address: &Address) {
        if let Address::Unix(path) = address {
            self.ends.push(End::File(path.clone()));
        }
    }
}

fn open_user(config: &user::Config) -> Result<CardNetwork, OpenError> {
    Ok(CardNetwork::here(UserNet::open(config.clone())?))
}

fn claim(number: RawFd) -> Result<OwnedFd, OpenError> {
    inherited::claim(number).map_err(|source| OpenError::Inherited(number, source))
}

fn inherited(address: &Address) -> Result<Option<OwnedFd>, OpenError> {
    match address {
        Address::Fd(number) => claim(*number).map(Some),
        Address::Inet { .. } | Address::Unix(_) => Ok(None),
    }
}
