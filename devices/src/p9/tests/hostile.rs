//! Messages that no client sends.

use super::*;
use crate::testing::Random;

/// A request of each kind that is well-formed and does something.
fn requests() -> Vec<(u8, Body)> {
    let (file, root) = (|| Body::fid(1), || Body::fid(ROOT));
    vec![
        (message::T_STATFS, root()),
        (message::T_LOPEN, Body::fid(2).u32(0)),
        (message::T_LCREATE, Body::fid(3).s("new").u32(2).u32(0o600).u32(0)),
        (message::T_SYMLINK, root().s("s").s("target").u32(0)),
        (message::T_MKNOD, root().s("n").u32(0o10600).u32(0).u32(0).u32(0)),
        (message::T_RENAME, Body::fid(4).u32(ROOT).s("renamed")),
        (message::T_READLINK, Body::fid(5)),
        (message::T_GETATTR, file().u64(u64::MAX)),
        (message::T_SETATTR, file().u32(1).u32(0o600).u32(0).u32(0).u64(0).raw(&[0; 32])),
        (message::T_XATTRWALK, file().u32(90).s("")),
        (message::T_XATTRCREATE, Body::fid(6).s("user.a").u64(5).u32(0)),
        (message::T_READDIR, Body::fid(7).u64(0).u32(1000)),
        (message::T_FSYNC, file().u32(0)),
        (message::T_LOCK, file().u8(1).u32(0).u64(0).u64(1).u32(7).s("guest")),
        (message::T_GETLOCK, file().u8(1).u64(0).u64(1).u32(7).s("guest")),
        (message::T_LINK, root().u32(1).s("hard")),
        (message::T_MKDIR, root().s("dir").u32(0o700).u32(0)),
        (message::T_RENAMEAT, root().s("hard").u32(ROOT).s("harder")),
        (message::T_UNLINKAT, root().s("harder").u32(0)),
        (message::T_ATTACH, Body::fid(91).u32(u32::MAX).s("root").s("").u32(0)),
        (message::T_FLUSH, Body::default().u16(1)),
        (message::T_WALK, root().u32(92).u16(1).s("file")),
        (message::T_READ, file().u64(0).u32(100)),
        (message::T_WRITE, file().u64(0).u32(3).raw(b"abc")),
        (message::T_REMOVE, Body::fid(8)),
        (message::T_CLUNK, file()),
        (message::T_VERSION, Body::default().u32(8192).s("9P2000.L")),
    ]
}

/// A client with the fids that [`requests`] name.
fn client(folder: &Folder, options: ShareOptions) -> Client {
    let shared = folder.shared("");
    std::fs::remove_dir_all(&shared).unwrap();
    std::fs::create_dir(&shared).unwrap();
    for name in ["file", "other", "gone"] {
        std::fs::write(shared.join(name), "content").unwrap();
    }
    let mut client = Client::new(folder, options);
    let link = Body::fid(ROOT).s("link").s("target").u32(0);
    client.call(message::T_SYMLINK, link).unwrap();
    client.open(1, "file", 2).unwrap();
    for (fid, path) in [(2, "file"), (3, ""), (4, "other"), (5, "link"), (6, "file"), (8, "gone")] {
        client.walk(fid, path).unwrap();
    }
    client.open(7, "", 0).unwrap();
    client
}

#[test]
fn every_message_does_what_it_says() {
    for options in [PLAIN, MAPPED] {
        let folder = Folder::new(&format!("every-{}", options.security.is_mapped()));
        let mut client = client(&folder, options);
        for (kind, body) in requests() {
            let answer = client.call(kind, body);
            assert!(answer.is_ok(), "{kind}: {answer:?}");
        }
    }
}

/// A message that ends too early does nothing but get its error.
#[test]
fn truncated_messages() {
    let folder = Folder::new("truncated");
    for (index, (kind, body)) in requests().into_iter().enumerate() {
        // The last field of this one may be left out.
        let optional = if kind == message::T_FSYNC { 4 } else { 0 };
        let mut client = client(&folder, PLAIN);
        for (earlier, body) in requests().into_iter().take(index) {
            client.call(earlier, body).unwrap();
        }
        let before = std::fs::read_dir(folder.shared("")).unwrap().count();
        for count in 0..body.0.len() - optional {
            let cut = Body(body.0[..count].to_vec());
            assert_eq!(client.call(kind, cut), Err(Errno::PROTO), "{kind} of {count} bytes");
        }
        if kind != message::T_REMOVE && kind != message::T_UNLINKAT {
            assert_eq!(std::fs::read_dir(folder.shared("")).unwrap().count(), before, "{kind}");
        }
    }
}

#[test]
fn sizes_that_lie() {
    let folder = Folder::new("sizes");
    let mut server = client(&folder, PLAIN).server;
    let mut reply = Vec::new();
    let mut error = |message: &[u8]| {
        server.answer(message, &mut reply, 4096);
        assert_eq!((reply.len(), reply[4]), (ERROR_BYTES, message::R_LERROR));
        let tag = u16::from_le_bytes([reply[5], reply[6]]);
        (tag, Errno::from_raw_os_error(i32::from_le_bytes(reply[7..].try_into().unwrap())))
    };
    let flush = |size: u32| Body::default().u32(size).u8(message::T_FLUSH).u16(5).u16(1).0;
    assert_eq!(error(&[]), (u16::MAX, Errno::PROTO));
    assert_eq!(error(&flush(9)[..6]), (u16::MAX, Errno::PROTO));
    for size in [0, 8, 10, u32::MAX] {
        assert_eq!(error(&flush(size)), (5, Errno::MSGSIZE));
    }
    // Counts of more than there is.
    let write = Body::fid(1).u64(0).u32(u32::MAX).raw(b"abc");
    let mut client = client(&folder, PLAIN);
    assert_eq!(client.call(message::T_WRITE, write), Err(Errno::PROTO));
    let walk = Body::fid(ROOT).u32(90).u16(16).s("a");
    assert_eq!(client.call(message::T_WALK, walk), Err(Errno::PROTO));
    let mkdir = Body::fid(ROOT).u16(u16::MAX).raw(b"a");
    assert_eq!(client.call(message::T_MKDIR, mkdir), Err(Errno::PROTO));
    assert_eq!(client.call(99, Body::default()), Err(Errno::OPNOTSUPP));
    assert_eq!(client.call(u8::MAX - 1, Body::default()), Err(Errno::OPNOTSUPP));
}

/// A message that is longer than was agreed on, and an answer that would be.
#[test]
fn more_than_was_agreed_on() {
    let folder = Folder::new("msize");
    let mut client = client(&folder, PLAIN);
    client.call(message::T_VERSION, Body::default().u32(4096).s("9P2000.L")).unwrap();
    client.call(message::T_ATTACH, Body::fid(ROOT).u32(0).s("").s("").u32(0)).unwrap();
    client.create(1, "large", 0o600).unwrap();
    assert_eq!(client.write(1, 0, &[7; 4096]), Err(Errno::MSGSIZE));
    assert_eq!(client.write(1, 0, &[7; 4000]), Ok(4000));
    client.write(1, 4000, &[7; 4000]).unwrap();
    assert_eq!(client.read(1, 0, 8000).unwrap().len(), 4096 - 11);
    // As little room as an answer may have.
    let ask =
        |kind: u8, body: Body| Body::default().u32(7 + body.0.len() as u32).u8(kind).u16(1).raw(&body.0).0;
    let mut reply = Vec::new();
    for room in ERROR_BYTES..200 {
        for (kind, body) in [
            (message::T_READ, Body::fid(1).u64(0).u32(8000)),
            (message::T_GETATTR, Body::fid(1).u64(0)),
            (message::T_STATFS, Body::fid(1)),
        ] {
            client.server.answer(&ask(kind, body), &mut reply, room);
            assert!(reply.len() <= room, "{kind}");
        }
    }
}

#[test]
fn fids_that_are_taken_or_are_not() {
    let folder = Folder::new("fids");
    let mut client = client(&folder, PLAIN);
    let attach = |fid: u32| Body::fid(fid).u32(0).s("").s("").u32(0);
    assert_eq!(client.call(message::T_ATTACH, attach(1)), Err(Errno::BADF));
    let attributes = |new: u32| Body::fid(1).u32(new).s("");
    assert_eq!(client.call(message::T_XATTRWALK, attributes(2)), Err(Errno::BADF));
    assert_eq!(client.call(message::T_LOPEN, Body::fid(1).u32(0)), Err(Errno::INVAL), "it is open");
    let create = Body::fid(7).s("x").u32(2).u32(0).u32(0);
    assert_eq!(client.call(message::T_LCREATE, create), Err(Errno::INVAL), "it is open");
    let create = Body::fid(2).s("x").u32(2).u32(0).u32(0);
    assert_eq!(client.call(message::T_LCREATE, create), Err(Errno::NOTDIR));
    assert_eq!(client.call(message::T_WALK, Body::fid(1).u32(1).u16(0)), Err(Errno::INVAL), "it is open");
    assert_eq!(client.call(message::T_LOPEN, Body::fid(2).u32(3)), Err(Errno::INVAL));
    assert_eq!(client.call(message::T_FSYNC, Body::fid(2)), Err(Errno::BADF));
    assert_eq!(client.read(2, 0, 1), Err(Errno::BADF));
    for (kind, body) in requests() {
        if !matches!(kind, message::T_VERSION | message::T_ATTACH | message::T_FLUSH) {
            let none = Body([&[0x55; 4], &body.0[4..]].concat());
            assert_eq!(client.call(kind, none), Err(Errno::BADF), "{kind}");
        }
    }
}

/// A client that holds all it can gets an error, and the rest of the program has descriptors left.
#[test]
fn there_is_an_end_of_fids() {
    let folder = Folder::new("many");
    let mut client = client(&folder, PLAIN);
    let before = held(&client);
    // Copies of the root hold no descriptor of their own.
    for fid in 0..fids::MOST_FIDS - before {
        client.walk(1000 + fid as u32, "").unwrap();
    }
    assert_eq!(client.walk(999, ""), Err(Errno::NFILE));
    assert_eq!(client.call(message::T_XATTRWALK, Body::fid(1).u32(999).s("")), Err(Errno::NFILE));
    client.clunk(1000).unwrap();
    client.walk(999, "").unwrap();
}

#[test]
fn there_is_an_end_of_files() {
    let budget = node::Budget::new(2);
    let (one, _two) = (budget.take().unwrap(), budget.take().unwrap());
    assert!(matches!(budget.take(), Err(Errno::NFILE)));
    drop(one);
    assert!(budget.take().is_ok());
}

/// Bytes at random, of the lengths and kinds that get furthest.
#[test]
fn random_messages() {
    let folder = Folder::new("random");
    let mut random = Random::new(0x9a7e);
    for options in [PLAIN, MAPPED, READ_ONLY] {
        let mut client =
            if options.read_only { Client::new(&folder, options) } else { client(&folder, options) };
        let known = requests();
        for round in 0..6000 {
            let (kind, body) = &known[random.below(known.len() as u64) as usize];
            let mut bytes = body.0.clone();
            for _ in 0..random.below(4) {
                match random.below(3) {
                    0 if !bytes.is_empty() => {
                        let at = random.below(bytes.len() as u64) as usize;
                        bytes[at] = random.next() as u8;
                    }
                    1 => bytes.truncate(random.below(bytes.len() as u64 + 1) as usize),
                    _ => bytes.extend((0..random.below(20)).map(|_| random.next() as u8)),
                }
            }
            let kind = if random.below(20) == 0 { random.below(255) as u8 } else { *kind };
            // Sessions that begin anew get nowhere.
            if kind != message::T_VERSION || round % 50 == 0 {
                let _ = client.call(kind, Body(bytes));
            }
            if client.walk(200, "").is_err() || client.clunk(200).is_err() {
                let root = Body::fid(ROOT).u32(0).s("").s("").u32(0);
                let _ = client.call(message::T_VERSION, Body::default().u32(8192).s("9P2000.L"));
                client.call(message::T_ATTACH, root).unwrap();
            }
        }
    }
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 1, "nothing was made outside");
}
