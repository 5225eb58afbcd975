//! A schema that nobody would want to have: quotes, dots, upper case, spaces, unicode and reserved words in
//! every name, every replica identity that can carry a tenant, and the columns that are hard to take along.
//! It must never be made easier for the product: what a name holds here, some customer's name holds too.

use anyhow::{Context, Result, ensure};
use tokio_postgres::Client;

use crate::oracle;

/// The schema of all tables.
pub const SCHEMA: &str = "Über \"shop\".x";
/// The tenant key of all tables.
pub const KEY: &str = "Tenant \"Key\"";

/// What a column holds, for whoever makes up values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `integer`, drawn from few values.
    Int,
    /// `integer` with a unique constraint.
    Unique,
    /// `numeric` without precision.
    Numeric,
    /// `boolean`
    Bool,
    /// `timestamptz`
    Timestamp,
    /// `interval`
    Interval,
    /// `char(5)`
    Char,
    /// `varchar(20)`, NOT NULL.
    Varchar,
    /// `jsonb`
    Json,
    /// `bytea`
    Bytes,
    /// `integer[]`
    Ints,
    /// `text[]`
    Texts,
    /// `text` with storage EXTERNAL: out of line when it is large.
    Toast,
    /// `text`
    Text,
    /// `date`
    Date,
    /// `double precision`
    Float,
    /// `time`
    Time,
    /// `uuid`
    Uuid,
}

/// Where the values of a table's `id` column come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Id {
    /// The application gives them.
    Given,
    /// The application gives them, and may give one twice.
    Repeated,
    /// A sequence, and the application may change them.
    Serial,
    /// GENERATED ALWAYS: nobody may give them, UPDATE can only draw a new one.
    Always,
}

/// A table, for whoever writes to it.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// The column that names a row.
    pub id_column: &'static str,
    /// Where that column's values come from.
    pub id: Id,
    /// Whether the whole old row is logged, so that a row can change its tenant with all its values at hand.
    pub full: bool,
    /// The other columns that an application may set, without the tenant key.
    pub columns: &'static [(&'static str, Kind)],
}

impl Table {
    /// Schema and name, quoted.
    pub fn sql(&self) -> String {
        format!("{}.{}", quoted(SCHEMA), quoted(self.name))
    }

    /// As the product shows it.
    pub fn shown(&self) -> String {
        format!("{SCHEMA}.{}", self.name)
    }

    /// The table of that name.
    pub fn called(name: &str) -> Table {
        *TABLES.iter().find(|table| table.name == name).expect("a table of the hostile schema")
    }
}

/// All tables, in the order of [`setup`].
pub const TABLES: [Table; 7] = [
    Table {
        name: "order",
        id_column: "select",
        id: Id::Given,
        full: true,
        columns: &[
            ("Flag", Kind::Bool),
            ("n u m", Kind::Numeric),
            ("at", Kind::Timestamp),
            ("ïv", Kind::Interval),
            ("c;5", Kind::Char),
            ("v\"9", Kind::Varchar),
            ("j", Kind::Json),
            ("b\\in", Kind::Bytes),
            ("i[]", Kind::Ints),
            ("t[]", Kind::Texts),
            ("TOAST", Kind::Toast),
            ("unique", Kind::Unique),
            ("later", Kind::Unique),
            ("d", Kind::Date),
            ("f", Kind::Float),
        ],
    },
    Table {
        name: "Index \"id\"",
        id_column: "Id",
        id: Id::Given,
        full: false,
        columns: &[("TOAST", Kind::Toast), ("i", Kind::Ints), ("num", Kind::Numeric), ("$1", Kind::Text)],
    },
    Table {
        name: "no pk Ω",
        id_column: "Id",
        id: Id::Repeated,
        full: true,
        columns: &[("TOAST", Kind::Toast), ("n", Kind::Numeric), ("c", Kind::Char), ("t", Kind::Texts)],
    },
    Table {
        name: "Always.on",
        id_column: "id",
        id: Id::Always,
        full: true,
        columns: &[("user", Kind::Text), ("TOAST", Kind::Toast), ("i", Kind::Int)],
    },
    Table {
        name: "gen; DROP TABLE \"order\"; --",
        id_column: "Id",
        id: Id::Given,
        full: false,
        columns: &[("a", Kind::Int), ("TOAST", Kind::Toast), ("t", Kind::Text)],
    },
    Table {
        name: "Sérial",
        id_column: "Id",
        id: Id::Serial,
        full: true,
        columns: &[("t", Kind::Time), ("u", Kind::Uuid), ("TOAST", Kind::Toast), ("f", Kind::Float)],
    },
    Table {
        name: "deferrable pk",
        id_column: "Id",
        id: Id::Given,
        full: true,
        columns: &[("v", Kind::Text), ("TOAST", Kind::Toast)],
    },
];

/// `SCHEMA`, `KEY` and `TYPE` stand for the names and for the key's type. Where a table's replica identity is
/// not set here, `prepare` has to.
const SETUP: &str = r#"
CREATE SCHEMA SCHEMA;
SET search_path = SCHEMA;
CREATE TABLE "order" (
  "select" integer PRIMARY KEY, "gone" text, KEY TYPE NOT NULL, "Flag" boolean, "n u m" numeric, "at" timestamptz,
  "ïv" interval, "c;5" char(5), "v""9" varchar(20) NOT NULL DEFAULT 'it''s "def"ault\', "j" jsonb, "b\in" bytea,
  "i[]" integer[], "t[]" text[] DEFAULT ARRAY['a', NULL], "TOAST" text, "unique" integer UNIQUE, "later" integer,
  "d" date, "f" double precision,
  CONSTRAINT "later; --" UNIQUE ("later") DEFERRABLE INITIALLY IMMEDIATE,
  CONSTRAINT "che'ck" CHECK ("select" <> -1));
CREATE INDEX "idx "" ä" ON "order" (lower("v""9"), "d" DESC) WHERE "Flag";
ALTER TABLE "order" DROP COLUMN "gone", ALTER "TOAST" SET STORAGE EXTERNAL, REPLICA IDENTITY FULL;
CREATE TABLE "Index ""id""" (
  "Id" integer PRIMARY KEY, KEY TYPE NOT NULL, "TOAST" text, "i" integer[], "num" numeric, "$1" text,
  "s" smallint DEFAULT 7);
CREATE UNIQUE INDEX "Index ""id"" by tenant" ON "Index ""id""" (KEY, "Id");
ALTER TABLE "Index ""id""" ALTER "TOAST" SET STORAGE EXTERNAL;
CREATE TABLE "no pk Ω" ("Id" integer, KEY TYPE, "TOAST" text, "n" numeric, "c" char(5), "t" text[]);
ALTER TABLE "no pk Ω" ALTER "TOAST" SET STORAGE EXTERNAL;
CREATE TABLE "Always.on" (
  "id" bigint GENERATED ALWAYS AS IDENTITY (START 1000) PRIMARY KEY, KEY TYPE NOT NULL, "user" text, "TOAST" text,
  "i" integer, "seen" integer GENERATED BY DEFAULT AS IDENTITY);
ALTER TABLE "Always.on" ALTER "TOAST" SET STORAGE EXTERNAL;
CREATE TABLE "gen; DROP TABLE ""order""; --" (
  "gone" integer, "a" integer, KEY TYPE NOT NULL, "sum ä" bigint GENERATED ALWAYS AS (coalesce("a", 0)::bigint + "Id") STORED,
  "Id" integer, "TOAST" text, "t" text, PRIMARY KEY (KEY, "Id"));
ALTER TABLE "gen; DROP TABLE ""order""; --" DROP COLUMN "gone", ALTER "TOAST" SET STORAGE EXTERNAL;
CREATE TABLE "Sérial" (
  "Id" serial PRIMARY KEY, "extra ß" bigserial, KEY TYPE NOT NULL, "no" integer GENERATED ALWAYS AS IDENTITY,
  "t" time, "u" uuid, "TOAST" text, "f" double precision);
ALTER TABLE "Sérial" ALTER "TOAST" SET STORAGE EXTERNAL;
CREATE TABLE "deferrable pk" (
  "Id" integer, KEY TYPE NOT NULL, "v" text, "TOAST" text,
  CONSTRAINT "pk; x" PRIMARY KEY ("Id") DEFERRABLE INITIALLY IMMEDIATE);
ALTER TABLE "deferrable pk" ALTER "TOAST" SET STORAGE EXTERNAL;
RESET search_path;
"#;

/// The SQL that makes the schema, with a tenant key of this type.
pub fn setup(key_type: &str) -> String {
    SETUP
        .replace("SCHEMA SCHEMA", &format!("SCHEMA {}", quoted(SCHEMA)))
        .replace("search_path = SCHEMA", &format!("search_path = {}", quoted(SCHEMA)))
        .replace(" KEY TYPE", &format!(" {} {key_type}", quoted(KEY)))
        .replace("(KEY,", &format!("({},", quoted(KEY)))
}

/// Compares all tables of a tenant: the source's rows against the whole of the tables in `target_schema`,
/// where none may be another tenant's.
pub async fn assert_tenant_equal(source: &Client, tenant: &str, target: &Client, target_schema: &str) -> Result<u64> {
    let mut rows = 0;
    for table in TABLES {
        let filter = format!("{} = {}", quoted(KEY), literal(tenant));
        let there = format!("{}.{}", quoted(target_schema), quoted(table.name));
        rows += oracle::assert_equal(source, &table.sql(), &filter, target, &there).await?.source_rows;
        let foreign = oracle::foreign_rows(target, &there, KEY, tenant).await?;
        ensure!(foreign == 0, "{foreign} foreign rows in {there}");
    }
    u64::try_from(rows).context("count rows")
}

/// A name in double quotes.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text in single quotes, for sessions with standard strings.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_placeholder_is_filled() {
        let sql = setup("uuid");
        assert!(sql.contains("CREATE SCHEMA \"Über \"\"shop\"\".x\";"), "{sql}");
        assert_eq!(sql.matches("\"Tenant \"\"Key\"\"\" uuid").count(), TABLES.len(), "{sql}");
        assert!(!sql.contains(" TYPE") && !sql.contains("(KEY"), "{sql}");
        for table in TABLES {
            assert!(sql.contains(&format!("CREATE TABLE {} (", quoted(table.name))), "{}", table.name);
        }
    }
}
