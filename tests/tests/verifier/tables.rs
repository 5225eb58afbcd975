//! The tables of `tables.sql`, for whoever changes them.

/// A table.
pub struct Table {
    pub name: &'static str,
    /// Columns and their types, as far as mutants know them; a column without a type is left alone by what changes one value.
    pub columns: &'static [(&'static str, &'static str)],
    /// The columns that name a row in a report; none: the row's own text does.
    pub key: &'static [&'static str],
    /// What gives a row another key.
    pub other: &'static [(&'static str, &'static str)],
    /// What makes a row another tenant's; none: it is everybody's.
    pub foreign: &'static [(&'static str, &'static str)],
    /// Whether a foreign row is one that was given away; otherwise it comes in addition.
    pub given: bool,
    /// The tenant's rows on the source, `$` being the tenant.
    pub rows: &'static str,
}

impl Table {
    /// The columns that one value can be changed in.
    pub fn values(&self) -> impl Iterator<Item = &'static (&'static str, &'static str)> {
        self.columns.iter().filter(|(_, name)| !name.is_empty())
    }

    /// What names a row in a report, as SQL.
    pub fn shown_key(&self) -> String {
        let columns = |list: Vec<&str>| format!("ROW({})::text", list.join(", "));
        match self.key {
            [] => format!(
                "to_hex(hashtextextended({} COLLATE \"C\", 0))",
                columns(self.columns.iter().map(|(column, _)| *column).collect())
            ),
            key => columns(key.to_vec()),
        }
    }
}

/// All that are spoilt.
pub const TABLES: [Table; 6] = [
    Table {
        name: "items",
        columns: &[
            ("id", ""),
            ("bid", ""),
            ("country", ""),
            ("raw", "bytea"),
            ("word", "text"),
            ("v", "varchar"),
            ("c", "char"),
            ("n", "numeric"),
            ("f4", "real"),
            ("f8", "double precision"),
            ("jb", "jsonb"),
            ("j", "json"),
            ("ta", "text[]"),
            ("fa", "double precision[]"),
            ("at", "timestamptz"),
            ("iv", "interval"),
            ("u", "uuid"),
            ("m", "mood"),
            ("p", "numeric"),
            ("s", "spot"),
            ("r", "numrange"),
            ("b", "boolean"),
            ("bits", "bits"),
            ("big", "text"),
            ("bigraw", "bytea"),
        ],
        key: &["bid", "id"],
        other: &[("id", "t.id + 100000")],
        foreign: &[("bid", "3")],
        given: true,
        rows: "bid = $",
    },
    Table {
        name: "lines",
        columns: &[("item", ""), ("no", ""), ("note", "text"), ("qty", "numeric"), ("f8", "double precision")],
        key: &["item", "no"],
        other: &[("no", "t.no + 100")],
        // Every third item is the third tenant's.
        foreign: &[("item", "2 + 3 * ($R % 90)")],
        given: false,
        rows: "item IN (SELECT id FROM items WHERE bid = $)",
    },
    Table {
        name: "codes",
        columns: &[("bid", ""), ("code", "text"), ("body", "text"), ("v", "varchar"), ("n", "numeric")],
        key: &["bid", "code"],
        other: &[("code", "t.code || ' '")],
        foreign: &[("bid", "3")],
        given: false,
        rows: "bid = $",
    },
    Table {
        name: "events",
        columns: &[("bid", ""), ("what", "text"), ("n", "numeric"), ("f4", "real"), ("j", "json")],
        key: &[],
        other: &[],
        foreign: &[("bid", "3")],
        given: true,
        rows: "bid = $",
    },
    Table {
        name: "days",
        columns: &[("bid", ""), ("id", ""), ("at", ""), ("note", "text"), ("n", "numeric"), ("f8", "double precision")],
        key: &["id", "at"],
        // In another partition.
        other: &[("at", "(t.at + 10) % 30")],
        foreign: &[("bid", "3")],
        given: true,
        rows: "bid = $",
    },
    Table {
        name: "countries",
        columns: &[("code", ""), ("name", "text"), ("rate", "numeric")],
        key: &["code"],
        other: &[("code", "lower(t.code)")],
        foreign: &[],
        given: false,
        rows: "true",
    },
];
