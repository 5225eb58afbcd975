//! A slot's stream: pgoutput messages and keepalives in, standby status out (PostgreSQL manual,
//! "Streaming Replication Protocol").
//!
//! Whatever is buffered is handed out before anything is waited for. Never acknowledges more than
//! the server has sent: a slot that is told so never sends anything again.

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
    /// Connects, asks which server it is, and starts the slot's stream at `start`.
    ///
    /// A `start` that the server's WAL does not reach is refused: it belongs to another server, or
    /// to this one before it lost it. One that the slot has passed is not noticed by the server,
    /// which then skips what lies between: compare before.
    pub async fn open(url: &PgUrl, slot: &str, publication: &str, start: Lsn) -> Result<Stream> {
        let mut wire = Wire::connect(url, "carveout stream").await?;
        let system = wire.identify_system().await?;
        if start > system.wal_lsn {
            let why = format!("it is to start at {start}, but the server's WAL ends at {}", system.wal_lsn);
            return Err(Error::state(format!("start replication from slot {slot}"), why));
        }
        wire.start_replication(slot, publication, start).await?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    /// A stream that has begun, and the server's end of it.
    async fn begun() -> (Stream, DuplexStream) {
        let (mut server, client) = duplex(1 << 16);
        let mut wire = Wire::over(Box::new(client));
        server.write_all(b"W\0\0\0\x07\0\0\0").await.unwrap();
        wire.start_replication("s", "p", Lsn(5)).await.unwrap();
        let mut command = [0; 5];
        server.read_exact(&mut command).await.unwrap();
        let mut rest = vec![0; usize::from(command[4]) - 4];
        server.read_exact(&mut rest).await.unwrap();
        let system = SystemId { system_id: "1".into(), timeline: 1, wal_lsn: Lsn(9), dbname: "d".into() };
        (Stream { wire, known: system.wal_lsn, system, server_time: 0 }, server)
    }

    fn copy_data(kind: u8, numbers: &[u64], rest: &[u8]) -> Vec<u8> {
        let numbers: Vec<u8> = numbers.iter().flat_map(|number| number.to_be_bytes()).collect();
        let len = (4 + 1 + numbers.len() + rest.len()) as u32;
        [b"d", &len.to_be_bytes()[..], &[kind], &numbers, rest].concat()
    }

    #[tokio::test]
    async fn frames_come_whole_however_bytes_are_cut_and_waits_are_given_up() {
        let (mut stream, mut server) = begun().await;
        let bytes = [
            copy_data(b'w', &[1, 2, 3], b"first"),
            b"N\0\0\0\x05\0S\0\0\0\x07a\0\0".to_vec(),
            copy_data(b'k', &[20, 4], &[1]),
            copy_data(b'w', &[0, 0, 5], &[8; 300]),
        ];
        tokio::spawn(async move {
            for byte in bytes.concat() {
                server.write_all(&[byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        let mut frames = vec![];
        while frames.len() < 3 {
            tokio::select! {
                frame = stream.next() => frames.push(frame.unwrap()),
                () = tokio::task::yield_now() => {}
            }
        }
        let data = |payload: &[u8], end| Frame::Data { payload: Bytes::copy_from_slice(payload), wal_end: Lsn(end) };
        let keepalive = Frame::Keepalive { end: Lsn(20), server_time: 4, reply: true };
        assert_eq!(frames, [data(b"first", 2), keepalive, data(&[8; 300], 0)]);
        assert_eq!((stream.known, stream.server_time()), (Lsn(20), 5));
        assert!(stream.next().await.unwrap_err().is_transient());
    }

    #[tokio::test]
    async fn nothing_is_acknowledged_that_the_server_has_not_named() {
        let (mut stream, mut server) = begun().await;
        assert!(stream.status(Lsn(10), Lsn(9), false).await.is_err());
        assert!(stream.status(Lsn(9), Lsn(10), false).await.is_err());
        stream.status(Lsn(9), Lsn(8), true).await.unwrap();
        let mut sent = [0; 39];
        server.read_exact(&mut sent).await.unwrap();
        assert_eq!(sent[..6], *b"d\0\0\0\x26r");
        assert_eq!((sent[13], sent[21], sent[29], sent[38]), (9, 8, 8, 1));
    }

    #[tokio::test]
    async fn errors_within_the_stream_keep_their_sqlstate() {
        let (mut stream, mut server) = begun().await;
        let error = b"VERROR\0C42704\0Mgone\0D(secret)\0\0";
        server.write_all(&[b"E\0\0\0", &[error.len() as u8 + 4][..], error].concat()).await.unwrap();
        assert_eq!(stream.next().await.unwrap_err().sqlstate(), Some("42704"));
        // 18 and later only warn when the publication is missing, and skip its rows.
        let warning = b"VWARNING\0C55000\0Mskipped loading publication\0\0";
        server.write_all(&[b"N\0\0\0", &[warning.len() as u8 + 4][..], warning].concat()).await.unwrap();
        assert_eq!(stream.next().await.unwrap_err().sqlstate(), Some("55000"));
        server.write_all(b"C\0\0\0\x0bCOPY 0\0").await.unwrap();
        assert!(stream.next().await.unwrap_err().is_transient());
    }

    proptest! {
        #[test]
        fn noise_is_no_frame_and_never_panics(kind in proptest::sample::select(b"wkx".to_vec()), noise: Vec<u8>) {
            let frame = parse([&[kind][..], &noise].concat().into());
            prop_assert_eq!(frame.is_some(), (kind == b'w' && noise.len() >= 24) || (kind == b'k' && noise.len() == 17));
        }
    }
}
