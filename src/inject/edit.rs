//! Changes made in the text: bytes go in and out where a change says so, and no other byte moves.

use std::cmp::Reverse;
use std::ops::Range;

use crate::inject::Refusal;
use crate::inject::change::{Change, Place};
use crate::inject::render::Style;
use crate::inject::tree::{Body, Entry, Form, Node, Style as Scalar, colon_after, line_end, line_start};
use crate::inject::value::Value;

/// The text with the changes made. A place that can't be edited is refused; what comes out must still be compared.
pub(crate) fn edit(text: &str, root: &Node, changes: &[Change], style: &Style) -> Result<String, Refusal> {
    let mut editor = Editor { text, style, edits: Vec::new() };
    for change in changes {
        editor.change(root, change)?;
    }
    editor.finish()
}

/// The node at a path.
pub(crate) fn at<'n>(root: &'n Node, path: &[usize]) -> Option<&'n Node> {
    path.iter().try_fold(root, |node, step| match &node.body {
        Body::List { items, .. } => items.get(*step),
        Body::Map { entries, .. } => entries.get(*step).map(|entry| &entry.value),
        Body::Scalar { .. } | Body::Alias(_) => None,
    })
}

/// Column of a byte, in characters from 0.
pub(crate) fn column(text: &str, at: usize) -> usize {
    text[line_start(text, at)..at].chars().count()
}

/// The first byte of the line with the dash of an item in block style, and the dash's column.
pub(crate) fn dash(text: &str, item: &Node) -> Option<(usize, usize)> {
    let mut end = item.span.start;
    loop {
        let start = line_start(text, end);
        let before = &text[start..end];
        let content = before.trim_start_matches(' ');
        if content.starts_with("- ") || content.trim_end() == "-" {
            return Some((start, before.len() - content.len()));
        }
        // The content may stand in a line below its dash.
        if start == 0 || !(content.trim().is_empty() || content.starts_with('#')) {
            return None;
        }
        end = line_end(text, line_start(text, start - 1));
    }
}

struct Edit {
    bytes: Range<usize>,
    text: String,
    /// Of two that go in at the same place, what is indented further belongs to what stands before; what is taken out from
    /// there on comes last.
    depth: usize,
}

struct Editor<'e> {
    text: &'e str,
    style: &'e Style,
    edits: Vec<Edit>,
}

impl Editor<'_> {
    fn change(&mut self, root: &Node, change: &Change) -> Result<(), Refusal> {
        let Some(node) = at(root, change.path()) else { return Err(cannot(root)) };
        match (change, &node.body) {
            (Change::AddKey { key, value, place, .. }, Body::Map { entries, form: Form::Block }) => {
                self.add_key(node, entries, key, value, *place)
            }
            (Change::AddKey { key, value, place, .. }, Body::Map { entries, form: Form::Braces }) => {
                self.add_key_in_braces(node, entries, key, value, *place);
                Ok(())
            }
            (Change::AddItems { items, front, .. }, Body::List { items: present, flow: false }) => {
                self.add_items(node, present, items, *front)
            }
            (Change::AddItems { items, front, .. }, Body::List { items: present, flow: true }) => {
                self.add_items_in_brackets(node, present, items, *front);
                Ok(())
            }
            (Change::SetValue { entry, value, .. }, Body::Map { entries, form }) => {
                self.set_value(&entries[*entry], *form, value)
            }
            (Change::SetEntry { entry, key, value, .. }, Body::Map { entries, form }) => {
                let Entry { key: old, value: gone } = &entries[*entry];
                let key = if *form == Form::Block { key.clone() } else { self.style.key(&Value::text(key)) };
                self.replace(old.span.start..gone.span.end, format!("{key}: {}", self.style.inline(value)));
                Ok(())
            }
            (Change::RemoveItem { item, .. }, Body::List { items, flow: false }) => {
                let (start, _) = dash(self.text, &items[*item]).ok_or_else(|| cannot(&items[*item]))?;
                self.remove_lines(start, items[*item].span.end);
                Ok(())
            }
            (Change::RemoveItem { item, .. }, Body::List { items, flow: true }) => {
                let spans: Vec<_> = items.iter().map(|item| item.span.clone()).collect();
                self.remove_part(&spans, *item);
                Ok(())
            }
            (Change::RemoveKey { entry, .. }, Body::Map { entries, form: Form::Block }) => {
                let Entry { key, value } = &entries[*entry];
                let start = self.own_line(key.span.start).ok_or_else(|| cannot(key))?;
                self.remove_lines(start, value.span.end);
                Ok(())
            }
            (Change::RemoveKey { entry, .. }, Body::Map { entries, form: Form::Braces }) => {
                let spans: Vec<_> = entries.iter().map(|entry| entry.key.span.start..entry.value.span.end).collect();
                self.remove_part(&spans, *entry);
                Ok(())
            }
            (
                Change::AddKey { .. }
                | Change::AddItems { .. }
                | Change::SetValue { .. }
                | Change::SetEntry { .. }
                | Change::RemoveItem { .. }
                | Change::RemoveKey { .. },
                Body::Scalar { .. } | Body::List { .. } | Body::Map { .. } | Body::Alias(_),
            ) => Err(cannot(node)),
        }
    }

    fn add_key(
        &mut self,
        map: &Node,
        entries: &[Entry],
        key: &str,
        value: &Value,
        place: Place,
    ) -> Result<(), Refusal> {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Err(cannot(map)) };
        // The place of a key is behind its anchor and tag.
        let bare = entries.iter().find(|entry| entry.key.anchor == 0 && entry.key.tag.is_none());
        let column = column(self.text, bare.unwrap_or(first).key.span.start);
        let lines = self.style.entry(key, value, column);
        match place {
            Place::Before(entry) => {
                if let Some(start) = self.own_line(entries[entry].key.span.start) {
                    self.lines_before(start, column, &lines);
                    return Ok(());
                }
            }
            Place::After(entry) => {
                let Entry { key, value } = &entries[entry];
                let written = &self.text[key.span.start..value.span.end];
                let block = matches!(value.body, Body::Scalar { style: Scalar::Block, .. });
                if !block && !written.contains('\n') {
                    self.lines_after(line_end(self.text, value.span.end), column * 2, &lines);
                    return Ok(());
                }
            }
            Place::Last => {}
        }
        let end = self.past_comments(last.value.span.end, column);
        self.lines_after(end, column * 2, &lines);
        Ok(())
    }

    fn add_key_in_braces(&mut self, map: &Node, entries: &[Entry], key: &str, value: &Value, place: Place) {
        let key = self.style.key(&Value::text(key));
        let (beside, before) = match place {
            Place::Before(entry) => (entries.get(entry), true),
            Place::After(entry) => (entries.get(entry), false),
            Place::Last => (entries.last(), false),
        };
        let Some(beside) = beside else {
            let inside = map.span.start + 1;
            return self.replace(inside..inside, format!("{key}: {}", self.style.inline(value)));
        };
        let (value, gap) = match self.indent_of(beside.key.span.start) {
            Some(indent) => (self.style.spread(value, indent), format!("{}{indent}", self.style.newline)),
            None => (self.style.inline(value), " ".to_owned()),
        };
        if before {
            let at = beside.key.span.start;
            self.replace(at..at, format!("{key}: {value},{gap}"));
        } else {
            let at = beside.value.span.end;
            self.replace(at..at, format!(",{gap}{key}: {value}"));
        }
    }

    fn add_items(&mut self, list: &Node, present: &[Node], items: &[Value], front: bool) -> Result<(), Refusal> {
        let (Some(first), Some(last)) = (present.first(), present.last()) else { return Err(cannot(list)) };
        let (start, column) = dash(self.text, first).ok_or_else(|| cannot(first))?;
        let lines = self.style.items(items, column);
        if front {
            self.lines_before(start, column, &lines);
        } else {
            let end = self.past_comments(last.span.end, column + 1);
            self.lines_after(end, column * 2 + 1, &lines);
        }
        Ok(())
    }

    fn add_items_in_brackets(&mut self, list: &Node, present: &[Node], items: &[Value], front: bool) {
        let beside = if front { present.first() } else { present.last() };
        let Some(beside) = beside else {
            let inside = list.span.start + 1;
            let items: Vec<String> = items.iter().map(|item| self.style.inline(item)).collect();
            return self.replace(inside..inside, items.join(", "));
        };
        let indent = self.indent_of(beside.span.start);
        let gap = indent.map_or(" ".to_owned(), |indent| format!("{}{indent}", self.style.newline));
        let mut text = String::new();
        for item in items {
            let item = indent.map_or_else(|| self.style.inline(item), |indent| self.style.spread(item, indent));
            text.push_str(&if front { format!("{item},{gap}") } else { format!(",{gap}{item}") });
        }
        let at = if front { beside.span.start } else { beside.span.end };
        self.replace(at..at, text);
    }

    fn set_value(&mut self, entry: &Entry, form: Form, value: &Value) -> Result<(), Refusal> {
        let old = &entry.value;
        let colon = colon_after(self.text, entry.key.span.end).ok_or_else(|| cannot(old))?;
        let block = match &old.body {
            Body::Scalar { style, .. } => *style == Scalar::Block,
            Body::List { flow, .. } => !flow,
            Body::Map { form, .. } => *form == Form::Block,
            Body::Alias(_) => false,
        };
        let empty = old.span.is_empty();
        if form != Form::Block {
            let text = match self.indent_of(entry.key.span.start) {
                Some(indent) => self.style.spread(value, indent),
                None => self.style.inline(value),
            };
            self.replace(old.span.clone(), if empty { format!(" {text}") } else { text });
            return Ok(());
        }
        let column = column(self.text, entry.key.span.start);
        let mut lines = self.style.entry("", value, column);
        if lines.len() == 1 {
            let text = self.style.inline(value);
            if block || empty {
                self.replace(colon + 1..old.span.end, format!(" {text}"));
            } else {
                self.replace(old.span.clone(), text);
            }
            return Ok(());
        }
        // The value goes below the key; an anchor and a comment stay beside it.
        let blank = self.text[colon + 1..old.span.start].trim().is_empty();
        self.replace(if blank { colon + 1 } else { old.span.start }..old.span.end, String::new());
        lines.remove(0);
        self.lines_after(line_end(self.text, old.span.end), column * 2 + 1, &lines);
        Ok(())
    }

    /// The start of a line, if nothing but spaces stands in it before a byte.
    fn own_line(&self, at: usize) -> Option<usize> {
        let start = line_start(self.text, at);
        self.text[start..at].bytes().all(|byte| byte == b' ').then_some(start)
    }

    /// The indentation of a line that starts with what is at a byte.
    fn indent_of(&self, at: usize) -> Option<&str> {
        let start = line_start(self.text, at);
        let indent = &self.text[start..at];
        // What follows the first brace of the text in the same line is in one line with it.
        (indent.trim().is_empty() && start > 0).then_some(indent)
    }

    /// Behind the line of a byte and the comments that follow it, indented by a column at least.
    fn past_comments(&self, at: usize, column: usize) -> usize {
        let mut end = line_end(self.text, at);
        loop {
            let Some(newline) = self.text[end..].find('\n') else { return end };
            let next = end + newline + 1;
            let line = &self.text[next..line_end(self.text, next)];
            let comment = line.trim_start_matches(' ');
            if !comment.starts_with('#') || line.len() - comment.len() < column {
                return end;
            }
            end = next + line.len();
        }
    }

    /// Lines before a line and the comments right above it, which speak of it.
    fn lines_before(&mut self, start: usize, column: usize, lines: &[String]) {
        let mut start = start;
        while start > 0 {
            let above = line_start(self.text, start - 1);
            let line = &self.text[above..start];
            let comment = line.trim_start_matches(' ');
            if !comment.starts_with('#') || line.len() - comment.len() != column {
                break;
            }
            start = above;
        }
        let mut text = lines.join(self.style.newline);
        text.push_str(self.style.newline);
        self.edits.push(Edit { bytes: start..start, text, depth: column });
    }

    /// Lines behind the end of a line.
    fn lines_after(&mut self, end: usize, depth: usize, lines: &[String]) {
        let newline = self.style.newline;
        let text = format!("{newline}{}", lines.join(newline));
        self.edits.push(Edit { bytes: end..end, text, depth });
    }

    fn replace(&mut self, bytes: Range<usize>, text: String) {
        let depth = if bytes.is_empty() { usize::MAX } else { 0 };
        if !(bytes.is_empty() && text.is_empty()) {
            self.edits.push(Edit { bytes, text, depth });
        }
    }

    /// Takes out whole lines, from the start of one to the end of the one in which a byte stands.
    fn remove_lines(&mut self, start: usize, last: usize) {
        let end = line_end(self.text, last);
        // With the line break before them, so that the end of the last line is free for what goes behind it.
        let bytes = match start.checked_sub(1) {
            Some(newline) => line_end(self.text, line_start(self.text, newline))..end,
            None => 0..self.text[end..].find('\n').map_or(end, |newline| end + newline + 1),
        };
        self.replace(bytes, String::new());
    }

    /// Takes one out of several parts that commas separate.
    fn remove_part(&mut self, spans: &[Range<usize>], part: usize) {
        let bytes = match (spans.get(part + 1), part.checked_sub(1)) {
            (Some(next), _) => spans[part].start..next.start,
            (None, Some(before)) => spans[before].end..spans[part].end,
            (None, None) => spans[part].clone(),
        };
        self.replace(bytes, String::new());
    }

    fn finish(mut self) -> Result<String, Refusal> {
        self.edits.sort_by_key(|edit| (edit.bytes.start, Reverse(edit.depth)));
        let mut out = String::with_capacity(self.text.len() + 4096);
        let mut done = 0;
        for edit in &self.edits {
            if edit.bytes.start < done {
                return Err(Refusal::new(edit.bytes.start, TOO_CLOSE, MEND));
            }
            out.push_str(&self.text[done..edit.bytes.start]);
            out.push_str(&edit.text);
            done = edit.bytes.end;
        }
        out.push_str(&self.text[done..]);
        Ok(out)
    }
}

const TOO_CLOSE: &str = "two changes meet here";
const MEND: &str = "write this part in block style, a key a line";

fn cannot(node: &Node) -> Refusal {
    Refusal::new(node.span.start, "this can't be changed as it is written", MEND)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inject::change::{apply, same};

    /// Makes changes to a text and holds what comes out against the values.
    fn made(text: &str, changes: &[Change]) -> String {
        let style = Style { step: 2, dash: 2, unit: "  ".into(), json: text.starts_with('{'), newline: "\n" };
        let root = Node::parse(text).unwrap().unwrap();
        let out = edit(text, &root, changes, &style).unwrap();
        let mut wanted = root.value();
        apply(&mut wanted, changes);
        let found = Node::parse(&out).unwrap_or_else(|error| panic!("{error:?}\n{out}")).unwrap().value();
        assert!(same(&wanted, &found), "{out}");
        out
    }

    fn key(place: Place) -> Vec<Change> {
        vec![Change::AddKey { map: vec![0], key: "new".into(), value: Value::texts(["x"]), place }]
    }

    fn items(front: bool) -> Vec<Change> {
        vec![Change::AddItems { list: vec![0], items: vec![Value::map([("k", Value::word(1))])], front }]
    }

    #[test]
    fn a_key_goes_where_it_is_wished_and_comments_stay_with_what_they_speak_of() {
        let text = "m:\n  a: 1 # a\n  # of b\n  b:\n    c: |+\n      x\n\n# of z\nz: 1\n";
        assert!(made(text, &key(Place::Before(1))).contains("# a\n  new: [x]\n  # of b\n  b:"));
        assert!(made(text, &key(Place::After(0))).contains("# a\n  new: [x]\n  # of b\n"));
        assert!(made(text, &key(Place::Last)).contains("      x\n\n  new: [x]\n# of z\n"));
        assert!(made(text, &key(Place::After(1))).contains("      x\n\n  new: [x]\n# of z\n"));
        assert_eq!(made("m:\n  a:", &key(Place::Last)), "m:\n  a:\n  new: [x]");
        assert_eq!(made("m:\n  a: |\n    x", &key(Place::Last)), "m:\n  a: |\n    x\n  new: [x]");
    }

    #[test]
    fn a_key_goes_into_braces_in_one_line_or_many() {
        assert_eq!(made("m: {a: 1}\n", &key(Place::Last)), "m: {a: 1, new: [x]}\n");
        assert_eq!(made("m: {a: 1,}\n", &key(Place::Last)), "m: {a: 1, new: [x],}\n");
        assert_eq!(made("m: {a: 1}\n", &key(Place::Before(0))), "m: {new: [x], a: 1}\n");
        assert_eq!(made("m: { }\n", &key(Place::Last)), "m: {new: [x] }\n");
        assert_eq!(
            made("{\n \"m\": {\n  \"a\": 1\n }\n}\n", &key(Place::Last)),
            "{\n \"m\": {\n  \"a\": 1,\n  \"new\": [\n    \"x\"\n  ]\n }\n}\n"
        );
    }

    #[test]
    fn items_go_before_the_first_or_behind_the_last_in_the_style_of_the_list() {
        assert_eq!(made("l:\n- a: 1\n# z\nz: 1\n", &items(false)), "l:\n- a: 1\n- k: 1\n# z\nz: 1\n");
        assert_eq!(made("l:\n    - a: 1\n      # c\n", &items(false)), "l:\n    - a: 1\n      # c\n    - k: 1\n");
        assert_eq!(made("l:\n  # of a\n  - a: 1\n", &items(true)), "l:\n  - k: 1\n  # of a\n  - a: 1\n");
        assert_eq!(made("l:\n  -\n    a: 1\n", &items(true)), "l:\n  - k: 1\n  -\n    a: 1\n");
        assert_eq!(made("l: [{a: 1}]\n", &items(true)), "l: [{k: 1}, {a: 1}]\n");
        assert_eq!(made("l: [\n  {a: 1} # c\n]\n", &items(false)), "l: [\n  {a: 1},\n  {\n    k: 1\n  } # c\n]\n");
    }

    #[test]
    fn a_value_is_set_over_nothing_null_text_and_lists() {
        let list = || Value::List(vec![Value::map([("k", Value::word(1))])]);
        let set = |value| vec![Change::SetValue { map: vec![], entry: 0, value }];
        assert_eq!(made("e: [] # c\nz: 1\n", &set(list())), "e: # c\n  - k: 1\nz: 1\n");
        assert_eq!(made("e:\nz: 1\n", &set(list())), "e:\n  - k: 1\nz: 1\n");
        assert_eq!(made("e: null", &set(list())), "e:\n  - k: 1");
        assert_eq!(made("e: &x {}\n", &set(list())), "e: &x \n  - k: 1\n");
        assert_eq!(made("{\"e\": null}", &set(list())), "{\"e\": [{\"k\": 1}]}");
        assert_eq!(made("e: 'a' # c\n", &set(Value::text("b"))), "e: b # c\n");
        assert_eq!(made("e:\n- a\n- b\nz: 1\n", &set(Value::texts(["c"]))), "e: [c]\nz: 1\n");
        assert_eq!(made("e: |\n  a\n  b\nz: 1\n", &set(Value::text("c"))), "e: c\nz: 1\n");
        let entry = vec![Change::SetEntry { map: vec![], entry: 0, key: "value".into(), value: Value::text("b") }];
        assert_eq!(made("valueFrom:\n  a:\n    b: c # x\nz: 1\n", &entry), "value: b # x\nz: 1\n");
    }

    #[test]
    fn items_and_keys_are_taken_out() {
        let item = |item| vec![Change::RemoveItem { list: vec![0], item }];
        assert_eq!(made("l:\n- a: 1\n  b: 2\n- c\n", &item(0)), "l:\n- c\n");
        assert_eq!(made("l:\n- a\n- c", &item(1)), "l:\n- a");
        assert_eq!(made("l: [a, c]\n", &item(0)), "l: [c]\n");
        assert_eq!(made("l: [a, c]\n", &item(1)), "l: [a]\n");
        let entry = |entry| vec![Change::RemoveKey { map: vec![0], entry }];
        assert_eq!(made("m:\n  a: 1\n  b:\n  - 2\n  c: 3\n", &entry(1)), "m:\n  a: 1\n  c: 3\n");
        assert_eq!(made("m: {a: 1, b: 2}\n", &entry(1)), "m: {a: 1}\n");
    }

    #[test]
    fn of_two_things_behind_the_same_line_the_inner_comes_first() {
        let changes = [
            Change::AddKey { map: vec![], key: "outer".into(), value: Value::word(1), place: Place::Last },
            Change::AddKey { map: vec![0, 0], key: "inner".into(), value: Value::word(2), place: Place::Last },
        ];
        assert_eq!(made("l:\n- a: 1", &changes), "l:\n- a: 1\n  inner: 2\nouter: 1");
    }

    #[test]
    fn line_breaks_and_wide_characters_stay() {
        let style = Style { step: 2, dash: 2, unit: "  ".into(), json: false, newline: "\r\n" };
        let text = "m:\r\n  \u{e9}: \"\u{1f600}\" # \u{fc}\r\n  b: |\r\n    x\r\nz: 1\r\n";
        let root = Node::parse(text).unwrap().unwrap();
        let out = edit(text, &root, &key(Place::Last), &style).unwrap();
        assert_eq!(out, text.replace("    x\r\n", "    x\r\n  new: [x]\r\n"));
    }
}
