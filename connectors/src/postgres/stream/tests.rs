//! The stream against a server that is only bytes: frames cut anywhere, waits given up, errors and
//! endings, and noise. Proptest prints the failing case and keeps its seed. Never needs a real
//! server; what does is tested in `tests`.

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;

/// A stream that has begun, and the server's end of it.
async fn begun() -> (Stream, DuplexStream) {
    let (mut server, client) = duplex(1 << 16);
    let mut wire = Wire::over(Box::new(client));
    server.write_all(b"W\0\0\0\x07\0\0\0").await.unwrap();
    wire.start_replication("s", "p", Lsn(5), true).await.unwrap();
    let mut command = [0; 5];
    server.read_exact(&mut command).await.unwrap();
    let mut rest = vec![0; usize::from(command[4]) - 4];
    server.read_exact(&mut rest).await.unwrap();
    let system = SystemId { system_id: "1".into(), timeline: 1, wal_lsn: Lsn(9), dbname: "d".into() };
    (Stream { wire, known: system.wal_lsn, system, server_time: 0 }, server)
}

fn copy_data(kind: u8, numbers: &[u64], rest: &[u8]) -> Vec<u8> {
    let numbers: Vec<u8> = numbers.iter().flat_map(|number| number.to_be_bytes()).collect();
    let len = (4 + 1 + numbers.len() + rest.len()) as u32;
    [b"d", &len.to_be_bytes()[..], &[kind], &numbers, rest].concat()
}

#[tokio::test]
async fn frames_come_whole_however_bytes_are_cut_and_waits_are_given_up() {
    let (mut stream, mut server) = begun().await;
    let bytes = [
        copy_data(b'w', &[1, 2, 3], b"first"),
        b"N\0\0\0\x05\0S\0\0\0\x07a\0\0".to_vec(),
        copy_data(b'k', &[20, 4], &[1]),
        copy_data(b'w', &[0, 0, 5], &[8; 300]),
    ];
    tokio::spawn(async move {
        for byte in bytes.concat() {
            server.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
    });
    let mut frames = vec![];
    while frames.len() < 3 {
        tokio::select! {
            frame = stream.next() => frames.push(frame.unwrap()),
            () = tokio::task::yield_now() => {}
        }
    }
    let data = |payload: &[u8], end| Frame::Data { payload: Bytes::copy_from_slice(payload), wal_end: Lsn(end) };
    let keepalive = Frame::Keepalive { end: Lsn(20), server_time: 4, reply: true };
    assert_eq!(frames, [data(b"first", 2), keepalive, data(&[8; 300], 0)]);
    assert_eq!((stream.known, stream.server_time()), (Lsn(20), 5));
    assert!(stream.next().await.unwrap_err().is_transient());
}

#[tokio::test]
async fn nothing_is_acknowledged_that_the_server_has_not_named() {
    let (mut stream, mut server) = begun().await;
    assert!(stream.status(Lsn(10), Lsn(9), false).await.is_err());
    assert!(stream.status(Lsn(9), Lsn(10), false).await.is_err());
    stream.status(Lsn(9), Lsn(8), true).await.unwrap();
    let mut sent = [0; 39];
    server.read_exact(&mut sent).await.unwrap();
    assert_eq!(sent[..6], *b"d\0\0\0\x26r");
    assert_eq!((sent[13], sent[21], sent[29], sent[38]), (9, 8, 8, 1));
}

#[tokio::test]
async fn errors_within_the_stream_keep_their_sqlstate() {
    let (mut stream, mut server) = begun().await;
    let error = b"VERROR\0C42704\0Mgone\0D(secret)\0\0";
    server.write_all(&[b"E\0\0\0", &[error.len() as u8 + 4][..], error].concat()).await.unwrap();
    assert_eq!(stream.next().await.unwrap_err().sqlstate(), Some("42704"));
    // 18 and later only warn when the publication is missing, and skip its rows.
    let warning = b"VWARNING\0C55000\0Mskipped loading publication\0\0";
    server.write_all(&[b"N\0\0\0", &[warning.len() as u8 + 4][..], warning].concat()).await.unwrap();
    assert_eq!(stream.next().await.unwrap_err().sqlstate(), Some("55000"));
    server.write_all(b"C\0\0\0\x0bCOPY 0\0").await.unwrap();
    assert!(stream.next().await.unwrap_err().is_transient());
}

proptest! {
    #[test]
    fn noise_is_no_frame_and_never_panics(kind in proptest::sample::select(b"wkx".to_vec()), noise: Vec<u8>) {
        let frame = parse([&[kind][..], &noise].concat().into());
        prop_assert_eq!(frame.is_some(), (kind == b'w' && noise.len() >= 24) || (kind == b'k' && noise.len() == 17));
    }
}
