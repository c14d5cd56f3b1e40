//! The translator: decode, rewrite, emit.
//!
//! The guest's instruction set is the host's. An instruction that touches neither memory nor privileged state is copied;
//! one with a memory operand is re-encoded with the operand's translated host address; control flow, stack
//! and the frequent system instructions have emitters of their own; the rest calls a helper.

pub mod address;
pub mod again;
pub mod bit_test;
pub mod block;
pub mod classify;
pub mod cold;
pub mod control;
pub mod encode;
pub mod facts;
pub mod features;
pub mod flag_moves;
pub mod flags;
pub mod fusion;
pub mod generator;
pub mod groups;
pub mod icount;
pub mod liveness;
pub mod native;
pub mod place;
pub mod prologue;
pub mod reencode;
pub mod registers;
pub mod shape;
pub mod stack;
pub mod system;
