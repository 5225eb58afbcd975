//! A PostgreSQL connection URL, as psql accepts it (PostgreSQL manual, "Connection URIs").
//!
//! The password must never be shown: it is behind [`Secret`], every text form leaves it out, and no
//! error repeats a part of the URL that it might stand in.

mod parse;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Deserializer};

pub use parse::BadUrl;

/// PostgreSQL's own port.
const DEFAULT_PORT: u16 = 5432;

/// What is written with `%` when a URL is printed; braces stay, so that patterns stay readable.
const ENCODED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'{').remove(b'}');
/// A host in brackets keeps its colons.
const ENCODED_HOST: &AsciiSet = &ENCODED.remove(b':');
/// A parameter's value keeps its slashes.
const ENCODED_VALUE: &AsciiSet = &ENCODED.remove(b'/');

/// A password. It cannot be printed or serialized by accident, only taken out by name.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    /// The text itself, for the connection and nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// libpq's `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// TLS only if the server refuses without.
    Allow,
    /// TLS if the server has it.
    Prefer,
    /// TLS, whoever the server is.
    Require,
    /// TLS, with a certificate from a known authority.
    VerifyCa,
    /// TLS, with a certificate from a known authority that names the host.
    VerifyFull,
}

impl SslMode {
    const ALL: [SslMode; 6] =
        [SslMode::Disable, SslMode::Allow, SslMode::Prefer, SslMode::Require, SslMode::VerifyCa, SslMode::VerifyFull];

    /// The mode as libpq spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            SslMode::Disable => "disable",
            SslMode::Allow => "allow",
            SslMode::Prefer => "prefer",
            SslMode::Require => "require",
            SslMode::VerifyCa => "verify-ca",
            SslMode::VerifyFull => "verify-full",
        }
    }
}

impl fmt::Display for SslMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where and as whom to connect. Everything is percent-decoded; what the URL does not say is `None`.
#[derive(Clone, PartialEq, Eq)]
pub struct PgUrl {
    /// A name, an address without brackets, or the directory of a unix socket (begins with `/`).
    pub host: Option<String>,
    /// 5432 where the URL does not say.
    pub port: u16,
    /// The role.
    pub user: Option<String>,
    /// The role's password.
    pub password: Option<Secret>,
    /// Holds the password where there is none here. Whoever connects reads it, each time: the file may change.
    pub password_file: Option<PathBuf>,
    /// The database; psql falls back to the role's name, see [`PgUrl::database`].
    pub dbname: Option<String>,
    /// As written; [`PgUrl::effective_sslmode`] is what counts.
    pub sslmode: Option<SslMode>,
    /// File of the authorities that the server's certificate may come from, or `system`.
    pub sslrootcert: Option<String>,
    /// File of the client's certificate.
    pub sslcert: Option<String>,
    /// File of the client's key.
    pub sslkey: Option<String>,
    /// Seconds; 0 waits for ever, as in libpq.
    pub connect_timeout: Option<u64>,
    /// The name shown in `pg_stat_activity`.
    pub application_name: Option<String>,
    /// Command-line options for the server process (`-c name=value`).
    pub options: Option<String>,
    /// `disable`, `prefer` or `require`.
    pub channel_binding: Option<String>,
    /// `any`, `read-write`, `read-only`, `primary`, `standby` or `prefer-standby`.
    pub target_session_attrs: Option<String>,
}

impl PgUrl {
    /// The same server and role, another database.
    pub fn with_dbname(&self, dbname: &str) -> PgUrl {
        PgUrl { dbname: Some(dbname.to_owned()), ..self.clone() }
    }

    /// The same; `file` holds the password if there is none and no other file is named.
    pub fn or_password_file(&self, file: Option<&PathBuf>) -> PgUrl {
        let file = self.password_file.as_ref().or(file.filter(|_| self.password.is_none()));
        PgUrl { password_file: file.cloned(), ..self.clone() }
    }

    /// The role to log in as.
    pub fn role(&self) -> &str {
        self.user.as_deref().unwrap_or("postgres")
    }

    /// The database that psql would connect to: the one named, else the one called like the role.
    pub fn database(&self) -> Option<&str> {
        self.dbname.as_deref().or(self.user.as_deref())
    }

    /// The mode to connect with. One that is not written is `disable` within this machine and
    /// `verify-full` beyond it: safer than libpq's `prefer`, which anyone in between can switch off.
    pub fn effective_sslmode(&self) -> SslMode {
        let local = match self.host.as_deref() {
            None => true,
            Some(host) if host.starts_with('/') || host.eq_ignore_ascii_case("localhost") => true,
            Some(host) => host.parse().is_ok_and(|address: IpAddr| address.is_loopback()),
        };
        self.sslmode.unwrap_or(if local { SslMode::Disable } else { SslMode::VerifyFull })
    }

    /// The URL without its password, for people and logs. It can be parsed again.
    pub fn redacted(&self) -> String {
        self.to_string()
    }

    /// Whether both name the same server, by the letter.
    pub fn same_server(&self, other: &PgUrl) -> bool {
        (&self.host, self.port) == (&other.host, other.port)
    }

    /// What follows the `?`, in libpq's names.
    fn parameters(&self) -> Vec<(&'static str, String)> {
        let socket = self.host.as_ref().filter(|host| host.starts_with('/'));
        let all = [
            ("host", socket.cloned()),
            ("port", socket.filter(|_| self.port != DEFAULT_PORT).map(|_| self.port.to_string())),
            ("sslmode", self.sslmode.map(|mode| mode.to_string())),
            ("sslrootcert", self.sslrootcert.clone()),
            ("sslcert", self.sslcert.clone()),
            ("sslkey", self.sslkey.clone()),
            ("connect_timeout", self.connect_timeout.map(|seconds| seconds.to_string())),
            ("application_name", self.application_name.clone()),
            ("options", self.options.clone()),
            ("channel_binding", self.channel_binding.clone()),
            ("target_session_attrs", self.target_session_attrs.clone()),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

/// A server on this machine, as libpq assumes it.
impl Default for PgUrl {
    fn default() -> Self {
        PgUrl {
            host: None,
            port: DEFAULT_PORT,
            user: None,
            password: None,
            password_file: None,
            dbname: None,
            sslmode: None,
            sslrootcert: None,
            sslcert: None,
            sslkey: None,
            connect_timeout: None,
            application_name: None,
            options: None,
            channel_binding: None,
            target_session_attrs: None,
        }
    }
}

/// Without the password.
impl fmt::Display for PgUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encode = |text| utf8_percent_encode(text, ENCODED);
        f.write_str("postgresql://")?;
        if let Some(user) = &self.user {
            write!(f, "{}@", encode(user))?;
        }
        let network = self.host.as_deref().filter(|host| !host.starts_with('/'));
        match network {
            Some(host) if host.contains(':') => write!(f, "[{}]", utf8_percent_encode(host, ENCODED_HOST))?,
            Some(host) => write!(f, "{}", encode(host))?,
            None => {}
        }
        if self.port != DEFAULT_PORT && (network.is_some() || self.host.is_none()) {
            write!(f, ":{}", self.port)?;
        }
        if let Some(dbname) = &self.dbname {
            write!(f, "/{}", encode(dbname))?;
        }
        for (index, (name, value)) in self.parameters().into_iter().enumerate() {
            let sign = if index == 0 { '?' } else { '&' };
            write!(f, "{sign}{name}={}", utf8_percent_encode(&value, ENCODED_VALUE))?;
        }
        Ok(())
    }
}

/// Without the password.
impl fmt::Debug for PgUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl<'de> Deserialize<'de> for PgUrl {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}
