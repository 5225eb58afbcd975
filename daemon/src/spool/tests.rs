//! The spool against a model: whatever is appended, cut, reopened or torn, sealed transactions are
//! read back exactly once and in order.

use std::path::PathBuf;

use proptest::prelude::*;
use schemas::Lsn;

use super::*;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("carveout-spool-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Appends a transaction that ends at `end`, with one row per size.
fn append(writer: &mut SpoolWriter, end: u64, sizes: &[usize], seal: bool) {
    assert!(writer.begin(end as u32, Lsn(end - 1), 0).unwrap());
    for (n, size) in sizes.iter().enumerate() {
        let row = [b"I", &vec![n as u8; *size][..]].concat();
        writer.change((1, 1), b"R", &[], false, &row).unwrap();
    }
    if seal {
        writer.commit(Lsn(end));
        writer.flush().unwrap();
    }
}

/// Every sealed transaction: its end and the sizes of its rows.
fn read_all(dir: &std::path::Path, sealed: &Sealed) -> Vec<(u64, Vec<usize>)> {
    let mut reader = SpoolReader::open(dir).unwrap();
    let (mut all, mut rows) = (Vec::new(), Vec::new());
    while let Some(frame) = reader.next(sealed).unwrap() {
        match frame {
            Frame::Message { bytes, .. } if bytes.starts_with(b"I") => rows.push(bytes.len() - 1),
            Frame::Commit { end } => all.push((end.0, std::mem::take(&mut rows))),
            Frame::Segment { .. } | Frame::Begin { .. } | Frame::Message { .. } => {}
            Frame::Stop { .. } => panic!("nobody asked to stop"),
        }
    }
    all
}

#[derive(Clone, Debug)]
enum Step {
    Commit(Vec<usize>),
    Cut(Vec<usize>),
    Reopen(Vec<usize>),
    Tear(Vec<usize>, u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let sizes = || proptest::collection::vec(prop_oneof![9 => 0usize..300, 1 => 0usize..3_000_000], 0..6);
    let step = prop_oneof![
        6 => sizes().prop_map(Step::Commit),
        1 => sizes().prop_map(Step::Cut),
        1 => sizes().prop_map(Step::Reopen),
        1 => (sizes(), any::<u16>()).prop_map(|(sizes, bytes)| Step::Tear(sizes, bytes)),
    ];
    proptest::collection::vec(step, 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn sealed_transactions_are_read_back_once_and_in_order(steps in steps()) {
        let folder = Folder::new("model");
        let (mut writer, prev) = SpoolWriter::open(&folder.0).unwrap();
        prop_assert_eq!(prev, Lsn::ZERO);
        let mut model = Vec::new();
        for (n, step) in steps.into_iter().enumerate() {
            let end = (n as u64 + 1) * 10;
            match step {
                Step::Commit(sizes) => {
                    append(&mut writer, end, &sizes, true);
                    model.push((end, sizes));
                }
                Step::Cut(sizes) => {
                    append(&mut writer, end, &sizes, false);
                    writer.cut().unwrap();
                }
                Step::Reopen(sizes) => {
                    append(&mut writer, end, &sizes, false);
                    drop(writer);
                    writer = SpoolWriter::open(&folder.0).unwrap().0;
                }
                Step::Tear(sizes, bytes) => {
                    append(&mut writer, end, &sizes, false);
                    let sealed = *writer.state().sealed.borrow();
                    drop(writer);
                    tear(&folder.0, sealed, bytes);
                    writer = SpoolWriter::open(&folder.0).unwrap().0;
                }
            }
            let sealed = *writer.state().sealed.borrow();
            prop_assert_eq!(sealed.end.0, model.last().map_or(0, |(end, _)| *end));
            prop_assert_eq!(&read_all(&folder.0, &sealed), &model);
        }
    }
}

/// Overwrites the unsealed end of the last file, as an interrupted write may leave it.
fn tear(dir: &std::path::Path, sealed: Sealed, bytes: u16) {
    let path = segment_path(dir, sealed.segment);
    let mut content = std::fs::read(&path).unwrap();
    for (n, byte) in content[sealed.offset as usize..].iter_mut().enumerate() {
        *byte ^= bytes.to_be_bytes()[n % 2];
    }
    content.extend_from_slice(&bytes.to_be_bytes());
    std::fs::write(&path, content).unwrap();
}

#[test]
fn a_damaged_sealed_frame_ends_the_spool_before_it() {
    let folder = Folder::new("damage");
    let (mut writer, _) = SpoolWriter::open(&folder.0).unwrap();
    append(&mut writer, 10, &[100], true);
    let first = *writer.state().sealed.borrow();
    append(&mut writer, 20, &[100], true);
    drop(writer);
    let path = segment_path(&folder.0, 1);
    let mut content = std::fs::read(&path).unwrap();
    content[first.offset as usize + 40] ^= 1;
    std::fs::write(&path, content).unwrap();
    let (writer, _) = SpoolWriter::open(&folder.0).unwrap();
    assert_eq!(writer.end(), Lsn(10));
}

#[test]
fn segments_that_are_applied_are_freed_and_the_rest_stays_readable() {
    let folder = Folder::new("free");
    let (mut writer, _) = SpoolWriter::open(&folder.0).unwrap();
    for n in 1..40 {
        append(&mut writer, n * 10, &[400_000], true);
    }
    let sealed = *writer.state().sealed.borrow();
    let mut reader = SpoolReader::open(&folder.0).unwrap();
    while let Some(frame) = reader.next(&sealed).unwrap() {
        if frame == (Frame::Commit { end: Lsn(200) }) {
            break;
        }
    }
    writer.state().set_applied(Lsn(200), reader.place());
    reader.free().unwrap();
    let (mut again, prev) = SpoolWriter::open(&folder.0).unwrap();
    assert!(prev > Lsn::ZERO && prev <= Lsn(200), "{prev}");
    assert_eq!(again.end(), Lsn(390));
    assert!(!again.begin(39, Lsn(389), 0).unwrap(), "a transaction that is held is not taken again");
    let ends: Vec<u64> = read_all(&folder.0, &sealed).iter().map(|(end, _)| *end).collect();
    assert_eq!(*ends.last().unwrap(), 390);
    let after: Vec<u64> = ends.iter().copied().filter(|end| *end > prev.0).collect();
    assert_eq!(after.len() as u64, (390 - prev.0) / 10);
    // What begins in a segment that is gone cannot be applied from here: the target must hold it.
    let mut reader = SpoolReader::open(&folder.0).unwrap();
    let mut begun = false;
    while let Some(frame) = reader.next(&sealed).unwrap() {
        begun |= matches!(frame, Frame::Begin { .. });
        if let Frame::Commit { end } = frame {
            assert!(begun || end <= prev, "{end} {prev}");
        }
    }
}

#[test]
fn rows_that_arrive_without_a_transaction_count_from_then_on() {
    let folder = Folder::new("lacks");
    let (mut writer, _) = SpoolWriter::open(&folder.0).unwrap();
    let state = std::sync::Arc::clone(writer.state());
    state.set_lacks_rows(true, Lsn(7), 1_000);
    assert_eq!((state.oldest(), state.position()), (Some(1_000), Lsn(7)));
    // Later looks do not make it younger.
    state.set_lacks_rows(true, Lsn(8), 2_000);
    assert_eq!((state.oldest(), state.position()), (Some(1_000), Lsn(7)));
    state.set_lacks_rows(false, Lsn(8), 3_000);
    assert_eq!(state.oldest(), None);
    append(&mut writer, 10, &[1], true);
    state.set_oldest(500, Lsn(9));
    state.set_lacks_rows(true, Lsn(8), 4_000);
    assert_eq!(state.oldest(), Some(500));
}
