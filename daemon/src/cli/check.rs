//! `carveout check`: what stands in the way, most severe first. Writes nothing.

use connectors::postgres::{preflight, prepare};
use schemas::config::Config;
use schemas::status::{Finding, Severity};

use super::exit::{Exit, Failure};
use super::output::{self, plain};
use super::{Global, block_on, load};

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
    let (findings, owned) = preflight::check(config).await.map_err(|error| Failure::database(&error))?;
    Ok((findings, owned.iter().map(|owned| owned.table.name.to_string()).collect()))
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
