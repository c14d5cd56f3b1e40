//! The thread on which input comes, and people come and go.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Driver;

type Subscriber = Box<dyn MutEventSubscriber + Send>;

/// How long its end is waited for. It waits for nothing itself.
const END_LIMIT: Duration = Duration::from_secs(5);

/// One thread for all the host's ends. It ends, and lets go of them, when this is dropped.
pub struct CharThread {
    ended: Arc<AtomicBool>,
    wakeup: Arc<EventFd>,
    /// Nothing comes from it, until there is nobody to send any more.
    gone: Receiver<()>,
}

impl CharThread {
    /// Sets it going. The devices are attached.
    pub fn start(drivers: Vec<Driver>) -> io::Result<Self> {
        let ended = Arc::new(AtomicBool::new(false));
        let wakeup = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let mut events = EventManager::<Subscriber>::new().map_err(io::Error::other)?;
        events.add_subscriber(Box::new(End(Arc::clone(&wakeup))));
        for driver in drivers {
            events.add_subscriber(Box::new(driver));
        }
        let is_ended = Arc::clone(&ended);
        let (here, gone) = mpsc::channel();
        let run = move || {
            while !is_ended.load(Ordering::SeqCst) {
                if let Err(error) = events.run() {
                    tracing::error!(target: "chardev", ?error, "there is no more input");
                    break;
                }
            }
            drop(events);
            drop(here);
        };
        std::thread::Builder::new().name("chardev".into()).spawn(run)?;
        Ok(Self { ended, wakeup, gone })
    }
}

impl Drop for CharThread {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _ = self.wakeup.write(1);
        let _ = self.gone.recv_timeout(END_LIMIT);
    }
}

/// Wakes the thread to its end.
struct End(Arc<EventFd>);

impl MutEventSubscriber for End {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        let _ = self.0.read();
    }

    fn init(&mut self, ops: &mut EventOps) {
        ops.add(Events::with_data_raw(self.0.as_raw_fd(), 0, EventSet::IN)).expect("epoll takes an eventfd");
    }
}
