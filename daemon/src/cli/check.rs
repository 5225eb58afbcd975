//! `carveout check`: what stands in the way, most severe first. Writes nothing.

use connectors::postgres::policy::{Owned, Path};
use connectors::postgres::{preflight, prepare};
use schemas::config::Config;
use schemas::status::{Finding, Severity};
use schemas::tenant::KeyType;

use super::exit::{Exit, Failure};
use super::output::{self, plain};
use super::{Global, block_on, load};
use crate::ownership;

/// Runs the command.
pub fn run(global: &Global) -> Result<Exit, Failure> {
    let config = load::load(&global.config)?;
    let (findings, tables) = block_on(look(&config))??;
    output::result(global.output, &findings, || text(&findings, &tables))?;
    let stands = findings.iter().any(|finding| finding.severity == Severity::Error);
    Ok(if stands { Exit::No } else { Exit::Done })
}

/// The findings, and the names of the tables that can move.
pub async fn look(config: &Config) -> Result<(Vec<Finding>, Vec<String>), Failure> {
    let (mut findings, owned) = preflight::check(config).await.map_err(|error| Failure::database(&error))?;
    findings.extend(index_memory(config, &owned));
    findings.extend(copied_whole(&owned));
    findings.sort_by_key(|finding| finding.severity);
    Ok((findings, owned.iter().map(|owned| owned.table.name.to_string()).collect()))
}

/// Tables of which every tenant gets all rows: said again, since a wrong one shows tenants each other's rows.
fn copied_whole(owned: &[Owned]) -> Option<Finding> {
    let whole = owned.iter().filter(|owned| matches!(owned.path, Path::Reference));
    let names: Vec<String> = whole.map(|owned| owned.table.name.to_string()).collect();
    let cause = format!("every target gets all rows of {}: every tenant may see them", names.join(", "));
    (!names.is_empty()).then(|| Finding::new(Severity::Note, "reference", cause, ""))
}

/// What the index of rows that `via` tables refer to takes when all tenants move at the same time.
fn index_memory(config: &Config, owned: &[Owned]) -> Option<Finding> {
    let (mut parts, mut bytes, mut unknown) = (Vec::new(), 0, false);
    for owned in owned {
        for columns in &owned.referenced {
            let widths = columns.iter().map(|column| owned.table.key_type(column).map_or(TEXT_BYTES, width));
            let width = widths.map(|width| if columns.len() > 1 { width + 4 } else { width }).sum();
            unknown |= owned.table.estimated_rows < 0;
            let keys = u64::try_from(owned.table.estimated_rows).unwrap_or(0);
            bytes += ownership::estimate(keys, width);
            parts.push(format!("{} {keys}", owned.table.name));
        }
    }
    let unanalyzed = if unknown { " (ANALYZE the tables first: not all of them have been counted)" } else { "" };
    let cause = format!(
        "with all tenants on the move, the keys of rows that `via` tables refer to take about {} MiB: {}{unanalyzed}",
        bytes.div_ceil(1 << 20),
        parts.join(", ")
    );
    match (parts.is_empty(), bytes > config.limits.memory.0) {
        (true, _) => None,
        (false, false) => Some(Finding::new(Severity::Note, "limits.memory", cause, "")),
        (false, true) => {
            let remedy =
                "raise limits.memory, or move fewer tenants at a time: what has no room is looked up in the targets";
            Some(Finding::new(Severity::Warning, "limits.memory", cause, remedy))
        }
    }
}

/// Bytes of a text key, for an estimate.
const TEXT_BYTES: usize = 24;

fn width(kind: KeyType) -> usize {
    match kind {
        KeyType::Int2 => 2,
        KeyType::Int4 => 4,
        KeyType::Int8 => 8,
        KeyType::Uuid => 16,
        KeyType::Text | KeyType::Char | KeyType::Enum => TEXT_BYTES,
    }
}

fn text(findings: &[Finding], tables: &[String]) -> String {
    let width =
        |of: fn(&Finding) -> &str| findings.iter().map(|finding| plain(of(finding)).chars().count()).max().unwrap_or(0);
    let width = width(|finding| &finding.object).clamp("OBJECT".len(), 40);
    let mut text = String::new();
    if !findings.is_empty() {
        text += &format!("{:8}  {:width$}  CAUSE, and what mends it\n", "SEVERITY", "OBJECT");
    }
    for finding in findings {
        text +=
            &format!("{:8}  {:width$}  {}\n", word(finding.severity), plain(&finding.object), plain(&finding.cause));
        for line in finding.remedy.trim().lines() {
            text += &format!("{:8}  {:width$}    {}\n", "", "", plain(line));
        }
    }
    text + &summary(findings, tables)
}

fn summary(findings: &[Finding], tables: &[String]) -> String {
    let number = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let prepared = findings.iter().filter(|finding| finding.prepared).count();
    let by_others = findings.iter().any(|finding| finding.object == prepare::BY_OTHERS);
    let hint = match prepared {
        0 => String::new(),
        some if by_others => format!(" (what `carveout prepare` prints mends {some})"),
        some => format!(" (`carveout prepare --apply` mends {some})"),
    };
    let names: Vec<String> = tables.iter().map(|name| plain(name)).collect();
    let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let (errors, warnings, notes) = (number(Severity::Error), number(Severity::Warning), number(Severity::Note));
    format!("\ntables that move: {names}\nerrors: {errors}{hint}, warnings: {warnings}, notes: {notes}\n")
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Note => "note",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finding_has_object_cause_and_remedy() {
        let findings = [
            Finding::prepared("slot carveout", "it does not exist", "SELECT 1;\nSELECT 2"),
            Finding::new(Severity::Note, "metrics", "not used", ""),
        ];
        let expected = "SEVERITY  OBJECT         CAUSE, and what mends it\n\
            error     slot carveout  it does not exist\n\
            \x20                          SELECT 1;\n\
            \x20                          SELECT 2\n\
            note      metrics        not used\n\n\
            tables that move: public.orders\n\
            errors: 1 (`carveout prepare --apply` mends 1), warnings: 0, notes: 1\n";
        assert_eq!(text(&findings, &["public.orders".to_owned()]), expected);
        assert!(text(&[], &[]).contains("tables that move: none\nerrors: 0, "));
    }
}
