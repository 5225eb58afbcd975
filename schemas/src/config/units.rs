//! Sizes and durations as people write them (`512MiB`, `200ms`), and the ranges numbers are held to.

use std::fmt::{self, Display};
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::de::Error;
use serde::{Deserialize, Deserializer};

use super::error::quoted;

/// A number of bytes: `512MiB`, `10GiB`, `1MB`, `100`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// Largest first and binary before decimal, so that printing finds the shortest form.
const SIZES: [(&str, u64); 11] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("kB", 1_000),
    ("B", 1),
    ("", 1),
];

/// The text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a size (expected a form like 512MiB or 10GB)")]
pub struct BadSize(String);

impl ByteSize {
    /// So many binary megabytes.
    pub const fn mebibytes(count: u64) -> Self {
        ByteSize(count << 20)
    }

    /// So many binary gigabytes.
    pub const fn gibibytes(count: u64) -> Self {
        ByteSize(count << 30)
    }
}

impl FromStr for ByteSize {
    type Err = BadSize;

    fn from_str(text: &str) -> Result<Self, BadSize> {
        parse_unit(text, &SIZES).map(ByteSize).ok_or_else(|| BadSize(text.to_owned()))
    }
}

/// The largest binary unit that leaves a whole number.
impl Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print_unit(self.0, &SIZES[..4], "B", f)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(Error::custom)
    }
}

/// A length of time: `200ms`, `5s`, `10m` (or `10min`), `24h`, `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// In milliseconds, largest first.
const SPANS: [(&str, u64); 6] =
    [("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("m", 60_000), ("ms", 1), ("s", 1_000)];

/// The text is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a duration (expected a form like 200ms, 5s, 10m, 24h or 7d)")]
pub struct BadSpan(String);

impl FromStr for Span {
    type Err = BadSpan;

    fn from_str(text: &str) -> Result<Self, BadSpan> {
        let millis = parse_unit(text, &SPANS).ok_or_else(|| BadSpan(text.to_owned()))?;
        Ok(Span(Duration::from_millis(millis)))
    }
}

/// The largest unit that leaves a whole number; below a millisecond nothing is shown.
impl Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        print_unit(millis, &[SPANS[0], SPANS[1], SPANS[3], SPANS[5]], "ms", f)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(Error::custom)
    }
}

/// Digits and a unit, with nothing but a space between them.
fn parse_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let end = text.find(|sign: char| !sign.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let unit = unit.strip_prefix(' ').filter(|unit| !unit.is_empty()).unwrap_or(unit);
    let (_, factor) = units.iter().find(|(known, _)| *known == unit)?;
    digits.parse::<u64>().ok()?.checked_mul(*factor)
}

fn print_unit(count: u64, units: &[(&str, u64)], smallest: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match units.iter().find(|(_, factor)| count > 0 && count.is_multiple_of(*factor)) {
        Some((unit, factor)) => write!(f, "{}{unit}", count / factor),
        None => write!(f, "{count}{smallest}"),
    }
}

/// For serde: a whole number from `LOW` to `HIGH`.
pub(super) fn between<'de, const LOW: u64, const HIGH: u64, T, D>(from: D) -> Result<T, D::Error>
where
    T: TryFrom<u64>,
    D: Deserializer<'de>,
{
    let number = u64::deserialize(from)?;
    let within = Some(number).filter(|number| (LOW..=HIGH).contains(number));
    within.and_then(|number| T::try_from(number).ok()).ok_or_else(|| {
        let shown = quoted(&number.to_string());
        D::Error::custom(format!("{shown} is out of range (allowed is {LOW} to {HIGH})"))
    })
}

/// For serde: a size of one megabyte or more.
pub(super) fn at_least_1mib<'de, D: Deserializer<'de>>(from: D) -> Result<ByteSize, D::Error> {
    let text = String::deserialize(from)?;
    let size: ByteSize = text.parse().map_err(D::Error::custom)?;
    if size < ByteSize::mebibytes(1) {
        return Err(D::Error::custom(format!("{} is too small (allowed is 1MiB or more)", quoted(&text))));
    }
    Ok(size)
}

/// For serde: a text that is not empty.
pub(super) fn not_empty<'de, T: From<String>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    let text = String::deserialize(from)?;
    if text.is_empty() { Err(D::Error::custom("is empty")) } else { Ok(T::from(text)) }
}

/// For serde: an address with a port.
pub(super) fn address<'de, D: Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(from)?;
    let bad =
        |_| D::Error::custom(format!("{} is not an address (expected a form like 127.0.0.1:8377)", quoted(&text)));
    text.parse().map_err(bad)
}

/// For serde: a name that PostgreSQL takes whole: 1 to 63 bytes, none of them NUL.
pub(super) fn name<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let text = String::deserialize(from)?;
    match is_name(&text) {
        true => Ok(text),
        false => Err(D::Error::custom(format!("{} is not a name (allowed is 1 to 63 bytes)", quoted(&text)))),
    }
}

/// For serde: a name PostgreSQL accepts for a slot (manual, "Querying and Manipulating Replication Slots").
pub(super) fn slot_name<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let text = String::deserialize(from)?;
    match is_name(&text) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') {
        true => Ok(text),
        false => Err(D::Error::custom(format!(
            "{} is not a slot's name (allowed is a-z, 0-9 and _, 1 to 63 of them)",
            quoted(&text)
        ))),
    }
}

/// Whether PostgreSQL takes the text as an identifier without cutting it.
pub(super) fn is_name(text: &str) -> bool {
    (1..=63).contains(&text.len()) && !text.contains('\0')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_and_durations_are_read_as_people_write_them() {
        let size = |text: &str| text.parse::<ByteSize>().map(|size| size.0).ok();
        assert_eq!([size("512MiB"), size("10GiB"), size("1MB")], [Some(512 << 20), Some(10 << 30), Some(1_000_000)]);
        assert_eq!([size("100"), size("7 kB"), size("0")], [Some(100), Some(7_000), Some(0)]);
        let span = |text: &str| text.parse::<Span>().map(|span| span.0.as_millis()).ok();
        assert_eq!([span("200ms"), span("5s"), span("10m")], [Some(200), Some(5_000), Some(600_000)]);
        assert_eq!([span("24h"), span("7d"), span("2min")], [Some(86_400_000), Some(604_800_000), Some(120_000)]);
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "MiB", "1Mib", "1.5GiB", "-1", "+1", "1MiB2", "1  MiB", " 1", "1 ", "99999999999TiB", "é"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
        for text in ["", "5", "s", "1m30s", "-1s", "1.5s", "99999999999999999999s", "584554049254d "] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_size_survives_its_text(bytes: u64, shift in 0u32..50) {
            let size = ByteSize(bytes >> shift << shift);
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }

        #[test]
        fn a_duration_survives_its_text(millis in 0u64..1 << 50, factor in proptest::sample::select(vec![1u64, 1_000, 60_000, 3_600_000, 86_400_000])) {
            let span = Span(Duration::from_millis(millis / factor * factor));
            prop_assert_eq!(span.to_string().parse(), Ok(span));
        }
    }
}
