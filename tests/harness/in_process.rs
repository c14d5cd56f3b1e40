//! A machine in the test's own process: what no command line reaches is done to it through its handles.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use accel::CpuHandle;
use bivisor::machine::{Blueprint, Board, Machine};
use bivisor::options::{self, Command};
use bivisor::run_state::{Occurrence, RunState};
use devices::backend::{BufferBackend, CharBackend};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// A running machine and its console.
pub struct Guest {
    /// It.
    pub machine: Machine,
    /// When it was set going.
    pub started: Instant,
    run_state: Arc<RunState>,
    console: Arc<BufferBackend>,
    limit: Duration,
}

impl Guest {
    /// The machine that this command line means, set going. After `limit` nothing is waited for any more.
    pub fn start(words: &[&str], limit: Duration) -> Self {
        let Ok(Command::Run(options)) = options::parse(words.iter().map(Into::into)) else {
            panic!("the command line is wrong");
        };
        let boot = bivisor::boot::BootSource::open(
            &options.kernel,
            options.initrd.as_deref(),
            &options.append,
            options.memory_bytes,
        );
        let blueprint = Blueprint {
            machine: options.machine,
            memory_bytes: options.memory_bytes,
            memory_backend: None,
            topology: options.smp,
            cpu: options.cpu.clone(),
            boot: boot.expect("the kernel can be booted"),
            rtc: options.rtc,
            virtio: Vec::new(),
            firmware: bivisor::firmware::Firmware::default(),
            devices: options.devices.clone(),
        };
        let run_state = RunState::new().expect("an eventfd");
        let accelerator =
            bivisor::accelerator::choose(&options.accel, options.icount, |line| panic!("{line}"));
        let console = BufferBackend::new(4 << 20);
        let board =
            Board::new(blueprint, accelerator.expect("an engine"), Arc::clone(&run_state)).expect("a board");
        let serial = vec![Some(Arc::clone(&console) as Arc<dyn CharBackend>)];
        let machine = board.equip(serial).expect("a machine");
        let started = Instant::now();
        machine.start().expect("the machine starts");
        Self { machine, started, run_state, console, limit }
    }

    /// What the console has said, without carriage returns.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.console.contents()).replace('\r', "")
    }

    /// Its CPUs.
    pub fn cpus(&self) -> Vec<CpuHandle> {
        self.machine.lifecycle().cpus().cpus()
    }

    /// Drives time until `done`, which is asked at least every so often. Panics with all that is known when time is up, or
    /// when a CPU fails.
    pub fn run_until(&self, what: &str, mut done: impl FnMut(&Self, Option<Occurrence>) -> bool) {
        let epoll = Epoll::new().expect("an epoll");
        let clock = self.machine.clock();
        for fd in [Some(self.run_state.wakeup_fd()), clock.wakeup_fd()].into_iter().flatten() {
            epoll
                .ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0))
                .expect("epoll takes the descriptor");
        }
        let mut events = [EpollEvent::default(); 2];
        loop {
            match epoll.wait(100, &mut events) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => panic!("epoll: {error}"),
                _ => clock.run_expired(),
            }
            let occurrence = self.run_state.take();
            if let Some(Occurrence::Cpu(..)) = occurrence {
                self.fail(&format!("{occurrence:?}"));
            }
            if done(self, occurrence) {
                return;
            }
            if self.started.elapsed() > self.limit {
                self.fail(&format!("waited in vain for {what}"));
            }
        }
    }

    fn fail(&self, why: &str) -> ! {
        let cpus: Vec<_> = self.cpus().iter().map(CpuHandle::diagnosis).collect();
        let text = self.text();
        let lines: Vec<_> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(40)..].join("\n");
        panic!("{why}\n{}\n{last}", cpus.join("\n"));
    }
}
