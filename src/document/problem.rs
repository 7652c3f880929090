//! What is wrong with a document, and where; and how that is shown.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Level, Origin, Renderer, Snippet};
use serde_json::{Value, json};

use crate::document::veil;

/// Longer lines are not printed, only their place.
const LONGEST_LINE_SHOWN: usize = 400;

/// A place in a file. Lines and columns count from 1.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The file, or the name of what stands in for one ("built-in").
    pub file: Arc<PathBuf>,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

/// `file:line:column`
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

/// One thing that is wrong, or valid but dangerous.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where the value or key stands; `None` for what concerns the whole file.
    pub place: Option<Place>,
    /// The setting, as `upstreams.stripe.retry.max_attempts`.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub help: Option<String>,
}

/// One line, as logs show it: `file:line:column: setting: message (help)`.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.title())?;
        if let Some(help) = &self.help {
            write!(f, " ({})", veil::sentence(help))?;
        }
        Ok(())
    }
}

impl Problem {
    /// For programs: `file`, `line`, `column`, `setting`, `message` and `help`.
    pub fn json(&self) -> Value {
        let place = self.place.as_ref();
        json!({
            "file": place.map(|place| place.file.display().to_string()),
            "line": place.map(|place| place.line),
            "column": place.map(|place| place.column),
            "setting": self.path,
            "message": veil::sentence(&self.message),
            "help": self.help.as_deref().map(veil::sentence),
        })
    }

    fn title(&self) -> String {
        let message = veil::sentence(&self.message);
        if self.path.is_empty() { message.into_owned() } else { format!("{}: {message}", self.path) }
    }
}

/// All that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    /// Mistakes: the document can't be used.
    pub errors: Vec<Problem>,
    /// Dangers: it can.
    pub warnings: Vec<Problem>,
}

impl Problems {
    /// Notes a mistake.
    pub fn error(&mut self, place: Option<Place>, path: &str, message: impl Into<String>, help: Option<&str>) {
        self.errors.push(Problem {
            place,
            path: path.to_owned(),
            message: message.into(),
            help: help.map(str::to_owned),
        });
    }

    /// Notes a danger.
    pub fn warning(&mut self, place: Option<Place>, path: &str, message: impl Into<String>, help: Option<&str>) {
        self.warnings.push(Problem {
            place,
            path: path.to_owned(),
            message: message.into(),
            help: help.map(str::to_owned),
        });
    }

    /// Puts them in the order of the file, and drops what was noted twice: a setting that many upstreams inherit is read
    /// once for each of them.
    pub fn tidy(&mut self) {
        for list in [&mut self.errors, &mut self.warnings] {
            let mut seen = HashSet::new();
            list.retain(|problem| match &problem.place {
                Some(place) => seen.insert((place.line, place.column, problem.message.clone())),
                None => seen.insert((0, 0, problem.title())),
            });
            list.sort_by_key(|problem| problem.place.as_ref().map(|place| (place.line, place.column)));
        }
    }

    /// Every problem with its line of `text`, as plain text. `path` is the file that `text` was read from.
    pub fn render(&self, text: &str, path: &Path) -> String {
        self.paint(text, path, &Renderer::plain())
    }

    /// As [`Problems::render`], in colour.
    pub fn render_in_colour(&self, text: &str, path: &Path) -> String {
        self.paint(text, path, &Renderer::styled())
    }

    fn paint(&self, text: &str, path: &Path, renderer: &Renderer) -> String {
        let lines: Vec<&str> = text.lines().collect();
        let name = path.display().to_string();
        let mut out = String::new();
        let errors = self.errors.iter().map(|problem| (problem, Level::ERROR));
        let warnings = self.warnings.iter().map(|problem| (problem, Level::WARNING));
        for (problem, level) in errors.chain(warnings) {
            let title = printable(&problem.title()).into_owned();
            let mut group = match &problem.place {
                None => level.primary_title(&*title).element(Origin::path(name.as_str())),
                Some(place) => {
                    let line = lines.get(place.line.saturating_sub(1)).copied().unwrap_or("");
                    if line.is_empty() || line.len() > LONGEST_LINE_SHOWN {
                        let origin = Origin::path(name.as_str()).line(place.line).char_column(place.column);
                        level.primary_title(&*title).element(origin)
                    } else {
                        let line = veil::line(line);
                        let snippet = Snippet::source(printable(&line).into_owned())
                            .line_start(place.line)
                            .path(name.as_str())
                            .fold(false)
                            .annotation(AnnotationKind::Primary.span(token(&printable(&line), place.column)));
                        level.primary_title(&*title).element(snippet)
                    }
                }
            };
            if let Some(help) = &problem.help {
                group = group.element(Level::HELP.message(printable(&veil::sentence(help)).into_owned()));
            }
            out.push_str(&renderer.render(&[group]));
            out.push_str("\n\n");
        }
        out
    }
}

/// The text without control characters, one for one, since it goes to a terminal.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().any(char::is_control) {
        Cow::Owned(text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect())
    } else {
        Cow::Borrowed(text)
    }
}

/// The bytes of the word that starts at a column.
fn token(line: &str, column: usize) -> std::ops::Range<usize> {
    let start = line.char_indices().nth(column.saturating_sub(1)).map_or(line.len(), |(at, _)| at);
    let rest = &line[start..];
    let mut chars = rest.char_indices();
    let length = match chars.next() {
        None => 0,
        Some((_, quote @ ('"' | '\''))) => chars.find(|(_, c)| *c == quote).map_or(rest.len(), |(at, _)| at + 1),
        Some(_) => rest
            .find(|c: char| c.is_whitespace() || matches!(c, ',' | ']' | '}'))
            .map_or(rest.len(), |end| end.max(rest.chars().next().map_or(0, char::len_utf8))),
    };
    let end = start + length;
    // A key is shown without its colon.
    let end = if length > 1 && line[start..end].ends_with(':') { end - 1 } else { end };
    start..end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(line: usize, column: usize) -> Option<Place> {
        Some(Place { file: Arc::new("f.yaml".into()), line, column })
    }

    #[test]
    fn a_problem_is_shown_with_its_line_its_place_and_what_would_be_right() {
        let mut problems = Problems::default();
        problems.error(at(2, 4), "a.b", "is wrong", Some("write 1"));
        let shown = problems.render("a:\n  \u{e9}bc: 2\n", Path::new("f.yaml"));
        for part in ["a.b: is wrong", "f.yaml:2:4", "\u{e9}bc: 2", "write 1"] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        assert_eq!(problems.errors[0].to_string(), "f.yaml:2:4: a.b: is wrong (write 1)");
    }

    #[test]
    fn a_place_past_the_end_or_in_a_huge_line_is_shown_without_the_line() {
        let mut problems = Problems::default();
        problems.error(at(9, 9), "", "too deep", None);
        problems.error(at(1, 500), "", "too long", None);
        problems.error(None, "", "whole file", None);
        let shown = problems.render(&"x".repeat(1000), Path::new("f.yaml"));
        assert!(
            shown.contains("f.yaml:9:9") && shown.contains("f.yaml:1:500") && shown.contains("whole file"),
            "{shown}"
        );
        assert!(!shown.contains("xxx"));
    }

    #[test]
    fn what_is_noted_twice_is_shown_once_and_in_the_order_of_the_file() {
        let mut problems = Problems::default();
        problems.error(at(5, 1), "upstreams.a.x", "bad", None);
        problems.error(at(2, 1), "y", "worse", None);
        problems.error(at(5, 1), "upstreams.b.x", "bad", None);
        problems.tidy();
        let messages: Vec<_> = problems.errors.iter().map(|problem| problem.message.as_str()).collect();
        assert_eq!(messages, ["worse", "bad"]);
    }

    #[test]
    fn terminal_control_sequences_do_not_reach_the_terminal() {
        let mut problems = Problems::default();
        problems.error(at(1, 1), "\u{1b}[31m", "bad\u{7}", None);
        let shown = problems.render("\u{1b}[2J: x", Path::new("f.yaml"));
        assert!(!shown.contains('\u{1b}') && !shown.contains('\u{7}'));
    }
}
