//! Secrets, each one its own, go in wherever one may stand. Then all that Outrigger emits is searched for every one of them.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use crate::support::{Client, Origin, eventually};

/// Which secrets there are. Each is long and has letters and digits, as real ones do.
const NAMES: &[&str] = &[
    // Of the operator.
    "admin-token",
    "hook-in-env",
    "header-in-env",
    "process-env",
    "collector-headers",
    // Of the app.
    "authorization",
    "proxy-authorization",
    "cookie",
    "api-key",
    "idempotency-key",
    "tenant",
    "referer",
    "query-value",
    "query-word",
    "path-token",
    "url-password",
    "connect-password",
    "request-body",
    "request-trailer",
    "tunnel-bytes",
    "unknown-protocol",
    "refused-header",
    "refused-name",
    "refused-expect",
    "websocket",
    "grpc-metadata",
    "explained",
    // Of the upstream.
    "set-cookie",
    "response-header",
    "response-body",
    "error-body",
    "bad-length",
    "bad-header",
    "bad-status",
    "reason-phrase",
];

/// Tied to its name, and in no other text.
fn secret(name: &str) -> String {
    assert!(NAMES.contains(&name), "{name}");
    let number = name.bytes().fold(7_u64, |sum, byte| sum.wrapping_mul(0x0100_0193).wrapping_add(u64::from(byte)));
    format!("kanari{number:016x}{}", name.replace('-', ""))
}

/// All that was emitted, by where it came from.
#[derive(Default)]
struct Emitted(BTreeMap<String, Vec<u8>>);

impl Emitted {
    fn add(&mut self, place: impl Into<String>, bytes: impl Into<Vec<u8>>) {
        self.0.entry(place.into()).or_default().extend(bytes.into());
    }

    fn command(&mut self, place: &str, output: Output) {
        assert!(!output.stdout.is_empty() || !output.stderr.is_empty(), "{place}");
        self.add(place, [output.stdout, output.stderr].concat());
    }

    /// Everything that is found in anything.
    fn leaks(&self, secrets: &[(String, Vec<u8>)]) -> Vec<String> {
        let mut leaks = Vec::new();
        for (place, bytes) in &self.0 {
            for (name, secret) in secrets {
                if let Some(at) = bytes.windows(secret.len()).position(|window| window == secret) {
                    let around = &bytes[at.saturating_sub(200)..(at + secret.len() + 50).min(bytes.len())];
                    leaks.push(format!("{name} in {place}: {}", String::from_utf8_lossy(around)));
                }
            }
        }
        leaks
    }
}

fn outrigger(arguments: &[&str], config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    command.args(arguments).arg("--config").arg(config);
    command
        .env("HOOK", secret("hook-in-env"))
        .env("TENANT_HEADER", format!("x-{}", secret("header-in-env")))
        .env("AWS_SECRET_ACCESS_KEY", secret("process-env"))
        .env("OTEL_EXPORTER_OTLP_HEADERS", format!("authorization=Bearer%20{}", secret("collector-headers")))
        .env("OTEL_BSP_SCHEDULE_DELAY", "5");
    command
}

/// The program with its output in a file.
struct Running {
    process: Child,
    log: PathBuf,
    addresses: Value,
}

impl Running {
    async fn start(config: &Path, collector: &str) -> Running {
        let log = config.with_extension("log");
        let file = File::create(&log).unwrap();
        let mut command = outrigger(&["run"], config);
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", collector);
        let process = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        let mut running = Running { process, log, addresses: Value::Null };
        eventually("it is ready", async || {
            let text = std::fs::read_to_string(&running.log).unwrap();
            let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            running.addresses = lines.into_iter().find(|line| line["message"] == "ready").unwrap_or_default();
            !running.addresses.is_null()
        })
        .await;
        running
    }

    async fn connect(&self, listener: &str) -> Client {
        Client::connect(self.addresses[listener].as_str().unwrap().parse().unwrap()).await
    }

    /// Sends bytes and reads what comes until the connection ends or a moment has passed without more.
    async fn talk(&self, listener: &str, bytes: &[u8]) -> Vec<u8> {
        let mut client = self.connect(listener).await;
        // It may be refused before all of it was sent.
        let _ = client.stream.write_all(bytes).await;
        client.end().await.0
    }

    async fn admin(&self, method: &str, path: &str, body: &str) -> Vec<u8> {
        let (token, length) = (secret("admin-token"), body.len());
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\
             Authorization: Bearer {token}\r\n\r\n{body}"
        );
        self.talk("admin", request.as_bytes()).await
    }

    /// Ends it, and gives all it said.
    fn finish(mut self) -> Vec<u8> {
        let pid = Pid::from_raw(i32::try_from(self.process.id()).unwrap()).unwrap();
        kill_process(pid, Signal::Term).unwrap();
        assert!(self.process.wait().unwrap().success());
        std::fs::read(&self.log).unwrap()
    }
}

/// What may stand in the head of every request.
fn fields() -> String {
    let one = |field: &str, name: &str| format!("{field}: {}\r\n", secret(name));
    [
        format!("Authorization: Bearer {}\r\n", secret("authorization")),
        format!("Proxy-Authorization: Basic {}\r\n", secret("proxy-authorization")),
        format!("Cookie: session={}\r\n", secret("cookie")),
        one("X-Api-Key", "api-key"),
        one("Idempotency-Key", "idempotency-key"),
        one("X-Tenant", "tenant"),
        format!("Referer: http://a.test/?{}\r\n", secret("referer")),
        format!("Trailer: x-sum\r\nX-{}: 1\r\n", secret("tenant")),
    ]
    .concat()
}

fn query() -> String {
    format!("{}?key={}&{}", secret("path-token"), secret("query-value"), secret("query-word"))
}

/// Fails in every way, and says secrets in each.
async fn upstream() -> Origin {
    Origin::scripted(|mut conn| async move {
        while let Some(seen) = conn.request().await {
            let what = seen.line().split(['/', ' ', '?']).nth(2).unwrap_or("").to_owned();
            let hidden =
                format!("Set-Cookie: session={}\r\nX-Secret: {}\r\n", secret("set-cookie"), secret("response-header"));
            let body = secret("response-body");
            let length = body.len();
            let answer = match &*what {
                "reset" => return,
                "hang" => return conn.closed().await,
                "bad-length" => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", secret("bad-length")),
                "bad-header" => format!("HTTP/1.1 200 OK\r\nX {}\r\n\r\n", secret("bad-header")),
                "bad-status" => format!("HTTP/1.1 {} OK\r\n\r\n", secret("bad-status")),
                "both" => format!("HTTP/1.1 200 OK\r\n{hidden}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"),
                "broken" => format!("HTTP/1.1 200 OK\r\n{hidden}Content-Length: 9999\r\n\r\n{body}"),
                "bad-chunk" => format!("HTTP/1.1 200 OK\r\n{hidden}Transfer-Encoding: chunked\r\n\r\n{body}\r\n"),
                "upgrade" => {
                    format!("HTTP/1.1 101 Switching\r\n{hidden}Connection: upgrade\r\nUpgrade: x\r\n\r\n{body}")
                }
                "500" => {
                    let body = secret("error-body");
                    let length = body.len();
                    format!(
                        "HTTP/1.1 500 {}\r\n{hidden}Content-Length: {length}\r\n\r\n{body}",
                        secret("reason-phrase")
                    )
                }
                _ => format!("HTTP/1.1 200 OK\r\n{hidden}Content-Length: {length}\r\n\r\n{body}"),
            };
            if conn.try_send(answer.as_bytes()).await.is_err()
                || matches!(&*what, "broken" | "bad-chunk" | "upgrade" | "bad-length")
            {
                return;
            }
        }
    })
    .await
}

fn configuration(dir: &Path, origin: &Origin, log: &str, more: &str) -> String {
    let (to, dir) = (origin.address(), dir.display());
    format!(
        "version: 1\n\
         listeners: {{proxy: '127.0.0.1:0', admin: '127.0.0.1:0', probes: '127.0.0.1:0'}}\n\
         admin_token: '${{file:{dir}/token}}'\n\
         log: {log}\n\
         limits: {{max_header_bytes: 4KiB}}\n\
         intercept: {{generate: true, dir: {dir}/ca, key_dir: {dir}/key, unknown: refuse}}\n\
         defaults: {{circuit_breaker: off, retry: {{backoff: {{base: 0}}}}, timeouts: {{attempt: 300ms, idle: 1s}}}}\n\
         upstreams:\n  \
         up:\n    hosts: [up.test]\n    to: ['http://{to}']\n    routes:\n      - name: hook\n        match: {{path: '/hook/${{HOOK}}'}}\n  \
         limited:\n    hosts: [limited.test]\n    to: ['http://{to}']\n    \
         rate_limit: {{requests: 1, per: 1h, key: 'header:x-tenant'}}\n    retry: {{idempotency_headers: ['${{TENANT_HEADER}}']}}\n  \
         secure:\n    hosts: [secure.test]\n    to: ['https://{to}']\n    tls: {{client_cert: {dir}/client.crt, client_key: {dir}/client.key}}\n  \
         inside:\n    hosts: [inside.test]\n    to: ['http://{to}']\n    https: intercept\n  \
         closed:\n    hosts: [closed.test]\n    to: ['http://127.0.0.1:9']\n    https: deny\n{more}"
    )
}

/// Every request of the attack, and whether what comes back is the upstream's.
fn requests() -> Vec<(String, bool)> {
    let (fields, query) = (fields(), query());
    let body = secret("request-body");
    let post = |url: &str, host: &str, more: &str| {
        format!(
            "POST {url} HTTP/1.1\r\nHost: {host}\r\n{fields}Connection: close\r\n{more}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let mut all = Vec::new();
    for what in ["ok", "500", "reset", "hang", "bad-length", "bad-header", "bad-status", "both", "broken", "bad-chunk"]
    {
        let mine = matches!(what, "ok" | "500" | "broken" | "bad-chunk");
        all.push((post(&format!("http://up.test/{what}/{query}"), "up.test", ""), mine));
        all.push((post(&format!("/{what}/{query}"), "up.test", ""), mine));
    }
    all.push((post(&format!("http://up.test/hook/{}", secret("hook-in-env")), "up.test", ""), true));
    for host in ["limited.test", "secure.test", "closed.test", "nowhere.invalid", "169.254.169.254", "127.0.0.1:9"] {
        for _ in 0..2 {
            all.push((post(&format!("http://{host}/ok/{query}"), host, ""), host == "limited.test"));
        }
    }
    // What is no request.
    let bad = |target: &str, more: &str| {
        (format!("GET {target} HTTP/1.1\r\nHost: up.test\r\n{fields}Connection: close\r\n{more}\r\n"), false)
    };
    let (name, value) = (secret("refused-name"), secret("refused-header"));
    all.push(bad(&format!("http://user:{}@up.test/{query}", secret("url-password")), ""));
    all.push(bad(&format!("http://up.test/{query}#{}", secret("query-word")), ""));
    all.push(bad(&format!("/{query}\u{7f}"), ""));
    all.push(bad("/ok", &format!("X {name}: {value}\r\n")));
    all.push(bad("/ok", &format!("X: {value}\u{1}\r\n")));
    all.push(bad("/ok", &format!(" {value}\r\n")));
    all.push(bad("/ok", &format!("{name}\u{1}: {value}\r\n")));
    all.push(bad("/ok", &format!("Content-Length: {value}\r\n")));
    all.push(bad("/ok", &format!("Transfer-Encoding: {value}\r\n")));
    all.push(bad("/ok", &format!("Host: {value}.test\r\n")));
    all.push(bad("/ok", &format!("Expect: {}\r\n", secret("refused-expect"))));
    all.push(bad("/ok", &format!("X-Large: {}\r\n", value.repeat(200))));
    all.push(bad(&format!("/{}", secret("path-token").repeat(200)), ""));
    let bad_chunk =
        format!("POST /ok HTTP/1.1\r\nHost: up.test\r\n{fields}Transfer-Encoding: chunked\r\n\r\n{body}\r\n");
    all.push((bad_chunk, false));
    all.push((
        format!(
            "POST /ok HTTP/1.1\r\nHost: up.test\r\n{fields}Connection: close, te\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n\
             1\r\nx\r\n0\r\nx-sum: {}\r\n\r\n",
            secret("request-trailer")
        ),
        true,
    ));
    all.push((
        post(
            "/grpc",
            "closed.test",
            &format!("Content-Type: application/grpc\r\nX-Meta: {}\r\n", secret("grpc-metadata")),
        ),
        false,
    ));
    // Tunnels, denied and to nobody.
    for (host, more) in [
        ("closed.test:443", String::new()),
        ("127.0.0.1:1", String::new()),
        (&*format!("u:{}@up.test:443", secret("connect-password")), String::new()),
    ] {
        all.push((
            format!("CONNECT {host} HTTP/1.1\r\nHost: up.test\r\n{fields}{more}\r\n{}", secret("tunnel-bytes")),
            false,
        ));
    }
    all
}

/// What goes on inside of streams.
async fn streams(running: &Running, emitted: &mut Emitted) {
    let fields = fields();
    let mut client = running.connect("proxy").await;
    client
        .send(format!("GET /upgrade HTTP/1.1\r\nHost: up.test\r\n{fields}Connection: upgrade\r\nUpgrade: x\r\n\r\n"))
        .await;
    assert!(client.head().await.starts_with("HTTP/1.1 101 "));
    let _ = client.stream.write_all(secret("websocket").as_bytes()).await;
    client.end().await.0.clear();
    for inside in [
        format!("\0{}", secret("unknown-protocol")),
        format!("GET /{} HTTP/1.1\r\nHost: inside.test:443\r\n{fields}Connection: close\r\n\r\n", query()),
        format!("GET /{} HTTP/1.1\r\nHost: other.test:443\r\n{fields}Connection: close\r\n\r\n", query()),
        format!("\u{16}\u{3}\u{1}\0\u{20}{}", secret("tunnel-bytes")),
    ] {
        let mut client = running.connect("proxy").await;
        client.send("CONNECT inside.test:443 HTTP/1.1\r\nHost: inside.test:443\r\n\r\n").await;
        assert!(client.head().await.starts_with("HTTP/1.1 200 "));
        let _ = client.stream.write_all(inside.as_bytes()).await;
        let answer = client.end().await.0;
        if !answer.starts_with(b"HTTP/1.1 200 ") {
            emitted.add("answers inside", answer);
        }
    }
    // Hung up in the middle.
    let mut client = running.connect("proxy").await;
    client
        .send(format!(
            "POST /ok HTTP/1.1\r\nHost: up.test\r\n{fields}Content-Length: 9999\r\n\r\n{}",
            secret("request-body")
        ))
        .await;
}

/// The parts of a private key that would give it away.
fn key(name: &str, path: &Path) -> Vec<(String, Vec<u8>)> {
    let pem = std::fs::read_to_string(path).unwrap();
    pem.lines().filter(|line| line.len() == 64).map(|line| (name.to_owned(), line[24..56].into())).collect()
}

#[tokio::test]
async fn no_secret_is_in_anything_that_outrigger_emits() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("token"), secret("admin-token") + "\n").unwrap();
    let client = rcgen::generate_simple_self_signed(vec!["client.test".to_owned()]).unwrap();
    std::fs::write(path("client.crt"), client.cert.pem()).unwrap();
    std::fs::write(path("client.key"), client.signing_key.serialize_pem()).unwrap();
    let origin = upstream().await;
    let collector = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let config = path("outrigger.yaml");
    let write = |text: String| std::fs::write(&config, text).unwrap();
    let json = "{level: trace}";
    write(configuration(dir.path(), &origin, json, ""));
    let running = Running::start(&config, &format!("http://{}", collector.address())).await;
    let mut emitted = Emitted::default();

    for round in ["json", "text"] {
        for (request, upstreams) in requests() {
            let answer = running.talk("proxy", request.as_bytes()).await;
            if !upstreams || !answer.starts_with(b"HTTP/1.1 200 ") && !answer.starts_with(b"HTTP/1.1 500 ") {
                let text = String::from_utf8_lossy(&answer);
                assert!(!text.starts_with("HTTP/1.1 2") || text.contains("outrigger; error="), "{request}: {text}");
                emitted.add("answers", answer);
            }
        }
        streams(&running, &mut emitted).await;
        for path in [
            "/",
            "/api",
            "/api/upstreams",
            "/api/history",
            "/api/failures",
            "/api/reload",
            "/api/reloads",
            "/config",
            "/metrics",
            "/x",
        ] {
            emitted.add(path, running.admin("GET", path, "").await);
        }
        emitted.add(
            "/metrics",
            running.talk("probes", b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await,
        );
        let mut events = running.connect("admin").await;
        events
            .send(format!(
                "GET /api/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\r\n",
                secret("admin-token")
            ))
            .await;
        let first = events.until("event: tick").await;
        emitted.add("/api/events", first);
        emitted.add("refused", running.talk("admin", format!("GET /config HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}x\r\nConnection: close\r\n\r\n", secret("admin-token")).as_bytes()).await);
        // A reload that changes much, and one that is refused.
        let more = "    tls: {server_name: other.test}\n";
        write(configuration(dir.path(), &origin, "{level: trace, format: text}", more));
        emitted.add("POST /reload", running.admin("POST", "/reload", "").await);
        write(configuration(
            dir.path(),
            &origin,
            json,
            "    retry: {max_attempts: '${HOOK}'}\n    to: ['http://x/${HOOK}']\n",
        ));
        emitted.add("POST /reload", running.admin("POST", "/reload", "").await);
        assert_eq!(round == "json", !emitted.0.contains_key("second round"));
        emitted.add("second round", "x");
    }
    write(configuration(dir.path(), &origin, json, ""));
    let question = ["-H", &format!("Authorization: {}", secret("explained")), "POST"];
    let url = format!("http://up.test/{}?{}", "x", secret("explained"));
    for format in ["text", "json"] {
        let explain = [&["explain", "--format", format][..], &question, &[&url]].concat();
        emitted.command("explain", outrigger(&explain, &config).output().unwrap());
        let key = format!("x-{}: {}", secret("header-in-env"), secret("explained"));
        let explain = ["explain", "--format", format, "-H", &key, "POST", "http://limited.test/"];
        emitted.command("explain", outrigger(&explain, &config).output().unwrap());
        let explain = ["explain", "--format", format, "GET", "http://up.test/hook/other"];
        let shown = outrigger(&explain, &config).output().unwrap();
        assert!(format == "text" || String::from_utf8_lossy(&shown.stdout).contains("/hook/${HOOK}"), "{shown:?}");
        emitted.command("explain", shown);
        emitted.command("check", outrigger(&["check", "--format", format], &config).output().unwrap());
    }
    for what in ["print", "bundle", "env"] {
        emitted.command("ca", outrigger(&["ca", what], &config).output().unwrap());
    }
    for arguments in
        [&["--help"][..], &["run", "--help"], &["schema"], &["completions", "bash"], &["man"], &["--version"]]
    {
        let mut command = outrigger(&[], &config);
        let program = command.get_program().to_owned();
        let variables: Vec<_> =
            command.get_envs().map(|(name, value)| (name.to_owned(), value.unwrap().to_owned())).collect();
        command = Command::new(program);
        emitted.command("help", command.envs(variables).args(arguments).output().unwrap());
    }
    for name in ["ca.crt", "ca-bundle.crt", "truststore.p12", "env.sh"] {
        emitted.add(name, std::fs::read(path("ca").join(name)).unwrap());
    }
    let log = running.finish();
    let said = String::from_utf8_lossy(&log).into_owned();
    assert!(said.contains("\"message\":\"request\"") && said.contains(" request upstream=up"), "{said}");
    emitted.add("log", log);
    for seen in collector.seen() {
        emitted.add("spans", seen.body);
    }
    assert_eq!(collector.seen().is_empty(), !cfg!(feature = "otlp"));

    // They were all there to be leaked.
    let sent: String =
        origin.seen().iter().map(|seen| seen.head.clone() + &String::from_utf8_lossy(&seen.body)).collect();
    for name in [
        "authorization",
        "cookie",
        "api-key",
        "idempotency-key",
        "tenant",
        "query-value",
        "query-word",
        "path-token",
        "request-body",
        "hook-in-env",
        "request-trailer",
    ] {
        assert!(sent.contains(&secret(name)), "{name} was never sent");
    }
    assert!(!sent.contains(&secret("proxy-authorization")), "what is meant for a proxy goes no further");
    let mut secrets: Vec<(String, Vec<u8>)> =
        NAMES.iter().map(|name| (name.to_string(), secret(name).into())).collect();
    secrets.extend(key("the CA's key", &path("key/ca.key")));
    secrets.extend(key("the client's key", &path("client.key")));
    assert!(secrets.len() > NAMES.len() + 2);
    let leaks = emitted.leaks(&secrets);
    assert!(leaks.is_empty(), "{} leaks\n{}", leaks.len(), leaks.join("\n\n"));
}

#[test]
fn what_is_said_of_a_broken_file_has_no_secret_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("outrigger.yaml");
    std::fs::write(dir.path().join("token"), secret("admin-token")).unwrap();
    let written = secret("url-password");
    let up = |line: &str| format!("version: 1\nupstreams:\n  up:\n    hosts: [a.test]\n    {line}\n");
    let mut emitted = Emitted::default();
    for text in [
        up(&format!("to: ['https://user:{written}@a.test']")),
        up(&format!("to: https://user:{written}@a.test")),
        up(&format!("to: ['https://user:x/{written}@a.test/x']")),
        up(&format!("to: [https://{written}@a.test, {{a: b}}]")),
        format!("version: 1\nupstreams: {{up: {{hosts: ['u:{written}@a.test']}}}}\n"),
        format!("version: 1\nupstreams: {{up: {{hosts: ['https://u:{written}@a.test/']}}}}\n"),
        format!("version: 1\nadmin_token: {written}\n"),
        format!("version: 1\nadmin_token: '{written} {written}'\n"),
        format!("version: 1\nadmin_token: [{written}]\n"),
        format!("version: 1\nadmin_token: \"{written}\n"),
        format!("version: 1\nlisteners: {{admin_token: {written}, proxi: x}}\n"),
        format!("version: 1\nlisteners: {{admin: '0.0.0.0:1', admin_tokn: {written}}}\n")
            .replace("admin_tokn", "token"),
        up("retry: {max_attempts: '${file:token}'}"),
        up("retry: {max_attempts: '${HOOK}'}"),
        up("timeouts: {attempt: '${HOOK}'}"),
        up("retry: {max_body: '${HOOK}'}"),
        up("retry: {budget: {ratio: '${HOOK}'}}"),
        up("retry: {on: ['${HOOK}']}"),
        up("retry: {methods: ['${HOOK}']}"),
        up("https: '${HOOK}'"),
        up("https: '${HOOK:-x}'"),
        up("listen: '${HOOK}'"),
        up("to: ['${HOOK}']"),
        up("to: ['https://a.test/${HOOK}']"),
        up("allow_addresses: ['${HOOK}']"),
        up("routes: [{name: r, match: {path: '${HOOK}'}}]"),
        up("routes: [{name: r, match: {path_regex: '(${HOOK}'}}]"),
        up("routes: [{name: '${HOOK}!', match: {path: /x}}]"),
        up("rate_limit: {requests: 1, key: '${HOOK}'}"),
        up("tls: {ca_file: '${HOOK}'}"),
        up("tls: {ca_file: token}"),
        up("tls: {client_cert: token, client_key: token}"),
        up("tls: {server_name: '${HOOK}/x'}"),
        "version: 1\nupstreams: {up: {hosts: ['${HOOK}/']}}\n".to_owned(),
        "version: '${HOOK}'\n".to_owned(),
        "version: 1\nadmin_token: '${HOOK} x'\n".to_owned(),
        "version: 1\nlog: '${HOOK}'\n".to_owned(),
        "version: 1\nlog: {level: '${file:token}'}\n".to_owned(),
        "version: 1\nintercept: {ca_cert: token, ca_key: token}\n".to_owned(),
    ] {
        std::fs::write(&config, &text).unwrap();
        for format in ["text", "json"] {
            let output = outrigger(&["check", "--strict", "--format", format], &config).output().unwrap();
            assert_eq!(output.status.code(), Some(1), "{text}: {}", String::from_utf8_lossy(&output.stdout));
            emitted.command(&format!("check of {text}"), output);
        }
        if text.contains("admin_token: ") && !text.contains(' ') {
            continue;
        }
        let explained = outrigger(&["explain"], &config).args(["GET", "http://a.test/"]).output().unwrap();
        emitted.add(format!("explain of {text}"), [explained.stdout, explained.stderr].concat());
    }
    let secrets: Vec<_> = ["admin-token", "hook-in-env", "url-password"]
        .iter()
        .map(|name| (name.to_string(), secret(name).into()))
        .collect();
    // The places are named by what was written.
    let leaks: Vec<String> = emitted.leaks(&secrets);
    assert!(leaks.is_empty(), "{} leaks\n{}", leaks.len(), leaks.join("\n\n"));
}

#[test]
fn debug_of_a_configuration_shows_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("outrigger.yaml");
    std::fs::write(dir.path().join("token"), secret("admin-token")).unwrap();
    let signing_key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["client.test".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    std::fs::write(dir.path().join("client.crt"), params.self_signed(&signing_key).unwrap().pem()).unwrap();
    std::fs::write(dir.path().join("client.key"), signing_key.serialize_pem()).unwrap();
    let text = "version: 1\nadmin_token: '${file:token}'\nintercept: {ca_cert: client.crt, ca_key: client.key}\nupstreams:\n  a:\n    \
                hosts: [a.test]\n    tls: {client_cert: client.crt, client_key: client.key}\n    routes: [{name: r, match: {path: '/${file:token}'}}]\n";
    std::fs::write(&config, text).unwrap();
    let loaded = outrigger::config::load::load(&config, outrigger::config::load::Options::default()).unwrap();
    let shown = format!("{:?} {:#?} {:?}", loaded.config, loaded.config, loaded.problems);
    let der = signing_key.serialize_der();
    let numbers = format!("{:?}", &der[40..60]);
    let numbers = numbers.trim_matches(['[', ']']);
    assert!(!shown.contains(numbers), "{shown}");
    assert!(shown.contains("a.test") && !shown.contains(&secret("admin-token")), "{shown}");
}

#[test]
fn the_ca_s_files_are_written_past_links_and_readable_by_whom_they_are_for() {
    let dir = tempfile::tempdir().unwrap();
    let (config, ca, key) = (dir.path().join("outrigger.yaml"), dir.path().join("ca"), dir.path().join("key"));
    std::fs::write(
        &config,
        format!("version: 1\nintercept: {{generate: true, dir: {}, key_dir: {}}}\n", ca.display(), key.display()),
    )
    .unwrap();
    // Another process of the pod prepares what it would like to be overwritten, or to read.
    let victim = dir.path().join("victim");
    std::fs::write(&victim, "untouched").unwrap();
    std::fs::create_dir(&ca).unwrap();
    for name in ["ca.crt", ".ca.crt.new", "env.sh", ".env.sh.new"] {
        symlink(&victim, ca.join(name)).unwrap();
    }
    // Whatever the umask is.
    let log = dir.path().join("log");
    let run = format!("umask 0000; exec {} run --config {}", env!("CARGO_BIN_EXE_outrigger"), config.display());
    std::fs::write(
        &config,
        std::fs::read_to_string(&config).unwrap() + "listeners: {proxy: '127.0.0.1:0', admin: off, probes: off}\n",
    )
    .unwrap();
    let mut process = Command::new("sh").args(["-c", &run]).stdout(File::create(&log).unwrap()).spawn().unwrap();
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    while !std::fs::read_to_string(&log).unwrap().contains("ready") {
        assert!(std::time::Instant::now() < deadline, "{}", std::fs::read_to_string(&log).unwrap());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    process.kill().unwrap();
    process.wait().unwrap();
    let mode = |path: &Path| std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched");
    assert_eq!((mode(&key), mode(&key.join("ca.key"))), (0o700, 0o600));
    for name in ["ca.crt", "ca-bundle.crt", "truststore.p12", "env.sh"] {
        let path = ca.join(name);
        assert!(path.symlink_metadata().unwrap().is_file(), "{name}");
        assert_eq!(mode(&path), 0o644, "{name}");
    }
    // Nothing is left of what was written on the way.
    let left: Vec<_> = [&ca, &key]
        .iter()
        .flat_map(|dir| std::fs::read_dir(dir).unwrap())
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".new")), "{left:?}");
}
