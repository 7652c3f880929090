//! Which of the fields that Outrigger itself reads a head has.
//!
//! Most heads have hardly any of them, and asking a map for each costs more than looking once at the few names that there are.

use http::HeaderMap;

/// A set of kinds of fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fields(u8);

impl Fields {
    /// `Content-Length`
    pub const CONTENT_LENGTH: Fields = Fields(1);
    /// `Transfer-Encoding`
    pub const TRANSFER_ENCODING: Fields = Fields(1 << 1);
    /// `Content-Type`
    pub const CONTENT_TYPE: Fields = Fields(1 << 2);
    /// `Expect`
    pub const EXPECT: Fields = Fields(1 << 3);
    /// `Upgrade`
    pub const UPGRADE: Fields = Fields(1 << 4);
    /// `traceparent`
    pub const TRACEPARENT: Fields = Fields(1 << 5);
    /// What SDKs announce their own retries by.
    pub const CLIENT_RETRY: Fields = Fields(1 << 6);
    /// What concerns one connection only (RFC 9110 section 7.6.1).
    pub const HOP_BY_HOP: Fields = Fields(1 << 7);

    /// Those of a head.
    pub fn of(headers: &HeaderMap) -> Fields {
        headers.keys().fold(Fields::default(), |found, name| found.and(Fields::named(name.as_str())))
    }

    /// What a field of this name is. Names are in lower case.
    pub fn named(name: &str) -> Fields {
        match name {
            "content-length" => Fields::CONTENT_LENGTH,
            "content-type" => Fields::CONTENT_TYPE,
            "expect" => Fields::EXPECT,
            "traceparent" => Fields::TRACEPARENT,
            "amz-sdk-request" | "x-stainless-retry-count" | "grpc-previous-rpc-attempts" => Fields::CLIENT_RETRY,
            "transfer-encoding" => Fields::TRANSFER_ENCODING.and(Fields::HOP_BY_HOP),
            "upgrade" => Fields::UPGRADE.and(Fields::HOP_BY_HOP),
            "connection"
            | "keep-alive"
            | "te"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "http2-settings" => Fields::HOP_BY_HOP,
            _ => Fields::default(),
        }
    }

    /// These and those.
    const fn and(self, others: Fields) -> Fields {
        Fields(self.0 | others.0)
    }

    /// Whether there is any of `kinds`.
    pub fn has(self, kinds: Fields) -> bool {
        self.0 & kinds.0 != 0
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn what_a_head_has_is_found_among_anything_else_and_nothing_else_is() {
        let one = |name: &'static str| {
            let mut headers = HeaderMap::new();
            for name in ["host", "x-other", name, "accept"] {
                headers.append(HeaderName::from_static(name), HeaderValue::from_static("1"));
            }
            Fields::of(&headers)
        };
        assert_eq!(one("x-expect"), Fields::default());
        assert_eq!(one("expect"), Fields::EXPECT);
        assert!(one("upgrade").has(Fields::UPGRADE) && one("upgrade").has(Fields::HOP_BY_HOP));
        assert!(one("transfer-encoding").has(Fields::TRANSFER_ENCODING));
        assert!(!one("connection").has(Fields::UPGRADE));
        assert_eq!(Fields::of(&HeaderMap::new()), Fields::default());
    }
}
