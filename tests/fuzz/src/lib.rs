//! What the fuzz targets share: how an input is read, a bound on memory, a machine's memory and wires, a virtio driver.
//!
//! A target is a file of `targets/`; `run.sh` builds and runs them. Each takes an input apart into steps of a guest (or of a
//! user), so that most inputs get deep into a device, and as many steps are ones that no good driver takes. A panic (debug
//! assertions and overflow checks are on), a minute without an end, or much memory is a finding. At the end the device
//! has to work for a good driver again.
//!
//! The seeds of `seeds/` were made by hand, in the form that their targets read: sessions that get far (a stream that is opened,
//! used and shut, files that are made and moved), images of qemu-img with small clusters, command lines; or were found by
//! exploring, one that reaches most. A finding becomes a test of the device that it was found in.

pub mod bounded;
pub mod driver;
pub mod images;
pub mod input;
pub mod machine;
pub mod net;
pub mod p9;
pub mod random;
pub mod rings;
pub mod transport;
pub mod vhost;
pub mod vhost_user;
pub mod virtio;
