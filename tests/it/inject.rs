//! `outrigger inject`: the cases of `tests/inject`, and what must hold for every manifest.

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use outrigger::inject::{IMAGE, Injected, Options, inject};
use proptest::prelude::*;

struct Case {
    directory: PathBuf,
    name: String,
    file: &'static str,
    input: String,
    args: Vec<String>,
}

fn cases() -> Vec<Case> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/inject");
    let mut directories: Vec<_> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    directories.retain(|path| path.is_dir());
    directories.sort();
    let case = |directory: PathBuf| {
        let json = directory.join("in.json").exists();
        let file = if json { "in.json" } else { "in.yaml" };
        let input = fs::read_to_string(directory.join(file)).unwrap();
        let args = fs::read_to_string(directory.join("args")).unwrap_or_default();
        let args = args.split_whitespace().map(str::to_owned).collect();
        let name = directory.file_name().unwrap().to_string_lossy().into_owned();
        Case { directory, name, file, input, args }
    };
    directories.into_iter().map(case).collect()
}

fn options() -> Options {
    Options {
        config_map: "outrigger".into(),
        image: IMAGE.into(),
        native: true,
        containers: Vec::new(),
        no_proxy: Vec::new(),
        overwrite_env: false,
        intercept: false,
        aliases: Vec::new(),
    }
}

fn other_options() -> Options {
    Options {
        config_map: "other".into(),
        image: "registry.example:5000/outrigger:9".into(),
        no_proxy: vec![".corp.example".into()],
        overwrite_env: true,
        ..options()
    }
}

fn done(text: &str, options: &Options) -> String {
    let injected = inject(text, options);
    assert!(!injected.refused(), "{:?}\n{text}", injected.notes);
    injected.text
}

fn run(args: &[String], directory: &Path, input: &str) -> std::process::Output {
    let mut command = Command::cargo_bin("outrigger").unwrap();
    command.current_dir(directory).arg("inject").args(args).write_stdin(input).output().unwrap()
}

#[test]
fn every_case_comes_out_as_written_down() {
    let update = std::env::var_os("UPDATE").is_some();
    let mut wrong = Vec::new();
    for case in cases() {
        let mut args = case.args.clone();
        args.push(case.file.to_owned());
        let output = run(&args, &case.directory, "");
        let out = String::from_utf8(output.stdout).unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let files = [(case.file.replace("in", "out"), out), ("said".to_owned(), said)];
        for (file, text) in files {
            let path = case.directory.join(file);
            if update && text.is_empty() {
                let _ = fs::remove_file(&path);
            } else if update {
                fs::write(&path, &text).unwrap();
            }
            if fs::read_to_string(&path).unwrap_or_default() != text {
                wrong.push(format!("{}:\n{text}", path.display()));
            }
        }
        assert_eq!(
            output.status.code(),
            Some(i32::from(!case.directory.join(case.file.replace("in", "out")).exists()))
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn doing_it_again_changes_nothing() {
    for case in cases() {
        let once = run(&case.args, &case.directory, &case.input);
        let twice = run(&case.args, &case.directory, std::str::from_utf8(&once.stdout).unwrap());
        assert_eq!(once.stdout, twice.stdout, "{}", case.name);
    }
}

#[test]
fn other_options_lead_to_the_same_wherever_one_comes_from() {
    for case in cases() {
        let first = inject(&case.input, &options());
        if first.refused() {
            continue;
        }
        let there = done(&first.text, &other_options());
        assert_eq!(there, done(&there, &other_options()), "{}", case.name);
        let images = |text: &str, image: &str| text.matches(image).count();
        assert_eq!(images(&first.text, IMAGE), images(&there, "registry.example:5000/outrigger:9"), "{}", case.name);
        // Native or not, and back.
        let ordinary = Options { native: false, ..options() };
        let moved = inject(&first.text, &ordinary);
        assert!(!moved.refused(), "{}: {:?}", case.name, moved.notes);
        assert_eq!(moved.text, done(&moved.text, &ordinary), "{}", case.name);
        let back = done(&moved.text, &options());
        assert_eq!(back, done(&back, &options()), "{}", case.name);
    }
}

#[test]
fn windows_line_breaks_and_a_byte_order_mark_stay() {
    for case in cases() {
        let crlf = |text: &str| format!("\u{feff}{}", text.replace('\n', "\r\n"));
        let (plain, windows) = (inject(&case.input, &options()), inject(&crlf(&case.input), &options()));
        assert_eq!(plain.notes, windows.notes, "{}", case.name);
        if !plain.refused() {
            assert_eq!(crlf(&plain.text), windows.text, "{}", case.name);
        }
    }
}

#[test]
fn a_missing_last_line_break_stays_missing() {
    for case in cases() {
        let cut = |text: &str| text.trim_end().to_owned();
        let (whole, short) = (inject(&case.input, &options()), inject(&cut(&case.input), &options()));
        if !whole.refused() && !short.refused() {
            assert_eq!(cut(&whole.text), cut(&short.text), "{}", case.name);
        }
    }
}

#[test]
fn nothing_is_written_unless_everything_could_be_done() {
    let good = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - {name: a, image: a}\n";
    let text = format!("{good}---\napiVersion: v1\nkind: Pod\nmetadata: {{name: b}}\n");
    let output = run(&[], Path::new("."), &text);
    assert_eq!((output.status.code(), &*output.stdout), (Some(1), &b""[..]));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("stdin:8: error: Pod/b: this Pod has no pod `spec`"), "{said}");
}

#[test]
fn what_can_not_be_read_or_is_no_option_is_told_apart() {
    let code = |args: &[&str], input: &str| {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        run(&args, Path::new("."), input).status.code()
    };
    assert_eq!(code(&["no-such-file.yaml"], ""), Some(2));
    assert_eq!(code(&["--config-map", "Not_A_Name"], ""), Some(2));
    assert_eq!(code(&["--image", "a b"], ""), Some(2));
    assert_eq!(code(&["--container", "nobody"], "kind: Service\n"), Some(1));
    assert_eq!(code(&[], ""), Some(0));
    assert_eq!(code(&[], "# nothing\n"), Some(0));
}

#[test]
fn files_become_one_stream() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.yaml"), "kind: Service\nmetadata: {name: a}").unwrap();
    fs::write(directory.path().join("b.json"), "{\"kind\": \"Service\"}\n").unwrap();
    fs::write(directory.path().join("c.yaml"), "# c\n---\nkind: Service\n").unwrap();
    let files = ["a.yaml", "b.json", "-", "c.yaml"].map(str::to_owned);
    let output = run(&files, directory.path(), "kind: Other\n");
    let out = String::from_utf8(output.stdout).unwrap();
    let wanted =
        "kind: Service\nmetadata: {name: a}\n---\n{\"kind\": \"Service\"}\n---\nkind: Other\n# c\n---\nkind: Service\n";
    assert_eq!(out, wanted);
}

/// One container as somebody might write it, without its indentation.
fn container(number: usize) -> impl Strategy<Value = Vec<String>> {
    let name = format!("name: c{number}");
    let rest = prop::sample::subsequence(
        vec![
            vec!["image: \"registry.example/app:1\"  # pinned"],
            vec!["# of the command", "command: [sh, -c]"],
            vec!["args:", "- |", "  echo  # no comment", "", "  exit 0"],
            vec!["env:", "- name: A", "  value: 'it''s'", "# none of ours"],
            vec!["ports:", "- {containerPort: 80}"],
            vec!["resources:", "  limits: {memory: 1Gi}", "", "# resources end"],
            vec!["workingDir: >-", "  /a", "  b", ""],
            vec!["lifecycle: {preStop: {exec: {command: [", "  \"sleep\", '5' ]}}}"],
        ],
        0..=8,
    );
    rest.prop_shuffle().prop_map(move |blocks| {
        let mut lines = vec![name.clone()];
        lines.extend(blocks.into_iter().flatten().map(str::to_owned));
        lines
    })
}

/// A Deployment in many manners of writing.
fn manifest() -> impl Strategy<Value = String> {
    let containers = (1..4_usize).prop_flat_map(|count| (0..count).map(container).collect::<Vec<_>>());
    let extra = prop::sample::subsequence(
        vec![
            vec!["volumes:", "- name: data", "  emptyDir: {}"],
            vec!["# apart", "", "restartPolicy: Always # always"],
            vec!["initContainers:", "# of init", "- name: init", "  image: init"],
            vec!["nodeSelector: {a: b}", "# \u{fc}ber \u{1f600}"],
        ],
        0..=4,
    );
    let style = (prop::sample::select(vec![2_usize, 4]), 0..3_usize, any::<bool>(), any::<bool>());
    (containers, extra.prop_shuffle(), 0..4_usize, style).prop_map(|(containers, extra, place, style)| {
        let (step, dash, crlf, last_break) = style;
        let mut spec = Vec::new();
        for (number, block) in extra.iter().enumerate() {
            if number == place {
                spec.extend(list(&containers, dash));
            }
            spec.extend(block.iter().map(|line| (*line).to_owned()));
        }
        if place >= extra.len() {
            spec.extend(list(&containers, dash));
        }
        let mut text = String::from("# head\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: p}\nspec:\n");
        text.push_str(&format!("{:step$}template:\n{:two$}spec:\n", "", "", two = step * 2));
        for line in spec {
            let indent = if line.is_empty() { 0 } else { step * 3 };
            text.push_str(&format!("{:indent$}{line}\n", ""));
        }
        if !last_break {
            text.truncate(text.trim_end().len());
        }
        if crlf { text.replace('\n', "\r\n") } else { text }
    })
}

fn list(containers: &[Vec<String>], dash: usize) -> Vec<String> {
    let mut lines = vec!["containers:".to_owned()];
    for container in containers {
        for (number, line) in container.iter().enumerate() {
            let lead = if number == 0 { "- " } else { "  " };
            let text = format!("{:dash$}{lead}{line}", "");
            lines.push(if line.is_empty() { String::new() } else { text });
        }
    }
    lines
}

/// Takes out of the lines of `after` those of `before`, in order; what is left was added.
fn added<'a>(before: &str, after: &'a str) -> Vec<&'a str> {
    let mut old = before.lines().peekable();
    let added = after.lines().filter(|line| old.next_if(|next| next == line).is_none()).collect();
    assert_eq!(old.next(), None, "a line is gone or changed:\n{after}");
    added
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn lines_are_added_and_none_is_touched(text in manifest()) {
        let out = done(&text, &options());
        let added = added(&text, &out);
        let count = |what: &str| added.iter().filter(|line| line.contains(what)).count();
        prop_assert_eq!(count("- name: outrigger-config"), 2, "{}", out);
        prop_assert_eq!(count("restartPolicy: Always"), 1);
        let containers = out.matches("name: c").count() + out.matches("- name: init").count();
        prop_assert_eq!(count("name: HTTPS_PROXY"), containers - out.matches("name: config").count(), "{}", out);
        prop_assert!(added.iter().all(|line| !line.trim().is_empty() && !line.contains('#')), "{}", out);
        prop_assert_eq!(&done(&out, &options()), &out);
        prop_assert_eq!(out.ends_with('\n'), text.ends_with('\n'));
        prop_assert_eq!(out.contains("\r\n"), text.contains("\r\n"));
        let there = done(&out, &other_options());
        prop_assert_eq!(&done(&there, &other_options()), &there);
    }

    #[test]
    fn nothing_makes_it_panic_and_what_it_takes_it_takes_again(
        text in prop::sample::select(cases().into_iter().map(|case| case.input).collect::<Vec<_>>()),
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 0..6_usize, "[ \\t\\n\\[\\]{}:,#'\"*&|>-]{0,3}"), 1..4),
    ) {
        let mut text = text;
        for (at, length, put) in cuts {
            let chars: Vec<char> = text.chars().collect();
            let at = at.index(chars.len());
            let end = (at + length).min(chars.len());
            text = chars[..at].iter().chain(put.chars().collect::<Vec<_>>().iter()).chain(&chars[end..]).collect();
        }
        let once: Injected = inject(&text, &options());
        if !once.refused() {
            let twice = inject(&once.text, &options());
            prop_assert!(!twice.refused(), "{:?}\n{}", twice.notes, once.text);
            prop_assert_eq!(twice.text, once.text);
        }
    }
}
