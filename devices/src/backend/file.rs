//! A backend that writes to a file.

use std::fs::File;
use std::io::Write;

use super::CharBackend;

/// `-serial file:PATH`: what the guest sends is appended where the file stands.
#[derive(Debug)]
pub struct FileBackend(File);

impl FileBackend {
    /// Writes to `file`, which is open for writing.
    pub fn new(file: File) -> Self {
        Self(file)
    }
}

impl CharBackend for FileBackend {
    fn write(&self, bytes: &[u8]) {
        if let Err(error) = (&self.0).write_all(bytes) {
            tracing::warn!(target: "serial", %error, lost = bytes.len(), "serial output lost");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    #[test]
    fn bytes_reach_the_file_in_order() {
        let mut file = vmm_sys_util::tempfile::TempFile::new().unwrap().into_file();
        let backend = FileBackend::new(file.try_clone().unwrap());
        backend.write(b"one ");
        backend.write(b"two");
        let mut content = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut content).unwrap();
        assert_eq!(content, "one two");
    }
}
