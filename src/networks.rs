//! The networks of a run, opened before anything is created: a port that is taken ends it.

use devices::net::user::{OpenError, UserNet};

use crate::options::network::Network;

/// Why a network cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("-netdev user,id={id}")]
pub struct NetworkError {
    id: String,
    source: OpenError,
}

/// Opens the networks, each with its name.
pub fn open(networks: &[Network]) -> Result<Vec<(String, UserNet)>, NetworkError> {
    let open = |network: &Network| {
        let error = |source| NetworkError { id: network.id.clone(), source };
        Ok((network.id.clone(), UserNet::open(network.user.clone()).map_err(error)?))
    };
    networks.iter().map(open).collect()
}
