//! Messages byte by byte: little-endian integers, counted strings. Nothing that a client writes is trusted.

use rustix::fs::FileType;
use rustix::io::Errno;

use super::spec::qid_type;

/// What an operation gives, or the number that the client is told.
pub(super) type Result<T> = std::result::Result<T, Errno>;

/// The rest of a request.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(body: &'a [u8]) -> Self {
        Self(body)
    }

    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count).ok_or(Errno::PROTO)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.bytes(N)?.try_into().expect("as many as were asked for"))
    }

    pub(super) fn u8(&mut self) -> Result<u8> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(super) fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A counted string, which may be no text and holds no zero: the host's names end there.
    pub(super) fn string(&mut self) -> Result<&'a [u8]> {
        let count = self.u16()?;
        let bytes = self.bytes(count.into())?;
        if bytes.contains(&0) { Err(Errno::INVAL) } else { Ok(bytes) }
    }

    /// One component of a path: no `/`, not empty. It may be `.` or `..`.
    pub(super) fn name(&mut self) -> Result<&'a [u8]> {
        let name = self.string()?;
        if name.is_empty() || name.contains(&b'/') { Err(Errno::NOENT) } else { Ok(name) }
    }

    /// The name of something that is to be made.
    pub(super) fn new_name(&mut self) -> Result<&'a [u8]> {
        let name = self.name()?;
        if is_dots(name) { Err(Errno::EXIST) } else { Ok(name) }
    }

    /// The name of something that is to go away.
    pub(super) fn old_name(&mut self) -> Result<&'a [u8]> {
        let name = self.name()?;
        if is_dots(name) { Err(Errno::INVAL) } else { Ok(name) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn is_dots(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}

/// A file's identity, as clients know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Qid {
    pub(super) kind: u8,
    pub(super) version: u32,
    pub(super) path: u64,
}

impl Qid {
    /// Bytes of one in a message.
    pub(super) const BYTES: usize = 13;

    pub(super) fn kind_of(kind: FileType) -> u8 {
        match kind {
            FileType::Directory => qid_type::DIRECTORY,
            FileType::Symlink => qid_type::SYMLINK,
            _ => qid_type::FILE,
        }
    }
}

/// An answer that is being written, into `limit` bytes at most.
pub(super) struct Writer<'a> {
    reply: &'a mut Vec<u8>,
    limit: usize,
}

impl<'a> Writer<'a> {
    pub(super) fn new(reply: &'a mut Vec<u8>, limit: usize) -> Self {
        Self { reply, limit }
    }

    pub(super) fn room(&self) -> usize {
        self.limit.saturating_sub(self.reply.len())
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() > self.room() {
            return Err(Errno::MSGSIZE);
        }
        self.reply.extend_from_slice(bytes);
        Ok(())
    }

    pub(super) fn u8(&mut self, value: u8) -> Result<()> {
        self.bytes(&[value])
    }

    pub(super) fn u16(&mut self, value: u16) -> Result<()> {
        self.bytes(&value.to_le_bytes())
    }

    pub(super) fn u32(&mut self, value: u32) -> Result<()> {
        self.bytes(&value.to_le_bytes())
    }

    pub(super) fn u64(&mut self, value: u64) -> Result<()> {
        self.bytes(&value.to_le_bytes())
    }

    pub(super) fn string(&mut self, value: &[u8]) -> Result<()> {
        self.u16(u16::try_from(value.len()).map_err(|_| Errno::NAMETOOLONG)?)?;
        self.bytes(value)
    }

    pub(super) fn qid(&mut self, qid: Qid) -> Result<()> {
        self.u8(qid.kind)?;
        self.u32(qid.version)?;
        self.u64(qid.path)
    }

    /// A count and as many bytes, of which `fill` has `room` to fill and says how many it did.
    pub(super) fn counted(
        &mut self,
        room: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<usize>,
    ) -> Result<()> {
        self.u32(0)?;
        let (start, room) = (self.reply.len(), room.min(self.room()));
        self.reply.resize(start + room, 0);
        let count = fill(&mut self.reply[start..])?;
        self.reply.truncate(start + count);
        let count = u32::try_from(count).expect("not more than a message");
        self.reply[start - 4..start].copy_from_slice(&count.to_le_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_stops_at_the_end() {
        let mut reader = Reader::new(&[1, 2, 0, 3, 0, b'a', b'b']);
        assert_eq!((reader.u8(), reader.u16()), (Ok(1), Ok(2)));
        // Three bytes are promised and two are there.
        assert_eq!(reader.string(), Err(Errno::PROTO));
        assert_eq!(Reader::new(&[1]).u32(), Err(Errno::PROTO));
    }

    #[test]
    fn names() {
        let name = |bytes: &[u8]| {
            let mut message = (bytes.len() as u16).to_le_bytes().to_vec();
            message.extend(bytes);
            let reader = || Reader::new(&message);
            [reader().name(), reader().new_name(), reader().old_name()].map(|read| read.map(|_| ()))
        };
        assert_eq!(name(b"a b"), [Ok(()); 3]);
        assert_eq!(name(b""), [Err(Errno::NOENT); 3]);
        assert_eq!(name(b"a/b"), [Err(Errno::NOENT); 3]);
        assert_eq!(name(b"a\0b"), [Err(Errno::INVAL); 3]);
        for dots in [&b"."[..], b".."] {
            assert_eq!(name(dots), [Ok(()), Err(Errno::EXIST), Err(Errno::INVAL)]);
        }
    }

    #[test]
    fn a_writer_has_its_limit() {
        let mut reply = vec![0; 7];
        let mut writer = Writer::new(&mut reply, 12);
        writer.u32(1).unwrap();
        assert_eq!((writer.u16(1), writer.room()), (Err(Errno::MSGSIZE), 1));
        writer.u8(9).unwrap();
        assert_eq!(reply, [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 9]);
        let mut writer = Writer::new(&mut reply, 18);
        writer
            .counted(100, |room| {
                room[0] = 5;
                Ok(room.len() - 1)
            })
            .unwrap();
        assert_eq!(reply[12..], [1, 0, 0, 0, 5]);
    }
}
