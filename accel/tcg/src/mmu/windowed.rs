//! What a context remembers of its windows ([`crate::windows`]).

use std::time::{Duration, Instant};

use crate::windows::Tenure;

/// Pages that are closed one by one; more are looked at all together.
const MAX_PAGES: usize = 64;

/// What following flushes may cost, of the time that the windows have been open, and what nobody looks at.
const COST_SHARE: u32 = 4;
const COST_IN_ANY_CASE: Duration = Duration::from_millis(50);

/// The windows of one address space.
#[derive(Default)]
pub struct Windowed {
    /// Whose they are, while its user code reaches memory through windows.
    tenure: Option<Tenure>,
    /// Regions that generated code may reach since then.
    pub regions: Vec<u64>,
    /// Its code expects windows elsewhere than at its own addresses.
    pub shifted: bool,
    /// It would have to, for a region to have some.
    pub wants_shift: bool,
    /// Whose windows its own would have been in the way of.
    pub in_the_way: Option<Tenure>,
    /// Its level-4 table, when they were opened.
    pub root: u64,
    /// Timer ticks that interrupted user code since it is this address space.
    pub ticks: u32,
    /// Accesses that windows were of no use for, since they were opened.
    pub refused: u32,
    /// They did not pay for this address space.
    pub denied: bool,
    /// When they were opened, and what following flushes has cost since.
    since: Option<Instant>,
    cost: Duration,
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
    /// Whose windows its user code reaches.
    pub fn tenure(&self) -> Option<Tenure> {
        self.tenure
    }

    /// Its user code reaches memory through windows.
    pub fn is_open(&self) -> bool {
        self.tenure.is_some()
    }

    /// They are open from now on, over the tables at `root`. `joined`: there are windows already, which are to be looked at.
    /// `shifted`: some may be elsewhere than at the program's addresses.
    pub fn opened(&mut self, tenure: Tenure, root: u64, joined: bool, shifted: bool) {
        (self.tenure, self.root, self.refused, self.in_the_way) = (Some(tenure), root, 0, None);
        (self.since, self.cost) = (Some(Instant::now()), Duration::ZERO);
        (self.shifted, self.wants_shift) = (shifted, false);
        self.pages.clear();
        self.all = joined;
    }

    /// They are closed. Whose they were, and where, if they were open.
    pub fn closed(&mut self) -> Option<(Tenure, Vec<u64>)> {
        let tenure = self.tenure.take()?;
        self.take_flushed();
        self.ticks = 0;
        Some((tenure, std::mem::take(&mut self.regions)))
    }

    /// The context is that of the tables at `root`: what was noted of another address space is forgotten.
    pub fn is_of(&mut self, root: u64) {
        if self.root != root {
            (self.root, self.ticks, self.denied, self.in_the_way) = (root, 0, false, None);
        }
    }

    /// Following a flush has cost `cost`. Whether they cost more than they can be worth.
    pub fn costs_too_much(&mut self, cost: Duration) -> bool {
        self.cost += cost;
        self.cost > COST_IN_ANY_CASE
            && self.since.is_some_and(|since| self.cost > since.elapsed() / COST_SHARE)
    }

    /// The context was flushed.
    pub fn all_flushed(&mut self) {
        self.all = self.is_open();
    }

    /// The page at `linear` was flushed.
    pub fn page_flushed(&mut self, linear: u64) {
        if !self.is_open() || self.all || linear >> 47 != 0 {
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
