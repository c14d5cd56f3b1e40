//! The limit of open descriptors, of which connections and shared files each need one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit as far as a user may: the usual one is for programs that still use select(2).
pub(crate) fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
    {
        tracing::debug!(target: "descriptors", %error, "the limit of open files stays as it is");
    }
}
