//! A slot's stream: pgoutput messages and keepalives in, standby status out (PostgreSQL manual,
//! "Streaming Replication Protocol").
//!
//! Whatever is buffered is handed out before anything is waited for. Never acknowledges more than
//! the server has sent: a slot that is told so never sends anything again.

#[cfg(test)]
mod tests;

use std::fmt;
use std::time::{Duration, SystemTime};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use postgres_protocol::message::frontend;
use schemas::Lsn;
use schemas::url::PgUrl;
use tokio::time::{Instant, timeout};

use super::wire::{Report, SystemId, Wire, unexpected};
use super::{Error, Result};

const DOING: &str = "read replication stream";
/// For the server to see that we stop, and to say so; it may be busy with a long transaction.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// 2000-01-01 00:00 UTC, PostgreSQL's epoch, after the Unix one.
const POSTGRES_EPOCH: Duration = Duration::from_secs(946_684_800);

/// What the server sends.
#[derive(Clone, PartialEq, Eq)]
pub enum Frame {
    /// One pgoutput message.
    Data {
        /// The message, for [`decode`](super::pgoutput::decode). Shares the buffer that it was
        /// read into (128 KiB or more): whoever keeps it for long copies it.
        payload: Bytes,
        /// Where the change ends in the WAL: for a Commit, its `end_lsn`. Zero for Relation and
        /// Type, and for Begin with an origin: never a measure of progress.
        wal_end: Lsn,
    },
    /// Says how far the server has read the WAL; everything committed before it was sent.
    Keepalive {
        /// How far; may be acknowledged when nothing received is unapplied.
        end: Lsn,
        /// The server's clock, microseconds since 2000-01-01 00:00 UTC.
        server_time: i64,
        /// The server wants a status now, and ends the connection without one.
        reply: bool,
    },
}

/// Without the payload: it holds a row's values.
impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Frame::Data { payload, wal_end } => write!(f, "Data({} bytes, {wal_end})", payload.len()),
            Frame::Keepalive { end, reply, .. } => write!(f, "Keepalive({end}, reply {reply})"),
        }
    }
}

/// A started stream. One task reads it and sends its status.
pub struct Stream {
    wire: Wire,
    system: SystemId,
    /// The furthest position that the server has named: no acknowledgement goes beyond it.
    known: Lsn,
    server_time: i64,
}

impl Stream {
    /// Connects, asks which server it is, and starts the slot's stream at `start`; with values in `binary` or as text.
    ///
    /// A `start` that the server's WAL does not reach is refused: it belongs to another server, or
    /// to this one before it lost it. One that the slot has passed is not noticed by the server,
    /// which then skips what lies between: compare before.
    pub async fn open(url: &PgUrl, slot: &str, publication: &str, start: Lsn, binary: bool) -> Result<Stream> {
        let mut wire = Wire::connect(url, "carveout stream").await?;
        let system = wire.identify_system().await?;
        if start > system.wal_lsn {
            let why = format!("it is to start at {start}, but the server's WAL ends at {}", system.wal_lsn);
            return Err(Error::state(format!("start replication from slot {slot}"), why));
        }
        wire.shorten_silence().await?;
        wire.start_replication(slot, publication, start, binary).await?;
        Ok(Stream { wire, known: system.wal_lsn, system, server_time: 0 })
    }

    /// Which server it is, as it said before the stream began.
    pub fn system(&self) -> &SystemId {
        &self.system
    }

    /// The server's version as it writes it, such as `15.18 (Debian 15.18-1)`.
    pub fn server_version(&self) -> &str {
        self.wire.server_version()
    }

    /// When the server was last heard. It sends a keepalive at least every half
    /// `wal_sender_timeout`, where that is not 0; after much longer the connection is dead.
    pub fn last_received(&self) -> Instant {
        self.wire.last_received()
    }

    /// The server's clock in the last frame, microseconds since 2000-01-01 00:00 UTC; 0 at first.
    pub fn server_time(&self) -> i64 {
        self.server_time
    }

    /// Waits until a message is buffered. May be given up at any time: the only wait is one read
    /// into the buffer. A notice counts too, so that [`Stream::try_next`] can still find nothing.
    pub async fn ready(&mut self) -> Result<()> {
        while !self.wire.has_message()? {
            self.wire.fill().await?;
        }
        Ok(())
    }

    /// The next frame that is buffered, without waiting and without copying.
    pub fn try_next(&mut self) -> Result<Option<Frame>> {
        let Some((tag, body)) = self.wire.take()? else { return Ok(None) };
        match tag {
            b'd' => {
                let (frame, server_time) = parse(body).ok_or_else(|| Error::protocol(DOING, "broken frame"))?;
                let (Frame::Data { wal_end: named, .. } | Frame::Keepalive { end: named, .. }) = &frame;
                self.known = self.known.max(*named);
                self.server_time = server_time;
                Ok(Some(frame))
            }
            b'E' => Err(Error { doing: DOING.to_owned(), cause: Report::read(&body).into_error().cause }),
            // CopyDone, or CommandComplete alone: the server shuts down.
            b'c' | b'C' => Err(Error::connection(DOING, "the server ended the stream")),
            tag => Err(unexpected(tag)),
        }
    }

    /// The next frame. May be given up at any time.
    pub async fn next(&mut self) -> Result<Frame> {
        loop {
            if let Some(frame) = self.try_next()? {
                return Ok(frame);
            }
            self.ready().await?;
        }
    }

    /// Tells the server that everything up to `write` was received and up to `flush` is held
    /// durably: the slot lets go of the WAL before it. `reply_requested` asks for a keepalive.
    pub async fn status(&mut self, write: Lsn, flush: Lsn, reply_requested: bool) -> Result<()> {
        if write.max(flush) > self.known {
            let why = format!("{} is beyond {}, the furthest that the server has named", write.max(flush), self.known);
            return Err(Error::state("acknowledge", why));
        }
        let sent = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + POSTGRES_EPOCH).unwrap_or_default();
        self.wire
            .send(|out| {
                out.put_u8(b'd');
                out.put_u32(4 + 34);
                out.put_u8(b'r');
                // Received, flushed, applied: what is durable is applied.
                for lsn in [write, flush, flush] {
                    out.put_u64(lsn.0);
                }
                out.put_i64(sent.as_micros() as i64);
                out.put_u8(u8::from(reply_requested));
                Ok(())
            })
            .await
    }

    /// Ends the stream so that the slot is free when this returns, unless the server is too busy
    /// to notice for 2 s. What was not acknowledged comes again.
    pub async fn stop(mut self) -> Result<()> {
        let stopping = async {
            let done = |out: &mut BytesMut| {
                frontend::copy_done(out);
                Ok(())
            };
            self.wire.send(done).await?;
            loop {
                match self.wire.take()? {
                    Some((b'Z', _)) => return Ok(()),
                    Some((b'E', body)) => return Err(Report::read(&body).into_error()),
                    // What was under way before the server saw that we stop.
                    Some(_) => {}
                    None => self.wire.fill().await?,
                }
            }
        };
        let stopped = timeout(STOP_TIMEOUT, stopping).await.unwrap_or(Ok(()));
        stopped.map_err(|error| Error { doing: "stop replication stream".to_owned(), cause: error.cause })?;
        let terminate = |out: &mut BytesMut| {
            frontend::terminate(out);
            Ok(())
        };
        self.wire.send(terminate).await
    }
}

/// XLogData and primary keepalive, with the server's clock.
fn parse(mut body: Bytes) -> Option<(Frame, i64)> {
    match body.try_get_u8().ok()? {
        b'w' => {
            let _start = body.try_get_u64().ok()?;
            let wal_end = Lsn(body.try_get_u64().ok()?);
            let server_time = body.try_get_i64().ok()?;
            Some((Frame::Data { payload: body, wal_end }, server_time))
        }
        b'k' => {
            let end = Lsn(body.try_get_u64().ok()?);
            let server_time = body.try_get_i64().ok()?;
            let reply = body.try_get_u8().ok()? != 0;
            body.is_empty().then_some((Frame::Keepalive { end, server_time, reply }, server_time))
        }
        _ => None,
    }
}
