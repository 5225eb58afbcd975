//! The login of a replication connection: the socket, TLS, the startup message, and authentication by
//! MD5 or SCRAM-SHA-256, bound to the TLS channel where the server can (manual, "Message Flow", "SASL
//! Authentication").
//!
//! Never sends the password in clear text, and never takes a login for done before the server has
//! proved, where SCRAM lets it, that it knows the password too.

use std::io;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::frontend;
use rustls::ClientConfig;
use schemas::url::PgUrl;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::super::{Error, Result, client, tls};
use super::{Report, Socket, Wire, unexpected};

impl Wire {
    /// Answers what the server asks for, up to its word that we are in (manual, "Message Flow").
    pub(super) async fn authenticate(&mut self, user: &str, password: Option<&str>, binding: &Binding) -> Result<()> {
        let password = || password.ok_or_else(|| refused("the server asks for a password and the URL has none"));
        match self.authentication().await? {
            (10, mechanisms) => self.scram(&mechanisms, password()?, binding).await?,
            _ if binding.required => return Err(refused("channel_binding=require, but the server's login has none")),
            (0, _) => return Ok(()),
            (3, _) => return Err(refused("the server asks for the password in clear text: let it use scram-sha-256")),
            (5, data) => {
                let salt = *data.first_chunk().ok_or_else(|| unexpected(b'R'))?;
                let hash = md5_hash(user.as_bytes(), password()?.as_bytes(), salt);
                self.send(|out| frontend::password_message(hash.as_bytes(), out)).await?;
            }
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
    async fn scram(&mut self, mechanisms: &[u8], password: &str, binding: &Binding) -> Result<()> {
        let offered = |wanted: &str| mechanisms.split(|&byte| byte == 0).any(|name| name == wanted.as_bytes());
        let (mechanism, channel) = match &binding.end_point {
            Some(hash) if offered(SCRAM_SHA_256_PLUS) => {
                (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash.clone()))
            }
            _ if binding.required => {
                return Err(refused("channel_binding=require, but the server does not offer SCRAM-SHA-256-PLUS"));
            }
            // We could: whoever took the offer out on the way is found out.
            Some(_) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
            None => (SCRAM_SHA_256, ChannelBinding::unsupported()),
        };
        if !offered(mechanism) {
            return Err(refused("the server does not offer SCRAM-SHA-256"));
        }
        let mut scram = ScramSha256::new(password.as_bytes(), channel);
        self.send(|out| frontend::sasl_initial_response(mechanism, scram.message(), out)).await?;
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

/// What a login can be bound to.
#[derive(Default)]
pub(super) struct Binding {
    /// The hash of the server's certificate, over TLS.
    end_point: Option<Vec<u8>>,
    /// `channel_binding=require`
    required: bool,
}

/// TCP, with TLS where it is asked for, or a Unix socket where the host is a folder.
pub(super) async fn open_socket(url: &PgUrl, tls: Option<Arc<ClientConfig>>) -> Result<(Box<dyn Socket>, Binding)> {
    let lost = |error: io::Error| Error::connection("open socket", error);
    let wanted = url.channel_binding.as_deref();
    let mut binding = Binding { required: wanted == Some("require"), ..Binding::default() };
    let host = url.host.as_deref().unwrap_or("localhost");
    if host.starts_with('/') {
        let path = format!("{host}/.s.PGSQL.{}", url.port);
        return Ok((Box::new(UnixStream::connect(path).await.map_err(lost)?), binding));
    }
    let mut socket = TcpStream::connect((host, url.port)).await.map_err(lost)?;
    socket.set_nodelay(true).map_err(lost)?;
    let Some(tls) = tls else { return Ok((Box::new(socket), binding)) };
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    socket.write_all(&request).await.map_err(lost)?;
    // One byte and no more: whatever follows belongs to TLS.
    match socket.read_u8().await.map_err(lost)? {
        b'S' => {}
        _ => return Err(Error::state("begin TLS", tls::NOT_OFFERED)),
    }
    let connected = TlsConnector::from(tls).connect(tls::server_name(url)?, socket).await;
    let socket = connected.map_err(|error| tls::handshake("begin TLS", &error))?;
    let certificate = socket.get_ref().1.peer_certificates().and_then(<[_]>::first);
    binding.end_point = certificate.and_then(tls::server_end_point).filter(|_| wanted != Some("disable"));
    Ok((Box::new(socket), binding))
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
