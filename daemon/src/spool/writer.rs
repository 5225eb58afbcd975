//! The pipeline's end of a spool: appends, seals, cuts, and says what an acknowledgement must sync.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use schemas::record::Fault;
use schemas::{Lsn, TableName};

use super::frame::{self, Frame};
use super::reader::{Place, SpoolReader};
use super::{IDLE_SEGMENT_BYTES, SEGMENT_BYTES, Sealed, SpoolState, segment_path, segments};

/// Appended bytes are written to the file when there are this many.
const BUFFER_BYTES: usize = 64 << 10;

/// The writing end.
pub struct SpoolWriter {
    dir: PathBuf,
    file: File,
    segment: u64,
    /// The file's length, and with `buffer` the offset of the next frame.
    written: u64,
    buffer: Vec<u8>,
    sealed: Sealed,
    begun: bool,
    /// Relations described in this segment, with the router's version of each.
    relations: HashMap<u32, u64>,
    unsynced: Vec<u64>,
    new_files: bool,
    /// Bytes appended since the last seal.
    unsealed: u64,
    /// Bytes ever appended, up to the last seal that the lane was shown.
    shown: u64,
    /// Something could not be written: nothing more is taken until the next cut.
    failed: bool,
    state: Arc<SpoolState>,
}

/// What has to reach the disk before a position may be acknowledged.
pub struct SyncJob {
    dir: PathBuf,
    segments: Vec<u64>,
    new_files: bool,
    /// After the job, everything up to here is on disk.
    pub end: Lsn,
}

impl SyncJob {
    /// Waits for the disk; call it where blocking is allowed.
    pub fn run(&self) -> io::Result<()> {
        for number in &self.segments {
            match File::open(segment_path(&self.dir, *number)) {
                Ok(file) => file.sync_data()?,
                // Applied and removed meanwhile: the target holds it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        match File::open(&self.dir) {
            Ok(dir) if self.new_files => dir.sync_all(),
            // The lane was closed meanwhile, and its spool removed.
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl SpoolWriter {
    /// Opens a spool, cutting what is not sealed; makes an empty one where there is none.
    ///
    /// Returns with it the end of the last transaction that had been sealed before its first
    /// segment: the target must hold everything up to there.
    pub fn open(dir: &Path) -> io::Result<(SpoolWriter, Lsn)> {
        SpoolWriter::open_holding(dir, Lsn::ZERO)
    }

    /// The same for a spool that should reach `must_hold`. One that does not is begun anew from there,
    /// so that whatever is appended later the target must reach that position by itself.
    pub fn open_holding(dir: &Path, must_hold: Lsn) -> io::Result<(SpoolWriter, Lsn)> {
        fs::create_dir_all(dir)?;
        for above in dir.ancestors().skip(1).take(2).filter(|above| !above.as_os_str().is_empty()) {
            File::open(above)?.sync_all()?;
        }
        let mut found = scan(dir)?;
        if found.sealed.end < must_hold {
            for number in segments(dir)? {
                fs::remove_file(segment_path(dir, number))?;
            }
            let sealed = Sealed { segment: 1, offset: 0, end: must_hold };
            found = Found { sealed, prev_end: must_hold, bytes: 0, oldest: (0, Lsn::ZERO) };
        }
        for number in segments(dir)?.into_iter().filter(|number| *number > found.sealed.segment) {
            fs::remove_file(segment_path(dir, number))?;
        }
        let path = segment_path(dir, found.sealed.segment);
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        file.set_len(found.sealed.offset)?;
        let state = Arc::new(SpoolState::new(found.sealed, found.bytes));
        state.set_oldest(found.oldest.0, found.oldest.1);
        let mut writer = SpoolWriter {
            dir: dir.to_owned(),
            file,
            segment: found.sealed.segment,
            written: found.sealed.offset,
            buffer: Vec::new(),
            sealed: found.sealed,
            begun: false,
            relations: HashMap::new(),
            // Which of them had been synced is not known any more.
            unsynced: segments(dir)?,
            new_files: true,
            unsealed: 0,
            shown: state.written.load(Ordering::Relaxed),
            failed: false,
            state,
        };
        if writer.written == 0 {
            writer.put(b'S', &[&writer.sealed.end.0.to_be_bytes()]);
            writer.seal_here();
            writer.flush()?;
        }
        Ok((writer, found.prev_end))
    }

    /// What this end shares with the lane.
    pub fn state(&self) -> &Arc<SpoolState> {
        &self.state
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// End of the last sealed transaction.
    pub fn end(&self) -> Lsn {
        self.sealed.end
    }

    fn offset(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    fn put(&mut self, kind: u8, payload: &[&[u8]]) {
        let before = self.buffer.len();
        frame::put(&mut self.buffer, kind, payload);
        let added = (self.buffer.len() - before) as u64;
        self.unsealed += added;
        self.state.written.fetch_add(added, Ordering::Relaxed);
    }

    fn seal_here(&mut self) {
        self.unsealed = 0;
        self.sealed = Sealed { segment: self.segment, offset: self.offset(), end: self.sealed.end };
    }

    /// Begins a transaction, once; false when the spool already holds it.
    pub fn begin(&mut self, xid: u32, commit_lsn: Lsn, commit_ts: i64) -> io::Result<bool> {
        // Commit records do not overlap: one that begins before `end` ends at or before it.
        if commit_lsn < self.sealed.end {
            return Ok(false);
        }
        self.usable()?;
        if !self.begun {
            if self.offset() > IDLE_SEGMENT_BYTES && self.state.caught_up() {
                self.rotate()?;
            }
            if self.state.caught_up() {
                self.state.set_oldest(commit_ts, commit_lsn);
            }
            self.begun = true;
            self.put(b'B', &[&xid.to_be_bytes(), &commit_lsn.0.to_be_bytes(), &commit_ts.to_be_bytes()]);
        }
        Ok(true)
    }

    /// Appends a change of a relation, which is described first if this segment has not done so. With `claims`
    /// the lane decides whether the row is its own.
    pub fn change(
        &mut self,
        relation: (u32, u64),
        description: &[u8],
        claims: &[u8],
        hands: bool,
        message: &[u8],
    ) -> io::Result<()> {
        self.usable()?;
        if self.offset() >= SEGMENT_BYTES {
            self.rotate()?;
        }
        if self.relations.get(&relation.0) != Some(&relation.1) {
            self.relations.insert(relation.0, relation.1);
            self.put(b'M', &[description]);
        }
        match claims {
            [] => self.put(b'M', &[message]),
            claims => {
                self.put(if hands { b'H' } else { b'U' }, &[&(claims.len() as u32).to_be_bytes(), claims, message])
            }
        }
        self.spill()
    }

    /// Appends the order to stop.
    pub fn stop(&mut self, table: Option<&TableName>, fault: &Fault) -> io::Result<()> {
        self.usable()?;
        let bytes = schemas::record::encode(&(table, fault)).map_err(io::Error::other)?;
        self.put(b'X', &[&bytes]);
        self.spill()
    }

    /// Seals the transaction, if one was begun; [`SpoolWriter::flush`] makes it visible.
    pub fn commit(&mut self, end: Lsn) {
        if std::mem::take(&mut self.begun) && !self.failed {
            self.put(b'C', &[&end.0.to_be_bytes()]);
            self.sealed.end = end;
            self.seal_here();
        }
    }

    fn spill(&mut self) -> io::Result<()> {
        if self.buffer.len() >= BUFFER_BYTES { self.write() } else { Ok(()) }
    }

    fn usable(&self) -> io::Result<()> {
        if self.failed { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn write(&mut self) -> io::Result<()> {
        self.usable()?;
        self.file.write_all(&self.buffer).inspect_err(|_| self.failed = true)?;
        self.written += self.buffer.len() as u64;
        // One huge value must not keep its memory.
        if self.buffer.capacity() > 4 * BUFFER_BYTES {
            self.buffer = Vec::new()
        } else {
            self.buffer.clear()
        }
        if self.unsynced.last() != Some(&self.segment) {
            self.unsynced.push(self.segment);
        }
        Ok(())
    }

    /// Writes what is buffered and shows the lane what has been sealed.
    pub fn flush(&mut self) -> io::Result<()> {
        self.usable()?;
        if !self.buffer.is_empty() {
            self.write()?;
        }
        let sealed = self.sealed;
        self.shown = self.state.written.load(Ordering::Relaxed) - self.unsealed;
        self.state.sealed.send_if_modified(|shown| std::mem::replace(shown, sealed) != sealed);
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.write()?;
        let path = segment_path(&self.dir, self.segment + 1);
        let made = OpenOptions::new().create_new(true).append(true).open(path);
        self.file = made.inspect_err(|_| self.failed = true)?;
        self.segment += 1;
        self.written = 0;
        self.relations.clear();
        self.new_files = true;
        self.put(b'S', &[&self.sealed.end.0.to_be_bytes()]);
        if !self.begun {
            self.seal_here();
        }
        Ok(())
    }

    /// Drops what has been appended since the last seal: the source will send it again. False when the disk
    /// had no room for all that was sealed either: what the lane has not been shown went too.
    pub fn cut(&mut self) -> io::Result<bool> {
        self.begun = false;
        match self.write() {
            Err(error) if !is_full(&error) => return Err(error),
            _ => {}
        }
        self.buffer = Vec::new();
        let kept = !std::mem::take(&mut self.failed);
        if kept {
            self.state.written.fetch_sub(self.unsealed, Ordering::Relaxed);
        } else {
            self.sealed = *self.state.sealed.borrow();
            self.state.written.store(self.shown, Ordering::Relaxed);
        }
        self.unsealed = 0;
        for number in (self.sealed.segment + 1)..=self.segment {
            fs::remove_file(segment_path(&self.dir, number))?;
        }
        let path = segment_path(&self.dir, self.sealed.segment);
        self.file = OpenOptions::new().append(true).open(path)?;
        self.file.set_len(self.sealed.offset)?;
        self.segment = self.sealed.segment;
        self.written = self.sealed.offset;
        self.relations.clear();
        self.flush()?;
        Ok(kept)
    }

    /// What must be synced so that everything sealed is on disk; `None` when it is.
    pub fn sync_job(&mut self) -> Option<SyncJob> {
        if self.unsynced.is_empty() {
            return None;
        }
        let segments = std::mem::take(&mut self.unsynced);
        let new_files = std::mem::take(&mut self.new_files);
        Some(SyncJob { dir: self.dir.clone(), segments, new_files, end: self.sealed.end })
    }

    /// Removes the folder: the lane is closed for good.
    pub fn remove(self) -> io::Result<()> {
        fs::remove_dir_all(&self.dir)
    }
}

/// Whether the disk, or our share of it, is used up: room may come again.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// What a scan found.
struct Found {
    sealed: Sealed,
    prev_end: Lsn,
    bytes: u64,
    /// Commit time and position of the first transaction.
    oldest: (i64, Lsn),
}

/// Reads every frame up to the first that is missing or damaged.
fn scan(dir: &Path) -> io::Result<Found> {
    let numbers = segments(dir)?;
    let first = numbers.first().copied().unwrap_or(1);
    let start = Sealed { segment: first, offset: 0, end: Lsn::ZERO };
    let mut found = Found { sealed: start, prev_end: Lsn::ZERO, bytes: 0, oldest: (0, Lsn::ZERO) };
    let mut open = false;
    // The first segment may begin inside a transaction whose beginning is gone: only a target that holds
    // that transaction can go on from there.
    let mut headless = true;
    // A hole in the numbers: what follows it cannot be used.
    for number in (first..).zip(numbers).map_while(|(expected, number)| (expected == number).then_some(number)) {
        let mut reader = SpoolReader::open_at(dir, Place { segment: number, offset: 0, consumed: 0 })?;
        while let Some(frame) = reader.scan_frame()? {
            let offset = reader.place().offset;
            match frame {
                Frame::Segment { prev_end } if number == first => {
                    found.prev_end = prev_end;
                    found.sealed = Sealed { segment: number, offset, end: prev_end };
                }
                Frame::Segment { .. } if !open => found.sealed = Sealed { segment: number, offset, ..found.sealed },
                Frame::Begin { commit_ts, commit_lsn, .. } => {
                    (open, headless) = (true, false);
                    found.oldest = if found.oldest.0 == 0 { (commit_ts, commit_lsn) } else { found.oldest };
                }
                Frame::Commit { end } => {
                    open = false;
                    if std::mem::take(&mut headless) {
                        found.prev_end = end;
                    }
                    found.sealed = Sealed { segment: number, offset, end };
                }
                Frame::Segment { .. } | Frame::Message { .. } | Frame::Stop { .. } => {}
            }
        }
        if reader.place().offset < fs::metadata(segment_path(dir, number))?.len() {
            tracing::warn!(segment = number, "the spool ends in a damaged frame, which is cut");
            break;
        }
    }
    let kept = segments(dir)?.into_iter().filter(|number| *number < found.sealed.segment);
    let before: u64 = kept.map(|number| fs::metadata(segment_path(dir, number)).map_or(0, |meta| meta.len())).sum();
    found.bytes = before + found.sealed.offset;
    Ok(found)
}
