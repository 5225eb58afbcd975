//! While a tenant lives in its target and its changes flow back, both sides draw sequence values for the same tables: the target
//! draws from blocks that are reserved at the source, refilled before they are used up.

use std::time::Duration;

use connectors::postgres::policy::{Owned, Path};
use connectors::postgres::sequences::{self, Block, Pair};
use connectors::postgres::spare::{self, Spare};
use schemas::TableName;
use schemas::record::GivenBlock;

use super::{Context, Moving, StepError};
use crate::gently::gently;

/// How often is looked how much of the blocks is used.
const EVERY: Duration = Duration::from_secs(1);
/// How long to wait for transactions that have drawn from a sequence of the source.
const PATIENCE: Duration = Duration::from_secs(10);
/// The part of a block after which the next one is reserved.
const REFILL_PER_CENT: i64 = 80;

/// The sequences of both sides, with a connection to each.
pub(super) struct Sides {
    home: Spare,
    guest: Spare,
    pairs: Vec<Pair>,
}

impl Sides {
    /// Nothing is asked of them any more.
    pub(super) fn end(self) {
        self.home.keep();
        self.guest.keep();
    }
}

/// Those from which these tables draw, as the source has them.
pub(super) async fn sides(context: &Context, moving: &Moving, tables: &[Owned]) -> Result<Sides, StepError> {
    let record = moving.record();
    let target = context.target(&record)?;
    let plan = moving.sink_plan(&target, 0);
    let (home, guest) =
        (spare::take(&context.config.source.url, "sequences").await?, spare::take(&target.url, "sequences").await?);
    // A tenant that goes on from a schema gets what is reserved for it among all tenants.
    let shared = |name: TableName| {
        let place = record.tables.iter().position(|table| *table == name);
        place.map_or(name, |place| record.models()[place].clone())
    };
    let own = tables.iter().filter(|owned| !matches!(owned.path, Path::Reference)).map(|owned| &owned.table.name);
    let tables: Vec<(TableName, TableName)> = own.map(|home| (shared(home.clone()), plan.target_name(home))).collect();
    let (homes, guests): (Vec<TableName>, Vec<TableName>) = tables.iter().cloned().unzip();
    let of_home = gently(sequences::of_tables(&home, &homes)).await?;
    let of_guest = gently(sequences::of_tables(&guest, &guests)).await?;
    let mut pairs = sequences::pair(&of_home, &of_guest, &tables)?;
    pairs.retain(|pair| !pair.shared);
    Ok(Sides { home, guest, pairs })
}

/// Reserves a block for every sequence that has none left, and gives it to the target.
pub(super) async fn give_blocks(context: &Context, moving: &Moving, tables: &[Owned]) -> Result<(), StepError> {
    let mut sides = sides(context, moving, tables).await?;
    if let (Some(mut schema), Some(earlier)) = (schema_sides(context, moving).await?, moving.earlier()) {
        // What the tenant drew there while nobody reserved any, and what it draws there until its writes have moved.
        fill(context, earlier, &mut schema).await?;
        schema.end();
    }
    fill(context, moving, &mut sides).await?;
    sides.end();
    Ok(())
}

/// A tenant that goes back to its schema goes on with values that nobody else has had meanwhile.
pub(super) async fn refill_schema(context: &Context, moving: &Moving) -> Result<(), StepError> {
    let Some(mut schema) = schema_sides(context, moving).await? else { return Ok(()) };
    for pair in &schema.pairs {
        let size = sequences::size_for(&schema.home, &pair.home).await?;
        let block = sequences::reserve(&mut schema.home, &pair.home, size, PATIENCE).await?;
        sequences::give(&schema.guest, &pair.guest, block).await?;
        let next = GivenBlock { sequence: pair.home.name.clone(), first: block.first, last: block.last };
        if let Some(earlier) = moving.earlier() {
            earlier.update(&context.store, |record| record.blocks.push(next))?;
        }
    }
    schema.end();
    Ok(())
}

/// Of a tenant that goes on from its schema: the shared sequences, and the schema's.
async fn schema_sides(context: &Context, moving: &Moving) -> Result<Option<Sides>, StepError> {
    let record = moving.record();
    if record.from.is_none() {
        return Ok(None);
    }
    let url = &context.config.source.url;
    let (home, guest) = (spare::take(url, "sequences").await?, spare::take(url, "sequences").await?);
    let tables: Vec<(TableName, TableName)> =
        record.models().iter().cloned().zip(record.tables.iter().cloned()).collect();
    let of_home = sequences::of_tables(&home, record.models()).await?;
    let of_guest = sequences::of_tables(&guest, &record.tables).await?;
    let mut pairs = sequences::pair(&of_home, &of_guest, &tables)?;
    pairs.retain(|pair| !pair.shared);
    Ok(Some(Sides { home, guest, pairs }))
}

/// Keeps the blocks filled as long as the tenant lives in its target.
pub(super) async fn keep_filled(context: &Context, moving: &Moving) {
    let mut known = None;
    loop {
        tokio::time::sleep(EVERY).await;
        // It has just come back.
        if !moving.record().phase.lives_in_target() {
            continue;
        }
        let filled = async {
            let sides = match &mut known {
                Some(sides) => sides,
                None => {
                    let tables = context.read_by(&moving.record()).await?;
                    known.insert(sides(context, moving, &tables).await?)
                }
            };
            fill(context, moving, sides).await
        };
        match filled.await {
            Ok(()) => moving.meter.set_trouble(None),
            Err(error) => {
                tracing::warn!(%error, "the target's sequences could not be given values; trying again");
                moving.meter.set_trouble(Some(error.to_string()));
                known = None;
            }
        }
    }
}

async fn fill(context: &Context, moving: &Moving, sides: &mut Sides) -> Result<(), StepError> {
    for pair in &sides.pairs {
        let given = given(moving, pair);
        if given.is_empty() {
            // A tenant that was away has drawn by itself.
            sequences::hand_back(&mut sides.home, &sides.guest, pair, &given, PATIENCE).await?;
        }
        if let Some(block) = given.last() {
            let used = sequences::used(&sides.guest, &pair.guest, *block).await?;
            let size = (i128::from(block.last) - i128::from(block.first)) / i128::from(pair.home.increment) + 1;
            if !used.beyond && i128::from(used.values) * 100 < size * i128::from(REFILL_PER_CENT) {
                continue;
            }
            if used.beyond {
                tracing::warn!(sequence = %pair.guest.name, "the target drew values that were not reserved for it");
                sequences::hand_back(&mut sides.home, &sides.guest, pair, &given, PATIENCE).await?;
            }
        }
        let size = sequences::size_for(&sides.home, &pair.home).await?;
        let block = sequences::reserve(&mut sides.home, &pair.home, size, PATIENCE).await?;
        // A block that is not written down is lost, which does no harm.
        sequences::give(&sides.guest, &pair.guest, block).await?;
        let next = GivenBlock { sequence: pair.home.name.clone(), first: block.first, last: block.last };
        moving.update(&context.store, |record| record.blocks.push(next))?;
        tracing::info!(sequence = %pair.guest.name, first = block.first, last = block.last, "a block of values was reserved");
    }
    Ok(())
}

/// The source goes on by itself: its sequences are past every value that the target drew. While nobody writes.
pub(super) async fn hand_back(moving: &Moving, sides: &mut Sides) -> Result<(), StepError> {
    for pair in &sides.pairs {
        sequences::hand_back(&mut sides.home, &sides.guest, pair, &given(moving, pair), PATIENCE).await?;
    }
    Ok(())
}

/// The blocks that the target was given of a sequence, in order.
fn given(moving: &Moving, pair: &Pair) -> Vec<Block> {
    let blocks = moving.record().blocks;
    let of_pair = blocks.iter().filter(|block| block.sequence == pair.home.name);
    of_pair.map(|block| Block { first: block.first, last: block.last }).collect()
}
