//! The 9P2000.L server by itself: one message after the other, in little room or much, on a folder of the host's.
#![no_main]

use std::sync::Arc;

use devices::p9::{ERROR_BYTES, HEADER_BYTES, Server};
use fuzz::input::Input;
use fuzz::p9::{Folder, hello, next_message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let folder = Folder::new(input.u8());
    let mut server = Server::new(Arc::clone(&folder.share));
    let mut reply = Vec::new();
    for message in hello() {
        server.answer(&message, &mut reply, 8192);
        assert_eq!(reply.get(4), message.get(4).map(|kind| kind + 1).as_ref(), "hello");
    }
    while !input.is_empty() {
        let message = next_message(&mut input);
        let room = match input.u8() {
            0xff => ERROR_BYTES + usize::from(input.u8()),
            _ => 1 << 16,
        };
        server.answer(&message, &mut reply, room);
        let size = u32::from_le_bytes(reply[..4].try_into().expect("a header"));
        assert_eq!(size as usize, reply.len(), "a message says how long it is");
        assert!((HEADER_BYTES..=room).contains(&reply.len()), "{} bytes in {room}", reply.len());
        let answers = [7, message.get(4).map_or(7, |kind| kind.wrapping_add(1))];
        assert!(answers.contains(&reply[4]), "an answer to something else");
    }
});
