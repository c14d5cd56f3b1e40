//! One run of a guest, from the options to the exit status.

mod crash_report;
mod last_words;
mod main_loop;
mod walk;

use std::error::Error;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use devices::backend::{BufferBackend, CharBackend, TeeBackend};

use self::main_loop::{MainLoop, Outcome};
use crate::accelerator::{self, AccelError, chain};
use crate::back_ends::{self, ConnectError};
use crate::boot::error::BootError;
use crate::boot::{BootSource, Randomness};
use crate::chardevs::{self, ChardevError, Chardevs};
use crate::disks::{self, DiskError};
use crate::firmware::{self, FirmwareError};
use crate::log::Log;
use crate::machine::{Blueprint, Board, Machine, MachineError};
use crate::networks::{NetworkError, Networks};
use crate::options::Options;
use crate::options::log::LogItem;
use crate::run_state::{Phase, RunState};
use crate::shares::{self, SharesError};
use crate::sockets::{Sockets, VsockError};
use crate::{exit_code, signals, tell, writable};

/// Why a guest could not be run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The kernel cannot be booted.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// There is no engine.
    #[error(transparent)]
    Accel(#[from] AccelError),
    /// A disk's image cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// What the guest is told of its machine cannot be read.
    #[error(transparent)]
    Firmware(#[from] FirmwareError),
    /// The machine cannot be built.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A character device has no host's end.
    #[error(transparent)]
    Chardev(#[from] ChardevError),
    /// A network cannot be had.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A vhost-user device has nobody who does its work.
    #[error(transparent)]
    BackEnd(#[from] ConnectError),
    /// A vsock device has no host's end.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// A folder cannot be shared.
    #[error(transparent)]
    Share(#[from] SharesError),
    /// A file cannot be written.
    #[error("{option} {}", path.display())]
    Create {
        /// The option that named it.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// The host's answer.
        source: std::io::Error,
    },
    /// The host refused something that every host has.
    #[error("{what}")]
    Host {
        /// What.
        what: &'static str,
        /// The host's answer.
        source: std::io::Error,
    },
}

/// How the process ends after a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With this exit status.
    Status(u8),
    /// By this signal, so that the parent sees why.
    Signal(i32),
}

/// Prints `error` with its causes on one line.
pub fn complain(error: &dyn Error) {
    tell::line(chain(error));
}

/// Runs a guest to its end; the exit status. Everything that can be refused is refused before a file is created.
pub fn run(options: &Options, log: &Log) -> Result<Ending, RunError> {
    for line in &options.unheard {
        tell::line(format_args!("warning: {line}"));
    }
    let host = |what| move |source| RunError::Host { what, source };
    let boot =
        BootSource::open(&options.kernel, options.initrd.as_deref(), &options.append, options.memory_bytes)?;
    let randomness = if options.icount.is_some() { Randomness::None } else { Randomness::OfHost };
    let boot = boot.with_randomness(randomness);
    let networks = Networks::open(&options.networks)?;
    let shares = shares::open(&options.shares)?;
    let virtio = disks::open(options, networks.backends(), &shares)?;
    let vsock_sockets = Sockets::of(&virtio);
    let firmware = firmware::open(options)?;
    let accelerator = accelerator::choose(&options.accel, options.icount, tell::line)?;
    let run_state = RunState::new().map_err(host("eventfd"))?;
    signals::install().map_err(host("signal handlers"))?;
    let mut blueprint = Blueprint {
        machine: options.machine,
        memory_bytes: options.memory_bytes,
        memory_backend: options.memory_backend.clone(),
        topology: options.smp,
        cpu: options.cpu.clone(),
        boot,
        rtc: options.rtc,
        devices: options.devices.clone(),
        virtio,
        firmware,
    };
    check_files(options)?;
    let mut sockets = chardevs::bind(&options.chardevs)?;
    back_ends::connect(&mut blueprint.virtio, &mut sockets)?;
    let mut board = Board::new(blueprint, accelerator, Arc::clone(&run_state))?;

    vsock_sockets.bind()?;
    if let Some(path) = &options.log_file {
        log.redirect(create("-D", path)?);
    }
    let _pidfile = options.pidfile.as_deref().map(PidFile::create).transpose()?;
    name_process(options);
    let quit = Arc::clone(&run_state);
    let Some(mut chardevs) = chardevs::open(options, sockets, move || quit.quit())? else {
        let signal = signals::received().unwrap_or(libc::SIGTERM);
        return Ok(ended_by(signal));
    };
    let mut ends = Ends::new(options, &mut chardevs);
    board.connect_ports(|chardev, is_console| ends.port(chardevs.front(chardev), is_console));
    let machine = board.equip(ends.serial)?;
    let mut main_loop = MainLoop::new(&machine, &run_state, options).map_err(host("event loop"))?;
    chardevs.start()?;
    machine.start()?;
    run_state.enter(Phase::Running);
    let outcome = main_loop.run();
    if options.log.contains(&LogItem::Jit) {
        last_words::log_statistics(&machine);
    }
    if options.log.contains(&LogItem::Icount) {
        last_words::log_icount(&machine);
    }

    machine.flush_disks();
    chardevs.close();
    for uart in machine.serial().iter().flatten() {
        uart.flush();
    }
    drop(chardevs);
    let ending = finish(&outcome, &machine, &ends.tails);
    drop(main_loop);
    // A CPU may be stuck in its engine. Its thread is not waited for: it ends with the process.
    std::mem::forget(machine);
    Ok(ending)
}

/// Says what there is to say, and how the program ends.
fn finish(outcome: &Outcome, machine: &Machine, tails: &[Tail]) -> Ending {
    Ending::Status(match outcome {
        Outcome::PowerOff | Outcome::Reset | Outcome::Quit => exit_code::SUCCESS,
        Outcome::GuestStatus(status) => *status,
        Outcome::Signal(signal) => return ended_by(*signal),
        Outcome::Failed(error) => {
            complain(&**error);
            exit_code::ERROR
        }
        Outcome::Stopped(stop) => {
            tell::text_as_is(&crash_report::text(stop, machine.memory(), tails));
            stop.exit_code()
        }
    })
}

fn ended_by(signal: i32) -> Ending {
    tell::line(format_args!("terminated by signal {signal}"));
    Ending::Signal(signal)
}

/// Refuses a file that cannot be written before the first one is created or truncated.
fn check_files(options: &Options) -> Result<(), RunError> {
    for (option, path) in [("-D", &options.log_file), ("-pidfile", &options.pidfile)] {
        if let Some(path) = path {
            writable::check(path).map_err(|source| RunError::Create {
                option,
                path: path.clone(),
                source,
            })?;
        }
    }
    chardevs::check_files(&options.chardevs)?;
    Ok(())
}

fn create(option: &'static str, path: &Path) -> Result<File, RunError> {
    File::create(path).map_err(|source| RunError::Create { option, path: path.into(), source })
}

/// The process's name in `ps`, as QEMU sets it.
fn name_process(options: &Options) {
    if let Some(name) = &options.process_name {
        // Only its looks: a /proc that is not there is no reason to stop.
        if let Err(error) = std::fs::write("/proc/self/comm", name) {
            tracing::warn!(%error, "-name process= has no effect");
        }
    }
}

/// The file of `-pidfile`, removed when the program ends.
struct PidFile(PathBuf);

impl PidFile {
    fn create(path: &Path) -> Result<Self, RunError> {
        let error = |source| RunError::Create { option: "-pidfile", path: path.into(), source };
        std::fs::write(path, format!("{}\n", std::process::id())).map_err(error)?;
        Ok(Self(path.into()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// How much of what the guest last said is kept for the report of a crash.
const TAIL_BYTES: usize = 16 << 10;

/// A console's name and what was last said there.
type Tail = (String, Arc<BufferBackend>);

/// The host's ends of the consoles.
#[derive(Default)]
struct Ends {
    /// COM1 to COM4.
    serial: Vec<Option<Arc<dyn CharBackend>>>,
    tails: Vec<Tail>,
}

impl Ends {
    fn new(options: &Options, chardevs: &mut Chardevs) -> Self {
        let mut ends = Self::default();
        for (number, chardev) in (1..).zip(&options.serial) {
            let front = chardev.as_ref().map(|chardev| chardevs.front(chardev));
            let end = front.map(|front| ends.with_tail(format!("COM{number}"), front));
            ends.serial.push(end);
        }
        ends
    }

    /// What is behind a port is `front`; what a console said last is kept.
    fn port(&mut self, front: Arc<dyn CharBackend>, is_console: bool) -> Arc<dyn CharBackend> {
        if !is_console {
            return front;
        }
        let number = self.tails.iter().filter(|(name, _)| name.starts_with("hvc")).count();
        self.with_tail(format!("hvc{number}"), front)
    }

    fn with_tail(&mut self, name: String, front: Arc<dyn CharBackend>) -> Arc<dyn CharBackend> {
        let tail = BufferBackend::new(TAIL_BYTES);
        self.tails.push((name, Arc::clone(&tail)));
        Arc::new(TeeBackend::new(front, tail))
    }
}
