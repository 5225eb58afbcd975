//! The commands' way to the daemon: HTTP with deadlines, and its refusals turned into exit codes. Follows
//! no redirect and uses no proxy, so that the token goes nowhere else.

use std::time::Duration;

use schemas::record::Fault;
use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body, Error};

use super::exit::{Exit, Failure};
use super::{Global, load};
use crate::http::token::Token;

const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// For everything but the commands that take as long as they take.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// The longest answer that is read, in bytes.
const ANSWER_LIMIT_BYTES: u64 = 64 << 20;

/// How long an answer may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// The daemon knows the answer.
    Short,
    /// The daemon asks databases first; ends when the daemon or the user does.
    Unlimited,
}

/// Knows where the daemon is, and its token where there is need for one.
pub struct Client {
    agent: Agent,
    /// Without a `/` at the end.
    url: String,
    token: Option<Token>,
}

impl Client {
    /// For reading: no token is looked for.
    pub fn reader(global: &Global) -> Result<Client, Failure> {
        let url = match &global.url {
            Some(url) => checked(url)?,
            None => format!("http://{}", load::read(&global.config)?.http.listen),
        };
        Ok(Client::at(url))
    }

    /// For reading from an address that is known.
    pub fn at(url: String) -> Client {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .timeout_connect(Some(CONNECT_DEADLINE))
            .user_agent(concat!("carveout/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Client { agent, url, token: None }
    }

    /// For commands: the token is the option's, the environment's, or that of the configuration's file.
    pub fn commander(global: &Global) -> Result<Client, Failure> {
        let token = match &global.token {
            Some(text) => Token::new(text),
            None => Token::read(&load::read(&global.config)?.http.token_file),
        };
        let next = "set CARVEOUT_TOKEN, or run this where the daemon's token file can be read";
        let token = token.map_err(|error| Failure::new(Exit::Usage, "token", "token", format!("{error:#}"), next))?;
        Ok(Client { token: Some(token), ..Client::reader(global)? })
    }

    /// `GET path`.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let request = self.agent.get(format!("{}{path}", self.url));
        let response = request.config().timeout_global(Some(ANSWER_DEADLINE)).build().call();
        self.read(response)
    }

    /// `POST /v1/tenants/{tenant}/{command}`.
    pub fn command<T: DeserializeOwned>(
        &self,
        tenant: &str,
        command: &str,
        body: &Value,
        patience: Patience,
    ) -> Result<T, Failure> {
        let mut request = self.agent.post(format!("{}{}/{command}", self.url, tenant_path(tenant)));
        if let Some(token) = &self.token {
            request = request.header("Authorization", token.authorization());
        }
        let deadline = (patience == Patience::Short).then_some(ANSWER_DEADLINE);
        self.read(request.config().timeout_global(deadline).build().send_json(body))
    }

    fn read<T: DeserializeOwned>(&self, response: Result<Response<Body>, Error>) -> Result<T, Failure> {
        let mut response = response.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        let body = response.body_mut().with_config().limit(ANSWER_LIMIT_BYTES).read_to_vec();
        let body = body.map_err(|error| self.unreachable(&error))?;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|_| self.stranger(status));
        }
        let fault: Fault = serde_json::from_slice(&body).map_err(|_| self.stranger(status))?;
        // A database that cannot be reached, or a daemon that is going down.
        let exit = if status == StatusCode::SERVICE_UNAVAILABLE { Exit::Unreachable } else { Exit::No };
        Err(Failure { exit, fault })
    }

    fn unreachable(&self, error: &Error) -> Failure {
        let message = format!("cannot reach the daemon at {}: {error}", self.url);
        Failure::new(Exit::Unreachable, "unreachable", &self.url, message, "is `carveout run` running?")
    }

    fn stranger(&self, status: StatusCode) -> Failure {
        let message = format!("{} answered {status}, and not as this version of Carveout does", self.url);
        Failure::new(
            Exit::No,
            "stranger",
            &self.url,
            message,
            "check the address (http.listen, --url), and that daemon and command are the same version",
        )
    }
}

/// The path of a tenant: every byte that is not a letter or a digit is percent-encoded (RFC 3986), so
/// that no tenant can name another path.
pub fn tenant_path(tenant: &str) -> String {
    let encode = |byte: u8| match byte {
        b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    let encoded: String = tenant.bytes().map(encode).collect();
    format!("/v1/tenants/{encoded}")
}

/// An address as a person gives it: `http://` may be left out.
fn checked(url: &str) -> Result<String, Failure> {
    let wrong = |message: &str| {
        Failure::new(Exit::Usage, "url", "--url", message, "give an address such as http://127.0.0.1:8377")
    };
    let url = url.trim().trim_end_matches('/');
    match url.split_once("://") {
        _ if url.is_empty() || url.contains(['@', '?', '#', ' ']) => {
            Err(wrong("the daemon's address has parts that it cannot have"))
        }
        Some(("http", _)) => Ok(url.to_owned()),
        Some(_) => Err(wrong("the daemon speaks http:// only in this version")),
        None => Ok(format!("http://{url}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_names_no_other_path() {
        let cases = [
            ("550e8400-e29b", "550e8400-e29b"),
            ("..", "%2E%2E"),
            ("a/b?c#d", "a%2Fb%3Fc%23d"),
            ("ä", "%C3%A4"),
            ("%", "%25"),
        ];
        for (tenant, encoded) in cases {
            assert_eq!(tenant_path(tenant), format!("/v1/tenants/{encoded}"));
        }
    }

    #[test]
    fn addresses_are_checked() {
        assert_eq!(checked("127.0.0.1:8377/").unwrap(), "http://127.0.0.1:8377");
        assert_eq!(checked("http://[::1]:8377").unwrap(), "http://[::1]:8377");
        for url in ["", "https://x", "unix://x", "http://u:hunter2@x", "x?y"] {
            let failure = checked(url).unwrap_err();
            assert!(failure.exit == Exit::Usage && !failure.fault.message.contains("hunter2"), "{url}");
        }
    }
}
