//! Making, linking, renaming and removing.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use super::*;

#[test]
fn directories_and_links_as_they_are_on_the_host() {
    let folder = Folder::new("tree");
    let mut client = Client::new(&folder, PLAIN);
    client.call(message::T_MKDIR, Body::fid(ROOT).s("d").u32(0o750).u32(0)).unwrap();
    let made = std::fs::metadata(folder.shared("d")).unwrap();
    assert!(made.is_dir() && made.permissions().mode() & 0o7777 == 0o750);
    assert_eq!(client.call(message::T_MKDIR, Body::fid(ROOT).s("d").u32(0o750).u32(0)), Err(Errno::EXIST));
    client.call(message::T_SYMLINK, Body::fid(ROOT).s("s").s("d/anything").u32(0)).unwrap();
    assert_eq!(std::fs::read_link(folder.shared("s")).unwrap(), Path::new("d/anything"));
    client.walk(1, "s").unwrap();
    assert_eq!(client.call(message::T_READLINK, Body::fid(1)), Ok(Body::default().s("d/anything").0));
    // Links to links, not to where they lead.
    client.call(message::T_LINK, Body::fid(ROOT).u32(1).s("s2")).unwrap();
    assert!(std::fs::symlink_metadata(folder.shared("s2")).unwrap().is_symlink());
    client.call(message::T_MKNOD, Body::fid(ROOT).s("pipe").u32(0o10640).u32(0).u32(0).u32(0)).unwrap();
    let pipe = std::fs::metadata(folder.shared("pipe")).unwrap();
    assert!(pipe.file_type().is_fifo() && pipe.permissions().mode() & 0o777 == 0o640);
    client.create(2, "file", 0o604).unwrap();
    let file = std::fs::metadata(folder.shared("file")).unwrap();
    assert_eq!(file.permissions().mode() & 0o7777, 0o604);
    client.call(message::T_LINK, Body::fid(ROOT).u32(2).s("file2")).unwrap();
    assert_eq!(std::fs::metadata(folder.shared("file2")).unwrap().ino(), file.ino());
    assert_eq!(client.call(message::T_READLINK, Body::fid(2)), Err(Errno::INVAL));
    for (kind, mode) in [("a directory", 0o40700), ("a link", 0o120777), ("nonsense", 0o170000)] {
        let body = Body::fid(ROOT).s("no").u32(mode).u32(0).u32(0).u32(0);
        assert_eq!(client.call(message::T_MKNOD, body), Err(Errno::INVAL), "{kind}");
    }
}

#[test]
fn removing() {
    let folder = Folder::new("removing");
    let mut client = Client::new(&folder, PLAIN);
    std::fs::create_dir_all(folder.shared("d/sub")).unwrap();
    std::fs::write(folder.shared("file"), "x").unwrap();
    let unlink = |name: &str, flags| Body::fid(ROOT).s(name).u32(flags);
    assert_eq!(client.call(message::T_UNLINKAT, unlink("d", 0)), Err(Errno::ISDIR));
    assert_eq!(client.call(message::T_UNLINKAT, unlink("d", 0x200)), Err(Errno::NOTEMPTY));
    assert_eq!(client.call(message::T_UNLINKAT, unlink("file", 0x200)), Err(Errno::NOTDIR));
    assert_eq!(client.call(message::T_UNLINKAT, unlink("file", 1)), Err(Errno::INVAL));
    // An open file stays readable.
    client.open(1, "file", 2).unwrap();
    client.call(message::T_UNLINKAT, unlink("file", 0)).unwrap();
    assert_eq!(client.read(1, 0, 9), Ok(b"x".to_vec()));
    assert_eq!(client.call(message::T_REMOVE, Body::fid(1)), Err(Errno::NOENT));
    assert_eq!(client.clunk(1), Err(Errno::BADF), "it is given back in any case");
    client.walk(1, "d/sub").unwrap();
    client.call(message::T_REMOVE, Body::fid(1)).unwrap();
    client.walk(1, "d").unwrap();
    // Somebody has put another one there.
    std::fs::rename(folder.shared("d"), folder.shared("e")).unwrap();
    std::fs::create_dir(folder.shared("d")).unwrap();
    assert_eq!(client.call(message::T_REMOVE, Body::fid(1)), Err(Errno::STALE));
    assert_eq!(client.call(message::T_REMOVE, Body::fid(ROOT)), Err(Errno::BUSY));
    assert_eq!(client.server.fids.iter().count(), 0);
}

#[test]
fn fids_follow_what_is_renamed() {
    let folder = Folder::new("renaming");
    let mut client = Client::new(&folder, PLAIN);
    std::fs::create_dir_all(folder.shared("a")).unwrap();
    std::fs::create_dir_all(folder.shared("b")).unwrap();
    std::fs::write(folder.shared("a/file"), "content").unwrap();
    std::fs::write(folder.shared("b/old"), "other").unwrap();
    for (fid, path) in [(1, "a"), (2, "b"), (3, "a/file"), (4, "b/old")] {
        client.walk(fid, path).unwrap();
    }
    client.call(message::T_RENAMEAT, Body::fid(1).s("file").u32(2).s("old")).unwrap();
    assert_eq!(std::fs::read(folder.shared("b/old")).unwrap(), b"content");
    client.call(message::T_LOPEN, Body::fid(3).u32(0)).unwrap();
    assert_eq!(client.read(3, 0, 100), Ok(b"content".to_vec()));
    // The one that was there is nowhere now.
    assert_eq!(client.call(message::T_RENAME, Body::fid(4).u32(1).s("x")), Err(Errno::STALE));
    client.call(message::T_RENAME, Body::fid(3).u32(1).s("new")).unwrap();
    assert_eq!(std::fs::read(folder.shared("a/new")).unwrap(), b"content");
    // The directory above, too.
    client.call(message::T_RENAMEAT, Body::fid(ROOT).s("a").u32(2).s("moved")).unwrap();
    client.call(message::T_REMOVE, Body::fid(3)).unwrap();
    assert!(!folder.shared("b/moved/new").exists() && folder.shared("b/moved").exists());
    assert_eq!(
        client.call(message::T_RENAMEAT, Body::fid(ROOT).s("missing").u32(ROOT).s("x")),
        Err(Errno::NOENT)
    );
    assert_eq!(client.call(message::T_RENAME, Body::fid(ROOT).u32(2).s("x")), Err(Errno::BUSY));
}

#[test]
fn mapped_links_and_devices_are_plain_files() {
    let folder = Folder::new("mapped-tree");
    let mut client = Client::new(&folder, MAPPED);
    client.call(message::T_SYMLINK, Body::fid(ROOT).s("s").s("/etc/shadow").u32(7)).unwrap();
    client.call(message::T_MKNOD, Body::fid(ROOT).s("n").u32(0o60660).u32(8).u32(1).u32(7)).unwrap();
    client.call(message::T_MKDIR, Body::fid(ROOT).s("d").u32(0o1777).u32(7)).unwrap();
    for (name, content) in [("s", "/etc/shadow"), ("n", "")] {
        let made = std::fs::symlink_metadata(folder.shared(name)).unwrap();
        assert!(made.is_file() && made.permissions().mode() & 0o7777 == 0o600);
        assert_eq!(std::fs::read_to_string(folder.shared(name)).unwrap(), content);
    }
    let made = std::fs::metadata(folder.shared("d")).unwrap();
    assert_eq!(made.permissions().mode() & 0o7777, 0o700);
    client.walk(1, "s").unwrap();
    assert_eq!(client.call(message::T_READLINK, Body::fid(1)), Ok(Body::default().s("/etc/shadow").0));
    // They are no files to the guest.
    for name in ["s", "n"] {
        assert_eq!(client.open(2, name, 0), Err(Errno::NXIO));
    }
    assert_eq!(
        client.call(message::T_SYMLINK, Body::fid(ROOT).s("long").s("x".repeat(4096)).u32(7)),
        Err(Errno::NAMETOOLONG)
    );
    assert!(!folder.shared("long").exists());
    let again = Body::fid(ROOT).s("s").s("elsewhere").u32(7);
    assert_eq!(client.call(message::T_SYMLINK, again), Err(Errno::EXIST));
    assert_eq!(std::fs::read_to_string(folder.shared("s")).unwrap(), "/etc/shadow");
}
