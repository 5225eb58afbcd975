//! The others' end of the pipeline: what it shows of itself, and what can be asked of it.

use std::time::Duration;

use bytes::Bytes;
use schemas::record::Fault;
use schemas::{Lsn, MoveId, TableName};
use tokio::sync::{mpsc, oneshot, watch};

use crate::ack::SharedUnseen;
use crate::ownership::Reference;
use crate::router::{LaneEnd, TableRoute};

/// How long a record may take.
const RECORD_PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait for the stream: longer than the pause between two tries to connect.
const STREAM_PATIENCE: Duration = Duration::from_secs(20);

/// What the pipeline shows of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// `connecting`, `streaming` or `stopped`.
    pub state: &'static str,
    /// Everything up to here has been received: a transaction end, or a keepalive's end.
    pub received: Lsn,
    /// What the slot has been told.
    pub acknowledged: Lsn,
    /// The end of the source's log as last heard.
    pub wal_end: Lsn,
    /// The source's log went beyond `received` then (Unix time, microseconds), and that has not been received yet.
    pub behind_since: Option<i64>,
    /// Log that the slot keeps on the source.
    pub retained_bytes: Option<u64>,
    /// The server's clock minus ours, microseconds since 2000-01-01 against the Unix epoch's.
    pub server_clock_offset: i64,
    /// Whether the slot has been ours in this run: before that, another daemon may be at work.
    pub owns_slot: bool,
    /// What stopped it, or what it waits for.
    pub fault: Option<Fault>,
    /// How often the lanes' keys were lost: they have to be read again.
    pub keys_lost: u64,
    /// How many acknowledge records were written.
    pub rounds: u64,
}

/// What can be asked of the pipeline.
pub enum Command {
    /// Open a lane at the next transaction boundary.
    Open {
        /// The lane with its spool.
        lane: Box<LaneEnd>,
        /// Its tables' routes.
        tables: Vec<(TableName, TableRoute)>,
        /// Answered when it is open.
        opened: oneshot::Sender<()>,
    },
    /// Close a lane and give it back.
    Close {
        /// The move.
        id: MoveId,
        /// Answered with the lane, if it was open.
        closed: oneshot::Sender<Option<LaneEnd>>,
    },
    /// A lane's keys are about to be read from its target.
    BeginKeys {
        /// The move.
        id: MoveId,
        /// Answered with what to read; `None` when the lane has no rows that others refer to.
        begun: oneshot::Sender<Option<Keys>>,
    },
    /// Some of a lane's keys.
    AddKeys {
        /// The move.
        id: MoveId,
        /// What they are keys of.
        reference: Reference,
        /// Each as the wire carries it.
        keys: Vec<Bytes>,
        /// Answered when they are in the index.
        added: oneshot::Sender<Added>,
    },
    /// No more of a lane's keys come.
    EndKeys {
        /// The move.
        id: MoveId,
        /// They are all there; otherwise they are forgotten.
        complete: bool,
        /// False: they do not count, and have to be read again.
        ended: oneshot::Sender<bool>,
    },
}

/// What is read of a lane's keys.
pub struct Keys {
    /// The target must hold everything up to here first.
    pub from: Lsn,
    /// Tables and columns.
    pub tables: Vec<(Reference, TableName, Vec<String>)>,
}

/// What became of keys that were to be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// They are in the index.
    Yes,
    /// They do not count any more: begin again.
    Lost,
    /// The index would outgrow `limits.memory`.
    Full,
}

/// The others' end of the pipeline.
#[derive(Clone)]
pub struct PipelineHandle {
    pub(super) commands: mpsc::Sender<Command>,
    /// How far it has come.
    pub progress: watch::Receiver<Progress>,
    /// Delivered transactions that no snapshot shows yet.
    pub unseen: SharedUnseen,
}

impl PipelineHandle {
    /// Opens a lane; when this returns, every transaction delivered from now on reaches it.
    pub async fn open(&self, lane: LaneEnd, tables: Vec<(TableName, TableRoute)>) -> anyhow::Result<()> {
        let (opened, done) = oneshot::channel();
        self.commands.send(Command::Open { lane: Box::new(lane), tables, opened }).await.map_err(|_| stopped())?;
        done.await.map_err(|_| stopped())
    }

    /// Closes a lane.
    pub async fn close(&self, id: MoveId) -> anyhow::Result<Option<LaneEnd>> {
        let (closed, done) = oneshot::channel();
        self.commands.send(Command::Close { id, closed }).await.map_err(|_| stopped())?;
        done.await.map_err(|_| stopped())
    }

    /// Begins to read a lane's keys.
    pub async fn begin_keys(&self, id: MoveId) -> anyhow::Result<Option<Keys>> {
        let (begun, done) = oneshot::channel();
        self.commands.send(Command::BeginKeys { id, begun }).await.map_err(|_| stopped())?;
        done.await.map_err(|_| stopped())
    }

    /// Adds keys of a lane.
    pub async fn add_keys(&self, id: MoveId, reference: Reference, keys: Vec<Bytes>) -> anyhow::Result<Added> {
        let (added, done) = oneshot::channel();
        self.commands.send(Command::AddKeys { id, reference, keys, added }).await.map_err(|_| stopped())?;
        done.await.map_err(|_| stopped())
    }

    /// A lane's keys are complete: what refers to them is routed by them from here on; or they are not, and are
    /// forgotten. False when they have to be read again.
    pub async fn end_keys(&self, id: MoveId, complete: bool) -> anyhow::Result<bool> {
        let (ended, done) = oneshot::channel();
        self.commands.send(Command::EndKeys { id, complete, ended }).await.map_err(|_| stopped())?;
        done.await.map_err(|_| stopped())
    }

    /// Waits until the acknowledge record says what is so now; false when that takes too long, as while the source is away.
    pub async fn recorded(&self) -> anyhow::Result<bool> {
        // One may be under way.
        let enough = self.progress.borrow().rounds + 2;
        self.reaches(RECORD_PATIENCE, |progress| progress.rounds >= enough).await
    }

    /// Waits until the slot is read; false when that takes too long, as while the source is away.
    pub async fn streams(&self) -> anyhow::Result<bool> {
        self.reaches(STREAM_PATIENCE, |progress| progress.state == "streaming").await
    }

    /// Waits for what does not come any more where it has stopped.
    async fn reaches(&self, patience: Duration, enough: impl Fn(&Progress) -> bool) -> anyhow::Result<bool> {
        let mut progress = self.progress.clone();
        let reached = progress.wait_for(|progress| enough(progress) || progress.state == "stopped");
        match tokio::time::timeout(patience, reached).await {
            Ok(Ok(progress)) if progress.state != "stopped" => Ok(true),
            Ok(Ok(_)) | Err(_) => Ok(false),
            Ok(Err(_)) => Err(stopped()),
        }
    }

    /// Waits until the stream has passed `position`.
    pub async fn passed(&self, position: Lsn) -> anyhow::Result<()> {
        let mut progress = self.progress.clone();
        progress.wait_for(|progress| progress.received >= position).await.map_err(|_| stopped())?;
        Ok(())
    }
}

fn stopped() -> anyhow::Error {
    anyhow::anyhow!("the pipeline has stopped")
}
