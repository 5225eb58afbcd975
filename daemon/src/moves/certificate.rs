//! What the last clean comparison is still worth: how old it is, and how much the lane has changed since.

use std::sync::Arc;
use std::time::{Duration, Instant};

use connectors::postgres::apply::Changed;

/// A comparison that is older counts no more, nor one after which more keys have changed.
const OLDEST: Duration = Duration::from_secs(3600);
const MOST_KEYS: usize = 1_000;

/// Both sides were equal.
pub struct Certificate {
    at: Instant,
    changed: Arc<Changed>,
    users: Arc<()>,
}

impl Certificate {
    /// They were just now; what the lane applies since then is noted in `changed`.
    pub fn new(changed: &Arc<Changed>) -> Certificate {
        Certificate { at: Instant::now(), changed: Arc::clone(changed), users: Arc::default() }
    }

    /// What had changed was equal too; `changed` notes the rest.
    pub fn renewed(&self, changed: &Arc<Changed>) -> Certificate {
        Certificate { changed: Arc::clone(changed), users: Arc::clone(&self.users), ..*self }
    }

    /// As long as somebody has this, nothing is noted elsewhere.
    pub fn used(&self) -> Arc<()> {
        Arc::clone(&self.users)
    }

    /// Whether somebody goes by what is noted.
    pub fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.users) > 1
    }

    /// Whether it still counts. A lane that began anew has noted nothing.
    pub fn counts(&self) -> bool {
        let noting = Arc::weak_count(&self.changed) > 0 && !self.changed.is_closed();
        let keys: Option<usize> = self.changed.sizes().into_iter().map(|(_, keys)| keys).sum();
        noting && self.at.elapsed() < OLDEST && keys.is_some_and(|keys| keys <= MOST_KEYS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_counts_while_a_lane_notes_and_it_is_young() {
        let changed = Arc::new(Changed::default());
        let certificate = Certificate::new(&changed);
        assert!(!certificate.counts(), "no lane notes");
        let lane = Arc::downgrade(&changed);
        drop(changed);
        assert!(certificate.counts() && !certificate.is_in_use());
        let used = certificate.renewed(&certificate.changed).used();
        assert!(certificate.is_in_use());
        drop(used);

        let old = Certificate {
            at: Instant::now().checked_sub(OLDEST).expect("a clock"),
            ..certificate.renewed(&certificate.changed)
        };
        assert!(!old.counts());
        lane.upgrade().expect("it is there").close();
        assert!(!certificate.counts(), "noted elsewhere");
    }
}
