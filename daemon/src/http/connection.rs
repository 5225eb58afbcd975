//! How many connections there are, and how long one may be silent: without these two limits a client
//! that opens thousands, or sends its request a byte at a time, would hold the file descriptors that
//! the lanes need. A connection whose request is being answered (`verify` takes its time) is left alone.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

/// Most connections at one time; further ones wait in the system's queue.
const MAX_CONNECTIONS: usize = 256;
/// A connection with no request in hand for one to two of these is closed.
const PATIENCE: Duration = if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(10) };

/// A listener that has a place for so many connections.
pub struct Bounded {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl Bounded {
    /// Limits `listener`.
    pub fn new(listener: TcpListener) -> Self {
        Bounded { listener, places: Arc::new(Semaphore::new(MAX_CONNECTIONS)) }
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        // The semaphore is never closed.
        let place = self.places.clone().acquire_owned().await.ok();
        let (stream, from) = Listener::accept(&mut self.listener).await;
        let patience = Box::pin(sleep(PATIENCE));
        (Connection { stream, activity: Activity::default(), seen: 0, patience, _place: place }, from)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// What the guard tells a connection: counts up when a request is complete and when it is answered, so
/// it is odd in between.
#[derive(Clone, Debug, Default)]
pub struct Activity(Arc<AtomicU64>);

impl Activity {
    /// A request is being answered until the returned value is dropped.
    pub fn answering(&self) -> Answering {
        self.0.fetch_add(1, Ordering::Relaxed);
        Answering(self.clone())
    }
}

impl Connected<IncomingStream<'_, Bounded>> for Activity {
    fn connect_info(stream: IncomingStream<'_, Bounded>) -> Self {
        stream.io().activity.clone()
    }
}

/// A request in hand.
pub struct Answering(Activity);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A TCP stream that fails when its client wastes it.
pub struct Connection {
    stream: TcpStream,
    activity: Activity,
    /// The count of [`Activity`] when patience began.
    seen: u64,
    patience: Pin<Box<Sleep>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Connection {
    fn check_patience(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.patience.as_mut().poll(cx).is_ready() {
            let count = self.activity.0.load(Ordering::Relaxed);
            if count == self.seen && count.is_multiple_of(2) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.seen = count;
            self.patience.as_mut().reset(Instant::now() + PATIENCE);
        }
        Ok(())
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check_patience(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check_patience(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
