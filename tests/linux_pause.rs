//! Whole machine, in this process: a guest that compiles on four CPUs is paused and resumed by two threads, thousands of
//! times. Nothing is lost, nothing hangs, and guest time stands still meanwhile.

mod harness;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use accel::{CpuArchState, CpuHandle, CpuState};
use bivisor::machine::{Blueprint, Board, Machine};
use bivisor::options::{self, Command};
use bivisor::run_state::{Occurrence, RunState};
use devices::backend::{BufferBackend, CharBackend};
use devices::system::SystemRequest;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use harness::guests::{fetch, path};
use harness::log::complaints;

/// A starved host makes it slow, never wrong.
const LIMIT: Duration = Duration::from_secs(900);

/// How often the machine is paused, unless `BIVISOR_PAUSES` says otherwise.
const PAUSES: u64 = 2000;

/// The longest that a thread lets the guest run between two pauses.
const LONGEST_RUN_US: u64 = 4000;

const LOCK: &str = "no thread panics with the stopwatch";

/// How long the machine has certainly stood still: from the return of a pause to the call of the resume, when at least one
/// thread was there.
#[derive(Default)]
struct Stopwatch {
    inside: usize,
    since: Option<Instant>,
    total: Duration,
}

impl Stopwatch {
    fn enter(&mut self) {
        self.inside += 1;
        self.since.get_or_insert_with(Instant::now);
    }

    fn leave(&mut self) {
        self.inside -= 1;
        if self.inside == 0
            && let Some(since) = self.since.take()
        {
            self.total += since.elapsed();
        }
    }
}

/// A running machine and what was seen of it.
struct Guest {
    machine: Machine,
    run_state: Arc<RunState>,
    console: Arc<BufferBackend>,
    started: Instant,
    still: Mutex<Stopwatch>,
    pauses: AtomicU64,
}

impl Guest {
    /// The machine that this command line means, set going.
    fn start(words: &[&str]) -> Self {
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
        let (still, pauses) = (Mutex::default(), AtomicU64::new(0));
        Self { machine, run_state, console, started, still, pauses }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.console.contents()).replace('\r', "")
    }

    fn cpus(&self) -> Vec<CpuHandle> {
        self.machine.lifecycle().cpus().cpus()
    }

    /// Drives time until `done`, which is asked at least every so often. Panics with all that is known when time is up, or
    /// when a CPU fails.
    fn run_until(&self, what: &str, mut done: impl FnMut(&Self, Option<Occurrence>) -> bool) {
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
            if self.started.elapsed() > LIMIT {
                self.fail(&format!("waited in vain for {what}"));
            }
        }
    }

    fn fail(&self, why: &str) -> ! {
        let cpus: Vec<_> = self.cpus().iter().map(CpuHandle::diagnosis).collect();
        let text = self.text();
        let lines: Vec<_> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(40)..].join("\n");
        let pauses = self.pauses.load(Ordering::Relaxed);
        panic!("{why}, after {pauses} pauses\n{}\n{last}", cpus.join("\n"));
    }

    /// All that the CPUs are, time-stamp counters included.
    fn look(&self) -> Vec<CpuArchState> {
        let state = |cpu: &CpuHandle| {
            cpu.run_on(|cpu| cpu.backend.state()).expect("the CPU is there").expect("its state")
        };
        self.cpus().iter().map(state).collect()
    }

    /// Pauses and resumes. `seed` makes the run's lengths.
    fn pause_and_resume(&self, pauses: u64, mut seed: u64) {
        let (lifecycle, clock) = (self.machine.lifecycle(), self.machine.clock());
        for round in 0..pauses {
            lifecycle.pause().expect("not a CPU's thread");
            self.still.lock().expect(LOCK).enter();
            let time = clock.now_ns();
            let before = round.is_multiple_of(16).then(|| self.look());
            if round.is_multiple_of(100) {
                std::thread::sleep(Duration::from_millis(30));
            } else {
                std::thread::yield_now();
            }
            for cpu in self.cpus() {
                assert_eq!(cpu.state(), CpuState::Stopped, "{cpu:?} in a pause");
            }
            if let Some(before) = before {
                assert!(self.look() == before, "a paused CPU has changed");
            }
            assert_eq!(clock.now_ns(), time, "time passes in a pause");
            self.still.lock().expect(LOCK).leave();
            lifecycle.resume().expect("not a CPU's thread");
            self.pauses.fetch_add(1, Ordering::Relaxed);
            // xorshift
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            std::thread::sleep(Duration::from_micros(seed % LONGEST_RUN_US));
        }
    }
}

#[test]
fn a_compiling_guest_is_paused_and_resumed_on_four_cpus() {
    if !fetch("a_compiling_guest_is_paused_and_resumed_on_four_cpus", &["cloud", "smp"]) {
        return;
    }
    let pauses = match std::env::var("BIVISOR_PAUSES") {
        Ok(number) => number.parse().expect("BIVISOR_PAUSES is a number"),
        Err(_) => PAUSES,
    };
    // One compilation lasts for some thousands.
    let jobs = vec!["compile:-O0"; usize::try_from(1 + pauses / 4000).expect("a 64-bit host")].join(",");
    let append = format!("console=ttyS0 reboot=t panic=-1 jobs={jobs}");
    let (kernel, initrd) = (path("vmlinuz-cloud"), path("smp.cpio"));
    #[rustfmt::skip]
    let words = [
        "-accel", "tcg", "-M", "microvm", "-m", "1024", "-smp", "4", "-kernel", &kernel, "-initrd", &initrd,
        "-append", &append, "-nographic",
    ];
    let guest = Arc::new(Guest::start(&words));
    guest.run_until("the compiler", |guest, _| guest.text().contains("BIVISOR-SMP-BEGIN compile"));

    let pausers = [0x9e37_79b9_7f4a_7c15, 0xd1b5_4a32_d192_ed03].map(|seed| {
        let guest = Arc::clone(&guest);
        std::thread::spawn(move || guest.pause_and_resume(pauses.div_ceil(2), seed))
    });
    guest.run_until("the pauses' end", |_, _| pausers.iter().all(std::thread::JoinHandle::is_finished));
    let paused = guest.started.elapsed();
    assert!(
        !guest.text().contains("BIVISOR-SMP-DONE"),
        "the guest was done before it had been paused enough"
    );
    for pauser in pausers {
        pauser.join().expect("no pause goes wrong");
    }

    guest.run_until("the power-off", |_, occurrence| {
        matches!(occurrence, Some(Occurrence::System(SystemRequest::PowerOff)))
    });
    guest.machine.lifecycle().pause().expect("not a CPU's thread");
    let (guest_time, still) =
        (Duration::from_nanos(guest.machine.clock().now_ns()), guest.still.lock().expect(LOCK).total);
    let elapsed = guest.started.elapsed();
    let pauses = guest.pauses.load(Ordering::Relaxed);
    println!(
        "{pauses} pauses: guest {guest_time:.2?}, paused at least {still:.2?}, in all {elapsed:.2?} ({paused:.2?})"
    );
    assert!(guest_time + still <= elapsed, "guest time: {guest_time:?} + {still:?} > {elapsed:?}");
    let text = guest.text();
    assert_eq!(
        text.matches("\nlua: 333338333350000\n").count(),
        text.matches("SMP-END compile:-O0 status=0").count()
    );
    assert!(text.contains("BIVISOR-SMP-DONE"), "{text}");
    assert!(!text.contains("status=1"), "{text}");
    let complaints = complaints(&text, &[]);
    assert!(complaints.is_empty(), "the log complains: {complaints:#?}");
}
