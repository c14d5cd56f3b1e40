//! A server of files over HTTP/1.1 on the host's loopback: as much of it as package managers ask for.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

/// The files that are served, by their names without a folder.
pub type Files = BTreeMap<String, Vec<u8>>;

/// Serves the files on a port of 127.0.0.1, which it returns, until the test's process ends.
pub fn serve(files: Files) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback has a port");
    let port = listener.local_addr().expect("it is bound").port();
    let files = Arc::new(files);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let files = Arc::clone(&files);
            // A client that went away is no trouble of ours: the test looks at what it got.
            std::thread::spawn(move || drop(answer(stream, &files)));
        }
    });
    port
}

/// Answers the requests of a connection, one after the other, until the client has no more.
fn answer(stream: TcpStream, files: &Files) -> io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let mut stream = stream;
    while let Some(request) = lines.next().transpose()? {
        for header in lines.by_ref() {
            if header?.is_empty() {
                break;
            }
        }
        let name = request.split(' ').nth(1).and_then(|path| path.rsplit('/').next()).unwrap_or_default();
        let (status, body) = files.get(name).map_or(("404 Not Found", &[][..]), |body| ("200 OK", body));
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
    }
    Ok(())
}
