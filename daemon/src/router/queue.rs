//! What a transaction leaves undecided until it ends.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, Write};
use std::path::Path;

use bytes::{Buf, Bytes};

/// Kept in memory; more goes to a file.
const QUEUE_BYTES: usize = 1 << 20;

/// Changes in their order: in memory, and what is more in a file that has no name any more.
#[derive(Default)]
pub(super) struct Queue {
    tail: Vec<u8>,
    file: Option<File>,
}

impl Queue {
    /// Appends a change, with its place in the transaction.
    pub fn push(&mut self, place: u64, raw: &[u8], scratch: &Path) -> io::Result<()> {
        self.tail.extend_from_slice(&place.to_be_bytes());
        self.tail.extend_from_slice(&(raw.len() as u32).to_be_bytes());
        self.tail.extend_from_slice(raw);
        if self.tail.len() < QUEUE_BYTES {
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(unnamed(scratch)?),
        };
        file.write_all(&self.tail)?;
        self.tail.clear();
        Ok(())
    }

    /// Everything from the beginning.
    pub fn read(self) -> QueueReader {
        QueueReader {
            file: self.file.map(|file| (BufReader::with_capacity(64 << 10, file), false)),
            tail: self.tail.into(),
        }
    }
}

/// A file that goes away with its last handle.
fn unnamed(scratch: &Path) -> io::Result<File> {
    fs::create_dir_all(scratch)?;
    let path = scratch.join("transaction");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

pub(super) struct QueueReader {
    /// The file, and whether it stands at its beginning.
    file: Option<(BufReader<File>, bool)>,
    tail: Bytes,
}

impl QueueReader {
    /// The next change with its place.
    pub fn next(&mut self) -> io::Result<Option<(u64, Bytes)>> {
        let mut head = [0; 12];
        if let Some((file, rewound)) = &mut self.file {
            if !std::mem::replace(rewound, true) {
                file.rewind()?;
            }
            match file.read_exact(&mut head) {
                Ok(()) => {
                    let (place, length) = read_head(&head);
                    let mut raw = vec![0; length];
                    file.read_exact(&mut raw)?;
                    return Ok(Some((place, raw.into())));
                }
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => self.file = None,
                Err(error) => return Err(error),
            }
        }
        if self.tail.is_empty() {
            return Ok(None);
        }
        head.copy_from_slice(&self.tail.split_to(12));
        let (place, length) = read_head(&head);
        Ok(Some((place, self.tail.split_to(length))))
    }
}

/// The place of a change and its length.
fn read_head(mut head: &[u8]) -> (u64, usize) {
    (head.get_u64(), head.get_u32() as usize)
}
