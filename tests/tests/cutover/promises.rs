//! What holds in every state.

use stateright::{Model, Property};

use super::Cutover;
use super::steps::{At, Event, State, Write};

pub const LATE: &str = "no write of the tenant stands behind the barrier";
pub const OPEN: &str = "never are both sides open";
pub const WHOLE: &str = "what a side acknowledged is on the open one";
pub const ONCE: &str = "nothing is brought twice, back, or of another tenant";
pub const ENDS: &str = "it ends by itself, released or flipped";

pub fn promises() -> Vec<Property<Cutover>> {
    vec![
        Property::always(LATE, |_, state: &State| !state.sides.iter().any(|side| late(&side.log))),
        Property::always(OPEN, |_, state: &State| !state.sides.iter().all(|side| side.open)),
        Property::always(WHOLE, |_, state: &State| whole(state)),
        Property::always(ONCE, |_, state: &State| {
            let [one, other] = &state.sides;
            once(&one.log, &other.log) && once(&other.log, &one.log)
        }),
        Property::always(ENDS, |model: &Cutover, state: &State| goes_on(model, state) || at_rest(state)),
        // What would make the above say nothing, had it never come.
        Property::sometimes("the tenant moves", |_, state: &State| state.home == 1),
        Property::sometimes("and back", |_, state: &State| {
            state.home == 0 && state.sides[1].log.contains(&Event::Moved)
        }),
        Property::sometimes("what was written there came back", |_, state: &State| {
            brought(&state.sides[0].log).next().is_some()
        }),
        Property::sometimes("the server releases it behind the barrier", |_, state: &State| {
            matches!(state.at, At::Drained | At::Barred(_)) && state.sides[state.home].holder.is_none()
        }),
        Property::sometimes("it is flipped, and the daemon does not know", |_, state: &State| {
            state.at == At::Down && state.begun && !state.sides[state.home].open
        }),
    ]
}

/// Whether something of the tenant's own stands between a barrier and its flip, or behind the flip.
fn late(log: &[Event]) -> bool {
    let (mut barred, mut moved, mut since) = (false, false, false);
    for event in log {
        match event {
            Event::Barrier => (barred, since) = (true, false),
            Event::Written(_, true) if moved => return true,
            Event::Written(_, true) => since = barred,
            Event::Moved if since => return true,
            Event::Moved => moved = true,
            Event::Opened => (barred, moved, since) = (false, false, false),
            Event::Written(..) | Event::Brought(_) => {}
        }
    }
    false
}

/// What the tenant wrote on this side.
fn written(log: &[Event]) -> impl Iterator<Item = Write> {
    log.iter().filter_map(|event| match event {
        Event::Written(write, true) => Some(*write),
        _ => None,
    })
}

fn brought(log: &[Event]) -> impl Iterator<Item = Write> {
    log.iter().filter_map(|event| match event {
        Event::Brought(write) => Some(*write),
        _ => None,
    })
}

fn whole(state: &State) -> bool {
    let Some(open) = state.sides.iter().position(|side| side.open) else { return true };
    let (here, there) = (&state.sides[open].log, &state.sides[1 - open].log);
    written(there).all(|write| brought(here).any(|one| one == write))
}

fn once(here: &[Event], there: &[Event]) -> bool {
    let times = |write| brought(here).filter(|one| *one == write).count();
    brought(here).all(|write| times(write) == 1 && written(there).any(|one| one == write))
}

fn goes_on(model: &Cutover, state: &State) -> bool {
    let mut actions = Vec::new();
    model.actions(state, &mut actions);
    actions.into_iter().any(|action| model.next_state(state, action).is_some())
}

fn at_rest(state: &State) -> bool {
    state.at == At::Rest && state.sides.iter().all(|side| side.holder.is_none()) && state.sides[state.home].open
}
