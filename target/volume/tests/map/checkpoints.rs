//! Checkpoints, and what is read from them.

use volume::map::{NodeRef, Tree};
use volume::space::Space;

use crate::world::{DEVICES, World, places};

#[test]
fn a_checkpoint_has_the_state_of_its_beginning() {
    let mut world = World::new();
    for index in [0, 600, 1 << 20] {
        world.write(0, index, 0xff, false);
    }
    world.begin_checkpoint();
    let before = places(&world.tree, world.volumes[0].root);
    world.write(0, 0, 0xff00, false);
    world.step_checkpoint(1);
    world.clear(0, 600, u16::MAX);
    world.share(0, true);
    world.write(0, 1 << 20, 0x0f0f, false);
    while world.step_checkpoint(1) {
        world.write(0, 1 << 21, 1, false);
    }
    assert_eq!(world.stored.len(), 1);
    assert_eq!(world.stored[0].1, before);
    world.check_stored();
    world.check_reopened();
}

#[test]
fn what_was_given_and_not_placed_is_given_again_after_an_abort() {
    let mut world = World::new();
    world.write(0, 0, 1, false);
    world.begin_checkpoint();
    let (first, bytes) = world.tree.next_page().expect("a leaf");
    assert!(matches!(first, NodeRef::Leaf(_)));
    assert!(world.tree.next_page().is_none() && world.tree.checkpoint_pending());
    world.abort_checkpoint();
    assert!(!world.tree.checkpoint_pending());
    world.begin_checkpoint();
    assert_eq!(world.tree.next_page(), Some((first, bytes)));
    world.abort_checkpoint();
    world.whole_checkpoint();
    world.check_stored();
}

#[test]
fn only_what_has_changed_is_written() {
    let mut world = World::new();
    for index in 0..20 {
        world.write(0, index * 512, 1, false);
    }
    world.whole_checkpoint();
    world.write(0, 512, 2, false);
    let root = world.volumes[0].root;
    world.tree.begin_checkpoint(&[root]);
    let mut written = Vec::new();
    while let Some((node, bytes)) = world.tree.next_page() {
        assert!(world.place(node, &bytes));
        written.push(node);
    }
    assert!(
        matches!(written[..], [NodeRef::Leaf(_), NodeRef::Dir(_), NodeRef::Root(_)]),
        "{written:?}"
    );
    world.tree.end_checkpoint();
    world.tree.begin_checkpoint(&[root]);
    assert_eq!(world.tree.next_page(), None, "nothing has changed");
}

#[test]
fn a_tree_that_is_not_named_is_left_to_a_later_checkpoint() {
    let mut world = World::new();
    world.write(0, 0, 1, false);
    let root = world.volumes[0].root;
    world.tree.begin_checkpoint(&[]);
    let mut written = Vec::new();
    while let Some((node, bytes)) = world.tree.next_page() {
        written.push(node);
        assert!(world.place(node, &bytes));
    }
    assert!(!written.contains(&NodeRef::Root(root)));
    world.tree.end_checkpoint();
    world.whole_checkpoint();
    world.check_stored();
}

/// A pool of a volume, its snapshot and another volume, on disk.
fn stored() -> World {
    let mut world = World::new();
    for index in [0, 1, 600] {
        world.write(0, index, 0xff, false);
    }
    world.share(0, false);
    world.write(0, 0, 1, false);
    world.create();
    world.write(2, 0, 1, false);
    world.whole_checkpoint();
    world
}

#[test]
fn what_cannot_be_read_closes_the_trees_that_need_it() {
    let world = stored();
    // The nodes of the last volume are read first, then those of the others.
    for damaged in 0..9 {
        let mut tree = Tree::new(Default::default());
        let mut space = Space::new(&DEVICES);
        let roots: Vec<_> =
            world.stored.iter().map(|(extent, _)| tree.load_root(*extent)).collect();
        let mut read = Vec::new();
        while let Some((node, extent)) = tree.next_wanted() {
            assert!(space.mark_pages(extent.page, extent.pages));
            let mut bytes = world.bytes(extent);
            if read.len() == damaged {
                bytes[100] ^= 1;
            }
            let result = tree.loaded(node, &bytes, &space);
            assert_eq!(result.is_err(), read.len() == damaged);
            read.push(node);
        }
        tree.end_load();
        let whole: Vec<bool> = roots.iter().map(|root| tree.is_whole(*root)).collect();
        let expected = match read.get(damaged) {
            Some(NodeRef::Root(lost)) => roots.iter().map(|root| root != lost).collect(),
            _ if damaged < 3 => vec![true, true, false],
            _ => whole.clone(),
        };
        assert_eq!(whole, expected, "node {damaged}");
        assert_eq!(whole.contains(&false), damaged < read.len());
    }
}

#[test]
fn a_leaf_that_both_trees_have_closes_both_when_it_is_lost() {
    let world = stored();
    let (mut tree, roots, _) = world.load(world.stored.iter().map(|(extent, _)| *extent));
    let mut shared = Vec::new();
    for number in 1..10 {
        tree.lost(NodeRef::Leaf(number));
        let whole: Vec<bool> = roots.iter().map(|root| tree.is_whole(*root)).collect();
        shared.push(whole);
        (tree, _, _) = world.load(world.stored.iter().map(|(extent, _)| *extent));
    }
    assert!(shared.contains(&vec![false, false, true]), "entry 600 is shared");
    assert!(shared.contains(&vec![true, true, true]), "there are fewer leaves than nine");
}

#[test]
fn entries_that_name_what_cannot_be_data_are_refused() {
    let world = stored();
    let small = Space::new(&[2, 0, 2]);
    let mut tree = Tree::new(Default::default());
    tree.load_root(world.stored[2].0);
    let mut results = Vec::new();
    while let Some((node, extent)) = tree.next_wanted() {
        results.push(tree.loaded(node, &world.bytes(extent), &small).map_err(|e| e.to_string()));
    }
    let [Ok(()), Ok(()), Err(why)] = &results[..] else { panic!("{results:?}") };
    assert!(why.starts_with("leaf: cluster of an entry at byte 0"), "{why}");
}

#[test]
fn a_cluster_that_turns_out_to_have_pages_loses_its_leaf() {
    let world = stored();
    let (mut tree, roots, mut space) = world.load([world.stored[2].0].into_iter());
    let (entry, _) = tree.map().entry(roots[0], 0);
    assert!(space.mark_pages(u64::from(entry.value()) * 16, 1));
    tree.recount(&[(roots[0], 1)], &mut space);
    assert!(!tree.is_whole(roots[0]));
}

#[test]
fn what_no_tree_reaches_after_reading_is_no_more() {
    let world = stored();
    let (mut tree, roots, mut space) = world.load(world.stored.iter().map(|(extent, _)| *extent));
    let unreached = tree.recount(&[(roots[2], 1)], &mut space);
    assert!(unreached.contains(&world.stored[0].0) && unreached.contains(&world.stored[1].0));
    assert_eq!(tree.check(&roots[2..], &[], &space), []);
}
