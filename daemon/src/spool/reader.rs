//! The lane's end of a spool: reads sealed frames, can go back to a place, frees what is applied.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};

use super::frame::{self, Frame, HEAD};
use super::{Sealed, segment_path, segments};

/// Read from the file at a time.
const BLOCK_BYTES: usize = 256 << 10;

/// A position between two frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The segment's number.
    pub segment: u64,
    /// The offset in it.
    pub offset: u64,
    /// Bytes of all segments that were there at start, up to here.
    pub consumed: u64,
}

/// The reading end.
pub struct SpoolReader {
    dir: PathBuf,
    file: File,
    place: Place,
    /// Nothing of the file from here on may be looked at: it is not sealed, and may be cut.
    limit: u64,
    buffer: BytesMut,
}

impl SpoolReader {
    /// Opens a spool at its first segment.
    pub fn open(dir: &Path) -> io::Result<SpoolReader> {
        let segment = segments(dir)?.first().copied().unwrap_or(1);
        SpoolReader::open_at(dir, Place { segment, offset: 0, consumed: 0 })
    }

    pub(super) fn open_at(dir: &Path, place: Place) -> io::Result<SpoolReader> {
        let mut file = File::open(segment_path(dir, place.segment))?;
        file.seek(SeekFrom::Start(place.offset))?;
        Ok(SpoolReader { dir: dir.to_owned(), file, place, limit: u64::MAX, buffer: BytesMut::new() })
    }

    /// Where the next frame begins.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Whether there is something to read before `sealed`.
    pub fn place_before(&self, sealed: &Sealed) -> bool {
        (self.place.segment, self.place.offset) < (sealed.segment, sealed.offset)
    }

    /// Goes back to a place that was returned before and has not been freed.
    pub fn seek(&mut self, place: Place) -> io::Result<()> {
        *self = SpoolReader::open_at(&self.dir, place)?;
        Ok(())
    }

    /// The next frame before `sealed`; `None` when there is none.
    pub fn next(&mut self, sealed: &Sealed) -> io::Result<Option<Frame>> {
        loop {
            if !self.place_before(sealed) {
                return Ok(None);
            }
            self.limit = if self.place.segment == sealed.segment { sealed.offset } else { u64::MAX };
            match self.scan_frame()? {
                Some(frame) => return Ok(Some(frame)),
                None if self.place.segment < sealed.segment && self.place.offset == self.file.metadata()?.len() => {
                    // `consumed` counts bytes of earlier segments whole.
                    let place = Place { segment: self.place.segment + 1, offset: 0, ..self.place };
                    *self = SpoolReader::open_at(&self.dir, place)?;
                }
                None => return Err(damaged(self.place)),
            }
        }
    }

    /// The next frame of this segment; `None` at its end, or at a frame that is damaged.
    pub(super) fn scan_frame(&mut self) -> io::Result<Option<Frame>> {
        if !self.fill(HEAD)? {
            return Ok(None);
        }
        let mut head = [0; HEAD];
        head.copy_from_slice(&self.buffer[..HEAD]);
        let Some(length) = frame::length(&head) else { return Ok(None) };
        if !self.fill(HEAD + length)? {
            return Ok(None);
        }
        let body: Bytes = self.buffer.split_to(HEAD + length).freeze().slice(HEAD..);
        let frame = frame::parse(&head, body);
        if frame.is_some() {
            self.place.offset += (HEAD + length) as u64;
            self.place.consumed += (HEAD + length) as u64;
        }
        Ok(frame)
    }

    /// Reads until `wanted` bytes are buffered; false when the file ends before.
    fn fill(&mut self, wanted: usize) -> io::Result<bool> {
        while self.buffer.len() < wanted {
            let have = self.buffer.len();
            let block = BLOCK_BYTES.max(wanted - have);
            // The announced length may be damage: never read (or reserve) past the file's end.
            let end = self.file.metadata()?.len().min(self.limit);
            let rest = end.saturating_sub(self.place.offset + have as u64);
            if rest == 0 || ((wanted - have) as u64) > rest {
                return Ok(false);
            }
            let block = block.min(usize::try_from(rest).unwrap_or(block));
            self.buffer.resize(have + block, 0);
            let read = self.file.read(&mut self.buffer[have..])?;
            self.buffer.truncate(have + read);
            if read == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Removes the segments before the current one: their transactions are in the target.
    pub fn free(&self) -> io::Result<()> {
        for number in segments(&self.dir)?.into_iter().filter(|number| *number < self.place.segment) {
            fs::remove_file(segment_path(&self.dir, number))?;
        }
        Ok(())
    }
}

fn damaged(place: Place) -> io::Error {
    let text = format!("the spool is damaged in segment {} at byte {}", place.segment, place.offset);
    io::Error::new(io::ErrorKind::InvalidData, text)
}
