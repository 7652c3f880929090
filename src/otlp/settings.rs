//! The standard variables (OpenTelemetry specification, "OTLP Exporter Configuration" and "SDK Environment Variables").
//! What is not understood is an error at start, with the variable's name and never its value: it may be a secret.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Uri, header};

use crate::config::{self, tls};
use crate::origin::{Host, Origin, Scheme};
use crate::telemetry::spans::{Sampler, Share};

const SHARED_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";

/// Where spans go, which, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The collector.
    pub(super) origin: Origin,
    /// Where spans are posted there.
    pub(super) path: PathAndQuery,
    /// Sent with each post. Secrets, mostly.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// For one post, connecting included.
    pub(super) timeout: Duration,
    /// For https.
    pub(super) tls: config::Tls,
    /// What the spans are of.
    pub(super) resource: Vec<(String, String)>,
    /// Which requests are traced.
    pub(super) sampler: Sampler,
    /// Spans that wait at most.
    pub(super) queue: usize,
    /// Spans in one post at most.
    pub(super) batch: usize,
    /// How long the first span of a post waits for others.
    pub(super) delay: Duration,
}

impl Settings {
    /// From the process's environment. `None`: no collector is named, or tracing is switched off.
    ///
    /// # Errors
    /// Every variable that is wrong, a line each.
    pub fn from_env() -> Result<Option<Settings>, String> {
        // What stands for bytes that are no text is in no valid value that steers anything.
        Settings::read(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    /// From any variables.
    ///
    /// # Errors
    /// As [`Settings::from_env`].
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Settings>, String> {
        let mut reader = Reader { variable: &variable, problems: Vec::new() };
        let settings = reader.settings();
        if reader.problems.is_empty() { Ok(settings) } else { Err(reader.problems.join("\n")) }
    }

    /// The collector, as a log may show it.
    pub fn endpoint(&self) -> String {
        format!("{}://{}{}", self.origin.scheme.as_str(), self.origin.authority(), self.path.path())
    }
}

struct Reader<'a> {
    variable: &'a dyn Fn(&str) -> Option<String>,
    problems: Vec<String>,
}

impl Reader<'_> {
    fn settings(&mut self) -> Option<Settings> {
        if self.one_of("OTEL_SDK_DISABLED", &[("true", true), ("false", false)]).unwrap_or(false) {
            return None;
        }
        let (name, value) = self.first(&[TRACES_ENDPOINT, SHARED_ENDPOINT])?;
        if self.one_of("OTEL_TRACES_EXPORTER", &[("none", true), ("otlp", false)]).unwrap_or(false) {
            return None;
        }
        let place = self.endpoint(name, &value, name == SHARED_ENDPOINT);
        self.one_of("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", &[("http/protobuf", ())])
            .or_else(|| self.one_of("OTEL_EXPORTER_OTLP_PROTOCOL", &[("http/protobuf", ())]));
        self.one_of("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", &[("none", ())])
            .or_else(|| self.one_of("OTEL_EXPORTER_OTLP_COMPRESSION", &[("none", ())]));
        let headers = self.headers();
        let timeout = self.number(&["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"], 10_000);
        let secure = place.as_ref().is_some_and(|(origin, _)| origin.scheme == Scheme::Https);
        let tls = self.tls(secure);
        let resource = self.resource();
        let sampler = self.sampler();
        let queue = self.number(&["OTEL_BSP_MAX_QUEUE_SIZE"], 2048) as usize;
        let batch = self.number(&["OTEL_BSP_MAX_EXPORT_BATCH_SIZE"], 512) as usize;
        let delay = self.number(&["OTEL_BSP_SCHEDULE_DELAY"], 5000);
        let (origin, path) = place?;
        Some(Settings {
            origin,
            path,
            headers,
            timeout: Duration::from_millis(timeout),
            tls,
            resource,
            sampler,
            queue,
            batch: batch.min(queue),
            delay: Duration::from_millis(delay),
        })
    }

    /// A variable that is empty is not set, by the specification.
    fn get(&self, name: &str) -> Option<String> {
        (self.variable)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    fn first(&self, names: &[&'static str]) -> Option<(&'static str, String)> {
        names.iter().find_map(|name| Some((*name, self.get(name)?)))
    }

    fn wrong(&mut self, name: &str, what: impl std::fmt::Display) {
        self.problems.push(format!("{name}: {what}"));
    }

    /// A word of a few, in any case.
    fn one_of<T: Copy>(&mut self, name: &str, words: &[(&str, T)]) -> Option<T> {
        let value = self.get(name)?;
        let found = words.iter().find(|(word, _)| value.eq_ignore_ascii_case(word)).map(|(_, meaning)| *meaning);
        if found.is_none() {
            let words: Vec<String> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
            self.wrong(name, format_args!("must be {} here, or not set", words.join(" or ")));
        }
        found
    }

    fn number(&mut self, names: &[&'static str], default: u64) -> u64 {
        let Some((name, value)) = self.first(names) else { return default };
        match value.parse::<u32>() {
            Ok(number) if number > 0 => u64::from(number),
            Ok(_) | Err(_) => {
                let unit = if name.contains("SIZE") { "a number of spans" } else { "a number of milliseconds" };
                self.wrong(name, format_args!("must be {unit}, digits only, from 1 to {}", u32::MAX));
                default
            }
        }
    }

    /// `shared`: the path of traces is added.
    fn endpoint(&mut self, name: &'static str, value: &str, shared: bool) -> Option<(Origin, PathAndQuery)> {
        let example = if shared { "http://collector:4318" } else { "http://collector:4318/v1/traces" };
        let place = place(value, shared);
        if let Err(what) = &place {
            self.wrong(name, format_args!("{what}; write a URL such as {example}"));
        }
        place.ok()
    }

    fn headers(&mut self) -> Vec<(HeaderName, HeaderValue)> {
        let names = ["OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"];
        let mut headers = Vec::new();
        for (name, at, key, value) in self.pairs(&names) {
            let field = HeaderName::from_str(&key);
            let value = HeaderValue::from_str(&value);
            match (field, value) {
                (Ok(field), Ok(mut value)) if !OURS.contains(&field) => {
                    value.set_sensitive(true);
                    headers.push((field, value));
                }
                (Ok(field), Ok(_)) => self.wrong(name, format_args!("`{field}` is set by Outrigger itself")),
                (Ok(field), Err(_)) => {
                    self.wrong(name, format_args!("the value of `{field}` has a byte that no header has"))
                }
                (Err(_), _) => self.wrong(name, format_args!("entry {at} does not begin with a header's name")),
            }
        }
        headers
    }

    /// `key=value,…`, values percent-encoded. Each with the variable's name and its place, from 1.
    fn pairs(&mut self, names: &[&'static str]) -> Vec<(&'static str, usize, String, String)> {
        let Some((name, text)) = self.first(names) else { return Vec::new() };
        let mut pairs = Vec::new();
        for (at, entry) in text.split(',').enumerate() {
            let at = at + 1;
            if entry.trim().is_empty() {
                continue;
            }
            let pair = entry.split_once('=').filter(|(key, _)| !key.trim().is_empty());
            match pair.map(|(key, value)| (decoded(key.trim()), decoded(value.trim()))) {
                Some((Some(key), Some(value))) => pairs.push((name, at, key, value)),
                Some(_) => self.wrong(name, format_args!("entry {at} has a `%` that is not followed by two digits")),
                None => self.wrong(
                    name,
                    format_args!(
                        "entry {at} is not `key=value`; entries are separated by commas, a comma in a value is `%2C`"
                    ),
                ),
            }
        }
        pairs
    }

    fn tls(&mut self, secure: bool) -> config::Tls {
        let ca = self.first(&["OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE"]);
        let cert =
            self.first(&["OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"]);
        let key = self.first(&["OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "OTEL_EXPORTER_OTLP_CLIENT_KEY"]);
        let file = |(name, path): &(&'static str, String)| (*name, Path::new(path).to_owned());
        let (ca, cert, key) = (ca.as_ref().map(file), cert.as_ref().map(file), key.as_ref().map(file));
        if !secure {
            return tls::from_files(None, None).expect("no files are named");
        }
        let identity = match (&cert, &key) {
            (Some(cert), Some(key)) => Some(((cert.0, &*cert.1), (key.0, &*key.1))),
            (None, None) => None,
            (Some((name, _)), None) => {
                self.wrong(name, "needs its private key, OTEL_EXPORTER_OTLP_CLIENT_KEY");
                None
            }
            (None, Some((name, _))) => {
                self.wrong(name, "needs its certificate, OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE");
                None
            }
        };
        match tls::from_files(ca.as_ref().map(|(name, path)| (*name, &**path)), identity) {
            Ok(tls) => tls,
            Err(problem) => {
                self.problems.push(problem);
                tls::from_files(None, None).expect("no files are named")
            }
        }
    }

    /// What the spans are of. `OTEL_SERVICE_NAME` goes before `OTEL_RESOURCE_ATTRIBUTES`.
    fn resource(&mut self) -> Vec<(String, String)> {
        let version = env!("CARGO_PKG_VERSION");
        let mut resource = vec![
            ("service.name".to_owned(), "outrigger".to_owned()),
            ("service.version".to_owned(), version.to_owned()),
            ("telemetry.sdk.name".to_owned(), "outrigger".to_owned()),
            ("telemetry.sdk.language".to_owned(), "rust".to_owned()),
            ("telemetry.sdk.version".to_owned(), version.to_owned()),
        ];
        let mut set = |key: String, value: String| match resource.iter_mut().find(|(known, _)| *known == key) {
            Some((_, known)) => *known = value,
            None => resource.push((key, value)),
        };
        for (_, _, key, value) in self.pairs(&["OTEL_RESOURCE_ATTRIBUTES"]) {
            set(key, value);
        }
        if let Some(name) = self.get("OTEL_SERVICE_NAME") {
            set("service.name".to_owned(), name);
        }
        resource
    }

    fn sampler(&mut self) -> Sampler {
        #[derive(Clone, Copy)]
        enum Root {
            All,
            Nothing,
            Ratio,
        }
        let names = [
            ("always_on", (false, Root::All)),
            ("always_off", (false, Root::Nothing)),
            ("traceidratio", (false, Root::Ratio)),
            ("parentbased_always_on", (true, Root::All)),
            ("parentbased_always_off", (true, Root::Nothing)),
            ("parentbased_traceidratio", (true, Root::Ratio)),
        ];
        let (parent_based, root) = self.one_of("OTEL_TRACES_SAMPLER", &names).unwrap_or((true, Root::All));
        let root = match root {
            Root::All => Share::All,
            Root::Nothing => Share::Nothing,
            Root::Ratio => self.ratio(),
        };
        Sampler { parent_based, root }
    }

    fn ratio(&mut self) -> Share {
        let name = "OTEL_TRACES_SAMPLER_ARG";
        let Some(value) = self.get(name) else { return Share::All };
        match value.parse::<f64>() {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => Share::of(ratio),
            Ok(_) | Err(_) => {
                self.wrong(name, "must be a ratio from 0 to 1, such as `0.1`");
                Share::All
            }
        }
    }
}

/// What the post itself needs.
const OURS: [HeaderName; 6] = [
    header::HOST,
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CONTENT_ENCODING,
    header::TRANSFER_ENCODING,
    header::CONNECTION,
];

/// Reads the URL of a collector.
fn place(text: &str, shared: bool) -> Result<(Origin, PathAndQuery), &'static str> {
    let uri: Uri = text.parse().map_err(|_| "is not a URL")?;
    let scheme = match uri.scheme_str() {
        Some("http") => Scheme::Http,
        Some("https") => Scheme::Https,
        Some(_) | None => return Err("must begin with http:// or https://"),
    };
    let authority = uri.authority().ok_or("names no host")?.as_str();
    if authority.contains('@') {
        return Err("has a user or password, which belong into OTEL_EXPORTER_OTLP_HEADERS (authorization=…)");
    }
    let (host, port) = crate::origin::parse_authority(authority)?;
    let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let path = if shared {
        if uri.query().is_some() {
            return Err("has a query");
        }
        PathAndQuery::try_from(format!("{}/v1/traces", path.trim_end_matches('/')))
    } else {
        PathAndQuery::try_from(path)
    };
    let host: Host = host;
    Ok((Origin { scheme, host, port: port.unwrap_or(scheme.default_port()) }, path.map_err(|_| "is not a URL")?))
}

/// Without percent-encoding (RFC 3986 section 2.1).
fn decoded(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'%' {
            let digits = bytes.get(at + 1..at + 3).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
            out.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<Settings>, String> {
        Settings::read(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    fn good(variables: &[(&str, &str)]) -> Settings {
        let mut all = vec![(SHARED_ENDPOINT, "http://collector:4318")];
        all.extend(variables);
        read(&all).unwrap().unwrap()
    }

    #[test]
    fn nothing_is_exported_where_no_endpoint_is_named_or_it_is_switched_off() {
        assert!(read(&[("OTEL_TRACES_SAMPLER", "nonsense")]).unwrap().is_none());
        assert!(read(&[(SHARED_ENDPOINT, "")]).unwrap().is_none());
        assert!(read(&[(SHARED_ENDPOINT, "http://c"), ("OTEL_SDK_DISABLED", "TRUE")]).unwrap().is_none());
        assert!(read(&[(SHARED_ENDPOINT, "http://c"), ("OTEL_TRACES_EXPORTER", "none")]).unwrap().is_none());
    }

    #[test]
    fn the_shared_endpoint_gets_the_path_of_traces_and_the_own_one_is_taken_as_it_is() {
        assert_eq!(good(&[]).endpoint(), "http://collector:4318/v1/traces");
        assert_eq!(good(&[(TRACES_ENDPOINT, "https://c.test/otlp?key=k")]).endpoint(), "https://c.test/otlp");
        let at = |url| read(&[(SHARED_ENDPOINT, url)]).unwrap().unwrap().endpoint();
        assert_eq!(at("http://c.test/prefix/"), "http://c.test/prefix/v1/traces");
        assert_eq!(at("http://[::1]:4318"), "http://[::1]:4318/v1/traces");
    }

    #[test]
    fn what_is_not_set_is_as_the_specification_says() {
        let settings = good(&[]);
        assert_eq!((settings.timeout, settings.delay), (Duration::from_secs(10), Duration::from_secs(5)));
        assert_eq!((settings.queue, settings.batch), (2048, 512));
        assert_eq!(settings.sampler, Sampler { parent_based: true, root: Share::All });
        assert_eq!(settings.resource[0], ("service.name".to_owned(), "outrigger".to_owned()));
    }

    #[test]
    fn headers_and_attributes_are_percent_decoded_and_the_service_name_wins() {
        let settings = good(&[
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20a%2Cb, x-team = shop ,"),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=prod,service.name=other"),
            ("OTEL_SERVICE_NAME", "shop-outrigger"),
        ]);
        let values: Vec<_> = settings.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        assert_eq!(values, [("authorization", &b"Bearer a,b"[..]), ("x-team", b"shop")]);
        assert!(!format!("{settings:?}").contains("Bearer"), "{settings:?}");
        let of =
            |key| settings.resource.iter().filter(|(known, _)| known == key).map(|(_, v)| &**v).collect::<Vec<_>>();
        assert_eq!((of("service.name"), of("deployment.environment.name")), (vec!["shop-outrigger"], vec!["prod"]));
    }

    #[test]
    fn every_wrong_value_is_named_and_none_is_shown() {
        let problems = read(&[
            (SHARED_ENDPOINT, "http://user:hunter2@c.test"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "hunter2,host=hunter2,x=%zz"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_RESOURCE_ATTRIBUTES", "=x"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "12"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ])
        .unwrap_err();
        assert_eq!(problems.lines().count(), 10, "{problems}");
        assert!(!problems.contains("hunter2"), "{problems}");
        for name in ["_ENDPOINT: ", "_PROTOCOL: must be `http/protobuf`", "_TIMEOUT: must be a number of milliseconds"]
        {
            assert!(problems.contains(name), "{name}\n{problems}");
        }
        for endpoint in ["collector:4318", "collector", "grpc://c:4317", "http://", "http://c/?x=1"] {
            let problem = read(&[(SHARED_ENDPOINT, endpoint)]).unwrap_err();
            assert!(problem.contains("write a URL such as"), "{endpoint}: {problem}");
        }
    }

    #[test]
    fn certificates_are_read_at_start() {
        let https = (SHARED_ENDPOINT, "https://c.test");
        let problem = read(&[https, ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem")]).unwrap_err();
        assert!(problem.starts_with("OTEL_EXPORTER_OTLP_CERTIFICATE: the file can't be read"), "{problem}");
        let problem = read(&[https, ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/nowhere/c.pem")]).unwrap_err();
        assert!(problem.contains("OTEL_EXPORTER_OTLP_CLIENT_KEY"), "{problem}");
    }
}
