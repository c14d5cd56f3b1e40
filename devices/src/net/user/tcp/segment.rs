//! TCP segments, read and written (RFC 9293, 3.1).

use std::net::{IpAddr, SocketAddr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpProtocol, TcpControl, TcpOption, TcpPacket, TcpRepr, TcpSeqNumber};

use crate::net::checksum::Sum;

/// The header without options.
pub(super) const HEADER_BYTES: usize = 20;
/// With those that we send.
pub(in super::super) const MAX_HEADER_BYTES: usize = HEADER_BYTES + 8;
/// Where the checksum is in the header.
pub(super) const CHECKSUM_OFFSET: u16 = 16;

/// A segment from the guest.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Segment<'a> {
    pub(in super::super) seq: u32,
    pub(in super::super) ack: Option<u32>,
    pub(in super::super) syn: bool,
    pub(in super::super) fin: bool,
    pub(in super::super) rst: bool,
    /// As it stands in the header.
    pub(in super::super) window: u16,
    pub(in super::super) max_segment: Option<u16>,
    pub(in super::super) window_scale: Option<u8>,
    pub(in super::super) payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Reads a packet; `None` if it is none, with its ports. `checked`: its checksum is to be.
    pub(in super::super) fn parse(
        bytes: &'a [u8],
        source: IpAddr,
        target: IpAddr,
        checked: bool,
    ) -> Option<(u16, u16, Self)> {
        let packet = TcpPacket::new_checked(bytes).ok()?;
        let ports = (packet.src_port(), packet.dst_port());
        if ports.0 == 0 || ports.1 == 0 {
            return None;
        }
        if checked {
            let mut sum = Sum::pseudo(source, target, IpProtocol::Tcp, bytes.len());
            sum.add(bytes);
            if !sum.is_whole() {
                return None;
            }
        }
        let mut segment = Self {
            seq: number(packet.seq_number()),
            ack: packet.ack().then(|| number(packet.ack_number())),
            syn: packet.syn(),
            fin: packet.fin(),
            rst: packet.rst(),
            window: packet.window_len(),
            max_segment: None,
            window_scale: None,
            payload: packet.payload(),
        };
        if segment.syn {
            let mut options = packet.options();
            while !options.is_empty() {
                let Ok((rest, option)) = TcpOption::parse(options) else { break };
                match option {
                    TcpOption::EndOfList => break,
                    TcpOption::MaxSegmentSize(bytes) => segment.max_segment = Some(bytes),
                    // RFC 7323, 2.3.
                    TcpOption::WindowScale(scale) => segment.window_scale = Some(scale.min(14)),
                    _ => {}
                }
                options = rest;
            }
        }
        Some((ports.0, ports.1, segment))
    }

    /// How much of the sequence space it takes.
    pub(super) fn len(&self) -> u32 {
        self.payload.len() as u32 + u32::from(self.syn) + u32::from(self.fin)
    }
}

fn number(number: TcpSeqNumber) -> u32 {
    number.0.cast_unsigned()
}

/// How far `a` is ahead of `b` in the sequence space; negative behind it.
pub(super) fn ahead(a: u32, b: u32) -> i32 {
    a.wrapping_sub(b).cast_signed()
}

/// A segment to the guest, without its payload.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Header {
    pub(in super::super) source: SocketAddr,
    pub(in super::super) target: SocketAddr,
    pub(in super::super) control: TcpControl,
    pub(in super::super) seq: u32,
    pub(in super::super) ack: Option<u32>,
    /// As it stands in the header.
    pub(in super::super) window: u16,
    pub(in super::super) max_segment: Option<u16>,
    pub(in super::super) window_scale: Option<u8>,
}

impl Header {
    /// Writes it in front of `payload`; its length. `partial`: the guest does the checksum.
    pub(in super::super) fn write(&self, buffer: &mut [u8], payload: &[&[u8]], partial: bool) -> usize {
        let repr = TcpRepr {
            src_port: self.source.port(),
            dst_port: self.target.port(),
            control: self.control,
            seq_number: TcpSeqNumber(self.seq.cast_signed()),
            ack_number: self.ack.map(|ack| TcpSeqNumber(ack.cast_signed())),
            window_len: self.window,
            window_scale: self.window_scale,
            max_seg_size: self.max_segment,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        };
        let length = repr.header_len();
        let header = &mut buffer[..length];
        let (source, target) = (self.source.ip().into(), self.target.ip().into());
        repr.emit(
            &mut TcpPacket::new_unchecked(&mut *header),
            &source,
            &target,
            &ChecksumCapabilities::ignored(),
        );
        let total = length + payload.iter().map(|piece| piece.len()).sum::<usize>();
        let mut sum = Sum::pseudo(self.source.ip(), self.target.ip(), IpProtocol::Tcp, total);
        let checksum = if partial {
            sum.partial()
        } else {
            sum.add(header);
            payload.iter().for_each(|piece| sum.add(piece));
            sum.finish()
        };
        let at = usize::from(CHECKSUM_OFFSET);
        header[at..at + 2].copy_from_slice(&checksum);
        length
    }
}
