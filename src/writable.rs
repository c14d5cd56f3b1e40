//! Whether a file could be written, asked before any file is.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Says what creating `path` for writing would fail with; creates and truncates nothing.
pub fn check(path: &Path) -> io::Result<()> {
    // Without waiting for the reader of a named pipe.
    let opened = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path);
    match opened {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => check_folder(path),
        Err(error) => Err(error),
    }
}

/// The file is not there: its folder must be, and take it.
fn check_folder(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // A nameless file goes the way of a named one, and leaves nothing behind.
    match OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).mode(0o600).open(folder) {
        Ok(_) => Ok(()),
        // Some file systems have no nameless files.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_created_or_truncated() {
        let folder = std::env::temp_dir().join(format!("bivisor-writable-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (there, absent) = (folder.join("there"), folder.join("absent"));
        std::fs::write(&there, "kept").unwrap();
        check(&there).unwrap();
        check(&absent).unwrap();
        assert_eq!(std::fs::read_to_string(&there).unwrap(), "kept");
        assert!(!absent.exists());
        assert_eq!(check(&folder.join("no/such")).unwrap_err().kind(), ErrorKind::NotFound);
        assert!(check(&folder).is_err(), "a folder is no file");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
