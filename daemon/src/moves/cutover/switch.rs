//! Moving the writes from one side to the other, step by step; what is done while they wait is all here.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use connectors::postgres::fence::{self, Held};
use connectors::postgres::policy::Path;
use connectors::postgres::spare::Spare;
use connectors::postgres::{Client, control, snapshot};
use schemas::record::{MoveRecord, Proof};
use schemas::status::{CutoverReport, StepReport};
use schemas::{Lsn, Phase};
use tokio::sync::oneshot;

use super::super::recheck::Recheck;
use super::super::reverse::{self, Reverse};
use super::super::{Context, Moving, StepError, driver, lock, sequences, verify};
use super::after::{finish, released, take_away};
use super::sides::{Side, sides};
use super::{FENCE_PATIENCE, HOLD_PATIENCE, MARGIN, Wish, no_way_back, not_ready};
use crate::gently::gently;
use crate::lane::{Drained, LaneCommand};

/// How long each step takes.
pub(super) struct Steps {
    since: Instant,
    took: Vec<StepReport>,
}

impl Steps {
    pub fn begin() -> Steps {
        Steps { since: Instant::now(), took: Vec::new() }
    }

    pub fn took(&mut self, step: &str) {
        let since = std::mem::replace(&mut self.since, Instant::now());
        self.took.push(StepReport { step: step.to_owned(), ms: millis(since.elapsed()) });
    }
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// Moving the writes from one side to the other.
pub(super) struct Switch<'a> {
    context: &'a Arc<Context>,
    moving: &'a Arc<Moving>,
    wish: Wish,
    max_pause: Duration,
    /// What brings the changes there.
    pub lane: (Arc<Context>, Arc<Moving>),
    /// The lane back; `None`: it is the move's own, or there will be none.
    next: Option<Arc<Reverse>>,
    /// Where the tenant lives.
    pub from: Side,
    to: Side,
    /// Of a rollback: those that the source goes on with.
    sequences: Option<tokio::sync::Mutex<sequences::Sides>>,
    /// What is compared once more; `None` where nothing is.
    pub recheck: Option<Recheck>,
    /// What brought the changes there until the barrier.
    drained: Mutex<Option<Drained>>,
    /// What a flip has no more use for.
    connections: Vec<Spare>,
}

impl<'a> Switch<'a> {
    /// Opens the lane that runs afterwards.
    pub async fn prepare(
        context: &'a Arc<Context>,
        moving: &'a Arc<Moving>,
        wish: Wish,
        max_pause: Duration,
    ) -> Result<Switch<'a>, StepError> {
        let (source, target) = sides(context, moving).await?;
        let config = &context.config.tenant_strategy.migration_config;
        let (mut next, mut sequences) = (None, None);
        let (lane, from, to) = match wish {
            Wish::RollBack => {
                let reverse = by_the_way_back(moving, config.validation_enabled)?;
                forward_again(context, moving).await?;
                sequences = Some(tokio::sync::Mutex::new(sequences::sides(context, moving, &source.tables).await?));
                ((Arc::clone(&reverse.context), Arc::clone(&reverse.moving)), target, source)
            }
            Wish::CutOver | Wish::Rehearse => {
                take_away(context, moving, false).await?;
                moving.update(&context.store, |record| record.fenced = true)?;
                if config.rollback_enabled || moving.record().returning {
                    next = Some(way_back(context, moving, &source).await?);
                }
                ((Arc::clone(context), Arc::clone(moving)), source, target)
            }
        };
        let (recheck, drained, connections) = (None, Mutex::default(), Vec::new());
        Ok(Switch { context, moving, wish, max_pause, lane, next, from, to, sequences, recheck, drained, connections })
    }

    pub async fn run(&mut self, mut steps: Steps) -> Result<CutoverReport, StepError> {
        let (context, moving) = (self.context, self.moving);
        let record = moving.record();
        let (mut here, there) = (self.fenced(&self.from).await?, self.fenced(&self.to).await?);
        if let Some((context, moving)) = self.next() {
            let next = moving.record();
            control::create_checkpoint(&mut here, next.id, &next.tenant, &context.origin()).await?;
        }
        steps.took("fence");
        self.narrow(&mut steps).await?;
        let row = self.from.fence.read(&here).await?.filter(|row| row.open);
        let epoch = row.ok_or_else(|| not_ready(&record, "its fence is shut", "carveout status"))?.epoch;
        // What the flip raises is known before it can be.
        let event = self.wish.event();
        if let Some(event) = event {
            moving.advance_with(&context.store, event, |record| record.epoch = epoch)?;
        }
        let other = self.to.fence.connect(&self.to.url).await?;
        let held = self.from.fence.hold(&self.from.url, self.max_pause, HOLD_PATIENCE).await;
        let held = match held {
            Ok(held) => held,
            Err(error) => {
                // Nobody can have flipped what was never held.
                if event.is_some() {
                    released(context, moving).await?;
                }
                return Err(busy(&record, error));
            }
        };
        steps.took("hold");
        let pause = Instant::now();
        let within = async {
            let guarded = async { self.guarded(self.to.fence.wanting(&there, &self.to.tables).await?) };
            let ((), lsn) = tokio::try_join!(guarded, self.drained(&held, &here, &mut steps))?;
            let rechecked = self.behind_the_fence(&here, &there, &mut steps).await?;
            // Who came there before this was refused, who comes from now on waits: nobody is answered there for what was sent while
            // the others could still hear of what they had written here.
            let other = self.to.fence.hold_by(other, self.max_pause + MARGIN, self.max_pause).await?;
            Ok::<_, StepError>((lsn, rechecked, other))
        };
        let drained = tokio::time::timeout(self.max_pause, within).await;
        let over = || {
            let why = format!(
                "the other side was not there within {} ms; the writers were let go",
                self.max_pause.as_millis()
            );
            not_ready(&record, &why, "try again when the tenant is less busy, or with a longer --max-pause")
        };
        let (lsn, rechecked_keys, route) = match drained {
            Ok(Ok((lsn, rechecked, other))) if event.is_some() => {
                let route = self.to.route(&record, epoch + 1);
                let held = held.turn(false, &route).await?;
                steps.took("flip");
                let other = other.turn(true, &route).await?;
                steps.took("open");
                self.connections.extend([held, other, here, there]);
                (lsn, rechecked, route)
            }
            drained => {
                let was_held = held.release().await;
                steps.took("release");
                let (lsn, rechecked, _) = drained.map_err(|_| over())??;
                // Whoever was let go by the server before may have written since.
                was_held.map_err(|_| over())?;
                (lsn, rechecked, self.from.route(&record, epoch))
            }
        };
        let pause_ms = millis(pause.elapsed());
        let verified_s_ago = self.recheck.as_ref().map(|recheck| recheck.age().as_secs());
        if event.is_some() {
            self.flipped(pause.elapsed())?;
        }
        let (tenant, verified, steps) = (record.tenant, verified_s_ago.is_some(), steps.took);
        Ok(CutoverReport { tenant, lsn, pause_ms, verified, verified_s_ago, rechecked_keys, route, steps })
    }

    /// Both sides were equal at the flip, so what was compared goes on to count: the lane that runs now notes what it changes.
    fn flipped(&mut self, pause: Duration) -> Result<(), StepError> {
        *lock(&self.lane.1.certificate) = None;
        let proof = self.lane.1.record().verified.map(|proof| Proof { carried: true, ..proof });
        if let Some((context, next)) = self.next() {
            next.update(&context.store, |record| (record.verified, record.noted) = (proof, None))?;
        }
        if let (Some(recheck), Some((_, next))) = (&self.recheck, self.next()) {
            next.begin_certified(recheck.carried());
        }
        self.connections.extend(self.recheck.take().into_iter().flat_map(Recheck::end));
        self.sequences.take().into_iter().for_each(|sides| sides.into_inner().end());
        finish(self.context, self.moving, Some(pause))
    }

    /// The writes have moved: what brought the changes there has nothing more to bring. The connections of which there is no more use.
    pub fn end(self) -> Vec<Spare> {
        lock(&self.drained).take().into_iter().for_each(Drained::stay);
        self.connections
    }

    /// Few keys are left for the pause.
    async fn narrow(&mut self, steps: &mut Steps) -> Result<(), StepError> {
        if let Some(recheck) = &mut self.recheck
            && recheck.narrow(&self.lane.0, &self.lane.1).await? > 0
        {
            steps.took("rounds");
        }
        Ok(())
    }

    /// What brings changes the other way afterwards.
    fn next(&self) -> Option<(&Arc<Context>, &Arc<Moving>)> {
        match &self.next {
            Some(reverse) => Some((&reverse.context, &reverse.moving)),
            None => (self.wish == Wish::RollBack).then_some((self.context, self.moving)),
        }
    }

    /// A connection to a side that has its fence.
    async fn fenced(&self, side: &Side) -> Result<Spare, StepError> {
        let record = self.moving.record();
        let mut client = side.fence.connect(&side.url).await?;
        control::setup(&mut client).await?;
        fence::install(&mut client, &side.fence, &side.tables, FENCE_PATIENCE)
            .await
            .map_err(|error| busy(&record, error))?;
        Ok(client)
    }

    /// No trigger of a fence is missing.
    fn guarded(&self, wanting: Vec<String>) -> Result<(), StepError> {
        let Some(table) = wanting.first() else { return Ok(()) };
        let why = format!("a trigger of the fence around {table} is missing or disabled");
        Err(not_ready(&self.moving.record(), &why, "find out who changes triggers, then try again"))
    }

    /// While the writers wait: the other side gets all that they wrote. That the fence was whole is seen before the barrier:
    /// whoever enables a trigger waits for those who wrote without it, so none of them commits behind the barrier.
    async fn drained(&self, held: &Held, here: &Client, steps: &mut Steps) -> Result<Lsn, StepError> {
        self.guarded(held.wanting(&self.from.tables).await?)?;
        let lsn = held.barrier(here).await?;
        steps.took("barrier");
        *lock(&self.drained) = Some(drain(&self.lane.1, lsn).await?);
        // What came or went with them is in no stream, and the lane takes nothing any more.
        if !verify::same_partitions(&self.lane.0, &self.lane.1, here).await? {
            let why = "partitions of its tables came or went just now";
            return Err(not_ready(&self.moving.record(), why, "try again"));
        }
        steps.took("drain");
        Ok(lsn)
    }

    /// When the other side has all: it is compared, and the lane that runs afterwards gets its beginning.
    async fn behind_the_fence(&self, here: &Client, there: &Client, steps: &mut Steps) -> Result<u64, StepError> {
        let mut rechecked = 0;
        if let Some(recheck) = &self.recheck {
            rechecked = recheck.last(&self.lane.0, &self.lane.1).await?;
            steps.took("recheck");
        }
        if let Some(sides) = &self.sequences {
            sequences::hand_back(self.moving, &mut *sides.lock().await).await?;
            steps.took("sequences");
        }
        if let Some((_, moving)) = self.next() {
            let (snapshot, wal_insert_lsn) = snapshot::shown(there).await?;
            let next = moving.record();
            let references = self.to.tables.iter().filter(|owned| matches!(owned.path, Path::Reference));
            let begins = control::Beginning {
                id: next.id,
                tables: &next.tables,
                again: references.map(|owned| owned.table.name.clone()).collect(),
                snapshot,
                wal_insert_lsn,
            };
            control::begin_lane(here, begins).await?;
        }
        steps.took("begin");
        Ok(rechecked)
    }
}

/// Waits until the lane's sink holds everything before the barrier.
async fn drain(moving: &Moving, barrier: Lsn) -> Result<Drained, StepError> {
    let lost = || not_ready(&moving.record(), "its lane is not running", "carveout status");
    let commands = moving.lane().ok_or_else(lost)?;
    let (done, answer) = oneshot::channel();
    let drained = Drained::of(commands.clone());
    commands.send(LaneCommand::Drain { until: barrier, done, drained }).await.map_err(|_| lost())?;
    answer.await.map_err(|_| lost())
}

/// Opens the lane back, and sees that its changes can be read. Whoever compares after that does not do it beside that.
async fn way_back(context: &Arc<Context>, moving: &Arc<Moving>, source: &Side) -> Result<Arc<Reverse>, StepError> {
    let reverse = reverse::open(context, moving, &source.tables, Phase::Following).await?;
    let pipeline = &reverse.context.pipeline;
    if !pipeline.streams().await? {
        let fault = pipeline.progress.borrow().fault.clone();
        let why = fault.map_or_else(String::new, |fault| format!(": {}", fault.message));
        let why = format!("the stream by which its writes would come back does not begin{why}");
        return Err(not_ready(&moving.record(), &why, "see the daemon's log, then try again"));
    }
    Ok(reverse)
}

/// The lane back, fit to move the writes by.
fn by_the_way_back(moving: &Moving, validates: bool) -> Result<Arc<Reverse>, StepError> {
    let record = moving.record();
    let reverse = moving.reverse().ok_or_else(|| no_way_back(&record))?;
    if let Some(fault) = reverse.moving.record().fault {
        return Err(not_ready(
            &record,
            &format!("the lane back stands at {}: {}", fault.object, fault.message),
            &fault.next,
        ));
    }
    if reverse.moving.record().unproved_skip().is_some() && !validates {
        let next = "mend the source, then `carveout verify`";
        return Err(not_ready(
            &record,
            "a transaction was left out of the source, and no clean verify has come after it",
            next,
        ));
    }
    Ok(reverse)
}

/// The forward lane is opened anew: what the lane back has written until the flip, its target has.
async fn forward_again(context: &Arc<Context>, moving: &Arc<Moving>) -> Result<(), StepError> {
    driver::close_lane(context, moving).await?;
    // No record says any more that the lane held anything.
    if !context.pipeline.recorded().await? {
        return Err(not_ready(&moving.record(), "the source does not stream", "carveout status"));
    }
    // Not before: the way of every tenant's rows goes by what was read last.
    let tables = gently(context.read_by(&moving.record())).await?;
    driver::open_lane(context, moving, &tables).await
}

/// What stands in the way for now is an answer; the rest is an error.
fn busy(record: &MoveRecord, error: connectors::postgres::Error) -> StepError {
    match error.sqlstate() {
        None if error.may_pass() => not_ready(record, &error.to_string(), "try again"),
        _ => error.into(),
    }
}
