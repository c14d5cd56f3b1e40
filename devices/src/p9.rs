//! A file server that speaks 9P2000.L, the dialect of Linux's client (*9P2000.L Extensions to 9P2000*, diod's `protocol.md`;
//! *intro(5)* of Plan 9's manual): a folder of the host's, for guests.
//!
//! [`Server`] answers one message after the other, whatever they say; [`crate::virtio::p9`] brings them. A [`Share`] is the folder
//! and its rules. What keeps guests inside of it is said at [`node`].

mod attributes;
mod create;
mod fids;
mod locks;
mod node;
mod qids;
mod server;
mod share;
mod spec;
mod wire;

pub use attributes::SecurityModel;
pub use qids::Multidevs;
pub use server::Server;
pub use share::{Share, ShareError, ShareOptions};
pub use spec::{ERROR_BYTES, HEADER_BYTES, MAX_MSIZE};

#[cfg(test)]
mod tests;
