//! The verifier: whatever is spoilt in a target is found and named, by `verify`, by everything that moves the writes; and while the
//! application writes, nothing is said to differ that does not.

mod end;
mod judge;
mod load;
mod moving;
mod mutants;
mod stage;
mod tables;

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use rand::seq::SliceRandom;
use tests::binary;
use tests::seed::rng;

use judge::Answer;
use load::Writers;
use mutants::{Among, KINDS};
use stage::{Stage, TENANTS};
use tables::TABLES;

const EVERYWHERE: Among = Among { tables: &[], rows: "true" };

/// Issue line 5, C08: so many mutants in each form, of every kind in turn. Each is found, with its table and its key and nothing
/// else, and gone when it is mended.
async fn find(mutants: usize) -> Result<()> {
    let mut rng = rng("mutants");
    let stage = Stage::open().await?;
    for (tenant, to) in TENANTS {
        let target = stage.target(tenant).await?;
        let (mut kinds, mut in_vain) = (Vec::new(), 0);
        for number in 0..mutants {
            if kinds.is_empty() {
                kinds = KINDS.to_vec();
                kinds.shuffle(&mut rng);
            }
            let kind = kinds.pop().context("a kind")?;
            let spoilt = target.spoil(&mut rng, kind, &EVERYWHERE).await?;
            stage.assert_found(tenant, &spoilt).await.with_context(|| format!("{to}: mutant {number}"))?;
            if number % 5 == 0 {
                // As a person reads it.
                let output = binary::cli(&stage.config, &["verify", tenant]).await?;
                let said = String::from_utf8_lossy(&output.stdout);
                let keys = spoilt.expected.iter().all(|(kind, key)| said.contains(kind) && said.contains(key));
                let named = said.contains(&format!("public.{}, the first that differ", spoilt.mutant.table.name));
                ensure!(output.status.code() == Some(1) && said.contains("DIFFERENT") && keys && named, "{said}");
            }
            target.mend(spoilt.mutant.table).await?;
            stage.clean(tenant).await.with_context(|| format!("{to}: mutant {number} was mended"))?;
            in_vain += spoilt.in_vain;
        }
        println!("{to}: {mutants} of {mutants} mutants found, {in_vain} more draws changed nothing");
    }
    stage.assert_equal().await?;
    stage.daemon.assert_no_errors(&[])
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_finds_every_mutant() -> Result<()> {
    find(15).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "campaign: 200 mutants in each form"]
async fn verify_finds_two_hundred_mutants() -> Result<()> {
    find(200).await
}

/// What PostgreSQL stores as the same value is none: the order of keys in jsonb, blanks that fill up a `char`, another spelling, where
/// and how it is stored.
const NO_MUTANTS: [(&str, &str); 8] = [
    ("items", "UPDATE items SET jb = '{\"b\" : \"\", \"a\": 2, \"a\":[1,null]}' WHERE jb ? 'a'"),
    ("items", "UPDATE items SET c = c::text || '   ' WHERE c IS NOT NULL"),
    ("items", "UPDATE items SET u = upper(u::text)::uuid, at = at AT TIME ZONE 'Asia/Tokyo' AT TIME ZONE 'Asia/Tokyo'"),
    ("items", "UPDATE items SET n = n + 0, p = ('+' || p)::numeric, f8 = f8::text::float8, f4 = f4::float8::real"),
    ("items", "UPDATE items SET big = big || '', bigraw = substr(bigraw, 1)"),
    ("events", "UPDATE events SET what = what"),
    ("days", "UPDATE days SET at = at"),
    ("countries", "UPDATE countries SET name = name || ''"),
];

/// Whoever writes the same values anew has changed nothing.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_value_is_no_difference() -> Result<()> {
    let stage = Stage::open().await?;
    for (tenant, _) in TENANTS {
        let target = stage.target(tenant).await?;
        for (name, sql) in NO_MUTANTS {
            let table = TABLES.iter().find(|table| table.name == name).context("a table")?;
            let before = target.contents(table).await?;
            ensure!(target.change(table, sql).await?, "{sql}");
            target.client.batch_execute("DROP TABLE kept").await?;
            ensure!(target.contents(table).await? == before, "it is a change: {sql}");
            stage.clean(tenant).await.context(sql)?;
        }
        for sql in ["ALTER TABLE items ALTER big SET STORAGE MAIN", "VACUUM FULL items"] {
            target.client.batch_execute(sql).await.context(sql)?;
        }
        stage.clean(tenant).await.context("after VACUUM FULL")?;
    }
    stage.daemon.assert_no_errors(&[])
}

/// Rows of each tenant that the application leaves alone.
const COLD: [(&str, &str); 2] = [("6", "(1,6)"), ("7", "(2,7)")];

/// Issue line 5: so many runs in each form while four sessions write. Each says equal, and that it looked: every third of the way a
/// blank is put behind one value of the target, and found.
async fn compare_under_load(runs: usize) -> Result<()> {
    let mut rng = rng("clean runs");
    let stage = Stage::open().await?;
    let writers = Writers::start(&stage.scene, &mut rng, 4, 60).await?;
    writers.progress(200).await?;
    let (mut not_ready, mut took) = (Vec::new(), Vec::new());
    let mut last = [schemas::Lsn(0); 2];
    let began = (Instant::now(), writers.committed());
    for run in 0..runs {
        for (place, (tenant, _)) in TENANTS.into_iter().enumerate() {
            let target = stage.target(tenant).await?;
            let spoilt = runs >= 3 && run % (runs / 3) == runs / 3 - 1;
            let (id, key) = COLD[place];
            if spoilt {
                target.client.batch_execute(&format!("UPDATE items SET word = word || ' ' WHERE id = {id}")).await?;
                assert_alone(&stage, tenant, key, &mut not_ready).await?;
                target.client.batch_execute(&format!("UPDATE items SET word = left(word, -1) WHERE id = {id}")).await?;
            }
            let asked = Instant::now();
            match compared(&stage, tenant, &mut not_ready).await? {
                Answer::Equal { rows, lsn } => {
                    ensure!(rows > 0 && lsn > last[place], "nothing was written between two runs: {rows} rows, {lsn}");
                    last[place] = lsn;
                }
                answer => bail!("run {run} of tenant {tenant}, a false alarm: {answer:?}"),
            }
            took.push(asked.elapsed().as_millis());
        }
    }
    // None of them has ended.
    writers.progress(20).await?;
    let rate = (writers.committed() - began.1) as f64 / began.0.elapsed().as_secs_f64();
    let failed = writers.stop().await?;
    took.sort_unstable();
    println!(
        "{} clean runs at {rate:.0} transactions a second ({failed} failed), {} were not ready: {not_ready:?}; {} ms, at most {} ms",
        took.len(),
        not_ready.len(),
        took[took.len() / 2],
        took[took.len() - 1]
    );
    ensure!(not_ready.len() * 50 <= took.len(), "{} of {} runs were not ready", not_ready.len(), took.len());
    stage.assert_equal().await?;
    stage.daemon.assert_no_errors(&[])
}

/// Asks until something was compared; what was said otherwise is kept.
async fn compared(stage: &Stage, tenant: &str, not_ready: &mut Vec<String>) -> Result<Answer> {
    for _ in 0..3 {
        match judge::verify(&stage.config, tenant).await? {
            Answer::NotReady(why) => not_ready.push(why),
            answer => return Ok(answer),
        }
    }
    bail!("tenant {tenant} cannot be compared: {not_ready:?}")
}

/// One row differs, and it is this one.
async fn assert_alone(stage: &Stage, tenant: &str, key: &str, not_ready: &mut Vec<String>) -> Result<()> {
    let Answer::Different(found) = compared(stage, tenant, not_ready).await? else {
        bail!("tenant {tenant}: {key} was not found under load");
    };
    let one = (1, [("different".to_owned(), key.to_owned())].into());
    ensure!(found == [("public.items".to_owned(), one)].into(), "{found:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_raises_no_alarm_while_the_application_writes() -> Result<()> {
    compare_under_load(8).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "campaign: 100 runs in each form"]
async fn two_hundred_runs_raise_no_alarm() -> Result<()> {
    compare_under_load(100).await
}
