//! A strict reader of `Proxy-Status` (RFC 9209): a list of items with parameters (RFC 8941 section 4.2).

use super::strict::Answer;

/// What Outrigger adds to an answer reads as what it is meant to be.
///
/// # Errors
/// What is wrong with it.
pub fn check(answer: &Answer) -> Result<(), String> {
    for value in answer.message.all("proxy-status").into_iter().filter(|value| value.starts_with(b"outrigger")) {
        let text = std::str::from_utf8(value).map_err(|_| "Proxy-Status is no text")?;
        let keys = item(text).ok_or_else(|| format!("Proxy-Status is no item: {text:?}"))?;
        if !keys.iter().any(|key| key == "error" || key == "received-status") {
            return Err(format!("Proxy-Status says nothing: {text:?}"));
        }
    }
    let problem = answer.message.all("content-type").iter().any(|value| *value == b"application/problem+json");
    let ours = answer.message.all("proxy-status").iter().any(|value| value.starts_with(b"outrigger; error="));
    if problem && ours && !answer.message.body.is_empty() {
        let problem: serde_json::Value =
            serde_json::from_slice(&answer.message.body).map_err(|error| format!("a problem is no JSON: {error}"))?;
        if problem["status"].as_u64() != Some(u64::from(answer.status)) {
            return Err(format!("a problem has another status than its answer: {problem}"));
        }
    }
    Ok(())
}

/// A token and its parameters; their keys.
fn item(text: &str) -> Option<Vec<String>> {
    let mut rest = token(text)?;
    let mut keys = Vec::new();
    while !rest.is_empty() {
        rest = rest.strip_prefix(';')?.trim_start_matches(' ');
        let end = rest.find(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || "_-.*".contains(c)));
        let (key, after) = rest.split_at(end.unwrap_or(rest.len()));
        if !key.starts_with(|c: char| c.is_ascii_lowercase() || c == '*') || keys.iter().any(|known| known == key) {
            return None;
        }
        keys.push(key.to_owned());
        rest = match after.strip_prefix('=') {
            None => after,
            Some(value) if value.starts_with('"') => string(value)?,
            Some(value) if value.starts_with(|c: char| c.is_ascii_digit()) => {
                let end = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
                if end > 15 {
                    return None;
                }
                &value[end..]
            }
            Some(value) => token(value)?,
        };
    }
    Some(keys)
}

/// What stands behind a token.
fn token(text: &str) -> Option<&str> {
    let first = text.chars().next()?;
    if !first.is_ascii_alphabetic() && first != '*' {
        return None;
    }
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && !"!#$%&'*+-.^_`|~:/".contains(c));
    Some(&text[end.unwrap_or(text.len())..])
}

/// What stands behind a quoted string.
fn string(text: &str) -> Option<&str> {
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some(&text[at + 1..]),
            '\\' => {
                let (_, escaped) = chars.next()?;
                if !matches!(escaped, '"' | '\\') {
                    return None;
                }
            }
            ' '..='~' => {}
            _ => return None,
        }
    }
    None
}
