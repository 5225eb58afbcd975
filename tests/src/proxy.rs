//! A TCP proxy between a daemon and a database that a test disturbs at will: late, slow, deaf, shut, cut.
//! It never changes or reorders bytes; what it swallowed is gone, so a connection that went through
//! [`Proxy::black_hole`] is good for nothing but to be cut.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

/// Bytes read at once.
const CHUNK_BYTES: usize = 16 << 10;
/// Chunks on their way in one direction of one connection; behind them the sender has to wait.
const QUEUED_CHUNKS: usize = 256;
/// With a rate, bytes go in pieces of a twentieth of a second.
const PIECES_PER_SECOND: u64 = 20;

/// What is done to the traffic; one value for all connections.
#[derive(Clone, Copy, Debug, Default)]
struct Weather {
    delay: Duration,
    bytes_per_second: Option<u64>,
    refuse: bool,
    black_hole: bool,
    /// How often [`Proxy::cut`] was called: a connection ends when it differs from when it began.
    cuts: u64,
}

/// Counters that outlive the connections they count.
#[derive(Debug, Default)]
struct Counters {
    accepted: AtomicUsize,
    open: AtomicUsize,
}

/// A listening proxy. Every setting takes effect at once, on open connections too. Dropping it closes all.
#[derive(Debug)]
pub struct Proxy {
    /// Where to connect instead of the upstream.
    pub addr: SocketAddr,
    weather: watch::Sender<Weather>,
    counters: Arc<Counters>,
    listener: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 and passes everything on to `upstream`.
    pub async fn start(upstream: SocketAddr) -> Result<Proxy> {
        let socket = TcpListener::bind(("127.0.0.1", 0)).await.context("bind the proxy")?;
        let addr = socket.local_addr().context("read the proxy's address")?;
        let (weather, watched) = watch::channel(Weather::default());
        let counters = Arc::new(Counters::default());
        let listener = tokio::spawn(listen(socket, upstream, watched, counters.clone()));
        Ok(Proxy { addr, weather, counters, listener })
    }

    /// Every byte arrives this much later, in both directions; the bandwidth stays.
    pub fn delay(&self, delay: Duration) {
        self.weather.send_modify(|weather| weather.delay = delay);
    }

    /// At most so many bytes a second, per connection and direction; 0 takes the limit away.
    pub fn rate(&self, bytes_per_second: u64) {
        let limit = Some(bytes_per_second).filter(|limit| *limit > 0);
        self.weather.send_modify(|weather| weather.bytes_per_second = limit);
    }

    /// While true, a new connection is reset as soon as it is accepted; open ones go on.
    pub fn refuse(&self, refuse: bool) {
        self.weather.send_modify(|weather| weather.refuse = refuse);
    }

    /// While true, connections stay open and bytes of both directions vanish, the end of a stream too.
    pub fn black_hole(&self, black_hole: bool) {
        self.weather.send_modify(|weather| weather.black_hole = black_hole);
    }

    /// Resets all open connections (RST, nothing that is on its way arrives); new ones are accepted.
    pub fn cut(&self) {
        self.weather.send_modify(|weather| weather.cuts += 1);
    }

    /// Connections accepted since the start, refused ones not counted.
    pub fn accepted(&self) -> usize {
        self.counters.accepted.load(Ordering::SeqCst)
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.counters.open.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The listening task owns the connections' tasks: they end with it.
        self.listener.abort();
    }
}

async fn listen(socket: TcpListener, upstream: SocketAddr, weather: watch::Receiver<Weather>, counters: Arc<Counters>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = socket.accept() => {
                let Ok((client, _)) = accepted else { continue };
                if weather.borrow().refuse {
                    client.set_zero_linger().ok();
                    continue;
                }
                connections.spawn(connection(client, upstream, weather.clone(), counters.clone()));
            }
        }
    }
}

/// Counts a connection for as long as it is open, also when its task is aborted.
struct Open(Arc<Counters>);

impl Open {
    fn count(counters: Arc<Counters>) -> Open {
        counters.accepted.fetch_add(1, Ordering::SeqCst);
        counters.open.fetch_add(1, Ordering::SeqCst);
        Open(counters)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// One connection from accept to end. An orderly end of one side is passed on; anything else resets both.
async fn connection(
    mut client: TcpStream,
    upstream: SocketAddr,
    mut weather: watch::Receiver<Weather>,
    counters: Arc<Counters>,
) {
    let _open = Open::count(counters);
    let cuts = weather.borrow().cuts;
    let Ok(mut server) = TcpStream::connect(upstream).await else {
        client.set_zero_linger().ok();
        return;
    };
    client.set_nodelay(true).and(server.set_nodelay(true)).ok();
    let orderly = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let (upward, downward) = (weather.clone(), weather.clone());
        let both =
            async { tokio::try_join!(pump(from_client, to_server, upward), pump(from_server, to_client, downward)) };
        tokio::select! {
            done = both => done.is_ok(),
            _ = weather.wait_for(|weather| weather.cuts != cuts) => false,
        }
    };
    if !orderly {
        client.set_zero_linger().and(server.set_zero_linger()).ok();
    }
}

/// Carries one direction: reading stamps every chunk with its time of arrival, writing obeys the weather.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut weather: watch::Receiver<Weather>,
) -> std::io::Result<()> {
    let (queue, mut queued) = mpsc::channel::<(Instant, Vec<u8>)>(QUEUED_CHUNKS);
    let read = async move {
        loop {
            let mut chunk = vec![0; CHUNK_BYTES];
            let length = from.read(&mut chunk).await?;
            chunk.truncate(length);
            // Without a reader of the queue this direction is over anyway.
            if length == 0 || queue.send((Instant::now(), chunk)).await.is_err() {
                return Ok(());
            }
        }
    };
    let write = async {
        while let Some((arrived, chunk)) = queued.recv().await {
            let delay = weather.borrow().delay;
            sleep_until(arrived + delay).await;
            pour(&mut to, &chunk, &weather).await?;
        }
        weather.wait_for(|weather| !weather.black_hole).await.ok();
        to.shutdown().await
    };
    tokio::try_join!(read, write).map(|_| ())
}

/// Writes one chunk, in pieces when there is a rate, or drops it.
async fn pour(
    to: &mut (impl AsyncWrite + Unpin),
    mut chunk: &[u8],
    weather: &watch::Receiver<Weather>,
) -> std::io::Result<()> {
    while !chunk.is_empty() {
        let Weather { bytes_per_second, black_hole, .. } = *weather.borrow();
        if black_hole {
            return Ok(());
        }
        let most = bytes_per_second.map_or(chunk.len(), |rate| (rate / PIECES_PER_SECOND).max(1) as usize);
        let (piece, rest) = chunk.split_at(most.min(chunk.len()));
        to.write_all(piece).await?;
        chunk = rest;
        if let Some(rate) = bytes_per_second {
            sleep(Duration::from_secs_f64(piece.len() as f64 / rate as f64)).await;
        }
    }
    Ok(())
}
