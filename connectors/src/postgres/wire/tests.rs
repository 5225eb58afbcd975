//! The connection against a server that is only bytes: lengths that lie, a login without proof,
//! names that try to leave their quotes. Never needs a real server; what does is tested in `tests`.

use tokio::io::{AsyncWriteExt, duplex};

use super::messages::READ_SIZE;
use super::*;

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
}

#[tokio::test]
async fn a_long_message_costs_its_size_and_leaves_nothing_behind() {
    let (mut server, client) = duplex(READ_SIZE);
    let mut wire = Wire::over(Box::new(client));
    wire.max_message = MAX_MESSAGE;
    let long = vec![7; 8 << 20];
    let bytes = [message(b'd', b"short"), message(b'd', &long), message(b'd', b"last")].concat();
    let writing = tokio::spawn(async move { server.write_all(&bytes).await });
    assert_eq!(wire.read().await.unwrap().1, &b"short"[..]);
    while !wire.has_message().unwrap() {
        wire.fill().await.unwrap();
        assert!(wire.inbox.capacity() <= long.len() + 5);
    }
    assert_eq!(wire.take().unwrap().unwrap().1, long);
    assert_eq!(wire.inbox.capacity(), 0);
    assert_eq!(wire.read().await.unwrap().1, &b"last"[..]);
    writing.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_length_that_no_message_has_ends_the_connection() {
    for len in [0, 3, MAX_ANSWER as u32, u32::MAX] {
        let (mut server, client) = duplex(64);
        server.write_all(&[&b"D"[..], &len.to_be_bytes()].concat()).await.unwrap();
        let error = Wire::over(Box::new(client)).read().await.unwrap_err();
        assert!(!error.is_transient(), "{len}: {error}");
    }
}

#[tokio::test]
async fn the_reason_of_a_fatal_error_is_kept_and_its_detail_is_not() {
    let (mut server, client) = duplex(1024);
    let mut wire = Wire::over(Box::new(client));
    let fields = b"SFATAL\0VFATAL\0C57P01\0Mterminating\0D(secret)\0\0";
    server.write_all(&message(b'E', fields)).await.unwrap();
    drop(server);
    assert_eq!(wire.answer().await.unwrap_err().to_string(), "wait for the server: terminating (SQLSTATE 57P01)");
}

#[tokio::test]
async fn a_server_that_skips_its_proof_is_refused() {
    let (mut server, client) = duplex(1024);
    let bytes = [message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0"), message(b'R', &[0; 4])].concat();
    server.write_all(&bytes).await.unwrap();
    assert!(Wire::over(Box::new(client)).authenticate("u", Some("p"), &login::Binding::default()).await.is_err());
}

#[test]
fn names_stay_names_in_the_start_command() {
    let command = start_command("s", "it's \"b\\", Lsn(0x10_0000_0001), true);
    assert!(command.starts_with("START_REPLICATION SLOT \"s\" LOGICAL 10/1 ("), "{command}");
    assert!(command.contains("publication_names '\"it''s \"\"b\\\"',"), "{command}");
}

#[test]
fn rows_that_lie_about_their_length_are_refused() {
    let row = data_row(b"\0\x02\0\0\0\x01a\xff\xff\xff\xff");
    assert_eq!(row, Some(vec![Some("a".to_owned()), None]));
    assert_eq!(data_row(b"\0\x01\x7f\xff\xff\xffa"), None);
    assert_eq!(data_row(b"\xff\xff"), None);
}
