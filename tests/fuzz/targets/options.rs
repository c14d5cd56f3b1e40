//! The command line: each line of the input is a word; or the input is a file of `-readconfig`. Nothing that a user writes panics,
//! and every message is one line.
#![no_main]

use std::ffi::OsString;
use std::os::fd::AsRawFd;

use fuzz::machine::in_memory;
use libfuzzer_sys::fuzz_target;
use vmm_sys_util::tempfile::TempFile;

fn parse(words: impl Iterator<Item = OsString>) {
    if let Err(error) = bivisor::options::parse(words) {
        // A word of the user's may itself hold what a terminal takes for a line's end; a line of ours does not.
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}

fuzz_target!(|input: &[u8]| {
    let text = String::from_utf8_lossy(input);
    if input.first() == Some(&b'[') {
        let file = TempFile::new_in(&in_memory()).expect("a temporary folder").into_file();
        std::os::unix::fs::FileExt::write_all_at(&file, input, 0).expect("there is room");
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        return parse(["-kernel", "k", "-readconfig", &path].into_iter().map(OsString::from));
    }
    // The input is no list of this host's files.
    parse(text.lines().filter(|word| !word.contains("readconfig")).map(OsString::from));
});
