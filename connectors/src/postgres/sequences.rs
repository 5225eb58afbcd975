//! The sequences of a tenant that lives on its target ("guest") while its rows flow back to the shared source ("home"):
//! both sides draw values for the same tables, and no value may come twice. The guest draws from blocks that are
//! reserved at home, each before the last one is used up. A block may be lost, never handed out twice.
//!
//! What draws without a default that names its sequence (a trigger, a function that calls nextval in its body, the
//! application itself) is not seen here.

mod blocks;
mod find;

use schemas::TableName;

pub use blocks::{advance, give, hand_back, reserve, size_for, used};
pub use find::{of_tables, pair};

/// A sequence that columns draw from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Its name.
    pub name: TableName,
    /// Every column of its database that draws from it; of a partition, the column of the whole table.
    pub users: Vec<(TableName, String)>,
    /// The step from one value to the next; negative where it goes down.
    pub increment: i64,
    /// MINVALUE.
    pub min: i64,
    /// MAXVALUE.
    pub max: i64,
    /// How many values a session takes at once.
    pub cache: i64,
    /// Whether it begins again behind its last value.
    pub cycle: bool,
    /// The furthest value in its direction that the sequence and every column that draws from it can hold.
    pub limit: i64,
    place: Place,
}

/// Where a sequence is, the same for two sessions of one database only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    /// `pg_control_system().system_identifier`.
    system: i64,
    /// `pg_database.oid`.
    database: u32,
    /// `pg_class.oid`.
    oid: u32,
}

/// The sequences that the two sides draw from for the same columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The home's.
    pub home: Sequence,
    /// The guest's.
    pub guest: Sequence,
    /// They are one sequence, which both draw from: nothing is to be done for it.
    pub shared: bool,
}

/// Values of a sequence that are the guest's: `first`, `last`, and those between them in steps of the increment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// The first value to be drawn.
    pub first: i64,
    /// The last one; less than `first` where the sequence goes down.
    pub last: i64,
}

/// How much of a block is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// How many of its values were drawn, or taken by a session to be drawn.
    pub values: i64,
    /// The sequence stands elsewhere: its values are not the block's. It ran out of it, or somebody has set it.
    pub beyond: bool,
}

impl Sequence {
    /// How far `to` lies behind `from` in the sequence's direction; negative before it.
    fn ahead(&self, from: i128, to: i128) -> i128 {
        if self.increment < 0 { from - to } else { to - from }
    }

    /// The columns that draw from it, for people.
    fn users_text(&self) -> String {
        let users: Vec<String> = self.users.iter().map(|(table, column)| format!("{table}.{column}")).collect();
        users.join(", ")
    }
}
