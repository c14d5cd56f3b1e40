//! The suite that every accelerator passes (DESIGN.md, *Proof*): the contract and the lifecycle, seen from outside.
//!
//! An accelerator's tests call it with one line in a file of its own,
//!
//! ```ignore
//! accel::conformance_tests!(make_accelerator);
//! accel::conformance_tests!(make_accelerator, not_applicable: { "breakpoint": "why not" });
//! ```
//!
//! where `fn make_accelerator() -> Result<Box<dyn Accelerator>, String>`; an `Err` says why there is none on this host,
//! and the suite then says so on stderr. Guest code is real-mode code, a few bytes each, at [`CASES`]' choice.

mod control;
mod guest;
mod hotplug;
mod machine_check;
mod rig;
mod scripted;
mod several;
mod storms;
mod throttle;

use std::sync::{Arc, OnceLock, Weak, mpsc};
use std::time::Duration;

pub use scripted::ScriptedAccelerator;

use crate::contract::{Accelerator, Irqchip};
use crate::cpu_set::CpuSet;

/// What a case needs of its accelerator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    /// Nothing: CPUs that execute nothing pass too.
    Lifecycle,
    /// CPUs that execute guest code.
    Guest,
    /// CPUs that execute guest code and take interrupts from the machine's interrupt controllers.
    Interrupts,
}

/// One case.
pub struct Case {
    name: &'static str,
    needs: Needs,
    cpus: usize,
    /// With those that the case adds.
    most_cpus: usize,
    run: fn(rig::Rig),
}

impl Case {
    /// Its name, that of its test.
    pub fn name(&self) -> &'static str {
        self.name
    }
}

macro_rules! cases {
    ($($module:ident::$name:ident($needs:ident, $cpus:literal $(of $most:literal)?)),* $(,)?) => {
        /// All cases.
        pub const CASES: &[Case] = &[$(Case {
            name: stringify!($name),
            needs: Needs::$needs,
            cpus: $cpus,
            most_cpus: $cpus $(- $cpus + $most)?,
            run: $module::$name,
        }),*];
    };
}

cases! {
    control::created_is_acknowledged(Lifecycle, 2),
    control::kick_before_run_is_sticky(Lifecycle, 1),
    control::work_is_done_in_order(Lifecycle, 1),
    control::work_is_done_whatever_the_state(Lifecycle, 1),
    control::two_cpus_run_on_each_other(Lifecycle, 2),
    control::exit_from_every_state(Lifecycle, 2),
    control::a_cpu_cannot_wait_for_itself(Lifecycle, 2),
    storms::kick_storm(Lifecycle, 2),
    storms::pause_resume_storm(Lifecycle, 2),
    storms::counting_stands_still_while_paused(Guest, 2),
    storms::exclusive_sections_exclude(Guest, 2),
    storms::interrupt_storm(Interrupts, 1),
    several::paused_guests_do_not_change(Guest, 4),
    several::an_interrupt_goes_round(Interrupts, 4),
    several::interrupts_reach_all_cpus(Interrupts, 4),
    several::work_reaches_all_cpus(Lifecycle, 4),
    several::rewritten_code_is_executed(Guest, 3),
    hotplug::a_cpu_comes_and_goes(Guest, 1 of 2),
    hotplug::cpus_come_and_go_in_a_storm(Lifecycle, 2 of 4),
    throttle::a_throttled_guest_is_slower(Guest, 2),
    throttle::a_throttle_delays_nobody(Lifecycle, 2),
    guest::pause_in_hlt(Guest, 1),
    guest::work_in_hlt_does_not_wake(Guest, 1),
    guest::a_held_cpu_stops_soon(Guest, 1),
    guest::reset_with_pending_access(Guest, 1),
    guest::state_is_identity(Guest, 1),
    guest::state_survives_running(Guest, 1),
    guest::triple_fault_is_reported(Guest, 1),
    guest::step_is_one_instruction(Guest, 1),
    guest::breakpoint_and_single_step(Guest, 1),
    guest::nmi_reaches_the_guest(Guest, 1),
    guest::a_reset_ap_waits(Guest, 2),
    guest::an_injected_nmi_is_taken(Guest, 2),
    machine_check::a_machine_check_is_taken(Guest, 2),
    machine_check::a_machine_check_that_cannot_be_taken_ends_the_cpu(Guest, 1),
    guest::interrupt_wakes_from_hlt(Interrupts, 1),
    guest::start_up_ipi_starts_an_ap(Interrupts, 2),
}

/// How long a case may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs the case called `name`. `not_applicable` names cases that this accelerator does not claim to pass, and why.
///
/// Panics if the case fails, hangs, or does not exist.
pub fn run_case(
    name: &str,
    make: fn() -> Result<Box<dyn Accelerator>, String>,
    not_applicable: &[(&str, &str)],
) {
    for (other, _) in not_applicable {
        assert!(CASES.iter().any(|case| case.name == *other), "no case '{other}'");
    }
    let case = CASES.iter().find(|case| case.name == name).expect("a case of this name");
    if let Some((_, why)) = not_applicable.iter().find(|(other, _)| *other == name) {
        eprintln!("{name}: not applicable: {why}");
        return;
    }
    let accelerator = match make() {
        Ok(accelerator) => accelerator,
        Err(why) => {
            eprintln!("{name}: not run, no accelerator: {why}");
            return;
        }
    };
    if let Some(why) = why_not(case, &*accelerator) {
        eprintln!("{name}: not applicable: {why}");
        return;
    }
    // A lifecycle that loses a wake-up hangs; the test must not.
    let (done, outcome) = mpsc::channel();
    let (run, cpus, most_cpus) = (case.run, case.cpus, case.most_cpus);
    let set = Arc::new(OnceLock::<Weak<CpuSet>>::new());
    let its = Arc::clone(&set);
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let rig = rig::Rig::new(accelerator, cpus, most_cpus);
            its.get_or_init(|| Arc::downgrade(&rig.set));
            run(rig);
            // The receiver may have given up.
            let _ = done.send(());
        })
        .expect("a thread for a case");
    if outcome.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
        let set = set.get().and_then(Weak::upgrade);
        panic!("{name} hangs\n{}", set.map_or("no CPUs".to_owned(), |set| rig::diagnosis(&set)));
    }
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn why_not(case: &Case, accelerator: &dyn Accelerator) -> Option<&'static str> {
    match case.needs {
        Needs::Lifecycle => None,
        _ if accelerator.name() == "qtest" => Some("it executes no guest code"),
        Needs::Interrupts if !matches!(accelerator.irqchip(), Irqchip::Userspace) => {
            Some("it has its own interrupt controllers")
        }
        _ => None,
    }
}

/// A test per case of the [conformance suite](crate::conformance), in the module where it stands.
#[macro_export]
macro_rules! conformance_tests {
    ($make:path) => { $crate::conformance_tests!($make, not_applicable: {}); };
    ($make:path, not_applicable: { $($other:literal: $why:literal),* $(,)? }) => {
        $crate::conformance_tests!(@cases $make, [$(($other, $why)),*],
            created_is_acknowledged
            kick_before_run_is_sticky
            work_is_done_in_order
            work_is_done_whatever_the_state
            two_cpus_run_on_each_other
            exit_from_every_state
            a_cpu_cannot_wait_for_itself
            kick_storm
            pause_resume_storm
            counting_stands_still_while_paused
            exclusive_sections_exclude
            interrupt_storm
            paused_guests_do_not_change
            an_interrupt_goes_round
            interrupts_reach_all_cpus
            work_reaches_all_cpus
            rewritten_code_is_executed
            a_cpu_comes_and_goes
            cpus_come_and_go_in_a_storm
            a_throttled_guest_is_slower
            a_throttle_delays_nobody
            pause_in_hlt
            work_in_hlt_does_not_wake
            a_held_cpu_stops_soon
            reset_with_pending_access
            state_is_identity
            state_survives_running
            triple_fault_is_reported
            step_is_one_instruction
            breakpoint_and_single_step
            nmi_reaches_the_guest
            a_reset_ap_waits
            an_injected_nmi_is_taken
            a_machine_check_is_taken
            a_machine_check_that_cannot_be_taken_ends_the_cpu
            interrupt_wakes_from_hlt
            start_up_ipi_starts_an_ap
        );
    };
    (@cases $make:path, $not_applicable:tt, $($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                $crate::conformance::run_case(stringify!($name), $make, &$not_applicable);
            }
        )*

        #[test]
        fn the_suite_is_complete() {
            let here = [$(stringify!($name)),*];
            let all: Vec<_> = $crate::conformance::CASES.iter().map(|case| case.name()).collect();
            assert_eq!(all, here);
        }
    };
}
