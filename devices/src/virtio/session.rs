//! The time between a device's activation and its reset.
//!
//! A reset is a CPU's store to a register, and counts as done when the store is: from then on the device must not touch the
//! guest's memory. A thread of the device that is at work then may itself be waiting for that CPU to take notice of what
//! was written ([`crate::dma`]), so the reset cannot wait for the thread. It waits for its touching memory only, which
//! happens within [`Session::run`]; telling of it, and waiting for the CPUs, outside.

use std::sync::RwLock;

const LOCK: &str = "nothing panics within a session";

/// One such time. Its queues work at once.
#[derive(Debug)]
pub struct Session(RwLock<bool>);

impl Session {
    /// One that has begun.
    pub fn new() -> Self {
        Self(RwLock::new(true))
    }

    /// Runs `work`, which touches guest memory, unless the session is over. The end waits until it is done, so it waits for
    /// no CPU. Not to be called within `work`.
    pub fn run<R>(&self, work: impl FnOnce() -> R) -> Option<R> {
        let live = self.0.read().expect(LOCK);
        live.then(work)
    }

    /// Ends it: no [`Session::run`] does anything any more when this returns.
    pub fn end(&self) {
        *self.0.write().expect(LOCK) = false;
    }

    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        !*self.0.read().expect(LOCK)
    }
}

impl Default for Session {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_runs_after_the_end() {
        let session = Session::new();
        assert_eq!(session.run(|| 1), Some(1));
        session.end();
        assert!(session.is_over());
        assert_eq!(session.run(|| 1), None);
    }

    #[test]
    fn the_end_waits_for_what_runs() {
        let session = Session::new();
        let (began, begin) = std::sync::mpsc::channel();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                session.run(|| {
                    began.send(()).unwrap();
                    std::thread::sleep(std::time::Duration::from_millis(20));
                    done.store(true, std::sync::atomic::Ordering::SeqCst);
                })
            });
            begin.recv().unwrap();
            session.end();
            assert!(done.load(std::sync::atomic::Ordering::SeqCst));
        });
    }
}
