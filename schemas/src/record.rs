//! Records that outlive the daemon: a version byte, a crc32 and bincode inside.
//!
//! A record is a cursor and a cache, never the only truth: positions are compared with the targets
//! and the slot at every start.

mod proof;

use std::fmt;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::Isolation;
use crate::status::VerifyReport;
use crate::{Lsn, MoveId, Phase, TableName, TablePath, TenantId};
pub use proof::{ChangedKeys, Kept, Proof};

/// The layout of the records below; raised when one of them changes.
const VERSION: u8 = 10;

/// The bytes are not a record of this version.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadRecord {
    /// Written by another version of Carveout.
    #[error("the record has version {0}, this program reads version {VERSION}")]
    Version(u8),
    /// The checksum does not match: the disk or a person changed it.
    #[error("the record is damaged (checksum does not match)")]
    Damaged,
}

/// Frames a record for storage.
pub fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>, BadRecord> {
    let body = bincode::serialize(record).map_err(|_| BadRecord::Damaged)?;
    let mut bytes = Vec::with_capacity(body.len() + 5);
    bytes.push(VERSION);
    bytes.extend_from_slice(&crc32fast::hash(&body).to_be_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// Reads a framed record back, or says why it cannot be trusted.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BadRecord> {
    let (version, rest) = bytes.split_first().ok_or(BadRecord::Damaged)?;
    if *version != VERSION {
        return Err(BadRecord::Version(*version));
    }
    let (crc, body) = rest.split_at_checked(4).ok_or(BadRecord::Damaged)?;
    if crc != crc32fast::hash(body).to_be_bytes() {
        return Err(BadRecord::Damaged);
    }
    bincode::deserialize(body).map_err(|_| BadRecord::Damaged)
}

/// What is made durable before an acknowledgement passes to the slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AckRecord {
    /// `IDENTIFY_SYSTEM`'s system identifier of the source.
    pub system_id: String,
    /// The source's timeline.
    pub timeline: u32,
    /// The slot's name.
    pub slot: String,
    /// `pg_publication.oid`: a publication made anew has another one, and rows in between are lost.
    pub publication_oid: u32,
    /// Everything up to here is held by every lane, in its sink or in its synced spool.
    pub position: Lsn,
    /// Top-level transactions delivered up to `position` that no polled snapshot showed yet.
    pub unseen: Vec<u32>,
    /// On a fresh slot: a snapshot counts for a copy only once its xmin has reached this.
    pub fresh_xid: Option<u64>,
    /// For lanes that were not caught up in their target: the end of the last transaction that
    /// target or synced spool holds.
    pub held: Vec<(MoveId, Lsn)>,
    /// For every open lane: the end of the last transaction that its target was seen to hold. A target
    /// that holds less at the next start was set back.
    pub applied: Vec<(MoveId, Lsn)>,
    /// Lanes that were taken out because they could not hold what was received: nothing of theirs
    /// counts any more, their tenants must be copied again.
    pub quarantined: Vec<MoveId>,
}

/// A move as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveRecord {
    /// Its number.
    pub id: MoveId,
    /// The tenant.
    pub tenant: TenantId,
    /// Where the tenant goes.
    pub to: Isolation,
    /// The server of its own that it goes to; `None` where the configuration's patterns point.
    pub server: Option<OwnServer>,
    /// The database of the target.
    pub database: String,
    /// The schema of the target; `None` where a database of its own keeps the source's schemas.
    pub schema: Option<String>,
    /// How far it has come.
    pub phase: Phase,
    /// What stopped it, when something did.
    pub fault: Option<Fault>,
    /// The end of the transaction that the fault is about, where it is about one.
    pub stopped_at: Option<Lsn>,
    /// A person holds it; only a person lets it go.
    pub paused: bool,
    /// The ends of the transactions that a person had left out of the target.
    pub skipped: Vec<Lsn>,
    /// The tables that move, fixed when the move was planned.
    pub tables: Vec<TableName>,
    /// Per table: how its rows' tenant is found. Routed by another path, rows would come and go wrongly.
    pub paths: Vec<TablePath>,
    /// What the source published of them then.
    pub published: Published,
    /// The copy's snapshot counts once its xmin has reached this: a transaction that was open when a table was
    /// published has changes in it that were not.
    pub fresh_xid: u64,
    /// This move makes, or has made, the database: `cancel` may drop it.
    pub made_database: bool,
    /// The rows of the copy must be emptied first (a copy after [`Phase::NeedsCopy`]).
    pub copy_again: bool,
    /// Estimated rows of the tenant when the copy began; the exact number when it was done.
    pub rows_total: u64,
    /// Rows copied, when the copy was done.
    pub rows_copied: u64,
    /// The last comparison of all rows, if it was clean.
    pub verified: Option<Proof>,
    /// What a lane left that was stopped while a comparison counted, or had begun.
    pub noted: Option<Kept>,
    /// Fences stand around the tenant at both ends, or may.
    pub fenced: bool,
    /// The route epoch: of the fence's row where the tenant lives, raised by each flip; zero before the first cutover
    /// was tried. While the writes are being moved: the one that the flip raises.
    pub epoch: i64,
    /// The writes have moved and came back: the fences stay.
    pub rolled_back: bool,
    /// It was complete, and the tenant was asked home: what was the way back is the way now, and the other way round.
    pub returning: bool,
    /// The tenant comes from a schema of its own in the source's database.
    pub from: Option<Stage>,
    /// The move that brought it there.
    pub after: Option<MoveId>,
    /// The lane back, while there is one, or may be.
    pub reverse: Option<MoveId>,
    /// This is a lane back.
    pub back: Option<Back>,
    /// The values that the target's sequences were given, in order.
    pub blocks: Vec<GivenBlock>,
    /// What happened, in order.
    pub history: Vec<Milestone>,
    /// The move's end, once somebody has asked for it.
    pub completion: Option<Completion>,
}

/// Something that happened to a move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Milestone {
    /// The phase that began, as it is shown.
    pub phase: String,
    /// Unix time in microseconds.
    pub at: i64,
    /// For how long the tenant's writers were held, in microseconds, where they were.
    pub pause_us: Option<u64>,
}

/// How a move ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Completion {
    /// The tenant's rows at the source are left there.
    pub keep_source: bool,
    /// The last clean comparison; `None` where `validation_enabled` is false.
    pub certificate: Option<VerifyReport>,
    /// The row versions at the source that may be deleted: what was there when nothing flowed back any more.
    pub covered: Option<(u64, Vec<u32>)>,
    /// Rows deleted at the source, by table.
    pub deleted: Vec<(String, u64)>,
    /// Rows of the tenant that were left at the source, by table.
    pub residue: Vec<(String, u64)>,
    /// Nothing else of it is there, and nothing of others where it lives.
    pub empty: bool,
}

/// Values of a sequence that are the target's, those between included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenBlock {
    /// The sequence at the source.
    pub sequence: TableName,
    /// The first one.
    pub first: i64,
    /// The last one.
    pub last: i64,
}

/// Where a tenant was brought by an earlier move, which is complete, and goes on from: its own tables there are read, and what
/// they were made from still says what they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// The schema.
    pub schema: String,
    /// What each table is called in the shared database, in the order of the record's tables.
    pub homes: Vec<TableName>,
    /// How their rows' tenant is found there.
    pub paths: Vec<TablePath>,
}

/// What makes a record one of a lane back: it carries what is written in a move's target home to the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Back {
    /// The move.
    pub of: MoveId,
    /// What each table is called at the source, in the order of the record's tables.
    pub homes: Vec<TableName>,
    /// Slot and publication in the target's database; `None` where that is the source's, which has some.
    pub slot: Option<String>,
}

impl MoveRecord {
    /// The isolation that the tenant comes from.
    pub fn home(&self) -> &'static str {
        if self.from.is_some() { "schema" } else { "shared" }
    }

    /// What the tables are called that the target's were, or are, made like.
    pub fn models(&self) -> &[TableName] {
        self.from.as_ref().map_or(&self.tables, |stage| &stage.homes)
    }

    /// The phase as it is shown to people, see [`Phase::shown`].
    pub fn word(&self, lag_seconds: Option<f64>, verifying: bool) -> &'static str {
        match self.phase {
            Phase::Following if self.returning && !verifying => "reversing",
            Phase::Following if self.rolled_back && !verifying => "rolled_back",
            Phase::Moved if self.returning => Phase::Following.shown(lag_seconds, verifying),
            phase => phase.shown(lag_seconds, verifying),
        }
    }

    /// What the phase is called once and for all, whatever the lag is now.
    pub fn stage(&self) -> &'static str {
        self.word(Some(0.0), false)
    }

    /// The phase has begun.
    pub fn enter(&mut self, at: i64) {
        self.history.push(Milestone { phase: self.stage().to_owned(), at, pause_us: None });
    }

    /// Whether a cutover that was not, or a rehearsal, has left something.
    pub fn leaves_something(&self) -> bool {
        self.back.is_none() && (self.reverse.is_some() || (self.fenced && !self.rolled_back))
    }

    /// The first transaction that was left out and that no clean `verify` has come after.
    pub fn unproved_skip(&self) -> Option<Lsn> {
        self.skipped.iter().copied().find(|skipped| self.verified_at().is_none_or(|at| at < *skipped))
    }

    /// What was compared says nothing any more.
    pub fn unproved(&mut self) {
        (self.verified, self.noted) = (None, None);
    }

    /// The position of the last clean comparison in the stream of this lane.
    pub fn verified_at(&self) -> Option<Lsn> {
        self.verified.as_ref().filter(|proof| !proof.carried).map(|proof| proof.report.lsn)
    }
}

/// The server that a tenant has for itself. Where it is stays with the move: another one would know nothing of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnServer {
    /// As in [`crate::url::PgUrl::host`], the tenant's name filled in.
    pub host: Option<String>,
    /// Its port.
    pub port: u16,
    /// Of `move --target`; `None` where the tenant's override in the configuration names it.
    pub named: Option<NamedTarget>,
}

/// `host:port`, without role and secrets.
impl fmt::Display for OwnServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host.as_deref().unwrap_or("localhost"), self.port)
    }
}

/// What `move --target` said. A password is no part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedTarget {
    /// The URL as it was given, perhaps a pattern.
    pub url: String,
    /// Where the daemon finds the password.
    pub password_file: Option<PathBuf>,
}

/// What the source publishes of some tables. Whatever differs later may have kept changes from the
/// stream without a word, so the rows must be copied again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// `xmin` of the publication's row in `pg_publication`: ALTER PUBLICATION … SET writes another.
    pub version: u32,
    /// The tables, by the name that they had.
    pub tables: Vec<(TableName, PublishedTable)>,
}

/// A published table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedTable {
    /// `pg_class.oid`: a table that took another's name has another one.
    pub oid: u32,
    /// `pg_publication_rel.oid`: a table that left the publication and came back has another one.
    pub member: u32,
    /// `pg_relation_filenode`: a table that was rewritten has another one.
    pub file: u32,
    /// The columns.
    pub columns: Vec<PublishedColumn>,
    /// What says whose its rows are, by name: foreign keys with all that they hold, and labels of enums
    /// ([`PublishedTable::label`]). Of a move: those that its rows' tenants are found by.
    pub found_by: Vec<(String, String)>,
    /// Whether it is partitioned.
    pub partitioned: bool,
    /// Its partitions at every level: `pg_class.oid`, and all that changes when rows come or go with it without a word in
    /// the stream (row version of its attachment, file, replica identity).
    pub partitions: Vec<(u32, String)>,
}

/// Between a column and the number of a label: it is in no name.
const LABEL: char = '\0';

impl PublishedTable {
    /// The name, in [`PublishedTable::found_by`], of the label with this number of the enum that `column` holds.
    pub fn label(column: &str, number: u32) -> String {
        format!("{column}{LABEL}{number}")
    }

    /// The column whose label has this name there; `None`: it is a foreign key's.
    pub fn column_of(name: &str) -> Option<&str> {
        name.split_once(LABEL).map(|(column, _)| column)
    }
}

/// When the tables were first seen as they are published: whoever was open then has ended once a snapshot's
/// xmin reaches the number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownTables {
    /// As [`Published::version`].
    pub version: u32,
    /// As [`PublishedTable::member`], with a transaction id that was new when it was seen.
    pub members: Vec<(u32, u64)>,
}

impl KnownTables {
    /// Takes over what is published now, seen for the first time or not; `next` is a new transaction id. Returns
    /// what a copy's snapshot has to reach.
    pub fn see(&mut self, now: &Published, next: u64) -> u64 {
        if self.version != now.version {
            *self = KnownTables { version: now.version, members: Vec::new() };
        }
        for (_, table) in &now.tables {
            if !self.members.iter().any(|(member, _)| *member == table.member) {
                self.members.push((table.member, next));
            }
        }
        let of_now = |member: &u32| now.tables.iter().any(|(_, table)| table.member == *member);
        self.members.iter().filter(|(member, _)| of_now(member)).map(|(_, xid)| *xid).max().unwrap_or(next)
    }
}

/// A column of a published table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedColumn {
    /// Its name.
    pub name: String,
    /// `pg_attribute.attnum`: a column that was dropped and added again has another one.
    pub number: i16,
    /// `xmin` of its row in `pg_attribute`: ALTER COLUMN writes another.
    pub version: u32,
}

impl Published {
    /// The tables whose partitions are others `now`. A lane back knows of none: it must never read a shared table again as a whole, for
    /// that empties it.
    pub fn repartitioned(&self, now: &Published) -> Vec<TableName> {
        let differs = |(name, was): &&(TableName, PublishedTable)| {
            was.partitioned && now.tables.iter().any(|(table, is)| table == name && is.partitions != was.partitions)
        };
        self.tables.iter().filter(differs).map(|(name, _)| name.clone()).collect()
    }

    /// Nothing is known of the table's partitions any more: whatever there is, is a difference.
    pub fn forget_partitions(&mut self, table: &TableName) {
        let of_table = self.tables.iter_mut().filter(|(name, known)| name == table && known.partitioned);
        of_table.for_each(|(_, table)| table.partitions = vec![(0, String::new())]);
    }

    /// The numbers of all partitions, each with the table that it is a part of.
    pub fn partitions(&self) -> impl Iterator<Item = (TableName, u32)> {
        let of_table = |(name, table): &(TableName, PublishedTable)| {
            table.partitions.iter().map(|(oid, _)| (name.clone(), *oid)).collect::<Vec<_>>()
        };
        self.tables.iter().flat_map(of_table)
    }

    /// Whether a table is partitioned.
    pub fn is_partitioned(&self) -> bool {
        self.tables.iter().any(|(_, table)| table.partitioned)
    }

    /// From now on its partitions are those.
    pub fn take_partitions(&mut self, seen: &Published) {
        for (name, table) in &mut self.tables {
            if let Some((_, seen)) = seen.tables.iter().find(|(seen, _)| seen == name) {
                table.partitions.clone_from(&seen.partitions);
            }
        }
    }

    /// What is different `now`: the object and the cause; `None` when nothing is.
    pub fn change(&self, now: &Published) -> Option<(String, &'static str)> {
        for (name, was) in &self.tables {
            let object = name.to_string();
            let Some((_, is)) = now.tables.iter().find(|(table, _)| table == name) else {
                return Some((object, "the table was dropped, renamed, or taken out of the publication"));
            };
            if is.oid != was.oid {
                return Some((object, "another table has its name now"));
            }
            if is.member != was.member {
                return Some((object, "the table was taken out of the publication and added again"));
            }
            let now = |old: &PublishedColumn| is.columns.iter().find(|column| column.name == old.name);
            let replaced = was.columns.iter().find(|old| now(old).is_some_and(|now| now.number != old.number));
            if let Some(column) = replaced {
                return Some((format!("{object}.{}", column.name), "the column was dropped and added again"));
            }
            if let Some((name, _)) = was.found_by.iter().find(|known| !is.found_by.contains(known)) {
                return Some(match PublishedTable::column_of(name) {
                    Some(column) => (
                        format!("{object}.{column}"),
                        "a label of the enum by which its rows' tenants are found was renamed, or its type changed",
                    ),
                    None => (
                        object,
                        "the foreign key by which its rows' tenants are found was dropped, changed or disabled",
                    ),
                });
            }
            // VACUUM FULL rewrites too, but leaves the columns alone.
            if is.file != was.file && is.columns != was.columns {
                return Some((object, "the table was rewritten with other values, which are not in the stream"));
            }
        }
        (self.version != now.version)
            .then(|| ("publication".to_owned(), "what it publishes, its name or its owner was changed"))
    }
}

/// Why a lane or a move stands still, and what a person can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// A stable word for programs (`truncate`, `constraint`, `spool_full`, …).
    pub code: String,
    /// The object it is about: a table, a move, a file.
    pub object: String,
    /// The cause, without row values.
    pub message: String,
    /// The next command or change.
    pub next: String,
}

impl Fault {
    /// A fault from its four parts.
    pub fn new(code: &str, object: impl Into<String>, message: impl Into<String>, next: impl Into<String>) -> Self {
        Fault { code: code.to_owned(), object: object.into(), message: message.into(), next: next.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> AckRecord {
        AckRecord {
            system_id: "7".into(),
            timeline: 1,
            slot: "carveout".into(),
            publication_oid: 16384,
            position: Lsn(99),
            unseen: vec![1, 2],
            fresh_xid: Some(3),
            held: vec![(MoveId(1), Lsn(98))],
            applied: vec![(MoveId(1), Lsn(90))],
            quarantined: vec![MoveId(2)],
        }
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let good = encode(&sample()).unwrap();
        assert_eq!(decode::<AckRecord>(&good), Ok(sample()));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode::<AckRecord>(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn whatever_may_have_kept_changes_from_the_stream_is_a_change() {
        let column = |name: &str, number, version| PublishedColumn { name: name.into(), number, version };
        let key = ("k".to_owned(), "FOREIGN KEY (a)".to_owned());
        let label = |label: &str| (PublishedTable::label("a", 77), label.to_owned());
        let found_by = vec![key.clone(), label("old")];
        let table = PublishedTable {
            oid: 5,
            member: 6,
            file: 7,
            columns: vec![column("a", 1, 9)],
            found_by,
            partitioned: false,
            partitions: Vec::new(),
        };
        let published = |version, name: &str, table: PublishedTable| Published {
            version,
            tables: vec![(TableName::new("public", name), table)],
        };
        let was = published(1, "t", table.clone());
        assert_eq!(was.change(&was), None);
        let added = vec![column("a", 1, 9), column("b", 2, 9)];
        for harmless in [
            PublishedTable { columns: added.clone(), ..table.clone() },
            PublishedTable { file: 8, ..table.clone() },
            PublishedTable { columns: vec![column("a", 1, 10)], ..table.clone() },
        ] {
            assert_eq!(was.change(&published(1, "t", harmless.clone())), None, "{harmless:?}");
        }
        for (now, cause) in [
            (published(2, "t", table.clone()), "publishes"),
            (published(1, "other", table.clone()), "renamed"),
            (published(1, "t", PublishedTable { oid: 8, ..table.clone() }), "another table"),
            (published(1, "t", PublishedTable { member: 8, ..table.clone() }), "added again"),
            (published(1, "t", PublishedTable { found_by: vec![label("old")], ..table.clone() }), "foreign key"),
            (published(1, "t", PublishedTable { found_by: vec![key, label("new")], ..table.clone() }), "label"),
            (published(1, "t", PublishedTable { columns: vec![column("a", 2, 9)], ..table.clone() }), "dropped"),
            (published(1, "t", PublishedTable { file: 8, columns: added, ..table.clone() }), "rewritten"),
            (published(1, "t", PublishedTable { file: 8, columns: vec![column("a", 1, 10)], ..table }), "rewritten"),
        ] {
            assert!(was.change(&now).is_some_and(|(_, said)| said.contains(cause)), "{cause}");
        }
    }

    #[test]
    fn partitions_count_where_they_are_followed() {
        let of = |partitioned, partitions| {
            let (columns, found_by) = (Vec::new(), Vec::new());
            let table = PublishedTable { oid: 5, member: 6, file: 0, columns, found_by, partitioned, partitions };
            Published { version: 1, tables: vec![(TableName::new("public", "t"), table)] }
        };
        let now = of(true, vec![(7, String::new())]);
        assert_eq!(of(true, Vec::new()).repartitioned(&now), [TableName::new("public", "t")]);
        assert_eq!(now.repartitioned(&now), []);
        assert_eq!(of(false, Vec::new()).repartitioned(&now), []);
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>) {
            let _ = decode::<MoveRecord>(&bytes);
        }
    }
}
