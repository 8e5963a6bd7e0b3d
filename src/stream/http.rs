//! The request that opens a stream, and what all others are answered: what a small web server without pages says.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{
    CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN, SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode, Version};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::proto::wire::envelope::RecipientKey;
use crate::proto::wire::stream::is_ticket;

const PLAIN_TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
/// Letters of a key (RFC 6455 §4.1: 16 bytes in base64).
const KEY_LETTERS: usize = 24;

/// What a request is answered; with [`StatusCode::SWITCHING_PROTOCOLS`] it opens a stream.
pub(super) fn judge(request: &Parts, own_key: &RecipientKey, unix_ms: u64) -> Response<Full<Bytes>> {
    let ticket = request.uri.path().strip_prefix('/').unwrap_or_default();
    if !is_ticket(own_key, unix_ms, ticket.as_bytes()) {
        return refusal(StatusCode::NOT_FOUND);
    }
    if is_foreign(&request.headers) {
        return refusal(StatusCode::FORBIDDEN);
    }
    let Some(accept) = accept(request) else { return refusal(StatusCode::BAD_REQUEST) };
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    response
}

/// What is said when there are too many streams.
pub(super) fn busy() -> Response<Full<Bytes>> {
    refusal(StatusCode::SERVICE_UNAVAILABLE)
}

fn refusal(status: StatusCode) -> Response<Full<Bytes>> {
    let text =
        format!("{} {}\n", status.as_u16(), status.canonical_reason().unwrap_or_default().to_lowercase());
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, PLAIN_TEXT);
    response
}

/// The answer to a WebSocket handshake (RFC 6455 §4.2.1); `None` when it is none.
fn accept(request: &Parts) -> Option<HeaderValue> {
    let headers = &request.headers;
    let is_get = request.method == Method::GET && request.version == Version::HTTP_11;
    let asks = names(headers, &CONNECTION, "upgrade") && names(headers, &UPGRADE, "websocket");
    let version = headers.get(SEC_WEBSOCKET_VERSION).is_some_and(|version| version == "13");
    let key = headers.get(SEC_WEBSOCKET_KEY).filter(|key| key.len() == KEY_LETTERS)?;
    (is_get && asks && version).then(|| derive_accept_key(key.as_bytes()).parse().ok()).flatten()
}

/// True when one of the words in a header is this one.
fn names(headers: &HeaderMap, header: &HeaderName, word: &str) -> bool {
    let values = headers.get_all(header).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|given| given.trim().eq_ignore_ascii_case(word))
}

/// A browser says whose page asks; a page of somebody else is not to talk to us.
fn is_foreign(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(ORIGIN) else { return false };
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
    origin.is_none() || origin != host
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;
    use crate::proto::identity::Identity;
    use crate::proto::wire::envelope::NetworkSecret;
    use crate::proto::wire::stream::ticket;

    const NOW_MS: u64 = 1_800_000_000_000;

    fn key() -> RecipientKey {
        RecipientKey::new(&Identity::from_seed([5; 32]).node_id(), &NetworkSecret::default())
    }

    /// What is answered to a request that is right but for what `change` does to it.
    fn check(expected: u16, change: impl FnOnce(&mut Request<()>)) {
        let builder = Request::builder().uri(format!("/{}", ticket(&key(), NOW_MS, [1; 6])));
        let builder = builder.header("Host", "203.0.113.7:443").header("Connection", "keep-alive, Upgrade");
        let builder = builder.header("Upgrade", "websocket").header("Sec-WebSocket-Version", "13");
        let mut request = builder.header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==").body(()).unwrap();
        change(&mut request);
        let (parts, ()) = request.into_parts();
        let response = judge(&parts, &key(), NOW_MS);
        assert_eq!(response.status().as_u16(), expected, "{parts:?}");
        if expected == 101 {
            // RFC 6455 §1.3.
            assert_eq!(response.headers()[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        }
    }

    fn set(name: &'static str, value: &'static str) -> impl FnOnce(&mut Request<()>) {
        move |request| drop(request.headers_mut().insert(name, HeaderValue::from_static(value)))
    }

    #[test]
    fn a_handshake_with_a_ticket_opens_a_stream() {
        check(101, |_| {});
        check(101, set("upgrade", "h2c, WebSocket"));
        check(101, set("origin", "https://203.0.113.7:443"));
    }

    #[test]
    fn without_a_ticket_there_is_no_page_whatever_is_asked() {
        for path in ["/", "/metrics", "/AAAAAAAAAAAAAAAAAAAAAAAA", "/../etc/passwd", "/%00", "*"] {
            check(404, |request| *request.uri_mut() = path.parse().unwrap());
        }
        check(404, |request| {
            *request.uri_mut() = "/".parse().unwrap();
            *request.method_mut() = Method::POST;
        });
    }

    #[test]
    fn pages_of_others_and_what_is_no_handshake_are_refused() {
        for origin in ["https://example.org", "null", "https://203.0.113.7", "203.0.113.7:443"] {
            check(403, set("origin", origin));
        }
        check(400, |request| *request.method_mut() = Method::POST);
        check(400, |request| *request.version_mut() = Version::HTTP_10);
        for (name, value) in [
            ("connection", "close"),
            ("upgrade", "h2c"),
            ("sec-websocket-version", "8"),
            ("sec-websocket-key", "x"),
        ] {
            check(400, set(name, value));
        }
    }
}
