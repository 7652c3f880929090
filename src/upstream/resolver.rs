//! The look-up itself: the system's name servers, search domains and ndots, without blocking a thread.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;

use crate::error::Overload;
use crate::upstream::connect::is_exhaustion;
use crate::upstream::dns::{Answer, Lookup, LookupError, LookupFuture};

/// One brisk try at one name server. Two tries fit into the built-in `timeouts.connect` with time left to connect.
const TRY: Duration = Duration::from_millis(800);

/// Asks the system's name servers.
pub(super) struct SystemResolver {
    /// A sentence where the system has no usable resolver configuration.
    resolvers: Result<Arc<Resolvers>, String>,
}

struct Resolvers {
    /// Asks again soon, as a lost packet wants it.
    brisk: TokioResolver,
    /// Waits as long as the system's configuration says, for name servers that are slow.
    patient: TokioResolver,
}

impl SystemResolver {
    /// From `/etc/resolv.conf`. One that is missing or unusable does not stop the start, since addresses, `localhost` and
    /// `/etc/hosts` still work: it is a warning, and each look-up fails.
    pub(super) fn new() -> SystemResolver {
        let resolvers = hickory_resolver::system_conf::read_system_conf()
            .and_then(|(config, options)| build(config, options))
            .map_err(|error| format!("the system's resolver configuration can't be used: {error}"));
        if let Err(error) = &resolvers {
            tracing::warn!(%error, "names can't be looked up");
        }
        SystemResolver { resolvers }
    }

    #[cfg(test)]
    fn with(config: ResolverConfig, options: ResolverOpts) -> SystemResolver {
        SystemResolver { resolvers: build(config, options).map_err(|error| error.to_string()) }
    }
}

fn build(config: ResolverConfig, mut options: ResolverOpts) -> Result<Arc<Resolvers>, NetError> {
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    // Ours, in `dns` and `hosts`.
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    options.attempts = 1;
    let patient = options.clone();
    options.timeout = options.timeout.min(TRY);
    options.attempts = 2;
    let make = |options| {
        let mut builder = TokioResolver::builder_with_config(config.clone(), TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        builder.build()
    };
    Ok(Arc::new(Resolvers { brisk: make(options)?, patient: make(patient)? }))
}

impl Lookup for SystemResolver {
    fn lookup(&self, name: &str) -> LookupFuture {
        let resolvers = self.resolvers.clone();
        let name = name.to_owned();
        Box::pin(async move {
            let resolvers = resolvers.map_err(LookupError::Failed)?;
            let mut brisk = pin!(ask(&resolvers.brisk, &name));
            if let Ok(found) = tokio::time::timeout(TRY, &mut brisk).await {
                return found;
            }
            // No answer so far: a packet was lost, or the name server is slower than a try.
            let mut patient = pin!(ask(&resolvers.patient, &name));
            tokio::select! {
                found = &mut brisk => match found {
                    Err(LookupError::TimedOut(_)) => patient.await,
                    found => found,
                },
                found = &mut patient => match found {
                    Err(LookupError::TimedOut(_)) => brisk.await,
                    found => found,
                },
            }
        })
    }
}

async fn ask(resolver: &TokioResolver, name: &str) -> Result<Answer, LookupError> {
    let found = resolver.lookup_ip(name).await.map_err(|error| describe(name, &error))?;
    let ttl = found.as_lookup().answers().iter().map(|record| record.ttl).min().unwrap_or(0);
    let mut addresses = Vec::new();
    for address in found.iter() {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return Err(LookupError::NoAddress(format!("{name} has no address")));
    }
    Ok(Answer { addresses, ttl: Duration::from_secs(u64::from(ttl)) })
}

fn describe(name: &str, error: &NetError) -> LookupError {
    if error.is_nx_domain() {
        return LookupError::NoAddress(format!("{name} does not exist"));
    }
    if error.is_no_records_found() {
        return LookupError::NoAddress(format!("{name} has no address"));
    }
    match error {
        NetError::Io(error) if is_exhaustion(error) => LookupError::NoRoom(Overload::Descriptors),
        NetError::Timeout => LookupError::TimedOut(format!("no name server answered for {name}")),
        // Foreign and non-exhaustive.
        _ => LookupError::Failed(format!("the look-up of {name} failed: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use hickory_resolver::config::{ConnectionConfig, NameServerConfig};
    use tokio::net::UdpSocket;

    use super::*;

    /// A name server on loopback that knows `a.test` (A only; AAAA fails), says nothing about `mute.test`, takes longer than a
    /// brisk try over `slow.test`, and denies the rest. The system would wait for two seconds.
    async fn name_server() -> SystemResolver {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let port = socket.local_addr().unwrap().port();
        tokio::spawn(async move {
            let mut buf = [0; 512];
            while let Ok((len, from)) = socket.recv_from(&mut buf).await {
                if let Some((answer, slow)) = reply(&buf[..len]) {
                    let socket = socket.clone();
                    tokio::spawn(async move {
                        if slow {
                            tokio::time::sleep(TRY + Duration::from_millis(200)).await;
                        }
                        let _ = socket.send_to(&answer, from).await;
                    });
                }
            }
        });
        let mut connection = ConnectionConfig::udp();
        connection.port = port;
        let server = NameServerConfig::new("127.0.0.1".parse().unwrap(), true, vec![connection]);
        let mut options = ResolverOpts::default();
        options.timeout = Duration::from_secs(2);
        SystemResolver::with(ResolverConfig::from_parts(None, vec![], vec![server]), options)
    }

    fn reply(query: &[u8]) -> Option<(Vec<u8>, bool)> {
        let mut at = 12;
        let mut name = String::new();
        while query[at] != 0 {
            let len = usize::from(query[at]);
            name.push_str(&String::from_utf8_lossy(&query[at + 1..at + 1 + len]));
            name.push('.');
            at += 1 + len;
        }
        let kind = u16::from_be_bytes([query[at + 1], query[at + 2]]);
        let question = &query[12..at + 5];
        let (code, answer) = match (name.to_ascii_lowercase().as_str(), kind) {
            ("mute.test.", _) => return None,
            ("a.test." | "slow.test.", 1) => (0, true),
            ("a.test." | "slow.test.", _) => (2, false),
            _ => (3, false),
        };
        let mut out = query[..2].to_vec();
        out.extend([0x81, 0x80 | code, 0, 1, 0, u8::from(answer), 0, 0, 0, 0]);
        out.extend(question);
        if answer {
            out.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 42, 0, 4, 192, 0, 2, 7]);
        }
        Some((out, name.starts_with("slow")))
    }

    #[tokio::test]
    async fn a_name_server_slower_than_a_try_is_still_heard() {
        let answer = name_server().await.lookup("slow.test").await.unwrap();
        assert_eq!(answer.addresses.len(), 1);
    }

    #[tokio::test]
    async fn one_family_failing_is_not_a_failure() {
        let answer = name_server().await.lookup("a.test").await.unwrap();
        assert_eq!(answer.addresses, ["192.0.2.7".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!(answer.ttl, Duration::from_secs(42));
    }

    #[tokio::test]
    async fn a_name_that_does_not_exist_and_a_mute_server_are_told_apart() {
        let server = name_server().await;
        assert!(matches!(server.lookup("b.test").await, Err(LookupError::NoAddress(_))));
        assert!(matches!(server.lookup("mute.test").await, Err(LookupError::TimedOut(_))));
    }
}
