//! The table of flows: found by their token, by their addresses, by their deadlines, and in turn when they have work.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::Hash;

use crate::net::poller::Time;

/// A flow's place and how many were there before it, so that a late report never meets a stranger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct FlowId {
    index: u32,
    generation: u32,
}

impl FlowId {
    /// As a number, for epoll.
    pub(super) fn token(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// Of such a number.
    pub(super) fn of_token(token: u64) -> Self {
        Self { index: (token & 0xffff_ffff) as u32, generation: (token >> 32) as u32 }
    }
}

struct Slot<K, F> {
    generation: u32,
    flow: Option<(K, F)>,
    /// It is in the ready queue.
    is_queued: bool,
    /// The earliest of its entries in the heap of deadlines.
    alarm: Option<Time>,
    /// When it really wants to be called.
    deadline: Option<Time>,
}

/// Flows of type `F`, each with a key of its own.
pub(super) struct Flows<K, F> {
    slots: Vec<Slot<K, F>>,
    free: Vec<u32>,
    keys: HashMap<K, FlowId>,
    ready: VecDeque<FlowId>,
    alarms: BinaryHeap<Reverse<(Time, FlowId)>>,
}

impl<K: Clone + Eq + Hash, F> Flows<K, F> {
    pub(super) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            keys: HashMap::new(),
            ready: VecDeque::new(),
            alarms: BinaryHeap::new(),
        }
    }

    pub(super) fn find(&self, key: &K) -> Option<FlowId> {
        self.keys.get(key).copied()
    }

    pub(super) fn get_mut(&mut self, id: FlowId) -> Option<&mut F> {
        Some(&mut self.slot_mut(id)?.flow.as_mut()?.1)
    }

    fn slot_mut(&mut self, id: FlowId) -> Option<&mut Slot<K, F>> {
        self.slots.get_mut(id.index as usize).filter(|slot| slot.generation == id.generation)
    }

    /// The id that the next flow gets, for its socket's registration.
    pub(super) fn next_id(&mut self) -> FlowId {
        let index = self.free.last().copied().unwrap_or_else(|| {
            let index = u32::try_from(self.slots.len()).expect("flows are limited to some thousands");
            let slot = Slot { generation: 0, flow: None, is_queued: false, alarm: None, deadline: None };
            self.slots.push(slot);
            self.free.push(index);
            index
        });
        FlowId { index, generation: self.slots[index as usize].generation }
    }

    /// Adds a flow; the key must be new.
    pub(super) fn insert(&mut self, key: K, flow: F) -> FlowId {
        let id = self.next_id();
        self.free.pop();
        self.keys.insert(key.clone(), id);
        self.slots[id.index as usize].flow = Some((key, flow));
        id
    }

    pub(super) fn remove(&mut self, id: FlowId) -> Option<F> {
        let slot = self.slot_mut(id)?;
        let (key, flow) = slot.flow.take()?;
        // 2^32 flows later in the same place, a report of the first would have been forgotten.
        slot.generation = slot.generation.wrapping_add(1);
        (slot.is_queued, slot.alarm, slot.deadline) = (false, None, None);
        self.free.push(id.index);
        self.keys.remove(&key);
        Some(flow)
    }

    /// The flow has work: it comes when its turn is.
    pub(super) fn enqueue(&mut self, id: FlowId) {
        let Some(slot) = self.slot_mut(id) else { return };
        if slot.flow.is_some() && !std::mem::replace(&mut slot.is_queued, true) {
            self.ready.push_back(id);
        }
    }

    /// Takes whose turn it is.
    pub(super) fn next_ready(&mut self) -> Option<FlowId> {
        loop {
            let id = self.ready.pop_front()?;
            if let Some(slot) = self.slot_mut(id) {
                slot.is_queued = false;
                return Some(id);
            }
        }
    }

    /// Gives a flow its turn back, which could not use it.
    pub(super) fn return_turn(&mut self, id: FlowId) {
        let Some(slot) = self.slot_mut(id) else { return };
        if !std::mem::replace(&mut slot.is_queued, true) {
            self.ready.push_front(id);
        }
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Sets when the flow is to be called. A deadline that moves away leaves its entry in the heap, which moves on when it
    /// comes up: retransmission timers are set anew at every acknowledgement and hardly ever go off.
    pub(super) fn set_deadline(&mut self, id: FlowId, deadline: Option<Time>) {
        let Some(slot) = self.slot_mut(id) else { return };
        slot.deadline = deadline;
        if let Some(time) = deadline
            && slot.alarm.is_none_or(|alarm| time < alarm)
        {
            slot.alarm = Some(time);
            self.alarms.push(Reverse((time, id)));
        }
    }

    /// The next flow whose deadline has come; it has none then.
    pub(super) fn next_expired(&mut self, now: Time) -> Option<FlowId> {
        while let Some(&Reverse((time, id))) = self.alarms.peek()
            && time <= now
        {
            self.alarms.pop();
            let Some(slot) = self.slot_mut(id) else { continue };
            if slot.alarm != Some(time) {
                // An earlier entry of the flow has taken this one's place.
                continue;
            }
            slot.alarm = None;
            match slot.deadline {
                Some(deadline) if deadline <= now => {
                    slot.deadline = None;
                    return Some(id);
                }
                deadline => self.set_deadline(id, deadline),
            }
        }
        None
    }

    /// When [`Flows::next_expired`] may have something to say.
    pub(super) fn next_alarm(&self) -> Option<Time> {
        self.alarms.peek().map(|Reverse((time, _))| *time)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (FlowId, &F)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let id = FlowId { index: index as u32, generation: slot.generation };
            slot.flow.as_ref().map(|(_, flow)| (id, flow))
        })
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::from_secs(seconds)
    }

    #[test]
    fn a_late_report_meets_nobody() {
        let mut flows = Flows::new();
        let first = flows.insert("a", 1);
        assert_eq!(FlowId::of_token(first.token()), first);
        flows.enqueue(first);
        assert_eq!(flows.remove(first), Some(1));
        let second = flows.insert("b", 2);
        assert_eq!(flows.get_mut(first), None);
        assert_eq!(flows.get_mut(second), Some(&mut 2));
        assert_eq!((flows.next_ready(), flows.find(&"a"), flows.len()), (None, None, 1));
        assert_eq!(flows.remove(first), None);
    }

    #[test]
    fn turns_go_round() {
        let mut flows = Flows::new();
        let [a, b] = ["a", "b"].map(|key| flows.insert(key, ()));
        for id in [a, b, a] {
            flows.enqueue(id);
        }
        assert_eq!(flows.next_ready(), Some(a));
        flows.return_turn(a);
        assert_eq!([flows.next_ready(), flows.next_ready(), flows.next_ready()], [Some(a), Some(b), None]);
        assert!(!flows.has_ready());
    }

    #[test]
    fn deadlines_move() {
        let mut flows = Flows::new();
        let [a, b] = ["a", "b"].map(|key| flows.insert(key, ()));
        flows.set_deadline(a, Some(at(1)));
        flows.set_deadline(b, Some(at(2)));
        flows.set_deadline(a, Some(at(3)));
        assert_eq!(flows.next_expired(at(1)), None);
        assert_eq!(flows.next_alarm(), Some(at(2)));
        flows.set_deadline(b, None);
        assert_eq!(flows.next_expired(at(2)), None);
        flows.set_deadline(a, Some(at(2)));
        assert_eq!(flows.next_expired(at(9)), Some(a));
        assert_eq!((flows.next_expired(at(9)), flows.next_alarm()), (None, None));
    }
}
