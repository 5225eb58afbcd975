//! HTTP/1.1, as much as asking a daemon takes: one request, one connection, the whole answer.
//! Independent of the product's own HTTP code on purpose; never more than that (no TLS, no keep-alive).

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longest wait for an answer: a `cutover` answers only when it is through.
const ANSWER_DEADLINE: Duration = Duration::from_secs(120);
/// Longest answer that is read, in bytes.
const ANSWER_LIMIT_BYTES: u64 = 16 << 20;

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Body as text.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("read {} {:?} as JSON", self.status, self.body))
    }

    /// The answer itself if its status is 200 to 299; the error carries the body.
    pub fn success(self) -> Result<Answer> {
        ensure!((200..300).contains(&self.status), "HTTP {}: {}", self.status, self.body.trim());
        Ok(self)
    }
}

/// `GET path`.
pub async fn get(address: SocketAddr, path: &str) -> Result<Answer> {
    request(address, "GET", path, None, "").await
}

/// `POST path` with a JSON body and, where given, a bearer token.
pub async fn post(address: SocketAddr, path: &str, token: Option<&str>, body: &Value) -> Result<Answer> {
    request(address, "POST", path, token, &body.to_string()).await
}

async fn request(address: SocketAddr, method: &str, path: &str, token: Option<&str>, body: &str) -> Result<Answer> {
    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n"));
    let text = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{}\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        authorization.unwrap_or_default(),
        body.len(),
    );
    let talk = async {
        let mut stream = TcpStream::connect(address).await.context("connect")?;
        stream.write_all(text.as_bytes()).await.context("send the request")?;
        let mut answer = Vec::new();
        stream.take(ANSWER_LIMIT_BYTES).read_to_end(&mut answer).await.context("read the answer")?;
        parse(&answer)
    };
    let answer = timeout(ANSWER_DEADLINE, talk).await.context("no answer in time").and_then(|answer| answer);
    answer.with_context(|| format!("{method} http://{address}{path}"))
}

/// Takes an answer apart (RFC 9112): status line, headers, body, which may be chunked.
fn parse(bytes: &[u8]) -> Result<Answer> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").context("the answer has no header end")?;
    let (head, body) = (String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase(), &bytes[end + 4..]);
    let status = head.split(' ').nth(1).context("the answer has no status")?;
    let status = status.parse().with_context(|| format!("read the status {status:?}"))?;
    let header = |name: &str| {
        head.lines()
            .find_map(|line| line.split_once(':').filter(|(key, _)| *key == name).map(|(_, value)| value.trim()))
    };
    let body = match (header("transfer-encoding"), header("content-length")) {
        (Some("chunked"), _) => unchunk(body)?,
        (_, Some(length)) => {
            let length: usize = length.parse().context("read content-length")?;
            ensure!(body.len() == length, "the answer was cut: {} of {length} bytes", body.len());
            body.to_vec()
        }
        _ => body.to_vec(),
    };
    Ok(Answer { status, body: String::from_utf8(body).context("read the body as UTF-8")? })
}

/// Joins the chunks of a body (RFC 9112, section 7.1); one that ends early is an error.
fn unchunk(mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|two| two == b"\r\n").context("a chunk has no size")?;
        let size = String::from_utf8_lossy(&rest[..end]);
        let size = size.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).with_context(|| format!("read the chunk size {size:?}"))?;
        if size == 0 {
            return Ok(body);
        }
        let start = end + 2;
        body.extend_from_slice(rest.get(start..start + size).context("a chunk was cut")?);
        rest = rest.get(start + size + 2..).context("a chunk has no end")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_body_are_read() {
        let plain = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nh\r\n1;x=y\r\ni\r\n0\r\n\r\n";
        let expected = Answer { status: 200, body: "hi".to_owned() };
        assert_eq!(parse(plain).unwrap(), expected);
        assert_eq!(parse(chunked).unwrap(), expected);
    }

    #[test]
    fn a_cut_answer_is_an_error() {
        assert!(parse(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi").is_err());
        assert!(parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhi").is_err());
        assert!(parse(b"HTTP/1.1 200").is_err());
    }
}
