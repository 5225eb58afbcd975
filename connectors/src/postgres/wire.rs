//! The replication connection: PostgreSQL's frontend/backend protocol 3.0 with `replication=database`
//! (manual, "Streaming Replication Protocol"), which tokio-postgres does not speak.
//!
//! Every wait for bytes is one read into a buffer that stays, so that it can be given up at any
//! time. A long message costs its own size while somebody holds it, and nothing after that. Never
//! repeats a server's DETAIL, and never takes a login for done before the server has proved
//! that it knows the password too.

use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::frontend;
use schemas::Lsn;
use schemas::url::PgUrl;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout};

use super::quote::ident;
use super::{Error, Result, client};

/// To connect and to be accepted, where the URL does not say, or says 0: nothing waits for ever.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// To answer what costs the server nothing.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// To take the few bytes that we write.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// What one read asks for, and the size up to which messages share a buffer.
const READ_SIZE: usize = 128 * 1024;
/// The longest message before the stream starts: names and positions.
const MAX_ANSWER: usize = 1024 * 1024;
/// The most rows of one answer; replication commands have a few.
const MAX_ROWS: usize = 1000;
/// The longest message of the stream: PostgreSQL limits it to 1 GiB, the header comes on top.
const MAX_MESSAGE: usize = 1024 * 1024 * 1024 + 64 * 1024;

/// What the protocol runs over: TCP or a Unix socket.
pub(super) trait Socket: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Socket for T {}

/// A connection that replication commands can be sent on.
pub struct Wire {
    socket: Box<dyn Socket>,
    inbox: BytesMut,
    /// The inbox has the size of one long message, and is given back with it.
    inbox_is_long: bool,
    outbox: BytesMut,
    max_message: usize,
    last_received: Instant,
    server_version: String,
    /// A command was sent and its end not yet seen: what comes next is not the next answer.
    busy: bool,
}

/// What the server says it is (IDENTIFY_SYSTEM).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemId {
    /// Tells clusters apart; a copy of a cluster has the same.
    pub system_id: String,
    /// Changes with every promotion and point-in-time recovery.
    pub timeline: u32,
    /// How far the WAL was flushed.
    pub wal_lsn: Lsn,
    /// The database connected to.
    pub dbname: String,
}

impl Wire {
    /// Connects and authenticates; `application_name` shows in `pg_stat_replication`.
    pub async fn connect(url: &PgUrl, application_name: &str) -> Result<Wire> {
        client::require_plain(url)?;
        let limit = url.connect_timeout.filter(|&s| s > 0).map_or(CONNECT_TIMEOUT, Duration::from_secs);
        within(&format!("connect to {url} for replication"), limit, async {
            let socket = open_socket(url).await.map_err(|error| Error::connection("open socket", error))?;
            let mut wire = Wire::over(socket);
            let user = url.user.as_deref().unwrap_or("postgres");
            wire.send(|out| startup(url, user, application_name, out)).await?;
            wire.authenticate(user, url.password.as_ref().map(|password| password.expose())).await?;
            wire.answer().await?;
            Ok(wire)
        })
        .await
    }

    /// A connection over a socket on which nothing was said yet.
    pub(super) fn over(socket: Box<dyn Socket>) -> Wire {
        Wire {
            socket,
            inbox: BytesMut::new(),
            inbox_is_long: false,
            outbox: BytesMut::new(),
            max_message: MAX_ANSWER,
            last_received: Instant::now(),
            server_version: String::new(),
            busy: false,
        }
    }

    /// The server's version as it writes it, such as `15.18 (Debian 15.18-1)`.
    pub fn server_version(&self) -> &str {
        &self.server_version
    }

    /// When the server was last heard.
    pub fn last_received(&self) -> Instant {
        self.last_received
    }

    /// Runs one replication command or statement and returns its rows, as text. Waits as long as
    /// the server takes: limit it. After an answer that was not waited for, only closing is left.
    pub async fn simple_query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        self.command(sql).await?;
        self.answer().await
    }

    /// Asks which server this is, and how far its WAL goes.
    pub async fn identify_system(&mut self) -> Result<SystemId> {
        const DOING: &str = "identify system";
        let rows = within(DOING, ANSWER_TIMEOUT, self.simple_query("IDENTIFY_SYSTEM")).await?;
        let field = |at: usize| rows.first().and_then(|row| row.get(at)).and_then(|field| field.as_deref());
        let missing = || Error::protocol(DOING, "a field is missing or not what it should be");
        Ok(SystemId {
            system_id: field(0).ok_or_else(missing)?.to_owned(),
            timeline: field(1).and_then(|text| text.parse().ok()).ok_or_else(missing)?,
            wal_lsn: field(2).and_then(|text| text.parse().ok()).ok_or_else(missing)?,
            dbname: field(3).ok_or_else(missing)?.to_owned(),
        })
    }

    /// Starts the slot's stream, in binary, from `start` or from what the slot has confirmed,
    /// whichever is later. After it only the stream can be read.
    pub async fn start_replication(&mut self, slot: &str, publication: &str, start: Lsn) -> Result<()> {
        let doing = format!("start replication from slot {slot}");
        let started = async {
            self.command(&start_command(slot, publication, start)).await?;
            match self.read().await? {
                // CopyBothResponse, which postgres_protocol's Message does not know.
                (b'W', _) => Ok(()),
                (b'E', body) => {
                    // What follows makes the connection usable again, where it comes.
                    self.answer().await.ok();
                    Err(Report::read(&body).into_error())
                }
                (tag, _) => Err(unexpected(tag)),
            }
        };
        within(&doing, ANSWER_TIMEOUT, started).await?;
        self.max_message = MAX_MESSAGE;
        Ok(())
    }

    async fn command(&mut self, sql: &str) -> Result<()> {
        if self.busy {
            return Err(Error::state("send command", "the connection is in the middle of another one"));
        }
        self.send(|out| frontend::query(sql, out)).await?;
        self.busy = true;
        Ok(())
    }

    /// Reads up to ReadyForQuery. An error is returned only then: the connection stays usable.
    async fn answer(&mut self) -> Result<Vec<Vec<Option<String>>>> {
        let (mut rows, mut failure) = (Vec::new(), None);
        loop {
            let (tag, body) = match self.read().await {
                Ok(message) => message,
                // After a fatal error the connection ends; the first is the reason.
                Err(error) => return Err(failure.unwrap_or(error)),
            };
            match tag {
                b'D' if rows.len() == MAX_ROWS => return Err(Error::protocol("read answer", "too many rows")),
                b'D' => rows.push(data_row(&body).ok_or_else(|| Error::protocol("read answer", "broken row"))?),
                b'E' => failure = failure.or(Some(Report::read(&body).into_error())),
                // RowDescription, CommandComplete, EmptyQueryResponse, BackendKeyData.
                b'T' | b'C' | b'I' | b'K' => {}
                b'Z' => {
                    self.busy = false;
                    return failure.map_or(Ok(rows), Err);
                }
                _ => return Err(unexpected(tag)),
            }
        }
    }

    async fn authenticate(&mut self, user: &str, password: Option<&str>) -> Result<()> {
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

    /// Writes a message. Given up midway, what is left of it goes out with the next one.
    pub(super) async fn send(&mut self, write: impl FnOnce(&mut BytesMut) -> io::Result<()>) -> Result<()> {
        const DOING: &str = "write to the server";
        let before = self.outbox.len();
        if let Err(error) = write(&mut self.outbox) {
            self.outbox.truncate(before);
            return Err(Error::state(DOING, error));
        }
        let writing = async {
            while self.outbox.has_remaining() {
                if self.socket.write_buf(&mut self.outbox).await? == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
            }
            self.socket.flush().await
        };
        match timeout(WRITE_TIMEOUT, writing).await {
            Ok(result) => result.map_err(|error| Error::connection(DOING, error)),
            Err(_) => Err(Error::connection(DOING, "the server takes nothing")),
        }
    }

    /// The next message: its tag and its body.
    async fn read(&mut self) -> Result<(u8, Bytes)> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(message);
            }
            self.fill().await?;
        }
    }

    /// Whether a whole message is in the inbox.
    pub(super) fn has_message(&self) -> Result<bool> {
        Ok(self.first_len()?.is_some_and(|len| self.inbox.len() >= len))
    }

    /// The next message if it is there whole, past those that may come at any time.
    pub(super) fn take(&mut self) -> Result<Option<(u8, Bytes)>> {
        while let Some(len) = self.first_len()?.filter(|&len| self.inbox.len() >= len) {
            let mut body = self.inbox.split_to(len);
            if self.inbox_is_long && self.inbox.is_empty() {
                self.inbox = BytesMut::new();
                self.inbox_is_long = false;
            }
            let tag = body.get_u8();
            body.advance(4);
            match tag {
                b'N' => Report::read(&body).heed()?,
                b'S' => {
                    if let Some(version) = body.strip_prefix(b"server_version\0") {
                        self.server_version = String::from_utf8_lossy(version).trim_end_matches('\0').to_owned();
                    }
                }
                // NotificationResponse
                b'A' => {}
                _ => return Ok(Some((tag, body.freeze()))),
            }
        }
        Ok(None)
    }

    /// The length of the first message with its header, as soon as that is there.
    fn first_len(&self) -> Result<Option<usize>> {
        let Some(&[tag, a, b, c, d]) = self.inbox.first_chunk() else { return Ok(None) };
        match u32::from_be_bytes([a, b, c, d]) as usize {
            len if (4..self.max_message).contains(&len) => Ok(Some(len + 1)),
            len => Err(Error::protocol("read from the server", format_args!("a message {tag} of {len} bytes"))),
        }
    }

    /// Waits for bytes. The only wait is one read: given up, nothing is lost.
    pub(super) async fn fill(&mut self) -> Result<()> {
        const DOING: &str = "read from the server";
        self.make_room()?;
        match self.socket.read_buf(&mut self.inbox).await {
            Ok(0) => Err(Error::connection(DOING, "the server closed the connection")),
            Ok(_) => {
                self.last_received = Instant::now();
                Ok(())
            }
            Err(error) => Err(Error::connection(DOING, error)),
        }
    }

    /// A long message gets a buffer of exactly its size, and nothing behind it: BytesMut would
    /// double. The others share one, which is used again when nobody holds a message in it.
    fn make_room(&mut self) -> Result<()> {
        let (len, room) = (self.first_len()?.unwrap_or(0), self.inbox.capacity() - self.inbox.len());
        if len > READ_SIZE {
            if self.inbox.capacity() < len {
                let start = std::mem::replace(&mut self.inbox, BytesMut::with_capacity(len));
                self.inbox.extend_from_slice(&start);
                self.inbox_is_long = true;
            }
        } else if room < READ_SIZE / 4 {
            self.inbox.reserve(READ_SIZE);
        }
        Ok(())
    }
}

/// What the server reports: an ErrorResponse or a NoticeResponse, without its DETAIL.
pub(super) struct Report {
    severity: String,
    sqlstate: String,
    message: String,
}

impl Report {
    /// Reads the fields (manual, "Error and Notice Message Fields"); one that is missing is empty.
    pub(super) fn read(body: &[u8]) -> Report {
        let field = |kind: u8| {
            let mut fields = body.split(|&byte| byte == 0).filter_map(|field| field.split_first());
            let value = fields.find(|(first, _)| **first == kind).map_or(&[][..], |(_, value)| value);
            String::from_utf8_lossy(value).into_owned()
        };
        Report { severity: field(b'V'), sqlstate: field(b'C'), message: field(b'M') }
    }

    /// As an error.
    pub(super) fn into_error(self) -> Error {
        Error::server("wait for the server", &self.sqlstate, &self.message)
    }

    /// As a notice. One warning is an error to us: 18 and later go on without a publication that
    /// is missing (55000, "skipped loading publication"), and so without its rows.
    fn heed(self) -> Result<()> {
        if self.severity == "WARNING" && self.sqlstate == "55000" {
            return Err(self.into_error());
        }
        tracing::debug!(severity = self.severity, sqlstate = self.sqlstate, "server notice: {}", self.message);
        Ok(())
    }
}

async fn open_socket(url: &PgUrl) -> io::Result<Box<dyn Socket>> {
    let host = url.host.as_deref().unwrap_or("localhost");
    if host.starts_with('/') {
        let path = format!("{host}/.s.PGSQL.{}", url.port);
        return Ok(Box::new(UnixStream::connect(path).await?));
    }
    let socket = TcpStream::connect((host, url.port)).await?;
    socket.set_nodelay(true)?;
    Ok(Box::new(socket))
}

fn startup(url: &PgUrl, user: &str, application_name: &str, out: &mut BytesMut) -> io::Result<()> {
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

/// The command's own grammar knows '' and "" and no backslashes; the publication is a name in
/// double quotes within a literal.
fn start_command(slot: &str, publication: &str, start: Lsn) -> String {
    let (slot, publications) = (ident(slot), ident(publication).replace('\'', "''"));
    format!(
        "START_REPLICATION SLOT {slot} LOGICAL {start} (proto_version '1', publication_names '{publications}', \
         binary 'true', messages 'true')"
    )
}

fn data_row(mut body: &[u8]) -> Option<Vec<Option<String>>> {
    let count = body.try_get_u16().ok()?;
    let mut field = || {
        let Ok(len) = usize::try_from(body.try_get_i32().ok()?) else { return Some(None) };
        let (text, rest) = body.split_at_checked(len)?;
        body = rest;
        Some(Some(str::from_utf8(text).ok()?.to_owned()))
    };
    (0..count).map(|_| field()).collect()
}

async fn within<T>(doing: &str, limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    match timeout(limit, work).await {
        Ok(result) => result.map_err(|error| Error { doing: doing.to_owned(), cause: error.cause }),
        Err(_) => Err(Error::connection(doing, format_args!("no answer in {} s", limit.as_secs()))),
    }
}

fn refused(why: impl std::fmt::Display) -> Error {
    Error::state("authenticate", why)
}

/// A message that does not belong here.
pub(super) fn unexpected(tag: u8) -> Error {
    Error::protocol("read from the server", format_args!("unexpected message {:?}", char::from(tag)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        [&[tag][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
    }

    #[tokio::test]
    async fn a_long_message_costs_its_size_and_leaves_nothing_behind() {
        let (mut server, client) = duplex(READ_SIZE);
        let mut wire = Wire::over(Box::new(client));
        wire.max_message = MAX_MESSAGE;
        let long = vec![7; 8 << 20];
        let bytes = [message(b'd', b"short"), message(b'd', &long), message(b'd', b"last")].concat();
        let writing = tokio::spawn(async move { server.write_all(&bytes).await });
        assert_eq!(wire.read().await.unwrap().1, &b"short"[..]);
        while !wire.has_message().unwrap() {
            wire.fill().await.unwrap();
            assert!(wire.inbox.capacity() <= long.len() + 5);
        }
        assert_eq!(wire.take().unwrap().unwrap().1, long);
        assert_eq!(wire.inbox.capacity(), 0);
        assert_eq!(wire.read().await.unwrap().1, &b"last"[..]);
        writing.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_length_that_no_message_has_ends_the_connection() {
        for len in [0, 3, MAX_ANSWER as u32, u32::MAX] {
            let (mut server, client) = duplex(64);
            server.write_all(&[&b"D"[..], &len.to_be_bytes()].concat()).await.unwrap();
            let error = Wire::over(Box::new(client)).read().await.unwrap_err();
            assert!(!error.is_transient(), "{len}: {error}");
        }
    }

    #[tokio::test]
    async fn the_reason_of_a_fatal_error_is_kept_and_its_detail_is_not() {
        let (mut server, client) = duplex(1024);
        let mut wire = Wire::over(Box::new(client));
        let fields = b"SFATAL\0VFATAL\0C57P01\0Mterminating\0D(secret)\0\0";
        server.write_all(&message(b'E', fields)).await.unwrap();
        drop(server);
        assert_eq!(wire.answer().await.unwrap_err().to_string(), "wait for the server: terminating (SQLSTATE 57P01)");
    }

    #[tokio::test]
    async fn a_server_that_skips_its_proof_is_refused() {
        let (mut server, client) = duplex(1024);
        let bytes = [message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0"), message(b'R', &[0; 4])].concat();
        server.write_all(&bytes).await.unwrap();
        assert!(Wire::over(Box::new(client)).authenticate("u", Some("p")).await.is_err());
    }

    #[test]
    fn names_stay_names_in_the_start_command() {
        let command = start_command("s", "it's \"b\\", Lsn(0x10_0000_0001));
        assert!(command.starts_with("START_REPLICATION SLOT \"s\" LOGICAL 10/1 ("), "{command}");
        assert!(command.contains("publication_names '\"it''s \"\"b\\\"',"), "{command}");
    }

    #[test]
    fn rows_that_lie_about_their_length_are_refused() {
        let row = data_row(b"\0\x02\0\0\0\x01a\xff\xff\xff\xff");
        assert_eq!(row, Some(vec![Some("a".to_owned()), None]));
        assert_eq!(data_row(b"\0\x01\x7f\xff\xff\xffa"), None);
        assert_eq!(data_row(b"\xff\xff"), None);
    }
}
