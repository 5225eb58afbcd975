//! What is made of many measurements.

use std::cmp::Ordering;
use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::clients::Written;

/// Between two looks at what the machine was kept from doing.
const BETWEEN: Duration = Duration::from_millis(100);

/// Some measurements, in milliseconds.
#[derive(Clone, Default)]
pub struct Figures(Vec<f64>);

impl Figures {
    pub fn of(figures: impl Iterator<Item = f64>) -> Figures {
        let mut figures: Vec<f64> = figures.collect();
        figures.sort_by(f64::total_cmp);
        Figures(figures)
    }

    pub fn of_times(times: impl Iterator<Item = Duration>) -> Figures {
        Figures::of(times.map(millis))
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The smallest that so many of a hundred do not exceed.
    pub fn percentile(&self, percent: f64) -> f64 {
        let rank = (self.0.len() as f64 * percent / 100.0).ceil() as usize;
        self.0.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
    }

    /// How many exceed that.
    pub fn above(&self, most: f64) -> f64 {
        self.0.iter().filter(|figure| **figure > most).count() as f64
    }

    /// How often one of these exceeds one of those, as a part of one; what is equal does so half the time.
    pub fn above_those(&self, those: &Figures) -> f64 {
        let pairs = self.0.iter().flat_map(|this| those.0.iter().map(move |that| this.total_cmp(that)));
        let above = pairs.map(|order| match order {
            Ordering::Greater => 1.0,
            Ordering::Equal => 0.5,
            Ordering::Less => 0.0,
        });
        above.sum::<f64>() / (self.count() * those.count()) as f64
    }

    /// A line of a table: how many, smallest, median, p99, largest.
    pub fn line(&self, what: &str) -> String {
        let [min, median, p99, max] = [0.0, 50.0, 99.0, 100.0].map(|percent| self.percentile(percent));
        format!("{what:<44} {:>7} {min:>9.1} {median:>9.1} {p99:>9.1} {max:>9.1}", self.count())
    }
}

/// What stands above the lines.
pub fn heading() -> String {
    format!("{:<44} {:>7} {:>9} {:>9} {:>9} {:>9}", "milliseconds", "count", "min", "median", "p99", "max")
}

pub fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A stretch of the run.
#[derive(Clone, Copy)]
pub struct Window {
    pub from: Instant,
    pub to: Instant,
}

impl Window {
    pub fn length(&self) -> Duration {
        self.to - self.from
    }

    /// The latencies of the writes that were due in one of the windows; both are in their order.
    pub fn latencies(windows: &[Window], written: &[Written]) -> Figures {
        let within = windows.iter().flat_map(|window| {
            let first = written.partition_point(|write| write.due < window.from);
            written[first..].iter().take_while(|write| write.due < window.to)
        });
        Figures::of_times(within.map(Written::latency))
    }
}

/// How much of its time the machine was kept from working, as virtual ones are by their neighbours.
#[derive(Clone, Default)]
pub struct Stolen(Arc<Mutex<Vec<Look>>>);

/// When, and the ticks until then: those that were stolen, and all.
type Look = (Instant, [u64; 2]);

impl Stolen {
    /// From now on.
    pub fn watch() -> Stolen {
        let stolen = Stolen::default();
        let looks = Arc::downgrade(&stolen.0);
        tokio::spawn(async move {
            while let (Some(looks), Some(ticks)) = (looks.upgrade(), Self::ticks()) {
                looks.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), ticks));
                drop(looks);
                tokio::time::sleep(BETWEEN).await;
            }
        });
        stolen
    }

    /// `None` where the system does not say.
    fn ticks() -> Option<[u64; 2]> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        let ticks = stat.lines().next()?.split_whitespace().skip(1).take(8);
        let ticks: Vec<u64> = ticks.filter_map(|ticks| ticks.parse().ok()).collect();
        Some([*ticks.get(7)?, ticks.iter().sum()])
    }

    /// Which part of a stretch, in percent; `None` where nobody knows.
    pub fn percent(&self, window: &Window) -> Option<f64> {
        let looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = looks.partition_point(|(at, _)| *at < window.from).checked_sub(1)?;
        let last = looks.partition_point(|(at, _)| *at < window.to);
        let ([before, from], [after, to]) = (looks[first].1, looks.get(last)?.1);
        Some((after - before) as f64 * 100.0 / (to - from).max(1) as f64)
    }
}
