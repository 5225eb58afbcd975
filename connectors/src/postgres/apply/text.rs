//! Values that came as text, written as COPY's text format and as arrays of it (PostgreSQL manual, COPY, "Text Format";
//! Arrays, "Array Input and Output Syntax"). Never looks into a value but for what has to be escaped.

use bytes::{BufMut, BytesMut};

use super::super::pgoutput::Value;
use super::target::{Row, bytes_of};

/// One line: columns between tabs, NULL as `\\N`.
pub(super) fn put_row(out: &mut BytesMut, row: &Row<'_>) {
    for (place, value) in row.iter().enumerate() {
        if place > 0 {
            out.put_u8(b'\t');
        }
        match bytes_of(value) {
            None => out.put_slice(b"\\N"),
            Some(bytes) => put_escaped(out, bytes, |byte| match byte {
                b'\\' => Some(b'\\'),
                b'\t' => Some(b't'),
                b'\n' => Some(b'n'),
                b'\r' => Some(b'r'),
                _ => None,
            }),
        }
    }
    out.put_u8(b'\n');
}

/// An array whose elements are all quoted, NULL alone is not.
pub(super) fn put_array<'v, 'a: 'v>(
    out: &mut BytesMut,
    delimiter: u8,
    values: impl ExactSizeIterator<Item = &'v Value<'a>>,
) {
    out.put_u8(b'{');
    for (place, value) in values.enumerate() {
        if place > 0 {
            out.put_u8(delimiter);
        }
        match bytes_of(value) {
            None => out.put_slice(b"NULL"),
            Some(bytes) => {
                out.put_u8(b'"');
                put_escaped(out, bytes, |byte| matches!(byte, b'\\' | b'"').then_some(byte));
                out.put_u8(b'"');
            }
        }
    }
    out.put_u8(b'}');
}

/// The bytes, with a backslash and what `escape` says instead of those that it names.
fn put_escaped(out: &mut BytesMut, bytes: &[u8], escape: impl Fn(u8) -> Option<u8>) {
    let mut plain = 0;
    for (place, byte) in bytes.iter().enumerate() {
        if let Some(escaped) = escape(*byte) {
            out.put_slice(&bytes[plain..place]);
            out.put_slice(&[b'\\', escaped]);
            plain = place + 1;
        }
    }
    out.put_slice(&bytes[plain..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_a_value_is_escaped() {
        let row = vec![Value::Text(b"a\tb\\.\r\n"), Value::Null, Value::Text(b""), Value::Text(b"{\"x\",NULL}")];
        let mut out = BytesMut::new();
        put_row(&mut out, &row);
        assert_eq!(out, "a\\tb\\\\.\\r\\n\t\\N\t\t{\"x\",NULL}\n");
        out.clear();
        put_array(&mut out, b';', row.iter());
        assert_eq!(out, "{\"a\tb\\\\.\r\n\";NULL;\"\";\"{\\\"x\\\",NULL}\"}");
    }
}
