//! `/etc/hosts`, read again when it changes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// How often the file is looked at, at most: a look-up precedes each dial, and a dial is rare.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A hosts file (hosts(5)).
pub(super) struct HostsFile {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    looked: Option<Instant>,
    stamp: Option<(SystemTime, u64)>,
    names: HashMap<String, Arc<[IpAddr]>>,
}

impl HostsFile {
    /// The machine's.
    pub(super) fn system() -> HostsFile {
        HostsFile::at(PathBuf::from("/etc/hosts"))
    }

    /// Another one.
    pub(super) fn at(path: PathBuf) -> HostsFile {
        HostsFile { path, state: Mutex::default() }
    }

    /// The addresses that the file has for a name (lower case).
    pub(super) fn find(&self, name: &str) -> Option<Arc<[IpAddr]>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if state.looked.is_none_or(|looked| now >= looked + LOOK_EVERY) {
            state.looked = Some(now);
            self.refresh(&mut state);
        }
        state.names.get(name).cloned()
    }

    fn refresh(&self, state: &mut State) {
        let stamp = std::fs::metadata(&self.path)
            .ok()
            .map(|meta| (meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), meta.len()));
        if stamp == state.stamp {
            return;
        }
        state.stamp = stamp;
        // An unreadable file is an empty one: look-ups then go to the name servers.
        let text = std::fs::read(&self.path).unwrap_or_default();
        state.names = parse(&String::from_utf8_lossy(&text));
    }
}

fn parse(text: &str) -> HashMap<String, Arc<[IpAddr]>> {
    let mut names: HashMap<String, Vec<IpAddr>> = HashMap::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_ascii_whitespace();
        let Some(ip) = words.next().and_then(|word| word.parse().ok()) else { continue };
        for name in words {
            let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
            let addresses = names.entry(name).or_default();
            if !addresses.contains(&ip) {
                addresses.push(ip);
            }
        }
    }
    names.into_iter().map(|(name, addresses)| (name, addresses.into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_aliases_and_both_families_are_read() {
        let names = parse("127.0.0.1 localhost # ::1 not\n\n::1 LocalHost ip6-loopback.\n10.0.0.1\ta b\nbad line\n");
        assert_eq!(names["localhost"].len(), 2);
        assert_eq!(names["b"][0].to_string(), "10.0.0.1");
        assert!(names.contains_key("ip6-loopback"));
        assert!(!names.contains_key("line"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_file_is_read_again() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "10.0.0.1 a\n").unwrap();
        let hosts = HostsFile::at(file.path().to_owned());
        assert!(hosts.find("a").is_some());
        std::fs::write(file.path(), "10.0.0.1 bb\n10.0.0.2 bb\n").unwrap();
        tokio::time::advance(LOOK_EVERY).await;
        assert!(hosts.find("a").is_none());
        assert_eq!(hosts.find("bb").unwrap().len(), 2);
    }
}
