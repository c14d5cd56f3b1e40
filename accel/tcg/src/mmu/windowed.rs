//! What a context remembers of its windows ([`crate::windows`]).

/// Pages that are closed one by one; more are looked at all together.
const MAX_PAGES: usize = 64;

/// The windows of one address space.
#[derive(Default)]
pub struct Windowed {
    /// Its user code reaches memory through windows.
    pub open: bool,
    /// Its level-4 table, when they were opened.
    pub root: u64,
    /// Timer ticks that interrupted user code since it is this address space.
    pub ticks: u32,
    /// Accesses that windows were of no use for, since they were opened.
    pub refused: u32,
    /// They did not pay for this address space.
    pub denied: bool,
    /// Everything was flushed since the windows were last looked at.
    all: bool,
    /// Pages that were.
    pages: Vec<u64>,
}

/// What was flushed.
pub enum Flushed {
    /// Everything.
    All,
    /// These pages.
    Pages(Vec<u64>),
}

impl Windowed {
    /// The context was flushed.
    pub fn all_flushed(&mut self) {
        self.all = self.open;
    }

    /// The page at `linear` was flushed.
    pub fn page_flushed(&mut self, linear: u64) {
        if !self.open || self.all || linear >> 47 != 0 {
            return;
        }
        self.all = self.pages.len() == MAX_PAGES;
        self.pages.push(linear);
    }

    /// Whether something was flushed that windows may still show.
    pub fn is_stale(&self) -> bool {
        self.all || !self.pages.is_empty()
    }

    /// What was flushed since the last call.
    pub fn take_flushed(&mut self) -> Flushed {
        let pages = std::mem::take(&mut self.pages);
        if std::mem::take(&mut self.all) { Flushed::All } else { Flushed::Pages(pages) }
    }
}
