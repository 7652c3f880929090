//! The upstream, and the file that leads there.

use std::path::Path;

use super::known::secret;
use crate::support::Origin;

/// Fails in every way, and says secrets in each.
pub(super) async fn upstream() -> Origin {
    Origin::scripted(|mut conn| async move {
        while let Some(seen) = conn.request().await {
            let what = seen.line().split(['/', ' ', '?']).nth(2).unwrap_or("").to_owned();
            let hidden =
                format!("Set-Cookie: session={}\r\nX-Secret: {}\r\n", secret("set-cookie"), secret("response-header"));
            let body = secret("response-body");
            let length = body.len();
            let answer = match &*what {
                "reset" => return,
                "hang" => return conn.closed().await,
                "bad-length" => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", secret("bad-length")),
                "bad-header" => format!("HTTP/1.1 200 OK\r\nX {}\r\n\r\n", secret("bad-header")),
                "bad-status" => format!("HTTP/1.1 {} OK\r\n\r\n", secret("bad-status")),
                "both" => format!("HTTP/1.1 200 OK\r\n{hidden}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"),
                "broken" => format!("HTTP/1.1 200 OK\r\n{hidden}Content-Length: 9999\r\n\r\n{body}"),
                "bad-chunk" => format!("HTTP/1.1 200 OK\r\n{hidden}Transfer-Encoding: chunked\r\n\r\n{body}\r\n"),
                "upgrade" => {
                    format!("HTTP/1.1 101 Switching\r\n{hidden}Connection: upgrade\r\nUpgrade: x\r\n\r\n{body}")
                }
                "500" => {
                    let body = secret("error-body");
                    let length = body.len();
                    format!(
                        "HTTP/1.1 500 {}\r\n{hidden}Content-Length: {length}\r\n\r\n{body}",
                        secret("reason-phrase")
                    )
                }
                _ => format!("HTTP/1.1 200 OK\r\n{hidden}Content-Length: {length}\r\n\r\n{body}"),
            };
            if conn.try_send(answer.as_bytes()).await.is_err()
                || matches!(&*what, "broken" | "bad-chunk" | "upgrade" | "bad-length")
            {
                return;
            }
        }
    })
    .await
}

pub(super) fn configuration(dir: &Path, origin: &Origin, log: &str, more: &str) -> String {
    let (to, dir) = (origin.address(), dir.display());
    format!(
        "version: 1\n\
         listeners: {{proxy: '127.0.0.1:0', admin: '127.0.0.1:0', probes: '127.0.0.1:0'}}\n\
         admin_token: '${{file:{dir}/token}}'\n\
         log: {log}\n\
         limits: {{max_header_bytes: 4KiB}}\n\
         intercept: {{generate: true, dir: {dir}/ca, key_dir: {dir}/key, unknown: refuse}}\n\
         defaults: {{circuit_breaker: off, retry: {{backoff: {{base: 0}}}}, timeouts: {{attempt: 300ms, idle: 1s}}}}\n\
         upstreams:\n  \
         up:\n    hosts: [up.test]\n    to: ['http://{to}']\n    routes:\n      - name: hook\n        match: {{path: '/hook/${{HOOK}}'}}\n  \
         limited:\n    hosts: [limited.test]\n    to: ['http://{to}']\n    \
         rate_limit: {{requests: 1, per: 1h, key: 'header:x-tenant'}}\n    retry: {{idempotency_headers: ['${{TENANT_HEADER}}']}}\n  \
         secure:\n    hosts: [secure.test]\n    to: ['https://{to}']\n    tls: {{client_cert: {dir}/client.crt, client_key: {dir}/client.key}}\n  \
         inside:\n    hosts: [inside.test]\n    to: ['http://{to}']\n    https: intercept\n  \
         closed:\n    hosts: [closed.test]\n    to: ['http://127.0.0.1:9']\n    https: deny\n{more}"
    )
}
