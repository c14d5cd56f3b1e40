//! A backend that takes everything and gives nothing.

use super::CharBackend;

/// `-serial null`.
#[derive(Clone, Copy, Debug, Default)]
pub struct NullBackend;

impl CharBackend for NullBackend {
    fn write(&self, _bytes: &[u8]) {}
}
