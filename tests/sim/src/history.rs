//! What one unit of a volume may hold: the writes that it had, as far as they still matter.

/// Counts what the host did and saw, in order.
pub(crate) type Time = u64;

/// It has not happened.
pub(crate) const NEVER: Time = Time::MAX;

/// What a unit holds: 0 for zeroes, else the number of the write that it is of.
pub type Value = u64;

/// One write of a unit, as its host knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    /// Names the operation; unlike its value, no other has it.
    pub operation: u64,
    pub value: Value,
    pub submitted: Time,
    /// Completed, with whatever status.
    pub ended: Time,
    /// Completed with success.
    pub acknowledged: Time,
    /// Nothing older may come back after power loss.
    pub stable: bool,
}

impl Version {
    /// A value that is there since a time, of nobody's write.
    pub(crate) fn given(value: Value, now: Time, stable: bool) -> Self {
        Self { operation: 0, value, submitted: now, ended: now, acknowledged: now, stable }
    }

    /// Writes of a unit that overlap in time may take effect in either order. Otherwise the
    /// later one replaces the earlier one.
    fn is_replaced_by(&self, other: &Version) -> bool {
        self.ended < other.submitted
    }
}

/// A unit: never without a version.
#[derive(Clone, Debug)]
pub(crate) struct Unit {
    first: Version,
    more: Vec<Version>,
}

impl Unit {
    pub(crate) fn new(first: Version) -> Self {
        Self { first, more: Vec::new() }
    }

    pub(crate) fn of(versions: &[Version]) -> Self {
        let (&first, more) = versions.split_first().expect("a unit holds something");
        Self { first, more: more.to_vec() }
    }

    /// Whether nothing but one stable value can be here.
    pub(crate) fn is_settled(&self) -> bool {
        self.more.is_empty() && self.first.stable
    }

    pub(crate) fn versions(&self) -> impl Iterator<Item = &Version> + Clone {
        std::iter::once(&self.first).chain(&self.more)
    }

    pub(crate) fn begin(&mut self, version: Version) {
        self.more.push(version);
    }

    /// The operation never began.
    pub(crate) fn cancel(&mut self, operation: u64) {
        self.more.retain(|version| version.operation != operation);
    }

    /// The operation ended; stable with that if it was FUA.
    pub(crate) fn end(&mut self, operation: u64, now: Time, success: bool, stable: bool) {
        for version in std::iter::once(&mut self.first).chain(&mut self.more) {
            if version.operation == operation && version.ended == NEVER {
                version.ended = now;
                if success {
                    version.acknowledged = now;
                    version.stable |= stable;
                }
            }
        }
    }

    /// A flush that was submitted at a time has succeeded.
    pub(crate) fn flush(&mut self, submitted: Time) {
        for version in std::iter::once(&mut self.first).chain(&mut self.more) {
            version.stable |= version.acknowledged < submitted;
        }
    }

    /// Forgets what neither a read that began at `horizon` nor power loss could bring back.
    pub(crate) fn prune(&mut self, horizon: Time) {
        if self.more.is_empty() {
            return;
        }
        let submitted = |is_newer: &dyn Fn(&Version) -> bool| {
            self.versions().filter(|v| is_newer(v)).map(|v| v.submitted).max().unwrap_or(0)
        };
        let live = submitted(&|version| version.acknowledged < horizon);
        let stable = submitted(&|version| version.stable);
        let is_gone = |version: &Version| version.ended < live.min(stable);
        self.more.retain(|version| !is_gone(version));
        if is_gone(&self.first) && !self.more.is_empty() {
            self.first = self.more.remove(0);
        }
    }

    /// What a read that was submitted at `since` may find now.
    pub(crate) fn live(&self, since: Time) -> impl Iterator<Item = &Version> + Clone {
        self.versions().filter(move |version| {
            let replaces = |other: &&Version| other.acknowledged < since;
            !self.versions().filter(replaces).any(|other| version.is_replaced_by(other))
        })
    }

    /// What may be here after power loss: the last stable value or any since.
    pub(crate) fn durable(&self) -> impl Iterator<Item = &Version> + Clone {
        self.versions().filter(|version| {
            !self.versions().filter(|v| v.stable).any(|other| version.is_replaced_by(other))
        })
    }

    /// When the first write that replaces a version was acknowledged.
    pub(crate) fn replaced_at(&self, version: &Version) -> Time {
        let later = self.versions().filter(|other| version.is_replaced_by(other));
        later.map(|other| other.acknowledged).min().unwrap_or(NEVER)
    }

    /// A read has found a value, and nothing that began before it is in flight: if every write had
    /// ended before `since`, when it was submitted, later reads find the same.
    pub(crate) fn narrow(&mut self, value: Value, since: Time) {
        if self.more.is_empty() || self.versions().any(|version| version.ended >= since) {
            return;
        }
        if self.versions().any(|version| version.acknowledged == NEVER) {
            // A write that failed may yet come, when power loss undoes that it was called off.
            return;
        }
        let is_stable = self.first.stable;
        if self.versions().any(|version| version.stable != is_stable) {
            // Which of them power loss leaves is another question.
            return;
        }
        let found: Vec<Version> =
            self.versions().filter(|version| version.value == value).copied().collect();
        let [version] = found[..] else { return };
        if is_stable {
            *self = Unit::new(version);
        } else {
            let (submitted, ended, acknowledged) = (since, since, since);
            self.begin(Version { submitted, ended, acknowledged, ..version });
        }
    }

    /// The process died, and a new one finds a value. Older ones may come back with power loss
    /// until the next flush.
    pub(crate) fn restart(&mut self, value: Value, now: Time) {
        for version in std::iter::once(&mut self.first).chain(&mut self.more) {
            version.ended = version.ended.min(now - 1);
        }
        if !(self.is_settled() && self.first.value == value) {
            self.begin(Version::given(value, now, false));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(value: Value, submitted: Time) -> Version {
        let (ended, acknowledged) = (NEVER, NEVER);
        Version { operation: value, value, submitted, ended, acknowledged, stable: false }
    }

    fn values<'a>(versions: impl Iterator<Item = &'a Version>) -> Vec<Value> {
        versions.map(|version| version.value).collect()
    }

    #[test]
    fn an_acknowledged_write_replaces_those_before_it_and_power_loss_may_undo_that() {
        let mut unit = Unit::new(Version::given(0, 0, true));
        unit.begin(version(1, 1));
        assert_eq!(values(unit.live(2)), [0, 1], "either, while it is in flight");
        unit.end(1, 3, true, false);
        assert_eq!(values(unit.live(4)), [1]);
        assert_eq!(values(unit.live(2)), [0, 1], "a read that began before its end");
        assert_eq!(values(unit.durable()), [0, 1]);
        unit.flush(3);
        assert_eq!(values(unit.durable()), [0, 1], "a flush that was submitted before its end");
        unit.flush(4);
        assert_eq!(values(unit.durable()), [1]);
        unit.prune(5);
        assert!(unit.is_settled());
    }

    #[test]
    fn writes_that_overlap_may_end_in_either_order_until_somebody_has_read_them() {
        let mut unit = Unit::new(Version::given(0, 0, true));
        unit.begin(version(1, 1));
        unit.begin(version(2, 2));
        unit.end(1, 3, true, false);
        unit.end(2, 4, true, false);
        assert_eq!(values(unit.live(5)), [1, 2]);
        unit.flush(5);
        unit.prune(5);
        unit.narrow(1, 6);
        assert_eq!(values(unit.live(7)), [1]);
    }

    #[test]
    fn a_write_that_failed_may_be_there_and_replaces_nothing() {
        let mut unit = Unit::new(Version::given(0, 0, true));
        unit.begin(version(1, 1));
        unit.end(1, 2, false, false);
        unit.flush(3);
        assert_eq!(values(unit.live(4)), [0, 1]);
        unit.begin(version(2, 5));
        unit.end(2, 6, true, true);
        assert_eq!(values(unit.live(7)), [2]);
        assert_eq!(values(unit.durable()), [2]);
    }
}
