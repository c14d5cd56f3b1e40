//! A backend that keeps the last bytes, and one that writes to two.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Weak};

use super::{CharBackend, CharDevice};

/// `-chardev ringbuf`: remembers the last bytes that the guest sent. Also for the report of a crash.
#[derive(Debug)]
pub struct BufferBackend {
    capacity_bytes: usize,
    bytes: Mutex<VecDeque<u8>>,
}

impl BufferBackend {
    /// Keeps the last `capacity_bytes`.
    pub fn new(capacity_bytes: usize) -> Arc<Self> {
        Arc::new(Self { capacity_bytes, bytes: Mutex::default() })
    }

    /// What is remembered, oldest first.
    pub fn contents(&self) -> Vec<u8> {
        self.bytes.lock().expect("no holder of the buffer's lock panics").iter().copied().collect()
    }

    /// What is remembered, oldest first, and forgets it.
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.bytes.lock().expect("no holder of the buffer's lock panics")).into()
    }
}

impl CharBackend for BufferBackend {
    fn write(&self, bytes: &[u8]) {
        let mut kept = self.bytes.lock().expect("no holder of the buffer's lock panics");
        let new = &bytes[bytes.len().saturating_sub(self.capacity_bytes)..];
        let excess = (kept.len() + new.len()).saturating_sub(self.capacity_bytes);
        kept.drain(..excess);
        kept.extend(new);
    }
}

/// Writes to two backends; input is the first one's.
pub struct TeeBackend {
    main: Arc<dyn CharBackend>,
    copy: Arc<dyn CharBackend>,
}

impl TeeBackend {
    /// Everything to `main` and to `copy`.
    pub fn new(main: Arc<dyn CharBackend>, copy: Arc<dyn CharBackend>) -> Self {
        Self { main, copy }
    }
}

impl CharBackend for TeeBackend {
    fn write(&self, bytes: &[u8]) {
        self.copy.write(bytes);
        self.main.write(bytes);
    }

    fn try_write(&self, bytes: &[u8]) -> usize {
        let taken = self.main.try_write(bytes);
        self.copy.write(&bytes[..taken]);
        taken
    }

    fn can_write(&self) -> bool {
        self.copy.can_write() && self.main.can_write()
    }

    fn flush(&self) {
        self.copy.flush();
        self.main.flush();
    }

    fn accept_input(&self) {
        self.main.accept_input();
    }

    fn attach(&self, device: Weak<dyn CharDevice>) {
        self.main.attach(device);
    }

    fn is_open(&self) -> bool {
        self.main.is_open()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bytes_stay() {
        let buffer = BufferBackend::new(4);
        buffer.write(b"ab");
        buffer.write(b"cde");
        assert_eq!(buffer.contents(), b"bcde");
        buffer.write(b"0123456789");
        assert_eq!(buffer.take(), b"6789");
        assert_eq!(buffer.contents(), b"");
    }

    #[test]
    fn both_get_it() {
        let (main, copy) = (BufferBackend::new(8), BufferBackend::new(2));
        TeeBackend::new(main.clone(), copy.clone()).write(b"abc");
        assert_eq!((main.take(), copy.take()), (b"abc".to_vec(), b"bc".to_vec()));
    }
}
