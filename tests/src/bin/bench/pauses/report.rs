//! Prints what was measured.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::clients::Written;
use super::figures::{Figures, Stolen, Window, heading};
use super::{AFTERMATH, Flip};

/// What is promised, in milliseconds.
const MEDIAN: f64 = 100.0;
const P99: f64 = 250.0;
/// A write of another tenant is slow that takes longer, in milliseconds: one of a hundred where nothing is asked.
const SLOW: f64 = 5.0;
/// A stretch counts as undisturbed when less of its time was stolen, in percent.
const MOST_STOLEN: f64 = 5.0;
/// The steps outside of the pause and within, in their order.
const STEPS: [&str; 13] = [
    "reverse",
    "verify",
    "certificate",
    "sequences",
    "fence",
    "rounds",
    "hold",
    "barrier",
    "drain",
    "recheck",
    "begin",
    "flip",
    "open",
];

/// Of one flip.
struct Pause {
    /// When the side that is left acknowledged last, and the other one first.
    last: Instant,
    first: Instant,
}

pub fn print(flips: &[Flip], mut written: Vec<Written>, mut others: Vec<Written>, stolen: &Stolen) -> Result<()> {
    written.sort_by_key(|write| write.due);
    others.sort_by_key(|write| write.due);
    let pauses = pauses(flips, &written)?;
    println!("\n{}", heading());
    let client = |of: &dyn Fn(&Flip) -> bool| {
        let chosen = flips.iter().zip(&pauses).filter(|(flip, _)| of(flip));
        Figures::of_times(chosen.map(|(_, pause)| pause.first - pause.last))
    };
    let all = client(&|_| true);
    println!("{}", all.line("pause, as clients see it"));
    println!("{}", client(&|flip| !flip.is_rollback).line("  of cutovers"));
    println!("{}", client(&|flip| flip.is_rollback).line("  of rollbacks"));
    println!("{}", client(&|flip| flip.kept).line("  with sessions that were there"));
    println!("{}", client(&|flip| !flip.kept).line("  with sessions that had to be made"));
    println!("{}", number(flips, "pause_ms")?.line("pause, as the daemon says"));
    steps(flips);
    println!("{}", Figures::of(longest(flips, &written)).line("the tenant's slowest write, of each flip"));
    let [busy, quiet] = [busy(flips), quiet(flips)];
    println!("{}", Window::latencies(&busy, &written).line("the tenant's writes, during cutovers"));
    println!("{}", Window::latencies(&quiet, &written).line("  without"));
    of_others(flips, &pauses, &others);
    others_by_step(flips, &others, stolen);
    others_by_stretch(flips, &others, stolen);

    println!("\nkeys compared again in the pause: {}", counted(&number(flips, "rechecked_keys")?));
    let kept = all.percentile(50.0) <= MEDIAN && all.percentile(99.0) <= P99;
    let said = if kept { "kept" } else { "MISSED" };
    println!("promised: median at most {MEDIAN} ms, p99 at most {P99} ms: {said}");
    Ok(())
}

/// From the last acknowledgement of one side to the first of the other. They must never overlap.
fn pauses(flips: &[Flip], written: &[Written]) -> Result<Vec<Pause>> {
    let mut told: HashMap<i64, (Instant, Instant)> = HashMap::new();
    for write in written {
        let (first, last) = told.entry(write.epoch).or_insert((write.told, write.told));
        (*first, *last) = ((*first).min(write.told), (*last).max(write.told));
    }
    // Before the first flip there is no route.
    let before = |epoch: i64| if told.contains_key(&(epoch - 1)) { epoch - 1 } else { 0 };
    let pause = |flip: &Flip| {
        let there = |epoch| told.get(&epoch).with_context(|| format!("nothing was written at epoch {epoch}"));
        let ((_, last), (first, _)) = (*there(before(flip.epoch))?, *there(flip.epoch)?);
        ensure!(last < first, "flip {}: both sides acknowledged writes at once", flip.epoch);
        Ok(Pause { last, first })
    };
    flips.iter().map(pause).collect()
}

fn number(flips: &[Flip], name: &str) -> Result<Figures> {
    let numbers: Option<Vec<f64>> = flips.iter().map(|flip| flip.report[name].as_f64()).collect();
    Ok(Figures::of(numbers.with_context(|| format!("a report has no {name}"))?.into_iter()))
}

/// A step that comes twice in one report counts once for each of the two.
fn steps(flips: &[Flip]) {
    let all = || flips.iter().flat_map(|flip| flip.report["steps"].as_array().into_iter().flatten());
    for step in STEPS {
        let figures = Figures::of(all().filter(|took| took["step"] == step).filter_map(|took| took["ms"].as_f64()));
        if figures.count() > 0 {
            println!("{}", figures.line(&format!("  {step}")));
        }
    }
}

/// The longest that a write of each flip took, since it was due.
fn longest<'a>(flips: &'a [Flip], written: &'a [Written]) -> impl Iterator<Item = f64> + 'a {
    flips.iter().map(|flip| Window::latencies(&[flip.busy], written).percentile(100.0))
}

fn busy(flips: &[Flip]) -> Vec<Window> {
    flips.iter().map(|flip| flip.busy).collect()
}

fn quiet(flips: &[Flip]) -> Vec<Window> {
    flips.iter().filter_map(|flip| flip.quiet).collect()
}

fn stalled(flips: &[Flip], of: &dyn Fn(bool) -> bool) -> Vec<Window> {
    flips.iter().filter_map(|flip| flip.stalled).filter(|(_, kept)| of(*kept)).map(|(window, _)| window).collect()
}

fn of_others(flips: &[Flip], pauses: &[Pause], written: &[Written]) {
    let [busy, quiet] = [busy(flips), quiet(flips)];
    let stalled = stalled(flips, &|_| true);
    // From where the tenant's clients stopped, and from a flip's last acknowledgement, for as long.
    let stalls: Vec<Window> =
        stalled.iter().map(|window| Window { from: window.to - AFTERMATH, to: window.to }).collect();
    let flipped: Vec<Window> =
        pauses.iter().map(|pause| Window { from: pause.last, to: pause.last + AFTERMATH }).collect();
    // By fours: on both sides, and behind flips of both kinds.
    let half = |odd: bool| {
        let chosen = quiet.iter().enumerate().filter(|(number, _)| (number / 4 % 2 == 1) == odd);
        chosen.map(|(_, window)| *window).collect::<Vec<_>>()
    };
    let held: Vec<Window> = pauses.iter().map(|pause| Window { from: pause.last, to: pause.first }).collect();
    for (windows, name) in [
        (&busy, "other tenants' writes, during cutovers"),
        (&quiet, "  without"),
        (&half(false), "  without, of each second four of stretches"),
        (&half(true), "  without, of the others"),
        (&stalled, "  without, but its clients stop for a while"),
        (&stalls, "    from where they stop to the end"),
        (&flipped, "  during cutovers, as long from the last write"),
        (&held, "  while the tenant's writers waited"),
    ] {
        println!("{}", Window::latencies(windows, written).line(name));
    }
}

/// Each stretch by itself: a stall of the machine falls into one of them, and those are left out that were stolen from.
fn others_by_stretch(flips: &[Flip], written: &[Written], stolen: &Stolen) {
    let flips_of = |kept| flips.iter().filter(|flip| flip.kept == kept).map(|flip| flip.busy).collect::<Vec<_>>();
    let kinds = [
        (quiet(flips), "stretches without"),
        (flips_of(true), "cutovers, with sessions there"),
        (stalled(flips, &|kept| kept), "  without, but its clients stop"),
        (flips_of(false), "cutovers, with sessions to be made"),
        (stalled(flips, &|kept| !kept), "  without, its clients stop and make theirs"),
    ];
    println!(
        "\n{:<44} {:>7} {:>7} {:>7} {:>7} {:>7} {:>7} {:>9}",
        "other tenants' p99, of each of the", "count", "5 %", "25 %", "50 %", "75 %", "95 %", "slow ones"
    );
    let mut undisturbed = Vec::new();
    for most in [100.0, MOST_STOLEN] {
        if most < 100.0 {
            println!("where less than {most} % of the time was stolen from the machine");
        }
        for (windows, name) in &kinds {
            let ours =
                windows.iter().filter(|window| most >= 100.0 || stolen.percent(window).is_some_and(|part| part < most));
            let latencies: Vec<Figures> = ours.map(|window| Window::latencies(&[*window], written)).collect();
            let figures = Figures::of(latencies.iter().map(|latencies| latencies.percentile(99.0)));
            // Those, of each, do not depend on how long it is.
            let slow = latencies.iter().map(|latencies| latencies.above(SLOW)).sum::<f64>() / latencies.len() as f64;
            if figures.count() == 0 {
                continue;
            }
            let parts = [5.0, 25.0, 50.0, 75.0, 95.0].map(|percent| format!("{:>7.1}", figures.percentile(percent)));
            println!("  {name:<42} {:>7} {} {slow:>9.1}", figures.count(), parts.join(" "));
            if most < 100.0 {
                undisturbed.push((name, figures));
            }
        }
    }
    if let Some(((_, without), others)) = undisturbed.split_first() {
        for (name, figures) in others {
            within_noise(name, figures, without);
        }
    }
    for (windows, name) in &kinds {
        let parts = Figures::of(windows.iter().filter_map(|window| stolen.percent(window)));
        println!("{}", parts.line(&format!("stolen, in percent: {name}")));
    }
}

/// Promised of cutovers: noise is where nine of ten stretches without one lie, and the median is to lie there too. And how often
/// one of the figures is above one without: half of the time, were there no difference at all.
fn within_noise(name: &str, figures: &Figures, without: &Figures) {
    let [least, most] = [5.0, 95.0].map(|percent| without.percentile(percent));
    let median = figures.percentile(50.0);
    let kept = if (least..=most).contains(&median) { "within" } else { "beyond" };
    let above = figures.above_those(without) * 100.0;
    println!(
        "{}: {median:.1} is {kept} the noise of {least:.1} to {most:.1}; above one without in {above:.0} %",
        name.trim()
    );
}

/// What others notice of each step, where the machine was undisturbed; the first one begins when the flip is asked for. And where
/// the slowest hundredth of their writes falls, of each flip.
fn others_by_step(flips: &[Flip], written: &[Written], stolen: &Stolen) {
    let mut windows: HashMap<&str, Vec<Window>> = HashMap::new();
    let mut slow: HashMap<&str, f64> = HashMap::new();
    for flip in flips.iter().filter(|flip| stolen.percent(&flip.busy).is_some_and(|part| part < MOST_STOLEN)) {
        let most = Window::latencies(&[flip.busy], written).percentile(99.0);
        let mut add = |step, from, to| {
            let window = Window { from, to };
            windows.entry(step).or_default().push(window);
            *slow.entry(step).or_default() += Window::latencies(&[window], written).above(most);
        };
        let mut from = flip.busy.from;
        for took in flip.report["steps"].as_array().into_iter().flatten() {
            let to = from + Duration::from_secs_f64(took["ms"].as_f64().unwrap_or_default() / 1e3);
            let step = STEPS.iter().find(|step| took["step"] == **step);
            add(step.copied().unwrap_or("something else"), from, to);
            from = to;
        }
        add("afterwards", from, flip.busy.to);
    }
    let all: f64 = slow.values().sum();
    println!("\nother tenants' writes by step, undisturbed; and the part of their slowest hundredth");
    for step in STEPS.into_iter().chain(["something else", "afterwards"]) {
        if let Some(windows) = windows.get(step) {
            let line = Window::latencies(windows, written).line(&format!("  {step}"));
            println!("{line} {:>5.1} %", slow[step] * 100.0 / all);
        }
    }
}

fn counted(figures: &Figures) -> String {
    let [median, p99, most] = [50.0, 99.0, 100.0].map(|percent| figures.percentile(percent));
    format!("median {median}, p99 {p99}, at most {most}")
}
