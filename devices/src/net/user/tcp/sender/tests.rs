//! The sender alone, without a cable.

use super::*;

fn ack(window: u16, ack: u32) -> Segment<'static> {
    Segment {
        seq: 1,
        ack: Some(ack),
        syn: false,
        fin: false,
        rst: false,
        window,
        max_segment: None,
        window_scale: None,
        payload: &[],
    }
}

fn at(seconds: u64) -> Time {
    Time::from_secs(seconds)
}

/// With `bytes` to send from number 1 on, in segments of 1000.
fn sender(window: u16, bytes: usize) -> Sender {
    let mut sender = Sender::new(0, MAX_SEGMENT);
    sender.meet(&Segment { syn: true, max_segment: Some(1000), ..ack(0, 0) });
    sender.open(&ack(window, 1));
    sender.ring.push(&vec![0; bytes], CAPACITY_BYTES, &mut Budget { left_bytes: 1 << 20 });
    sender
}

/// Sends what may be sent; the numbers and lengths.
fn send_all(sender: &mut Sender) -> Vec<(u32, usize)> {
    let mut sent = Vec::new();
    while let Some(chunk) = sender.next(1000) {
        sender.sent(&chunk, at(0));
        sent.push((chunk.seq, chunk.len));
        assert!(sent.len() < 1000);
    }
    sender.arm(at(0));
    sent
}

#[test]
fn the_window_is_kept() {
    let mut sender = sender(2500, 5000);
    // The crumb of 500 waits for an acknowledgement.
    assert_eq!(send_all(&mut sender), [(1, 1000), (1001, 1000)]);
    assert!(sender.acknowledge(&ack(2500, 1001), 1001, at(0)));
    assert_eq!(send_all(&mut sender), [(2001, 1000)]);
    assert!(!sender.acknowledge(&ack(2500, 4000), 4000, at(0)), "never sent");
    assert!(sender.acknowledge(&ack(9000, 3001), 3001, at(0)));
    assert_eq!(send_all(&mut sender), [(3001, 1000), (4001, 1000)]);
    assert!(sender.deadline.is_some());
    assert!(sender.acknowledge(&ack(9000, 5001), 5001, at(0)));
    sender.arm(at(0));
    assert_eq!((sender.deadline, sender.ring.len()), (None, 0));
}

#[test]
fn three_duplicates_are_a_loss() {
    let mut sender = sender(9000, 5000);
    assert_eq!(send_all(&mut sender).len(), 5);
    for _ in 0..2 {
        assert!(sender.acknowledge(&ack(9000, 1), 1, at(0)));
        assert_eq!(send_all(&mut sender), []);
    }
    assert!(sender.acknowledge(&ack(9000, 1), 1, at(0)));
    assert_eq!(send_all(&mut sender), [(1, 1000)]);
    // The acknowledgement goes up to the next hole.
    assert!(sender.acknowledge(&ack(9000, 2001), 2001, at(0)));
    assert_eq!(send_all(&mut sender), [(2001, 1000)]);
    assert!(sender.acknowledge(&ack(9000, 5001), 5001, at(0)));
    assert_eq!(send_all(&mut sender), []);
}

#[test]
fn a_time_out_begins_anew_with_one_segment() {
    let mut sender = sender(9000, 3000);
    send_all(&mut sender);
    assert!(sender.expire());
    assert_eq!(send_all(&mut sender), [(1, 1000)]);
    assert!(sender.acknowledge(&ack(9000, 1001), 1001, at(1)));
    assert_eq!(send_all(&mut sender), [(1001, 1000), (2001, 1000)]);
}

#[test]
fn the_end_comes_behind_everything() {
    let mut sender = sender(1000, 1000);
    sender.end();
    // FIN takes a place in the window.
    assert_eq!(send_all(&mut sender), [(1, 1000)]);
    assert!(!sender.is_end_sent() && sender.wanted() == 0);
    assert!(sender.acknowledge(&ack(1000, 1001), 1001, at(0)));
    assert_eq!(send_all(&mut sender), [(1001, 0)]);
    assert!(sender.is_end_sent() && !sender.is_end_acknowledged());
    // Lost, and sent again.
    assert!(sender.expire());
    assert_eq!(send_all(&mut sender), [(1001, 0)]);
    assert!(sender.acknowledge(&ack(1000, 1002), 1002, at(0)));
    assert!(sender.is_end_acknowledged());
    sender.arm(at(0));
    assert_eq!(sender.deadline, None);
}

#[test]
fn a_shut_window_is_tried_with_a_byte() {
    let mut sender = sender(0, 3000);
    assert_eq!(send_all(&mut sender), []);
    assert!(sender.deadline.is_some());
    for _ in 0..3 {
        assert!(sender.expire());
        assert_eq!(send_all(&mut sender), [(1, 1)]);
        assert!(sender.acknowledge(&ack(0, 1), 1, at(0)));
    }
    assert!(sender.acknowledge(&ack(9000, 1), 1, at(0)));
    assert_eq!(send_all(&mut sender), [(1, 1000), (1001, 1000), (2001, 1000)]);
}
