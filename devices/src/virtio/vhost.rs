//! Devices on whose rings somebody else works (*vhost*): another process ([`super::vhost_user`]) or the host's kernel ([`net`],
//! [`vsock`]; Linux, `include/uapi/linux/vhost.h`).
//!
//! Where somebody has to hear of what is written to guest memory, as a translator has, the other side works on *shadow rings*
//! ([`shadow`]): a thread of each queue moves chains there and, when they were used, back ([`relay`]), and tells what was written.
//! Where nobody has, under KVM, the kernel works on the guest's own rings ([`queues`]): the doorbell is what kicks it, and where
//! its call can be an interrupt no thread of ours is between them.

mod back_end;
mod ioctl;
mod kernel_file;
pub mod net;
mod queues;
pub(in crate::virtio) mod relay;
pub(in crate::virtio) mod shadow;
pub mod vsock;

pub use back_end::VhostError;
pub use ioctl::VhostFile;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
