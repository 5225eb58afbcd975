//! The decoder against every kind of message that a random generator makes, against the same
//! messages cut short and changed, and against noise. Proptest prints the failing case and keeps
//! its seed.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Everything that any kind of message may hold; `kind` says which of it is used.
#[derive(Clone, Debug)]
struct Case {
    kind: u8,
    numbers: (u64, u64, i64, u32),
    names: (String, String),
    flags: (bool, bool),
    identity: u8,
    old: Option<bool>,
    rows: (Vec<u8>, Vec<u8>),
    columns: Vec<(bool, String, u32, i32)>,
    oids: Vec<u32>,
    content: Vec<u8>,
}

fn row() -> impl Strategy<Value = Vec<u8>> {
    let bytes = || vec(any::<u8>(), 0..40);
    let column = prop_oneof![
        Just(vec![b'n']),
        Just(vec![b'u']),
        bytes().prop_map(|bytes| sized(b't', &bytes)),
        bytes().prop_map(|bytes| sized(b'b', &bytes)),
    ];
    vec(column, 0..12).prop_map(|columns| {
        let count = (columns.len() as u16).to_be_bytes();
        [count.to_vec(), columns.concat()].concat()
    })
}

fn sized(kind: u8, bytes: &[u8]) -> Vec<u8> {
    [&[kind][..], &(bytes.len() as u32).to_be_bytes(), bytes].concat()
}

fn name() -> impl Strategy<Value = String> {
    "[^\0]{0,12}"
}

fn case() -> impl Strategy<Value = Case> {
    let kind = proptest::sample::select(b"BCORYIUDTM".to_vec());
    let identity = proptest::sample::select(b"dnfi".to_vec());
    let columns = vec((any::<bool>(), name(), any::<u32>(), any::<i32>()), 0..10);
    let head = (kind, any::<(u64, u64, i64, u32)>(), (name(), name()), any::<(bool, bool)>(), identity);
    let body = (any::<Option<bool>>(), (row(), row()), columns, vec(any::<u32>(), 0..8), vec(any::<u8>(), 0..40));
    (head, body).prop_map(|((kind, numbers, names, flags, identity), (old, rows, columns, oids, content))| Case {
        kind,
        numbers,
        names,
        flags,
        identity,
        old,
        rows,
        columns,
        oids,
        content,
    })
}

impl Case {
    /// The message as the server would send it.
    fn wire(&self) -> Vec<u8> {
        let mut out = vec![self.kind];
        let (first, second, time, id) = self.numbers;
        let flags = u8::from(self.flags.0) | u8::from(self.flags.1) << 1;
        let text = |out: &mut Vec<u8>, text: &str| out.extend([text.as_bytes(), &[0]].concat());
        match self.kind {
            b'B' => out.extend([&first.to_be_bytes()[..], &time.to_be_bytes(), &id.to_be_bytes()].concat()),
            b'C' => {
                out.push(0);
                out.extend([first.to_be_bytes(), second.to_be_bytes(), time.to_be_bytes()].concat());
            }
            b'O' => {
                out.extend(first.to_be_bytes());
                text(&mut out, &self.names.0);
            }
            b'M' => {
                out.push(flags & 1);
                out.extend(first.to_be_bytes());
                text(&mut out, &self.names.0);
                out.extend((self.content.len() as u32).to_be_bytes());
                out.extend(&self.content);
            }
            b'T' => {
                out.extend((self.oids.len() as u32).to_be_bytes());
                out.push(flags);
                self.oids.iter().for_each(|oid| out.extend(oid.to_be_bytes()));
            }
            b'R' | b'Y' => {
                out.extend(id.to_be_bytes());
                text(&mut out, &self.names.0);
                text(&mut out, &self.names.1);
            }
            _ => out.extend(id.to_be_bytes()),
        }
        if self.kind == b'R' {
            out.push(self.identity);
            out.extend((self.columns.len() as u16).to_be_bytes());
            for (key, name, type_oid, typmod) in &self.columns {
                out.push(u8::from(*key));
                text(&mut out, name);
                out.extend([type_oid.to_be_bytes(), typmod.to_be_bytes()].concat());
            }
        }
        if let Some(full) = self.old_kind() {
            out.push(if full { b'O' } else { b'K' });
            out.extend(&self.rows.0);
        }
        if matches!(self.kind, b'I' | b'U') {
            out.push(b'N');
            out.extend(&self.rows.1);
        }
        out
    }

    /// Whether an old row is sent, and whether it is a full one.
    fn old_kind(&self) -> Option<bool> {
        match self.kind {
            b'D' => Some(self.old.unwrap_or(true)),
            b'U' => self.old,
            _ => None,
        }
    }

    /// What it must be decoded as.
    fn message(&self) -> Message<'_> {
        let (first, second, commit_ts, id) = self.numbers;
        let (lsn, relation, name) = (Lsn(first), id, self.names.0.as_str());
        let old = self.old_kind().map(|full| {
            let old = Tuple::parse(&self.rows.0).unwrap().0;
            if full { Old::Full(old) } else { Old::Key(old) }
        });
        let new = Tuple::parse(&self.rows.1).unwrap().0;
        let column = |(key, name, type_oid, typmod): &(bool, String, u32, i32)| Column {
            key: *key,
            name: name.clone(),
            type_oid: *type_oid,
            typmod: *typmod,
        };
        match self.kind {
            b'B' => Message::Begin { final_lsn: lsn, commit_ts, xid: id },
            b'C' => Message::Commit { commit_lsn: lsn, end_lsn: Lsn(second), commit_ts },
            b'O' => Message::Origin { lsn, name },
            b'R' => Message::Relation(Relation {
                id,
                schema: name.to_owned(),
                name: self.names.1.clone(),
                identity: self.identity,
                columns: self.columns.iter().map(column).collect(),
            }),
            b'Y' => Message::Type { oid: id, schema: name, name: &self.names.1 },
            b'I' => Message::Insert { relation, new },
            b'U' => Message::Update { relation, old, new },
            b'D' => Message::Delete { relation, old: old.unwrap() },
            b'T' => Message::Truncate {
                relations: self.oids.clone(),
                cascade: self.flags.0,
                restart_identity: self.flags.1,
            },
            _ => Message::Logical { transactional: self.flags.0, lsn, prefix: name, content: &self.content },
        }
    }
}

/// Reads everything that a decoded message offers.
fn read_all(bytes: &[u8]) {
    let Ok(message) = decode(bytes) else { return };
    let _ = format!("{message:?}");
    let tuples = match message {
        Message::Insert { new, .. } => vec![new],
        Message::Update { old, new, .. } => old.iter().map(Old::tuple).chain([new]).collect(),
        Message::Delete { old, .. } => vec![old.tuple()],
        _ => vec![],
    };
    for tuple in tuples {
        assert_eq!(tuple.iter().count(), tuple.len());
        assert_eq!(tuple.get(tuple.len()), None);
        assert_eq!(Tuple::parse(tuple.raw()).unwrap(), (tuple, &[][..]));
    }
}

proptest! {
    #[test]
    fn every_message_is_decoded_as_it_was_meant(case in case()) {
        let wire = case.wire();
        prop_assert_eq!(decode(&wire).unwrap(), case.message());
        read_all(&wire);
    }

    #[test]
    fn a_message_that_was_cut_or_goes_on_is_refused(case in case(), extra: u8) {
        let mut wire = case.wire();
        for end in 0..wire.len() {
            prop_assert!(decode(&wire[..end]).is_err(), "cut at {}", end);
        }
        wire.push(extra);
        prop_assert!(decode(&wire).is_err());
    }

    #[test]
    fn changed_messages_never_panic(case in case(), changes in vec((any::<usize>(), any::<u8>()), 1..6)) {
        let mut wire = case.wire();
        for (at, byte) in changes {
            let at = at % wire.len();
            wire[at] = byte;
        }
        read_all(&wire);
    }

    #[test]
    fn noise_never_panics(kind in proptest::sample::select(b"BCORYIUDTM\0x".to_vec()), noise in vec(any::<u8>(), 0..200)) {
        read_all(&noise);
        read_all(&[&[kind][..], &noise].concat());
        let _ = Tuple::parse(&noise);
    }

    #[test]
    fn what_the_spool_writes_is_read_back(relation: u32, row in row(), full: bool) {
        let tuple = Tuple::parse(&row).unwrap().0;
        let values: Vec<_> = tuple.iter().collect();
        let old = if full { Old::Full(tuple) } else { Old::Key(tuple) };
        let (mut insert, mut raw, mut delete) = (vec![], vec![], vec![]);
        encode_insert(relation, &values, &mut insert);
        encode_insert_raw(relation, tuple, &mut raw);
        encode_delete(relation, old, &mut delete);
        prop_assert_eq!(&insert, &raw);
        prop_assert_eq!(decode(&insert).unwrap(), Message::Insert { relation, new: tuple });
        prop_assert_eq!(decode(&delete).unwrap(), Message::Delete { relation, old });
    }
}

#[test]
fn a_count_that_lies_allocates_nothing() {
    // 2^31 - 1 relations in a message of six bytes; 32,767 columns in one of fifteen.
    assert!(decode(b"T\x7f\xff\xff\xff\0").is_err());
    assert!(decode(b"R\0\0\0\x01s\0t\0d\x7f\xff").is_err());
    assert!(decode(b"I\0\0\0\x01N\x80\x00").is_err());
    assert!(decode(b"I\0\0\0\x01N\0\x01t\xff\xff\xff\xff").is_err());
}

#[test]
fn values_are_never_printed() {
    let mut wire = vec![];
    encode_insert(7, &[Value::Text(b"secret"), Value::Binary(b"hidden"), Value::Null], &mut wire);
    assert_eq!(format!("{:?}", decode(&wire).unwrap()), "Insert(7, Tuple(3 columns, 25 bytes))");
    let Message::Insert { new, .. } = decode(&wire).unwrap() else { panic!("not an insert") };
    let values: Vec<_> = new.iter().collect();
    assert_eq!(format!("{values:?}"), "[Text(6 bytes), Binary(6 bytes), Null]");
    let logical = Message::Logical { transactional: true, lsn: Lsn(1), prefix: "secret", content: b"hidden" };
    assert_eq!(format!("{logical:?}"), "Logical(0/1, transactional true, 6 + 6 bytes)");
    assert!(!format!("{:?}", decode(b"I\0\0\0\x01N\0\x01tsecret")).contains("secret"));
}
