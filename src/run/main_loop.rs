//! The main loop: timers, signals, and what CPUs and devices ask of the machine.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use accel::{CpuArchState, CpuEvent, CpuHandle, Shutdown};
use devices::system::SystemRequest;
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::timerfd::TimerFd;

use super::{RunError, crash_report, last_words};
use crate::machine::{Machine, MachineError};
use crate::options::Options;
use crate::options::action::{Actions, PanicAction, WatchdogAction};
use crate::run_state::{Occurrence, Phase, RunState};
use crate::{exit_code, signals, tell};

/// How a run ended.
#[derive(Debug)]
pub enum Outcome {
    /// The guest switched itself off.
    PowerOff,
    /// The guest reset itself, and `-no-reboot` makes that the end.
    Reset,
    /// The user ended the program.
    Quit,
    /// The guest chose this exit status.
    GuestStatus(u8),
    /// A signal asked the program to end.
    Signal(i32),
    /// A CPU stopped for good, or time was up.
    Stopped(Stop),
    /// The program or the host failed.
    Failed(Box<RunError>),
}

/// Why a guest stopped that did not want to, and where.
#[derive(Debug)]
pub struct Stop {
    /// Why.
    pub reason: StopReason,
    /// Which CPU.
    pub cpu: usize,
    /// Its registers, so far as the engine can say.
    pub state: Option<Box<CpuArchState>>,
    /// The engine's diagnosis; may be empty.
    pub description: String,
    /// Where the machine's other CPUs are, and what all of them wait for, where that is of interest: lines.
    pub others: Vec<String>,
}

/// Why a guest stopped that did not want to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// Triple fault.
    TripleFault,
    /// Its kernel panicked, and told.
    Panic,
    /// Its watchdog was not fed.
    Watchdog,
    /// The engine could not execute it.
    Engine(String),
    /// `-timeout`.
    Timeout {
        /// After so long.
        limit: Duration,
        /// What the machine was doing.
        phase: Phase,
    },
}

impl Stop {
    /// The exit status.
    pub fn exit_code(&self) -> u8 {
        match self.reason {
            StopReason::TripleFault | StopReason::Panic | StopReason::Watchdog => exit_code::GUEST_CRASH,
            StopReason::Engine(_) => exit_code::ENGINE_FAILURE,
            StopReason::Timeout { .. } => exit_code::TIMEOUT,
        }
    }
}

/// Of a CPU that is stuck in its engine.
const NO_ANSWER: &str = "the CPU does not answer";

/// Which descriptor an event is about.
mod token {
    pub const RUN_STATE: u32 = 0;
    pub const SIGNAL: u32 = 1;
    pub const CLOCK: u32 = 2;
    pub const TIMEOUT: u32 = 3;
}

/// The loop, for one machine.
pub struct MainLoop<'a> {
    events: EventManager<Reactor<'a>>,
    reactor: event_manager::SubscriberId,
}

struct Reactor<'a> {
    machine: &'a Machine,
    run_state: &'a RunState,
    actions: Actions,
    timeout: Option<(Duration, TimerFd)>,
    outcome: Option<Outcome>,
}

impl<'a> MainLoop<'a> {
    /// A loop that has not begun.
    pub fn new(machine: &'a Machine, run_state: &'a RunState, options: &Options) -> io::Result<Self> {
        let timeout = match options.timeout {
            Some(duration) => {
                let mut timer = TimerFd::new()?;
                timer.reset(duration, None)?;
                Some((duration, timer))
            }
            None => None,
        };
        let reactor = Reactor { machine, run_state, actions: options.board.actions, timeout, outcome: None };
        let mut events = EventManager::new().map_err(io::Error::other)?;
        let reactor = events.add_subscriber(reactor);
        Ok(Self { events, reactor })
    }

    /// Runs the machine, which has been started, to its end.
    pub fn run(&mut self) -> Outcome {
        loop {
            if let Err(error) = self.events.run() {
                let source = io::Error::other(error);
                return Outcome::Failed(Box::new(RunError::Host { what: "event loop", source }));
            }
            let reactor = self.events.subscriber_mut(self.reactor).expect("added in new, never removed");
            if let Some(outcome) = reactor.outcome.take() {
                return outcome;
            }
        }
    }
}

impl MutEventSubscriber for Reactor<'_> {
    fn init(&mut self, ops: &mut EventOps) {
        let mut watch = |fd: RawFd, data| {
            ops.add(Events::with_data_raw(fd, data, EventSet::IN))
                .expect("epoll takes every descriptor of this kind");
        };
        watch(self.run_state.wakeup_fd(), token::RUN_STATE);
        watch(signals::wakeup_fd(), token::SIGNAL);
        if let Some(fd) = self.machine.clock().wakeup_fd() {
            watch(fd, token::CLOCK);
        }
        if let Some((_, timer)) = &self.timeout {
            watch(timer.as_raw_fd(), token::TIMEOUT);
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        match events.data() {
            token::RUN_STATE => {
                while let Some(occurrence) = self.run_state.take() {
                    self.occurred(occurrence);
                    if self.outcome.is_some() {
                        break;
                    }
                }
            }
            token::SIGNAL => {
                if let Some(signal) = signals::received() {
                    self.end(Outcome::Signal(signal));
                }
            }
            token::CLOCK => self.machine.clock().run_expired(),
            _ => self.time_is_up(),
        }
    }
}

impl Reactor<'_> {
    /// The first end stands.
    fn end(&mut self, outcome: Outcome) {
        self.outcome.get_or_insert(outcome);
    }

    fn occurred(&mut self, occurrence: Occurrence) {
        if self.run_state.phase() != Phase::Running && !matches!(occurrence, Occurrence::Quit) {
            // It was on its way when the machine stopped.
            tracing::debug!(target: "cpu", ?occurrence, "of a guest that does not run");
            return;
        }
        match occurrence {
            Occurrence::Quit => self.end(Outcome::Quit),
            Occurrence::System(SystemRequest::Exit(status)) => self.end(Outcome::GuestStatus(status)),
            Occurrence::System(SystemRequest::PowerOff) if self.actions.no_shutdown => {
                self.pause_for_good(Phase::Shutdown);
            }
            Occurrence::System(SystemRequest::PowerOff) => self.end(Outcome::PowerOff),
            Occurrence::System(SystemRequest::Reset) if self.actions.no_reboot => self.end(Outcome::Reset),
            Occurrence::System(SystemRequest::Reset) => {
                // What a CPU asked for on its way to the stop is no wish of the machine that starts anew.
                if let Err(error) = self.machine.reset(|| self.run_state.forget_guest()) {
                    self.fail(error);
                }
            }
            Occurrence::System(SystemRequest::CrashLoaded) => {
                tell::line("the guest's kernel panicked; its crash kernel goes on (pvpanic)");
            }
            Occurrence::System(SystemRequest::Watchdog) => self.watchdog(),
            Occurrence::System(SystemRequest::Panicked) => {
                unreachable!("the run state knows the CPU")
            }
            Occurrence::Panicked(cpu) => self.panicked(cpu),
            Occurrence::Cpu(cpu, CpuEvent::Shutdown { reason, state, description }) => {
                let (phase, reason) = match reason {
                    Shutdown::TripleFault => (Phase::Crashed, StopReason::TripleFault),
                    Shutdown::EngineFailure(text) => (Phase::InternalError, StopReason::Engine(text)),
                };
                self.run_state.enter(phase);
                self.stop(reason, cpu, state, description);
            }
            Occurrence::Cpu(cpu, CpuEvent::Error { error, description }) => {
                self.run_state.enter(Phase::InternalError);
                let reason = StopReason::Engine(crate::accelerator::chain(&error));
                self.stop(reason, cpu, None, description);
            }
            // There is no debugger yet to have set a condition.
            Occurrence::Cpu(_, CpuEvent::Debug { pc }) => {
                tracing::warn!(target: "cpu", pc, "a debugger's stop without a debugger");
                self.go_on_through(Phase::Debug);
            }
        }
    }

    /// The CPUs stay paused until the user ends the program.
    fn pause_for_good(&mut self, phase: Phase) {
        match self.machine.lifecycle().pause() {
            Ok(()) => self.run_state.enter(phase),
            Err(error) => self.fail(MachineError::Reset(error.into())),
        }
    }

    /// CPUs that were held go on.
    fn go_on_through(&mut self, phase: Phase) {
        self.run_state.enter(phase);
        let lifecycle = self.machine.lifecycle();
        match lifecycle.pause().and_then(|()| lifecycle.resume()) {
            Ok(()) => self.run_state.enter(Phase::Running),
            Err(error) => self.fail(MachineError::Reset(error.into())),
        }
    }

    /// The watchdog was not fed: the guest hangs.
    fn watchdog(&mut self) {
        let line = "the guest hangs: its watchdog was not fed in time";
        match self.actions.watchdog {
            // Whoever wants no reset wants to know of this one.
            WatchdogAction::Reset if !self.actions.no_reboot => {
                tell::line(format_args!("{line}; it is reset"));
                self.occurred(Occurrence::System(SystemRequest::Reset));
            }
            WatchdogAction::Reset | WatchdogAction::Poweroff => {
                self.run_state.enter(Phase::Watchdog);
                self.stop(StopReason::Watchdog, 0, None, String::new());
            }
            WatchdogAction::Pause => {
                tell::line(format_args!("{line}; it is paused"));
                self.pause_for_good(Phase::Watchdog);
            }
            WatchdogAction::InjectNmi => self.machine.inject_nmi(),
            WatchdogAction::Debug => tell::line(line),
            WatchdogAction::None => {}
        }
    }

    /// The guest's kernel panicked on this CPU.
    fn panicked(&mut self, cpu: usize) {
        let action = match self.actions.panic {
            // Where a power-off does not end the program, a panic does not either.
            PanicAction::End if self.actions.no_shutdown => PanicAction::Pause,
            action => action,
        };
        let line = format!("the guest crashed: its kernel panicked on CPU {cpu} (pvpanic)");
        match action {
            PanicAction::End => {
                self.run_state.enter(Phase::Crashed);
                self.stop(StopReason::Panic, cpu, None, String::new());
            }
            PanicAction::Pause => {
                tell::line(format!("{line}; it is paused"));
                self.pause_for_good(Phase::Crashed);
            }
            PanicAction::None => {
                tell::line(line);
                self.go_on_through(Phase::Paused);
            }
        }
    }

    fn stop(
        &mut self,
        reason: StopReason,
        cpu: usize,
        state: Option<Box<CpuArchState>>,
        description: String,
    ) {
        self.end(Outcome::Stopped(Stop { reason, cpu, state, description, others: Vec::new() }));
    }

    fn fail(&mut self, error: MachineError) {
        self.end(Outcome::Failed(Box::new(error.into())));
    }

    fn time_is_up(&mut self) {
        let Some((limit, timer)) = &mut self.timeout else { return };
        let limit = *limit;
        // One-shot: reading makes it unreadable.
        let _ = timer.wait();
        let reason = StopReason::Timeout { limit, phase: self.run_state.phase() };
        let cpus = self.machine.lifecycle().cpus().cpus();
        // Before they are asked: that sets them going.
        let found: Vec<String> = cpus.iter().map(CpuHandle::diagnosis).collect();
        let answers = last_words::ask_all(&cpus, |cpu| {
            let waiting = cpu.backend.waiting(cpu.io);
            (waiting, cpu.backend.state().ok().map(Box::new), cpu.backend.describe())
        });
        let mut stop =
            Stop { reason, cpu: 0, state: None, description: NO_ANSWER.into(), others: Vec::new() };
        for (index, (found, answer)) in found.into_iter().zip(answers).enumerate() {
            let (waiting, state, description) = answer.unwrap_or((String::new(), None, NO_ANSWER.into()));
            if index == 0 {
                (stop.state, stop.description) = (state, description);
            } else {
                stop.others.push(crash_report::line(cpus[index].index(), state));
            }
            stop.others.push(crash_report::found(&found, &waiting));
        }
        self.end(Outcome::Stopped(stop));
    }
}
