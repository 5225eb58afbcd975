//! The replication connection: PostgreSQL's frontend/backend protocol 3.0 with `replication=database`
//! (manual, "Streaming Replication Protocol"), which tokio-postgres does not speak. Here are its
//! commands and their answers; below it the login, the messages, and what the server reports.
//!
//! Never sends a command in the middle of another one, and never waits for ever on what costs the
//! server nothing.

mod login;
mod messages;
mod report;
#[cfg(test)]
mod tests;

use std::time::Duration;

use bytes::{Buf, BytesMut};
use postgres_protocol::message::frontend;
use schemas::Lsn;
use schemas::url::{PgUrl, Secret};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout};

pub(super) use self::report::Report;
use super::quote::ident;
use super::{Error, Result, password, tls};

/// To connect and to be accepted, where the URL does not say, or says 0: nothing waits for ever.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// To answer what costs the server nothing.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
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
        let tls = tls::config(url)?;
        let password = password::of(url)?;
        let limit = url.connect_timeout.filter(|&s| s > 0).map_or(CONNECT_TIMEOUT, Duration::from_secs);
        within(&format!("connect to {url} for replication"), limit, async {
            let (socket, binding) = login::open_socket(url, tls).await?;
            let mut wire = Wire::over(socket);
            let user = url.role();
            wire.send(|out| login::startup(url, user, application_name, out)).await?;
            wire.authenticate(user, password.as_ref().map(Secret::expose), &binding).await?;
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

    /// Has the server look at our answers, and show a sign of life, every ten seconds at least, also while it
    /// passes over a large transaction that is not published: it does so every half of its timeout. That it
    /// decodes in a transaction must not end the stream either (since 17).
    pub async fn shorten_silence(&mut self) -> Result<()> {
        const SQL: &str = "SELECT set_config(name, CASE name WHEN 'transaction_timeout' THEN '0' ELSE '20s' END, false) \
                           FROM pg_settings WHERE name = 'transaction_timeout' \
                           OR name = 'wal_sender_timeout' AND setting::int NOT BETWEEN 1 AND 20000";
        within("set wal_sender_timeout", ANSWER_TIMEOUT, self.simple_query(SQL)).await.map(|_| ())
    }

    /// Starts the slot's stream from `start` or from what the slot has confirmed, whichever is later; with values
    /// in `binary` or as text. After it only the stream can be read.
    pub async fn start_replication(&mut self, slot: &str, publication: &str, start: Lsn, binary: bool) -> Result<()> {
        let doing = format!("start replication from slot {slot}");
        let started = async {
            self.command(&start_command(slot, publication, start, binary)).await?;
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
}

/// The command's own grammar knows '' and "" and no backslashes; the publication is a name in
/// double quotes within a literal.
fn start_command(slot: &str, publication: &str, start: Lsn, binary: bool) -> String {
    let (slot, publications) = (ident(slot), ident(publication).replace('\'', "''"));
    format!(
        "START_REPLICATION SLOT {slot} LOGICAL {start} (proto_version '1', publication_names '{publications}', \
         binary '{binary}', messages 'true')"
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

/// A message that does not belong here.
pub(super) fn unexpected(tag: u8) -> Error {
    Error::protocol("read from the server", format_args!("unexpected message {:?}", char::from(tag)))
}
