//! The comparison with other proxies (`benches/compare`): it still understands its own templates, and Outrigger what comes of them.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use outrigger::config::load::{Options, load};

fn compare(arguments: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/compare/compare.py");
    Command::new("python3")
        .arg(script)
        .args(arguments)
        // Nothing is written beside the sources, and nothing is asked of whoever runs the tests.
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env_remove("BENCH_OUTRIGGER")
        .output()
        .unwrap()
}

fn printed(arguments: &[&str]) -> String {
    let output = compare(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What the templates name as `{ca}` and `{ca_key}`.
fn write_ca(dir: &Path) {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    let key = rcgen::KeyPair::generate().unwrap();
    fs::write(dir.join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(dir.join("ca.key"), key.serialize_pem()).unwrap();
}

#[test]
fn the_comparison_names_its_peers_and_scenarios() {
    let list = printed(&["--list"]);
    for name in ["outrigger", "floor-hyper", "haproxy", "policy", "growth", "steady"] {
        assert!(list.lines().any(|line| line.split_whitespace().next() == Some(name)), "{name} is not in\n{list}");
    }
}

#[test]
fn every_peers_template_can_be_filled_in_and_outriggers_are_valid_in_every_mode() {
    let dir = tempfile::tempdir().unwrap();
    write_ca(dir.path());
    let files = printed(&["--render", dir.path().to_str().unwrap()]);
    let mut ours = 0;
    for file in files.lines().map(Path::new) {
        let text = fs::read_to_string(file).unwrap();
        assert!(!text.contains("\n@if") && !text.contains("\n@end"), "{}:\n{text}", file.display());
        if file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("outrigger-")) {
            let problems = load(file, Options::default()).unwrap().problems;
            assert!(problems.errors.is_empty(), "{}: {:?}\n{text}", file.display(), problems.errors);
            ours += 1;
        }
    }
    assert!(ours > 10, "{files}");
}

#[test]
fn a_mistake_on_the_comparisons_command_line_is_told_before_anything_is_built() {
    for (arguments, says) in
        [(["--peers", "nobody"], "no such peer: nobody"), (["--scenario", "no"], "no such scenario: no")]
    {
        let output = compare(&arguments);
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.starts_with("compare.py: ") && said.contains(says) && said.lines().count() == 1, "{said}");
    }
}
