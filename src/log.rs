//! The log: what `-d` asked for, and every warning, to stderr or to the file of `-D`.

use std::collections::BTreeSet;
use std::fmt::{Debug, Write as _};
use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber, span};

use crate::options::log::{ITEMS, LogItem};

/// Events go under the target of their item: `int`, `exec`, `in_asm`, as on the command line.
pub fn target(item: LogItem) -> &'static str {
    let (_, name, _) = ITEMS.iter().find(|(known, ..)| *known == item).expect("every item is in the table");
    name
}

type Sink = Arc<Mutex<Box<dyn Write + Send>>>;

/// Writes events, a line each.
struct Writer {
    targets: Vec<&'static str>,
    sink: Sink,
}

/// The log as the program has it.
pub struct Log {
    sink: Sink,
}

/// Starts the log on stderr. Once per process.
pub fn start(items: &BTreeSet<LogItem>) -> Log {
    let sink: Sink = Arc::new(Mutex::new(Box::new(io::stderr())));
    let writer =
        Writer { targets: items.iter().map(|&item| target(item)).collect(), sink: Arc::clone(&sink) };
    tracing::subscriber::set_global_default(writer).expect("the log is started once");
    Log { sink }
}

impl Log {
    /// From now on to `file`.
    pub fn redirect(&self, file: File) {
        *self.sink.lock().expect(LOCK) = Box::new(io::LineWriter::new(file));
    }
}

const LOCK: &str = "no holder of the log's lock panics";

impl Writer {
    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN || self.targets.contains(&metadata.target())
    }
}

impl Subscriber for Writer {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.wants(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        // Without `-d` the macros cost a load and a branch.
        Some(if self.targets.is_empty() { LevelFilter::WARN } else { LevelFilter::TRACE })
    }

    fn new_span(&self, _span: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _span: &span::Id, _values: &span::Record<'_>) {}

    fn record_follows_from(&self, _span: &span::Id, _follows: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        let mut line = String::new();
        if *metadata.level() <= Level::WARN {
            line += if *metadata.level() == Level::WARN { "bivisor: warning: " } else { "bivisor: error: " };
        }
        event.record(&mut Text(&mut line));
        line.push('\n');
        // A log that cannot be written must not stop the guest.
        let _ = self.sink.lock().expect(LOCK).write_all(line.as_bytes());
    }

    fn enter(&self, _span: &span::Id) {}

    fn exit(&self, _span: &span::Id) {}
}

/// The message first, then the fields.
struct Text<'a>(&'a mut String);

impl Visit for Text<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let result = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
        result.expect("a string takes everything");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_was_asked_for_and_every_warning() {
        let memory = Memory::default();
        let sink: Sink = Arc::new(Mutex::new(Box::new(memory.clone())));
        let log = Writer { targets: vec![target(LogItem::Int)], sink };
        tracing::subscriber::with_default(log, || {
            tracing::trace!(target: "int", vector = 14, "page fault");
            tracing::trace!(target: "exec", "a block");
            tracing::warn!(target: "serial", lost = 3, "output lost");
        });
        let text = String::from_utf8(memory.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "page fault vector=14\nbivisor: warning: output lost lost=3\n");
    }
}
