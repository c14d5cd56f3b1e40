//! Whole machine, in this process: a guest that compiles on four CPUs is paused and resumed by two threads, thousands of
//! times. Nothing is lost, nothing hangs, and guest time stands still meanwhile.

mod harness;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use accel::{CpuArchState, CpuHandle, CpuState};
use bivisor::run_state::Occurrence;
use devices::system::SystemRequest;

use harness::guests::{fetch, path};
use harness::in_process::Guest;
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

/// What was seen of a machine.
#[derive(Default)]
struct Pauses {
    still: Mutex<Stopwatch>,
    count: AtomicU64,
}

/// All that the CPUs are, time-stamp counters included.
fn look(guest: &Guest) -> Vec<CpuArchState> {
    let state = |cpu: &CpuHandle| {
        cpu.run_on(|cpu| cpu.backend.state()).expect("the CPU is there").expect("its state")
    };
    guest.cpus().iter().map(state).collect()
}

impl Pauses {
    /// Pauses and resumes. `seed` makes the run's lengths.
    fn pause_and_resume(&self, guest: &Guest, pauses: u64, mut seed: u64) {
        let (lifecycle, clock) = (guest.machine.lifecycle(), guest.machine.clock());
        for round in 0..pauses {
            lifecycle.pause().expect("not a CPU's thread");
            self.still.lock().expect(LOCK).enter();
            let time = clock.now_ns();
            let before = round.is_multiple_of(16).then(|| look(guest));
            if round.is_multiple_of(100) {
                std::thread::sleep(Duration::from_millis(30));
            } else {
                std::thread::yield_now();
            }
            for cpu in guest.cpus() {
                assert_eq!(cpu.state(), CpuState::Stopped, "{cpu:?} in a pause");
            }
            if let Some(before) = before {
                assert!(look(guest) == before, "a paused CPU has changed");
            }
            assert_eq!(clock.now_ns(), time, "time passes in a pause");
            self.still.lock().expect(LOCK).leave();
            lifecycle.resume().expect("not a CPU's thread");
            self.count.fetch_add(1, Ordering::Relaxed);
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
    let guest = Guest::start(&words, LIMIT);
    guest.run_until("the compiler", |guest, _| guest.text().contains("BIVISOR-SMP-BEGIN compile"));

    let seen = Pauses::default();
    std::thread::scope(|scope| {
        let pausers = [0x9e37_79b9_7f4a_7c15, 0xd1b5_4a32_d192_ed03].map(|seed| {
            let (seen, guest) = (&seen, &guest);
            scope.spawn(move || seen.pause_and_resume(guest, pauses.div_ceil(2), seed))
        });
        guest.run_until("the pauses' end", |_, _| pausers.iter().all(ScopedJoinHandle::is_finished));
    });
    let paused = guest.started.elapsed();
    assert!(
        !guest.text().contains("BIVISOR-SMP-DONE"),
        "the guest was done before it had been paused enough"
    );

    guest.run_until("the power-off", |_, occurrence| {
        matches!(occurrence, Some(Occurrence::System(SystemRequest::PowerOff)))
    });
    guest.machine.lifecycle().pause().expect("not a CPU's thread");
    let (guest_time, still) =
        (Duration::from_nanos(guest.machine.clock().now_ns()), seen.still.lock().expect(LOCK).total);
    let elapsed = guest.started.elapsed();
    let pauses = seen.count.load(Ordering::Relaxed);
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
