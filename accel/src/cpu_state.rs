//! The states of a CPU and the transitions between them (DESIGN.md, *The lifecycle*).
//!
//! ```text
//!               bind           resume            HLT, nothing to do
//!   Creating ---------> Stopped <-----> Running <-----------------> Halted
//!                          |    pause            work, request
//!                          | exit
//!                          v
//!                        Exited
//! ```
//!
//! Only the CPU's own thread moves it; everybody else leaves a request in its mailbox and kicks.
//! A CPU is never `Stopped` from `Halted` directly: it wakes, and stops like any other.

/// Where a CPU is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CpuState {
    /// Its thread has not bound it yet; nobody can iterate to it.
    Creating,
    /// Parked at an instruction boundary; its state may be read, saved, replaced.
    Stopped,
    /// Executes, or is about to.
    Running,
    /// Sleeps in HLT (or waits for a start-up IPI) until it has work.
    Halted,
    /// Gone.
    Exited,
}

impl CpuState {
    /// Every state, in the order of a CPU's life.
    pub const ALL: [Self; 5] = [Self::Creating, Self::Stopped, Self::Running, Self::Halted, Self::Exited];

    /// Whether a CPU in this state may go to `next`.
    pub fn can_become(self, next: Self) -> bool {
        use CpuState::{Creating, Exited, Halted, Running, Stopped};
        matches!(
            (self, next),
            (Creating, Stopped)
                | (Stopped, Running | Exited)
                | (Running, Stopped | Halted)
                | (Halted, Running)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::CpuState;

    #[test]
    fn transitions_are_those_of_the_picture() {
        // Rows: from; columns: to; both in the order of ALL.
        const TABLE: [&str; 5] = ["-x---", "--x-x", "-x-x-", "--x--", "-----"];
        for (from, row) in CpuState::ALL.into_iter().zip(TABLE) {
            for (to, cell) in CpuState::ALL.into_iter().zip(row.chars()) {
                assert_eq!(from.can_become(to), cell == 'x', "{from:?} -> {to:?}");
            }
        }
    }
}
