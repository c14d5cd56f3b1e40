//! `-chardev` and `-serial`: what is behind character devices (QEMU, *Invocation*).

use std::path::PathBuf;
use std::time::Duration;

use super::error::{Context, OptionError};
use super::syntax::{self, Pair};

/// A host's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chardev {
    /// What devices call it.
    pub id: String,
    /// The option that made it, for messages.
    pub option: String,
    /// What it is.
    pub kind: ChardevKind,
    /// Several devices may share it, by the escape character.
    pub mux: bool,
    /// What guests send is copied there.
    pub log: Option<LogFile>,
}

/// A copy of what guests send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    /// The file.
    pub path: PathBuf,
    /// What is there stays.
    pub append: bool,
}

/// What a host's end is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChardevKind {
    /// Output is dropped; no input.
    Null,
    /// The program's standard input and output.
    Stdio {
        /// Ctrl-C and its like are signals to the program, not bytes to the guest.
        signal: bool,
    },
    /// Output goes to a file.
    File {
        /// The file.
        path: PathBuf,
        /// What is there stays.
        append: bool,
        /// Input comes from this one.
        input: Option<PathBuf>,
    },
    /// Two named pipes, `PATH.in` and `PATH.out`, or one for both.
    Pipe(PathBuf),
    /// A new pseudo-terminal, whose name is printed.
    Pty,
    /// The last bytes are kept.
    Ringbuf {
        /// How many: a power of two.
        bytes: usize,
    },
    /// A connection.
    Socket(Socket),
}

/// A connection, and who makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Where.
    pub place: Place,
    /// The other side connects.
    pub server: bool,
    /// The guest begins when somebody has connected.
    pub wait: bool,
    /// Small packets are not delayed.
    pub nodelay: bool,
    /// A client tries again after so long.
    pub reconnect: Option<Duration>,
}

/// Where a socket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the file system.
    Unix(PathBuf),
    /// In Linux's abstract name space.
    Abstract(String),
    /// TCP.
    Tcp {
        /// A name or an address.
        host: String,
        /// The port; 0: any.
        port: u16,
        /// IPv4 may be used.
        ipv4: bool,
        /// IPv6 may be used.
        ipv6: bool,
    },
}

/// Behind a serial port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SerialChoice {
    /// There is no such port.
    None,
    /// A host's end that is there, or will be.
    Named(String),
    /// One of its own.
    Own(Chardev),
}

/// Properties of all kinds.
const COMMON: &[&str] = &["id", "mux", "logfile", "logappend"];

/// The properties of a kind, and those that QEMU has besides; `None`: there is no such kind.
fn properties(kind: &str) -> Option<(&'static [&'static str], &'static [&'static str])> {
    Some(match kind {
        "null" | "pty" => (&[], &["path"]),
        "stdio" => (&["signal"], &[]),
        "file" => (&["path", "append", "input-path"], &[]),
        "pipe" => (&["path"], &[]),
        "ringbuf" | "memory" => (&["size"], &[]),
        "socket" => (
            &[
                "path",
                "host",
                "port",
                "server",
                "wait",
                "nodelay",
                "reconnect",
                "reconnect-ms",
                "abstract",
                "ipv4",
                "ipv6",
            ],
            &[
                "telnet",
                "tn3270",
                "websocket",
                "tls-creds",
                "tls-authz",
                "fd",
                "to",
                "tight",
                "keep-alive",
                "mptcp",
            ],
        ),
        _ => return None,
    })
}

/// The kinds that QEMU has besides.
const OTHER_KINDS: &[&str] = &[
    "braille",
    "console",
    "dbus",
    "hub",
    "msmouse",
    "parallel",
    "parport",
    "serial",
    "spiceport",
    "spicevmc",
    "testdev",
    "tty",
    "udp",
    "vc",
    "wctablet",
];

/// Reads the argument of `-chardev`.
pub fn chardev(context: Context) -> Result<Chardev, OptionError> {
    let mut pairs = syntax::pairs(context.value, "backend");
    let first = pairs.remove(0);
    if first.key != "backend" {
        return Err(context.bad("the kind of character device comes first"));
    }
    let kind = first.value;
    let Some((built, not_built)) = properties(&kind) else {
        return Err(if OTHER_KINDS.contains(&kind.as_str()) {
            context.not_built(&kind)
        } else {
            context.bad(format!("no character device '{kind}' (see -chardev help)"))
        });
    };
    for pair in &pairs {
        if not_built.contains(&pair.key.as_str()) {
            return Err(context.not_built(&pair.key));
        }
        let known = || COMMON.iter().chain(built).copied();
        if !known().any(|name| name == pair.key) {
            return Err(context.unknown_of(&pair.key, known()));
        }
    }
    let id = last(&pairs, "id").ok_or_else(|| context.bad("needs id=, which names it for a device"))?;
    if !is_name(id) {
        return Err(context.bad("id= takes a letter, then letters, digits, '-', '.' and '_'"));
    }
    let log = last(&pairs, "logfile").map(PathBuf::from);
    let append = switch(context, &pairs, "logappend", false)?;
    Ok(Chardev {
        id: id.into(),
        option: format!("{} {}", context.option, context.value),
        kind: read_kind(context, &kind, &pairs)?,
        mux: switch(context, &pairs, "mux", false)?,
        log: log.map(|path| LogFile { path, append }),
    })
}

fn read_kind(context: Context, kind: &str, pairs: &[Pair]) -> Result<ChardevKind, OptionError> {
    let path = || {
        let path = last(pairs, "path").filter(|path| !path.is_empty());
        path.map(PathBuf::from).ok_or_else(|| context.bad("needs path=FILE"))
    };
    Ok(match kind {
        "null" => ChardevKind::Null,
        "pty" => ChardevKind::Pty,
        "stdio" => ChardevKind::Stdio { signal: switch(context, pairs, "signal", true)? },
        "file" => ChardevKind::File {
            path: path()?,
            append: switch(context, pairs, "append", false)?,
            input: last(pairs, "input-path").map(PathBuf::from),
        },
        "pipe" => ChardevKind::Pipe(path()?),
        "socket" => ChardevKind::Socket(socket(context, pairs)?),
        _ => {
            let size = last(pairs, "size").map_or(Some(DEFAULT_RING_BYTES), |size| syntax::size(size, 1));
            let bytes = size.filter(|size| size.is_power_of_two() && *size <= MOST_RING_BYTES);
            let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok());
            ChardevKind::Ringbuf {
                bytes: bytes.ok_or_else(|| context.bad("size= takes a power of two, up to 1G"))?,
            }
        }
    })
}

const DEFAULT_RING_BYTES: u64 = 64 << 10;
const MOST_RING_BYTES: u64 = 1 << 30;

fn socket(context: Context, pairs: &[Pair]) -> Result<Socket, OptionError> {
    let path = last(pairs, "path").filter(|path| !path.is_empty());
    let port = last(pairs, "port");
    let is_abstract = switch(context, pairs, "abstract", false)?;
    let place = match (path, port) {
        (Some(_), Some(_)) => return Err(context.bad("path= and port= exclude each other")),
        (None, None) => return Err(context.bad("needs path=SOCKET, or host= and port=")),
        (Some(path), None) if is_abstract => Place::Abstract(path.into()),
        (Some(path), None) => Place::Unix(path.into()),
        (None, Some(_)) if is_abstract => return Err(context.bad("abstract=on needs path=NAME")),
        (None, Some(port)) => Place::Tcp {
            host: last(pairs, "host").unwrap_or("").into(),
            port: port.parse().map_err(|_| context.bad("port= takes 0 to 65535"))?,
            ipv4: switch(context, pairs, "ipv4", last(pairs, "ipv6").is_none_or(|_| false))?,
            ipv6: switch(context, pairs, "ipv6", last(pairs, "ipv4").is_none_or(|_| false))?,
        },
    };
    if let Place::Tcp { ipv4: false, ipv6: false, .. } = place {
        return Err(context.bad("neither ipv4= nor ipv6= is on"));
    }
    let server = switch(context, pairs, "server", false)?;
    if !server && last(pairs, "wait").is_some() {
        return Err(context.bad("wait= is for server=on"));
    }
    let number = |key, unit| match last(pairs, key) {
        None => Ok(None),
        Some(text) => {
            let number = text.parse::<u32>().map_err(|_| context.bad(format!("{key}= takes a number")))?;
            Ok(Some(Duration::from_millis(u64::from(number) * unit)).filter(|delay| !delay.is_zero()))
        }
    };
    let reconnect = number("reconnect", 1000)?.or(number("reconnect-ms", 1)?);
    if server && reconnect.is_some() {
        return Err(context.bad("reconnect= is for clients, not for server=on"));
    }
    Ok(Socket {
        place,
        server,
        wait: server && switch(context, pairs, "wait", true)?,
        nodelay: switch(context, pairs, "nodelay", false)?,
        reconnect,
    })
}

/// Reads the argument of `-serial`, of which this is the `index`th.
pub fn serial(context: Context, index: usize) -> Result<SerialChoice, OptionError> {
    let own = |kind, mux| {
        let option = format!("{} {}", context.option, context.value);
        Ok(SerialChoice::Own(Chardev { id: label(index), option, kind, mux, log: None }))
    };
    let value = context.value.strip_prefix("mon:").unwrap_or(context.value);
    // `mon:` shares it with the monitor, whose place the escape character keeps.
    let mux = value != context.value;
    let (kind, rest) = value.split_once(':').map_or((value, None), |(kind, rest)| (kind, Some(rest)));
    match (kind, rest) {
        // With the escape character and without signals, whether `mon:` was said or not.
        ("stdio", None) => Ok(SerialChoice::Own(stdio(index))),
        ("null", None) => own(ChardevKind::Null, mux),
        ("none", None) if !mux => Ok(SerialChoice::None),
        ("pty", None) => own(ChardevKind::Pty, mux),
        ("ringbuf", None) => own(ChardevKind::Ringbuf { bytes: DEFAULT_RING_BYTES as usize }, mux),
        ("chardev", Some(id)) if !mux && !id.is_empty() => Ok(SerialChoice::Named(id.into())),
        ("file", Some(path)) if !path.is_empty() => {
            own(ChardevKind::File { path: path.into(), append: false, input: None }, mux)
        }
        ("pipe", Some(path)) if !path.is_empty() => own(ChardevKind::Pipe(path.into()), mux),
        ("chardev", _) => Err(context.bad("needs the name of a -chardev, chardev:NAME")),
        ("file" | "pipe", _) => Err(context.bad(format!("needs a path, {kind}:PATH"))),
        ("unix" | "tcp", rest) => {
            own(ChardevKind::Socket(short_socket(context, kind, rest.unwrap_or(""))?), mux)
        }
        ("telnet" | "websocket" | "udp" | "vc" | "con" | "msmouse" | "braille" | "spicevmc", _) => {
            Err(context.not_built(kind))
        }
        _ if kind.starts_with("vc") || kind.starts_with("/dev/") => Err(context.not_built(kind)),
        _ => Err(context.bad(
            "takes stdio, null, none, file:PATH, pty, pipe:PATH, unix:PATH, tcp:HOST:PORT or chardev:NAME",
        )),
    }
}

/// COM1 and on, in messages and for `chardev:`.
pub fn label(index: usize) -> String {
    format!("serial{index}")
}

/// A serial port on the terminal.
pub fn stdio(index: usize) -> Chardev {
    Chardev {
        id: label(index),
        option: "-serial stdio".into(),
        kind: ChardevKind::Stdio { signal: false },
        mux: true,
        log: None,
    }
}

/// Output that goes nowhere.
pub fn null(index: usize) -> Chardev {
    Chardev { kind: ChardevKind::Null, mux: false, option: "-serial null".into(), ..stdio(index) }
}

/// `unix:PATH[,...]`, `tcp:[HOST]:PORT[,...]`: the properties are a socket's.
fn short_socket(context: Context, kind: &str, rest: &str) -> Result<Socket, OptionError> {
    let mut pairs = syntax::pairs(rest, "path");
    let first = pairs.remove(0);
    let place = match first.key.as_str() {
        "path" => first.value,
        // A path with an equals sign.
        key => format!("{key}={}", first.value),
    };
    const SHORT: &[&str] =
        &["server", "wait", "nowait", "nodelay", "reconnect", "reconnect-ms", "abstract", "ipv4", "ipv6"];
    if let Some(pair) = pairs.iter().find(|pair| !SHORT.contains(&pair.key.as_str())) {
        return Err(context.unknown_of(&pair.key, SHORT.iter().copied()));
    }
    for pair in &mut pairs {
        if pair.key == "nowait" {
            *pair = Pair { key: "wait".into(), value: "off".into() };
        }
    }
    let mut add = |key: &str, value: &str| pairs.push(Pair { key: key.into(), value: value.into() });
    if kind == "unix" {
        if place.is_empty() {
            return Err(context.bad("needs a path, unix:PATH"));
        }
        add("path", &place);
    } else {
        let (host, port) = place.rsplit_once(':').ok_or_else(|| context.bad("needs tcp:[HOST]:PORT"))?;
        add("host", host);
        add("port", port);
    }
    socket(context, &pairs)
}

fn last<'a>(pairs: &'a [Pair], key: &str) -> Option<&'a str> {
    pairs.iter().rev().find(|pair| pair.key == key).map(|pair| pair.value.as_str())
}

fn switch(context: Context, pairs: &[Pair], key: &str, default: bool) -> Result<bool, OptionError> {
    match last(pairs, key) {
        None => Ok(default),
        Some(text) => syntax::on_off(text).ok_or_else(|| context.bad(format!("{key}= takes on or off"))),
    }
}

/// Whether something may be called so.
fn is_name(id: &str) -> bool {
    id.starts_with(|c: char| c.is_ascii_alphabetic())
        && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
}

impl Chardev {
    /// Whether something may come from it that no run has as the one before.
    pub fn has_input(&self) -> bool {
        match &self.kind {
            ChardevKind::Null | ChardevKind::Ringbuf { .. } | ChardevKind::File { input: None, .. } => false,
            ChardevKind::Stdio { .. } | ChardevKind::Pty | ChardevKind::Pipe(_) | ChardevKind::Socket(_) => {
                true
            }
            ChardevKind::File { input: Some(_), .. } => true,
        }
    }

    /// How many devices it serves at most.
    pub fn most_devices(&self) -> usize {
        if self.mux { MOST_SHARES } else { 1 }
    }
}

/// Says what is wrong with `chardevs` as `users` (each with the name of what it uses) use them.
pub fn check(chardevs: &[Chardev], users: &[(String, String)]) -> Result<(), OptionError> {
    for (index, chardev) in chardevs.iter().enumerate() {
        if chardevs[..index].iter().any(|other| other.id == chardev.id) {
            return Err(OptionError::ChardevTwice(chardev.id.clone()));
        }
        let (uses, most) = (users.iter().filter(|(_, id)| *id == chardev.id).count(), chardev.most_devices());
        if uses > most {
            return Err(OptionError::ChardevTaken { chardev: chardev.id.clone(), most });
        }
    }
    if chardevs.iter().filter(|chardev| matches!(chardev.kind, ChardevKind::Stdio { .. })).count() > 1 {
        return Err(OptionError::StdioTaken);
    }
    match users.iter().find(|(_, id)| chardevs.iter().all(|chardev| chardev.id != *id)) {
        Some((device, id)) => Err(OptionError::NoChardev { device: device.clone(), chardev: id.clone() }),
        None => Ok(()),
    }
}

/// QEMU's.
const MOST_SHARES: usize = 4;

/// The text of `-chardev help`.
pub const HELP: &str = "\
Character devices (all take mux=on|off, which shares one among devices by the escape character, and
logfile=FILE[,logappend=on], which copies what guests send):
  null                                         takes everything, says nothing
  stdio[,signal=on|off]                        standard input and output
  file,path=FILE[,append=on][,input-path=FILE] a file
  pipe,path=PIPE                               the named pipes PIPE.in and PIPE.out, or PIPE
  pty                                          a new pseudo-terminal, whose name is printed
  ringbuf[,size=BYTES]                         keeps the last bytes
  socket,path=SOCKET|host=HOST,port=PORT[,server=on[,wait=off]][,abstract=on][,nodelay=on][,reconnect=SECONDS]
         [,reconnect-ms=N][,ipv4=on|off][,ipv6=on|off]
";

#[cfg(test)]
mod tests;
