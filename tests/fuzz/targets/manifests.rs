//! Kubernetes manifests that `inject` edits.

use outrigger::inject::{Options, inject, separate};
use yaml_serde::Value as Yaml;

const LONGEST: usize = 1 << 13;

fn options(choice: u8) -> Options {
    Options {
        config_map: "outrigger".into(),
        image: "outrigger:test".into(),
        native: choice & 1 == 0,
        containers: if choice & 2 == 0 { Vec::new() } else { vec!["app".into()] },
        no_proxy: if choice & 4 == 0 { Vec::new() } else { vec![".corp.example".into()] },
        overwrite_env: choice & 8 != 0,
        intercept: choice & 16 != 0,
        aliases: if choice & 48 == 48 { vec!["api.example.com".into()] } else { Vec::new() },
    }
}

/// A stream of manifests is refused with a line to look at, or comes out as YAML that has what came in; doing it again changes
/// nothing; what is no pod stays as it was, byte for byte.
pub fn manifests(data: &[u8]) {
    let Some((choice, text)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(&text[..text.len().min(LONGEST)]) else { return };
    let options = options(*choice);
    let once = inject(text, &options);
    let lines = text.split('\n').count();
    for note in &once.notes {
        assert!((1..=lines).contains(&note.line), "{note}: there are {lines} lines");
        assert!(!note.message.is_empty());
    }
    let _ = separate(text, text);
    if once.refused() {
        return;
    }
    let twice = inject(&once.text, &options);
    assert!(!twice.refused(), "what came out is refused: {:?}\n{}", twice.notes, once.text);
    assert_eq!(twice.text, once.text, "doing it again changes it");
    let read = |text: &str| -> Option<Vec<Yaml>> {
        yaml_serde::Deserializer::from_str(text).map(|one| serde::Deserialize::deserialize(one).ok()).collect()
    };
    if once.text == text {
        return;
    }
    // Another reader may be stricter, but then with what came in too.
    let Some(before) = read(text) else { return };
    let Some(after) = read(&once.text) else { panic!("what comes out is not YAML:\n{}", once.text) };
    assert_eq!(before.len(), after.len(), "documents went missing");
    for (before, after) in before.iter().zip(&after) {
        kept(before, after);
    }
}

/// Whatever was there is there, scalars unchanged but for the few that are the sidecar's business.
fn kept(before: &Yaml, after: &Yaml) {
    match (before, after) {
        (Yaml::Mapping(before), Yaml::Mapping(after)) => {
            for (key, value) in before {
                let Some(found) = after.get(key) else {
                    // A variable has a value or the place that it comes from; `native` or not decides where the sidecar stands.
                    let few = ["value", "valueFrom", "initContainers", "restartPolicy", "startupProbe", "lifecycle"];
                    assert!(key.as_str().is_some_and(|key| few.contains(&key)), "{key:?} is gone");
                    continue;
                };
                kept(value, found);
            }
        }
        (Yaml::Sequence(before), Yaml::Sequence(after)) => {
            assert!(before.len() <= after.len() + 1, "items went missing");
        }
        _ => {}
    }
}
