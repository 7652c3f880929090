//! A document as a tree of which every node knows its bytes, so that the text can be edited and not written anew.

use std::ops::Range;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};

use crate::inject::Refusal;
use crate::inject::value::{self, Value};

/// Deepest nesting; resource definitions with schemas in them reach about sixty levels.
const MAX_DEPTH: usize = 250;
/// What to do with a text that still has to be rendered.
pub(crate) const TEMPLATE: &str =
    "templates can't be read: inject what they render to, as in `helm template … | outrigger inject`";
/// How often a bracket that stands too far left is excused.
const MAX_EXCUSED: usize = 500;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Its bytes in the document, without anchor and tag. Of a block collection: from its first key, or from the first
    /// item's content, to the end of what is last in it. Empty where nothing is written.
    pub(crate) span: Range<usize>,
    /// What it is.
    pub(crate) body: Body,
    /// Number of its anchor, 0 without.
    pub(crate) anchor: usize,
    /// Its tag, as written in full.
    pub(crate) tag: Option<String>,
}

/// What a node is.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    /// Text.
    Scalar { text: String, style: Style },
    /// A sequence; `flow` when in brackets.
    List { items: Vec<Node>, flow: bool },
    /// A mapping.
    Map { entries: Vec<Entry>, form: Form },
    /// `*name`, by the number of the anchor.
    Alias(usize),
}

/// How a scalar is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// Nothing at all, which is null.
    Empty,
    /// Without quotes.
    Plain,
    /// In single or double quotes.
    Quoted,
    /// `|` or `>`.
    Block,
}

/// How a mapping is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A key a line.
    Block,
    /// In braces.
    Braces,
    /// A single pair in brackets, without braces of its own.
    Pair,
}

/// A key and its value.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The key.
    pub(crate) key: Node,
    /// The value.
    pub(crate) value: Node,
}

impl Node {
    /// Parses a text of at most one document; `None` where there is nothing but comments. The refusal's place is a byte
    /// of this text.
    pub(crate) fn parse(text: &str) -> Result<Option<Node>, Refusal> {
        let mut lenient = text.to_owned();
        for _ in 0..MAX_EXCUSED {
            let stop = match Builder::new(&lenient).document() {
                Ok(node) => return Ok(node),
                Err(stop) => stop,
            };
            // Every other reader of manifests takes a closing bracket that is not indented.
            if !(stop.indentation && join_line(&mut lenient, stop.refusal.at)) {
                return Err(stop.refusal);
            }
        }
        Err(Refusal::new(0, "too many brackets stand further left than what they belong to", "indent them"))
    }

    /// Its text where it is a scalar.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.body {
            Body::Scalar { text, .. } => Some(text),
            Body::List { .. } | Body::Map { .. } | Body::Alias(_) => None,
        }
    }

    /// Whether it is null: `null`, `~` or nothing.
    pub(crate) fn is_null(&self) -> bool {
        match &self.body {
            Body::Scalar { text, style: Style::Plain } => value::is_null(text) && self.tag.is_none(),
            Body::Scalar { style: Style::Empty, .. } => self.tag.is_none(),
            Body::Scalar { style: Style::Quoted | Style::Block, .. }
            | Body::List { .. }
            | Body::Map { .. }
            | Body::Alias(_) => false,
        }
    }

    /// The items of a sequence; none where it is something else.
    pub(crate) fn items(&self) -> &[Node] {
        match &self.body {
            Body::List { items, .. } => items,
            Body::Scalar { .. } | Body::Map { .. } | Body::Alias(_) => &[],
        }
    }

    /// The entries of a mapping; none where it is something else.
    pub(crate) fn entries(&self) -> &[Entry] {
        match &self.body {
            Body::Map { entries, .. } => entries,
            Body::Scalar { .. } | Body::List { .. } | Body::Alias(_) => &[],
        }
    }

    /// The node without its place, for comparing.
    pub(crate) fn value(&self) -> Value {
        match &self.body {
            Body::Scalar { text, style } => {
                let plain = matches!(style, Style::Plain | Style::Empty);
                Value::scalar(text, plain, self.tag.as_deref())
            }
            Body::List { items, .. } => Value::List(items.iter().map(Node::value).collect()),
            Body::Map { entries, .. } => {
                Value::Map(entries.iter().map(|entry| (entry.key.value(), entry.value.value())).collect())
            }
            Body::Alias(anchor) => Value::Alias(*anchor),
        }
    }
}

/// Why the parser stopped, and whether it was about indentation.
struct Stop {
    refusal: Refusal,
    indentation: bool,
}

struct Builder<'t> {
    text: &'t str,
    events: Parser<'t, StrInput<'t>>,
    /// Byte of each character; empty where every character is one byte.
    bytes: Vec<usize>,
    /// Brackets and braces that are open.
    brackets: usize,
}

impl<'t> Builder<'t> {
    fn new(text: &'t str) -> Self {
        let bytes = if text.is_ascii() { Vec::new() } else { text.char_indices().map(|(at, _)| at).collect() };
        Builder { text, events: Parser::new_from_str(text), bytes, brackets: 0 }
    }

    /// The parser counts in characters.
    fn byte(&self, index: usize) -> usize {
        if self.bytes.is_empty() {
            index.min(self.text.len())
        } else {
            self.bytes.get(index).copied().unwrap_or(self.text.len())
        }
    }

    fn bytes_of(&self, span: Span) -> Range<usize> {
        self.byte(span.start.index())..self.byte(span.end.index())
    }

    fn next(&mut self) -> Result<(Event<'t>, Range<usize>), Stop> {
        match self.events.next() {
            Some(Ok((event, span))) => Ok((event, self.bytes_of(span))),
            Some(Err(error)) => Err(self.syntax(&error)),
            None => Err(stop(self.text.len(), "the text ends too early", "is it complete?")),
        }
    }

    fn syntax(&self, error: &ScanError) -> Stop {
        let at = self.byte(error.marker().index());
        let line = line_start(self.text, at)..line_end(self.text, at);
        let help = if self.text[line].contains("{{") {
            TEMPLATE
        } else if error.info().contains("anchor") {
            "the anchor must stand in the same document"
        } else {
            "check the indentation, the space after each `:`, and that brackets and quotes are closed"
        };
        let mut stop = stop(at, format!("this is not YAML: {}", error.info()), help);
        stop.indentation = error.info().contains("invalid indentation");
        stop
    }

    fn document(&mut self) -> Result<Option<Node>, Stop> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::Nothing | Event::StreamStart | Event::DocumentEnd => {}
                Event::DocumentStart(_) if root.is_some() => {
                    return Err(stop(span.start, "a second document starts here", "write `---` before it"));
                }
                Event::DocumentStart(_) => {
                    let (event, span) = self.next()?;
                    root = Some(self.node(event, span, 0)?);
                }
                Event::StreamEnd => return Ok(root),
                Event::Alias(_)
                | Event::Scalar(..)
                | Event::SequenceStart(..)
                | Event::SequenceEnd
                | Event::MappingStart(..)
                | Event::MappingEnd => return Err(stop(span.start, "this is not one document", "look above it")),
            }
        }
    }

    fn node(&mut self, event: Event<'t>, span: Range<usize>, depth: usize) -> Result<Node, Stop> {
        if depth > MAX_DEPTH {
            return Err(stop(span.start, format!("nested more than {MAX_DEPTH} levels deep"), "nothing runs so deep"));
        }
        match event {
            Event::Alias(anchor) => Ok(Node { span, body: Body::Alias(anchor), anchor: 0, tag: None }),
            Event::Scalar(text, style, anchor, tag) => {
                let written = &self.text[span.clone()];
                let style = match style {
                    ScalarStyle::Plain if text.is_empty() || (text == "~" && written != "~") => Style::Empty,
                    ScalarStyle::Plain => Style::Plain,
                    ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => Style::Quoted,
                    ScalarStyle::Literal | ScalarStyle::Folded => Style::Block,
                };
                let span = match style {
                    Style::Empty => span.start..span.start,
                    Style::Plain => span,
                    // The parser's end may lie behind a comment.
                    Style::Quoted => span.start..quoted_end(self.text, span.start).unwrap_or(span.end),
                    Style::Block => span.start..block_end(self.text, span.start, text.ends_with("\n\n")),
                };
                let text = if style == Style::Empty { String::new() } else { text.into_owned() };
                Ok(Node { span, body: Body::Scalar { text, style }, anchor, tag: tag.as_deref().map(written_tag) })
            }
            Event::SequenceStart(anchor, tag) => {
                let flow = !span.is_empty() && self.text[span.start..].starts_with('[');
                self.brackets += usize::from(flow);
                let mut items = Vec::new();
                let closed = loop {
                    let (event, span) = self.next()?;
                    if event == Event::SequenceEnd {
                        break span;
                    }
                    items.push(self.node(event, span, depth + 1)?);
                };
                self.brackets -= usize::from(flow);
                let start = if flow { span.start } else { items.first().map_or(span.start, |item| item.span.start) };
                let end = if flow { self.closing(closed.start, b']')? } else { last_end(items.last(), start) };
                let tag = tag.as_deref().map(written_tag);
                Ok(Node { span: start..end, body: Body::List { items, flow }, anchor, tag })
            }
            Event::MappingStart(anchor, tag) => self.map(span, anchor, tag.as_deref().map(written_tag), depth),
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::SequenceEnd
            | Event::MappingEnd => Err(stop(span.start, "a value is missing here", "write one")),
        }
    }

    fn map(&mut self, span: Range<usize>, anchor: usize, tag: Option<String>, depth: usize) -> Result<Node, Stop> {
        let braces = !span.is_empty() && self.text[span.start..].starts_with('{');
        self.brackets += usize::from(braces);
        let mut entries: Vec<Entry> = Vec::new();
        let closed = loop {
            let (event, span) = self.next()?;
            if event == Event::MappingEnd {
                break span;
            }
            let key = self.node(event, span, depth + 1)?;
            let (event, span) = self.next()?;
            let mut value = self.node(event, span, depth + 1)?;
            if matches!(value.body, Body::Scalar { style: Style::Empty, .. }) {
                // The parser puts nothing where the next thing is.
                let colon = colon_after(self.text, key.span.end).map_or(key.span.end, |at| at + 1);
                value.span = colon..colon;
            }
            entries.push(Entry { key, value });
        };
        self.brackets -= usize::from(braces);
        let form = if braces {
            Form::Braces
        } else if self.brackets > 0 {
            Form::Pair
        } else {
            Form::Block
        };
        let end = match form {
            Form::Braces => self.closing(closed.start, b'}')?,
            Form::Block | Form::Pair => last_end(entries.last().map(|entry| &entry.value), span.start),
        };
        Ok(Node { span: span.start..end, body: Body::Map { entries, form }, anchor, tag })
    }

    /// The end of a flow collection. The parser may name a comma that stands before the bracket.
    fn closing(&self, from: usize, bracket: u8) -> Result<usize, Stop> {
        let bytes = self.text.as_bytes();
        let mut at = from;
        while let Some(byte) = bytes.get(at) {
            match byte {
                _ if *byte == bracket => return Ok(at + 1),
                b'#' => at = line_end(self.text, at),
                b',' | b' ' | b'\t' | b'\r' | b'\n' => at += 1,
                _ => break,
            }
        }
        Err(stop(from, "the end of this list or mapping can't be found", "write it in block style"))
    }
}

fn stop(at: usize, message: impl Into<String>, help: &str) -> Stop {
    Stop { refusal: Refusal::new(at, message, help), indentation: false }
}

fn written_tag(tag: &Tag) -> String {
    format!("{}{}", tag.handle, tag.suffix)
}

fn last_end(last: Option<&Node>, start: usize) -> usize {
    last.map_or(start, |node| node.span.end.max(start))
}

/// The `:` behind a key, on the same line.
pub(crate) fn colon_after(text: &str, key_end: usize) -> Option<usize> {
    let rest = &text[key_end..];
    let blanks = rest.len() - rest.trim_start_matches([' ', '\t']).len();
    rest[blanks..].starts_with(':').then_some(key_end + blanks)
}

/// The first byte of the line in which a byte stands.
pub(crate) fn line_start(text: &str, at: usize) -> usize {
    text[..at].rfind('\n').map_or(0, |newline| newline + 1)
}

/// The end of the line in which a byte stands, before its line break.
pub(crate) fn line_end(text: &str, at: usize) -> usize {
    let end = text[at..].find('\n').map_or(text.len(), |newline| at + newline);
    if end > at && text.as_bytes()[end - 1] == b'\r' { end - 1 } else { end }
}

/// The end of a quoted scalar that starts at a byte.
fn quoted_end(text: &str, start: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let quote = *bytes.get(start)?;
    let mut at = start + 1;
    loop {
        match *bytes.get(at)? {
            b'\\' if quote == b'"' => at += 2,
            byte if byte != quote => at += 1,
            _ if quote == b'\'' && bytes.get(at + 1) == Some(&b'\'') => at += 2,
            _ => return Some(at + 1),
        }
    }
}

/// The end of a block scalar whose first line of content starts at a byte; trailing blank lines count where they are kept.
fn block_end(text: &str, start: usize, keeps_blank: bool) -> usize {
    let first = line_start(text, start);
    let indent = start - first;
    let mut end = start;
    let mut at = first;
    for line in text[first..].split_inclusive('\n') {
        let content = line.trim_end_matches(['\n', '\r']);
        let blank = content.trim().is_empty();
        let spaces = content.len() - content.trim_start_matches(' ').len();
        if !blank && (spaces < indent || indent == 0 && content.starts_with("...")) {
            break;
        }
        if !blank || keeps_blank {
            end = end.max(at + content.len());
        }
        at += line.len();
    }
    end
}

/// Puts a line behind the one before it, by turning the line break and a comment into spaces: no other byte moves.
fn join_line(text: &mut String, at: usize) -> bool {
    let start = line_start(text, at);
    if start == 0 || !text[start..at].trim().is_empty() {
        return false;
    }
    let previous = line_start(text, start - 1);
    let comment = comment_start(&text[previous..start]).map_or(line_end(text, previous), |column| previous + column);
    let blank: String = text[comment..start].chars().map(|_| ' ').collect();
    // One space a character, since places are counted in characters; bytes must agree too.
    if !text[comment..start].is_ascii() {
        return false;
    }
    text.replace_range(comment..start, &blank);
    true
}

/// Where the comment of a line starts.
fn comment_start(line: &str) -> Option<usize> {
    let mut quote = None;
    let mut before = ' ';
    for (at, c) in line.char_indices() {
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), _) if open == c && before != '\\' => quote = None,
            (None, '#') if before.is_whitespace() => return Some(at),
            (None | Some(_), _) => {}
        }
        before = c;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Node {
        Node::parse(text).unwrap().unwrap()
    }

    /// The text of each value of a mapping, as its place says.
    fn written(text: &str) -> Vec<String> {
        parse(text).entries().iter().map(|entry| text[entry.value.span.clone()].to_owned()).collect()
    }

    #[test]
    fn every_value_knows_its_bytes() {
        let text = "\u{e9}: \u{e9} b  # c\nq: 'it''s' # c\nd: \"a\\\"\\\\\" # \"\nn:\nt: ~\nl: [a, {b: c},] # c\nm: {x: y,}\nz: |-\n  a\n   b\n\n# c\ne: &x # c\nf: !!str\ng: last";
        let found = written(text);
        let wanted =
            ["\u{e9} b", "'it''s'", "\"a\\\"\\\\\"", "", "~", "[a, {b: c},]", "{x: y,}", "a\n   b", "", "", "last"];
        assert_eq!(found, wanted);
    }

    #[test]
    fn collections_in_block_style_end_with_what_is_last_in_them() {
        let text = "a:\n- b: 'x' # c\n  c:\n    - y # c\n# c\nd:\n  e: |+\n    z\n\nf:\n";
        assert_eq!(written(text), ["b: 'x' # c\n  c:\n    - y", "e: |+\n    z\n", ""]);
    }

    #[test]
    fn a_bracket_that_stands_too_far_left_is_excused() {
        let text = "a:\n  b: [\n    x, # it's\n    z\n  ]\n  c: {\n  d: 1\n}\ne: 1\n";
        let root = parse(text);
        assert_eq!(root.value().get("a").and_then(|a| a.get("b")), Some(&Value::texts(["x", "z"])));
        let b = &root.entries()[0].value.entries()[0].value;
        assert_eq!(&text[b.span.clone()], "[\n    x, # it's\n    z\n  ]");
    }

    #[test]
    fn what_is_not_yaml_is_refused_with_its_place() {
        let refusal = Node::parse("a: {{ .Values.x }}-b\nb: 1\n").unwrap_err();
        assert!(refusal.help.contains("helm template"), "{refusal:?}");
        let refusal = Node::parse("a:\n  b: 1\n c: 2\n").unwrap_err();
        assert_eq!(line_start("a:\n  b: 1\n c: 2\n", refusal.at), 10, "{refusal:?}");
        assert!(Node::parse(&"[".repeat(100_000)).is_err());
        assert!(Node::parse("# nothing\n").unwrap().is_none());
    }
}
