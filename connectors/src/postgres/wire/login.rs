//! The login of a replication connection: the socket, the startup message, and authentication by
//! MD5 or SCRAM-SHA-256 (manual, "Message Flow", "SASL Authentication").
//!
//! Never sends the password in clear text, and never takes a login for done before the server has
//! proved, where SCRAM lets it, that it knows the password too.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::frontend;
use schemas::url::PgUrl;
use tokio::net::{TcpStream, UnixStream};

use super::super::{Error, Result, client};
use super::{Report, Socket, Wire, unexpected};

impl Wire {
    /// Answers what the server asks for, up to its word that we are in (manual, "Message Flow").
    pub(super) async fn authenticate(&mut self, user: &str, password: Option<&str>) -> Result<()> {
        let password = || password.ok_or_else(|| refused("the server asks for a password and the URL has none"));
        match self.authentication().await? {
            (0, _) => return Ok(()),
            (3, _) => return Err(refused("the server asks for the password in clear text: let it use scram-sha-256")),
            (5, data) => {
                let salt = *data.first_chunk().ok_or_else(|| unexpected(b'R'))?;
                let hash = md5_hash(user.as_bytes(), password()?.as_bytes(), salt);
                self.send(|out| frontend::password_message(hash.as_bytes(), out)).await?;
            }
            (10, mechanisms) => self.scram(&mechanisms, password()?).await?,
            (other, _) => {
                let why = format!("the server asks for authentication method {other}: let it use scram-sha-256");
                return Err(refused(why));
            }
        }
        match self.authentication().await? {
            (0, _) => Ok(()),
            _ => Err(unexpected(b'R')),
        }
    }

    /// SCRAM-SHA-256 (RFC 7677), from the server's offer to its proof.
    async fn scram(&mut self, mechanisms: &[u8], password: &str) -> Result<()> {
        if !mechanisms.split(|&byte| byte == 0).any(|name| name == SCRAM_SHA_256.as_bytes()) {
            return Err(refused("the server does not offer SCRAM-SHA-256"));
        }
        let mut scram = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
        self.send(|out| frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), out)).await?;
        let (11, challenge) = self.authentication().await? else { return Err(unexpected(b'R')) };
        scram.update(&challenge).map_err(refused)?;
        self.send(|out| frontend::sasl_response(scram.message(), out)).await?;
        let (12, proof) = self.authentication().await? else { return Err(unexpected(b'R')) };
        scram.finish(&proof).map_err(refused)
    }

    /// The next authentication request: its number (manual, "Message Formats") and its data.
    async fn authentication(&mut self) -> Result<(u32, Bytes)> {
        match self.read().await? {
            (b'R', mut body) => Ok((body.try_get_u32().map_err(|_| unexpected(b'R'))?, body)),
            (b'E', body) => Err(Report::read(&body).into_error()),
            (tag, _) => Err(unexpected(tag)),
        }
    }
}

/// TCP, or a Unix socket where the host is a folder.
pub(super) async fn open_socket(url: &PgUrl) -> io::Result<Box<dyn Socket>> {
    let host = url.host.as_deref().unwrap_or("localhost");
    if host.starts_with('/') {
        let path = format!("{host}/.s.PGSQL.{}", url.port);
        return Ok(Box::new(UnixStream::connect(path).await?));
    }
    let socket = TcpStream::connect((host, url.port)).await?;
    socket.set_nodelay(true)?;
    Ok(Box::new(socket))
}

/// The first message: who we are, and that this is for replication.
pub(super) fn startup(url: &PgUrl, user: &str, application_name: &str, out: &mut BytesMut) -> io::Result<()> {
    let options = format!("{} {}", url.options.as_deref().unwrap_or(""), client::PINNED);
    let parameters = [
        ("user", user),
        ("database", url.dbname.as_deref().unwrap_or(user)),
        ("replication", "database"),
        ("application_name", application_name),
        ("client_encoding", "UTF8"),
        ("options", &options),
    ];
    frontend::startup_message(parameters, out)
}

fn refused(why: impl std::fmt::Display) -> Error {
    Error::state("authenticate", why)
}
