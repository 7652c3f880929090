//! Messages that somebody, somewhere, read in two ways. The files beside this one are lists of them:
//!
//! ```text
//! # a remark
//! == the case's name
//! :: what must become of it, and flags
//! its bytes, a line of the file for a line or less; \r \n \t \0 \\ and \xHH stand for bytes, the file's own line ends for none
//! ```

/// One case.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    /// The words behind `::`.
    pub(crate) words: Vec<String>,
    pub(crate) bytes: Vec<u8>,
}

impl Case {
    pub(crate) fn has(&self, word: &str) -> bool {
        self.words.iter().any(|one| one == word)
    }
}

/// Requests of an app's over HTTP/1.
pub(crate) fn requests() -> Vec<Case> {
    read(include_str!("requests.txt"))
}

/// Answers of an upstream's over HTTP/1.
pub(crate) fn answers() -> Vec<Case> {
    read(include_str!("answers.txt"))
}

fn read(text: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with("# ")) {
        if let Some(name) = line.strip_prefix("== ") {
            cases.push(Case { name: name.to_owned(), words: Vec::new(), bytes: Vec::new() });
            continue;
        }
        let case = cases.last_mut().expect("a corpus begins with a name");
        match line.strip_prefix(":: ") {
            Some(words) => case.words = words.split(' ').map(str::to_owned).collect(),
            None => case.bytes.extend(unescape(line)),
        }
    }
    assert!(cases.iter().all(|case| !case.words.is_empty() && !case.bytes.is_empty()));
    let mut names: Vec<_> = cases.iter().map(|case| &case.name).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), cases.len(), "two cases of one name");
    cases
}

fn unescape(line: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = line.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match rest.next() {
            Some(b'r') => b'\r',
            Some(b'n') => b'\n',
            Some(b't') => b'\t',
            Some(b'0') => 0,
            Some(b'\\') => b'\\',
            Some(b'x') => {
                let digits = [rest.next().expect("two digits"), rest.next().expect("two digits")];
                u8::from_str_radix(std::str::from_utf8(&digits).expect("digits"), 16).expect("digits")
            }
            other => panic!("{line}: no such escape: {other:?}"),
        });
    }
    bytes
}
