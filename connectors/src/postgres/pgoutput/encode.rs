//! Writes changes in pgoutput's own format, for the spool: what it holds is read back by the same
//! [`decode`](super::decode) as the stream. Appends to `out`, never looks at what is there.

use super::tuple::{Old, Tuple, Value};

/// Writes an Insert of `new`, which has the columns of the relation in its order: at most the
/// 1,600 that PostgreSQL allows.
pub fn encode_insert(relation: u32, new: &[Value<'_>], out: &mut Vec<u8>) {
    debug_assert!(new.len() <= 1600, "a table has at most 1600 columns");
    begin(b'I', relation, b'N', out);
    out.extend_from_slice(&(new.len() as u16).to_be_bytes());
    for value in new {
        value.write(out);
    }
}

/// Writes an Insert of a row image as it came.
pub fn encode_insert_raw(relation: u32, new: Tuple<'_>, out: &mut Vec<u8>) {
    begin(b'I', relation, b'N', out);
    out.extend_from_slice(new.raw());
}

/// Writes a Delete with the old image as it came.
pub fn encode_delete(relation: u32, old: Old<'_>, out: &mut Vec<u8>) {
    let kind = match old {
        Old::Key(_) => b'K',
        Old::Full(_) => b'O',
    };
    begin(b'D', relation, kind, out);
    out.extend_from_slice(old.tuple().raw());
}

/// Writes that rows of `partition` come as those of `table`: in a spool a Truncate of both says so, which is not used
/// there otherwise.
pub fn encode_partition(table: u32, partition: u32, out: &mut Vec<u8>) {
    out.push(b'T');
    out.extend_from_slice(&2_u32.to_be_bytes());
    out.push(0);
    out.extend_from_slice(&table.to_be_bytes());
    out.extend_from_slice(&partition.to_be_bytes());
}

fn begin(message: u8, relation: u32, image: u8, out: &mut Vec<u8>) {
    out.push(message);
    out.extend_from_slice(&relation.to_be_bytes());
    out.push(image);
}
