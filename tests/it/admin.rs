//! Probes and control.

use crate::operator::{config, send, start, upstream};

#[tokio::test]
async fn probes_answer_and_offer_nothing_else() {
    let rig = start(&config(upstream().await.address, ""));
    for path in ["/livez", "/readyz", "/metrics"] {
        for place in ["probes", "admin"] {
            assert_eq!(rig.get(place, path).await.status, 200, "{place} {path}");
        }
        let head = rig.ask("probes", "HEAD", path, "", "").await;
        assert_eq!((head.status, &*head.body), (200, ""));
    }
    for path in ["/", "/config", "/api/upstreams", "/reload", "/nothing"] {
        assert_eq!(rig.get("probes", path).await.status, 404, "{path}");
    }
    assert_eq!(rig.ask("probes", "POST", "/reload", "", "").await.status, 404);
}

#[tokio::test]
async fn the_wrong_method_is_told_the_right_one() {
    let rig = start(&config(upstream().await.address, ""));
    let answer = rig.post("/config", "").await;
    assert!(answer.status == 405 && answer.head.contains("allow: get, head"), "{answer:?}");
    let answer = rig.get("admin", "/reload").await;
    assert!(answer.status == 405 && answer.head.contains("allow: post"), "{answer:?}");
}

#[tokio::test]
async fn a_name_that_only_points_here_is_refused() {
    let rig = start(&config(upstream().await.address, ""));
    let admin = rig.app.address("admin");
    let ask = |host: &str| format!("GET /config HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    assert_eq!(send(admin, &ask("evil.example")).await.status, 403);
    assert_eq!(send(admin, &ask("127.0.0.1")).await.status, 200);
    let foreign = rig.ask("admin", "POST", "/reload", "origin: http://evil.example\r\n", "").await;
    assert_eq!(foreign.status, 403);
    // Kubelets call the probes by the pod's address.
    assert_eq!(send(rig.app.address("probes"), &ask("10.1.2.3").replace("/config", "/livez")).await.status, 200);
}

#[tokio::test]
async fn a_request_is_counted_and_shown() {
    let rig = start(&config(upstream().await.address, ""));
    assert_eq!(rig.through("/x").await.status, 200);
    let metrics = rig.get("probes", "/metrics").await.body;
    let line = r#"outrigger_requests_total{code="200",method="GET",route="",upstream="a"} 1"#;
    assert!(metrics.contains(line), "{metrics}");
    assert!(metrics.contains(r#"outrigger_circuit_state{route="",upstream="a"} 0"#), "{metrics}");
    assert!(metrics.contains(r#"outrigger_retry_budget_remaining{upstream="a"} 10"#), "{metrics}");
    let state = rig.get("admin", "/api/upstreams").await.json();
    assert_eq!(state["upstreams"][0]["name"], "a");
    assert_eq!(state["upstreams"][0]["hosts"][0], "a.test");
    assert_eq!(state["upstreams"][0]["lanes"][0]["circuit"]["state"], "closed");
    assert_eq!(state["upstreams"][1]["name"], "unmatched");
}

#[tokio::test]
async fn an_operator_holds_a_circuit_open_and_lets_it_go() {
    let up = upstream().await;
    let rig =
        start(&config(up.address, "    routes: [{name: r, match: {path: /r}, circuit_breaker: {open_for: 1s}}]\n"));
    let answer = rig.post("/api/upstreams/a/circuit", r#"{"state": "open"}"#).await;
    assert_eq!((answer.status, &answer.json()["lanes"][0]["circuit"]["manual"]), (200, &"open".into()));
    assert_eq!((rig.through("/x").await.status, rig.through("/r").await.status, up.seen()), (503, 503, 0));
    assert_eq!(rig.post("/api/upstreams/a/circuit", r#"{"state": "auto"}"#).await.status, 200);
    assert_eq!((rig.through("/x").await.status, rig.through("/r").await.status, up.seen()), (200, 200, 2));
}

#[tokio::test]
async fn answers_of_our_own_are_not_counted_as_bytes_received() {
    let rig = start(&config(upstream().await.address, ""));
    let received = async || {
        let metrics = rig.get("probes", "/metrics").await.body;
        let name = r#"outrigger_bytes_total{direction="received",upstream="a"} "#;
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
        line.parse::<u64>().unwrap()
    };
    assert_eq!(rig.through("/x").await.status, 200);
    let before = received().await;
    rig.post("/api/upstreams/a/circuit", r#"{"state": "open"}"#).await;
    let refused = rig.through("/x").await;
    assert!(refused.status == 503 && !refused.body.is_empty(), "{refused:?}");
    assert!(before > 0 && received().await == before);
}

#[tokio::test]
async fn an_order_that_cannot_be_followed_says_why() {
    let up = upstream().await.address;
    let rig = start(&config(up, "  b:\n    hosts: [b.test]\n    circuit_breaker: off\n"));
    let open = r#"{"state": "open"}"#;
    assert_eq!(rig.post("/api/upstreams/c/circuit", open).await.status, 404);
    assert_eq!(rig.post("/api/upstreams/b/circuit", open).await.status, 409);
    let answer = rig.post("/api/upstreams/a/circuit", r#"{"state": "half_open"}"#).await;
    assert!(answer.status == 400 && answer.json()["detail"].as_str().unwrap().contains("closed"), "{answer:?}");
    assert_eq!(rig.post("/api/upstreams/a/circuit", &" ".repeat(5000)).await.status, 413);
}

#[tokio::test]
async fn the_token_is_asked_for_and_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "geheim\n").unwrap();
    let yaml = config(upstream().await.address, "") + &format!("admin_token: '${{file:{}}}'\n", file.display());
    let rig = start(&yaml);
    let denied = rig.get("admin", "/config").await;
    assert!(denied.status == 401 && denied.head.contains("www-authenticate: bearer"), "{denied:?}");
    let shown = rig.ask("admin", "GET", "/config", "authorization: Bearer geheim\r\n", "").await;
    assert!(shown.status == 200 && !shown.body.contains("geheim"), "{shown:?}");
    assert_eq!(rig.get("admin", "/livez").await.status, 200);
}
