use super::*;

fn read(value: &str) -> Result<Chardev, OptionError> {
    chardev(Context { option: "-chardev", value })
}

fn port(value: &str) -> Result<SerialChoice, OptionError> {
    serial(Context { option: "-serial", value }, 1)
}

fn kind(value: &str) -> ChardevKind {
    read(value).unwrap().kind
}

fn own(value: &str) -> Chardev {
    match port(value) {
        Ok(SerialChoice::Own(chardev)) => chardev,
        other => panic!("{other:?}"),
    }
}

#[test]
fn kinds() {
    assert_eq!(kind("null,id=a"), ChardevKind::Null);
    assert_eq!(kind("stdio,id=a"), ChardevKind::Stdio { signal: true });
    assert_eq!(kind("stdio,id=a,signal=off"), ChardevKind::Stdio { signal: false });
    let file = ChardevKind::File { path: "/x,y".into(), append: true, input: Some("i".into()) };
    assert_eq!(kind("file,id=a,path=/x,,y,append=on,input-path=i"), file);
    assert_eq!(kind("pipe,id=a,path=p"), ChardevKind::Pipe("p".into()));
    assert_eq!(kind("pty,id=a"), ChardevKind::Pty);
    assert_eq!(kind("ringbuf,id=a"), ChardevKind::Ringbuf { bytes: 65536 });
    assert_eq!(kind("ringbuf,id=a,size=4k"), ChardevKind::Ringbuf { bytes: 4096 });
    let shared = read("stdio,id=a.b-c_1,mux=on,logfile=l,logappend=on").unwrap();
    assert_eq!((shared.id.as_str(), shared.most_devices()), ("a.b-c_1", 4));
    assert_eq!(shared.log, Some(LogFile { path: "l".into(), append: true }));
    assert_eq!(read("null,id=a").unwrap().most_devices(), 1);
}

#[test]
fn sockets() {
    let ChardevKind::Socket(unix) = kind("socket,id=a,path=/s,server=on,wait=off") else { panic!() };
    assert_eq!(unix.place, Place::Unix("/s".into()));
    assert!(unix.server && !unix.wait && unix.reconnect.is_none());
    let ChardevKind::Socket(waiting) = kind("socket,id=a,path=s,abstract=on,server=on") else { panic!() };
    assert!(waiting.wait && waiting.place == Place::Abstract("s".into()));
    let ChardevKind::Socket(tcp) = kind("socket,id=a,host=::1,port=7,nodelay=on,reconnect=2,ipv6=on") else {
        panic!()
    };
    assert_eq!(tcp.place, Place::Tcp { host: "::1".into(), port: 7, ipv4: false, ipv6: true });
    assert!(!tcp.server && !tcp.wait && tcp.nodelay);
    assert_eq!(tcp.reconnect, Some(Duration::from_secs(2)));
    let ChardevKind::Socket(fast) = kind("socket,id=a,host=h,port=7,reconnect-ms=50") else { panic!() };
    assert_eq!(fast.reconnect, Some(Duration::from_millis(50)));
    assert_eq!(fast.place, Place::Tcp { host: "h".into(), port: 7, ipv4: true, ipv6: true });
}

#[test]
fn what_is_wrong_is_named() {
    for (value, named) in [
        ("null", "needs id="),
        ("null,id=1", "id= takes a letter"),
        ("id=a,null", "comes first"),
        ("frob,id=a", "no character device 'frob'"),
        ("stdio,id=a,signl=off", "'signl' (did you mean 'signal'?)"),
        ("stdio,id=a,mux=maybe", "mux= takes on or off"),
        ("file,id=a", "needs path=FILE"),
        ("file,id=a,pat=x", "'pat' (did you mean 'path'?)"),
        ("pipe,id=a,path=", "needs path=FILE"),
        ("ringbuf,id=a,size=1000", "size= takes a power of two"),
        ("socket,id=a", "needs path=SOCKET"),
        ("socket,id=a,path=s,port=1", "exclude each other"),
        ("socket,id=a,port=70000", "port= takes 0 to 65535"),
        ("socket,id=a,port=1,abstract=on", "abstract=on needs path="),
        ("socket,id=a,port=1,ipv4=off,ipv6=off", "neither ipv4="),
        ("socket,id=a,path=s,wait=off", "wait= is for server=on"),
        ("socket,id=a,path=s,server=on,reconnect=1", "reconnect= is for clients"),
        ("socket,id=a,path=s,reconnect=soon", "reconnect= takes a number"),
    ] {
        let text = read(value).unwrap_err().to_string();
        assert!(text.starts_with(&format!("-chardev {value}: ")) && text.contains(named), "{text}");
    }
    for value in ["udp,id=a", "vc,id=a", "socket,id=a,port=1,telnet=on", "socket,id=a,fd=3"] {
        assert!(matches!(read(value), Err(OptionError::NotBuilt(_))), "{value}");
    }
}

#[test]
fn serial_ports() {
    assert_eq!(port("none"), Ok(SerialChoice::None));
    assert_eq!(port("chardev:c"), Ok(SerialChoice::Named("c".into())));
    assert_eq!(own("stdio"), Chardev { option: "-serial stdio".into(), ..own("mon:stdio") });
    let stdio = own("mon:stdio");
    assert_eq!(
        (stdio.id.as_str(), stdio.mux, stdio.kind),
        ("serial1", true, ChardevKind::Stdio { signal: false })
    );
    let file = ChardevKind::File { path: "/tmp/a,b".into(), append: false, input: None };
    assert_eq!(own("file:/tmp/a,b").kind, file);
    assert_eq!(own("pipe:p").kind, ChardevKind::Pipe("p".into()));
    let ChardevKind::Socket(unix) = own("unix:/a=b,server,nowait").kind else { panic!() };
    assert!(unix.place == Place::Unix("/a=b".into()) && unix.server && !unix.wait);
    let ChardevKind::Socket(tcp) = own("mon:tcp::4444,server=on").kind else { panic!() };
    assert_eq!(tcp.place, Place::Tcp { host: String::new(), port: 4444, ipv4: true, ipv6: true });
    assert!(tcp.server && tcp.wait && own("mon:tcp::4444").mux && !own("tcp:h:1").mux);
    for (value, named) in [
        ("frob", "takes stdio"),
        ("file:", "needs a path"),
        ("unix:", "needs a path"),
        ("chardev:", "needs the name"),
        ("tcp:4444", "needs tcp:"),
        ("tcp::x", "port= takes"),
        ("unix:s,servr=on", "'servr' (did you mean 'server'?)"),
        ("telnet::1", "telnet: not built yet"),
        ("/dev/ttyS0", "/dev/ttyS0: not built yet"),
        ("vc:80x24", "vc: not built yet"),
    ] {
        let text = port(value).unwrap_err().to_string();
        assert!(text.starts_with(&format!("-serial {value}: ")) && text.contains(named), "{text}");
    }
}
