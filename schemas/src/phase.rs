//! The stored phases of a move, and the one `match` that says which may follow which.

use serde::{Deserialize, Serialize};

/// How far a move has come. Every phase here is stored before the first side effect of its step;
/// what is merely shown (`streaming`, `verifying`) is derived, see [`Phase::shown`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// The command has been taken; nothing exists yet. Set by `move`.
    Planned,
    /// The target's schema or database and its tables are being made.
    Provisioning,
    /// The lane is open and spools; the tenant's rows are being copied.
    Copying,
    /// The lane applies what the stream brings.
    Following,
    /// The lane has lost its continuity (spool budget, a damaged spool, an old target): the rows
    /// must be copied again, by `move`. Set by pipeline, lane or the comparison at start.
    NeedsCopy,
    /// The writes are being moved to the target: the source's fence says whether they have been. Set by `cutover`.
    CuttingOver,
    /// The tenant lives in the target; what is written there flows back. Set by the flip.
    Moved,
    /// The writes are being moved back: the target's fence says whether they have been. Set by `rollback`.
    RollingBack,
    /// The tenant stays in the target: what it had at the source is being deleted. Set by `complete`.
    Completing,
    /// It is gone, and so is the fence; the end, unless the tenant is asked back.
    Completed,
    /// The tenant's rows are being copied home, and what is written in the target meanwhile follows. Set by `move --to shared`.
    Returning,
    /// What Carveout created is being dropped. Set by `cancel`.
    Cancelling,
    /// The move is forgotten; the end.
    Cancelled,
}

/// What happened to a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The driver begins to make the target.
    Provision,
    /// The target's tables exist and the lane is about to be opened.
    Provisioned,
    /// Every table is copied, indexed, and the stream has passed the copy's position.
    Copied,
    /// The lane cannot go on from what it holds.
    Broken,
    /// Somebody asked for the move again after [`Phase::NeedsCopy`].
    CopyAgain,
    /// Somebody asked for the writes to move.
    CutOver,
    /// Somebody asked for them to move back.
    RollBack,
    /// The flip is committed.
    Flipped,
    /// There was none, and will be none.
    Released,
    /// Somebody asked for the move's end.
    Complete,
    /// Nothing of the tenant is left where it was.
    Cleared,
    /// Somebody asked for the tenant to come home.
    Return,
    /// All that it has is there, and what comes follows.
    Returned,
    /// Somebody cancelled the move.
    Cancel,
    /// Everything that was created is gone.
    Dropped,
}

/// The event is not possible in that phase.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a move that is {} cannot take the step {event:?}", from.shown(None, false))]
pub struct Refused {
    from: Phase,
    event: Event,
}

impl Phase {
    /// The phase after `event`. A step that is run twice ends in the same phase.
    pub fn after(self, event: Event) -> Result<Phase, Refused> {
        use Event as E;
        use Phase as P;
        Ok(match (self, event) {
            (P::Planned | P::Provisioning, E::Provision) => P::Provisioning,
            (P::Provisioning | P::Copying, E::Provisioned) => P::Copying,
            (P::Copying | P::Following, E::Copied) => P::Following,
            (P::Copying | P::Following | P::NeedsCopy, E::Broken) => P::NeedsCopy,
            (P::NeedsCopy, E::CopyAgain) => P::Provisioning,
            (P::Following | P::CuttingOver, E::CutOver) => P::CuttingOver,
            (P::CuttingOver | P::Moved, E::Flipped) | (P::RollingBack | P::Moved, E::Released) => P::Moved,
            (P::Moved | P::RollingBack, E::RollBack) => P::RollingBack,
            (P::RollingBack | P::Following, E::Flipped) | (P::CuttingOver | P::Following, E::Released) => P::Following,
            (P::Moved | P::Returning | P::Completing, E::Complete) => P::Completing,
            (P::Completing | P::Completed, E::Cleared) => P::Completed,
            (P::Completed | P::Moved | P::Returning, E::Return) => P::Returning,
            (P::Returning | P::Moved, E::Returned) => P::Moved,
            (P::Planned | P::Provisioning | P::Copying | P::Following | P::NeedsCopy | P::Cancelling, E::Cancel) => {
                P::Cancelling
            }
            (P::Cancelling | P::Cancelled | P::Completed, E::Dropped) => P::Cancelled,
            (from, event) => return Err(Refused { from, event }),
        })
    }

    /// Whether the pipeline writes the tenant's changes to a lane in this phase.
    pub fn has_lane(self) -> bool {
        matches!(self, Phase::Copying | Phase::Following | Phase::CuttingOver | Phase::RollingBack)
    }

    /// Whether the tenant's writes are in the target, as far as is known.
    pub fn lives_in_target(self) -> bool {
        matches!(self, Phase::Moved | Phase::RollingBack | Phase::Completing | Phase::Completed | Phase::Returning)
    }

    /// The word shown to people. `lag_seconds` is the lane's, where it is known.
    pub fn shown(self, lag_seconds: Option<f64>, verifying: bool) -> &'static str {
        match self {
            Phase::Planned => "planned",
            Phase::Provisioning => "provisioning",
            Phase::Copying | Phase::Returning => "copying",
            Phase::Following if verifying => "verifying",
            Phase::Following if lag_seconds.is_some_and(|lag| lag < 1.0) => "streaming",
            Phase::Following => "catching_up",
            Phase::NeedsCopy => "needs_copy",
            Phase::CuttingOver => "cutting_over",
            Phase::Moved => "reversing",
            Phase::RollingBack => "rolling_back",
            Phase::Completing => "completing",
            Phase::Completed => "completed",
            Phase::Cancelling => "cancelling",
            Phase::Cancelled => "cancelled",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHASES: [Phase; 13] = [
        Phase::Planned,
        Phase::Provisioning,
        Phase::Copying,
        Phase::Following,
        Phase::NeedsCopy,
        Phase::CuttingOver,
        Phase::Moved,
        Phase::RollingBack,
        Phase::Completing,
        Phase::Completed,
        Phase::Returning,
        Phase::Cancelling,
        Phase::Cancelled,
    ];
    const EVENTS: [Event; 15] = [
        Event::Provision,
        Event::Provisioned,
        Event::Copied,
        Event::Broken,
        Event::CopyAgain,
        Event::CutOver,
        Event::RollBack,
        Event::Flipped,
        Event::Released,
        Event::Complete,
        Event::Cleared,
        Event::Return,
        Event::Returned,
        Event::Cancel,
        Event::Dropped,
    ];

    #[test]
    fn every_step_can_be_run_twice() {
        for phase in PHASES {
            for event in EVENTS {
                let Ok(once) = phase.after(event) else { continue };
                if event != Event::Cancel && event != Event::CopyAgain && event != Event::Return {
                    assert_eq!(once.after(event), Ok(once), "{phase:?} {event:?}");
                }
            }
        }
    }

    #[test]
    fn a_broken_lane_is_only_left_by_copying_again_or_cancelling() {
        let ways: Vec<Event> = EVENTS.into_iter().filter(|e| Phase::NeedsCopy.after(*e).is_ok()).collect();
        assert_eq!(ways, [Event::Broken, Event::CopyAgain, Event::Cancel]);
    }

    #[test]
    fn between_its_fences_a_move_waits_for_the_flip() {
        for phase in [Phase::CuttingOver, Phase::RollingBack] {
            for event in [Event::Broken, Event::Cancel, Event::CopyAgain] {
                assert!(phase.after(event).is_err(), "{phase:?} {event:?}");
            }
        }
        assert!(Phase::Moved.after(Event::Cancel).is_err());
    }

    #[test]
    fn nothing_leaves_the_end_but_a_return_and_a_later_move() {
        for event in EVENTS {
            for end in [Phase::Cancelled, Phase::Completed] {
                let leaves = end == Phase::Completed && matches!(event, Event::Return | Event::Dropped);
                assert!(leaves || end.after(event).map_or(true, |after| after == end), "{end:?} {event:?}");
            }
        }
    }
}
