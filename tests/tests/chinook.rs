//! Chinook, a database that nobody here has made: from `init` to equal tenants. Its script stays outside of this
//! repository (MIT licence; `Chinook_PostgreSql.sql` of the Chinook Database project).

use std::collections::HashMap;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use daemon::demo::cluster::ClusterOptions;
use rand::Rng;
use tests::daemon::Daemon;
use tests::load::Load;
use tests::oracle;
use tests::scene::{DATABASE, Scene};
use tests::seed::rng;

use crate::carve::{cli, drained, phase, start_move, verify_equal};

const SALES: &str = include_str!("chinook/sales.sql");
/// Representatives 3, 4 and 5 have customers.
const MOVED: [(&str, &str); 2] = [("3", "schema"), ("4", "database")];
/// Table, and its rows of a representative on the source.
pub const TABLES: [(&str, &str); 11] = [
    ("customer", "support_rep_id = $"),
    ("invoice", "customer_id IN (SELECT customer_id FROM customer WHERE support_rep_id = $)"),
    (
        "invoice_line",
        "invoice_id IN (SELECT invoice_id FROM invoice JOIN customer USING (customer_id) WHERE support_rep_id = $)",
    ),
    ("employee", "employee_id = $"),
    ("album", "true"),
    ("artist", "true"),
    ("genre", "true"),
    ("media_type", "true"),
    ("playlist", "true"),
    ("playlist_track", "true"),
    ("track", "true"),
];
/// How long the load lasts beyond the random part.
const LOAD: Duration = Duration::from_secs(300);
const LONG: Duration = Duration::from_secs(900);

/// `init` leaves the catalogue to a person; then customers with their invoices go from representative to
/// representative while two of them are moved, under kills, and for five minutes more.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "campaign: six minutes, and CARVEOUT_CHINOOK must name Chinook_PostgreSql.sql"]
async fn chinook_moves_while_customers_change_their_representative() -> Result<()> {
    let mut rng = rng("chinook");
    let scene = Scene::empty(ClusterOptions::default(), ClusterOptions::default()).await?;
    let source = scene.source_client().await?;
    let config = open(&scene).await?;
    let random = Load::scripts(&scene.source, DATABASE, &[("SELECT sell();", 1)], 4, 5_000)?;
    let mut daemon = Daemon::start(&config).await?;
    for (tenant, to) in MOVED {
        start_move(&daemon, tenant, to).await?;
    }
    let mut kills = 0;
    let mut transactions = 20_000;
    let mut load = random;
    let began = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(rng.random_range(500..6000))).await;
        for (tenant, _) in MOVED {
            phase(&daemon, tenant, &["planned", "provisioning", "copying", "catching_up", "streaming", "ready"])
                .await?;
        }
        if kills < 20 {
            daemon.kill()?;
            daemon = Daemon::start(&config).await?;
            kills += 1;
        }
        if !load.is_running()? {
            load.finish(LONG).await?.assert_fine()?;
            if began.elapsed() > LOAD {
                break;
            }
            load = Load::scripts(&scene.source, DATABASE, &[("SELECT sell();", 1)], 4, 5_000)?;
            transactions += 20_000;
        }
    }
    let mut rows: HashMap<&str, i64> = HashMap::new();
    for (tenant, to) in MOVED {
        phase(&daemon, tenant, &["streaming", "ready"]).await?;
        drained(&scene, &daemon, &[tenant]).await?;
        verify_equal(&daemon, tenant).await?;
        let (target, schema) = match to {
            "database" => (scene.target_client(&format!("rep_{tenant}")).await?, "public".to_owned()),
            _ => (scene.source_client().await?, format!("rep_{tenant}")),
        };
        for (table, filter) in TABLES {
            let (theirs, filter) = (format!("{schema}.{table}"), filter.replace('$', tenant));
            *rows.entry(table).or_default() +=
                oracle::assert_equal(&source, table, &filter, &target, &theirs).await?.target_rows;
        }
        let foreign = oracle::foreign_rows(&target, &format!("{schema}.customer"), "support_rep_id", tenant).await?;
        ensure!(foreign == 0, "{foreign} foreign customers");
    }
    let came = daemon.log()?.matches("rows came from another tenant").count();
    println!("{transactions} transactions, {kills} kills, rows came {came} times, equal: {rows:?}");
    ensure!(kills >= 10 && came > 0 && rows.values().all(|rows| *rows > 0), "too little happened");
    daemon.assert_no_errors(&[])
}

/// Makes Chinook, and a configuration for it.
pub async fn open(scene: &Scene) -> Result<std::path::PathBuf> {
    let script = std::env::var("CARVEOUT_CHINOOK").context("CARVEOUT_CHINOOK names no script")?;
    let source = scene.source_client().await?;
    source.batch_execute(&tables_of(Path::new(&script))?).await.context("make Chinook's tables")?;
    source.batch_execute(SALES).await.context("make what the load calls")?;
    configure(scene).await
}

/// The script without the part that makes a database and goes there.
fn tables_of(script: &Path) -> Result<String> {
    let text = std::fs::read_to_string(script).with_context(|| format!("read {}", script.display()))?;
    let start = text.find("CREATE TABLE").context("no CREATE TABLE in it")?;
    Ok(text[start..].to_owned())
}

/// What `init` proposes, and its decisions: the catalogue is everybody's.
async fn configure(scene: &Scene) -> Result<std::path::PathBuf> {
    let at = |port| format!("postgresql://postgres@127.0.0.1:{port}");
    let config = scene.path().join("chinook.yaml");
    let source = format!("{}/{DATABASE}?sslmode=disable", at(scene.source.port));
    let (carveout, file) = (tests::binary::binary()?, config.display().to_string());
    let init = tokio::process::Command::new(carveout)
        .args(["init", "--source", &source, "--key", "support_rep_id", "-o", &file])
        .stdin(Stdio::null())
        .output()
        .await
        .context("run init")?;
    let said = String::from_utf8_lossy(&init.stdout) + String::from_utf8_lossy(&init.stderr);
    ensure!(init.status.success() && said.contains("by foreign keys: 2; decisions left to you: 7"), "{said}");
    let mut text = std::fs::read_to_string(&config)?;
    for table in ["album", "artist", "genre", "media_type", "playlist", "playlist_track", "track"] {
        let line = format!("{table}: {{reference: true}}");
        ensure!(text.contains(&format!("    # {line}")), "{line} is not proposed in\n{text}");
        text = text.replace(&format!("    # {line}"), &format!("    {line}"));
    }
    let folder = scene.path().display();
    let here = format!("{}/tenant_{{support_rep_id}}", at(scene.source.port));
    for (proposed, ours) in [
        (here.as_str(), format!("{}/rep_{{support_rep_id}}", at(scene.target.port)).as_str()),
        ("\"tenant_{support_rep_id}\"", "\"rep_{support_rep_id}\""),
        ("./carveout-state", &format!("{folder}/state")),
        ("127.0.0.1:8377", &format!("127.0.0.1:{}", daemon::demo::cluster::free_port()?)),
        ("./token", &format!("{folder}/token")),
    ] {
        ensure!(text.contains(proposed), "{proposed} is not in\n{text}");
        text = text.replace(proposed, ours);
    }
    std::fs::write(&config, text)?;
    cli(&config, &["prepare", "--apply"]).await?;
    cli(&config, &["check"]).await?;
    Ok(config)
}
