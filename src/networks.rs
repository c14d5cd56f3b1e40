//! The networks of a run, opened before anything is created: a port that is taken ends it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use devices::net::NetBackend;
use devices::net::user::{OpenError, UserNet};
use devices::virtio::net;

use crate::options::network::Network;

/// Why a network cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("-netdev user,id={id}")]
pub struct NetworkError {
    id: String,
    source: OpenError,
}

/// Opens the networks, to be found by their names.
pub fn open(networks: &[Network]) -> Result<BTreeMap<String, net::Network>, NetworkError> {
    let open = |network: &Network| {
        let error = |source| NetworkError { id: network.id.clone(), source };
        let user: Box<dyn NetBackend> = Box::new(UserNet::open(network.user.clone()).map_err(error)?);
        Ok((network.id.clone(), Arc::new(Mutex::new(user))))
    };
    networks.iter().map(open).collect()
}
