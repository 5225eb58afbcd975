//! Applies changes one by one, in original order, several on their way at a time.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use tokio_postgres::Statement;

use super::super::pgoutput::Value;
use super::super::quote::{ident, idents, table as qualified};
use super::super::{Doing, Error, Result};
use super::Session;
use super::target::{Change, Mapped, Op, Raw, Row};

/// Statements sent before the first answer is waited for.
const IN_FLIGHT: usize = 200;

/// A prepared change.
struct Step<'a> {
    table: Arc<Mapped>,
    statement: Statement,
    params: Row<'a>,
}

/// Applies a piece of a group.
pub(super) async fn apply(session: &mut Session<'_>, changes: &[Change<'_>]) -> Result<()> {
    for some in changes.chunks(IN_FLIGHT) {
        let mut steps = Vec::with_capacity(some.len());
        for change in some {
            for (sql, params) in statements(change)? {
                let statement = session.statements.get(session.client, sql, &change.table.target).await?;
                steps.push(Step { table: Arc::clone(&change.table), statement, params });
            }
        }
        send(session, steps).await?;
    }
    Ok(())
}

/// Sends the steps in order, then takes their answers in order.
async fn send(session: &Session<'_>, steps: Vec<Step<'_>>) -> Result<()> {
    let mut answers = Vec::with_capacity(steps.len());
    for step in &steps {
        let params: Vec<Raw<'_>> = step.params.iter().map(Raw::from).collect();
        let mut answer: Pin<Box<dyn Future<Output = _> + Send + '_>> =
            Box::pin(session.client.execute_raw(&step.statement, params));
        // The first poll is what sends the statement; polling here keeps the order.
        let early = poll_fn(|context| Poll::Ready(answer.as_mut().poll(context))).await;
        answers.push((answer, early));
    }
    for (step, (answer, early)) in steps.iter().zip(answers) {
        let touched = match early {
            Poll::Ready(touched) => touched,
            Poll::Pending => answer.await,
        };
        if touched.doing(format!("change a row of {}", step.table.target))? != 1 {
            return Err(Error::mismatch(
                format!("change a row of {}", step.table.target),
                "an UPDATE or DELETE did not find its row in the target",
            ));
        }
    }
    Ok(())
}

/// A statement's text and its parameters.
type Sql<'a> = (String, Row<'a>);

/// The statements of a change: one, but where UPDATE refuses to set a column.
fn statements<'a>(change: &Change<'a>) -> Result<Vec<Sql<'a>>> {
    let table = &change.table;
    Ok(match &change.op {
        Op::Insert(row) => vec![(insert_sql(table), row.clone())],
        Op::Delete { key, old } => vec![delete(table, key, old.as_ref())?],
        Op::Update { key, old, new } => {
            let moved = &table.key_of(new)? != key;
            if table.refuses_update() || (moved && table.key_is_generated()) {
                let whole = complete(table, old.as_ref(), new)?;
                return Ok(vec![delete(table, key, old.as_ref())?, (insert_sql(table), whole)]);
            }
            let mut places = table.settable(new);
            if moved {
                places.extend(&table.key);
            }
            let mut params: Row<'a> = places.iter().map(|place| new[*place]).collect();
            let (found, mut more) = find(table, key, old.as_ref(), params.len())?;
            params.append(&mut more);
            let target = qualified(&table.target);
            // A row that keeps all its values still has to be there.
            let sql = match places.is_empty() {
                true => format!("SELECT FROM {target} WHERE {found}"),
                false => format!("UPDATE {target} SET {} WHERE {found}", set_clause(table, &places)),
            };
            vec![(sql, params)]
        }
    })
}

fn delete<'a>(table: &Mapped, key: &Row<'a>, old: Option<&Row<'a>>) -> Result<Sql<'a>> {
    let (found, params) = find(table, key, old, 0)?;
    Ok((format!("DELETE FROM {} WHERE {found}", qualified(&table.target)), params))
}

/// The new row with its unchanged values taken from the old one.
pub(super) fn complete<'a>(table: &Mapped, old: Option<&Row<'a>>, new: &Row<'a>) -> Result<Row<'a>> {
    let whole = new.iter().enumerate().map(|(place, value)| match (value, old) {
        (Value::Unchanged, Some(old)) => Ok(old[place]),
        (Value::Unchanged, None) => Err(Error::state(
            format!("replace a row of {}", table.target),
            format!(
                "the unchanged value of column \"{}\" was not sent; REPLICA IDENTITY FULL would send it",
                table.columns[place].name
            ),
        )),
        (value, _) => Ok(*value),
    });
    whole.collect()
}

fn insert_sql(table: &Mapped) -> String {
    let columns = idents(table.columns.iter().map(|column| column.name.as_str()));
    let values: Vec<String> = (0..table.columns.len()).map(|place| param(table, place, place + 1)).collect();
    format!(
        "INSERT INTO {} ({columns}) OVERRIDING SYSTEM VALUE VALUES ({})",
        qualified(&table.target),
        values.join(", ")
    )
}

/// `"a" = $1::type, …`
fn set_clause(table: &Mapped, places: &[usize]) -> String {
    let pairs = places
        .iter()
        .enumerate()
        .map(|(n, p)| format!("{} = {}", ident(&table.columns[*p].name), param(table, *p, n + 1)));
    pairs.collect::<Vec<_>>().join(", ")
}

fn param(table: &Mapped, place: usize, number: usize) -> String {
    format!("${number}::{}", table.columns[place].type_name)
}

/// The condition that names the row, with parameters numbered after `taken`.
///
/// Without a key the whole old row names it, by its values' text; of several equal rows one is
/// taken, which one makes no difference.
fn find<'a>(table: &Mapped, key: &Row<'a>, old: Option<&Row<'a>>, taken: usize) -> Result<Sql<'a>> {
    if !table.key.is_empty() {
        let pairs = table.key.iter().enumerate();
        let pairs =
            pairs.map(|(n, p)| format!("{} = {}", ident(&table.columns[*p].name), param(table, *p, taken + n + 1)));
        return Ok((pairs.collect::<Vec<_>>().join(" AND "), key.clone()));
    }
    let Some(old) = old else {
        return Err(Error::state(
            format!("name a row of {}", table.source),
            "the table has no key and the old row was not sent",
        ));
    };
    let pair = |place: usize| (ident(&table.columns[place].name), param(table, place, taken + place + 1));
    let indexed = table.indexed.iter().map(|place| pair(*place)).map(|(name, value)| format!("{name} = {value}"));
    let same =
        (0..old.len()).map(pair).map(|(name, value)| format!("{name}::text IS NOT DISTINCT FROM ({value})::text"));
    let target = qualified(&table.target);
    let same = indexed.chain(same).collect::<Vec<_>>().join(" AND ");
    // Each partition has a row at this place.
    Ok((format!("(tableoid, ctid) = (SELECT tableoid, ctid FROM {target} WHERE {same} LIMIT 1)"), old.clone()))
}
