//! The network with real sockets of the host, and a guest whose TCP is smoltcp's.

mod frames;
mod guest;
mod ipv6;
mod ports;
mod streams;
mod tcp_edges;
