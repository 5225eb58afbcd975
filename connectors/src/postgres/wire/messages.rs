//! Messages of a replication connection, to the socket and from it (manual, "Message Formats").
//!
//! Every wait for bytes is one read into a buffer that stays, so that it can be given up at any
//! time. A long message costs its own size while somebody holds it, and nothing after that. Never
//! makes room for a length that no message has: it is the server's claim, not a fact.

use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::super::{Error, Result, tls};
use super::{Report, Wire};

/// To take the few bytes that we write.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// What one read asks for, and the size up to which messages share a buffer.
pub(super) const READ_SIZE: usize = 128 * 1024;

impl Wire {
    /// Writes a message. Given up midway, what is left of it goes out with the next one.
    pub(in crate::postgres) async fn send(
        &mut self,
        write: impl FnOnce(&mut BytesMut) -> io::Result<()>,
    ) -> Result<()> {
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
    pub(super) async fn read(&mut self) -> Result<(u8, Bytes)> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(message);
            }
            self.fill().await?;
        }
    }

    /// Whether a whole message is in the inbox.
    pub(in crate::postgres) fn has_message(&self) -> Result<bool> {
        Ok(self.first_len()?.is_some_and(|len| self.inbox.len() >= len))
    }

    /// The next message if it is there whole, past those that may come at any time.
    pub(in crate::postgres) fn take(&mut self) -> Result<Option<(u8, Bytes)>> {
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
    pub(in crate::postgres) async fn fill(&mut self) -> Result<()> {
        const DOING: &str = "read from the server";
        self.make_room()?;
        match self.socket.read_buf(&mut self.inbox).await {
            Ok(0) => Err(Error::connection(DOING, "the server closed the connection")),
            Ok(_) => {
                self.last_received = Instant::now();
                Ok(())
            }
            Err(error) => match tls::refused(&error) {
                Some(why) => Err(Error::login(DOING, why)),
                None => Err(Error::connection(DOING, error)),
            },
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
