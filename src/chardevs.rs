//! The host's ends of character devices, opened for a run.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use devices::backend::chardev::pty::Pty;
use devices::backend::chardev::{
    Address, CharThread, Client, Command, ConnectError, Driver, Mux, Server, Stream, Writer,
};
use devices::backend::{BufferBackend, CharBackend, FileBackend, NullBackend, TeeBackend};

use crate::options::Options;
use crate::options::chardev::{Chardev, ChardevKind, Place, Socket};
use crate::terminal::{self, RawTerminal};
use crate::{signals, tell, writable};

/// Why a character device has no host's end.
#[derive(Debug, thiserror::Error)]
pub enum ChardevError {
    /// A file cannot be used.
    #[error("{option}: {}", path.display())]
    File {
        /// The option that named it.
        option: String,
        /// The file.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// The host refused a descriptor.
    #[error("{option}")]
    Host {
        /// The option.
        option: String,
        /// The host's answer.
        source: io::Error,
    },
    /// A socket cannot be had.
    #[error("{option}")]
    Socket {
        /// The option.
        option: String,
        /// Why.
        source: ConnectError,
    },
    /// A name that is none, or has no address of the kind that was asked for.
    #[error("{option}: host '{host}' has no address to use")]
    NoAddress {
        /// The option.
        option: String,
        /// The name.
        host: String,
    },
}

/// Says which file cannot be used; touches none.
pub fn check_files(chardevs: &[Chardev]) -> Result<(), ChardevError> {
    for chardev in chardevs {
        let log = chardev.log.iter().map(|log| &log.path);
        let (written, read) = match &chardev.kind {
            ChardevKind::File { path, input, .. } => (Some(path), input.as_ref()),
            _ => (None, None),
        };
        for path in written.into_iter().chain(log) {
            writable::check(path).map_err(|source| file_error(chardev, path, source))?;
        }
        if let Some(path) = read {
            open_input(path).map_err(|source| file_error(chardev, path, source))?;
        }
    }
    Ok(())
}

/// A socket that is bound, or connected, or will be.
pub enum Bound {
    /// The other side connects.
    Server(Server),
    /// We do, and perhaps have.
    Client(Client, Option<File>),
}

/// Binds and connects the sockets, to be found by their names: before any file is created.
pub fn bind(chardevs: &[Chardev]) -> Result<BTreeMap<String, Bound>, ChardevError> {
    let mut bound = BTreeMap::new();
    for chardev in chardevs {
        if let ChardevKind::Socket(socket) = &chardev.kind {
            bound.insert(chardev.id.clone(), bind_socket(chardev, socket)?);
        }
    }
    Ok(bound)
}

fn bind_socket(chardev: &Chardev, socket: &Socket) -> Result<Bound, ChardevError> {
    let option = &chardev.option;
    let error = |source| ChardevError::Socket { option: option.clone(), source };
    let mut last = None;
    for address in addresses(option, socket)? {
        let bound = if socket.server {
            Server::new(address, socket.nodelay).map(Bound::Server)
        } else {
            let client = Client::new(address, socket.nodelay, socket.reconnect);
            let client = client.map_err(|source| ChardevError::Host { option: option.clone(), source })?;
            match socket.reconnect {
                // It need not be there yet.
                Some(_) => Ok(Bound::Client(client, None)),
                None => client.connect_now().map(|file| Bound::Client(client, Some(file))),
            }
        };
        match bound {
            Ok(bound) => return Ok(bound),
            Err(error) => last = Some(error),
        }
    }
    Err(error(last.expect("there is an address at least")))
}

/// One at least.
fn addresses(option: &str, socket: &Socket) -> Result<Vec<Address>, ChardevError> {
    let (host, port, ipv4, ipv6) = match &socket.place {
        Place::Unix(path) => return Ok(vec![Address::Unix(path.clone())]),
        Place::Abstract(name) => return Ok(vec![Address::Abstract(name.clone())]),
        Place::Tcp { host, port, ipv4, ipv6 } => (host.as_str(), *port, *ipv4, *ipv6),
    };
    let wanted = |address: &SocketAddr| if address.is_ipv4() { ipv4 } else { ipv6 };
    let found: Vec<_> = match (host, socket.server) {
        // Everybody may connect; QEMU's words for it are the same.
        ("", true) => vec![SocketAddr::from(([0; 4], port)), SocketAddr::from(([0u16; 8], port))],
        ("", false) => vec![SocketAddr::from(([127, 0, 0, 1], port))],
        (host, _) => {
            let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            (host, port).to_socket_addrs().map(Iterator::collect).unwrap_or_default()
        }
    };
    let usable: Vec<_> = found.into_iter().filter(wanted).map(Address::Tcp).collect();
    if usable.is_empty() {
        return Err(ChardevError::NoAddress { option: option.into(), host: host.into() });
    }
    Ok(usable)
}

/// The host's ends of one run.
#[derive(Default)]
pub struct Chardevs {
    /// For each device that uses one, by its name.
    fronts: BTreeMap<String, VecDeque<Arc<dyn CharBackend>>>,
    streams: Vec<Arc<Stream>>,
    drivers: Vec<Driver>,
    thread: Option<CharThread>,
    /// Raw mode as long as they are there.
    raw: Option<RawTerminal>,
}

/// Opens them, and waits for clients where that is asked for; `quit` is called when a user wants the program to end. `None`: a
/// signal has come while it waited.
pub fn open(
    options: &Options,
    mut bound: BTreeMap<String, Bound>,
    quit: impl Fn() + Clone + Send + Sync + 'static,
) -> Result<Option<Chardevs>, ChardevError> {
    let mut opened = Chardevs::default();
    for chardev in &options.chardevs {
        let is_taken = matches!(chardev.kind, ChardevKind::Socket(_)) && !bound.contains_key(&chardev.id);
        if is_taken {
            // A vhost-user device's.
            continue;
        }
        let Some(mut main) = opened.open(chardev, bound.remove(&chardev.id))? else { return Ok(None) };
        if let Some(log) = &chardev.log {
            let file = create(chardev, &log.path, log.append)?;
            main = Arc::new(TeeBackend::new(main, Arc::new(FileBackend::new(file))));
        }
        let users = options.chardev_users().filter(|user| *user == chardev.id).count();
        let fronts = match (chardev.mux, users) {
            (true, 1..) => {
                let quit = quit.clone();
                let fronts = Mux::share(main, users, options.escape, move |Command::Quit| quit());
                fronts.into_iter().map(|front| front as Arc<dyn CharBackend>).collect()
            }
            _ => VecDeque::from([main]),
        };
        opened.fronts.insert(chardev.id.clone(), fronts);
    }
    Ok(Some(opened))
}

impl Chardevs {
    /// The host's end `id`, for one device more. The options are consistent.
    pub fn front(&mut self, id: &str) -> Arc<dyn CharBackend> {
        self.fronts.get_mut(id).and_then(VecDeque::pop_front).expect("each device's share has been counted")
    }

    /// Input comes from now on. All devices are there.
    pub fn start(&mut self) -> Result<(), ChardevError> {
        let drivers = std::mem::take(&mut self.drivers);
        if !drivers.is_empty() {
            let error = |source| ChardevError::Host { option: "-chardev: a thread".into(), source };
            self.thread = Some(CharThread::start(drivers).map_err(error)?);
        }
        Ok(())
    }

    /// Nobody waits for a reader any more.
    pub fn close(&self) {
        self.streams.iter().for_each(|stream| stream.close());
    }

    fn open(
        &mut self,
        chardev: &Chardev,
        bound: Option<Bound>,
    ) -> Result<Option<Arc<dyn CharBackend>>, ChardevError> {
        let host = |source| ChardevError::Host { option: chardev.option.clone(), source };
        Ok(Some(match &chardev.kind {
            ChardevKind::Null => Arc::new(NullBackend),
            ChardevKind::Ringbuf { bytes } => BufferBackend::new(*bytes),
            ChardevKind::Stdio { signal } => self.stdio(chardev, *signal).map_err(host)?,
            ChardevKind::Pty => self.pty(chardev).map_err(host)?,
            ChardevKind::File { path, append, input } => {
                let output = create(chardev, path, *append)?;
                let input = input
                    .as_ref()
                    .map(|input| open_input(input).map_err(|source| file_error(chardev, input, source)));
                let input = input.transpose()?;
                if input.is_none() && output.metadata().is_ok_and(|output| output.is_file()) {
                    Arc::new(FileBackend::new(output))
                } else {
                    self.fixed(chardev, Writer::Blocking(output), input).map_err(host)?
                }
            }
            ChardevKind::Pipe(path) => {
                let (input, output) = open_pipe(path).map_err(|source| file_error(chardev, path, source))?;
                self.fixed(chardev, Writer::NonBlocking(output), Some(input)).map_err(host)?
            }
            ChardevKind::Socket(socket) => match bound.expect("sockets were bound") {
                Bound::Client(client, first) => {
                    let stream = Stream::new(&chardev.id, None).map_err(host)?;
                    self.drivers.push(Driver::client(Arc::clone(&stream), client, first).map_err(host)?);
                    self.add(stream)
                }
                Bound::Server(server) => {
                    let first = if socket.wait {
                        tell::line(format_args!("waiting for a connection on {}", server.address()));
                        let client = server.wait_for_client(signals::wakeup_fd()).map_err(host)?;
                        let Some(client) = client else { return Ok(None) };
                        Some(client)
                    } else {
                        None
                    };
                    let stream = Stream::new(&chardev.id, None).map_err(host)?;
                    self.drivers.push(Driver::server(Arc::clone(&stream), server, first).map_err(host)?);
                    self.add(stream)
                }
            },
        }))
    }

    fn add(&mut self, stream: Arc<Stream>) -> Arc<dyn CharBackend> {
        self.streams.push(Arc::clone(&stream));
        stream
    }

    fn fixed(
        &mut self,
        chardev: &Chardev,
        output: Writer,
        input: Option<File>,
    ) -> io::Result<Arc<dyn CharBackend>> {
        let stream = Stream::new(&chardev.id, Some(output))?;
        self.drivers.push(Driver::fixed(Arc::clone(&stream), input));
        Ok(self.add(stream))
    }

    fn stdio(&mut self, chardev: &Chardev, signal: bool) -> io::Result<Arc<dyn CharBackend>> {
        let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        self.raw = terminal::enter_raw_mode(&input, signal)?;
        self.fixed(chardev, Writer::Blocking(output), Some(input))
    }

    fn pty(&mut self, chardev: &Chardev) -> io::Result<Arc<dyn CharBackend>> {
        let pty = Pty::open()?;
        // QEMU's words, which scripts look for.
        let (name, label) = (pty.name().display(), &chardev.id);
        tell::text_as_is(&format!("char device redirected to {name} (label {label})\n"));
        let master = pty.into_master();
        let stream = Stream::new(&chardev.id, Some(Writer::Terminal(master.try_clone()?)))?;
        self.drivers.push(Driver::terminal(Arc::clone(&stream), master)?);
        Ok(self.add(stream))
    }
}

fn file_error(chardev: &Chardev, path: &Path, source: io::Error) -> ChardevError {
    ChardevError::File { option: chardev.option.clone(), path: path.into(), source }
}

/// As QEMU does, from the beginning unless it is to be appended to.
fn create(chardev: &Chardev, path: &Path, append: bool) -> Result<File, ChardevError> {
    let mut options = File::options();
    options.create(true);
    if append {
        options.append(true)
    } else {
        options.write(true).truncate(true)
    };
    options.open(path).map_err(|source| file_error(chardev, path, source))
}

/// Without waiting for the writer of a named pipe.
fn open_input(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

/// The way in and the way out. Open both ways, so that it neither waits for the other side nor ends with it.
fn open_pipe(path: &Path) -> io::Result<(File, File)> {
    let open = |path: &Path| File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path);
    let with = |end: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(end);
        open(Path::new(&name))
    };
    match (with(".in"), with(".out")) {
        (Ok(input), Ok(output)) => Ok((input, output)),
        _ => {
            let both = open(path)?;
            Ok((both.try_clone()?, both))
        }
    }
}
