//! Segments on their way into the guest's receive queue.

use std::net::IpAddr;

use smoltcp::wire::{EthernetAddress, IpProtocol, TcpControl};

use super::super::link::{self, Link, MAX_IP_HEADERS_BYTES, ip_headers_bytes};
use super::ring::Budget;
use super::segment::{CHECKSUM_OFFSET, HEADER_BYTES, Header, MAX_HEADER_BYTES};
use crate::net::poller::Time;
use crate::net::{Checksum, FrameInfo, FrameSink, IpVersion, Offloads, Segments};

/// What a connection needs to work.
pub(super) struct Outlet<'a> {
    pub(super) link: &'a mut Link,
    pub(super) sink: &'a mut dyn FrameSink,
    pub(super) offloads: Offloads,
    pub(super) budget: &'a mut Budget,
    pub(super) now: Time,
}

/// The largest payload of a frame, for `guest`, whose segments have `segment` bytes.
pub(super) fn max_payload(outlet: &Outlet, guest: IpAddr, segment: u16) -> usize {
    let segment = usize::from(segment);
    let takes_large =
        if guest.is_ipv4() { outlet.offloads.tcp4_segments } else { outlet.offloads.tcp6_segments };
    if takes_large {
        (usize::from(u16::MAX) - MAX_IP_HEADERS_BYTES - HEADER_BYTES) / segment * segment
    } else {
        segment
    }
}

/// Sends a segment; false if there is no room for it.
pub(super) fn send(outlet: &mut Outlet, header: &Header, payload: [&[u8]; 2], segment: u16) -> bool {
    // What waited longer goes first, an ARP request above all.
    if !outlet.link.flush(outlet.sink) {
        return false;
    }
    let Some(station) = outlet.link.neighbour(header.target.ip()) else {
        // Lost, as on any cable; it comes again when it is known whom to send it to.
        return outlet.link.flush(outlet.sink);
    };
    let length = payload[0].len() + payload[1].len();
    let is_large = length > usize::from(segment);
    let partial = outlet.offloads.checksum || is_large;
    let version = if header.target.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 };
    let headers = ip_headers_bytes(header.target.ip());
    let mut buffer = [0; MAX_IP_HEADERS_BYTES + MAX_HEADER_BYTES];
    let count = header.write(&mut buffer[headers..], &payload, partial);
    write_headers(outlet.link, station, header, count + length, &mut buffer);
    let total = headers + count;
    let info = FrameInfo {
        checksum: if partial {
            Checksum::Partial { start: headers as u16, offset: CHECKSUM_OFFSET }
        } else {
            Checksum::Complete
        },
        segments: is_large.then_some(Segments { version, bytes: segment }),
        header_bytes: total as u16,
    };
    outlet.sink.push(&info, &[&buffer[..total], payload[0], payload[1]])
}

fn write_headers(link: &Link, station: EthernetAddress, header: &Header, length: usize, frame: &mut [u8]) {
    let (source, target) = (header.source.ip(), header.target.ip());
    link::write_headers(frame, link.station(target), station, source, target, IpProtocol::Tcp, length);
}

/// Resets the guest's end.
pub(super) fn reset(link: &mut Link, header: Header) {
    let mut buffer = [0; MAX_HEADER_BYTES];
    let header = Header { control: TcpControl::Rst, window: 0, ..header };
    let count = header.write(&mut buffer, &[], false);
    link.ip(header.source.ip(), header.target.ip(), IpProtocol::Tcp, &buffer[..count]);
}
