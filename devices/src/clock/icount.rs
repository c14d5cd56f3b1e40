//! Guest time that counts executed instructions (QEMU's `-icount`): each takes 2^shift nanoseconds.
//!
//! The CPUs' thread says how many have been executed ([`IcountClock::publish`]) before anything looks at the time, asks
//! how many may be until the next timer is due, and runs the timers then. So what a guest sees of time is a function of
//! what it has executed. While no CPU executes, time goes to the next timer at once ([`Sleep::Off`]) or as the host's
//! does ([`Sleep::On`]).

use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::{Duration, Instant};

use super::queue::{TimerQueue, Wakeup};
use super::{Clock, Timer, TimerCallback};

/// The largest shift: a microsecond per instruction.
pub const MAX_SHIFT: u32 = 10;
/// The shift of [`Shift::Auto`] to start with, and to stay with where the host's time does not matter.
pub const AUTO_SHIFT: u32 = 3;

/// How long an instruction takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shift {
    /// 2^n nanoseconds, n at most [`MAX_SHIFT`].
    Fixed(u32),
    /// About as long as it takes on this host; with [`Sleep::Off`], 2^[`AUTO_SHIFT`] nanoseconds.
    Auto,
}

/// What becomes of time while no CPU executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleep {
    /// It passes as the host's does.
    On,
    /// It jumps to the next timer.
    Off,
}

/// How guest time is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Per instruction.
    pub shift: Shift,
    /// Without instructions.
    pub sleep: Sleep,
    /// Guest time is held back where it would get ahead of the host's.
    pub align: bool,
}

/// How often the shift is judged under [`Shift::Auto`].
const JUDGED_EVERY: Duration = Duration::from_millis(100);
/// How far guest time may get ahead of the host's under [`Pace::align`].
const MAX_AHEAD_NS: u64 = 3_000_000;
/// How much later than the host's time guest time is each time when that is told.
const LATE_STEP_NS: u64 = 1_000_000_000;

const LOCK: &str = "no holder of the clock's lock panics";

/// What the host's time says. It stands still with the guest's.
struct Host {
    /// When the machine was last set going; `None` while paused.
    since: Option<Instant>,
    /// Time before that.
    before: Duration,
    /// When the CPUs went idle.
    idle_since: Option<Instant>,
    /// Since the shift was last judged: the time then, idle time since, and instructions executed then.
    judged: Duration,
    idle: Duration,
    judged_executed: u64,
    /// The shift that the last judgement was for.
    wish: u32,
    /// How late the guest was when that was last told.
    told_late_ns: u64,
}

impl Host {
    fn elapsed(&self) -> Duration {
        self.before + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

struct State {
    executed: u64,
    shift: u32,
    /// What is added to the instructions' time, modulo 2^64.
    bias_ns: u64,
    host: Host,
}

impl State {
    fn now_ns(&self) -> u64 {
        (self.executed << self.shift).wrapping_add(self.bias_ns)
    }

    fn advance(&mut self, ns: u64) {
        self.bias_ns = self.bias_ns.wrapping_add(ns);
    }

    /// Time goes on from where it is, at another rate.
    fn set_shift(&mut self, shift: u32) {
        let now_ns = self.now_ns();
        self.shift = shift;
        self.bias_ns = now_ns.wrapping_sub(self.executed << shift);
    }
}

type Earlier = Arc<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Listeners(RwLock<Vec<Earlier>>);

impl Wakeup for Arc<Listeners> {
    fn earliest(&self, _deadline_ns: u64) {
        self.0.read().expect(LOCK).iter().for_each(|earlier| earlier());
    }
}

/// The clock.
pub struct IcountClock {
    pace: Pace,
    state: Mutex<State>,
    queue: Arc<TimerQueue>,
    listeners: Arc<Listeners>,
}

/// What the CPUs' thread does while no CPU can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Time was moved and timers were run: look again.
    Moved,
    /// Wait so long.
    Wait(Duration),
    /// Nothing will happen by itself.
    Forever,
}

impl IcountClock {
    /// A clock that starts at zero, paused.
    pub fn new(pace: Pace) -> Arc<Self> {
        let shift = match pace.shift {
            Shift::Fixed(shift) => shift.min(MAX_SHIFT),
            Shift::Auto => AUTO_SHIFT,
        };
        let host = Host {
            since: None,
            before: Duration::ZERO,
            idle_since: None,
            judged: Duration::ZERO,
            idle: Duration::ZERO,
            judged_executed: 0,
            wish: shift,
            told_late_ns: 0,
        };
        let listeners = Arc::<Listeners>::default();
        Arc::new(Self {
            pace,
            state: Mutex::new(State { executed: 0, shift, bias_ns: 0, host }),
            queue: TimerQueue::new(Box::new(Arc::clone(&listeners))),
            listeners,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(LOCK)
    }

    /// Has `earlier` run whenever a timer may be due sooner than [`Self::until_deadline`] said. Lock-free, any thread.
    pub fn when_earlier(&self, earlier: Arc<dyn Fn() + Send + Sync>) {
        self.listeners.0.write().expect(LOCK).push(earlier);
    }

    /// So many instructions have been executed, by all CPUs.
    pub fn publish(&self, executed: u64) {
        self.lock().executed = executed;
    }

    /// The number that was published last.
    pub fn executed(&self) -> u64 {
        self.lock().executed
    }

    /// Instructions until the next timer is due: 0 if one is.
    pub fn until_deadline(&self) -> u64 {
        let Some(deadline_ns) = self.queue.earliest() else { return u64::MAX };
        let state = self.lock();
        deadline_ns.saturating_sub(state.now_ns()).div_ceil(1 << state.shift)
    }

    /// No CPU can run. For the CPUs' thread, with no lock held.
    pub fn idle(&self) -> Idle {
        let deadline_ns = self.queue.earliest();
        let mut state = self.lock();
        if state.host.since.is_none() {
            // Paused: setting the machine going wakes the CPUs' thread.
            return Idle::Forever;
        }
        let Some(deadline_ns) = deadline_ns else {
            state.host.idle_since = Some(Instant::now());
            return Idle::Forever;
        };
        let ahead_ns = deadline_ns.saturating_sub(state.now_ns());
        if self.pace.sleep == Sleep::On && ahead_ns > 0 {
            state.host.idle_since = Some(Instant::now());
            return Idle::Wait(Duration::from_nanos(ahead_ns));
        }
        state.advance(ahead_ns);
        drop(state);
        self.run_expired();
        Idle::Moved
    }

    /// The wait that [`Self::idle`] asked for is over, or was ended.
    pub fn waited(&self) {
        let deadline_ns = self.queue.earliest();
        let mut state = self.lock();
        let Some(since) = state.host.idle_since.take() else { return };
        let waited = since.elapsed();
        state.host.idle += waited;
        if self.pace.sleep == Sleep::On && state.host.since.is_some() {
            // Not past a timer: it is to find its own time.
            let most_ns = deadline_ns.map_or(u64::MAX, |at| at.saturating_sub(state.now_ns()));
            state.advance(u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX).min(most_ns));
        }
        drop(state);
        self.run_expired();
    }

    /// Whether [`Self::keep_pace`] is to be called every now and then.
    pub fn follows_host(&self) -> bool {
        self.pace.sleep == Sleep::On && (self.pace.align || self.pace.shift == Shift::Auto)
    }

    /// Looks at the host's time: judges the shift, and says how long the CPUs are to wait for it to come up.
    pub fn keep_pace(&self) -> Option<Duration> {
        if self.pace.sleep == Sleep::Off {
            return None;
        }
        let mut state = self.lock();
        if self.pace.shift == Shift::Auto {
            judge(&mut state);
        }
        if !self.pace.align {
            return None;
        }
        let host_ns = u64::try_from(state.host.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let ahead_ns = state.now_ns().saturating_sub(host_ns);
        let late_ns = host_ns.saturating_sub(state.now_ns());
        if late_ns >= state.host.told_late_ns + LATE_STEP_NS {
            state.host.told_late_ns = late_ns;
            tracing::warn!("guest time is {:.1} s late", late_ns as f64 / 1e9);
        }
        (ahead_ns > MAX_AHEAD_NS).then(|| Duration::from_nanos(ahead_ns))
    }
}

/// Sets the shift to what an instruction takes here, once two judgements in a row agree.
fn judge(state: &mut State) {
    let elapsed = state.host.elapsed();
    let (since, executed) = (elapsed - state.host.judged, state.executed - state.host.judged_executed);
    if since < JUDGED_EVERY {
        return;
    }
    let busy_ns = since.saturating_sub(state.host.idle).as_nanos() as f64;
    (state.host.judged, state.host.judged_executed) = (elapsed, state.executed);
    state.host.idle = Duration::ZERO;
    if executed == 0 {
        return;
    }
    let shift = (busy_ns / executed as f64).max(1.0).log2().round() as u32;
    let shift = shift.min(MAX_SHIFT);
    let before = std::mem::replace(&mut state.host.wish, shift);
    if shift != state.shift && shift == before {
        state.set_shift(shift);
    }
}

impl Clock for IcountClock {
    fn now_ns(&self) -> u64 {
        self.lock().now_ns()
    }

    fn new_timer(&self, label: &'static str, callback: TimerCallback) -> Box<dyn Timer> {
        self.queue.new_timer(label, callback)
    }

    /// The CPUs execute on until they are stopped, and time with them; it does not pass by itself.
    fn pause(&self) {
        let mut state = self.lock();
        state.host.before = state.host.elapsed();
        state.host.since = None;
    }

    fn resume(&self) {
        self.lock().host.since.get_or_insert_with(Instant::now);
    }

    fn next_deadline_ns(&self) -> Option<u64> {
        self.queue.earliest()
    }

    fn run_expired(&self) {
        let now_ns = self.now_ns();
        self.queue.fire_until(now_ns);
    }

    fn wakeup_fd(&self) -> Option<RawFd> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn pace(shift: Shift, sleep: Sleep) -> Pace {
        Pace { shift, sleep, align: false }
    }

    /// A timer that counts how often it fired.
    fn counter(clock: &IcountClock) -> (Box<dyn Timer>, Arc<AtomicUsize>) {
        let fired = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&fired);
        (clock.new_timer("test", Arc::new(move || _ = count.fetch_add(1, Ordering::SeqCst))), fired)
    }

    #[test]
    fn time_is_what_was_executed() {
        let clock = IcountClock::new(pace(Shift::Fixed(4), Sleep::Off));
        clock.resume();
        clock.publish(10);
        assert_eq!(clock.now_ns(), 160);
        let (timer, fired) = counter(&clock);
        for (deadline_ns, instructions) in [(161, 1), (176, 1), (177, 2), (160, 0), (3, 0)] {
            timer.arm(deadline_ns);
            assert_eq!(clock.until_deadline(), instructions, "{deadline_ns}");
        }
        timer.arm(176);
        clock.run_expired();
        assert_eq!(fired.load(Ordering::SeqCst), 0);
        clock.publish(11);
        clock.run_expired();
        assert_eq!(fired.load(Ordering::SeqCst), 1);
        assert_eq!(clock.until_deadline(), u64::MAX);
        assert_eq!(clock.executed(), 11);
    }

    #[test]
    fn an_earlier_deadline_is_told_and_a_later_one_is_not() {
        let clock = IcountClock::new(pace(Shift::Fixed(0), Sleep::Off));
        let told = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&told);
        clock.when_earlier(Arc::new(move || _ = count.fetch_add(1, Ordering::SeqCst)));
        let ((first, _), (second, _)) = (counter(&clock), counter(&clock));
        first.arm(100);
        second.arm(200);
        assert_eq!(told.load(Ordering::SeqCst), 1);
        second.arm(50);
        assert_eq!(told.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn idle_time_jumps_to_the_next_timer() {
        let clock = IcountClock::new(pace(Shift::Auto, Sleep::Off));
        let (timer, fired) = counter(&clock);
        timer.arm(3_600_000_000_000);
        assert_eq!(clock.idle(), Idle::Forever, "paused");
        clock.resume();
        assert_eq!(clock.idle(), Idle::Moved);
        assert_eq!((clock.now_ns(), fired.load(Ordering::SeqCst)), (3_600_000_000_000, 1));
        clock.publish(1);
        assert_eq!(clock.now_ns(), 3_600_000_000_008);
        assert_eq!(clock.idle(), Idle::Forever);
        // However long that was.
        clock.waited();
        assert_eq!(clock.now_ns(), 3_600_000_000_008);
    }

    #[test]
    fn idle_time_passes_as_the_hosts() {
        let clock = IcountClock::new(pace(Shift::Fixed(0), Sleep::On));
        clock.resume();
        let (timer, fired) = counter(&clock);
        timer.arm(5_000_000);
        assert_eq!(clock.idle(), Idle::Wait(Duration::from_millis(5)));
        std::thread::sleep(Duration::from_millis(1));
        clock.waited();
        let now_ns = clock.now_ns();
        assert!((1_000_000..=5_000_000).contains(&now_ns), "{now_ns}");
        let Idle::Wait(rest) = clock.idle() else { return assert_eq!(now_ns, 5_000_000) };
        std::thread::sleep(rest + Duration::from_millis(1));
        clock.waited();
        assert_eq!((clock.now_ns(), fired.load(Ordering::SeqCst)), (5_000_000, 1), "past its timer");
    }

    #[test]
    fn the_shift_follows_the_host_and_time_does_not_jump() {
        let clock = IcountClock::new(pace(Shift::Auto, Sleep::On));
        clock.resume();
        clock.publish(1000);
        let before = clock.now_ns();
        // A host that takes far more than a microsecond for each.
        for executed in 1001..=1002 {
            std::thread::sleep(JUDGED_EVERY + Duration::from_millis(1));
            clock.publish(executed);
            assert_eq!(clock.keep_pace(), None);
        }
        assert_eq!(clock.now_ns(), before + 2 * 8);
        clock.publish(1003);
        assert_eq!(clock.now_ns(), before + 2 * 8 + 1024);
    }

    #[test]
    fn aligned_time_waits_for_the_hosts() {
        let clock = IcountClock::new(Pace { align: true, ..pace(Shift::Fixed(10), Sleep::On) });
        clock.resume();
        assert_eq!(clock.keep_pace(), None);
        clock.publish(3_600_000_000);
        let wait = clock.keep_pace().expect("an hour ahead, more than the test has run");
        assert!(wait > Duration::from_secs(3600) && wait <= Duration::from_nanos(3_600_000_000 << 10));
    }
}
