//! Cases of the CPU throttle.

use std::time::{Duration, Instant};

use super::control::spin;
use super::rig::Rig;
use super::storms::count;

/// What guests have done in some stretches of time.
#[derive(Default)]
struct Progress {
    outs: u64,
    time: Duration,
}

impl Progress {
    fn watch(&mut self, rig: &Rig, time: Duration) {
        let outs = || rig.ports.iter().map(|port| port.outs()).sum::<u64>();
        let (start, before) = (Instant::now(), outs());
        std::thread::sleep(time);
        self.outs += outs() - before;
        self.time += start.elapsed();
    }

    fn per_second(&self) -> f64 {
        self.outs as f64 / self.time.as_secs_f64()
    }
}

/// The share that is asked for makes itself felt, in one run with none, and can be changed while guests run.
pub(super) fn a_throttled_guest_is_slower(rig: Rig) {
    count(&rig);
    rig.set.resume_all();
    rig.wait_outs(0, 1);
    let (mut free, mut slowed) = (Progress::default(), Progress::default());
    for _ in 0..4 {
        rig.set.set_throttle(0).expect("none is a share");
        free.watch(&rig, Duration::from_millis(150));
        rig.set.set_throttle(90).expect("a share");
        assert_eq!(rig.set.throttle(), 90);
        slowed.watch(&rig, Duration::from_millis(450));
    }
    let (free, slowed) = (free.per_second(), slowed.per_second());
    assert!(slowed * 2.0 < free, "{slowed} a second of {free}");
    // Slower, not stopped.
    rig.wait_outs(0, 1);
}

/// Who wants something of a CPU does not wait for its sleep, which lasts a second here.
pub(super) fn a_throttle_delays_nobody(rig: Rig) {
    const ROUNDS: u32 = 20;
    const SLEEP: Duration = Duration::from_millis(990);
    spin(&rig);
    rig.set.resume_all();
    rig.set.set_throttle(99).expect("a share");
    let mut waited = Duration::ZERO;
    for round in 0..ROUNDS {
        // By now it sleeps.
        std::thread::sleep(Duration::from_millis(25));
        let start = Instant::now();
        for cpu in &rig.cpus {
            assert_eq!(cpu.run_on(|cpu| cpu.cpu().index()), Ok(cpu.index()));
        }
        rig.pause();
        if round % 4 == 0 {
            rig.set.reset_all().expect("CPUs are paused");
            spin(&rig);
        }
        rig.set.resume_all();
        drop(rig.set.start_exclusive());
        waited += start.elapsed();
    }
    assert!(waited < SLEEP * ROUNDS / 2, "{ROUNDS} rounds took {waited:?}");
    let start = Instant::now();
    rig.set.exit_all();
    assert!(start.elapsed() < SLEEP * 10, "{:?} to leave", start.elapsed());
}
