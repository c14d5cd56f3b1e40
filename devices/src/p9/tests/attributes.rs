//! Owners, modes, times, sizes, and extended attributes.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;

/// What a client sees: mode, uid, gid, links, device, size.
fn getattr(client: &mut Client, fid: u32) -> (u32, u32, u32, u64, u64, u64) {
    let reply = client.call(message::T_GETATTR, Body::fid(fid).u64(u64::MAX)).unwrap();
    assert_eq!(reply.len(), 153);
    let mut reader = Reader::new(&reply);
    assert_eq!(reader.u64().unwrap(), 0x7ff);
    reader.bytes(Qid::BYTES).unwrap();
    (
        reader.u32().unwrap(),
        reader.u32().unwrap(),
        reader.u32().unwrap(),
        reader.u64().unwrap(),
        reader.u64().unwrap(),
        reader.u64().unwrap(),
    )
}

#[derive(Default)]
struct Set {
    valid: u32,
    mode: u32,
    owner: (u32, u32),
    size: u64,
    times: [u64; 4],
}

fn setattr(client: &mut Client, fid: u32, set: &Set) -> Result<(), Errno> {
    let body = Body::fid(fid).u32(set.valid).u32(set.mode).u32(set.owner.0).u32(set.owner.1).u64(set.size);
    let body = set.times.iter().fold(body, |body, time| body.u64(*time));
    client.call(message::T_SETATTR, body).map(|_| ())
}

#[test]
fn attributes_of_the_host() {
    let folder = Folder::new("attributes");
    std::fs::write(folder.shared("file"), "content").unwrap();
    std::fs::set_permissions(folder.shared("file"), PermissionsExt::from_mode(0o640)).unwrap();
    let host = std::fs::metadata(folder.shared("file")).unwrap();
    let mut client = Client::new(&folder, PLAIN);
    client.walk(1, "file").unwrap();
    assert_eq!(getattr(&mut client, 1), (0o100640, host.uid(), host.gid(), 1, 0, 7));
    setattr(&mut client, 1, &Set { valid: 1, mode: 0o100604, ..Set::default() }).unwrap();
    setattr(&mut client, 1, &Set { valid: 8, size: 3, ..Set::default() }).unwrap();
    let times = [1000, 5, u64::MAX, 999_999_999];
    setattr(&mut client, 1, &Set { valid: 0x1b0, times, ..Set::default() }).unwrap();
    let host = std::fs::metadata(folder.shared("file")).unwrap();
    assert_eq!((host.mode() & 0o7777, host.len()), (0o604, 3));
    assert_eq!(
        (host.atime(), host.atime_nsec(), host.mtime(), host.mtime_nsec()),
        (1000, 5, -1, 999_999_999)
    );
    // Only one of them, and now; and a time that is none.
    setattr(&mut client, 1, &Set { valid: 0x20, ..Set::default() }).unwrap();
    let host = std::fs::metadata(folder.shared("file")).unwrap();
    assert!(host.atime() == 1000 && host.mtime() > 1_000_000_000);
    setattr(&mut client, 1, &Set { valid: 0x90, times: [7, u64::MAX, 0, 0], ..Set::default() }).unwrap();
    assert_eq!(std::fs::metadata(folder.shared("file")).unwrap().atime_nsec(), 999_999_999);
    setattr(&mut client, 1, &Set { valid: 0x40, ..Set::default() }).unwrap();
    // A file that is open for writing is cut whatever its mode is by now.
    client.open(2, "file", 2).unwrap();
    setattr(&mut client, 2, &Set { valid: 9, mode: 0o400, size: 1, ..Set::default() }).unwrap();
    assert_eq!(std::fs::metadata(folder.shared("file")).unwrap().len(), 1);
    assert_eq!(setattr(&mut client, ROOT, &Set { valid: 8, size: 1, ..Set::default() }), Err(Errno::ISDIR));
    // What a link leads to is not touched.
    std::os::unix::fs::symlink("file", folder.shared("link")).unwrap();
    client.walk(3, "link").unwrap();
    assert_eq!(getattr(&mut client, 3).0, 0o120777);
    assert_eq!(setattr(&mut client, 3, &Set { valid: 1, ..Set::default() }), Err(Errno::OPNOTSUPP));
    assert_eq!(setattr(&mut client, 3, &Set { valid: 8, ..Set::default() }), Err(Errno::LOOP));
    setattr(&mut client, 3, &Set { valid: 0x1b0, times: [9, 9, 9, 9], ..Set::default() }).unwrap();
    assert_eq!(std::fs::symlink_metadata(folder.shared("link")).unwrap().mtime(), 9);
    assert_ne!(std::fs::metadata(folder.shared("file")).unwrap().mtime(), 9);
}

fn stored(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = [0; 64];
    let count = rustix::fs::getxattr(path, format!("user.virtfs.{name}"), &mut value).ok()?;
    Some(value[..count].to_vec())
}

#[test]
fn mapped_attributes_are_beside_the_file() {
    let folder = Folder::new("mapped");
    let mut client = Client::new(&folder, MAPPED);
    client.create(1, "file", 0o4755).unwrap();
    let path = folder.shared("file");
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(getattr(&mut client, 1), (0o104755, 1000, 100, 1, 0, 0));
    // As QEMU has them.
    let word = |value: u32| Some(value.to_le_bytes().to_vec());
    let all = ["uid", "gid", "mode"].map(|name| stored(&path, name));
    assert_eq!(all, [word(1000), word(100), word(0o104755)]);
    setattr(&mut client, 1, &Set { valid: 7, mode: 0o100600, owner: (0, 5), ..Set::default() }).unwrap();
    setattr(&mut client, 1, &Set { valid: 4, owner: (9, 6), ..Set::default() }).unwrap();
    assert_eq!(getattr(&mut client, 1), (0o100600, 0, 6, 1, 0, 0));
    client.call(message::T_MKNOD, Body::fid(ROOT).s("n").u32(0o60660).u32(8).u32(1).u32(7)).unwrap();
    client.walk(2, "n").unwrap();
    assert_eq!(getattr(&mut client, 2), (0o60660, 1000, 7, 1, rustix::fs::makedev(8, 1), 0));
    assert_eq!(stored(&folder.shared("n"), "rdev").map(|bytes| bytes.len()), Some(8));
    // A changed mode does not change what it is.
    setattr(&mut client, 2, &Set { valid: 1, mode: 0o100777, ..Set::default() }).unwrap();
    assert_eq!(getattr(&mut client, 2).0, 0o60777);
    // A directory is one, whatever an attribute says; one of the wrong length says nothing.
    std::fs::create_dir(folder.shared("d")).unwrap();
    let set = |name: &str, value: &[u8]| {
        let none = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(folder.shared("d"), format!("user.virtfs.{name}"), value, none).unwrap();
    };
    set("mode", &0o120777u32.to_le_bytes());
    set("uid", b"12");
    client.walk(3, "d").unwrap();
    let seen = getattr(&mut client, 3);
    assert_eq!((seen.0, seen.1), (0o40777, std::fs::metadata(folder.shared("d")).unwrap().uid()));
}

fn set_attribute(client: &mut Client, name: &str, value: &[u8], size: u64, flags: u32) -> Result<(), Errno> {
    client.walk(9, "file").unwrap();
    client.call(message::T_XATTRCREATE, Body::fid(9).s(name).u64(size).u32(flags)).inspect_err(|_| {
        client.clunk(9).unwrap();
    })?;
    if !value.is_empty()
        && let Err(error) = client.write(9, 0, value)
    {
        assert!(client.clunk(9).is_err());
        return Err(error);
    }
    client.clunk(9)
}

fn get_attribute(client: &mut Client, name: &str) -> Result<Vec<u8>, Errno> {
    client.walk(9, "file").unwrap();
    let size = client.call(message::T_XATTRWALK, Body::fid(9).u32(10).s(name));
    client.clunk(9).unwrap();
    let size = Reader::new(&size?).u64().unwrap();
    let value = client.read(10, 0, 1 << 20).unwrap();
    assert_eq!(value.len() as u64, size);
    assert_eq!(client.read(10, size + 1, 5), Ok(Vec::new()));
    client.clunk(10).unwrap();
    Ok(value)
}

#[test]
fn extended_attributes() {
    for options in [PLAIN, MAPPED] {
        let mapped = options.security.is_mapped();
        let folder = Folder::new(&format!("xattr-{mapped}"));
        let mut client = Client::new(&folder, options);
        client.create(1, "file", 0o600).unwrap();
        client.clunk(1).unwrap();
        assert_eq!(get_attribute(&mut client, "user.a"), Err(Errno::NODATA));
        set_attribute(&mut client, "user.a", b"value", 5, 0).unwrap();
        set_attribute(&mut client, "user.b", &[1; 1000], 1000, 1).unwrap();
        assert_eq!(set_attribute(&mut client, "user.b", b"x", 1, 1), Err(Errno::EXIST));
        assert_eq!(set_attribute(&mut client, "user.c", b"x", 1, 2), Err(Errno::NODATA));
        assert_eq!(get_attribute(&mut client, "user.a"), Ok(b"value".to_vec()));
        assert_eq!(get_attribute(&mut client, "user.b"), Ok(vec![1; 1000]));
        let listed = |client: &mut Client| {
            let list = String::from_utf8(get_attribute(client, "").unwrap()).unwrap();
            let mut names: Vec<String> = list.split_terminator('\0').map(String::from).collect();
            names.sort_unstable();
            names
        };
        assert_eq!(listed(&mut client), ["user.a", "user.b"]);
        set_attribute(&mut client, "user.b", b"", 0, 0).unwrap();
        assert_eq!(listed(&mut client), ["user.a"]);
        // Not whole, too long, not the guest's.
        assert_eq!(set_attribute(&mut client, "user.a", b"val", 5, 0), Err(Errno::IO));
        assert_eq!(set_attribute(&mut client, "user.a", b"value", 4, 0), Err(Errno::NOSPC));
        assert_eq!(set_attribute(&mut client, "user.a", b"", 1 << 40, 0), Err(Errno::TOOBIG));
        assert_eq!(set_attribute(&mut client, "user.a", b"v", 1, 4), Err(Errno::INVAL));
        assert_eq!(set_attribute(&mut client, "user.virtfs.uid", b"1234", 4, 0), Err(Errno::ACCESS));
        for name in ["security.capability", "trusted.a", "system.other"] {
            assert_eq!(set_attribute(&mut client, name, b"x", 1, 0), Err(Errno::OPNOTSUPP));
            assert_eq!(get_attribute(&mut client, name), Err(Errno::OPNOTSUPP));
        }
        assert_eq!(get_attribute(&mut client, "user.a"), Ok(b"value".to_vec()));
        // An access list is an attribute like others in the mapped model: to the host it means nothing.
        let list = set_attribute(&mut client, "system.posix_acl_access", b"list", 4, 0);
        assert_eq!(list, if mapped { Ok(()) } else { Err(Errno::OPNOTSUPP) });
        if mapped {
            assert_eq!(listed(&mut client), ["system.posix_acl_access", "user.a"]);
            let path = folder.shared("file");
            assert_eq!(stored(&path, "system.posix_acl_access"), Some(b"list".to_vec()));
        }
        assert_eq!(client.server.attribute_bytes, 0);
    }
}

#[test]
fn attributes_do_not_fill_the_hosts_memory() {
    let folder = Folder::new("xattr-room");
    std::fs::write(folder.shared("file"), "").unwrap();
    let mut client = Client::new(&folder, PLAIN);
    let mut create = |fid| {
        client.walk(fid, "file").unwrap();
        client.call(message::T_XATTRCREATE, Body::fid(fid).s("user.a").u64(64 << 10).u32(0))
    };
    let results: Vec<_> = (1..=65).map(&mut create).collect();
    assert!(results[..64].iter().all(Result::is_ok));
    assert_eq!(results[64], Err(Errno::NOMEM));
    // What was not written is not set, and there is room again.
    assert_eq!(client.clunk(1), Err(Errno::IO));
    client.call(message::T_XATTRCREATE, Body::fid(65).s("user.a").u64(64 << 10).u32(0)).unwrap();
}
