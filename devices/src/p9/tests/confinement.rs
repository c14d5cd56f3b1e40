//! There is no way out of the folder.

use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

fn with_secret(name: &str) -> Folder {
    let folder = Folder::new(name);
    std::fs::create_dir(folder.outside("private")).unwrap();
    std::fs::write(folder.outside("private/file"), "secret").unwrap();
    folder
}

#[test]
fn names_do_not_lead_out() {
    let folder = with_secret("names");
    let mut client = Client::new(&folder, PLAIN);
    for name in ["../private", "/etc", "a/b", "", "private\0"] {
        let body = Body::fid(ROOT).u32(1).u16(1).s(name);
        assert!(client.call(message::T_WALK, body).is_err(), "{name:?}");
        for kind in [message::T_MKDIR, message::T_LCREATE] {
            assert!(client.call(kind, Body::fid(ROOT).s(name).u32(2).u32(0o700).u32(0)).is_err());
        }
        let body = Body::fid(ROOT).s(name).u32(0x200);
        assert!(client.call(message::T_UNLINKAT, body).is_err());
    }
    // Above the root is the root.
    client.walk(1, "../../../..").unwrap();
    let qid = |client: &mut Client, fid| {
        client.call(message::T_GETATTR, Body::fid(fid).u64(0)).unwrap()[8..21].to_vec()
    };
    assert_eq!(qid(&mut client, 1), qid(&mut client, ROOT));
    assert_eq!(client.walk(2, "../private"), Err(Errno::NOENT));
    for name in [".", ".."] {
        let body = Body::fid(ROOT).s(name).u32(0x200);
        assert_eq!(client.call(message::T_UNLINKAT, body), Err(Errno::INVAL));
        let body = Body::fid(ROOT).s(name).u32(0o700).u32(0);
        assert_eq!(client.call(message::T_MKDIR, body), Err(Errno::EXIST));
        let body = Body::fid(ROOT).s("x").u32(ROOT).s(name);
        assert_eq!(client.call(message::T_RENAMEAT, body), Err(Errno::EXIST));
    }
    // Nor does the list of the root say what is above it.
    client.open(3, "", 0).unwrap();
    let reply = client.call(message::T_READDIR, Body::fid(3).u64(0).u32(1000)).unwrap();
    let mut reader = Reader::new(&reply[4..]);
    let mut paths = Vec::new();
    while !reader.is_empty() {
        paths.push(reader.bytes(Qid::BYTES).unwrap()[5..].to_vec());
        reader.bytes(9).unwrap();
        reader.string().unwrap();
    }
    assert!(paths.len() == 2 && paths[0] == paths[1]);
}

#[test]
fn links_are_not_followed() {
    let folder = with_secret("links");
    symlink("../private", folder.shared("dir")).unwrap();
    symlink("../private/file", folder.shared("file")).unwrap();
    symlink("../private/new", folder.shared("new")).unwrap();
    symlink("/proc/self/root", folder.shared("magic")).unwrap();
    for options in [PLAIN, MAPPED] {
        let mut client = Client::new(&folder, options);
        for path in ["dir/file", "magic/etc", "dir/.."] {
            assert_eq!(client.walk(1, path), Err(Errno::NOENT), "the walk ends at the link");
        }
        for path in ["dir", "file", "new", "magic"] {
            assert_eq!(client.open(1, path, 0), Err(Errno::LOOP));
            assert_eq!(client.open(1, path, 0o1002), Err(Errno::LOOP));
        }
        // To create through a link is to follow it.
        assert_eq!(client.create(1, "new", 0o600), Err(Errno::LOOP));
        assert_eq!(client.create(1, "file", 0o600), Err(Errno::LOOP));
        client.walk(1, "dir").unwrap();
        let body = Body::fid(1).s("made").u32(0o700).u32(0);
        assert_eq!(client.call(message::T_MKDIR, body), Err(Errno::NOTDIR));
        let body = Body::fid(1).s("file").u32(0);
        assert_eq!(client.call(message::T_UNLINKAT, body), Err(Errno::NOTDIR));
    }
    assert!(!folder.outside("private/new").exists());
    assert_eq!(std::fs::read(folder.outside("private/file")).unwrap(), b"secret");
}

/// The host's devices and pipes are not for the guest to open: it would wait, or have the device.
#[test]
fn special_files_are_not_opened() {
    let folder = Folder::new("special");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        folder.shared("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(folder.shared("socket")).unwrap();
    let mut client = Client::new(&folder, PLAIN);
    for path in ["pipe", "socket"] {
        for flags in [0, 1, 2] {
            assert_eq!(client.open(1, path, flags), Err(Errno::NXIO));
        }
        assert_eq!(client.create(1, path, 0o600), Err(Errno::NXIO));
    }
}

/// Somebody replaces a directory by a link to one outside, again and again, while the guest goes through it.
#[test]
fn a_race_leads_nowhere() {
    let folder = with_secret("race");
    std::fs::create_dir_all(folder.shared("dir")).unwrap();
    std::fs::write(folder.shared("dir/file"), "inside").unwrap();
    symlink("../private", folder.shared("link")).unwrap();
    let mut client = Client::new(&folder, PLAIN);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (dir, link) = (folder.shared("dir"), folder.shared("link"));
            while !done.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(rustix::fs::CWD, &dir, rustix::fs::CWD, &link, flags).unwrap();
            }
        });
        let mut inside = 0;
        for _ in 0..20_000 {
            if client.open(1, "dir/file", 0).is_ok() {
                assert_eq!(client.read(1, 0, 100), Ok(b"inside".to_vec()));
                client.clunk(1).unwrap();
                inside += 1;
            }
            if client.walk(2, "dir").is_ok() {
                let made = client.call(message::T_MKDIR, Body::fid(2).s("made").u32(0o700).u32(0));
                assert!(made.is_ok() || matches!(made, Err(Errno::NOTDIR | Errno::EXIST)), "{made:?}");
                client.clunk(2).unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(inside > 0);
    });
    assert_eq!(std::fs::read_dir(folder.outside("private")).unwrap().count(), 1);
}

/// A directory in a directory in a directory: letting go of them does not take a stack as deep.
#[test]
fn a_deep_tree() {
    const DEPTH: u32 = 1500;
    let folder = Folder::new("deep");
    let mut client = Client::new(&folder, PLAIN);
    client.walk(1, "").unwrap();
    for _ in 0..DEPTH {
        client.call(message::T_MKDIR, Body::fid(1).s("d").u32(0o700).u32(0)).unwrap();
        client.call(message::T_WALK, Body::fid(1).u32(1).u16(1).s("d")).unwrap();
    }
    // Up again, removing.
    let end = std::thread::Builder::new().stack_size(64 << 10).spawn(move || {
        client.call(message::T_WALK, Body::fid(1).u32(2).u16(0)).unwrap();
        for _ in 0..DEPTH {
            client.call(message::T_WALK, Body::fid(1).u32(1).u16(1).s("..")).unwrap();
            let body = Body::fid(1).s("d").u32(0x200);
            client.call(message::T_UNLINKAT, body).unwrap();
        }
        // This one still holds all of them.
        client.clunk(2).unwrap();
    });
    end.unwrap().join().unwrap();
}
