//! `JAVA_TOOL_OPTIONS`: a list of options that the app may have a part in, so ours go behind its own. Where a property is set
//! twice, the last one counts.

use crate::inject::env::NO_PROXY;

/// What leads to the proxy.
const PROXY: &str = ".proxyHost=";
/// Hosts that don't go through the proxy. Java reads no `NO_PROXY`.
const EXEMPT: &str = "-Dhttp.nonProxyHosts=";

/// The app's options with ours behind them.
///
/// # Errors
/// The property that the app sets itself, unless that is `overwrite`.
pub(crate) fn merge(old: &str, ours: &str, no_proxy: &[String], overwrite: bool) -> Result<String, String> {
    let mut out = old.trim_end().to_owned();
    let mut put = |option: &str| {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(option);
    };
    for option in ours.split_whitespace() {
        let key = property(option);
        match old.split_whitespace().rfind(|present| property(present) == key) {
            Some(present) if present == option => {}
            Some(_) if !overwrite => return Err(key.to_owned()),
            Some(_) | None => put(option),
        }
    }
    if !ours.contains(PROXY) {
        return Ok(out);
    }
    let wanted = NO_PROXY.into_iter().chain(no_proxy.iter().map(String::as_str)).filter_map(pattern);
    let Some(present) = old.split_whitespace().rfind(|option| option.starts_with(EXEMPT)) else {
        put(&format!("{EXEMPT}{}", wanted.collect::<Vec<_>>().join("|")));
        return Ok(out);
    };
    let mut list = present.to_owned();
    for one in wanted.filter(|one| !present[EXEMPT.len()..].split('|').any(|host| host == one)) {
        list.push('|');
        list.push_str(&one);
    }
    if list != present {
        out = out.replace(present, &list);
    }
    // What has everything stays as it is written.
    Ok(if out == old.trim_end() { old.to_owned() } else { out })
}

/// Ours less what leads to the proxy.
pub(crate) fn without_proxy(ours: &str) -> String {
    ours.split_whitespace().filter(|option| !option.contains(".proxy")).collect::<Vec<_>>().join(" ")
}

/// The options less ours. The list of hosts may be the app's in part, and goes only where it is as we write it.
pub(crate) fn without(old: &str, ours: &str, no_proxy: &[String]) -> String {
    let whole = |no_proxy| merge("", ours, no_proxy, false).unwrap_or_default();
    let (plain, more) = (whole(&[]), whole(no_proxy));
    let is_ours = |option: &&str| plain.split_whitespace().chain(more.split_whitespace()).any(|one| one == *option);
    old.split_whitespace().filter(|option| !is_ours(option)).collect::<Vec<_>>().join(" ")
}

fn property(option: &str) -> &str {
    option.split('=').next().unwrap_or(option)
}

/// An entry of `NO_PROXY` as Java writes it; `None` where it can't.
fn pattern(host: &str) -> Option<String> {
    if let Some((network, bits)) = host.split_once('/') {
        let bytes = bits.parse::<usize>().ok().filter(|bits| bits % 8 == 0 && (8..32).contains(bits))? / 8;
        let address: std::net::Ipv4Addr = network.parse().ok()?;
        return Some(address.octets()[..bytes].iter().map(|byte| format!("{byte}.")).collect::<String>() + "*");
    }
    if host.parse::<std::net::Ipv6Addr>().is_ok() {
        return Some(format!("[{host}]"));
    }
    if host.contains([':', '|', '"', '\'']) {
        return None;
    }
    Some(if host.starts_with('.') { format!("*{host}") } else { host.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "-Dtrust=/ca -Dhttp.proxyHost=1";
    const HOSTS: &str = "-Dhttp.nonProxyHosts=localhost|127.0.0.1|[::1]|169.254.*|*.svc|*.cluster.local|kubernetes.default\
                         |$(KUBERNETES_SERVICE_HOST)";

    #[test]
    fn the_apps_options_come_first_and_nothing_is_added_twice() {
        let once = merge("-Xmx1g  -Da=b", OURS, &[], false).unwrap();
        assert_eq!(once, format!("-Xmx1g  -Da=b {OURS} {HOSTS}"));
        assert_eq!(merge(&once, OURS, &[], false).unwrap(), once);
        assert_eq!(without(&once, OURS, &[]), "-Xmx1g -Da=b");
        assert_eq!(merge("-Xmx1g", &without_proxy(OURS), &[], false).unwrap(), "-Xmx1g -Dtrust=/ca");
    }

    #[test]
    fn a_property_of_the_apps_own_is_told_or_loses() {
        assert_eq!(merge("-Dtrust=/own", OURS, &[], false), Err("-Dtrust".to_owned()));
        let over = merge("-Dtrust=/own", OURS, &[], true).unwrap();
        assert_eq!(over, format!("-Dtrust=/own {OURS} {HOSTS}"));
        assert_eq!(merge(&over, OURS, &[], false).unwrap(), over);
    }

    #[test]
    fn exempt_hosts_are_extended_in_javas_own_notation() {
        let own = merge("-Dhttp.nonProxyHosts=x|localhost -Xss1m", OURS, &[], false).unwrap();
        let rest = "127.0.0.1|[::1]|169.254.*|*.svc|*.cluster.local|kubernetes.default|$(KUBERNETES_SERVICE_HOST)";
        assert_eq!(own, format!("-Dhttp.nonProxyHosts=x|localhost|{rest} -Xss1m {OURS}"));
        let patterns = [".corp.example", "10.0.0.0/8", "10.0.0.0/12", "host:8080", "*"].map(pattern);
        assert_eq!(patterns.map(|one| one.unwrap_or_default()), ["*.corp.example", "10.*", "", "", "*"]);
    }
}
