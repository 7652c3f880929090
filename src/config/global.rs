//! The settings that are not any upstream's.

use crate::address::{AddressRule, AddressSet};
use crate::config::{
    AccessLog, Dns, Egress, Limits, Listeners, Log, LogLevel, LogPath, Secret, Shutdown, host, schema,
};
use crate::document::Reader;
use crate::document::tree::Node;
use crate::units::show_size;

/// Less has no room for what any HTTP client sends.
const LEAST_HEADER_BYTES: u64 = 1 << 10;
const MOST_HEADER_BYTES: u64 = 16 << 20;

/// `version`
pub(crate) fn version(reader: &mut Reader<'_>) {
    let help = Some("write `version: 1`".to_owned());
    match reader.raw("version").map(|node| node.scalar()) {
        None => reader.problem("version", "is missing".to_owned(), Some("write `version: 1` at the top".to_owned())),
        Some(Some(scalar)) if scalar.is_missing() || (&*scalar.text == "1" && scalar.plain) => {}
        Some(_) => reader.problem("version", "must be 1, the only version there is".to_owned(), help),
    }
}

/// `listeners`. `admin_token` may stand beside `admin`, or at the top of the file.
pub(crate) fn listeners(reader: &mut Reader<'_>) -> Option<Listeners> {
    let at_top = token(reader);
    let has_top = reader.has("admin_token");
    reader.section("listeners", |reader| {
        let has_token = has_top || reader.has("admin_token");
        let admin_token = token(reader).or(at_top);
        let proxy = reader.parsed("proxy", host::listen);
        let mut control = |key| {
            if reader.node().get(key).is_some_and(|node| node.is_off()) {
                reader.raw(key);
                return None;
            }
            reader.parsed(key, host::listen)
        };
        let (admin, probes) = (control("admin"), control("probes"));
        let tls = reader.parsed("tls", host::listen);
        for (key, address) in [("proxy", proxy), ("admin", admin), ("tls", tls)] {
            if address.is_some_and(|address| !address.ip().is_loopback()) {
                reader.warning(
                    key,
                    "is not a loopback address: whoever reaches it can use it".to_owned(),
                    Some(format!("write `{key}: 127.0.0.1:{}`", address.map_or(0, |address| address.port()))),
                );
            }
        }
        if !has_token && admin.is_some_and(|address| !address.ip().is_loopback()) {
            let help = "write `admin_token: ${file:/path}` beside it, or a loopback address here";
            reader.problem(
                "admin",
                "needs `admin_token`, since it is not a loopback address".to_owned(),
                Some(help.into()),
            );
        }
        Some(Listeners { proxy: proxy?, admin, admin_token, probes, tls, own: Vec::new() })
    })?
}

fn token(reader: &mut Reader<'_>) -> Option<Secret> {
    let literal = reader
        .node()
        .get("admin_token")
        .and_then(|node| node.scalar())
        .is_some_and(|scalar| scalar.expansion.is_none() && !scalar.text.is_empty());
    let token = reader.parsed("admin_token", |text| {
        let visible = |b: u8| b.is_ascii_graphic();
        if text.is_empty() {
            Err("is empty".to_owned())
        } else if !text.bytes().all(visible) {
            Err("has spaces, line ends or other characters that no header can carry".to_owned())
        } else {
            Ok(Secret::new(text))
        }
    });
    if literal && token.is_some() {
        let help = "put it into a file: `admin_token: ${file:/path}`";
        reader.warning("admin_token", "is a secret written in the configuration itself".to_owned(), Some(help.into()));
    }
    token
}

/// `egress`. What the file denies adds to the built-in three.
pub(crate) fn egress(reader: &mut Reader<'_>) -> Egress {
    let forward_unmatched = reader.choice("unmatched", &[("forward", true), ("deny", false)]);
    let written = reader.list("deny", AddressRule::parse);
    let mut deny = vec![AddressRule::Loopback, AddressRule::LinkLocal, AddressRule::Metadata];
    for rule in written {
        if !deny.contains(&rule) {
            deny.push(rule);
        }
    }
    let any = reader.node().get("connect_ports").and_then(|node| node.scalar()).is_some_and(|s| &*s.text == "any");
    let connect_ports = if any {
        reader.raw("connect_ports");
        None
    } else {
        Some(reader.list("connect_ports", |text| match text.parse::<u16>() {
            Ok(port) if port > 0 => Ok(port),
            Ok(_) | Err(_) => Err(format!("`{text}` is not a port from 1 to 65535")),
        }))
    };
    if connect_ports.as_ref().is_some_and(Vec::is_empty)
        && reader.node().get("connect_ports").is_some_and(|n| n.items().is_empty() && n.scalar().is_none())
    {
        let help = "write the ports, or `any`; `https: deny` refuses CONNECT for one upstream";
        reader.problem("connect_ports", "names no port".to_owned(), Some(help.to_owned()));
    }
    reader.reserved(&["via"]);
    Egress { forward_unmatched, deny: AddressSet(deny), connect_ports }
}

/// `dns`
pub(crate) fn dns(reader: &mut Reader<'_>) -> Dns {
    let dns = Dns {
        min_ttl: reader.duration("min_ttl"),
        max_ttl: reader.duration("max_ttl"),
        negative_ttl: reader.duration("negative_ttl"),
        stale_for: reader.duration("stale_for"),
        hosts_file: reader.boolean("hosts_file"),
    };
    if dns.min_ttl > dns.max_ttl {
        reader.problem(
            "min_ttl",
            "is longer than `max_ttl`".to_owned(),
            Some("raise `max_ttl` or lower `min_ttl`".into()),
        );
    }
    dns
}

/// `limits`. `memory` is what the process may use, in bytes.
pub(crate) fn limits(reader: &mut Reader<'_>, memory: Option<u64>) -> Limits {
    let mut limits = Limits {
        max_connections: reader.count("max_connections", "0 would refuse every app"),
        max_header_bytes: reader.size("max_header_bytes"),
        max_headers: reader.count("max_headers", "0 would refuse every request"),
        header_timeout: reader.duration("header_timeout"),
        replay_memory: reader.size("replay_memory"),
    };
    let written = |node: &Node, key| node.get(key).is_some_and(|node| crate::document::read::written(node).is_some());
    if written(reader.node(), "max_header_bytes")
        && !(LEAST_HEADER_BYTES..=MOST_HEADER_BYTES).contains(&limits.max_header_bytes)
        && limits.max_header_bytes != 1
    {
        reader.problem("max_header_bytes", "must be from 1KiB to 16MiB".to_owned(), None);
    }
    if limits.max_headers.get() > schema::MOST_HEADERS {
        reader.problem("max_headers", format!("must be at most {}", schema::MOST_HEADERS), None);
    }
    if let Some(quarter) = memory.map(|memory| memory / 4).filter(|quarter| *quarter < limits.replay_memory) {
        if written(reader.node(), "replay_memory") {
            let message = format!("is more than a quarter of the memory limit: {} is used", show_size(quarter));
            reader.warning("replay_memory", message, None);
        }
        limits.replay_memory = quarter;
    }
    limits
}

/// `shutdown`
pub(crate) fn shutdown(reader: &mut Reader<'_>) -> Shutdown {
    let shutdown = Shutdown { quiet: reader.duration("quiet"), grace: reader.duration("grace") };
    if shutdown.quiet > shutdown.grace {
        reader.problem("quiet", "is longer than `grace`".to_owned(), Some("raise `grace` or lower `quiet`".to_owned()));
    }
    shutdown
}

/// `log`
pub(crate) fn log(reader: &mut Reader<'_>) -> Log {
    Log {
        json: reader.choice("format", &[("json", true), ("text", false)]),
        level: reader.choice(
            "level",
            &[
                ("error", LogLevel::Error),
                ("warn", LogLevel::Warn),
                ("info", LogLevel::Info),
                ("debug", LogLevel::Debug),
                // What libraries say there quotes whole messages; Outrigger itself has no more to say.
                ("trace", LogLevel::Debug),
            ],
        ),
        access: reader
            .choice("access", &[("all", AccessLog::All), ("errors", AccessLog::Errors), ("off", AccessLog::Off)]),
        path: reader.choice("path", &[("masked", LogPath::Masked), ("full", LogPath::Full), ("off", LogPath::Off)]),
    }
}

/// What the control group allows this process, in bytes: the least of the limits on the way to the root.
pub(crate) fn memory_limit() -> Option<u64> {
    let mut files =
        vec!["/sys/fs/cgroup/memory.max".to_owned(), "/sys/fs/cgroup/memory/memory.limit_in_bytes".to_owned()];
    for line in std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default().lines() {
        let mut parts = line.splitn(3, ':');
        if let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) {
            let (root, name) = match controllers {
                "" => ("/sys/fs/cgroup", "memory.max"),
                "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
                _ => continue,
            };
            let mut path = path.trim_end_matches('/');
            while !path.is_empty() {
                files.push(format!("{root}{path}/{name}"));
                path = path.rfind('/').map_or("", |at| &path[..at]);
            }
        }
    }
    files.iter().filter_map(|file| std::fs::read_to_string(file).ok()?.trim().parse().ok()).min()
}
