//! The provider recipes in `docs/recipes`: each file as it stands, with a scripted origin in the provider's place.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use outrigger::config::load::{Options, load_text};

use crate::support::{Client, Origin, Proxy, eventually};

/// What `check` warns of, and the recipe's page explains.
const WARNINGS: &[(&str, &str)] = &[("slack.yaml", "`routes` has no effect on tunnels")];

fn recipe(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/recipes").join(name).with_extension("yaml");
    fs::read_to_string(path).unwrap()
}

fn files(extension: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/recipes");
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    files.sort();
    files
}

/// The recipe with the origin in the provider's place, and free ports.
async fn standing_in(name: &str, origin: &Origin) -> Proxy {
    let mut text = String::new();
    for line in recipe(name).lines().filter(|line| !line.starts_with("version:")) {
        let key = line.trim_start().split(':').next().unwrap();
        match key {
            "listen" => text.push_str("    listen: 127.0.0.1:0\n"),
            // The recipe may have no `to`, so it is written beside `hosts`.
            "to" => {}
            "hosts" => text.push_str(&format!("    to: [\"http://{}\"]\n{line}\n", origin.address())),
            _ => text.push_str(&format!("{}\n", line.replace("${AWS_REGION:-us-east-1}", "us-east-1"))),
        }
    }
    Proxy::start(&text).await
}

/// Answers the first request with this, the others with 200 and `ok`.
async fn once(first: &'static str) -> Origin {
    let origin_first = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    Origin::scripted(move |mut conn| {
        let first_time = std::sync::Arc::clone(&origin_first);
        async move {
            while conn.request().await.is_some() {
                let answer = match first_time.swap(false, std::sync::atomic::Ordering::SeqCst) {
                    true => first,
                    false => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
                };
                conn.send(answer).await;
            }
        }
    })
    .await
}

/// A request for this host through the proxy port, as an app with `http_proxy` sends it.
fn request(method: &str, host: &str, path: &str, fields: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} http://{host}{path} HTTP/1.1\r\nHost: {host}\r\n{fields}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

#[test]
fn every_recipe_passes_check_and_its_warnings_are_known() {
    let files = files("yaml");
    assert!(files.len() >= 8, "{files:?}");
    for file in files {
        let name = file.file_name().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&file).unwrap();
        let loaded = load_text(&text, &file, Options::default(), &|_| None);
        assert!(loaded.config.is_some(), "{}", loaded.problems.render(&loaded.text, &file));
        let known: Vec<&str> = WARNINGS.iter().filter(|(of, _)| *of == name).map(|(_, text)| *text).collect();
        let found: Vec<String> = loaded.problems.warnings.iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), known.len(), "{found:?}");
        for (found, known) in found.iter().zip(known) {
            assert!(found.contains(known), "{found}");
        }
        assert!(file.with_extension("md").exists(), "{name} has no page");
    }
}

#[test]
fn recipes_stand_beside_each_other_in_one_file() {
    let mut text = "version: 1\nupstreams:\n".to_owned();
    for file in files("yaml") {
        let recipe = fs::read_to_string(&file).unwrap();
        text.push_str(recipe.split_once("upstreams:\n").unwrap().1);
    }
    let loaded = load_text(&text, Path::new("all.yaml"), Options::default(), &|_| None);
    assert!(loaded.config.is_some(), "{}", loaded.problems.render(&loaded.text, Path::new("all.yaml")));
}

#[tokio::test]
async fn stripe_repeats_a_post_with_its_key_and_no_other() {
    let origin = once("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").await;
    let proxy = standing_in("stripe", &origin).await;
    let got = proxy
        .talk(request("POST", "api.stripe.com", "/v1/charges", "Idempotency-Key: k1\r\n", "amount=1").as_bytes())
        .await;
    assert!(got.starts_with("HTTP/1.1 200 "), "{got}");
    let seen = origin.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!((&seen[0].head, &seen[0].body), (&seen[1].head, &seen[1].body));
    assert_eq!(seen[1].all("idempotency-key"), ["k1"]);

    let origin = once("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").await;
    let proxy = standing_in("stripe", &origin).await;
    let got = proxy.talk(request("POST", "api.stripe.com", "/v1/charges", "", "amount=1").as_bytes()).await;
    assert!(got.starts_with("HTTP/1.1 503 ") && got.contains("no-retry=not_idempotent"), "{got}");
    origin.only();
}

#[tokio::test]
async fn stripe_waits_as_long_as_a_429_says() {
    let origin = once("HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n").await;
    let proxy = standing_in("stripe", &origin).await;
    let began = Instant::now();
    let mut app = Client::connect(proxy.address("stripe")).await;
    app.send("GET /v1/balance HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(app.head().await.starts_with("HTTP/1.1 200 "));
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(origin.seen().len(), 2);
}

#[tokio::test]
async fn twilio_sendgrid_openai_and_meta_never_see_a_post_twice() {
    for (name, host, path) in [
        ("twilio", "api.twilio.com", "/2010-04-01/Accounts/AC1/Messages.json"),
        ("sendgrid", "api.sendgrid.com", "/v3/mail/send"),
        ("openai", "api.openai.com", "/v1/chat/completions"),
        ("meta", "graph.facebook.com", "/v25.0/1/messages"),
    ] {
        let origin = once("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").await;
        let proxy = standing_in(name, &origin).await;
        // A key that the provider doesn't know makes nothing safe.
        let post = request("POST", host, path, "Idempotency-Key: k1\r\n", "to=1");
        let got = proxy.talk(post.as_bytes()).await;
        assert!(got.starts_with("HTTP/1.1 503 ") && got.contains("no-retry=not_idempotent"), "{name}: {got}");
        origin.only();

        let origin = once("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").await;
        let proxy = standing_in(name, &origin).await;
        let got = proxy.talk(request("GET", host, path, "", "").as_bytes()).await;
        assert!(got.starts_with("HTTP/1.1 200 "), "{name}: {got}");
        assert_eq!(origin.seen().len(), 2);
    }
}

#[tokio::test]
async fn a_limit_that_only_a_providers_own_headers_explain_is_passed_on_as_it_is() {
    for (name, host, answer) in [
        (
            "sendgrid",
            "api.sendgrid.com",
            "HTTP/1.1 429 Too Many Requests\r\nX-RateLimit-Remaining: 0\r\nX-RateLimit-Reset: 1392815263\r\nContent-Length: 0\r\n\r\n",
        ),
        (
            "github",
            "api.github.com",
            "HTTP/1.1 403 Forbidden\r\nRetry-After: 60\r\nx-ratelimit-remaining: 0\r\nContent-Length: 0\r\n\r\n",
        ),
        (
            "meta",
            "graph.facebook.com",
            "HTTP/1.1 400 Bad Request\r\nX-App-Usage: {\"call_count\":100}\r\nContent-Length: 25\r\n\r\n{\"error\":{\"code\":130429}}",
        ),
    ] {
        let origin = once(answer).await;
        let proxy = standing_in(name, &origin).await;
        let mut app = proxy.connect().await;
        app.send(format!("GET http://{host}/a HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert_eq!(app.head().await, format!("{head}\r\n\r\n"), "{name}");
        assert_eq!(app.take(body.len()).await, body.as_bytes());
        origin.only();
    }
}

#[tokio::test]
async fn github_repeats_a_get_after_a_502() {
    let origin = once("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n").await;
    let proxy = standing_in("github", &origin).await;
    let got = proxy.talk(request("GET", "api.github.com", "/user", "", "").as_bytes()).await;
    assert!(got.starts_with("HTTP/1.1 200 ") && got.contains("received-status=200; attempts=2"), "{got}");
}

#[tokio::test]
async fn openai_streams_arrive_event_by_event() {
    let (go_on, may_go_on) = tokio::sync::oneshot::channel::<()>();
    let may_go_on = std::sync::Mutex::new(Some(may_go_on));
    let origin = Origin::scripted(move |mut conn| {
        let may_go_on = may_go_on.lock().unwrap().take();
        async move {
            conn.request().await;
            conn.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            conn.send("9\r\ndata: a\n\n\r\n").await;
            // The second event is sent only once the app has the first.
            may_go_on.unwrap().await.unwrap();
            conn.send("e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n").await;
        }
    })
    .await;
    let proxy = standing_in("openai", &origin).await;
    let mut app = Client::connect(proxy.address("openai")).await;
    app.send("POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}").await;
    assert!(app.head().await.starts_with("HTTP/1.1 200 "));
    app.until("data: a\n\n").await;
    go_on.send(()).unwrap();
    app.until("data: [DONE]\n\n").await;
    app.until("0\r\n\r\n").await;
}

#[tokio::test]
async fn what_s3_signs_arrives_as_it_was_signed_on_each_attempt() {
    let origin = once("HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n").await;
    let proxy = standing_in("s3", &origin).await;
    let host = "bucket.s3.us-east-1.amazonaws.com";
    let path = "/a%20b//../%C3%A9%2Fx=1?X-Amz-Expires=60&partNumber=1&uploadId=%2B%2f&list";
    let fields =
        "x-amz-date: 20260101T000000Z\r\nx-amz-content-sha256: abc\r\nAuthorization: AWS4-HMAC-SHA256 Signature=1\r\n";
    let got = proxy.talk(request("PUT", host, path, fields, "the object").as_bytes()).await;
    assert!(got.starts_with("HTTP/1.1 200 "), "{got}");
    let seen = origin.seen();
    assert_eq!(seen.len(), 2);
    for attempt in seen {
        assert_eq!(attempt.line(), format!("PUT {path} HTTP/1.1"));
        assert_eq!(attempt.all("host"), [host]);
        assert_eq!(attempt.all("authorization"), ["AWS4-HMAC-SHA256 Signature=1"]);
        assert_eq!(attempt.all("x-amz-date"), ["20260101T000000Z"]);
        assert_eq!(attempt.body, b"the object");
    }
}

#[tokio::test]
async fn s3_may_refuse_an_upload_before_its_body_and_it_is_sent_again() {
    let origin = Origin::scripted(|mut conn| async move {
        while let Some(mut seen) = conn.head().await {
            if conn.index() == 0 {
                conn.remember(&seen);
                conn.send("HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
                return;
            }
            conn.send("HTTP/1.1 100 Continue\r\n\r\n").await;
            conn.body(&mut seen).await;
            conn.remember(&seen);
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        }
    })
    .await;
    let proxy = standing_in("s3", &origin).await;
    let mut app = proxy.connect().await;
    let host = "s3.us-east-1.amazonaws.com";
    // More than `max_body`: nothing of it was sent, so it may be sent once more.
    let size = 9 << 20;
    app.send(format!(
        "PUT http://{host}/b/k HTTP/1.1\r\nHost: {host}\r\nContent-Length: {size}\r\nExpect: 100-continue\r\n\r\n"
    ))
    .await;
    assert_eq!(app.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    app.send(vec![b'x'; size]).await;
    let head = app.head().await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let seen = origin.seen();
    assert_eq!((seen.len(), seen[0].body.len(), seen[1].body.len()), (2, 0, size));
}

#[tokio::test]
async fn slacks_429_holds_back_one_method_and_no_other() {
    let origin = Origin::scripted(|mut conn| async move {
        while let Some(seen) = conn.request().await {
            conn.send(match seen.line().contains("postMessage") {
                true => "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 40\r\nContent-Length: 0\r\n\r\n",
                false => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            })
            .await;
        }
    })
    .await;
    let proxy = standing_in("slack", &origin).await;
    let post = request("POST", "slack.com", "/api/chat.postMessage", "", "text=1");
    let first = proxy.talk(post.as_bytes()).await;
    assert!(first.starts_with("HTTP/1.1 429 ") && first.contains("Retry-After: 40"), "{first}");
    let second = proxy.talk(post.as_bytes()).await.to_ascii_lowercase();
    assert!(second.contains("urn:outrigger:error:rate_limited") && second.contains("retry-after: "), "{second}");
    let other = proxy.talk(request("POST", "slack.com", "/api/conversations.list", "", "").as_bytes()).await;
    assert!(other.starts_with("HTTP/1.1 200 "), "{other}");
    let lines: Vec<String> = origin.seen().iter().map(|seen| seen.line().to_owned()).collect();
    assert_eq!(lines, ["POST /api/chat.postMessage HTTP/1.1", "POST /api/conversations.list HTTP/1.1"]);
    eventually("the pause is counted", async || {
        proxy.metrics().await.contains("outrigger_rate_limit_paused{upstream=\"slack\"} 1")
    })
    .await;
}
