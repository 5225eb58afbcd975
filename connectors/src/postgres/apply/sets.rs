//! Applies folded changes: per table one DELETE, one UPDATE per set of changed columns, one COPY.
//! Every statement says how many rows it must touch.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{SinkExt, pin_mut};

use super::super::catalog::Column;
use super::super::copy::{HEADER, TRAILER};
use super::super::pgoutput::Value;
use super::super::quote::{ident, idents, table as qualified};
use super::super::{Doing, Error, Result};
use super::fold::Folded;
use super::target::{Change, Form, Mapped, Raw, Row, bytes_of};
use super::{Session, text};

/// Applies a piece of a group.
pub(super) async fn apply(session: &mut Session<'_>, changes: &[Change<'_>]) -> Result<()> {
    // Nothing fires between tables, so their order does not matter; a BTreeMap keeps it stable.
    let mut tables: BTreeMap<u32, Folded<'_>> = BTreeMap::new();
    for change in changes {
        let fold = tables.entry(change.table.oid).or_insert_with(|| Folded::new(change.table.clone()));
        if !std::sync::Arc::ptr_eq(&fold.table, &change.table) {
            return Err(Error::mismatch(
                format!("fold the changes of {}", change.table.target),
                "the table changed in between",
            ));
        }
        fold.push(&change.op)?;
    }
    for fold in tables.values() {
        delete(session, fold).await?;
        update(session, fold).await?;
        insert(session, fold).await?;
    }
    Ok(())
}

async fn delete(session: &mut Session<'_>, fold: &Folded<'_>) -> Result<()> {
    let table = &fold.table;
    let keys: Vec<&Row<'_>> = fold.fates.iter().filter(|(_, fate)| fate.delete).map(|(key, _)| key).collect();
    if keys.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = (0..table.key.len()).map(|n| format!("k{n}")).collect();
    let sql = format!(
        "DELETE FROM {} t USING unnest({}) v({}) WHERE {}",
        qualified(&table.target),
        arrays(&table.columns, &table.key),
        names.join(", "),
        same_key(table, &names)
    );
    let arrays: Vec<Bytes> = (0..table.key.len())
        .map(|n| array(fold.form, &table.columns[table.key[n]], keys.iter().map(|key| &key[n])))
        .collect();
    run(session, fold, sql, &arrays, keys.len()).await
}

async fn update(session: &mut Session<'_>, fold: &Folded<'_>) -> Result<()> {
    let table = &fold.table;
    // One statement per set of columns that get a value.
    let mut shapes: BTreeMap<Vec<usize>, Vec<(&Row<'_>, &Row<'_>)>> = BTreeMap::new();
    for (key, fate) in &fold.fates {
        if let Some(row) = &fate.update {
            shapes.entry(table.settable(row)).or_default().push((key, row));
        }
    }
    for (places, rows) in shapes {
        let keys: Vec<String> = (0..table.key.len()).map(|n| format!("k{n}")).collect();
        let all: Vec<usize> = table.key.iter().chain(&places).copied().collect();
        let names: Vec<String> = keys.iter().cloned().chain((0..places.len()).map(|n| format!("s{n}"))).collect();
        let (target, rows_of) =
            (qualified(&table.target), format!("unnest({}) v({})", arrays(&table.columns, &all), names.join(", ")));
        let set: Vec<String> =
            places.iter().enumerate().map(|(n, p)| format!("{} = v.s{n}", ident(&table.columns[*p].name))).collect();
        // A row whose every other value is unchanged still has to be there.
        let sql = match set.is_empty() {
            true => format!("SELECT FROM {target} t, {rows_of} WHERE {}", same_key(table, &keys)),
            false => {
                format!("UPDATE {target} t SET {} FROM {rows_of} WHERE {}", set.join(", "), same_key(table, &keys))
            }
        };
        let from_key = (0..table.key.len())
            .map(|n| array(fold.form, &table.columns[table.key[n]], rows.iter().map(|(key, _)| &key[n])));
        let from_row = places
            .iter()
            .map(|place| array(fold.form, &table.columns[*place], rows.iter().map(|(_, row)| &row[*place])));
        let arrays: Vec<Bytes> = from_key.chain(from_row).collect();
        run(session, fold, sql, &arrays, rows.len()).await?;
    }
    Ok(())
}

async fn insert(session: &mut Session<'_>, fold: &Folded<'_>) -> Result<()> {
    let table = &fold.table;
    let rows: Vec<&Row<'_>> = fold.fates.iter().filter_map(|(_, fate)| fate.insert.as_ref()).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let doing = || format!("copy rows into {}", table.target);
    let columns = idents(table.columns.iter().map(|column| column.name.as_str()));
    let format = if fold.form == Form::Text { "text" } else { "binary" };
    let sql = format!("COPY {} ({columns}) FROM STDIN (FORMAT {format})", qualified(&table.target));
    let mut data = BytesMut::new();
    match fold.form {
        Form::Binary => {
            data.put_slice(HEADER);
            for row in &rows {
                data.put_u16(row.len() as u16);
                row.iter().for_each(|value| put_value(&mut data, value));
            }
            data.put_slice(TRAILER);
        }
        Form::Text => rows.iter().for_each(|row| text::put_row(&mut data, row)),
    }
    let sink = session.client.copy_in::<_, Bytes>(&sql).await.doing(doing())?;
    pin_mut!(sink);
    sink.feed(data.freeze()).await.doing(doing())?;
    let copied = sink.finish().await.doing(doing())?;
    expect(table, copied, rows.len())
}

async fn run(session: &mut Session<'_>, fold: &Folded<'_>, sql: String, arrays: &[Bytes], rows: usize) -> Result<()> {
    let table = &fold.table;
    let statement = session.statements.get(session.client, sql, &table.target).await?;
    let params = arrays.iter().map(|array| Raw(Some(array), fold.form));
    let touched =
        session.client.execute_raw(&statement, params).await.doing(format!("change rows of {}", table.target))?;
    expect(table, touched, rows)
}

fn expect(table: &Mapped, touched: u64, rows: usize) -> Result<()> {
    match touched == rows as u64 {
        true => Ok(()),
        false => Err(Error::mismatch(
            format!("change rows of {}", table.target),
            format!("{touched} rows were touched where there are {rows} changes"),
        )),
    }
}

/// `$1::type[], $2::type[], …` for the columns at `places`.
pub(super) fn arrays(columns: &[Column], places: &[usize]) -> String {
    let params = places.iter().enumerate().map(|(n, place)| format!("${}::{}[]", n + 1, columns[*place].type_name));
    params.collect::<Vec<_>>().join(", ")
}

fn same_key(table: &Mapped, names: &[String]) -> String {
    let pairs =
        table.key.iter().zip(names).map(|(place, name)| format!("t.{} = v.{name}", ident(&table.columns[*place].name)));
    pairs.collect::<Vec<_>>().join(" AND ")
}

/// A one-dimensional array of a column's values, in the form in which they came (binary: PostgreSQL source,
/// `array_recv`).
pub(super) fn array<'v, 'a: 'v>(
    form: Form,
    column: &Column,
    values: impl ExactSizeIterator<Item = &'v Value<'a>> + Clone,
) -> Bytes {
    let mut out = BytesMut::with_capacity(20 + values.len() * 12);
    if form == Form::Text {
        text::put_array(&mut out, column.delimiter, values);
        return out.freeze();
    }
    let has_null = values.clone().any(|value| bytes_of(value).is_none());
    out.put_i32(1);
    out.put_i32(i32::from(has_null));
    out.put_u32(column.type_oid);
    out.put_i32(values.len() as i32);
    out.put_i32(1);
    for value in values {
        put_value(&mut out, value);
    }
    out.freeze()
}

/// Length and bytes; -1 for NULL.
fn put_value(out: &mut BytesMut, value: &Value<'_>) {
    match bytes_of(value) {
        Some(bytes) => {
            out.put_i32(bytes.len() as i32);
            out.put_slice(bytes);
        }
        None => out.put_i32(-1),
    }
}
