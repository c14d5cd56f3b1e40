mod attributes;
mod confinement;
mod hostile;
mod tree;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use super::spec::{MAX_MSIZE, VERSION, message};
use super::wire::{Qid, Reader};
use super::*;

/// A folder of a test's own, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("bivisor-p9-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(folder.join("shared")).unwrap();
        Self(folder)
    }

    /// A path in what is shared.
    fn shared(&self, name: &str) -> PathBuf {
        self.0.join("shared").join(name)
    }

    /// And one beside it.
    fn outside(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The body of a request.
#[derive(Clone, Default)]
struct Body(Vec<u8>);

impl Body {
    fn fid(fid: u32) -> Self {
        Self::default().u32(fid)
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn u8(self, value: u8) -> Self {
        self.raw(&[value])
    }

    fn u16(self, value: u16) -> Self {
        self.raw(&value.to_le_bytes())
    }

    fn u32(self, value: u32) -> Self {
        self.raw(&value.to_le_bytes())
    }

    fn u64(self, value: u64) -> Self {
        self.raw(&value.to_le_bytes())
    }

    fn s(self, text: impl AsRef<[u8]>) -> Self {
        let text = text.as_ref();
        self.u16(text.len() as u16).raw(text)
    }
}

const MAPPED: ShareOptions =
    ShareOptions { security: SecurityModel::MAPPED, read_only: false, multidevs: Multidevs::Remap };
const PLAIN: ShareOptions = ShareOptions { security: SecurityModel::None, ..MAPPED };
const READ_ONLY: ShareOptions = ShareOptions { read_only: true, ..PLAIN };

/// The root's fid.
const ROOT: u32 = 0;

struct Client {
    server: Server,
    tag: u16,
}

impl Client {
    /// One that has attached to the shared part of `folder`.
    fn new(folder: &Folder, options: ShareOptions) -> Self {
        let share = Share::open(&folder.shared(""), options).unwrap();
        let mut client = Self { server: Server::new(share), tag: 0 };
        let hello = Body::default().u32(MAX_MSIZE).s(VERSION);
        client.call(message::T_VERSION, hello).unwrap();
        client.call(message::T_ATTACH, Body::fid(ROOT).u32(u32::MAX).s("").s("/").u32(1000)).unwrap();
        client
    }

    /// The body of the answer, or its error number.
    fn call(&mut self, kind: u8, body: Body) -> Result<Vec<u8>, Errno> {
        self.tag = self.tag.wrapping_add(1);
        let size = spec::HEADER_BYTES + body.0.len();
        let head = Body::default().u32(size as u32).u8(kind).u16(self.tag);
        let mut reply = Vec::new();
        self.server.answer(&head.raw(&body.0).0, &mut reply, 1 << 20);
        let mut reader = Reader::new(&reply);
        assert_eq!(reader.u32().unwrap() as usize, reply.len());
        let answer = reader.u8().unwrap();
        assert_eq!(reader.u16().unwrap(), self.tag);
        if answer == message::R_LERROR {
            assert_eq!(reply.len(), ERROR_BYTES);
            return Err(Errno::from_raw_os_error(reader.u32().unwrap() as i32));
        }
        assert_eq!(answer, kind + 1);
        Ok(reply[spec::HEADER_BYTES..].to_vec())
    }

    /// Walks to `path` and makes it `fid`.
    fn walk(&mut self, fid: u32, path: &str) -> Result<(), Errno> {
        let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
        let body = Body::fid(ROOT).u32(fid).u16(names.len() as u16);
        let reply = self.call(message::T_WALK, names.iter().fold(body, |body, name| body.s(name)))?;
        let walked = Reader::new(&reply).u16().unwrap();
        if usize::from(walked) == names.len() { Ok(()) } else { Err(Errno::NOENT) }
    }

    fn open(&mut self, fid: u32, path: &str, flags: u32) -> Result<(), Errno> {
        self.walk(fid, path)?;
        let opened = self.call(message::T_LOPEN, Body::fid(fid).u32(flags));
        if opened.is_err() {
            self.clunk(fid).unwrap();
        }
        opened.map(|_| ())
    }

    /// Makes a file in the root, open for reading and writing.
    fn create(&mut self, fid: u32, name: &str, mode: u32) -> Result<(), Errno> {
        self.walk(fid, "")?;
        let body = Body::fid(fid).s(name).u32(0o102).u32(mode).u32(100);
        self.call(message::T_LCREATE, body).map(|_| ()).inspect_err(|_| self.clunk(fid).unwrap())
    }

    fn clunk(&mut self, fid: u32) -> Result<(), Errno> {
        self.call(message::T_CLUNK, Body::fid(fid)).map(|_| ())
    }

    fn read(&mut self, fid: u32, offset: u64, count: u32) -> Result<Vec<u8>, Errno> {
        let reply = self.call(message::T_READ, Body::fid(fid).u64(offset).u32(count))?;
        assert_eq!(Reader::new(&reply).u32().unwrap() as usize, reply.len() - 4);
        Ok(reply[4..].to_vec())
    }

    fn write(&mut self, fid: u32, offset: u64, data: &[u8]) -> Result<u32, Errno> {
        let body = Body::fid(fid).u64(offset).u32(data.len() as u32).raw(data);
        self.call(message::T_WRITE, body).map(|reply| Reader::new(&reply).u32().unwrap())
    }

    /// All names in a directory, read in pieces of `count` bytes.
    fn list(&mut self, path: &str, count: u32) -> Result<Vec<String>, Errno> {
        let fid = 77;
        self.open(fid, path, 0)?;
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let reply = self.call(message::T_READDIR, Body::fid(fid).u64(offset).u32(count))?;
            let mut reader = Reader::new(&reply[4..]);
            if reader.is_empty() {
                break;
            }
            while !reader.is_empty() {
                reader.bytes(Qid::BYTES).unwrap();
                offset = reader.u64().unwrap();
                reader.u8().unwrap();
                names.push(String::from_utf8(reader.string().unwrap().to_vec()).unwrap());
            }
        }
        self.clunk(fid)?;
        names.sort_unstable();
        Ok(names)
    }
}

fn held(client: &Client) -> usize {
    client.server.fids.iter().count()
}

#[test]
fn versions() {
    let folder = Folder::new("versions");
    let mut client = Client::new(&folder, PLAIN);
    let mut hello = |msize: u32, version: &str| {
        let reply = client.call(message::T_VERSION, Body::default().u32(msize).s(version))?;
        let mut reader = Reader::new(&reply);
        Ok((reader.u32().unwrap(), reader.string().unwrap().to_vec()))
    };
    assert_eq!(hello(8192, "9P2000.L"), Ok((8192, VERSION.to_vec())));
    assert_eq!(hello(u32::MAX, "9P2000.L"), Ok((MAX_MSIZE, VERSION.to_vec())));
    assert_eq!(hello(8192, "9P2000.u"), Ok((8192, b"unknown".to_vec())));
    assert_eq!(hello(4095, "9P2000.L"), Err(Errno::MSGSIZE));
    // A session that begins anew has no fids.
    assert_eq!(client.walk(1, ""), Err(Errno::BADF));
}

#[test]
fn files_are_made_written_and_read() {
    for options in [PLAIN, MAPPED] {
        let folder = Folder::new(&format!("files-{:?}", options.security.is_mapped()));
        let mut client = Client::new(&folder, options);
        client.create(1, "new", 0o640).unwrap();
        let data: Vec<u8> = (0..300_000u32).map(|n| (n * 7 / 3) as u8).collect();
        assert_eq!(client.write(1, 5, &data), Ok(300_000));
        assert_eq!(client.read(1, 5, 300_000).unwrap(), data);
        assert_eq!(client.read(1, 300_003, 100).unwrap(), data[299_998..]);
        assert_eq!(client.read(1, 1 << 40, 100), Ok(Vec::new()));
        assert_eq!(client.read(1, 1 << 63, 100), Err(Errno::INVAL));
        // More than a message holds: as much as it does.
        client.write(1, 1 << 20, b"end").unwrap();
        assert_eq!(client.read(1, 0, u32::MAX).unwrap().len(), MAX_MSIZE as usize - 11);
        assert_eq!(client.call(message::T_FSYNC, Body::fid(1).u32(1)), Ok(Vec::new()));
        assert_eq!(client.call(message::T_FSYNC, Body::fid(1)), Ok(Vec::new()));
        client.clunk(1).unwrap();
        assert_eq!(std::fs::read(folder.shared("new")).unwrap()[5..300_005], data);
        // Opened anew, for reading, and cut.
        client.open(1, "new", 0).unwrap();
        assert_eq!(client.write(1, 0, b"x"), Err(Errno::BADF));
        client.open(2, "new", 0o1001).unwrap();
        assert_eq!(client.read(1, 0, 10), Ok(Vec::new()));
        assert_eq!(client.read(2, 0, 10), Err(Errno::BADF));
        client.open(3, "new", 0o2001).unwrap();
        client.write(3, 0, b"one").unwrap();
        client.write(3, 0, b"two").unwrap();
        assert_eq!(client.read(1, 0, 10), Ok(b"onetwo".to_vec()));
        // A file that is there is opened, unless it must not be.
        client.create(4, "new", 0o600).unwrap();
        assert_eq!(client.read(4, 0, 10), Ok(b"onetwo".to_vec()));
        client.walk(5, "").unwrap();
        let exclusive = Body::fid(5).s("new").u32(0o302).u32(0o600).u32(0);
        assert_eq!(client.call(message::T_LCREATE, exclusive), Err(Errno::EXIST));
    }
}

#[test]
fn directories_are_read_in_pieces() {
    let folder = Folder::new("readdir");
    let mut expected: Vec<String> = (0..500).map(|n| format!("file-{n}")).collect();
    expected.iter().for_each(|name| std::fs::write(folder.shared(name), name).unwrap());
    std::fs::create_dir(folder.shared("sub")).unwrap();
    expected.extend([".", "..", "sub"].map(String::from));
    expected.sort_unstable();
    let mut client = Client::new(&folder, PLAIN);
    for count in [60, 1000, 100_000, u32::MAX] {
        assert_eq!(client.list("", count).as_ref(), Ok(&expected));
    }
    assert_eq!(client.list("sub", 1000).unwrap(), [".", ".."]);
    // Room for not one entry.
    client.open(1, "", 0).unwrap();
    assert_eq!(client.call(message::T_READDIR, Body::fid(1).u64(0).u32(20)), Err(Errno::INVAL));
    assert_eq!(client.read(1, 0, 10), Err(Errno::ISDIR));
    client.open(2, "file-1", 0).unwrap();
    assert_eq!(client.call(message::T_READDIR, Body::fid(2).u64(0).u32(2000)), Err(Errno::NOTDIR));
    assert_eq!(client.list("file-1", 1000), Err(Errno::NOTDIR));
}

#[test]
fn walks() {
    let folder = Folder::new("walks");
    std::fs::create_dir_all(folder.shared("a/b/c")).unwrap();
    std::fs::write(folder.shared("a/file"), "x").unwrap();
    let mut client = Client::new(&folder, PLAIN);
    client.walk(1, "a/b/c").unwrap();
    assert_eq!(client.walk(1, "a"), Err(Errno::BADF), "the fid is taken");
    assert_eq!(client.walk(2, "missing"), Err(Errno::NOENT));
    // A walk that stops in between makes no fid, and says how far it came.
    let body = Body::fid(ROOT).u32(2).u16(3).s("a").s("missing").s("c");
    assert_eq!(client.call(message::T_WALK, body).unwrap()[..2], [1, 0]);
    assert_eq!(client.clunk(2), Err(Errno::BADF));
    assert_eq!(client.walk(2, "a/file/x"), Err(Errno::NOENT));
    // In place, and back up.
    let up = Body::fid(1).u32(1).u16(2).s("..").s("..");
    client.call(message::T_WALK, up).unwrap();
    client.call(message::T_WALK, Body::fid(1).u32(1).u16(1).s("file")).unwrap();
    // Seventeen names are too many; sixteen are not.
    let long = |count: u16| (0..count).fold(Body::fid(ROOT).u32(3).u16(count), |body, _| body.s("."));
    assert_eq!(client.call(message::T_WALK, long(17)), Err(Errno::INVAL));
    assert_eq!(client.call(message::T_WALK, long(16)).unwrap().len(), 2 + 16 * Qid::BYTES);
    assert_eq!(held(&client), 3);
}

#[test]
fn a_folder_that_is_only_read() {
    let folder = Folder::new("readonly");
    std::fs::write(folder.shared("file"), "content").unwrap();
    let mut client = Client::new(&folder, READ_ONLY);
    client.open(1, "file", 0).unwrap();
    assert_eq!(client.read(1, 0, 100), Ok(b"content".to_vec()));
    for flags in [1, 2, 0o1000] {
        assert_eq!(client.open(2, "file", flags), Err(Errno::ROFS));
    }
    assert_eq!(client.create(2, "new", 0o600), Err(Errno::ROFS));
    let root = || Body::fid(ROOT);
    let file = || Body::fid(1);
    let changes = [
        (message::T_MKDIR, root().s("d").u32(0o700).u32(0)),
        (message::T_SYMLINK, root().s("s").s("t").u32(0)),
        (message::T_MKNOD, root().s("n").u32(0o10600).u32(0).u32(0).u32(0)),
        (message::T_LINK, root().u32(1).s("l")),
        (message::T_RENAME, file().u32(ROOT).s("r")),
        (message::T_RENAMEAT, root().s("file").u32(ROOT).s("r")),
        (message::T_UNLINKAT, root().s("file").u32(0)),
        (message::T_SETATTR, file().u32(1).u32(0).raw(&[0; 48])),
        (message::T_XATTRCREATE, root().s("user.a").u64(1).u32(0)),
        (message::T_REMOVE, file()),
    ];
    for (kind, body) in changes {
        assert_eq!(client.call(kind, body), Err(Errno::ROFS), "{kind}");
    }
    assert_eq!(std::fs::read_dir(folder.shared("")).unwrap().count(), 1);
    // Nothing is free where nothing can be written.
    let reply = client.call(message::T_STATFS, Body::fid(ROOT)).unwrap();
    let mut reader = Reader::new(&reply);
    reader.bytes(8).unwrap();
    let counts: Vec<u64> = (0..5).map(|_| reader.u64().unwrap()).collect();
    assert_eq!((counts[0] > 0, counts[1], counts[2], counts[4]), (true, 0, 0, 0));
}

#[test]
fn locks_of_one_file() {
    let folder = Folder::new("locks");
    std::fs::write(folder.shared("file"), "content").unwrap();
    let mut client = Client::new(&folder, PLAIN);
    client.open(1, "file", 2).unwrap();
    client.open(2, "file", 2).unwrap();
    let lock = |fid, kind, start, length, process| {
        Body::fid(fid).u8(kind).u32(1).u64(start).u64(length).u32(process).s("guest")
    };
    assert_eq!(client.call(message::T_LOCK, lock(1, 1, 0, 10, 5)), Ok(vec![0]));
    assert_eq!(client.call(message::T_LOCK, lock(2, 0, 9, 1, 6)), Ok(vec![1]));
    let ask = Body::fid(2).u8(0).u64(9).u64(1).u32(6).s("guest");
    let held = Body::default().u8(1).u64(0).u64(10).u32(5).s("guest");
    assert_eq!(client.call(message::T_GETLOCK, ask.clone()), Ok(held.0));
    // The last one who has it open takes the locks along.
    client.clunk(1).unwrap();
    assert_eq!(client.call(message::T_LOCK, lock(2, 0, 9, 1, 6)), Ok(vec![1]));
    client.clunk(2).unwrap();
    client.open(2, "file", 2).unwrap();
    let free = Body::default().u8(2).u64(9).u64(1).u32(6).s("guest");
    assert_eq!(client.call(message::T_GETLOCK, ask), Ok(free.0));
    assert_eq!(client.call(message::T_LOCK, lock(2, 3, 0, 1, 6)), Err(Errno::INVAL));
    assert_eq!(client.call(message::T_LOCK, lock(ROOT, 0, 0, 1, 6)), Err(Errno::BADF));
}

#[test]
fn folders_that_cannot_be_shared() {
    let folder = Folder::new("open");
    std::fs::write(folder.outside("file"), "").unwrap();
    assert!(matches!(Share::open(&folder.outside("missing"), PLAIN), Err(ShareError::Open(_))));
    assert!(matches!(Share::open(&folder.outside("file"), PLAIN), Err(ShareError::NotAFolder)));
    std::os::unix::fs::symlink(folder.shared(""), folder.outside("link")).unwrap();
    assert!(Share::open(&folder.outside("link"), PLAIN).is_ok());
    assert!(Share::open(Path::new("/proc/self"), MAPPED).is_err());
    let _: Arc<Share> = Share::open(&folder.shared(""), MAPPED).unwrap();
}
