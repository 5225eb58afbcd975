//! A proposal as the text of a configuration. Whatever a table or a column is called, it stays a name: no name ends a
//! line, a comment or a quotation.

use connectors::postgres::proposal::{Choice, Chosen, Entry, Key, Proposal};
use schemas::config::{NullTenant, Source};

/// The width of a comment's line.
const WIDTH: usize = 100;
/// How many reasons for a decision are shown.
const REASONS: usize = 3;
/// Words that YAML readers take for something else than themselves.
const WORDS: [&str; 8] = ["true", "false", "null", "yes", "no", "on", "off", "none"];

/// The whole file.
pub fn configuration(source: &Source, proposal: &Proposal) -> String {
    let open = proposal.open().count();
    let mut text = Lines::default();
    text.comment(
        0,
        &format!(
            "Configuration of Carveout for the database \"{}\", begun by `carveout init`.",
            source.url.database().unwrap_or_default()
        ),
    );
    text.comment(
        0,
        "docs/configuration.md explains every key. Where a person has to decide, a comment begins with \"decide:\": \
        take the # away from one of the lines below it.",
    );
    text.comment(
        0,
        &format!("Decisions: {open}. `carveout check -c FILE` names the same tables until each has its line."),
    );
    text.blank();
    sources(&mut text, source);
    text.blank();
    tenancy(&mut text, proposal);
    text.blank();
    targets(&mut text, source, &proposal.key);
    text.blank();
    text.comment(0, "The daemon's records, and what waits for the targets: a folder with room for it.");
    text.line("state_dir: ./carveout-state");
    text.comment(0, "Status page, metrics and commands. The token is made when it is missing.");
    text.line("http: {listen: 127.0.0.1:8377, token_file: ./token}");
    text.text
}

fn sources(text: &mut Lines, source: &Source) {
    text.line("source:");
    text.line(&format!("  url: {}", value(&source.url.redacted())));
    password(text, 2, source, "source");
    text.comment(2, "Names of the replication slot and the publication; `carveout prepare` makes both.");
    text.line("  slot: carveout");
    text.line("  publication: carveout");
}

/// The file of the password. One that was given in the URL is written nowhere.
fn password(text: &mut Lines, indent: usize, source: &Source, name: &str) {
    let pad = " ".repeat(indent);
    match &source.password_file {
        Some(file) => text.line(&format!("{pad}password_file: {}", value(&file.to_string_lossy()))),
        None => text.line(&format!(
            "{pad}# password_file: /run/secrets/{name}   # or in the URL, as :${{{}_PASSWORD}} behind the role",
            name.to_uppercase()
        )),
    }
}

fn tenancy(text: &mut Lines, proposal: &Proposal) {
    let (key, all) = (&proposal.key, proposal.entries.len());
    let root = key
        .root
        .as_ref()
        .map(|root| format!("; foreign keys from it lead to {}.{} ({})", root.table, root.column, root.references));
    text.line("tenancy:");
    text.comment(
        2,
        &format!(
            "The column that names a row's tenant: {} of {all} tables have it{}.",
            key.tables,
            root.unwrap_or_default()
        ),
    );
    if !key.spellings.is_empty() {
        text.comment(2, &format!("It is also spelled {}.", key.spellings.join(", ")));
    }
    if !key.others.is_empty() {
        let others: Vec<String> = key.others.iter().map(|(name, count)| format!("{name} ({count} tables)")).collect();
        text.comment(2, &format!("If it is another one, begin again with --key COLUMN: {}.", others.join(", ")));
    }
    text.line(&format!("  key: {}", value(&key.column)));
    text.blank();
    let usual = |entry: &&Entry| entry.chosen == Chosen::Usual && entry.others.is_empty();
    let usual: Vec<&str> = proposal.entries.iter().filter(usual).map(|entry| entry.spelled.as_str()).collect();
    if !usual.is_empty() {
        text.comment(2, &format!("Found by their key, without a line: {}.", usual.join(", ")));
    }
    text.line("  tables:");
    let (mut first, mut apart) = (true, false);
    for entry in proposal.entries.iter().filter(|entry| entry.chosen != Chosen::Usual || !entry.others.is_empty()) {
        let block = entry.chosen == Chosen::Open || !entry.others.is_empty();
        if !first && (apart || block) {
            text.blank();
        }
        table(text, entry);
        (first, apart) = (false, block);
    }
}

fn table(text: &mut Lines, entry: &Entry) {
    let rows = if entry.rows < 0 { String::new() } else { format!(" (about {} rows)", entry.rows) };
    let nulls = entry.nulls.as_ref().map(|nulls| format!(" ({nulls})")).unwrap_or_default();
    let null = format!("{} can be NULL{nulls}", entry.nullable.join(", "));
    match &entry.chosen {
        Chosen::Open => {
            let why = entry.why.iter().chain((!entry.nullable.is_empty()).then_some(&null));
            let why: Vec<&str> = why.map(String::as_str).collect();
            let more = match why.len().saturating_sub(REASONS) {
                0 => String::new(),
                more => format!("; and {more} more, which `carveout check` names"),
            };
            let why = why[..why.len().min(REASONS)].join("; ");
            text.comment(4, &format!("decide: {}{rows}: {why}{more}.", entry.spelled));
        }
        Chosen::Line(_) | Chosen::Usual if !entry.nullable.is_empty() => {
            text.comment(
                4,
                &format!("{}{rows}: {null}. A row without a tenant stops every move, unless:", entry.spelled),
            );
        }
        Chosen::Line(_) | Chosen::Usual => {}
    }
    if let Chosen::Line(choice) = &entry.chosen {
        line(text, entry, choice, false);
        if entry.nullable.is_empty() && !entry.others.is_empty() {
            text.comment(4, "or instead:");
        }
    }
    for other in &entry.others {
        line(text, entry, other, true);
    }
}

/// A line of `tables`, commented out or not, with what it means behind it or, where that is long, above it.
fn line(text: &mut Lines, entry: &Entry, choice: &Choice, out: bool) {
    let sign = if out { "# " } else { "" };
    let line = format!("    {sign}{}: {}", key(&entry.spelled), policy(choice));
    let with_note = format!("{line}   # {}", shown(&choice.note));
    if choice.note.is_empty() {
        text.line(&line);
    } else if with_note.chars().count() <= WIDTH {
        text.line(&with_note);
    } else {
        text.comment(4, &format!("{}:", choice.note));
        text.line(&line);
    }
}

fn policy(choice: &Choice) -> String {
    let policy = &choice.policy;
    let via = policy.via.as_ref().map(|columns| match columns.as_slice() {
        [one] => value(one),
        several => format!("[{}]", several.iter().map(|column| value(column)).collect::<Vec<_>>().join(", ")),
    });
    let parts = [
        policy.key.as_ref().map(|column| format!("key: {}", value(column))),
        via.map(|columns| format!("via: {columns}")),
        policy.reference.then(|| "reference: true".to_owned()),
        policy.exclude.then(|| "exclude: true".to_owned()),
        (policy.null_tenant == NullTenant::NotMoving).then(|| "null_tenant: not_moving".to_owned()),
    ];
    format!("{{{}}}", parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
}

fn targets(text: &mut Lines, source: &Source, tenant: &Key) {
    let name = if bare(&tenant.column) { &tenant.column } else { "tenant" };
    let name = format!("tenant_{{{name}}}");
    text.line("tenant_strategy:");
    text.comment(2, "Where `carveout move` without --to takes a tenant: schema or database.");
    text.line("  # tenant_overrides: {\"42\": database}");
    text.line("  database_config:");
    text.comment(4, "The schema of a tenant that moves to one, in the shared database.");
    text.line(&format!("    tenant_schema_pattern: {}", value(&name)));
    text.comment(
        4,
        "The database of a tenant that moves to one: here on the source's server. The role needs CREATEDB.",
    );
    text.line(&format!("    tenant_database_pattern: {}", value(&source.url.with_dbname(&name).redacted())));
    password(text, 4, source, "target");
}

/// A text that grows by lines.
#[derive(Default)]
struct Lines {
    text: String,
}

impl Lines {
    fn line(&mut self, line: &str) {
        self.text += line;
        self.text.push('\n');
    }

    fn blank(&mut self) {
        self.text.push('\n');
    }

    /// A comment, in as many lines as it takes.
    fn comment(&mut self, indent: usize, words: &str) {
        let start = format!("{}#", " ".repeat(indent));
        let mut line = start.clone();
        for word in shown(words).split(' ').filter(|word| !word.is_empty()) {
            if line.len() > start.len() && line.chars().count() + 1 + word.chars().count() > WIDTH {
                self.line(&line);
                line.clone_from(&start);
            }
            line.push(' ');
            line += word;
        }
        self.line(&line);
    }
}

/// A key of the file: taken literally.
fn key(text: &str) -> String {
    if bare(text) { text.to_owned() } else { quoted(text) }
}

/// A value of the file: `$` would begin a variable.
pub fn value(text: &str) -> String {
    if bare(text) { text.to_owned() } else { quoted(&text.replace('$', "$$")) }
}

/// A text between double quotes (YAML 1.2, 7.3.1), as it is.
pub fn quoted(text: &str) -> String {
    let sign = |c: char| match c {
        '"' | '\\' => format!("\\{c}"),
        c if printable(c) => c.to_string(),
        c => format!("\\U{:08X}", u32::from(c)),
    };
    format!("\"{}\"", text.chars().map(sign).collect::<String>())
}

/// Whether the text needs no quotes.
fn bare(text: &str) -> bool {
    let word = text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let letter = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    word && letter && text.len() > 1 && !WORDS.contains(&text.to_ascii_lowercase().as_str())
}

/// A text in a comment: in one line, and every sign of it can be seen.
fn shown(text: &str) -> String {
    text.chars().map(|c| if printable(c) { c.to_string() } else { c.escape_unicode().to_string() }).collect()
}

fn printable(c: char) -> bool {
    c.is_alphanumeric() || c.is_ascii_graphic() || c == ' '
}

#[cfg(test)]
mod tests {
    use schemas::config::Config;

    use super::*;

    #[test]
    fn any_name_is_read_back_as_it_was() {
        let names = [
            "a b",
            "null",
            "7",
            "a: b # c",
            "\"q\" 'r' \\",
            "l\ni\u{85}\u{2028}\u{7f}",
            "ünï",
            "${HOME} $$ $",
            "-",
            "{x}",
            "y",
        ];
        for name in names {
            let text = format!(
                "source: {{url: postgresql://a@h/d}}\ntenancy:\n  key: {}\n  tables:\n    {}: {{via: [{}, b]}}\n",
                value(name),
                key(&name.replace("${", "$ {")),
                value(name)
            );
            let tenancy = Config::parse(&text, &|_: &str| None).unwrap().tenancy;
            assert_eq!(tenancy.key, name);
            assert_eq!(tenancy.tables[&name.replace("${", "$ {")].via.as_ref().unwrap()[0], name);
        }
    }

    #[test]
    fn a_comment_keeps_its_width_and_no_name_leaves_it() {
        let mut lines = Lines::default();
        lines.comment(4, &format!("{} a\nkey: {}", "word ".repeat(40), "x".repeat(120)));
        assert!(lines.text.lines().all(|line| line.starts_with("    # ")));
        assert!(lines.text.lines().filter(|line| line.chars().count() > WIDTH).count() == 1);
    }
}
