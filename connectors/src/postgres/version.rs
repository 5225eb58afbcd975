//! Which versions of PostgreSQL are worked with, and what an older target cannot hold of a newer source. What
//! differs in a single query is gated where the query stands.

use std::fmt;
use std::ops::RangeInclusive;

use schemas::status::{Finding, Severity};
use tokio_postgres::GenericClient;

use super::policy::Owned;
use super::{Doing, Error, Result};

/// The major versions, of sources and of targets.
pub const SUPPORTED: RangeInclusive<u32> = 14..=18;

/// The first minor versions of 14 to 17 whose decoding tells open transactions that a table joined a publication
/// (commit "Fix data loss in logical replication", April 2025), and those that do it without asking for more and
/// more memory ("Fix re-distributing previously distributed invalidation messages", June 2025).
const LATE_ADDITIONS: [(u32, u32, u32); 4] = [(14, 18, 19), (15, 13, 14), (16, 9, 10), (17, 5, 6)];

/// A server's `server_version_num`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major(), self.minor())
    }
}

impl Version {
    /// The version of the server that this session is on.
    pub async fn of(client: &impl GenericClient) -> Result<Version> {
        let sql = "SELECT current_setting('server_version_num')::int";
        let row = client.query_one(sql, &[]).await.doing("read the server's version")?;
        Ok(Version(row.get::<_, i32>(0).unsigned_abs()))
    }

    /// The same, where it is one that is supported.
    pub async fn supported(client: &impl GenericClient) -> Result<Version> {
        let version = Version::of(client).await?;
        match version.refusal() {
            None => Ok(version),
            Some(why) => Err(Error::state("work with the server", why)),
        }
    }

    /// `15` of 15.18.
    pub fn major(self) -> u32 {
        self.0 / 10_000
    }

    fn minor(self) -> u32 {
        self.0 % 10_000
    }

    /// Why this server is not worked with.
    pub fn refusal(self) -> Option<String> {
        let (first, last) = (SUPPORTED.start(), SUPPORTED.end());
        let why = || format!("it is PostgreSQL {self}; this version of Carveout supports {first} to {last}");
        (!SUPPORTED.contains(&self.major())).then(why)
    }

    /// Why, and what to do.
    pub fn unsupported(self, object: &str) -> Option<Finding> {
        let remedy = format!("use a server of PostgreSQL {} to {}", SUPPORTED.start(), SUPPORTED.end());
        self.refusal().map(|why| Finding::new(Severity::Error, object, why, remedy))
    }

    /// What a source of this minor version does to tables that join the publication while they are written.
    pub fn late_additions(self) -> Option<Finding> {
        let (major, safe, lean) = LATE_ADDITIONS.into_iter().find(|(major, ..)| *major == self.major())?;
        let cause = if self.minor() < safe {
            format!(
                "PostgreSQL {self} loses changes: a table that ALTER PUBLICATION … ADD TABLE takes in while an open \
                 transaction has written it may stay unpublished for the stream, without an error. `carveout prepare` \
                 adds tables under a lock that such a transaction does not pass"
            )
        } else if self.minor() < lean {
            format!(
                "the stream of PostgreSQL {self} may end with \"invalid memory alloc request size\" where many \
                 transactions run beside DDL"
            )
        } else {
            return None;
        };
        let remedy = format!("update the source to {major}.{lean}; until then let only `carveout prepare` add tables");
        Some(Finding::new(Severity::Warning, "server_version", cause, remedy))
    }
}

/// Something that PostgreSQL has only from some version on.
#[derive(Clone, Debug)]
pub struct Feature {
    object: String,
    what: String,
    since: u32,
    /// Whether a move to an older target stops at it, or goes on without it.
    stops: bool,
}

/// What `tables` of the source have that not every supported version can make.
pub async fn features(source: &impl GenericClient, tables: &[Owned]) -> Result<Vec<Feature>> {
    let oids: Vec<u32> = tables.iter().map(|owned| owned.table.oid).collect();
    // As JSON a column that an older catalog lacks is NULL.
    let rows = source
        .query(
            "SELECT c.oid::regclass::text, format('constraint \"%s\" is NOT ENFORCED', k.conname), 18
               FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
              WHERE k.conrelid = ANY ($1) AND k.contype = 'c' AND to_jsonb(k) ->> 'conenforced' = 'false'
              UNION ALL
             SELECT c.oid::regclass::text, format('constraint \"%s\" is WITHOUT OVERLAPS', k.conname), 18
               FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
              WHERE k.conrelid = ANY ($1) AND k.contype IN ('p', 'u') AND to_jsonb(k) ->> 'conperiod' = 'true'
              UNION ALL
             SELECT c.oid::regclass::text, format('index %s is NULLS NOT DISTINCT', i.indexrelid::regclass), 15
               FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
              WHERE i.indrelid = ANY ($1) AND to_jsonb(i) ->> 'indnullsnotdistinct' = 'true'
              ORDER BY 1, 2",
            &[&oids],
        )
        .await
        .doing("look for what needs a newer version")?;
    let feature = |row: &tokio_postgres::Row| Feature {
        object: row.get(0),
        what: row.get(1),
        since: row.get::<_, i32>(2).unsigned_abs(),
        stops: true,
    };
    let mut found: Vec<Feature> = rows.iter().map(feature).collect();
    for owned in tables {
        for column in &owned.table.columns {
            let what = match (column.generated.as_str(), column.type_oid) {
                ("v", _) => (18, "is VIRTUAL: it is made STORED there"),
                (_, INTERVAL) => (17, "cannot hold an infinite interval there; such a value fails verify"),
                _ => continue,
            };
            let what_is = format!("column \"{}\" {}", column.name, what.1);
            found.push(Feature { object: owned.table.name.to_string(), what: what_is, since: what.0, stops: false });
        }
    }
    Ok(found)
}

const INTERVAL: u32 = 1186;

/// What a target of version `target` does not take over as it is; errors are what it cannot take over at all.
pub fn left_behind(source: Version, target: Version, features: &[Feature]) -> Vec<Finding> {
    let (from, to) = (source.major(), target.major());
    if to >= from {
        return Vec::new();
    }
    let older = "its expressions and defaults must not need a newer version (a default uuidv7() needs 18)";
    let first = format!("the target is PostgreSQL {to}, the source {from}: {older}");
    let first = Finding::new(Severity::Note, "", first, "");
    let missing = features.iter().filter(|feature| feature.since > to && feature.since <= from).map(|feature| {
        let cause = format!("{}; the target is PostgreSQL {to}", feature.what);
        match feature.stops {
            false => Finding::new(Severity::Warning, &feature.object, cause, ""),
            true => {
                let cause = format!("{cause}, which cannot make that (since {})", feature.since);
                let remedy = format!("name a target of PostgreSQL {} or newer, or drop it", feature.since);
                Finding::new(Severity::Error, &feature.object, cause, remedy)
            }
        }
    });
    std::iter::once(first).chain(missing).collect()
}

/// Refuses a target that cannot hold these tables, before anything is made in it.
pub async fn fits(source: &impl GenericClient, target: &impl GenericClient, tables: &[Owned]) -> Result<()> {
    let (from, to) = (Version::supported(source).await?, Version::supported(target).await?);
    let found = left_behind(from, to, &features(source, tables).await?);
    match found.iter().find(|finding| finding.severity == Severity::Error) {
        None => Ok(()),
        Some(finding) => {
            let why = format!("{}; {}", finding.cause, finding.remedy);
            Err(Error::state(format!("make {} in the target", finding.object), why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_14_to_18_are_worked_with() {
        for (number, refused) in [(130_022, true), (140_000, false), (180_006, false), (190_000, true)] {
            assert_eq!(Version(number).refusal().is_some(), refused, "{number}");
        }
        assert_eq!(
            Version(130_022).refusal().as_deref(),
            Some("it is PostgreSQL 13.22; this version of Carveout supports 14 to 18")
        );
    }

    #[test]
    fn minor_versions_that_lose_late_additions_are_named_with_the_one_that_does_not() {
        let said = |number| Version(number).late_additions().map(|finding| (finding.cause, finding.remedy));
        for (number, update) in [(140_017, "14.19"), (150_012, "15.14"), (160_008, "16.10"), (170_004, "17.6")] {
            let (cause, remedy) = said(number).unwrap();
            assert!(cause.contains("loses changes") && remedy.contains(update), "{cause} {remedy}");
            assert!(said(number + 1).unwrap().0.contains("memory"));
            assert!(said(number + 2).is_none());
        }
        assert!(said(180_000).is_none());
    }

    #[test]
    fn an_older_target_is_told_what_it_cannot_make() {
        let feature =
            |what: &str, since, stops| Feature { object: "t".to_owned(), what: what.to_owned(), since, stops };
        let features = [feature("a", 18, true), feature("b", 15, true), feature("c", 17, false)];
        let found = |from: u32, to: u32| {
            let found = left_behind(Version(from * 10_000), Version(to * 10_000), &features);
            found.into_iter().map(|finding| finding.severity).collect::<Vec<_>>()
        };
        use Severity::{Error, Note, Warning};
        assert_eq!(found(18, 14), [Note, Error, Error, Warning]);
        assert_eq!(found(18, 17), [Note, Error]);
        assert_eq!(found(15, 14), [Note, Error]);
        assert_eq!(found(16, 15), [Note]);
        assert_eq!(found(14, 18), []);
    }
}
