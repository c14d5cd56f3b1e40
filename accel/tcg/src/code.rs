//! Generated code: where it lives, how it is written, and what is known of it.

pub mod buffer;
pub mod cache;
pub mod emitter;
pub mod gs_base;
pub mod jump_caches;
pub mod key_table;
pub mod notes;
pub mod pins;
pub mod reclaim;
pub mod refill;
pub mod store;
pub mod tb;
pub mod thunks;
pub mod writers;
