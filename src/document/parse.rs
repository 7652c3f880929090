//! From YAML text to the tree: places, anchors and merge keys, and what is wrong with the text.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span, StrInput, Tag};

use crate::background::give_way;
use crate::document::tree::{Entry, Layer, Node, Scalar, Value};
use crate::document::{Place, Problems};

/// Largest document. Bytes.
pub const MAX_BYTES: usize = 1 << 20;
/// Deepest nesting; a configuration needs seven levels.
const MAX_DEPTH: usize = 32;
/// How many values aliases may stand for in all, so that a small file can't blow up.
const MAX_ALIASED: usize = 100_000;

impl Node {
    /// Parses one document. What is wrong with it is noted; `None` where nothing could be made of it.
    pub fn parse(text: &str, file: &Arc<PathBuf>, layer: Layer, problems: &mut Problems) -> Option<Arc<Node>> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut builder = Builder { text, file, layer, problems, anchors: HashMap::new(), aliased: 0 };
        let mut parser = Parser::new_from_str(text);
        let root = builder.document(&mut parser);
        match root {
            Ok(root) => Some(root),
            Err(Stop { place, message, help }) => {
                problems.error(Some(place), "", message, help);
                None
            }
        }
    }
}

/// Why a document can't be used at all.
struct Stop {
    place: Place,
    message: String,
    help: Option<&'static str>,
}

struct Builder<'p> {
    text: &'p str,
    file: &'p Arc<PathBuf>,
    layer: Layer,
    problems: &'p mut Problems,
    /// Finished values by anchor, with the number of values in them.
    anchors: HashMap<usize, (Arc<Node>, usize)>,
    aliased: usize,
}

type Events<'i> = Parser<'i, StrInput<'i>>;

impl Builder<'_> {
    fn place(&self, mark: Marker) -> Place {
        // The parser counts columns from 0, whatever its documentation says.
        Place { file: self.file.clone(), line: mark.line().max(1), column: mark.col() + 1 }
    }

    fn stop(&self, mark: Marker, message: impl Into<String>, help: Option<&'static str>) -> Stop {
        Stop { place: self.place(mark), message: message.into(), help }
    }

    fn next<'i>(&self, events: &mut Events<'i>) -> Result<(Event<'i>, Span), Stop> {
        match events.next() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => Err(self.syntax(&error)),
            None => Err(self.stop(Marker::new(0, 1, 0), "the file ends too early", None)),
        }
    }

    fn syntax(&self, error: &saphyr_parser::ScanError) -> Stop {
        let info = error.info();
        let line = self.text.lines().nth(error.marker().line().saturating_sub(1)).unwrap_or("");
        let help = if line.contains("${") && line.contains(['{', '[']) && info.contains("flow") {
            "inside of `{ }` and `[ ]`, put `${…}` into quotes"
        } else if info.contains("anchor") {
            "put a value that starts with `*` or `&` into quotes"
        } else if info.contains("unexpected character") {
            "put a value that starts with `@`, a backtick or `%` into quotes"
        } else if info.contains("YAML whitespace") && line.contains('\t') {
            "write a space after the `:`, not a tab"
        } else if line.contains("[::") || line.contains("]:") {
            "put an IPv6 address into quotes"
        } else {
            "check the indentation, the space after each `:`, and that brackets and quotes are closed"
        };
        if info.contains("tab")
            && let Some(place) = self.tab(error.marker().line())
        {
            let message = "this is not YAML: a tab can't indent".to_owned();
            return Stop { place, message, help: Some("YAML is indented by spaces") };
        }
        self.stop(*error.marker(), format!("this is not YAML: {info}"), Some(help))
    }

    /// The first tab in the indentation of a line from `line` on: the parser names the end of what stood before it.
    fn tab(&self, line: usize) -> Option<Place> {
        let lines = self.text.lines().enumerate().skip(line.saturating_sub(1));
        let mut indented = lines.filter_map(|(at, text)| {
            let column = text.chars().take_while(|c| c.is_whitespace()).position(|c| c == '\t')?;
            Some(Place { file: self.file.clone(), line: at + 1, column: column + 1 })
        });
        indented.next()
    }

    fn document(&mut self, events: &mut Events<'_>) -> Result<Arc<Node>, Stop> {
        let mut root: Option<Arc<Node>> = None;
        loop {
            let (event, span) = self.next(events)?;
            match event {
                Event::Nothing | Event::StreamStart | Event::DocumentEnd => {}
                Event::DocumentStart(_) if root.is_some() => {
                    let help = "put everything into one document, without a second `---`";
                    return Err(self.stop(span.start, "this is a second YAML document", Some(help)));
                }
                Event::DocumentStart(_) => {
                    let (event, span) = self.next(events)?;
                    root = Some(self.node(event, span, events, 0)?.0);
                }
                Event::StreamEnd => {
                    let place = self.place(Marker::new(0, 1, 0));
                    return Ok(root.unwrap_or_else(|| {
                        Arc::new(Node { place, layer: self.layer, value: Value::Scalar(Scalar::plain("")) })
                    }));
                }
                Event::Alias(_)
                | Event::Scalar(..)
                | Event::SequenceStart(..)
                | Event::SequenceEnd
                | Event::MappingStart(..)
                | Event::MappingEnd => return Err(self.stop(span.start, "this is not one YAML document", None)),
            }
        }
    }

    /// A value and how many values are in it.
    fn node(
        &mut self,
        event: Event<'_>,
        span: Span,
        events: &mut Events<'_>,
        depth: usize,
    ) -> Result<(Arc<Node>, usize), Stop> {
        if depth > MAX_DEPTH {
            return Err(self.stop(span.start, format!("nested more than {MAX_DEPTH} levels deep"), None));
        }
        let place = self.place(span.start);
        let (value, size, anchor, tag) = match event {
            Event::Alias(anchor) => {
                let Some((node, size)) = self.anchors.get(&anchor).cloned() else {
                    return Err(self.stop(span.start, "an alias can't stand inside of what it stands for", None));
                };
                self.aliased += size;
                if self.aliased > MAX_ALIASED {
                    let message = format!("aliases stand for more than {MAX_ALIASED} values");
                    return Err(self.stop(span.start, message, None));
                }
                // What is wrong with an aliased value is shown where it is written.
                return Ok((node, size));
            }
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && !tag.as_deref().is_some_and(is_string_tag);
                (Value::Scalar(Scalar { text: (&*text).into(), plain, expansion: None }), 1, anchor, tag)
            }
            Event::SequenceStart(anchor, tag) => {
                let (items, size) = self.list(events, depth)?;
                (Value::List(items), size, anchor, tag)
            }
            Event::MappingStart(anchor, tag) => {
                let (entries, size) = self.map(events, depth)?;
                (Value::Map(entries), size, anchor, tag)
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::SequenceEnd
            | Event::MappingEnd => return Err(self.stop(span.start, "a value is missing here", None)),
        };
        if let Some(tag) = tag.filter(|tag| !is_string_tag(tag)) {
            self.problems.error(
                Some(place.clone()),
                "",
                format!(
                    "the tag `{}` is not supported",
                    if tag.is_yaml_core_schema() { format!("!!{}", tag.suffix) } else { tag.to_string() }
                ),
                Some("leave the tag out"),
            );
        }
        let node = Arc::new(Node { place, layer: self.layer, value });
        if anchor > 0 {
            self.anchors.insert(anchor, (node.clone(), size));
        }
        Ok((node, size))
    }

    fn list(&mut self, events: &mut Events<'_>, depth: usize) -> Result<(Vec<Arc<Node>>, usize), Stop> {
        let (mut items, mut size) = (Vec::new(), 1);
        loop {
            let (event, span) = self.next(events)?;
            if event == Event::SequenceEnd {
                return Ok((items, size));
            }
            let (item, inner) = self.node(event, span, events, depth + 1)?;
            items.push(item);
            size += inner;
        }
    }

    fn map(&mut self, events: &mut Events<'_>, depth: usize) -> Result<(Vec<Entry>, usize), Stop> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut places: HashMap<Arc<str>, usize> = HashMap::new();
        let mut merged: Vec<Arc<Node>> = Vec::new();
        let mut size = 1;
        loop {
            let (event, span) = self.next(events)?;
            if event == Event::MappingEnd {
                break;
            }
            give_way();
            let (key, _) = self.node(event, span, events, depth + 1)?;
            let (event, value_span) = self.next(events)?;
            let (value, inner) = self.node(event, value_span, events, depth + 1)?;
            size += inner;
            let place = self.place(span.start);
            let Some(text) = self.key(&key, &place) else { continue };
            if &*text == "<<" {
                self.merge_key(&value, &mut merged);
            } else if let Some(first) = places.get(&text) {
                let line = entries.get(*first).map_or(0, |entry| entry.place.line);
                self.problems.error(
                    Some(place),
                    "",
                    format!("the key `{text}` is written twice (first in line {line})"),
                    Some("keep one of the two"),
                );
            } else {
                places.insert(text.clone(), entries.len());
                entries.push(Entry { key: text, place, value });
            }
        }
        // The mapping's own keys win, then those of the mapping that `<<` names first.
        for entry in merged.iter().flat_map(|node| node.entries()) {
            if !places.contains_key(&entry.key) {
                places.insert(entry.key.clone(), entries.len());
                entries.push(entry.clone());
            }
        }
        Ok((entries, size))
    }

    fn key(&mut self, key: &Node, place: &Place) -> Option<Arc<str>> {
        let help = match key.scalar() {
            Some(scalar) if !scalar.plain || is_string(&scalar.text) => return Some(scalar.text.clone()),
            Some(scalar) if scalar.is_null() => "write a name before the `:`".to_owned(),
            Some(scalar) => format!("write it in quotes: \"{}\"", scalar.text),
            None => "write a name before the `:`".to_owned(),
        };
        self.problems.error(Some(place.clone()), "", "a key must be text", Some(&help));
        None
    }

    fn merge_key(&mut self, value: &Arc<Node>, merged: &mut Vec<Arc<Node>>) {
        let sources = match &value.value {
            Value::List(items) => items.as_slice(),
            Value::Map(_) | Value::Scalar(_) => std::slice::from_ref(value),
        };
        for source in sources {
            if source.is_map() {
                merged.push(source.clone());
            } else {
                self.problems.error(
                    Some(source.place.clone()),
                    "<<",
                    "must be a mapping or a list of mappings",
                    Some("write `<<: *name`, where `&name` marks a mapping above"),
                );
            }
        }
    }
}

fn is_string_tag(tag: &Tag) -> bool {
    tag.is_yaml_core_schema() && tag.suffix == "str"
}

/// Whether a plain scalar is a string by YAML 1.2's core schema: neither null, boolean nor number.
fn is_string(text: &str) -> bool {
    let word =
        matches!(text, "" | "~" | "null" | "Null" | "NULL" | "true" | "True" | "TRUE" | "false" | "False" | "FALSE");
    let number = text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))
        && (text.parse::<f64>().is_ok()
            || text.strip_prefix("0x").is_some_and(|hex| i64::from_str_radix(hex, 16).is_ok())
            || text.strip_prefix("0o").is_some_and(|octal| i64::from_str_radix(octal, 8).is_ok()));
    !word && !number
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> (Option<Arc<Node>>, Problems) {
        let mut problems = Problems::default();
        let node = Node::parse(text, &Arc::new("f.yaml".into()), Layer::File, &mut problems);
        (node, problems)
    }

    fn good(text: &str) -> Arc<Node> {
        let (node, problems) = parse(text);
        assert_eq!(problems, Problems::default());
        node.unwrap()
    }

    fn text<'n>(node: &'n Node, path: &[&str]) -> &'n str {
        &node.at(path).unwrap().scalar().unwrap().text
    }

    fn first_error(yaml: &str) -> (usize, usize, String) {
        let (_, problems) = parse(yaml);
        let problem = problems.errors.first().expect("an error");
        let place = problem.place.clone().unwrap();
        (place.line, place.column, problem.message.clone())
    }

    #[test]
    fn keys_and_values_know_their_line_and_column() {
        let node = good("a:\n  \u{e9}: 1\n  c: [x, y]\n");
        let a = node.entry("a").unwrap();
        assert_eq!((a.place.line, a.place.column), (1, 1));
        let e = a.value.entry("\u{e9}").unwrap();
        assert_eq!((e.place.line, e.place.column, e.value.place.column), (2, 3, 6));
        let y = &a.value.get("c").unwrap().items()[1];
        assert_eq!((y.place.line, y.place.column), (3, 10));
    }

    #[test]
    fn a_key_written_twice_is_a_problem_at_the_second() {
        let (line, column, message) = first_error("a: 1\nb: 2\na: 3\n");
        assert_eq!((line, column), (3, 1));
        assert!(message.contains("written twice (first in line 1)"), "{message}");
    }

    #[test]
    fn syntax_errors_a_second_document_and_deep_nesting_have_a_place() {
        let (line, _, message) = first_error("a: 1\nb: [1, 2\nc: 3\n");
        assert!(line >= 2 && message.starts_with("this is not YAML"), "{line} {message}");
        assert_eq!(first_error("a: 1\n---\nb: 2\n").2, "this is a second YAML document");
        assert!(first_error(&"[".repeat(40)).2.contains("nested more than 32"));
        assert!(parse(&"[".repeat(100_000)).0.is_none());
        assert!(first_error("a: *nobody\n").2.starts_with("this is not YAML"));
    }

    #[test]
    fn aliases_can_not_blow_up() {
        let mut yaml = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let previous = level - 1;
            let refs = vec![format!("*a{previous}"); 10].join(", ");
            yaml.push_str(&format!("a{level}: &a{level} [{refs}]\n"));
        }
        assert!(first_error(&yaml).2.contains("aliases stand for more than"));
    }

    #[test]
    fn merge_keys_fill_in_what_is_not_written() {
        let node = good("base: &b {x: 1, y: 2}\nother: &o {y: 8, z: 9}\nuse:\n  <<: [*b, *o]\n  x: 5\n");
        assert_eq!(text(&node, &["use", "x"]), "5");
        assert_eq!(text(&node, &["use", "y"]), "2");
        assert_eq!(text(&node, &["use", "z"]), "9");
        assert!(first_error("a:\n  <<: 5\n").2.contains("must be a mapping"));
    }

    #[test]
    fn keys_that_are_not_text_are_refused() {
        for yaml in ["1: x\n", "true: x\n", "[a]: x\n", "~: x\n"] {
            assert_eq!(first_error(yaml).2, "a key must be text", "{yaml}");
        }
        good("\"1\": x\non: y\nno: z\n");
    }
}
