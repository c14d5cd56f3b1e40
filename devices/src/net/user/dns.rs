//! Whom the guest's name queries go to: the host's name servers (resolv.conf(5)).

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use super::config::Nameservers;
use crate::net::poller::Time;

/// DNS.
pub(super) const PORT: u16 = 53;
/// For how long the file is not read again.
const FRESH: Duration = Duration::from_secs(1);

pub(super) struct Resolver {
    source: Nameservers,
    servers: Vec<SocketAddr>,
    read_at: Option<Time>,
    /// How often a server has turned out not to answer: the next in line then serves.
    failures: usize,
}

impl Resolver {
    pub(super) fn new(source: Nameservers) -> Self {
        Self { source, servers: Vec::new(), read_at: None, failures: 0 }
    }

    /// Whom to ask now.
    pub(super) fn server(&mut self, now: Time) -> Option<SocketAddr> {
        let path = match &self.source {
            Nameservers::Fixed(server) => return Some(*server),
            Nameservers::File(path) => path,
        };
        if self.read_at.is_none_or(|time| now >= time + FRESH) {
            self.servers = read(path);
            self.read_at = Some(now);
        }
        let index = self.failures.checked_rem(self.servers.len())?;
        Some(self.servers[index])
    }

    /// The server refused.
    pub(super) fn failed(&mut self) {
        self.failures = self.failures.wrapping_add(1);
    }
}

fn read(path: &Path) -> Vec<SocketAddr> {
    let text = match std::fs::read(path) {
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) => {
            tracing::warn!(target: "net", path = %path.display(), %error, "no name servers");
            return Vec::new();
        }
    };
    parse(&text)
}

fn parse(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            return None;
        }
        // A zone (`fe80::1%eth0`) only means something to the host's own resolver.
        words.next()?.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, PORT))
    };
    text.lines().filter_map(server).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_name_servers() {
        let text =
            "# a\nsearch example.org\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 # b\nnameserver x\n";
        let servers: Vec<String> = parse(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.0.2.1:53", "[2001:db8::1]:53"]);
    }

    #[test]
    fn the_next_one_serves_when_one_fails() {
        let file = vmm_sys_util::tempfile::TempFile::new().unwrap();
        std::fs::write(file.as_path(), "nameserver 192.0.2.1\nnameserver 192.0.2.2\n").unwrap();
        let mut resolver = Resolver::new(Nameservers::File(file.as_path().into()));
        let mut ask = |seconds, fails| {
            if fails {
                resolver.failed();
            }
            resolver.server(Time::from_secs(seconds)).map(|server| server.ip().to_string())
        };
        assert_eq!(ask(0, false).unwrap(), "192.0.2.1");
        assert_eq!(ask(0, true).unwrap(), "192.0.2.2");
        assert_eq!(ask(0, true).unwrap(), "192.0.2.1");
        std::fs::write(file.as_path(), "").unwrap();
        assert_eq!((ask(0, false).is_some(), ask(1, false)), (true, None));
    }
}
