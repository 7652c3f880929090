//! The end.

use std::time::Duration;

use crate::operator::{config, held_upstream, start, through};

#[tokio::test]
async fn a_drain_goes_on_serving_until_the_app_is_quiet() {
    let up = held_upstream().await;
    let yaml = config(up.address, "") + "shutdown: {quiet: 300ms, grace: 20s}\n";
    let rig = start(&yaml);
    let proxy = rig.app.address("proxy");
    let first = tokio::spawn(async move { through(proxy, "/first").await });
    up.arrived().await;
    let meanwhile = async {
        while rig.get("probes", "/readyz").await.status != 503 {
            tokio::task::yield_now().await;
        }
        assert_eq!(rig.get("probes", "/livez").await.status, 200);
        up.gate.add_permits(2);
        let second = rig.through("/second").await;
        assert!(second.status == 200 && second.head.contains("connection: close"), "{second:?}");
        assert_eq!(first.await.unwrap().body, "ok");
    };
    let (complete, ()) = tokio::join!(rig.app.drain(), meanwhile);
    assert!(complete);
}

#[tokio::test]
async fn grace_ends_what_does_not_end_with_an_answer() {
    let up = held_upstream().await;
    let yaml = config(up.address, "") + "shutdown: {quiet: 50ms, grace: 200ms}\n";
    let rig = start(&yaml);
    let proxy = rig.app.address("proxy");
    let request = tokio::spawn(async move { through(proxy, "/never").await });
    up.arrived().await;
    assert!(!tokio::time::timeout(Duration::from_secs(10), rig.app.drain()).await.unwrap());
    let answer = request.await.unwrap();
    assert!(answer.status == 503 && answer.body.contains("shutting_down"), "{answer:?}");
}
