//! The harness of the whole-machine tests: guests, machines run to their end with a time limit, clean logs.
//!
//! Each whole-machine test includes it as a module; as a test program of its own it checks itself.
#![allow(dead_code, reason = "each test program uses a part")]

#[path = "harness/guests.rs"]
pub mod guests;
#[path = "harness/http.rs"]
pub mod http;
#[path = "harness/in_process.rs"]
pub mod in_process;
#[path = "harness/linux.rs"]
pub mod linux;
#[path = "harness/log.rs"]
pub mod log;
#[path = "harness/session.rs"]
pub mod session;
