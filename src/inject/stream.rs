//! A stream of documents, cut where a line says so. The text of each is kept as it stands, markers included.

use std::ops::Range;

/// Cuts a text into documents. Put together they are the text, byte for byte.
///
/// A `---` or `...` at the start of a line is a marker wherever it stands: YAML forbids it inside of scalars.
pub(crate) fn documents(text: &str) -> Vec<Range<usize>> {
    let mut cuts = Vec::new();
    let (mut at, mut start) = (0, 0);
    let mut cut = |start: &mut usize, end: usize| {
        if end > *start {
            cuts.push(*start..end);
            *start = end;
        }
    };
    for line in text.split_inclusive('\n') {
        if is_marker(line, "---") && !is_prologue(&text[start..at]) {
            cut(&mut start, at);
        }
        at += line.len();
        if is_marker(line, "...") {
            cut(&mut start, at);
        }
    }
    cut(&mut start, text.len());
    cuts
}

/// The number of the line in which a byte stands, from 1.
pub(crate) fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}

/// Whether a document begins with a marker of its own, so that it can follow another one.
fn starts_with_marker(text: &str) -> bool {
    let mut lines = text.split_inclusive('\n').skip_while(|line| is_skipped(line) || line.starts_with('%'));
    lines.next().is_some_and(|line| is_marker(line, "---"))
}

/// What must stand between two texts so that they are one stream of documents.
pub fn separate(before: &str, after: &str) -> &'static str {
    let after = after.strip_prefix('\u{feff}').unwrap_or(after);
    let crlf = before.contains("\r\n");
    match (before.is_empty() || before.ends_with('\n'), before.is_empty() || starts_with_marker(after)) {
        (true, true) => "",
        (true, false) if crlf => "---\r\n",
        (true, false) => "---\n",
        (false, true) if crlf => "\r\n",
        (false, true) => "\n",
        (false, false) if crlf => "\r\n---\r\n",
        (false, false) => "\n---\n",
    }
}

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// `%YAML` and `%TAG` belong to the marker that follows them.
fn is_prologue(text: &str) -> bool {
    text.lines().any(|line| line.starts_with('%')) && text.lines().all(|line| line.starts_with('%') || is_skipped(line))
}

fn is_skipped(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str) -> Vec<&str> {
        let documents: Vec<_> = documents(text).into_iter().map(|range| &text[range]).collect();
        assert_eq!(documents.concat(), text);
        documents
    }

    #[test]
    fn documents_are_cut_at_markers_and_keep_them() {
        assert_eq!(cut("a: 1\n---\nb: 2\n--- # c\nd: 3"), ["a: 1\n", "---\nb: 2\n", "--- # c\nd: 3"]);
        assert_eq!(cut("a: 1\r\n---\r\nb: |\r\n  ---\r\n"), ["a: 1\r\n", "---\r\nb: |\r\n  ---\r\n"]);
        assert_eq!(cut("a: 1\n...\n# then\n---\nb: 2\n...\n"), ["a: 1\n...\n", "# then\n", "---\nb: 2\n...\n"]);
        assert_eq!(cut("---no\n----\n"), ["---no\n----\n"]);
        assert_eq!(cut(""), Vec::<&str>::new());
    }

    #[test]
    fn directives_stay_with_their_document() {
        assert_eq!(cut("%YAML 1.2\n# x\n---\na: 1\n---\nb: 2\n"), ["%YAML 1.2\n# x\n---\na: 1\n", "---\nb: 2\n"]);
        assert!(starts_with_marker("# x\n%YAML 1.2\n---\na: 1\n"));
        assert!(!starts_with_marker("a: 1\n"));
    }
}
