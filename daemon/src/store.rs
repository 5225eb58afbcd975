//! The daemon's own small memory, in sled: the acknowledge record and the moves.
//!
//! A cache and a cursor, never the only truth: what it says is compared with the targets, the
//! spools and the slot at every start. Nothing else uses sled.

use std::fs;
use std::path::Path;

use schemas::MoveId;
use schemas::record::{self, AckRecord, BadRecord, KnownTables, MoveRecord};

const FORMAT: &str = "format";
const IDENTITY: &str = "identity";
const ACK: &str = "ack";
const MOVE: &str = "move/";
const REVERSE: &str = "reverse/";
const KNOWN_TABLES: &str = "known_tables";
const NEXT_MOVE: &str = "next_move";
/// Beside the database: says that there has been one.
const MARK: &str = "carveout-state";

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error("the state directory {0} is in use by another daemon")]
    Locked(String),
    /// It was used before, and its records are gone.
    #[error(
        "the records in the state directory {0} are gone, although it was used before: restore it whole, or move it away and cancel the moves' targets by hand"
    )]
    Emptied(String),
    /// The disk or the database failed.
    #[error("use the state directory: {0}")]
    Io(String),
    /// A record cannot be trusted.
    #[error(
        "read the record \"{key}\" of the state directory: {cause}; restore the directory from a copy, or move it away"
    )]
    Record {
        /// The record's key.
        key: String,
        /// What is wrong with it.
        cause: BadRecord,
    },
}

impl From<sled::Error> for StoreError {
    fn from(error: sled::Error) -> Self {
        StoreError::Io(error.to_string())
    }
}

impl From<std::io::Error> for StoreError {
    fn from(error: std::io::Error) -> Self {
        StoreError::Io(error.to_string())
    }
}

/// The open state directory.
#[derive(Clone)]
pub struct Store {
    db: sled::Db,
    /// What the keys of a pipeline begin with.
    of: String,
}

impl Store {
    /// Opens it, or makes it when it has never been used.
    pub fn open(state_dir: &Path) -> Result<Store, StoreError> {
        fs::create_dir_all(state_dir)?;
        let path = state_dir.join("sled");
        let db = sled::Config::new().path(&path).cache_capacity(4 << 20).open().map_err(|error| match &error {
            sled::Error::Io(io) if io.kind() == std::io::ErrorKind::WouldBlock || io.to_string().contains("lock") => {
                StoreError::Locked(state_dir.display().to_string())
            }
            _ => StoreError::Io(error.to_string()),
        })?;
        let mark = state_dir.join(MARK);
        if db.get(FORMAT)?.is_none() {
            if mark.exists() {
                return Err(StoreError::Emptied(state_dir.display().to_string()));
            }
            db.insert(FORMAT, b"1".as_slice())?;
            db.insert(
                IDENTITY,
                format!("state {:x}-{:x}", crate::clock::unix_micros(), std::process::id()).as_bytes(),
            )?;
            db.flush()?;
            fs::write(&mark, "made by carveout; do not change what is in this folder\n")?;
        }
        Ok(Store { db, of: String::new() })
    }

    fn get<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StoreError> {
        let Some(bytes) = self.db.get(key)? else { return Ok(None) };
        record::decode(&bytes).map(Some).map_err(|cause| StoreError::Record { key: key.to_owned(), cause })
    }

    fn put<T: serde::Serialize>(&self, key: &str, value: &T) -> Result<(), StoreError> {
        let bytes = record::encode(value).map_err(|cause| StoreError::Record { key: key.to_owned(), cause })?;
        self.db.insert(key, bytes)?;
        self.db.flush()?;
        Ok(())
    }

    /// A name that no other state directory has; the slot is claimed under it.
    pub fn identity(&self) -> Result<String, StoreError> {
        let bytes = self.db.get(IDENTITY)?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The acknowledge record; `None` before the first acknowledgement.
    pub fn ack(&self) -> Result<Option<AckRecord>, StoreError> {
        self.get(&format!("{}{ACK}", self.of))
    }

    /// Makes the acknowledge record durable.
    pub fn put_ack(&self, ack: &AckRecord) -> Result<(), StoreError> {
        self.put(&format!("{}{ACK}", self.of), ack)
    }

    /// Every move, by number.
    pub fn moves(&self) -> Result<Vec<MoveRecord>, StoreError> {
        let mut moves = Vec::new();
        for entry in self.db.scan_prefix(MOVE) {
            let (key, bytes) = entry?;
            let key = String::from_utf8_lossy(&key).into_owned();
            moves.push(record::decode(&bytes).map_err(|cause| StoreError::Record { key, cause })?);
        }
        moves.sort_by_key(|record: &MoveRecord| record.id);
        Ok(moves)
    }

    /// Makes a move's record durable.
    pub fn put_move(&self, record: &MoveRecord) -> Result<(), StoreError> {
        self.put(&format!("{MOVE}{}", record.id), record)
    }

    /// The same with the records of a lane back's own pipeline.
    pub fn of_reverse(&self, id: MoveId) -> Store {
        Store { db: self.db.clone(), of: format!("{REVERSE}{id}/") }
    }

    /// Forgets a lane back.
    pub fn forget_reverse(&self, id: MoveId) -> Result<(), StoreError> {
        self.db.remove(format!("{REVERSE}{id}/{ACK}"))?;
        self.db.remove(format!("{MOVE}{id}"))?;
        self.db.flush()?;
        Ok(())
    }

    /// Since when the published tables are known.
    pub fn known_tables(&self) -> Result<KnownTables, StoreError> {
        Ok(self.get(KNOWN_TABLES)?.unwrap_or_default())
    }

    /// Makes that durable.
    pub fn put_known_tables(&self, known: &KnownTables) -> Result<(), StoreError> {
        self.put(KNOWN_TABLES, known)
    }

    /// A number that no move has had.
    pub fn next_move(&self) -> Result<MoveId, StoreError> {
        let next = self.get::<u64>(NEXT_MOVE)?.unwrap_or(1);
        self.put(NEXT_MOVE, &(next + 1))?;
        Ok(MoveId(next))
    }
}
