//! What the machine as a whole is doing, and how that may change (QEMU, *QMP Reference Manual*, RunState).
//!
//! ```text
//!                start             the user
//!   Prelaunch ---------> Running <----------> Paused
//!       ^                | | | ^
//!       |                | | | +----> Debug                   a debugger's condition was met
//!       |                | | +------> Shutdown                power-off, with -no-shutdown
//!       |                | +--------> Crashed, Watchdog       a CPU's triple fault, a kernel's panic; nobody fed the watchdog
//!       |                +----------> InternalError           the engine gave up
//!       +---- reset ---- Paused, Debug, Shutdown, Crashed, Watchdog, InternalError
//! ```
//!
//! Only the main loop moves it. A machine that is reset while it runs goes on running.

/// What the machine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Built, or reset while it did not run; no CPU has executed anything since.
    Prelaunch,
    /// CPUs execute.
    Running,
    /// The user stopped it.
    Paused,
    /// A debugger has it.
    Debug,
    /// The guest switched itself off.
    Shutdown,
    /// The guest crashed.
    Crashed,
    /// The guest hangs, by its watchdog.
    Watchdog,
    /// The engine or the program cannot execute the guest any further.
    InternalError,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Self; 8] = [
        Self::Prelaunch,
        Self::Running,
        Self::Paused,
        Self::Debug,
        Self::Shutdown,
        Self::Crashed,
        Self::Watchdog,
        Self::InternalError,
    ];

    /// Whether a machine in this phase may enter `next`.
    pub fn can_become(self, next: Self) -> bool {
        use Phase::{Crashed, Debug, InternalError, Paused, Prelaunch, Running, Shutdown, Watchdog};
        matches!(
            (self, next),
            (Prelaunch | Paused | Debug, Running)
                | (Running, Paused | Debug | Shutdown | Crashed | Watchdog | InternalError)
                | (Paused | Debug | Shutdown | Crashed | Watchdog | InternalError, Prelaunch)
        )
    }

    /// QEMU's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prelaunch => "prelaunch",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Debug => "debug",
            Self::Shutdown => "shutdown",
            Self::Crashed => "guest-panicked",
            Self::Watchdog => "watchdog",
            Self::InternalError => "internal-error",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Phase;

    #[test]
    fn transitions_are_those_of_the_picture() {
        // Rows: from; columns: to; both in the order of ALL.
        const TABLE: [&str; 8] =
            ["-x------", "--xxxxxx", "xx------", "xx------", "x-------", "x-------", "x-------", "x-------"];
        for (from, row) in Phase::ALL.into_iter().zip(TABLE) {
            for (to, cell) in Phase::ALL.into_iter().zip(row.chars()) {
                assert_eq!(from.can_become(to), cell == 'x', "{from:?} -> {to:?}");
            }
        }
    }
}
