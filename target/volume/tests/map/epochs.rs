//! Grace periods.

use proptest::prelude::*;
use volume::epoch::{Epochs, LaneEpoch, OwnerEpoch, Tag};

#[test]
fn a_grace_period_ends_when_each_lane_has_begun_a_turn() {
    let epochs = Epochs::new(2);
    let (mut a, mut b) = (LaneEpoch::new(0), LaneEpoch::new(1));
    let mut owner = OwnerEpoch::new();
    a.begin_turn(&epochs);
    b.begin_turn(&epochs);
    let retired = owner.retire();
    owner.try_advance(&epochs);
    assert!(!owner.is_over(retired));
    a.begin_turn(&epochs);
    owner.try_advance(&epochs);
    assert!(!owner.is_over(retired), "lane b is in the turn still");
    b.begin_turn(&epochs);
    owner.try_advance(&epochs);
    assert!(owner.is_over(retired));
}

#[test]
fn an_io_in_flight_holds_up_what_was_retired_after_it_began_and_nothing_else() {
    let epochs = Epochs::new(1);
    let mut lane = LaneEpoch::new(0);
    let mut owner = OwnerEpoch::new();
    let turn = |lane: &mut LaneEpoch, owner: &mut OwnerEpoch| {
        lane.begin_turn(&epochs);
        owner.try_advance(&epochs);
    };
    turn(&mut lane, &mut owner);
    let before = owner.retire();
    turn(&mut lane, &mut owner);
    turn(&mut lane, &mut owner);
    assert!(owner.is_over(before));
    let tag = lane.begin_io();
    let after = owner.retire();
    for _ in 0..1000 {
        owner.retire();
        turn(&mut lane, &mut owner);
        // These come and go.
        let other = lane.begin_io();
        lane.end_io(other);
    }
    assert!(!owner.is_over(after));
    lane.end_io(tag);
    turn(&mut lane, &mut owner);
    turn(&mut lane, &mut owner);
    assert!(owner.is_over(after));
}

#[test]
fn a_parked_lane_holds_nothing_up() {
    let epochs = Epochs::new(2);
    let mut lane = LaneEpoch::new(1);
    let mut owner = OwnerEpoch::new();
    let first = owner.retire();
    owner.try_advance(&epochs);
    assert!(owner.is_over(first), "no lane was ever there");
    lane.begin_turn(&epochs);
    let second = owner.retire();
    owner.try_advance(&epochs);
    assert!(!owner.is_over(second));
    lane.park(&epochs);
    owner.try_advance(&epochs);
    assert!(owner.is_over(second));
}

#[test]
fn epochs_change_only_when_something_was_retired() {
    let epochs = Epochs::new(1);
    let mut owner = OwnerEpoch::new();
    let epoch = owner.try_advance(&epochs);
    assert_eq!(owner.try_advance(&epochs), epoch);
    owner.retire();
    assert_eq!(owner.try_advance(&epochs), epoch + 1);
    assert_eq!(owner.try_advance(&epochs), epoch + 1);
}

#[test]
#[should_panic(expected = "cannot be parked")]
fn a_lane_with_ios_in_flight_is_not_parked() {
    let epochs = Epochs::new(1);
    let mut lane = LaneEpoch::new(0);
    lane.begin_turn(&epochs);
    lane.begin_io();
    lane.park(&epochs);
}

proptest! {
    /// Lanes begin turns, begin and end I/Os, and are parked, in any order; nothing is over
    /// while an I/O is in flight that was begun before.
    #[test]
    fn nothing_is_over_while_someone_may_use_it(
        steps in prop::collection::vec((0..8u8, 0..3usize), 1..500),
    ) {
        let epochs = Epochs::new(3);
        let mut lanes: Vec<LaneEpoch> = (0..3).map(LaneEpoch::new).collect();
        // When each I/O began and each lane's turn, if it is not parked.
        let mut ios: Vec<Vec<(usize, Tag)>> = vec![Vec::new(); 3];
        let mut turns = [None; 3];
        let mut owner = OwnerEpoch::new();
        let mut retired: Vec<(usize, u64)> = Vec::new();
        for (time, (step, lane)) in steps.into_iter().enumerate() {
            match step {
                0 | 1 => {
                    lanes[lane].begin_turn(&epochs);
                    turns[lane] = Some(time);
                }
                2 if turns[lane].is_some() => {
                    ios[lane].push((turns[lane].unwrap_or(0), lanes[lane].begin_io()));
                }
                3 if !ios[lane].is_empty() => {
                    let any = time % ios[lane].len();
                    let (_, tag) = ios[lane].remove(any);
                    lanes[lane].end_io(tag);
                }
                4 if ios[lane].is_empty() => {
                    lanes[lane].park(&epochs);
                    turns[lane] = None;
                }
                5 | 6 => retired.push((time, owner.retire())),
                _ => {
                    owner.try_advance(&epochs);
                }
            }
            let users = turns.iter().flatten().chain(ios.iter().flatten().map(|(began, _)| began));
            let oldest = users.min().copied().unwrap_or(usize::MAX);
            for &(at, epoch) in &retired {
                prop_assert!(at < oldest || !owner.is_over(epoch));
            }
        }
        for lane in 0..3 {
            for (_, tag) in ios[lane].drain(..) {
                lanes[lane].end_io(tag);
            }
        }
        owner.try_advance(&epochs);
        lanes.iter_mut().for_each(|lane| lane.begin_turn(&epochs));
        owner.try_advance(&epochs);
        let over = retired.iter().all(|(_, epoch)| owner.is_over(*epoch));
        prop_assert!(over, "all is over in the end");
    }
}
