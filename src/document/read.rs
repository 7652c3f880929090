//! Reading a merged tree into types that cannot be wrong, noting every mistake on the way.

use std::cell::RefCell;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use crate::document::known::Known;
use crate::document::tree::{Layer, Node, Scalar, Value};
use crate::document::{Place, Problem, Problems};
use crate::units::{self, Ratio};

/// A cursor over one mapping. Each method reads one key; a mistake is noted and reading goes on with a harmless stand-in,
/// since a document with mistakes is never used. [`Reader::finish`] notes the keys that nobody asked for.
pub struct Reader<'t> {
    node: &'t Node,
    path: String,
    /// Where the block, or what it stands in, is written in the file.
    place: Option<Place>,
    /// Keys that were asked for, present or not.
    asked: Vec<&'static str>,
    /// Keys of a later version: asked for, but not to be proposed.
    reserved: Vec<&'static str>,
    problems: &'t RefCell<Problems>,
    known: Option<&'t Known>,
}

impl<'t> Reader<'t> {
    /// Reads a mapping. Anything else reads as one without keys; whoever makes the reader has noted that.
    pub fn new(node: &'t Node, path: impl Into<String>, problems: &'t RefCell<Problems>) -> Reader<'t> {
        Reader {
            node,
            path: path.into(),
            place: written(node),
            asked: Vec::new(),
            reserved: Vec::new(),
            problems,
            known: None,
        }
    }

    /// Reads blocks that are shared with what was read before only once.
    pub fn knowing(self, known: &'t Known) -> Reader<'t> {
        Reader { known: Some(known), ..self }
    }

    /// Whether the key is there and not null (an inherited or built-in value counts).
    pub fn has(&self, key: &str) -> bool {
        self.node.get(key).is_some()
    }

    /// The setting that is read, as `upstreams.stripe.retry`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Says where the block stands when its value has no place that is worth showing.
    pub fn stand_at(&mut self, place: Place) {
        self.place = Some(place);
    }

    /// The mapping itself.
    pub fn node(&self) -> &'t Node {
        self.node
    }

    /// The value of a key as it is, for whoever reads it by other means.
    pub fn raw(&mut self, key: &'static str) -> Option<&'t Arc<Node>> {
        self.asked.push(key);
        self.node.get(key)
    }

    /// A duration above 0.
    pub fn duration(&mut self, key: &'static str) -> Duration {
        let stand_in = Duration::from_secs(1);
        let Some(duration) = self.any_duration(key) else { return stand_in };
        if duration.is_zero() {
            self.problem(key, "must be longer than 0".to_owned(), None);
            return stand_in;
        }
        duration
    }

    /// A duration, or 0.
    pub fn duration_or_zero(&mut self, key: &'static str) -> Duration {
        self.any_duration(key).unwrap_or(Duration::ZERO)
    }

    /// A duration above 0, or `off`.
    pub fn clock(&mut self, key: &'static str) -> Option<Duration> {
        if self.node.get(key).is_some_and(|value| value.is_off()) {
            self.asked.push(key);
            return None;
        }
        let duration = self.any_duration(key)?;
        if duration.is_zero() {
            self.problem(key, "must be longer than 0".to_owned(), Some("`off` switches it off".to_owned()));
            return None;
        }
        Some(duration)
    }

    /// A whole number of at least 1. `meaning_of_less` tells what to write instead of 0, e.g. "1 switches retries off".
    pub fn count(&mut self, key: &'static str, meaning_of_less: &str) -> NonZeroU32 {
        match self.present(key) {
            Some(_) => self.whole(key, Some(meaning_of_less)).unwrap_or(NonZeroU32::MIN),
            None => NonZeroU32::MIN,
        }
    }

    /// A whole number of at least 1, or `off`.
    pub fn count_or_off(&mut self, key: &'static str) -> Option<NonZeroU32> {
        let node = self.present(key)?;
        if node.is_off() { None } else { self.whole(key, Some("`off` switches it off")) }
    }

    /// A whole number of at least 1, or nothing where the key is absent.
    pub fn optional_count(&mut self, key: &'static str) -> Option<NonZeroU32> {
        self.asked.push(key);
        self.node.get(key)?;
        self.whole(key, None)
    }

    /// A number above 0 and at most 1.
    pub fn ratio(&mut self, key: &'static str) -> Ratio {
        let stand_in = || Ratio::new(1.0).unwrap_or_else(|| unreachable!("1 is a ratio"));
        let Some(node) = self.present(key) else { return stand_in() };
        let Some(scalar) = self.scalar(key, node) else { return stand_in() };
        let number = scalar.text.parse::<f64>().ok().filter(|_| scalar.plain && !scalar.text.contains(['n', 'N', 'i']));
        match number.and_then(Ratio::new).filter(|ratio| ratio.parts_per_million() > 0) {
            Some(ratio) => ratio,
            None => {
                self.refuse(key, scalar, "must be a number above 0 and at most 1, such as 0.2", None);
                stand_in()
            }
        }
    }

    /// A size in bytes above 0.
    pub fn size(&mut self, key: &'static str) -> u64 {
        let Some(node) = self.present(key) else { return 1 };
        let Some(scalar) = self.scalar(key, node) else { return 1 };
        match units::parse_size(&scalar.text) {
            Ok(0) => {
                self.problem(key, "must be larger than 0".to_owned(), None);
                1
            }
            Ok(size) => size,
            Err(message) => {
                self.refuse(key, scalar, "must be a size, such as 512B, 64KiB or 10MB", Some(message));
                1
            }
        }
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, key: &'static str) -> bool {
        let Some(node) = self.present(key) else { return false };
        let Some(scalar) = self.scalar(key, node) else { return false };
        match &*scalar.text {
            "true" | "True" | "TRUE" if scalar.plain => true,
            "false" | "False" | "FALSE" if scalar.plain => false,
            _ => {
                self.refuse(key, scalar, "must be `true` or `false`", None);
                false
            }
        }
    }

    /// One of some words.
    pub fn choice<T: Clone>(&mut self, key: &'static str, words: &[(&str, T)]) -> T {
        let Some((_, stand_in)) = words.first() else { unreachable!("a choice has words") };
        let Some(node) = self.present(key) else { return stand_in.clone() };
        let Some(scalar) = self.scalar(key, node) else { return stand_in.clone() };
        let text = if scalar.is_off() { "off" } else { &*scalar.text };
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return value.clone();
        }
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let expected = format!("must be {}", one_of(&known));
        let found = format!("{expected}, not `{text}`");
        let help = nearest(text, known.iter().copied()).map(|word| format!("did you mean `{word}`?"));
        if scalar.expansion.is_some() {
            self.refuse(key, scalar, &expected, None);
        } else {
            self.problem(key, found, help);
        }
        stand_in.clone()
    }

    /// A scalar, as text, parsed by `parse`, whose error is the problem's message. Numbers and booleans arrive as written.
    pub fn parsed<T>(&mut self, key: &'static str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        self.asked.push(key);
        let node = self.node.get(key)?;
        let scalar = self.scalar(key, node)?;
        match parse(&scalar.text) {
            Ok(value) => Some(value),
            Err(message) => {
                self.refuse(key, scalar, "is not a value that can be used here", Some(message));
                None
            }
        }
    }

    /// A list of scalars, each parsed by `parse`; items that fail are noted, each at its own place, and left out.
    /// An absent key is an empty list.
    pub fn list<T>(&mut self, key: &'static str, mut parse: impl FnMut(&str) -> Result<T, String>) -> Vec<T> {
        self.placed_list(key, |text, _| parse(text)).into_iter().map(|(value, _)| value).collect()
    }

    /// As [`Reader::list`], with the node of each item.
    pub fn placed_list<T>(
        &mut self,
        key: &'static str,
        mut parse: impl FnMut(&str, &Node) -> Result<T, String>,
    ) -> Vec<(T, &'t Node)> {
        self.asked.push(key);
        let Some(node) = self.node.get(key) else { return Vec::new() };
        let items = match &node.value {
            Value::List(items) => items,
            Value::Scalar(scalar) => {
                if !scalar.is_missing() {
                    let help = format!("write `{key}: [{}]`", scalar.as_written());
                    self.problem(key, "must be a list".to_owned(), Some(help));
                }
                return Vec::new();
            }
            Value::Map(_) => {
                self.problem(key, "must be a list".to_owned(), Some(format!("write `{key}: [first, second]`")));
                return Vec::new();
            }
        };
        let mut values = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let path = format!("{}[{index}]", self.path_of(key));
            let Some(scalar) = item.scalar().filter(|scalar| !scalar.is_null()) else {
                self.note(written(item), path, "must be a single value".to_owned(), None);
                continue;
            };
            if scalar.is_missing() {
                continue;
            }
            match parse(&scalar.text, item) {
                Ok(value) => values.push((value, &**item)),
                Err(message) => {
                    let (message, help) = hide(scalar, "is not a value that can be used here", message);
                    self.note(written(item), path, message, help);
                }
            }
        }
        values
    }

    /// A block of keys, read and finished; `None` where it is absent, `off` or `false`.
    pub fn block<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Reader<'_>) -> T) -> Option<T> {
        self.asked.push(key);
        let node = self.node.get(key)?;
        match &node.value {
            Value::Map(_) => {
                let mut inner = self.inner(node, self.path_of(key));
                let value = read(&mut inner);
                inner.finish();
                Some(value)
            }
            Value::Scalar(scalar) if scalar.is_off() || scalar.is_missing() => None,
            Value::Scalar(_) | Value::List(_) => {
                let help = format!("write its keys below `{key}:`, or `{key}: off`");
                self.problem(key, "must be a block of keys or `off`".to_owned(), Some(help));
                None
            }
        }
    }

    /// As [`Reader::block`], of what other mappings share: where it was read before without a problem it is not read again.
    /// `T` must say all that was read, and stand for one way of reading.
    pub fn shared_block<T: Clone + 'static>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Reader<'_>) -> T,
    ) -> Option<T> {
        let shared = self.node.get(key).filter(|node| Arc::strong_count(node) > 1);
        let (Some(known), Some(node)) = (self.known, shared) else { return self.block(key, read) };
        if let Some(value) = known.get(node) {
            self.asked.push(key);
            return value;
        }
        let count = |problems: &RefCell<Problems>| (problems.borrow().errors.len(), problems.borrow().warnings.len());
        let before = count(self.problems);
        let value = self.block(key, read);
        if count(self.problems) == before {
            known.keep(node, &value);
        }
        value
    }

    /// As [`Reader::block`], where `off` makes no sense.
    pub fn section<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Reader<'_>) -> T) -> Option<T> {
        if self.node.get(key).is_some_and(|node| node.is_off()) {
            self.asked.push(key);
            self.problem(
                key,
                "can't be switched off".to_owned(),
                Some("leave it out to get the built-in values".into()),
            );
            return None;
        }
        self.block(key, read)
    }

    /// Keys that a later version will know.
    pub fn reserved(&mut self, keys: &[&'static str]) {
        for key in keys {
            self.reserved.push(key);
            if let Some(entry) = self.node.entry(key) {
                let path = self.path_of(key);
                let help = Some("take it out for now".to_owned());
                self.note(Some(entry.place.clone()), path, "is reserved for a later version".to_owned(), help);
            }
        }
    }

    /// Notes a problem at the place of `key` (or of the whole block where it is absent).
    pub fn problem(&mut self, key: &str, message: String, help: Option<String>) {
        let place = self.place_of(key);
        self.note(place, self.path_of(key), message, help);
    }

    /// Notes a danger at the place of `key` (or of the whole block where it is absent).
    pub fn warning(&mut self, key: &str, message: String, help: Option<String>) {
        let problem = Problem { place: self.place_of(key), path: self.path_of(key), message, help };
        self.problems.borrow_mut().warnings.push(problem);
    }

    /// Notes a problem at a place of its own. `path` is relative to the block.
    pub fn problem_at(&mut self, place: Option<Place>, path: &str, message: String, help: Option<String>) {
        self.note(place.or_else(|| self.place.clone()), self.path_of(path), message, help);
    }

    /// Notes a danger at a place of its own. `path` is relative to the block.
    pub fn warning_at(&mut self, place: Option<Place>, path: &str, message: String, help: Option<String>) {
        let place = place.or_else(|| self.place.clone());
        let problem = Problem { place, path: self.path_of(path), message, help };
        self.problems.borrow_mut().warnings.push(problem);
    }

    /// Reads a mapping of a list; `None` with a problem where it is something else. Whoever reads it finishes it.
    pub fn item<'i>(&self, key: &str, index: usize, node: &'i Node) -> Option<Reader<'i>>
    where
        't: 'i,
    {
        let path = format!("{}[{index}]", self.path_of(key));
        if !node.is_map() {
            self.note(written(node), path, "must be a block of keys".to_owned(), None);
            return None;
        }
        Some(self.inner(node, path))
    }

    /// A mapping in this one. It stands where this one does, if it has no place of its own.
    fn inner<'i>(&self, node: &'i Node, path: String) -> Reader<'i>
    where
        't: 'i,
    {
        let inner = Reader::new(node, path, self.problems);
        Reader { place: inner.place.or_else(|| self.place.clone()), known: self.known, ..inner }
    }

    /// Where a key's value stands in the file; the block's place where the file doesn't write it.
    pub fn place_of(&self, key: &str) -> Option<Place> {
        self.node.get(key).and_then(|node| written(node)).or_else(|| self.place.clone())
    }

    /// Notes the keys that nobody asked for.
    pub fn finish(self) {
        for entry in self.node.entries() {
            if self.asked.iter().chain(&self.reserved).any(|asked| *asked == &*entry.key) {
                continue;
            }
            let mut known: Vec<&str> = self.asked.clone();
            known.sort_unstable();
            known.dedup();
            let help = match nearest(&entry.key, known.iter().copied()) {
                Some(word) => format!("did you mean `{word}`?"),
                None => format!("known here: {}", known.join(", ")),
            };
            self.note(Some(entry.place.clone()), self.path_of(&entry.key), "is not a setting".to_owned(), Some(help));
        }
    }

    fn any_duration(&mut self, key: &'static str) -> Option<Duration> {
        let node = self.present(key)?;
        let scalar = self.scalar(key, node)?;
        match units::parse_duration(&scalar.text) {
            Ok(duration) => Some(duration),
            Err(message) => {
                self.refuse(key, scalar, "must be a duration, such as 250ms, 2s or 1m30s", Some(message));
                None
            }
        }
    }

    fn whole(&mut self, key: &'static str, meaning_of_less: Option<&str>) -> Option<NonZeroU32> {
        let node = self.node.get(key)?;
        let scalar = self.scalar(key, node)?;
        let leading_zero = scalar.text.len() > 1 && scalar.text.starts_with('0');
        let digits = scalar.plain && !scalar.text.is_empty() && scalar.text.bytes().all(|b| b.is_ascii_digit());
        match scalar.text.parse::<u64>() {
            Ok(0) if digits => {
                let meaning = meaning_of_less.map(|meaning| format!(" ({meaning})")).unwrap_or_default();
                self.problem(key, format!("must be at least 1{meaning}"), None);
                None
            }
            // Some YAML reads 010 as 8, some as 10.
            Ok(_) if digits && leading_zero => {
                self.refuse(key, scalar, "must be a whole number without a leading 0", None);
                None
            }
            Ok(number) if digits => match u32::try_from(number).ok().and_then(NonZeroU32::new) {
                Some(number) => Some(number),
                None => {
                    self.problem(key, format!("must be at most {}", u32::MAX), None);
                    None
                }
            },
            Ok(_) if !scalar.plain && scalar.expansion.is_none() => {
                let help = format!("write {} without quotes", scalar.text);
                self.problem(key, "must be a whole number, not text".to_owned(), Some(help));
                None
            }
            Ok(_) | Err(_) => {
                let expected = match meaning_of_less {
                    Some(meaning) => format!("must be a whole number of at least 1 ({meaning})"),
                    None => "must be a whole number of at least 1".to_owned(),
                };
                self.refuse(key, scalar, &expected, None);
                None
            }
        }
    }

    /// The value of a key that every merged block has, since it has a built-in value.
    fn present(&mut self, key: &'static str) -> Option<&'t Node> {
        self.asked.push(key);
        let node = self.node.get(key);
        if node.is_none() {
            self.problem(key, "is missing".to_owned(), None);
        }
        node.map(|node| &**node)
    }

    /// The scalar of a node; `None` with a problem where it is something else, without one where it is a stand-in.
    fn scalar(&mut self, key: &str, node: &'t Node) -> Option<&'t Scalar> {
        match node.scalar() {
            Some(scalar) if scalar.is_missing() => None,
            Some(scalar) => Some(scalar),
            None => {
                self.problem(key, "must be a single value".to_owned(), None);
                None
            }
        }
    }

    fn refuse(&mut self, key: &str, scalar: &Scalar, expected: &str, message: Option<String>) {
        let (message, help) = hide(scalar, expected, message.unwrap_or_else(|| expected.to_owned()));
        self.problem(key, message, help);
    }

    fn path_of(&self, key: &str) -> String {
        match (self.path.as_str(), key) {
            ("", key) => key.to_owned(),
            (path, "") => path.to_owned(),
            (path, key) => format!("{path}.{key}"),
        }
    }

    fn note(&self, place: Option<Place>, path: String, message: String, help: Option<String>) {
        self.problems.borrow_mut().errors.push(Problem { place, path, message, help });
    }
}

/// The place of what the file writes; built-in values have none there.
pub fn written(node: &Node) -> Option<Place> {
    (node.layer != Layer::BuiltIn).then(|| node.place.clone())
}

/// The known word that was probably meant: a few letters off, or cut short or drawn out.
pub fn nearest<'w>(word: &str, known: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    let plain = |text: &str| text.to_ascii_lowercase().replace(['_', ' '], "-");
    let word = plain(word);
    let distance = |candidate: &str| {
        let candidate = plain(candidate);
        let shorter = word.len().min(candidate.len());
        let extended = shorter >= 3 && (word.starts_with(&candidate) || candidate.starts_with(&word));
        let distance = strsim::damerau_levenshtein(&word, &candidate);
        let near = distance <= 1.max(candidate.len() / 3) && distance < candidate.len();
        (near || extended).then_some(distance)
    };
    known
        .filter_map(|candidate| Some((distance(candidate)?, candidate)))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `a`, `b` or `c`
pub fn one_of(words: &[&str]) -> String {
    match words.split_last() {
        None => String::new(),
        Some((last, [])) => format!("`{last}`"),
        Some((last, rest)) => {
            let rest: Vec<String> = rest.iter().map(|word| format!("`{word}`")).collect();
            format!("{} or `{last}`", rest.join(", "))
        }
    }
}

/// A message about a value, without the value where it came out of the environment or a file.
fn hide(scalar: &Scalar, expected: &str, message: String) -> (String, Option<String>) {
    match &scalar.expansion {
        None => (message, None),
        Some(expansion) => (
            expected.to_owned(),
            Some(format!("the value of `{}` is something else (it is not shown)", expansion.written)),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::document::tree::Layer;

    /// Reads a text as one block.
    fn read_text<T>(text: &str, read: impl FnOnce(&mut Reader<'_>) -> T) -> (T, Problems) {
        let mut problems = Problems::default();
        let file = Arc::new(PathBuf::from("text"));
        let place = Place { file: file.clone(), line: 1, column: 1 };
        let node = Node::parse(text, &file, Layer::File, &mut problems)
            .unwrap_or_else(|| Arc::new(Node::empty_map(place, Layer::File)));
        let problems = RefCell::new(problems);
        let mut reader = Reader::new(&node, "", &problems);
        let value = read(&mut reader);
        reader.finish();
        (value, problems.into_inner())
    }

    fn messages(problems: &Problems) -> Vec<String> {
        problems.errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_mistake_of_a_block_is_noted_at_its_place() {
        let yaml = "max: 0\nwait: 10\nshare: 2\nflag: yes\nword: jsno\nmaxx: 1\nlist: [1, x]\n";
        let ((), problems) = read_text(yaml, |reader| {
            reader.count("max", "1 switches it off");
            reader.duration("wait");
            reader.ratio("share");
            reader.boolean("flag");
            reader.choice("word", &[("json", 1), ("text", 2)]);
            reader.list("list", |text| text.parse::<u32>().map_err(|_| format!("`{text}` is not a number")));
        });
        let shown = messages(&problems).join("\n");
        for part in [
            "text:1:6: max: must be at least 1 (1 switches it off)",
            "text:2:7: wait: `10` needs a unit: write `10s` or `10ms`",
            "text:3:8: share: must be a number above 0",
            "text:4:7: flag: must be `true` or `false`",
            "text:5:7: word: must be `json` or `text`, not `jsno` (did you mean `json`?)",
            "text:6:1: maxx: is not a setting (did you mean `max`?)",
            "text:7:11: list[1]: `x` is not a number",
        ] {
            assert!(shown.contains(part), "{part}\nin\n{shown}");
        }
        assert_eq!(problems.errors.len(), 7);
    }

    #[test]
    fn off_switches_off_blocks_and_clocks_and_null_is_no_key() {
        let (found, problems) = read_text("a: off\nb: false\nc: {x: 1s}\nd:\ne: off\n", |reader| {
            let clock = |reader: &mut Reader<'_>| reader.duration("x");
            assert!(!reader.has("d") && reader.has("a"));
            let blocks = [reader.block("a", clock), reader.block("b", clock), reader.block("c", clock)];
            (blocks, reader.block("d", clock), reader.clock("e"))
        });
        assert_eq!(problems.errors, []);
        assert_eq!(found, ([None, None, Some(Duration::from_secs(1))], None, None));
    }

    #[test]
    fn a_quoted_number_is_text() {
        let (count, problems) = read_text("n: \"3\"", |reader| reader.optional_count("n"));
        assert_eq!(count, None);
        assert_eq!(problems.errors[0].help.as_deref(), Some("write 3 without quotes"));
    }

    #[test]
    fn numbers_that_are_too_large_negative_or_broken_are_refused() {
        for bad in ["4294967296", "-1", "1.5", "1e3", "99999999999999999999", "ten"] {
            let (_, problems) = read_text(&format!("n: {bad}"), |reader| reader.optional_count("n"));
            assert_eq!(problems.errors.len(), 1, "{bad}");
        }
        for bad in ["nan", ".nan", "inf", "-0.1", "0", "1.0001", "0.0000001", "x"] {
            let (_, problems) = read_text(&format!("n: {bad}"), |reader| reader.ratio("n"));
            assert_eq!(problems.errors.len(), 1, "{bad}");
        }
    }

    #[test]
    fn values_out_of_the_environment_are_not_shown() {
        use crate::document::expand::{Sources, expand};
        let mut problems = Problems::default();
        let yaml = "a: ${S}\nb: ${S}\nc: ${S}\nd: [\"${S}\"]\ne: ${S}\nf: ${S}\n";
        let mut root = Node::parse(yaml, &Arc::new("f".into()), Layer::File, &mut problems).unwrap();
        let variable = |_: &str| Some("hunter2".to_owned());
        let sources = Sources { variable: &variable, directory: std::path::Path::new("/"), forgiving: false };
        expand(&mut root, &sources, &mut Vec::new(), &mut problems);
        let problems = RefCell::new(problems);
        let mut reader = Reader::new(&root, "", &problems);
        reader.duration("a");
        reader.size("b");
        reader.choice("c", &[("x", 1)]);
        reader.list("d", |text| Err::<(), _>(format!("{text} is bad")));
        reader.parsed("e", |text| Err::<(), _>(format!("{text} is bad")));
        reader.boolean("f");
        reader.finish();
        let problems = problems.into_inner();
        assert_eq!(problems.errors.len(), 6);
        assert!(!format!("{problems:?}").contains("hunter2"), "{problems:?}");
    }

    #[test]
    fn near_misses_are_recognised_and_far_ones_are_not() {
        let known = ["max_attempts", "on", "methods", "backoff"];
        assert_eq!(nearest("max_attemps", known.into_iter()), Some("max_attempts"));
        assert_eq!(nearest("max-attempts", known.into_iter()), Some("max_attempts"));
        assert_eq!(nearest("back_off", known.into_iter()), Some("backoff"));
        assert_eq!(nearest("warning", ["error", "warn"].into_iter()), Some("warn"));
        assert_eq!(nearest("timeout", known.into_iter()), None);
    }
}
