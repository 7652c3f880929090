//! The dashboard's page: one document with its style and script inside. It holds no data, so that it may be shown to
//! whoever can reach it; what it shows it fetches by `/api/events`.

use std::sync::LazyLock;

use aws_lc_rs::digest::{SHA256, digest};
use http::HeaderValue;

/// The whole page.
pub(super) static PAGE: &str = concat!(
    include_str!("dashboard/head.html"),
    "<style>",
    include_str!("dashboard/style.css"),
    "</style>\n",
    include_str!("dashboard/body.html"),
    "<script type=\"module\">",
    include_str!("dashboard/words.js"),
    include_str!("dashboard/charts.js"),
    include_str!("dashboard/upstreams.js"),
    include_str!("dashboard/events.js"),
    include_str!("dashboard/page.js"),
    "</script>\n</html>\n",
);

/// What the page may do: run its own script and style, draw its own icon, talk to where it came from. Nothing else.
pub(super) fn policy() -> HeaderValue {
    static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
        let text = format!(
            "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; img-src data:; connect-src 'self'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
             require-trusted-types-for 'script'; trusted-types 'none'",
            base64(digest(&SHA256, inside("<script type=\"module\">", "</script>").as_bytes()).as_ref()),
            base64(digest(&SHA256, inside("<style>", "</style>").as_bytes()).as_ref()),
        );
        HeaderValue::try_from(text).expect("base64 and the words around it are visible ASCII")
    });
    POLICY.clone()
}

/// What the page has between these two, of which it has one each.
fn inside(begin: &str, end: &str) -> &'static str {
    let rest = PAGE.split_once(begin).map_or("", |(_, rest)| rest);
    rest.split_once(end).map_or("", |(inside, _)| inside)
}

/// RFC 4648 section 4.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let of = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = of(0) << 16 | of(1) << 8 | of(2);
        for at in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * at)) as usize & 63];
            text.push(if at <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_standard() {
        for (plain, encoded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
        assert_eq!(base64(&[0xfb, 0xff]), "+/8=");
    }

    #[test]
    fn the_page_is_small_and_brings_all_it_needs() {
        assert!(PAGE.len() < 100 << 10, "{}", PAGE.len());
        for one in ["<script type=\"module\">", "<script", "</script", "<style>", "<style", "</style"] {
            assert_eq!(PAGE.matches(one).count(), 1, "{one}");
        }
        assert_eq!(inside("<style>", "</style>"), include_str!("dashboard/style.css"));
        for outside in
            ["src=", "@import", "url(", "https:", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write"]
        {
            assert!(!PAGE.contains(outside), "{outside}");
        }
        let html = concat!(include_str!("dashboard/head.html"), include_str!("dashboard/body.html"));
        let attributes = regex::Regex::new(r#"\s(on\w+|style)="#).unwrap();
        assert!(!attributes.is_match(html));
    }
}
