//! UDP, names, and ports of the host that lead into the guest.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;
use smoltcp::socket::udp::{self, PacketBuffer, PacketMetadata};

use super::super::{Config, HostForward, Nameservers, OpenError, Protocol, UserNet};
use super::guest::{DNS, GUEST, Guest, HOST, config};

fn udp_socket() -> (UdpSocket, u16) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

fn bind(guest: &mut Guest, port: u16) -> SocketHandle {
    let ring = || PacketBuffer::new(vec![PacketMetadata::EMPTY; 64], vec![0; 65536]);
    let mut socket = udp::Socket::new(ring(), ring());
    socket.bind(port).unwrap();
    guest.sockets.add(socket)
}

fn send(guest: &mut Guest, socket: SocketHandle, to: (Ipv4Addr, u16), payload: &[u8]) {
    guest.sockets.get_mut::<udp::Socket>(socket).send_slice(payload, to).unwrap();
    guest.until("sent", |guest| guest.sockets.get_mut::<udp::Socket>(socket).send_queue() == 0);
    (0..3).for_each(|_| _ = guest.step());
}

#[track_caller]
fn receive(guest: &mut Guest, socket: SocketHandle) -> (Vec<u8>, SocketAddr) {
    guest.until("a datagram", |guest| guest.sockets.get_mut::<udp::Socket>(socket).can_recv());
    let (payload, from) = guest.sockets.get_mut::<udp::Socket>(socket).recv().unwrap();
    let std::net::IpAddr::V4(address) = from.endpoint.addr.into() else { unreachable!() };
    (payload.to_vec(), SocketAddr::from((address, from.endpoint.port)))
}

#[test]
fn datagrams_to_the_host_and_back() {
    let (server, port) = udp_socket();
    let mut guest = Guest::new(config());
    let socket = bind(&mut guest, 2000);
    let mut buffer = [0; 2000];
    send(&mut guest, socket, (HOST, port), b"question");
    let (count, from) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..count], b"question");
    server.send_to(b"answer", from).unwrap();
    assert_eq!(receive(&mut guest, socket), (b"answer".to_vec(), SocketAddr::from((HOST, port))));
    // Another port of who was sent to may answer, as a TFTP server does.
    let (other, other_port) = udp_socket();
    other.send_to(b"from here", from).unwrap();
    assert_eq!(receive(&mut guest, socket).1, SocketAddr::from((HOST, other_port)));
    // To another, the guest's socket is the same.
    send(&mut guest, socket, (HOST, other_port), b"again");
    assert_eq!(other.recv_from(&mut buffer).unwrap().1, from);
    // Silence ends it.
    assert_eq!(guest.cable.network.flows.len(), 1);
    guest.skip(Duration::from_secs(200));
    guest.step();
    assert_eq!(guest.cable.network.flows.len(), 1);
    guest.skip(Duration::from_secs(50));
    guest.step();
    assert_eq!(guest.cable.network.flows.len(), 0);
}

#[test]
fn who_was_not_sent_to_does_not_get_in() {
    let (server, port) = udp_socket();
    let mut guest = Guest::new(config());
    let socket = bind(&mut guest, 2000);
    send(&mut guest, socket, (HOST, port), b"hello");
    let (_, from) = server.recv_from(&mut [0; 10]).unwrap();
    let stranger = UdpSocket::bind("127.0.0.2:0").unwrap();
    stranger.send_to(b"let me in", from).unwrap();
    server.send_to(b"known", from).unwrap();
    assert_eq!(receive(&mut guest, socket).0, b"known");
}

#[test]
fn sockets_are_limited() {
    let (_server, port) = udp_socket();
    let mut guest = Guest::new(config());
    for local in 0..2200 {
        let datagram = super::super::udp::datagram(
            SocketAddrV4::new(GUEST, 10_000 + local),
            SocketAddrV4::new(HOST, port),
            b"x",
        );
        super::frames::send_ip(&mut guest.cable, HOST, 17, &datagram);
    }
    assert_eq!(guest.cable.network.flows.len(), 2048);
}

#[test]
fn names() {
    let (server, port) = udp_socket();
    let stream_server = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let nameservers = Nameservers::Fixed(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let mut guest = Guest::new(Config { nameservers, ..Config::default() });
    let socket = bind(&mut guest, 2000);
    let mut buffer = [0; 512];
    for round in 0..3 {
        send(&mut guest, socket, (DNS, 53), format!("query {round}").as_bytes());
        let (count, from) = server.recv_from(&mut buffer).unwrap();
        server.send_to(&[b"answer to ", &buffer[..count]].concat(), from).unwrap();
        let expected = format!("answer to query {round}").into_bytes();
        assert_eq!(receive(&mut guest, socket), (expected, SocketAddr::from((DNS, 53))));
    }
    guest.skip(Duration::from_secs(11));
    guest.step();
    assert_eq!(guest.cable.network.flows.len(), 0);
    // The same by TCP.
    let socket = guest.connect(SocketAddrV4::new(DNS, 53), 4096);
    guest.until("connected", |guest| guest.tcp(socket).can_send());
    stream_server.accept().unwrap().0.write_all(b"long answer").unwrap();
    guest.until("answered", |guest| guest.tcp(socket).can_recv());
    // Nothing else is there.
    let socket = guest.connect(SocketAddrV4::new(DNS, 80), 4096);
    guest.until("refused", |guest| guest.tcp(socket).state() == State::Closed);
}

fn forwarding(protocol: Protocol, restrict: bool) -> (Guest, u16) {
    // A port that was free a moment ago.
    let port = match protocol {
        Protocol::Tcp => TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port(),
        Protocol::Udp => udp_socket().1,
    };
    let host = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
    let forwards = vec![HostForward { protocol, host: host.into(), guest: SocketAddr::from((GUEST, 22)) }];
    (Guest::new(Config { forwards, restrict, ..config() }), port)
}

fn forwarded_stream(restrict: bool) {
    let (mut guest, port) = forwarding(Protocol::Tcp, restrict);
    let socket = guest.listen(22);
    let client = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(b"knock").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        (got, stream.local_addr().unwrap().port())
    });
    guest.until("the client's end", |guest| guest.tcp(socket).state() == State::CloseWait);
    let remote = guest.tcp(socket).remote_endpoint().unwrap();
    guest.tcp(socket).recv(|bytes| (bytes.len(), assert_eq!(bytes, b"knock"))).unwrap();
    guest.tcp(socket).send_slice(b"welcome").unwrap();
    guest.tcp(socket).close();
    guest.until("closed", |guest| guest.tcp(socket).state() == State::Closed);
    let (got, client_port) = client.join().unwrap();
    assert_eq!(got, b"welcome");
    assert_eq!((remote.addr, remote.port), (HOST.into(), client_port));
    guest.assert_no_leak();
}

#[test]
fn a_forwarded_stream() {
    forwarded_stream(false);
}

#[test]
fn a_forwarded_port_where_nobody_listens() {
    let (mut guest, port) = forwarding(Protocol::Tcp, false);
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_nonblocking(true).unwrap();
    guest.until(
        "reset",
        |_| matches!(stream.read(&mut [0]), Err(error) if error.kind() == ErrorKind::ConnectionReset),
    );
    guest.assert_no_leak();
}

#[test]
fn a_guest_that_is_not_there_yet() {
    let (mut guest, port) = forwarding(Protocol::Tcp, false);
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    // Nobody answers ARP.
    for _ in 0..3 {
        guest.cable.wait(Duration::from_millis(200));
        assert!(guest.cable.collect().iter().all(|frame| frame[12..14] == [8, 6]));
        guest.cable.network.poller.skipped += Duration::from_secs(10);
    }
    let socket = guest.listen(22);
    guest.skip(Duration::from_secs(61));
    guest.until("connected", |guest| guest.tcp(socket).state() == State::Established);
    drop(stream);
}

#[test]
fn forwarded_datagrams() {
    for restrict in [false, true] {
        let (mut guest, port) = forwarding(Protocol::Udp, restrict);
        let socket = bind(&mut guest, 22);
        let clients = [udp_socket().0, udp_socket().0];
        for (index, client) in clients.iter().enumerate() {
            client.send_to(&[index as u8], ("127.0.0.1", port)).unwrap();
            let (payload, from) = receive(&mut guest, socket);
            assert_eq!(payload, [index as u8]);
            assert_eq!(from, SocketAddr::from((HOST, client.local_addr().unwrap().port())));
        }
        // In the other order: each gets its own, from where it sent to.
        for (index, client) in clients.iter().enumerate().rev() {
            let to = client.local_addr().unwrap().port();
            send(&mut guest, socket, (HOST, to), &[10 + index as u8]);
            let mut buffer = [0; 10];
            let (count, from) = client.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..count], from.port()), (&[10 + index as u8][..], port));
        }
    }
}

#[test]
fn a_restricted_guest_gets_nowhere_and_is_found() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (server, udp_port) = udp_socket();
    server.set_nonblocking(true).unwrap();
    let nameservers = Nameservers::Fixed(server.local_addr().unwrap());
    let mut guest = Guest::new(Config { restrict: true, nameservers, ..Config::default() });
    for address in [HOST, DNS, Ipv4Addr::new(192, 0, 2, 1)] {
        let socket = guest.connect(SocketAddrV4::new(address, port), 4096);
        guest.until("refused", |guest| guest.tcp(socket).state() == State::Closed);
    }
    let socket = bind(&mut guest, 2000);
    send(&mut guest, socket, (HOST, udp_port), b"x");
    send(&mut guest, socket, (DNS, 53), b"x");
    assert_eq!(server.recv_from(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(guest.cable.network.flows.len(), 0);
    forwarded_stream(true);
}

#[test]
fn a_port_that_is_taken() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let SocketAddr::V4(host) = listener.local_addr().unwrap() else { unreachable!() };
    let rule =
        HostForward { protocol: Protocol::Tcp, host: host.into(), guest: SocketAddr::from((GUEST, 22)) };
    match UserNet::open(Config { forwards: vec![rule], ..config() }).err().unwrap() {
        OpenError::Forward { rule, source } => {
            assert_eq!(rule.to_string(), format!("hostfwd=tcp:{host}-10.0.2.15:22"));
            assert_eq!(source.kind(), ErrorKind::AddrInUse);
        }
        error => panic!("{error}"),
    }
}
