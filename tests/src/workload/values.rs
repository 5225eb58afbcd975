//! Values that are hard to take along, as SQL literals. Everything comes from the seeded generator: the
//! server must never draw a value of its own here.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::hostile::{Kind, literal};

/// In a hundred.
const NULLS: u32 = 15;
/// Unique values are drawn from so many: clashes happen, and are part of the workload.
const UNIQUE_RANGE: i32 = 1_000_000;
/// Repetitions of a 20 character text: far above the 2 kB at which a row's values go out of line.
const LARGE: usize = 200;

/// A value of this kind, as SQL.
pub fn value(rng: &mut StdRng, kind: Kind) -> String {
    if kind != Kind::Varchar && rng.random_ratio(NULLS, 100) {
        return "NULL".to_owned();
    }
    let pick = |rng: &mut StdRng, list: &[&str]| list.choose(rng).copied().unwrap_or_default().to_owned();
    match kind {
        Kind::Int => rng.random_range(-5..50).to_string(),
        Kind::Unique => rng.random_range(0..UNIQUE_RANGE).to_string(),
        Kind::Numeric => pick(
            rng,
            &["0", "-0.10", "0.1", "0.100", "'NaN'", "'-Infinity'", "1e25", "1e-25", "-12345678901234567890.123456789"],
        ),
        Kind::Bool => pick(rng, &["true", "false"]),
        Kind::Timestamp => pick(
            rng,
            &[
                "'infinity'",
                "'-infinity'",
                "'0044-03-15 12:00 BC'",
                "'2026-03-29 01:30:00.000001+01'",
                "'1999-12-31 23:59:60Z'",
            ],
        ),
        Kind::Interval => pick(rng, &["'0'", "'1 mon -1 day 00:00:00.000001'", "'-3 years 25:00:00'", "'24:00'"]),
        Kind::Char => pick(rng, &["''", "'a'", "'ab   '", "'äöüß€'", "'12345'"]),
        Kind::Varchar => {
            pick(rng, &["''", "' '", "'ü\\ \"quoted\"'", "'''; DROP --'", "E'tab\\there'", "'20 characters, 20 ch'"])
        }
        Kind::Json => pick(
            rng,
            &[
                "'null'",
                "'{}'",
                "'{\"a\": [1, null, 1.10], \"ü\": \"\\u0041\"}'",
                "'[[]]'",
                "'\"text\"'",
                "'{\"b\": 1, \"aa\": 2}'",
            ],
        ),
        Kind::Bytes => pick(rng, &["''", "'\\x00'", "'\\xdeadbeef00ff'", "'\\x5c27'"]),
        Kind::Ints => pick(rng, &["'{}'", "'{1,NULL,3}'", "'[0:2]={7,8,9}'", "'{{1,2},{NULL,4}}'", "'{-2147483648}'"]),
        Kind::Texts => {
            pick(rng, &["'{}'", "'{NULL,\"NULL\",\"\",\"a,b\",\"c\\\"d\",\"ü\"}'", "'{{a},{NULL}}'", "'{NULL}'"])
        }
        Kind::Toast => toast(rng),
        Kind::Text => literal(&format!(
            "{} {}",
            rng.random_range(0..1000),
            pick(rng, &["", "$1", "\\", "'", "\"", "ünï", "\u{202e}rtl", "a\tb\n"])
        )),
        Kind::Date => pick(rng, &["'infinity'", "'-infinity'", "'4713-01-01 BC'", "'2024-02-29'"]),
        Kind::Float => pick(rng, &["'NaN'", "'-0'", "'Infinity'", "1e-300", "0.1", "0.30000000000000004"]),
        Kind::Time => pick(rng, &["'24:00'", "'00:00:00.000001'", "'12:30'"]),
        Kind::Uuid => format!("'{:032x}'", rng.random::<u128>()),
    }
}

/// A text that is large more often than not, never NULL.
pub fn toast(rng: &mut StdRng) -> String {
    match rng.random_ratio(2, 3) {
        true => format!("repeat('{:019x} ', {})", rng.random::<u64>(), rng.random_range(LARGE..2 * LARGE)),
        false => format!("'{:x}'", rng.random::<u32>()),
    }
}
