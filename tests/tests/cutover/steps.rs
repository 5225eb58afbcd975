//! The states, and the steps from one to the next.

use stateright::{Model, Property};

use super::promises::promises;
use super::{Cutover, Mistake};

/// What a transaction of the application does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Writes a row of the tenant that moves.
    A,
    /// The same, beside a message that looks like the mark of the daemon's own writes.
    Forged,
    /// Writes a row of the tenant that stays.
    B,
    /// Writes a row below a parent, which is B's at first.
    Child,
    /// Gives that parent to A.
    Parent,
}

/// A transaction of the application, by its writer and how many that had left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Write {
    writer: usize,
    left: usize,
    kind: Kind,
}

/// What a side has committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// By the application; whether it is A's.
    Written(Write, bool),
    /// By a lane, from the other side.
    Brought(Write),
    /// By the daemon, while it holds the tenant's writers.
    Barrier,
    /// The flip: from here on A does not write here.
    Moved,
    /// From here on A writes here.
    Opened,
}

/// A database.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Side {
    pub log: Vec<Event>,
    /// The triggers are there.
    fenced: bool,
    /// By the control row, the tenant writes here.
    pub open: bool,
    /// A transaction holds the tenant's writers; whether its COMMIT has been sent.
    pub holder: Option<bool>,
    /// How much of the other side's log it holds, and for which daemon's lane.
    checkpoint: usize,
    epoch: usize,
    parent_is_a: bool,
}

/// An open transaction of the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tx {
    side: usize,
    /// Whether A was open when the transaction's snapshot was taken; `None` in READ COMMITTED.
    snapshot: Option<bool>,
    wrote: Option<Kind>,
    /// Has the shared lock.
    shared: bool,
    prepared: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Writer {
    left: usize,
    tx: Option<Tx>,
}

/// Where the daemon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum At {
    /// No cutover is under way.
    Rest,
    /// One is, by the record.
    Begun,
    Fenced,
    Held,
    /// The barrier ends at this position.
    Barred(usize),
    Drained,
    Flipping,
    /// What became of the flip has to be looked up.
    Unknown,
    Flipped,
    /// The process is gone.
    Down,
}

/// A group on its way: the entry at `from` in the log of the side that it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Sent {
    to: usize,
    from: usize,
    epoch: usize,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub sides: [Side; 2],
    writers: Vec<Writer>,
    pub at: At,
    /// By the record a cutover is under way.
    pub begun: bool,
    /// By the record the tenant lives here; its lane goes from here to the other side.
    pub home: usize,
    /// The epoch of the daemon's lane, while it has one.
    lane: Option<usize>,
    /// What the lane has sent and has no answer to, and what a lane before it had.
    sent: Option<Sent>,
    stray: Option<Sent>,
    cutovers: usize,
    kills: usize,
}

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    // The application.
    Snapshot { writer: usize, side: usize },
    Write { writer: usize, side: usize, kind: Kind },
    Prepare { writer: usize },
    Commit { writer: usize },
    // The daemon.
    Begin,
    Fence,
    Hold,
    Barrier,
    Drain,
    Flip,
    Resolve,
    Open,
    Release,
    Start,
    // The lane.
    OpenLane,
    Send,
    // The servers and what is between.
    Commits,
    EndsHolder,
    Answers,
    Arrives,
    StrayArrives,
    LosesAnswer,
    KillDaemon,
    Kill { side: usize },
}

impl Cutover {
    fn makes(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    /// What the trigger says to a write of A's: whether it may, and whether it holds the lock then. `None`: it waits.
    fn trigger(&self, side: &Side, tx: &Tx) -> Option<(bool, bool)> {
        if !side.fenced {
            return Some((true, false));
        }
        let locks = !self.makes(Mistake::StateWithoutLock);
        if side.holder.is_some() && locks {
            return None;
        }
        let open = match tx.snapshot {
            Some(then) if self.makes(Mistake::StateOfSnapshot) => then,
            // FOR SHARE: a row that was changed since is an error.
            Some(then) => then && side.open,
            None => side.open,
        };
        Some((open || self.makes(Mistake::LockWithoutState), locks))
    }

    /// A statement of the application; `None`: it waits.
    fn write(&self, state: &mut State, writer: usize, side: usize, kind: Kind) -> Option<()> {
        let others = state.writers.iter().enumerate().filter(|(other, _)| *other != writer);
        let others: Vec<Tx> = others.filter_map(|(_, other)| other.tx).filter(|tx| tx.side == side).collect();
        let another = |kind| others.iter().any(|tx| tx.wrote == Some(kind));
        let place = &state.sides[side];
        // A foreign key holds the row that it refers to; a change of a unique key's columns waits for that.
        let holds = !self.makes(Mistake::ParentNotHeld);
        let waits = match kind {
            Kind::Parent => another(Kind::Parent) || (holds && another(Kind::Child)),
            Kind::Child => holds && another(Kind::Parent),
            _ => false,
        };
        if waits || (kind == Kind::Parent && place.parent_is_a) {
            return None;
        }
        let fresh = Tx { side, snapshot: None, wrote: None, shared: false, prepared: false };
        let mut tx = state.writers[writer].tx.unwrap_or(fresh);
        if kind.is_a(place.parent_is_a) {
            let (may, shared) = self.trigger(place, &tx)?;
            if !may {
                state.writers[writer].end();
                return Some(());
            }
            tx.shared = shared;
        }
        tx.wrote = Some(kind);
        state.writers[writer].tx = Some(tx);
        Some(())
    }

    /// A group reaches its side.
    fn arrives(&self, state: &mut State, Sent { to, from, epoch }: Sent) {
        let event = state.sides[1 - to].log[from];
        let side = &mut state.sides[to];
        if (side.checkpoint, side.epoch) != (from, epoch) && !self.makes(Mistake::NoCompareAndSet) {
            return;
        }
        let write = match event {
            Event::Written(write, true) => Some(write),
            Event::Brought(write) if self.makes(Mistake::NoMarker) => Some(write),
            _ => None,
        };
        let passed_over = |write: &Write| write.kind == Kind::Forged && self.makes(Mistake::MarkerWithoutNonce);
        if let Some(write) = write.filter(|write| !passed_over(write)) {
            side.parent_is_a |= write.kind == Kind::Parent;
            side.log.push(Event::Brought(write));
        }
        side.checkpoint = side.checkpoint.max(from + 1);
    }
}

impl Kind {
    fn is_a(self, parent_is_a: bool) -> bool {
        self != Kind::B && (self != Kind::Child || parent_is_a)
    }
}

impl Writer {
    /// Its transaction is over.
    fn end(&mut self) {
        self.tx = None;
        self.left -= 1;
    }
}

impl State {
    fn commit(&mut self, writer: usize) -> Option<()> {
        let Writer { left, tx } = self.writers[writer];
        let (side, kind) = tx.and_then(|tx| Some((&mut self.sides[tx.side], tx.wrote?)))?;
        side.parent_is_a |= kind == Kind::Parent;
        side.log.push(Event::Written(Write { writer, left, kind }, kind.is_a(side.parent_is_a)));
        self.writers[writer].end();
        Some(())
    }

    /// Whether a transaction that is open at home is such a one.
    fn open_at_home(&self, such: impl Fn(&Tx) -> bool) -> bool {
        self.writers.iter().filter_map(|writer| writer.tx).any(|tx| tx.side == self.home && such(&tx))
    }

    /// The daemon's functions; `None`: not yet.
    fn daemon(&mut self, model: &Cutover, step: Step) -> Option<()> {
        let (home, other) = (self.home, 1 - self.home);
        let held = self.sides[home].holder.is_some();
        match step {
            Step::Begin => {
                (self.at, self.begun) = (At::Begun, true);
                self.cutovers -= 1;
            }
            // CREATE TRIGGER waits for whoever has written the table.
            Step::Fence if !self.sides[home].fenced && self.open_at_home(|tx| tx.wrote.is_some()) => return None,
            Step::Fence => {
                self.sides[home].fenced = true;
                self.at = At::Fenced;
            }
            Step::Hold if held || self.open_at_home(|tx| tx.shared) => return None,
            Step::Hold => {
                self.sides[home].holder = Some(false);
                self.at = At::Held;
            }
            Step::Barrier => {
                self.sides[home].log.push(Event::Barrier);
                self.at = At::Barred(self.sides[home].log.len());
            }
            Step::Drain => {
                let At::Barred(barrier) = self.at else { return None };
                if self.sides[other].checkpoint < barrier && !model.makes(Mistake::FlipBeforeDrained) {
                    return None;
                }
                self.at = At::Drained;
                self.sides[other].open |= model.makes(Mistake::OpenBeforeClose);
            }
            Step::Flip if held => {
                self.sides[home].holder = Some(true);
                self.at = At::Flipping;
            }
            // The server has ended the session.
            Step::Flip => self.at = At::Unknown,
            // Whoever held the writers is gone before the row is read.
            Step::Resolve if held => return None,
            Step::Resolve => match self.sides[home].open {
                true => (self.at, self.begun) = (At::Rest, false),
                false => self.at = At::Flipped,
            },
            Step::Open => {
                (self.sides[other].fenced, self.sides[other].open) = (true, true);
                self.sides[other].log.push(Event::Opened);
                (self.at, self.begun, self.home) = (At::Rest, false, other);
                (self.stray, self.lane) = (self.sent.take().or(self.stray), None);
            }
            Step::Release => {
                self.sides[home].holder = None;
                (self.at, self.begun) = (At::Rest, false);
            }
            _ => self.at = if self.begun { At::Unknown } else { At::Rest },
        }
        Some(())
    }

    fn kill(&mut self, side: usize) {
        let killed = |tx: Tx| tx.side == side && !tx.prepared;
        self.writers.iter_mut().filter(|writer| writer.tx.is_some_and(killed)).for_each(Writer::end);
        self.sides[side].holder = None;
        self.sent.take_if(|sent| sent.to == side);
        self.stray.take_if(|sent| sent.to == side);
    }
}

impl Model for Cutover {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let side = |open: bool| Side {
            log: Vec::new(),
            fenced: !open,
            open,
            holder: None,
            checkpoint: 0,
            epoch: 0,
            parent_is_a: false,
        };
        vec![State {
            sides: [side(true), side(false)],
            writers: vec![Writer { left: self.writes, tx: None }; self.writers],
            at: At::Rest,
            begun: false,
            home: 0,
            lane: None,
            sent: None,
            stray: None,
            cutovers: self.cutovers,
            kills: self.kills,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        for (writer, Writer { left, tx }) in state.writers.iter().enumerate() {
            let places = match tx {
                Some(Tx { wrote: Some(_), prepared, .. }) => {
                    steps.push(Step::Commit { writer });
                    steps.extend((self.prepares && !prepared).then_some(Step::Prepare { writer }));
                    continue;
                }
                Some(tx) => tx.side..tx.side + 1,
                None if *left == 0 => continue,
                None => 0..2,
            };
            for side in places {
                steps.extend((self.snapshots && tx.is_none()).then_some(Step::Snapshot { writer, side }));
                // The other side is for the tenant's own rows.
                let kinds = self.kinds.iter().filter(|kind| side == 0 || matches!(kind, Kind::A | Kind::Forged));
                steps.extend(kinds.map(|kind| Step::Write { writer, side, kind: *kind }));
            }
        }
        let (home, other) = (&state.sides[state.home], &state.sides[1 - state.home]);
        steps.extend(match state.at {
            At::Rest if state.cutovers == 0 => None,
            At::Rest => Some(Step::Begin),
            At::Begun => Some(Step::Fence),
            At::Fenced => Some(Step::Hold),
            At::Held => Some(Step::Barrier),
            At::Barred(_) => Some(Step::Drain),
            At::Drained => Some(Step::Flip),
            At::Flipping => Some(Step::Answers),
            At::Unknown => Some(Step::Resolve),
            At::Flipped => Some(Step::Open),
            At::Down => Some(Step::Start),
        });
        if matches!(state.at, At::Begun | At::Fenced | At::Held | At::Barred(_) | At::Drained) {
            steps.push(Step::Release);
        }
        match (state.at, state.lane, state.sent) {
            (_, _, Some(_)) => steps.extend([Step::Arrives, Step::LosesAnswer]),
            (At::Down, ..) => {}
            (_, None, _) => steps.push(Step::OpenLane),
            _ if other.checkpoint < home.log.len() => steps.push(Step::Send),
            _ => {}
        }
        steps.extend(state.stray.map(|_| Step::StrayArrives));
        if home.holder == Some(true) {
            steps.push(Step::Commits);
        }
        if home.holder.is_some() && !self.makes(Mistake::NoDeadline) {
            steps.push(Step::EndsHolder);
        }
        if state.kills > 0 {
            steps.extend((state.at != At::Down).then_some(Step::KillDaemon));
            steps.extend([Step::Kill { side: 0 }, Step::Kill { side: 1 }]);
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        let (home, other) = (state.home, 1 - state.home);
        match step {
            Step::Snapshot { writer, side } => {
                let snapshot = Some(state.sides[side].open);
                state.writers[writer].tx = Some(Tx { side, snapshot, wrote: None, shared: false, prepared: false });
            }
            Step::Write { writer, side, kind } => self.write(&mut state, writer, side, kind)?,
            Step::Prepare { writer } => state.writers[writer].tx.as_mut()?.prepared = true,
            Step::Commit { writer } => state.commit(writer)?,
            Step::OpenLane => {
                state.sides[other].epoch += 1;
                state.lane = Some(state.sides[other].epoch);
            }
            Step::Send => {
                state.sent = Some(Sent { to: other, from: state.sides[other].checkpoint, epoch: state.lane? });
            }
            Step::Commits => {
                (state.sides[home].holder, state.sides[home].open) = (None, false);
                state.sides[home].log.push(Event::Moved);
            }
            Step::EndsHolder => state.sides[home].holder = None,
            Step::Answers if state.sides[home].holder.is_some() => return None,
            Step::Answers => state.at = if self.makes(Mistake::SilenceIsYes) { At::Flipped } else { At::Unknown },
            Step::Arrives => {
                let sent = state.sent.take()?;
                self.arrives(&mut state, sent);
            }
            Step::StrayArrives => {
                let sent = state.stray.take()?;
                self.arrives(&mut state, sent);
            }
            // It may yet arrive.
            Step::LosesAnswer => state.stray = state.sent.take(),
            Step::KillDaemon => {
                state.kills -= 1;
                state.at = At::Down;
                (state.stray, state.lane) = (state.sent.take().or(state.stray), None);
            }
            Step::Kill { side } => {
                state.kills -= 1;
                state.kill(side);
            }
            step => state.daemon(self, step)?,
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        promises()
    }
}
