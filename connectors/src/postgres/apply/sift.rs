//! Decides the changes of a piece that may be another tenant's: by the rows that are in the target when their
//! transaction comes. What the transaction itself did to the rows that they refer to is decided already.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures_util::{StreamExt, pin_mut};
use schemas::TableName;

use super::super::pgoutput::Value;
use super::super::quote::{ident, table as qualified};
use super::super::{Doing, Error, Result};
use super::Session;
use super::claim::{Claim, Claims, key_bytes, key_value};
use super::hands::{Arriving, Hands, after_name, before_name};
use super::rows::complete;
use super::sets::{array, arrays};
use super::target::{Change, Form, Mapped, Op, Raw, Referred, Row};
use super::whole;

/// A table that others refer to, and the columns by which they do.
type Name = (TableName, Vec<String>);

/// Which of the keys that matter are in the target.
type Present = HashMap<Name, HashSet<Bytes>>;

/// A change with the claims to it, where it is not decided.
type Claimed<'a> = (Change<'a>, Option<Claims>);

/// Leaves out what is another tenant's, and turns what comes from or goes to one into what it is here.
pub(super) async fn sift<'a>(
    session: &mut Session<'_>,
    changes: Vec<Claimed<'a>>,
    arriving: &Arriving,
    hands: &mut Hands,
) -> Result<Vec<Change<'a>>> {
    if !hands.careful && changes.iter().any(may_change_hands) {
        hands.careful = true;
        if changes.first().is_some_and(|(change, _)| !change.first) {
            let why = "rows change hands late in a transaction: once more, with care from its beginning";
            return Err(Error::mismatch("apply a group", why));
        }
    }
    let mut asked: HashMap<Name, (Arc<Mapped>, u8, HashSet<Bytes>)> = HashMap::new();
    for (change, claims) in &changes {
        let mut ask = |steps, key: &Bytes| -> Result<()> {
            let name = referred(&change.table, steps)?.name();
            let table = || (Arc::clone(&change.table), steps, HashSet::new());
            asked.entry(name).or_insert_with(table).2.insert(key.clone());
            Ok(())
        };
        for claim in claims.iter().flat_map(|claims| [&claims.old, &claims.new]) {
            if let Claim::If { steps, key } = claim {
                ask(*steps, key)?;
            }
        }
        if hands.careful && !change.table.above.is_empty() {
            let (was, is) = before_and_after(&change.table, &change.op, &change.table.refers);
            for key in was.iter().chain(&is) {
                ask(1, key)?;
            }
        }
    }
    let mut present = Present::new();
    for (name, (table, steps, keys)) in asked {
        let there = look(session, referred(&table, steps)?, keys.into_iter().collect()).await?;
        present.insert(name, there);
    }
    // In order: what a transaction does counts for those that follow.
    let mut kept = Vec::with_capacity(changes.len());
    for (change, claims) in changes {
        if change.first {
            hands.begin();
        }
        if [arriving, &hands.arriving].iter().any(|arriving| whole::awaited(arriving, &change.table.source)) {
            continue;
        }
        let Some(op) = decide(&change, claims, &present, hands)? else { continue };
        if hands.passes_over(arriving, &change.table, &op)? {
            continue;
        }
        note(&change.table, &op, &mut present, hands);
        kept.push(Change { op, ..change });
    }
    Ok(kept)
}

/// Whether the change may give the row to another tenant.
fn may_change_hands((change, claims): &Claimed<'_>) -> bool {
    matches!(change.op, Op::Update { .. }) && claims.as_ref().is_some_and(|claims| claims.old != claims.new)
}

/// Whether what the row refers to is in the target, before the change and after it. A transaction's changes come table
/// by table, from the top down: what becomes of the rows above is known, and what there was when it began is noted.
fn has_parent(change: &Change<'_>, present: &Present, hands: &mut Hands) -> (bool, bool) {
    let table = &change.table;
    let Some(above) = table.above.first() else { return (true, true) };
    let (was, is) = before_and_after(table, &change.op, &table.refers);
    let there = |key: &Bytes| present.get(&above.name()).is_some_and(|keys| keys.contains(key));
    let began = |key: Bytes| {
        let here = there(&key);
        hands.began.get(&(above.table.clone(), above.columns.clone(), key)).copied().unwrap_or(here)
    };
    let had = match hands.made.get_mut(&(table.source.clone(), before_name(table, &change.op))) {
        Some(alike) if *alike > 0 && was.is_some() => {
            *alike -= 1;
            was.is_some_and(|key| there(&key))
        }
        _ => was.is_some_and(began),
    };
    if let Op::Insert(new) | Op::Update { new, .. } = &change.op {
        *hands.made.entry((table.source.clone(), after_name(table, new))).or_default() += 1;
    }
    (had, is.is_some_and(|key| there(&key)))
}

fn referred(table: &Mapped, steps: u8) -> Result<&Referred> {
    let found = usize::from(steps).checked_sub(1).and_then(|step| table.above.get(step));
    found.ok_or_else(|| Error::protocol(format!("decide whose a row of {} is", table.target), "it refers to nothing"))
}

/// What the change is to this tenant; `None`: nothing.
fn decide<'a>(
    change: &Change<'a>,
    claims: Option<Claims>,
    present: &Present,
    hands: &mut Hands,
) -> Result<Option<Op<'a>>> {
    let table = &change.table;
    let ours = |claim: &Claim| match claim {
        Claim::No => Ok(false),
        Claim::Yes => Ok(true),
        Claim::If { steps, key } => {
            Ok(present.get(&referred(table, *steps)?.name()).is_some_and(|keys| keys.contains(key)))
        }
    };
    let (was, is) = match &claims {
        None => (true, true),
        Some(claims) => (ours(&claims.old)?, ours(&claims.new)?),
    };
    let (had, has) = if hands.careful { has_parent(change, present, hands) } else { (true, true) };
    let (was, is) = (was && had, is && has);
    let carries = !table.referred.is_empty();
    match &change.op {
        Op::Insert(new) if is && hands.has_left(table, new) => {
            hands.arrive(table, new)?;
            Ok(None)
        }
        Op::Update { key, old, new } if was && is && hands.has_left(table, new) => {
            hands.leave(table, key, old.as_ref());
            hands.arrive(table, new)?;
            Ok(None)
        }
        Op::Insert(_) => Ok(is.then(|| change.op.clone())),
        Op::Delete { .. } => Ok(was.then(|| change.op.clone())),
        Op::Update { .. } if was == is => Ok(is.then(|| change.op.clone())),
        // With all that hangs on it, when the group ends.
        Op::Update { key, old, .. } if was && carries => {
            hands.leave(table, key, old.as_ref());
            Ok(None)
        }
        Op::Update { key, old, .. } if was => Ok(Some(Op::Delete { key: key.clone(), old: old.clone() })),
        Op::Update { old, new, .. } => match complete(table, old.as_ref(), new) {
            Ok(new) if !carries => Ok(Some(Op::Insert(new))),
            Err(error) if table.name.is_empty() => Err(error),
            _ => {
                hands.arrive(table, new)?;
                Ok(None)
            }
        },
    }
}

/// What a change of this tenant does to rows that others refer to.
fn note(table: &Mapped, op: &Op<'_>, present: &mut Present, hands: &mut Hands) {
    for (columns, places) in &table.referred {
        let name = (table.source.clone(), columns.clone());
        if !hands.careful && !present.contains_key(&name) {
            continue;
        }
        let (was, is) = before_and_after(table, op, places);
        if let Some(keys) = present.get_mut(&name) {
            was.as_ref().map(|key| keys.remove(key));
            is.as_ref().map(|key| keys.insert(key.clone()));
        }
        for (key, before) in was.map(|key| (key, true)).into_iter().chain(is.map(|key| (key, false))) {
            if hands.careful {
                hands.began.entry((name.0.clone(), name.1.clone(), key)).or_insert(before);
            }
        }
    }
}

/// The values at `places`, before a change and after it.
fn before_and_after(table: &Mapped, op: &Op<'_>, places: &[usize]) -> (Option<Bytes>, Option<Bytes>) {
    // A value that was not sent did not change.
    let unsent = |new: &Row<'_>| places.iter().any(|place| new[*place] == Value::Unchanged);
    match op {
        Op::Insert(new) => (None, values(table, new, places)),
        Op::Delete { key, old } => (old_values(table, key, old.as_ref(), places), None),
        Op::Update { key, old, new } => {
            let was = old_values(table, key, old.as_ref(), places);
            let is = if unsent(new) { was.clone() } else { values(table, new, places) };
            (was, is)
        }
    }
}

fn values(table: &Mapped, row: &Row<'_>, places: &[usize]) -> Option<Bytes> {
    key_of(table, places, |place| row.get(place).copied())
}

/// From the whole old row, or from the columns that name it.
fn old_values(table: &Mapped, key: &Row<'_>, old: Option<&Row<'_>>, places: &[usize]) -> Option<Bytes> {
    let Some(old) = old else {
        return key_of(table, places, |place| table.key.iter().position(|own| *own == place).map(|n| key[n]));
    };
    values(table, old, places)
}

fn key_of<'a>(table: &Mapped, places: &[usize], value: impl Fn(usize) -> Option<Value<'a>>) -> Option<Bytes> {
    let value = |place: &usize| key_value(table.columns[*place].key, value(*place)?);
    let values: Vec<_> = places.iter().map(value).collect::<Option<_>>()?;
    Some(key_bytes(values.iter().map(AsRef::as_ref)).into())
}

/// Asks the target which of the keys it has.
async fn look(session: &mut Session<'_>, referred: &Referred, asked: Vec<Bytes>) -> Result<HashSet<Bytes>> {
    let doing = || format!("look for rows in {}", referred.target);
    let broken = || Error::protocol(doing(), "a key does not have the columns' form");
    let names: Vec<String> = (0..referred.columns.len()).map(|n| format!("k{n}")).collect();
    let same: Vec<String> =
        referred.columns.iter().zip(&names).map(|(column, key)| format!("t.{} = v.{key}", ident(column))).collect();
    let sql = format!(
        "SELECT v.place FROM unnest({}) WITH ORDINALITY v({}, place) WHERE EXISTS (SELECT FROM {} t WHERE {})",
        arrays(&referred.types, &(0..names.len()).collect::<Vec<_>>()),
        names.join(", "),
        qualified(&referred.target),
        same.join(" AND ")
    );
    let split = |key: &Bytes| split(key.clone(), names.len());
    let parts: Vec<Vec<Bytes>> = asked.iter().map(split).collect::<Option<_>>().ok_or_else(broken)?;
    let column = |n: usize| {
        let values: Vec<Value<'_>> = parts.iter().map(|part| Value::Binary(&part[n])).collect();
        array(Form::Binary, &referred.types[n], values.iter())
    };
    let columns: Vec<Bytes> = (0..names.len()).map(column).collect();
    let statement = session.statements.get(session.client, sql, &referred.target).await?;
    let params = columns.iter().map(|column| Raw(Some(column), Form::Binary));
    let rows = session.client.query_raw(&statement, params).await.doing(doing())?;
    pin_mut!(rows);
    let mut there = HashSet::new();
    while let Some(row) = rows.next().await {
        let place: i64 = row.doing(doing())?.get(0);
        let key = usize::try_from(place - 1).ok().and_then(|place| asked.get(place)).ok_or_else(broken)?;
        there.insert(key.clone());
    }
    Ok(there)
}

/// The values of a key of so many columns.
fn split(mut key: Bytes, columns: usize) -> Option<Vec<Bytes>> {
    if columns == 1 {
        return Some(vec![key]);
    }
    let value = |_| {
        let length = key.try_get_u32().ok()? as usize;
        (key.len() >= length).then(|| key.split_to(length))
    };
    (0..columns).map(value).collect()
}
