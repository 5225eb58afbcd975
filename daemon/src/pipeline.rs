//! The one task that reads the slot: routes changes into the lanes' spools and acknowledges.
//!
//! It never waits for a target, and never for an acknowledgement's disk work; it only ever waits
//! for the socket, its clock, and commands.

mod connect;
mod form;
mod handle;

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use bytes::Bytes;
use connectors::postgres::pgoutput::{self, Message};
use connectors::postgres::stream::{Frame, Stream};
use connectors::postgres::{Error, Result};
use schemas::config::Config;
use schemas::record::AckRecord;
use schemas::{Lsn, MoveId};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use crate::ack::{AckError, Acknowledger, Done, Round, SharedUnseen};
use crate::ownership::Reference;
use crate::router::{Broken, Router};
use crate::stop;
use crate::store::Store;
pub use connect::{Beginning, begin};
pub use handle::{Added, Command, Keys, PipelineHandle, Progress};

/// How often a position is made durable and acknowledged.
const ACK_EVERY: Duration = Duration::from_millis(1000);
/// How often the server hears from us in any case.
const STATUS_EVERY: Duration = Duration::from_millis(500);
/// After this silence the server is asked for a sign of life.
const ASK_AFTER: Duration = Duration::from_secs(10);
/// After this silence the connection counts as dead.
const DEAD_AFTER: Duration = Duration::from_secs(30);
/// Frames handled before the clock is looked at again.
const FRAMES_PER_TURN: usize = 2000;
/// The longest pause between attempts to connect.
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// The pipeline's own state; `run` consumes it.
pub struct Pipeline {
    config: Config,
    router: Router,
    base: AckRecord,
    commands: mpsc::Receiver<Command>,
    waiting: Vec<Command>,
    progress: watch::Sender<Progress>,
    broken: mpsc::UnboundedSender<Broken>,
    unseen: SharedUnseen,
    position: Lsn,
    /// The log's end when `Progress::behind_since` was set.
    ahead: Lsn,
    /// The last position that was handed to the acknowledger.
    requested: Lsn,
    xid: u32,
    acknowledged: Lsn,
    rounds: mpsc::Sender<Round>,
    results: mpsc::Receiver<std::result::Result<Done, AckError>>,
    round_running: bool,
    /// A round that failed to make something durable: the pipeline must not go on.
    failed: Option<Error>,
    form: form::Form,
    stop: watch::Receiver<bool>,
}

/// Starts the pipeline in the background.
pub fn spawn(
    config: Config,
    beginning: Beginning,
    router: Router,
    store: Store,
    broken: mpsc::UnboundedSender<Broken>,
    stop: watch::Receiver<bool>,
) -> (PipelineHandle, tokio::task::JoinHandle<()>) {
    let Beginning { base, acknowledged, unseen, server_version: _ } = beginning;
    let (commands_in, commands) = mpsc::channel(64);
    let (rounds, mut rounds_out) = mpsc::channel(1);
    let (results_in, results) = mpsc::channel(1);
    let progress = watch::Sender::new(Progress {
        state: "connecting",
        received: acknowledged,
        acknowledged,
        wal_end: acknowledged,
        retained_bytes: None,
        server_clock_offset: 0,
        owns_slot: false,
        behind_since: None,
        fault: None,
        keys_lost: 0,
        rounds: 0,
    });
    let handle = PipelineHandle { commands: commands_in, progress: progress.subscribe(), unseen: unseen.clone() };
    let mut acknowledger =
        Acknowledger::new(config.source.url.clone(), config.source.slot.clone(), store, unseen.clone());
    tokio::spawn(async move {
        while let Some(round) = rounds_out.recv().await {
            if results_in.send(acknowledger.run(round).await).await.is_err() {
                return;
            }
        }
    });
    let pipeline = Pipeline {
        config,
        router,
        base,
        commands,
        waiting: Vec::new(),
        progress,
        broken,
        unseen,
        position: acknowledged,
        requested: acknowledged,
        ahead: acknowledged,
        xid: 0,
        acknowledged,
        rounds,
        results,
        round_running: false,
        failed: None,
        form: form::Form::default(),
        stop,
    };
    let task = tokio::spawn(tracing::Instrument::instrument(pipeline.run(), tracing::info_span!("pipeline")));
    (handle, task)
}

/// Why a session with the server ended.
enum Ended {
    Stop,
    Lost(Error),
}

impl Pipeline {
    async fn run(mut self) {
        let mut backoff = Duration::from_millis(100);
        loop {
            let began = Instant::now();
            let ended = match self.session().await {
                Ok(()) => Ended::Stop,
                Err(error) => Ended::Lost(error),
            };
            if !self.router.restart() {
                // The spools still hold what was shown or to be acknowledged; the rest has to come again.
                self.position = self.requested.max(self.progress.borrow().received);
                self.progress.send_modify(|progress| progress.keys_lost += 1);
            }
            self.report_broken();
            match ended {
                Ended::Stop => return,
                Ended::Lost(error) if self.form.gives_way(&error) => {
                    tracing::info!(%error, "connecting again for values as text");
                    self.progress.send_modify(|progress| progress.state = "connecting");
                    continue;
                }
                Ended::Lost(error) if connect::is_final(&error) => {
                    let fault = connect::fault(&self.config, &error);
                    tracing::error!(%error, "the pipeline stopped: nothing more is read from the source");
                    self.progress.send_modify(|progress| {
                        progress.state = "stopped";
                        progress.fault = Some(fault);
                    });
                    return self.stand().await;
                }
                Ended::Lost(error) => {
                    tracing::warn!(%error, "the stream ended; connecting again");
                    let fault = connect::waits_for(&self.config, &error);
                    self.progress.send_modify(|progress| (progress.state, progress.fault) = ("connecting", fault));
                }
            }
            if began.elapsed() > LONGEST_BACKOFF {
                backoff = Duration::from_millis(100);
            }
            if self.pause(backoff).await {
                return;
            }
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    }

    /// Reads nothing more, but still gives lanes back, until told to stop.
    async fn stand(&mut self) {
        loop {
            self.serve_commands();
            tokio::select! {
                () = stop::told(&self.stop) => return,
                command = self.commands.recv() => match command {
                    Some(command) => self.waiting.push(command),
                    None => return,
                },
            }
        }
    }

    /// Waits between attempts, serving commands; true when told to stop.
    async fn pause(&mut self, backoff: Duration) -> bool {
        let pause = tokio::time::sleep(backoff);
        tokio::pin!(pause);
        loop {
            self.serve_commands();
            tokio::select! {
                () = &mut pause => return false,
                () = stop::told(&self.stop) => return true,
                Some(command) = self.commands.recv() => self.waiting.push(command),
                Some(result) = self.results.recv() => self.failed = self.round_ended(result).err(),
            }
        }
    }

    /// One connection, from START_REPLICATION to its end.
    async fn session(&mut self) -> Result<()> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let source = self.config.source.clone();
        let wal_end = connect::compare(&self.config, &self.base, self.acknowledged).await?;
        self.look_ahead(wal_end);
        connect::room(&self.config)?;
        let binary = self.form.decide(&source).await?;
        let mut stream = Stream::open(&source.url, &source.slot, &source.publication, Lsn::ZERO, binary).await?;
        connect::same_system(&stream, &self.base, self.position)?;
        // The stream begins again at the confirmed position; what is held already is skipped.
        self.progress.send_modify(|progress| {
            (progress.state, progress.owns_slot) = ("streaming", true);
            progress.fault = progress.fault.take().filter(|fault| fault.code == connect::DISK_FULL);
        });
        tracing::info!(slot = source.slot, from = %self.acknowledged, binary, "streaming");
        let mut ack = tokio::time::interval(ACK_EVERY);
        let mut status = tokio::time::interval(STATUS_EVERY);
        ack.set_missed_tick_behavior(MissedTickBehavior::Delay);
        status.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.serve_commands();
            self.form.review(&self.config.source).await?;
            tokio::select! {
                biased;
                () = stop::told(&self.stop) => return self.last_words(stream).await,
                _ = ack.tick() => self.begin_round(),
                Some(result) = self.results.recv() => {
                    self.round_ended(result)?;
                    self.send_status(&mut stream, false).await?;
                }
                _ = status.tick() => self.still_alive(&mut stream).await?,
                Some(command) = self.commands.recv() => self.waiting.push(command),
                ready = stream.ready() => {
                    ready?;
                    self.drain(&mut stream).await?;
                }
            }
        }
    }

    /// Handles what has arrived.
    async fn drain(&mut self, stream: &mut Stream) -> Result<()> {
        let mut asked = false;
        for _ in 0..FRAMES_PER_TURN {
            match stream.try_next()? {
                None => break,
                Some(Frame::Data { payload, wal_end }) => {
                    if payload.first() == Some(&b'R') {
                        self.form.admit(&self.config.source, &payload).await?;
                    }
                    self.message(&payload)?;
                    self.heard(wal_end, None);
                }
                Some(Frame::Keepalive { end, server_time, reply }) => {
                    if !self.router.in_transaction() {
                        self.position = self.position.max(end);
                    }
                    self.heard(end, Some(server_time));
                    asked |= reply;
                }
            }
            if !self.waiting.is_empty() {
                self.serve_commands();
            }
        }
        self.router.flush();
        self.report_broken();
        if self.router.take_keys_lost() {
            self.progress.send_modify(|progress| progress.keys_lost += 1);
        }
        if self.router.is_full() {
            return Err(connect::no_room(&self.config));
        }
        connect::room(&self.config)?;
        let position = self.position;
        self.progress.send_if_modified(|progress| {
            let read = std::mem::replace(&mut progress.received, position) != position;
            progress.fault = progress.fault.take().filter(|_| !read);
            progress.behind_since = progress.behind_since.filter(|_| position < self.ahead);
            read
        });
        if asked {
            // A server that shuts down waits for this position to be acknowledged.
            self.begin_round();
            self.send_status(stream, false).await?;
        }
        Ok(())
    }

    fn message(&mut self, payload: &Bytes) -> Result<()> {
        match pgoutput::decode(payload)? {
            Message::Begin { final_lsn, commit_ts, xid } => {
                self.xid = xid;
                self.router.begin(xid, final_lsn, commit_ts);
            }
            Message::Commit { end_lsn, .. } => {
                self.unseen.lock().unwrap_or_else(PoisonError::into_inner).delivered(self.xid);
                self.router.commit(end_lsn)?;
                self.position = self.position.max(end_lsn);
            }
            message => self.router.change(payload, message)?,
        }
        Ok(())
    }

    fn heard(&mut self, wal_end: Lsn, server_time: Option<i64>) {
        self.progress.send_if_modified(|progress| {
            let newer = wal_end > progress.wal_end;
            progress.wal_end = progress.wal_end.max(wal_end);
            if let Some(time) = server_time {
                progress.server_clock_offset = time - crate::clock::unix_micros();
            }
            newer
        });
    }

    /// Opens and closes lanes, between transactions only.
    fn serve_commands(&mut self) {
        if self.router.in_transaction() {
            return;
        }
        for command in std::mem::take(&mut self.waiting) {
            match command {
                Command::Open { lane, tables, opened } => {
                    self.router.open(*lane, tables);
                    self.form.doubt();
                    let _ = opened.send(());
                }
                Command::Close { id, closed } => {
                    let _ = closed.send(self.router.close(id));
                }
                Command::BeginKeys { id, begun } => {
                    let _ = begun.send(self.begin_keys(id));
                }
                Command::AddKeys { id, reference, keys, added } => {
                    let _ = added.send(self.add_keys(id, reference, &keys));
                }
                Command::EndKeys { id, complete, ended } => {
                    let known = self.router.ownership().end_reading(id, complete);
                    if known && complete {
                        let index = self.router.ownership();
                        let (keys, bytes) = (index.count(), index.bytes());
                        tracing::info!(%id, keys, bytes, "whose the rows are that others refer to is known");
                    }
                    let _ = ended.send(known);
                }
            }
        }
    }

    fn begin_keys(&mut self, id: MoveId) -> Option<Keys> {
        let from = self.router.lanes().find(|lane| lane.id == id)?.spool.end();
        self.router.ownership().begin_reading(id).map(|tables| Keys { from, tables })
    }

    fn add_keys(&mut self, id: MoveId, reference: Reference, keys: &[Bytes]) -> Added {
        let most = self.config.limits.memory.0;
        let ownership = self.router.ownership();
        if ownership.bytes() > most {
            return Added::Full;
        }
        match keys.iter().all(|key| ownership.add(id, reference, key)) {
            true => Added::Yes,
            false => Added::Lost,
        }
    }

    /// Hands the current position to the acknowledger, unless it is still busy.
    fn begin_round(&mut self) {
        if self.round_running {
            return;
        }
        self.router.flush();
        // A record that cannot be written would stop everything for good.
        if self.router.is_full() || connect::room(&self.config).is_err() {
            return;
        }
        let (mut jobs, mut held, mut applied) = (Vec::new(), Vec::new(), Vec::new());
        for lane in self.router.lanes_mut() {
            if !lane.spool.state().caught_up() {
                held.push((lane.id, lane.spool.end()));
                jobs.extend(lane.spool.sync_job());
            }
            applied.push((lane.id, lane.spool.state().known_applied()));
        }
        let quarantined = self.router.quarantined();
        let round = Round { position: self.position, base: self.base.clone(), jobs, held, applied, quarantined };
        self.round_running = self.rounds.try_send(round).is_ok();
        if self.round_running {
            self.requested = self.requested.max(self.position);
        }
    }

    fn round_ended(&mut self, result: std::result::Result<Done, AckError>) -> Result<()> {
        self.round_running = false;
        match result {
            Ok(Done { position, polled }) => {
                if polled.is_some_and(|polled| polled.lost) {
                    return Err(Error::server("acknowledge", "55000", "the slot is lost or was dropped"));
                }
                self.acknowledged = self.acknowledged.max(position);
                let acknowledged = self.acknowledged;
                self.progress.send_modify(|progress| {
                    progress.acknowledged = acknowledged;
                    progress.rounds += 1;
                    progress.retained_bytes = polled.map(|polled| polled.retained_bytes).or(progress.retained_bytes);
                });
                if let Some(polled) = polled {
                    self.look_ahead(polled.wal_end);
                }
            }
            // What could not be synced may be lost: it must come from the source again.
            Err(error) => return Err(Error::state("acknowledge", error)),
        }
        Ok(())
    }

    /// The source says where its log ends: what lies between that and what was received counts as lag from now.
    fn look_ahead(&mut self, wal_end: Lsn) {
        let (position, ahead) = (self.position, &mut self.ahead);
        self.progress.send_modify(|progress| {
            progress.wal_end = progress.wal_end.max(wal_end);
            if progress.behind_since.is_none() && wal_end > position {
                (progress.behind_since, *ahead) = (Some(crate::clock::unix_micros()), wal_end);
            }
        });
    }

    async fn send_status(&mut self, stream: &mut Stream, reply: bool) -> Result<()> {
        stream.status(self.position, self.acknowledged, reply).await
    }

    async fn still_alive(&mut self, stream: &mut Stream) -> Result<()> {
        let silence = stream.last_received().elapsed();
        if silence > DEAD_AFTER {
            return Err(Error::connection(
                "read the stream",
                format!("the server has been silent for {} s", silence.as_secs()),
            ));
        }
        self.send_status(stream, silence > ASK_AFTER).await
    }

    fn report_broken(&mut self) {
        for broken in self.router.take_broken() {
            tracing::warn!(lane = %broken.lane.id, cause = broken.fault.message, "a lane was taken out");
            if self.broken.send(broken).is_err() {
                return;
            }
        }
    }

    /// The end: one more round, so that the slot knows everything that is durable.
    async fn last_words(&mut self, mut stream: Stream) -> Result<()> {
        self.router.restart();
        if self.round_running
            && let Some(result) = self.results.recv().await
        {
            self.round_ended(result)?;
        }
        self.begin_round();
        if self.round_running
            && let Some(result) = self.results.recv().await
        {
            self.round_ended(result)?;
        }
        self.send_status(&mut stream, false).await?;
        stream.stop().await
    }
}
