//! Secrets, each one its own, go in wherever one may stand. Then all that Outrigger emits is searched for every one of them.

mod emitted;
mod known;
mod running;
mod traffic;
mod upstream;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use self::emitted::Emitted;
use self::known::{NAMES, key, secret};
use self::running::{Running, outrigger};
use self::traffic::{requests, streams};
use self::upstream::{configuration, upstream};
use crate::admin::READS;
use crate::support::Origin;

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
        for path in READS.iter().chain(&["/x"]) {
            emitted.add(*path, running.admin("GET", path, "").await);
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
    let run = format!("umask 0000; exec {} run --config {}", env!("CARGO_BIN_EXE_outrigger"), config.display());
    std::fs::write(
        &config,
        std::fs::read_to_string(&config).unwrap() + "listeners: {proxy: '127.0.0.1:0', admin: off, probes: off}\n",
    )
    .unwrap();
    let mut process = Command::new("sh").args(["-c", &run]).stdout(Stdio::piped()).spawn().unwrap();
    // To its end where it can't start, which is none that is ready.
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("\"ready\"")), "it is ready");
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
