//! virtio-vsock: packets of the guest's, and programs of the host's that connect (`CONNECT 1234`), listen, talk and hang up.
#![no_main]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use devices::virtio::VirtioDevice;
use devices::virtio::vsock::{HostSocket, Vsock};
use devices::virtio::worker::Pace;
use fuzz::driver::Request;
use fuzz::input::Input;
use fuzz::machine::in_memory;
use fuzz::virtio::{self, NewSubject, Subject, rooms, shape};
use libfuzzer_sys::fuzz_target;
use vmm_sys_util::tempdir::TempDir;

const GUEST_CID: u32 = 3;
/// Where a program of the host listens.
const PORT: u32 = 7;
/// The first of the host's ports of streams that the host began.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// Programs of the host at once.
const MOST_STREAMS: usize = 8;

struct Sockets {
    device: Arc<Vsock>,
    listener: UnixListener,
    streams: Vec<UnixStream>,
    folder: TempDir,
}

impl Sockets {
    fn keep(&mut self, stream: UnixStream) {
        stream.set_nonblocking(true).expect("a socket");
        if self.streams.len() == MOST_STREAMS {
            self.streams.remove(0);
        }
        self.streams.push(stream);
    }
}

impl NewSubject for Sockets {
    fn new(_kind: u8, pace: &Pace) -> Self {
        let folder = TempDir::new_with_prefix(in_memory().join("fuzz-vsock-")).expect("a temporary folder");
        let path = folder.as_path().join("s");
        let socket = HostSocket::new(path.clone()).expect("a short name");
        socket.bind().expect("an empty folder");
        let listener = UnixListener::bind(path.with_file_name(format!("s_{PORT}"))).expect("an empty folder");
        listener.set_nonblocking(true).expect("a socket");
        let device = Vsock::new(GUEST_CID, Arc::new(socket), pace).expect("an eventfd");
        Self { device, listener, streams: Vec::new(), folder }
    }
}

impl Subject for Sockets {
    fn device(&self) -> Arc<dyn VirtioDevice> {
        self.device.clone()
    }

    fn request(&mut self, input: &mut Input) -> Request {
        let (cuts, is_indirect) = shape(input);
        let what = input.u8();
        if what & 3 == 0 {
            let mut writable = rooms(input);
            writable.push(input.pick(&[4096, 44, 43, 45, 70000]));
            return Request { queue: 0, writable, is_indirect, ..Request::default() };
        }
        let payload = input.short().repeat(usize::from(what >> 3) + 1);
        let length = if what & 4 == 0 { payload.len() as u32 } else { input.u32() };
        let (from, to) = match input.u8() {
            0xff => (input.u64(), input.u64()),
            _ => (GUEST_CID.into(), 2),
        };
        // Few, so that packets meet the streams that there are.
        let port = input.pick(&[1u32, 1, 1, 2]);
        let host_port =
            input.pick(&[PORT, PORT, PORT, FIRST_HOST_PORT, FIRST_HOST_PORT, FIRST_HOST_PORT + 1, 8]);
        let kind: u16 = if input.u8() == 0xff { 2 } else { 1 };
        // Request, response, reset, shutdown, bytes, credit and its request, and none of them.
        let op = input.pick(&[1u16, 5, 2, 5, 4, 6, 7, 5, 3, 0, 8]);
        let flags = u32::from(input.u8() & 7);
        let room = input.pick(&[1u32 << 18, 0, 1, 4096, u32::MAX]);
        let mut readable = [from, to].map(u64::to_le_bytes).concat();
        [port, host_port, length].iter().for_each(|word| readable.extend(word.to_le_bytes()));
        [kind, op].iter().for_each(|half| readable.extend(half.to_le_bytes()));
        [flags, room, input.small()].iter().for_each(|word| readable.extend(word.to_le_bytes()));
        readable.extend(payload);
        readable.truncate(readable.len() - usize::from(input.u8() / 0xf0));
        Request { queue: 1, readable, cuts, is_indirect, writable: Vec::new() }
    }

    fn host(&mut self, input: &mut Input) {
        let what = input.u8();
        let port = input.pick(&[1u32, 1, 2, 1234]);
        let greeting = format!("CONNECT {port}\n");
        match what % 7 {
            0 | 1 => {
                // Its queue may be full: a connection that has to wait for room is none.
                let Ok(stream) = connect(&self.folder) else { return };
                let said = if what & 0x80 == 0 { greeting.as_bytes() } else { input.short() };
                let _ = (&stream).write(said);
                self.keep(stream);
            }
            2 => {
                if let Ok((stream, _)) = self.listener.accept() {
                    self.keep(stream);
                }
            }
            _ if self.streams.is_empty() => {}
            3 => {
                let index = usize::from(what >> 4) % self.streams.len();
                drop(self.streams.remove(index));
            }
            4 => {
                let index = usize::from(what >> 4) % self.streams.len();
                let how = input.pick(&[Shutdown::Read, Shutdown::Write, Shutdown::Both]);
                let _ = self.streams[index].shutdown(how);
            }
            5 => {
                let index = usize::from(what >> 4) % self.streams.len();
                let _ = self.streams[index].write(&input.short().repeat(64));
            }
            _ => {
                let index = usize::from(what >> 4) % self.streams.len();
                let _ = self.streams[index].read(&mut [0; 16384]);
            }
        }
        self.device.doorbells()[0].ring();
    }

    fn proof(&self) -> Request {
        // To a port where nobody is.
        let mut readable = [u64::from(GUEST_CID), 2].map(u64::to_le_bytes).concat();
        readable.extend(
            [[9, 0, 0, 0], [9, 0, 0, 0], [0; 4], [1, 0, 1, 0], [0; 4], [0, 0, 1, 0], [0; 4]].concat(),
        );
        Request { queue: 1, readable, ..Request::default() }
    }
}

fn connect(folder: &TempDir) -> std::io::Result<UnixStream> {
    UnixStream::connect(folder.as_path().join("s"))
}

fuzz_target!(|bytes: &[u8]| virtio::run::<Sockets>(bytes));
