//! `carveout verify`: asks for a comparison of both sides, and shows it table by table.

use schemas::status::{TableReport, VerifyReport};
use serde_json::json;

use super::client::{Client, Patience};
use super::exit::{Exit, Failure};
use super::format::count;
use super::output::{self, note, plain, table};
use super::{Global, Tenant};

/// Runs the command; the answer comes when everything has been compared.
pub fn run(global: &Global, Tenant { tenant }: &Tenant) -> Result<Exit, Failure> {
    let client = Client::commander(global)?;
    note(&format!("comparing tenant {} on both sides…\n", plain(tenant)));
    let report: VerifyReport = client.command(tenant, "verify", &json!({}), Patience::Unlimited)?;
    output::result(global.output, &report, || text(&report))?;
    Ok(if report.equal { Exit::Done } else { Exit::No })
}

fn text(report: &VerifyReport) -> String {
    let rows: Vec<Vec<String>> = report.tables.iter().map(row).collect();
    let mut text = table(&["TABLE", "SOURCE ROWS", "TARGET ROWS", "RESULT"], &rows);
    for table in report.tables.iter().filter(|table| !table.examples.is_empty()) {
        let examples: Vec<Vec<String>> = table
            .examples
            .iter()
            .map(|example| vec![String::new(), example.kind.clone(), example.key.clone()])
            .collect();
        let header = format!("\n{}, the first that differ:\n", plain(&table.table));
        text += &header;
        text += &output::table(&["", "KIND", "KEY"], &examples);
    }
    let tenant = plain(&report.tenant.0);
    let verdict = if report.equal { "equal" } else { "DIFFERENT" };
    text += &format!("\ntenant {tenant} is {verdict} at {}\n", report.lsn);
    let before = report.tables.iter().filter(|table| table.lsn.is_some_and(|lsn| lsn != report.lsn)).count();
    if before > 0 {
        text +=
            &format!("  it was interrupted: of {before} tables, read before, only what has changed was read again\n");
    }
    if !report.equal {
        text += "  next: find out who writes to the target; then mend the rows there, or `carveout cancel` and `carveout move` it again\n";
    }
    text
}

fn row(table: &TableReport) -> Vec<String> {
    let equal = table.source_rows == table.target_rows && table.source_digest == table.target_digest;
    let result = match (equal, table.differences) {
        (true, 0) => "equal".to_owned(),
        (_, 0) => "different".to_owned(),
        (_, 1) => "different: 1 row".to_owned(),
        (_, rows) => format!("different: {} rows", count(rows)),
    };
    vec![table.table.clone(), count(table.source_rows), count(table.target_rows), result]
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::status::Difference;
    use schemas::{Lsn, TenantId};

    #[test]
    fn differences_are_shown_by_key() {
        let same = TableReport {
            table: "public.accounts".to_owned(),
            lsn: Some(Lsn(0x40)),
            source_rows: 100_000,
            target_rows: 100_000,
            source_digest: "1".to_owned(),
            target_digest: "1".to_owned(),
            differences: 0,
            examples: Vec::new(),
        };
        let example = Difference { key: "17".to_owned(), kind: "missing".to_owned() };
        let other = TableReport {
            table: "public.orders".to_owned(),
            lsn: Some(Lsn(0x60)),
            target_rows: 99_999,
            differences: 1,
            examples: vec![example],
            ..same.clone()
        };
        let report =
            VerifyReport { tenant: TenantId("7".to_owned()), lsn: Lsn(0x60), equal: false, tables: vec![same, other] };
        let expected = "TABLE            SOURCE ROWS  TARGET ROWS  RESULT\n\
            public.accounts  100,000      100,000      equal\n\
            public.orders    100,000      99,999       different: 1 row\n\n\
            public.orders, the first that differ:\n  KIND     KEY\n  missing  17\n\n\
                        tenant 7 is DIFFERENT at 0/60\n  \
            it was interrupted: of 1 tables, read before, only what has changed was read again\n  \
            next: find out who writes to the target; then mend the rows there, or `carveout cancel` and `carveout move` it again\n";
        assert_eq!(text(&report), expected);
    }
}
