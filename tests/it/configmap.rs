//! A ConfigMap or Secret as the kubelet mounts it, and changes it: by the swap of one symlink.

use std::cell::Cell;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io};

use crate::operator::{Rig, config, start_at, upstream};
use crate::support::{Origin, eventually};

/// How soon a changed file must act.
const SOON: Duration = Duration::from_secs(5);

/// A mounted volume: `NAME` leads through `..data` into a directory that is named by the time of its writing.
struct Volume {
    path: PathBuf,
    written: Cell<u32>,
}

impl Volume {
    /// Mounts these files.
    fn mount(path: PathBuf, files: &[(&str, &str)]) -> Volume {
        fs::create_dir_all(&path).unwrap();
        let volume = Volume { path, written: Cell::new(0) };
        volume.swap(files);
        for (name, _) in files {
            symlink(Path::new("..data").join(name), volume.path.join(name)).unwrap();
        }
        volume
    }

    /// Puts other contents in their place: writes them beside, points `..data` there by a rename, removes what was before.
    fn swap(&self, files: &[(&str, &str)]) {
        let before = fs::read_link(self.path.join("..data"));
        self.written.set(self.written.get() + 1);
        let directory = format!("..2026_11_22_05_00_00.{:010}", self.written.get());
        fs::create_dir(self.path.join(&directory)).unwrap();
        for (name, text) in files {
            fs::write(self.path.join(&directory).join(name), text).unwrap();
        }
        symlink(&directory, self.path.join("..data_tmp")).unwrap();
        fs::rename(self.path.join("..data_tmp"), self.path.join("..data")).unwrap();
        match before {
            Ok(before) => fs::remove_dir_all(self.path.join(before)).unwrap(),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotFound),
        }
    }
}

/// A proxy whose configuration is mounted.
fn mounted(yaml: &str) -> (Rig, Volume) {
    let dir = tempfile::tempdir().unwrap();
    let volume = Volume::mount(dir.path().join("etc"), &[("outrigger.yaml", yaml)]);
    let path = volume.path.join("outrigger.yaml");
    (start_at(dir, path), volume)
}

/// An upstream that says who it is.
async fn named(name: &str) -> Origin {
    Origin::answering(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len())).await
}

/// Asks until the answer is as it should be.
async fn soon(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !holds().await {
        assert!(Instant::now() < end, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_swapped_config_map_acts_within_five_seconds() {
    let up = upstream().await.address;
    let (rig, volume) = mounted(&config(up, ""));
    for _ in 0..5 {
        assert_eq!(rig.through("/x").await.status, 200);
    }
    let limited = config(up, "    rate_limit: {requests: 1, per: 1h, max_wait: 0}\n");
    volume.swap(&[("outrigger.yaml", &limited)]);
    soon("the rate limit refuses", async || rig.through("/x").await.status == 429).await;
}

#[tokio::test]
async fn of_two_swaps_in_a_row_the_last_one_acts() {
    let (one, two, three) = (named("one").await, named("two").await, named("three").await);
    let (rig, volume) = mounted(&config(one.address(), ""));
    assert_eq!(rig.through("/x").await.body, "one");
    volume.swap(&[("outrigger.yaml", &config(two.address(), ""))]);
    volume.swap(&[("outrigger.yaml", &config(three.address(), ""))]);
    soon("the third answers", async || rig.through("/x").await.body == "three").await;
    // And back, to what was there two swaps ago.
    volume.swap(&[("outrigger.yaml", &config(one.address(), ""))]);
    soon("the first answers again", async || rig.through("/x").await.body == "one").await;
}

#[tokio::test]
async fn an_invalid_swap_in_between_changes_nothing() {
    let (one, two) = (named("one").await, named("two").await);
    let (rig, volume) = mounted(&config(one.address(), ""));
    let success = || rig.app.metrics().sample("outrigger_config_last_reload_success");
    volume.swap(&[("outrigger.yaml", &config(two.address(), "    retry: {max_attempts: 0}\n"))]);
    eventually("the file is refused", async || success() == Some(0.0)).await;
    assert_eq!(rig.through("/x").await.body, "one");
    volume.swap(&[("outrigger.yaml", &config(two.address(), ""))]);
    soon("the second answers", async || rig.through("/x").await.body == "two").await;
    // It is in effect before it is told.
    eventually("and counts as a success", async || success() == Some(1.0)).await;
}

#[tokio::test]
async fn a_swapped_secret_acts_although_the_config_map_stays() {
    let dir = tempfile::tempdir().unwrap();
    let secret = Volume::mount(dir.path().join("secret"), &[("token", "old\n"), ("other", "x")]);
    let up = upstream().await.address;
    let yaml = config(up, "") + &format!("admin_token: '${{file:{}/token}}'\n", secret.path.display());
    let volume = Volume::mount(dir.path().join("etc"), &[("outrigger.yaml", &yaml)]);
    let rig = start_at(dir, volume.path.join("outrigger.yaml"));
    let asked = async |token: &str| {
        rig.ask("admin", "GET", "/config", &format!("authorization: Bearer {token}\r\n"), "").await.status
    };
    assert_eq!((asked("old").await, asked("new").await), (200, 401));
    secret.swap(&[("token", "new\n"), ("other", "x")]);
    soon("the new token is good", async || asked("new").await == 200).await;
    assert_eq!(asked("old").await, 401);
    // Both at once, as a rollout does it.
    secret.swap(&[("token", "newer\n"), ("other", "x")]);
    volume.swap(&[("outrigger.yaml", &(yaml + "log: {access: errors}\n"))]);
    soon("the third token is good", async || asked("newer").await == 200).await;
}
