//! `${…}` in string values: environment variables and files, and what of it is secret.
//!
//! `${NAME}`, `${NAME:-default}` (also where the variable is empty, as in a shell) and `${file:/path}` are replaced in
//! values, never in keys; `$${` is a literal `${`. A value that is one `${…}` alone may then be read as a number.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::document::tree::{Node, Scalar, Value};
use crate::document::{Place, Problems, file};

/// Largest file that `${file:}` reads. Bytes.
const MAX_FILE: u64 = 1 << 20;

/// What a value was before it was replaced.
#[derive(Clone, PartialEq, Eq)]
pub struct Expansion {
    /// As the file has it.
    pub written: Arc<str>,
    /// A `${file:}` is in it: never shown. Variables are shown only where they became a number, a duration and the like.
    pub secret: bool,
    /// It was not there, and checking goes on without.
    pub missing: bool,
}

impl fmt::Debug for Expansion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.written.fmt(f)
    }
}

/// Where the values come from.
pub struct Sources<'s> {
    /// The environment.
    pub variable: &'s dyn Fn(&str) -> Option<String>,
    /// What relative paths are relative to: the directory of the document.
    pub directory: &'s Path,
    /// What is missing is a warning, and a harmless stand-in takes its place.
    pub forgiving: bool,
}

/// Replaces `${…}` in every string value. Notes what is missing; adds each file that was named to `files`.
pub fn expand(root: &mut Arc<Node>, sources: &Sources<'_>, files: &mut Vec<PathBuf>, problems: &mut Problems) {
    if needs_expansion(root) {
        node(root, "", sources, files, problems);
    }
}

fn needs_expansion(node: &Node) -> bool {
    match &node.value {
        Value::Scalar(scalar) => scalar.text.contains("${"),
        Value::List(items) => items.iter().any(|item| needs_expansion(item)),
        Value::Map(entries) => entries.iter().any(|entry| needs_expansion(&entry.value)),
    }
}

fn node(target: &mut Arc<Node>, path: &str, sources: &Sources<'_>, files: &mut Vec<PathBuf>, problems: &mut Problems) {
    if !needs_expansion(target) {
        return;
    }
    let target = Arc::make_mut(target);
    match &mut target.value {
        Value::List(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                node(item, &format!("{path}[{index}]"), sources, files, problems);
            }
        }
        Value::Map(entries) => {
            for entry in entries {
                let path = if path.is_empty() { entry.key.to_string() } else { format!("{path}.{}", entry.key) };
                node(&mut entry.value, &path, sources, files, problems);
            }
        }
        Value::Scalar(found) => {
            let mut replacing = Replacing { sources, files, problems, place: &target.place, path };
            replacing.scalar(found);
        }
    }
}

struct Replacing<'r> {
    sources: &'r Sources<'r>,
    files: &'r mut Vec<PathBuf>,
    problems: &'r mut Problems,
    place: &'r Place,
    path: &'r str,
}

impl Replacing<'_> {
    fn scalar(&mut self, scalar: &mut Scalar) {
        let written = scalar.text.clone();
        let mut expansion = Expansion { written: written.clone(), secret: false, missing: false };
        let mut out = String::with_capacity(written.len());
        let (mut rest, mut replaced, mut literal) = (&*written, 0, false);
        while let Some(at) = rest.find("${") {
            if rest[..at].ends_with('$') {
                out.push_str(&rest[..at - 1]);
                out.push_str("${");
                literal = true;
                rest = &rest[at + 2..];
                continue;
            }
            literal |= at > 0;
            out.push_str(&rest[..at]);
            let inside = &rest[at + 2..];
            let Some(end) = inside.find('}') else {
                self.note("`${` is never closed", "close it by `}`, or write `$${` for a literal `${`");
                expansion.missing = true;
                rest = "";
                break;
            };
            match self.reference(&inside[..end], &mut expansion) {
                Some(text) => out.push_str(&text),
                None => expansion.missing = true,
            }
            replaced += 1;
            rest = &inside[end + 1..];
        }
        literal |= !rest.is_empty();
        out.push_str(rest);
        // One reference alone is read like a scalar that was written there.
        scalar.plain = if replaced == 1 && !literal { true } else { scalar.plain && replaced == 0 };
        scalar.text = out.into();
        if replaced > 0 || expansion.missing {
            scalar.expansion = Some(Arc::new(expansion));
        }
    }

    fn reference(&mut self, inside: &str, expansion: &mut Expansion) -> Option<String> {
        if let Some(path) = inside.strip_prefix("file:") {
            expansion.secret = true;
            return self.file(path);
        }
        let (name, default) = match inside.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        let mut bytes = name.bytes();
        let named = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
            && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !named {
            let message = "`${…}` must name a variable or a file";
            self.note(message, "write `${NAME}`, `${NAME:-default}` or `${file:/path}`, or `$${` for a literal `${`");
            return None;
        }
        if default.is_some_and(|default| default.contains("${")) {
            self.note(&format!("the default of `${{{name}}}` holds another `${{`"), "a default is literal text");
            return None;
        }
        let value = (self.sources.variable)(name);
        match (value, default) {
            (Some(value), Some(default)) if value.is_empty() => Some(default.to_owned()),
            (Some(value), _) => Some(value),
            (None, Some(default)) => Some(default.to_owned()),
            (None, None) => {
                let help = format!("set it, or give a default: `${{{name}:-default}}`");
                self.missing(format!("the environment variable `{name}` is not set"), &help);
                None
            }
        }
    }

    fn file(&mut self, path: &str) -> Option<String> {
        if path.is_empty() {
            self.note("`${file:}` names no file", "write `${file:/path}`");
            return None;
        }
        let full = self.sources.directory.join(path);
        if !self.files.contains(&full) {
            self.files.push(full.clone());
        }
        let read = || -> Result<String, String> {
            let bytes = file::whole(&full, MAX_FILE).map_err(|error| error.to_string())?;
            String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".to_owned())
        };
        match read() {
            Ok(mut text) => {
                if text.ends_with('\n') {
                    text.pop();
                    if text.ends_with('\r') {
                        text.pop();
                    }
                }
                Some(text)
            }
            Err(error) => {
                self.missing(format!("the file `{path}` can't be read: {error}"), "mount it, or correct the path");
                None
            }
        }
    }

    fn note(&mut self, message: &str, help: &str) {
        self.problems.error(Some(self.place.clone()), self.path, message, Some(help));
    }

    fn missing(&mut self, message: String, help: &str) {
        if self.sources.forgiving {
            self.problems.warning(Some(self.place.clone()), self.path, message, Some(help));
        } else {
            self.problems.error(Some(self.place.clone()), self.path, message, Some(help));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::tree::Layer;

    fn expanded(yaml: &str, forgiving: bool) -> (Arc<Node>, Problems, Vec<PathBuf>) {
        let mut problems = Problems::default();
        let mut root = Node::parse(yaml, &Arc::new("f.yaml".into()), Layer::File, &mut problems).unwrap();
        let variable = |name: &str| match name {
            "N" => Some("42".to_owned()),
            "HOST" => Some("db.example".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        let mut files = Vec::new();
        let sources = Sources { variable: &variable, directory: Path::new("/nowhere"), forgiving };
        expand(&mut root, &sources, &mut files, &mut problems);
        (root, problems, files)
    }

    fn value(yaml: &str) -> Scalar {
        let (root, problems, _) = expanded(&format!("a: {yaml}"), false);
        assert_eq!(problems.errors, []);
        root.get("a").unwrap().scalar().unwrap().clone()
    }

    #[test]
    fn variables_defaults_and_literals() {
        assert_eq!(&*value("${N}").text, "42");
        assert_eq!(&*value("x-${HOST}-${N}").text, "x-db.example-42");
        assert_eq!(&*value("${NONE:-5s}").text, "5s");
        assert_eq!(&*value("${EMPTY:-5s}").text, "5s");
        assert_eq!(&*value("a$${N}b").text, "a${N}b");
        assert_eq!(&*value("'$${N}${N}'").text, "${N}42");
        assert_eq!(&*value("$5 and $N").text, "$5 and $N");
    }

    #[test]
    fn one_reference_alone_is_read_as_a_scalar_and_any_other_as_text() {
        assert!(value("${N}").plain && value("'${N}'").plain);
        assert!(!value("${N}0").plain && !value("'${N}0'").plain && !value("${N}${N}").plain);
    }

    #[test]
    fn what_is_missing_is_an_error_at_its_place_or_a_warning() {
        let (_, problems, _) = expanded("a:\n  b: ${NOBODY}\n  c: '${file:gone}'\n", false);
        assert_eq!(problems.errors.len(), 2);
        assert_eq!(problems.errors[0].place.as_ref().map(|p| (p.line, p.column)), Some((2, 6)));
        assert_eq!(problems.errors[0].path, "a.b");
        let (root, problems, files) = expanded("a:\n  b: ${NOBODY}\n  c: '${file:gone}'\n", true);
        assert_eq!((problems.errors.len(), problems.warnings.len()), (0, 2));
        assert!(root.at(&["a", "b"]).unwrap().scalar().unwrap().is_missing());
        assert_eq!(files, [PathBuf::from("/nowhere/gone")]);
    }

    #[test]
    fn malformed_references_are_errors() {
        for bad in ["'${'", "'${}'", "'${1X}'", "'${A B}'", "'${NONE:-${N}}'", "'${file:}'"] {
            assert_eq!(expanded(&format!("a: {bad}"), true).1.errors.len(), 1, "{bad}");
        }
    }

    #[test]
    fn a_file_loses_one_newline_and_is_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "s3cret\n\n").unwrap();
        let scalar = value(&format!("${{file:{}}}", path.display()));
        assert_eq!(&*scalar.text, "s3cret\n");
        assert!(scalar.expansion.as_ref().unwrap().secret);
        assert!(!format!("{scalar:?}").contains("s3cret"));
    }
}
