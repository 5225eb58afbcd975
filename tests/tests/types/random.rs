//! Random values of many types at once, followed over random changes, in both forms of the stream.

use anyhow::{Context, Result, ensure};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use tests::daemon::Daemon;
use tests::oracle;
use tests::scene::{Configuration, Scene};
use tests::seed::rng;

use crate::carve::{cli, phase, start_move, verify_equal};
use crate::settle;

const TYPES: [&str; 21] = [
    "smallint",
    "bigint",
    "numeric",
    "real",
    "double precision",
    "text",
    "bytea",
    "date",
    "timestamptz",
    "interval",
    "timetz",
    "inet",
    "uuid",
    "varbit",
    "jsonb",
    "text[]",
    "integer[]",
    "int8range",
    "point",
    "\"char\"",
    "made",
];
/// Parts of texts that mean something to one format or another.
const PIECES: [&str; 16] =
    ["\\", "\"", "'", "\t", "\n", "\r", "{", "}", ",", "NULL", "\\N", "\\.", "ü", "\u{1F600}", " ", "x"];
const TRANSACTIONS: usize = 150;

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn text(rng: &mut StdRng) -> String {
    let pieces = rng.random_range(0..12);
    let text: String = (0..pieces).map(|_| *PIECES.choose(rng).unwrap_or(&"")).collect();
    // One in ten goes out of line, and does not compress away.
    match rng.random_ratio(1, 10) {
        true => (0..400).map(|_| format!("{:x}", rng.random::<u64>())).collect::<String>() + &text,
        false => text,
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn float(rng: &mut StdRng, single: bool) -> String {
    match single {
        true => format!("'{:e}'", f32::from_bits(rng.random())),
        false => format!("'{:e}'", f64::from_bits(rng.random())),
    }
    .replace("inf", "Infinity")
}

/// A value as SQL.
fn value(rng: &mut StdRng, kind: &str) -> String {
    if rng.random_ratio(1, 8) {
        return "NULL".to_owned();
    }
    match kind {
        "smallint" => rng.random::<i16>().to_string(),
        "bigint" => rng.random::<i64>().to_string(),
        "numeric" => format!("'{}{}e{}'", rng.random::<i64>(), rng.random::<u32>(), rng.random_range(-300..300)),
        "real" => float(rng, true),
        "double precision" => float(rng, false),
        "text" => literal(&text(rng)),
        "bytea" => format!("'\\x{}'", text(rng).bytes().map(|byte| format!("{byte:02x}")).collect::<String>()),
        "date" => format!("date '2000-01-01' + {}", rng.random_range(-2_451_545..2_000_000_000)),
        "timestamptz" => format!("to_timestamp({}::float8)", rng.random_range(-200_000_000_000i64..9_000_000_000_000)),
        "interval" => format!(
            "'{} mon {} day {} us'",
            rng.random::<i32>(),
            rng.random::<i32>(),
            rng.random_range(-9_000_000_000_000_000i64..9_000_000_000_000_000)
        ),
        "timetz" => format!(
            "'{:02}:{:02}:{:02}.{:06}+{:02}'",
            rng.random_range(0..24),
            rng.random_range(0..60),
            rng.random_range(0..60),
            rng.random_range(0..1_000_000),
            rng.random_range(-15..16)
        )
        .replace("+-", "-"),
        "inet" => format!("'{}/{}'", std::net::Ipv4Addr::from(rng.random::<u32>()), rng.random_range(0..33)),
        "uuid" => format!("'{:032x}'", rng.random::<u128>()),
        "varbit" => format!("B'{:b}'", rng.random::<u64>()),
        "jsonb" => literal(&serde_json::json!({text(rng): [rng.random::<i32>(), text(rng)], "n": null}).to_string()),
        "text[]" => literal(&format!("[{0}:{1}]={{{2},NULL,{3}}}", -3, -1, quoted(&text(rng)), quoted(&text(rng)))),
        "integer[]" => {
            format!("'{{{{{},NULL}},{{{},{}}}}}'", rng.random::<i32>(), rng.random::<i32>(), rng.random::<i32>())
        }
        "int8range" => format!("int8range({}, NULL, '[]')", rng.random::<i64>()),
        "point" => format!("point({}::float8, {}::float8)", float(rng, false), float(rng, false)),
        "\"char\"" => literal(["a", "", "\\", "\"", "{", ","].choose(rng).unwrap_or(&"")),
        "regclass" => literal(["pg_class", "-", "4294967295", "information_schema.tables"].choose(rng).unwrap_or(&"-")),
        _ => format!("ROW({}, {})", rng.random::<i32>(), literal(&text(rng))),
    }
}

/// R15, R16: whatever is written, both sides read the same.
#[tokio::test(flavor = "multi_thread")]
async fn random_values_of_many_types_arrive_in_both_forms() -> Result<()> {
    let mut rng = rng("types");
    for as_text in [false, true] {
        follow(&mut rng, as_text).await.with_context(|| format!("as text: {as_text}"))?;
    }
    Ok(())
}

async fn follow(rng: &mut StdRng, as_text: bool) -> Result<()> {
    let scene = Scene::single(Default::default()).await?;
    let source = scene.source_client().await?;
    let mut kinds = TYPES.to_vec();
    kinds.extend(as_text.then_some("regclass"));
    let columns: Vec<String> = kinds.iter().enumerate().map(|(n, kind)| format!("c{n} {kind}")).collect();
    let row = |rng: &mut StdRng| kinds.iter().map(|kind| value(rng, kind)).collect::<Vec<_>>().join(", ");
    let tables = format!(
        "CREATE TYPE made AS (n integer, t text); \
         CREATE TABLE a (bid integer, id integer, {0}, PRIMARY KEY (bid, id)); CREATE TABLE b (bid integer, id integer, {0})",
        columns.join(", ")
    );
    source.batch_execute(&tables).await?;
    for id in 0..40 {
        let sql = format!("INSERT INTO a VALUES (1, {id}, {}); INSERT INTO b VALUES (1, {id}, {})", row(rng), row(rng));
        source.batch_execute(&sql).await.with_context(|| sql)?;
    }
    let config = scene.write_config("carveout", &Configuration::default())?;
    cli(&config, &["prepare", "--apply"]).await?;
    let daemon = Daemon::start(&config).await?;
    start_move(&daemon, "1", "database").await?;
    phase(&daemon, "1", &["streaming"]).await?;
    for _ in 0..TRANSACTIONS {
        let mut sql = String::new();
        for _ in 0..rng.random_range(1..6) {
            let (table, id) = (if rng.random_ratio(3, 4) { "a" } else { "b" }, rng.random_range(0..80));
            let column = rng.random_range(0..kinds.len());
            sql += &match rng.random_range(0..4) {
                0 => format!("DELETE FROM {table} WHERE id = {id};"),
                1 => {
                    format!("DELETE FROM {table} WHERE id = {id}; INSERT INTO {table} VALUES (1, {id}, {});", row(rng))
                }
                2 => format!("UPDATE {table} SET c{column} = {} WHERE id = {id};", value(rng, kinds[column])),
                _ => format!(
                    "UPDATE {table} SET id = {id} WHERE id = {} AND NOT EXISTS (SELECT FROM {table} WHERE id = {id});",
                    rng.random_range(0..80)
                ),
            };
        }
        source.batch_execute(&sql).await.with_context(|| sql)?;
    }
    settle::drained(&scene, &daemon, "1").await?;
    let target = scene.target_client("bid_1").await?;
    for table in ["a", "b"] {
        let table = format!("public.{table}");
        let compared = oracle::assert_equal(&source, &table, "bid = 1", &target, &table).await?;
        ensure!(compared.target_rows > 10, "{compared:?}");
    }
    verify_equal(&daemon, "1").await?;
    ensure!(daemon.log()?.contains(&format!("binary={}", !as_text)), "the stream was of the other form");
    daemon.assert_no_errors(&[])
}
