//! Reads a connection URL by libpq's rules (`conninfo_uri_parse_options` in fe-connect.c).
//!
//! Errors name what is wrong but never repeat text that could be a piece of a badly written password.

use std::str::FromStr;

use percent_encoding::percent_decode_str;

use super::{DEFAULT_PORT, PgUrl, Secret, SslMode};

/// The text is not a connection URL. No message shows any part of it but a parameter's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    /// It begins with something else.
    #[error("not a PostgreSQL URL (expected postgresql://user@host:port/database)")]
    Scheme,
    /// A broken `%`, a `%00`, or bytes that are no UTF-8.
    #[error(
        "the URL has a % without two hexadecimal digits after it, or one that makes no valid text (write % as %25)"
    )]
    Encoding,
    /// One of the signs that divide a URL stands where it divides wrongly.
    #[error("the URL has an unencoded @, ? or : in a wrong place (in a user name or password write %40, %3F and %3A)")]
    Sign,
    /// The port is no port.
    #[error("the URL's port is not a number from 1 to 65535 (in a password write / as %2F)")]
    Port,
    /// libpq would try them in turn; a source or target is one server.
    #[error("the URL names several hosts (one is needed)")]
    SeveralHosts,
    /// `[` without `]`.
    #[error("the URL's address in brackets does not end, or is empty")]
    Bracket,
    /// A parameter without `=`.
    #[error("the URL has a parameter without a value")]
    NoValue,
    /// A parameter that is not known, or not known to this program.
    #[error("the URL has an unknown parameter \"{0}\"")]
    UnknownParameter(String),
    /// A known parameter with a value it cannot have.
    #[error("the URL's parameter {name} must be: {expected}")]
    Parameter {
        /// The parameter.
        name: &'static str,
        /// What it may be.
        expected: String,
    },
}

const CHANNEL_BINDINGS: [&str; 3] = ["disable", "prefer", "require"];
const SESSION_ATTRS: [&str; 6] = ["any", "read-write", "read-only", "primary", "standby", "prefer-standby"];

impl FromStr for PgUrl {
    type Err = BadUrl;

    fn from_str(text: &str) -> Result<Self, BadUrl> {
        let rest = text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://"));
        let rest = rest.ok_or(BadUrl::Scheme)?;
        let mut url = PgUrl::default();
        let rest = match rest.find(['@', '/']).and_then(|at| rest.split_at_checked(at)) {
            Some((login, rest)) if rest.starts_with('@') => {
                read_login(&mut url, login)?;
                &rest[1..]
            }
            _ => rest,
        };
        let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
        let (server, path) = rest.split_once('/').unwrap_or((rest, ""));
        if server.contains('@') || path.contains('@') {
            return Err(BadUrl::Sign);
        }
        read_server(&mut url, server)?;
        url.dbname = decode(path)?;
        let query = query.unwrap_or("");
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            read_parameter(&mut url, parameter).map_err(|error| match error {
                // An @ here means that this may be the inside of a password with an unencoded `?`.
                BadUrl::UnknownParameter(_) if query.contains('@') => BadUrl::Sign,
                error => error,
            })?;
        }
        if url.host.as_ref().is_some_and(|host| host.contains(',')) {
            return Err(BadUrl::SeveralHosts);
        }
        Ok(url)
    }
}

/// `user[:password]`
fn read_login(url: &mut PgUrl, login: &str) -> Result<(), BadUrl> {
    let (user, password) = login.split_once(':').map_or((login, None), |(user, password)| (user, Some(password)));
    if user.contains('?') {
        return Err(BadUrl::Sign);
    }
    url.user = decode(user)?;
    url.password = decode(password.unwrap_or(""))?.map(Secret::new);
    Ok(())
}

/// `[host][:port]`, the host perhaps in brackets.
fn read_server(url: &mut PgUrl, server: &str) -> Result<(), BadUrl> {
    if server.contains(',') {
        return Err(BadUrl::SeveralHosts);
    }
    let (host, port) = match server.strip_prefix('[') {
        Some(inside) => {
            let (host, after) = inside.split_once(']').filter(|(host, _)| !host.is_empty()).ok_or(BadUrl::Bracket)?;
            (host, if after.is_empty() { None } else { Some(after.strip_prefix(':').ok_or(BadUrl::Bracket)?) })
        }
        None => server.split_once(':').map_or((server, None), |(host, port)| (host, Some(port))),
    };
    url.host = decode(host)?;
    if let Some(port) = port.filter(|port| !port.is_empty()) {
        url.port = read_port(port)?;
    }
    Ok(())
}

fn read_port(text: &str) -> Result<u16, BadUrl> {
    let digits = Some(text).filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    digits.and_then(|text| text.parse().ok()).filter(|port| *port > 0).ok_or(BadUrl::Port)
}

/// `name=value`; an empty value is as good as none. What stands here wins over the front of the URL.
fn read_parameter(url: &mut PgUrl, parameter: &str) -> Result<(), BadUrl> {
    let (name, value) = parameter.split_once('=').ok_or(BadUrl::NoValue)?;
    let value = decode(value)?;
    match name {
        "host" => url.host = value,
        "port" if value.as_ref().is_some_and(|port| port.contains(',')) => return Err(BadUrl::SeveralHosts),
        "port" => url.port = value.map_or(Ok(DEFAULT_PORT), |port| read_port(&port))?,
        "user" => url.user = value,
        "password" => url.password = value.map(Secret::new),
        "dbname" => url.dbname = value,
        "sslmode" => {
            let mode = one_of(value, "sslmode", &SslMode::ALL.map(SslMode::as_str))?;
            url.sslmode = SslMode::ALL.into_iter().find(|known| mode.as_deref() == Some(known.as_str()));
        }
        "sslrootcert" => url.sslrootcert = value,
        "sslcert" => url.sslcert = value,
        "sslkey" => url.sslkey = value,
        "connect_timeout" => {
            let bad = || BadUrl::Parameter { name: "connect_timeout", expected: "a number of seconds".to_owned() };
            url.connect_timeout = value.map(|seconds| seconds.parse().map_err(|_| bad())).transpose()?;
        }
        "application_name" => url.application_name = value,
        "options" => url.options = value,
        "channel_binding" => url.channel_binding = one_of(value, "channel_binding", &CHANNEL_BINDINGS)?,
        "target_session_attrs" => url.target_session_attrs = one_of(value, "target_session_attrs", &SESSION_ATTRS)?,
        _ => return Err(BadUrl::UnknownParameter(name.to_owned())),
    }
    Ok(())
}

fn one_of(value: Option<String>, name: &'static str, known: &[&str]) -> Result<Option<String>, BadUrl> {
    match value {
        Some(value) if !known.contains(&value.as_str()) => Err(BadUrl::Parameter { name, expected: known.join(", ") }),
        value => Ok(value),
    }
}

/// The text behind the percent signs; `None` when there is none.
fn decode(text: &str) -> Result<Option<String>, BadUrl> {
    for (at, _) in text.match_indices('%') {
        let digits = text.as_bytes().get(at + 1..at + 3);
        if !digits.is_some_and(|pair| pair.iter().all(u8::is_ascii_hexdigit) && pair != b"00") {
            return Err(BadUrl::Encoding);
        }
    }
    let text = percent_decode_str(text).decode_utf8().map_err(|_| BadUrl::Encoding)?;
    if text.contains('\0') {
        return Err(BadUrl::Encoding);
    }
    Ok(Some(text.into_owned()).filter(|text| !text.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> PgUrl {
        text.parse().unwrap()
    }

    fn refused(text: &str) -> BadUrl {
        text.parse::<PgUrl>().unwrap_err()
    }

    #[test]
    fn all_that_psql_accepts_is_understood() {
        let url = parse(
            "postgresql://carve%40out:p%2Fw%3F@shared.internal:6432/smart%20seller?sslmode=verify-full&connect_timeout=7",
        );
        assert_eq!(url.user.as_deref(), Some("carve@out"));
        assert_eq!(url.password.as_ref().map(Secret::expose), Some("p/w?"));
        assert_eq!((url.host.as_deref(), url.port), (Some("shared.internal"), 6432));
        assert_eq!((url.dbname.as_deref(), url.connect_timeout), (Some("smart seller"), Some(7)));
        assert_eq!(url.sslmode, Some(SslMode::VerifyFull));

        let socket = parse("postgres:///shop?host=/var/run/postgresql&port=5433&user=me&password=x&options=-c%20a%3Db");
        assert_eq!((socket.host.as_deref(), socket.port), (Some("/var/run/postgresql"), 5433));
        assert_eq!((socket.user.as_deref(), socket.options.as_deref()), (Some("me"), Some("-c a=b")));

        assert_eq!(parse("postgresql://[2001:db8::1]:1/x").host.as_deref(), Some("2001:db8::1"));
        assert_eq!(parse("postgresql://%2Ftmp/x").host.as_deref(), Some("/tmp"));
        assert_eq!(parse("postgresql://"), PgUrl::default());
        assert_eq!(parse("postgresql://me@/").database(), Some("me"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!(refused("mysql://h/x"), BadUrl::Scheme);
        assert_eq!(refused("postgresql://a,b/x"), BadUrl::SeveralHosts);
        assert_eq!(refused("postgresql:///x?host=a,b"), BadUrl::SeveralHosts);
        assert_eq!(refused("postgresql://a:1,2/x"), BadUrl::SeveralHosts);
        assert_eq!(refused("postgresql://a:0/x"), BadUrl::Port);
        assert_eq!(refused("postgresql://a:+1/x"), BadUrl::Port);
        assert_eq!(refused("postgresql://a:65536/x"), BadUrl::Port);
        assert_eq!(refused("postgresql://[::1/x"), BadUrl::Bracket);
        assert_eq!(refused("postgresql://a/%zz"), BadUrl::Encoding);
        assert_eq!(refused("postgresql://a/%00"), BadUrl::Encoding);
        assert_eq!(refused("postgresql://a/%ff"), BadUrl::Encoding);
        assert_eq!(refused("postgresql://a/x?sslmod="), BadUrl::UnknownParameter("sslmod".to_owned()));
        assert_eq!(refused("postgresql://a/x?port"), BadUrl::NoValue);
        assert!(refused("postgresql://a/x?sslmode=on").to_string().contains("sslmode must be: disable, allow"));
        assert!(refused("postgresql://a/x?target_session_attrs=any,").to_string().contains("target_session_attrs"));
    }

    #[test]
    fn tls_is_demanded_beyond_this_machine() {
        for host in ["", "localhost", "127.0.0.1", "127.9.9.9", "[::1]", "%2Ftmp"] {
            assert_eq!(parse(&format!("postgresql://{host}/x")).effective_sslmode(), SslMode::Disable, "{host}");
        }
        for host in ["db", "127.evil.example", "10.0.0.1", "[::2]", "localhost.example"] {
            assert_eq!(parse(&format!("postgresql://{host}/x")).effective_sslmode(), SslMode::VerifyFull, "{host}");
        }
        assert_eq!(parse("postgresql://db/x?sslmode=prefer").effective_sslmode(), SslMode::Prefer);
    }

    fn some() -> impl Strategy<Value = Option<String>> {
        proptest::option::of("[^\u{0}]{1,9}")
    }

    proptest! {
        #[test]
        fn a_url_survives_its_text_but_for_the_password(
            host in proptest::option::of("[^\u{0},]{1,9}"), port in 1u16.., user in some(), dbname in some(),
            options in some(), sslkey in some(), mode in proptest::option::of(0usize..6), secret in "S3CR3T[^\u{0}]{0,9}",
        ) {
            let sslmode = mode.map(|index| SslMode::ALL[index]);
            let url = PgUrl { host, port, user, dbname, options, sslkey, sslmode, ..PgUrl::default() };
            let password_file = Some(secret.clone().into());
            let whole = PgUrl { password: Some(Secret::new(secret)), password_file, ..url.clone() };
            let shown = format!("{whole} {whole:?} {}", whole.redacted());
            prop_assert!(!shown.contains("S3CR3T"));
            prop_assert_eq!(whole.redacted().parse::<PgUrl>(), Ok(url));
        }

        #[test]
        fn no_error_shows_a_piece_of_a_password(before in "[^@\u{0}]{0,5}", signs in "[@/?:%&=#,\\[\\]x1]{0,4}", after in "[@/?:%&=#x1]{0,4}") {
            let text = format!("postgresql://me:{before}{signs}S3CR3T{after}@host/shop?sslmode=disable");
            if let Err(error) = text.parse::<PgUrl>() {
                let shown = format!("{error} {error:?}");
                prop_assert!(!shown.contains("S3CR3T"), "{}", shown);
            }
        }
    }
}
