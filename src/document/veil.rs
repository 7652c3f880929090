//! Passwords that a file has where no secret belongs: what is shown of such a line, on terminals and in the logs of CI, has
//! stars in their place, as many as there were characters.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::{Captures, Regex};

/// `user:password` before the `@` of a URL or an authority.
static USER: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r#"([a-zA-Z][a-zA-Z0-9+.-]*://)?([^\s"'`\[\]{},]+)@"#).expect("it is a constant"));

/// The value of a key that says what it is. A reference (`${…}`) tells nothing.
static NAMED: LazyLock<Regex> = LazyLock::new(|| {
    let key = r#"(?i:token|secret|passw(?:or)?d)["']?[ \t]*:[ \t]*\[?[ \t]*"#;
    Regex::new(&format!(r#"({key})("[^"]*"?|'[^']*'?|[^\s"',{{}}\[\]$][^\s,}}\]]*)"#)).expect("it is a constant")
});

/// A sentence without user information.
pub(super) fn sentence(text: &str) -> Cow<'_, str> {
    if !text.contains('@') {
        return Cow::Borrowed(text);
    }
    USER.replace_all(text, |found: &Captures<'_>| {
        let scheme = found.get(1).map_or("", |scheme| scheme.as_str());
        format!("{scheme}{}@", stars(&found[2]))
    })
}

/// A line of the file without user information and without the values of keys that are named as secrets. Every character
/// keeps its column.
pub(super) fn line(text: &str) -> Cow<'_, str> {
    let hide = |found: &Captures<'_>| {
        let value = &found[2];
        // Quotes stay, and a reference within them.
        let quote = |c: char| matches!(c, '"' | '\'');
        let inner = value.trim_matches(quote);
        if inner.starts_with("${") {
            return found[0].to_owned();
        }
        let shown: String = value.chars().map(|c| if quote(c) { c } else { '*' }).collect();
        format!("{}{shown}", &found[1])
    };
    match sentence(text) {
        Cow::Borrowed(text) => NAMED.replace_all(text, hide),
        Cow::Owned(text) => Cow::Owned(NAMED.replace_all(&text, hide).into_owned()),
    }
}

fn stars(text: &str) -> String {
    text.chars().map(|_| '*').collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_information_is_stars() {
        for (text, shown) in [
            ("to: [https://user:hunter2@x.com]", "to: [https://************@x.com]"),
            ("hosts: [u:p@h, 'b']", "hosts: [***@h, 'b']"),
            ("to: ['http://u:pa/ss@wo@x']", "to: ['http://**********@x']"),
            ("`u:p@h` is not a host", "`***@h` is not a host"),
            ("hosts: [a.com]", "hosts: [a.com]"),
        ] {
            assert_eq!(sentence(text), shown);
        }
    }

    #[test]
    fn the_value_of_a_secret_key_is_stars_and_keeps_its_columns() {
        for (text, shown) in [
            ("admin_token: hunter2 # mine", "admin_token: ******* # mine"),
            ("  {admin: x, admin_token: \"hun ter\", b: 1}", "  {admin: x, admin_token: \"*******\", b: 1}"),
            ("admin_token: \"never closed", "admin_token: \"************"),
            ("'admin_token' : 'h\u{e9}'", "'admin_token' : '**'"),
            ("admin_token: ${file:/t}", "admin_token: ${file:/t}"),
            ("admin_token: '${T}'", "admin_token: '${T}'"),
            ("client_secret: x:y{z", "client_secret: *****"),
            ("admin_token: [hunter2]", "admin_token: [*******]"),
            ("rate_limit: {requests: 3}", "rate_limit: {requests: 3}"),
        ] {
            assert_eq!(line(text), shown);
            assert_eq!(text.chars().count(), shown.chars().count());
        }
    }
}
