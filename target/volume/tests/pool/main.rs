//! Pools on RAM devices, through the public side: what volumes, snapshots and clones promise.

mod damage;
#[path = "../rig/mod.rs"]
mod rig;

use nvme_spec::status::Status;
use rig::Rig;
use volume::{Call, GiveUp, Reply, VolumeError};

const MIB: u64 = 1 << 20;

#[test]
fn what_is_written_is_read_and_the_rest_is_zero() {
    let mut rig = Rig::new(&[64 * MIB]);
    rig.create("a", 16 * MIB, 4096);
    let a = rig.open("a");
    assert_eq!(rig.write(a, 8192, &[7; 12288]), Status::SUCCESS);
    assert_eq!(rig.read(a, 4096, 20480), [&[0; 4096][..], &[7; 12288], &[0; 4096]].concat());
    assert_eq!(rig.write(a, 12288, &[9; 4096]), Status::SUCCESS, "overwritten in place");
    assert_eq!(rig.read(a, 8192, 12288), [[7; 4096], [9; 4096], [7; 4096]].concat());
}

#[test]
fn everything_is_there_after_the_pool_is_opened_again() {
    let mut rig = Rig::new(&[64 * MIB]);
    rig.create("a", 16 * MIB, 4096);
    let a = rig.open("a");
    rig.write(a, 65536 - 4096, &[1; 8192]);
    for round in 0..3 {
        rig.reopen();
        let a = rig.open("a");
        assert_eq!(rig.read(a, 65536 - 4096, 8192), [1; 8192], "round {round}");
        assert_eq!(rig.write(a, MIB * (round + 1), &[2 + round as u8; 4096]), Status::SUCCESS);
    }
    rig.reopen();
    let a = rig.open("a");
    for round in 0..3 {
        assert_eq!(rig.read(a, MIB * (round + 1), 4096), [2 + round as u8; 4096]);
    }
}

#[test]
fn a_snapshot_keeps_what_was_and_a_clone_begins_there() {
    let mut rig = Rig::new(&[64 * MIB, 64 * MIB]);
    rig.create("a", 16 * MIB, 4096);
    let a = rig.open("a");
    rig.write(a, 0, &[1; 65536]);
    rig.snapshot("a", "s1");
    rig.write(a, 4096, &[2; 4096]);
    rig.snapshot("a", "s2");
    rig.write(a, 8192, &[3; 4096]);
    rig.call(Call::Clone { snapshot: "s1".into(), name: "c".into(), read_only: false }).unwrap();
    let c = rig.open("c");
    rig.write(c, 0, &[4; 4096]);
    for again in [false, true] {
        if again {
            rig.reopen();
        }
        let image = |first: [u8; 4]| first.map(|byte| [byte; 4096]).concat();
        let names =
            [("s1", [1, 1, 1, 1]), ("s2", [1, 2, 1, 1]), ("a", [1, 2, 3, 1]), ("c", [4, 1, 1, 1])];
        for (name, expected) in names {
            let channel = rig.open(name);
            assert_eq!(rig.read(channel, 0, 16384), image(expected), "{name}, again: {again}");
        }
    }
    let s1 = rig.open("s1");
    assert!(!rig.write(s1, 0, &[0; 4096]).is_success(), "a snapshot takes no writes");
}

#[test]
fn volumes_and_snapshots_are_deleted_in_any_order_and_all_space_comes_back() {
    let mut rig = Rig::new(&[64 * MIB]);
    let free = rig.free();
    for reverse in [false, true] {
        rig.create("a", 16 * MIB, 4096);
        let a = rig.open("a");
        rig.write(a, 0, &[1; 3 << 20]);
        rig.snapshot("a", "s1");
        rig.write(a, MIB, &[2; 1 << 20]);
        rig.snapshot("a", "s2");
        rig.call(Call::Clone { snapshot: "s1".into(), name: "c".into(), read_only: false })
            .unwrap();
        let c = rig.open("c");
        rig.write(c, 4096, &[3; 4096]);
        let busy = rig.call(Call::Delete("a".into())).unwrap_err();
        assert_eq!(busy, VolumeError::InUse { name: "a".into() });
        rig.close(a);
        rig.close(c);
        let mut names = ["s1", "a", "s2", "c"];
        if reverse {
            names.reverse();
        }
        for (index, name) in names.iter().enumerate() {
            rig.call(Call::Delete((*name).into())).unwrap();
            if !reverse && index == 2 {
                let c = rig.open("c");
                assert_eq!(rig.read(c, 0, 12288), [[1; 4096], [3; 4096], [1; 4096]].concat());
                rig.close(c);
            }
        }
        rig.call(Call::Checkpoint).unwrap();
        rig.call(Call::Checkpoint).unwrap();
        rig.idle(std::time::Duration::from_millis(300));
        rig.call(Call::Checkpoint).unwrap();
        rig.call(Call::Checkpoint).unwrap();
        let now = rig.free();
        assert!(free - now <= 2 * 65536, "{free} free before, {now} after");
    }
}

#[test]
fn blocks_smaller_than_the_unit_of_mapping_keep_their_neighbours() {
    let mut rig = Rig::with_blocks(&[64 * MIB], 512);
    rig.create("a", 16 * MIB, 512);
    let a = rig.open("a");
    rig.write(a, 0, &[1; 4096]);
    rig.snapshot("a", "s");
    assert_eq!(rig.write(a, 512, &[2; 1024]), Status::SUCCESS);
    assert_eq!(rig.write(a, 8192 + 512, &[3; 512]), Status::SUCCESS);
    let expected = [&[1; 512][..], &[2; 1024], &[1; 2560]].concat();
    assert_eq!(rig.read(a, 0, 4096), expected);
    assert_eq!(rig.read(a, 8192, 1536), [[0; 512], [3; 512], [0; 512]].concat());
    let s = rig.open("s");
    assert_eq!(rig.read(s, 0, 4096), [1; 4096]);
}

#[test]
fn deallocated_blocks_read_as_zeroes_and_are_free_in_clones_too() {
    let mut rig = Rig::with_blocks(&[64 * MIB], 512);
    rig.create("a", 16 * MIB, 512);
    let a = rig.open("a");
    rig.write(a, 0, &[1; 1 << 20]);
    rig.snapshot("a", "s");
    rig.call(Call::Clone { snapshot: "s".into(), name: "c".into(), read_only: false }).unwrap();
    let c = rig.open("c");
    assert_eq!(rig.write_zeroes(c, 512, 1 << 19), Status::SUCCESS);
    let expected = [&[1; 512][..], &[0; 1 << 19], &[1; 512]].concat();
    assert_eq!(rig.read(c, 0, (1 << 19) + 1024), expected);
    assert_eq!(rig.read(a, 0, 1 << 20), [1; 1 << 20]);
    assert_eq!(rig.deallocate(a, &[(0, 4096), (8192 + 512, 8192)]), Status::SUCCESS);
    let expected = [&[0; 4096][..], &[1; 4608], &[0; 8192], &[1; 512]].concat();
    assert_eq!(rig.read(a, 0, 4096 + 4608 + 8192 + 512), expected);
}

#[test]
fn a_full_pool_says_so_and_deleting_makes_room() {
    let mut rig = Rig::new(&[8 * MIB]);
    rig.create("a", 64 * MIB, 4096);
    let a = rig.open("a");
    let mut written = 0;
    let status = loop {
        match rig.write(a, written, &[5; 65536]) {
            Status::SUCCESS => written += 65536,
            status => break status,
        }
    };
    assert_eq!(status, Status::CAPACITY_EXCEEDED);
    assert!(written > 4 * MIB, "{written} bytes only");
    assert_eq!(rig.write(a, 0, &[6; 65536]), Status::SUCCESS, "an overwrite needs no space");
    assert_eq!(rig.read(a, written - 65536, 65536), [5; 65536]);
    assert_eq!(rig.deallocate(a, &[(0, 1 << 20)]), Status::SUCCESS);
    assert_eq!(rig.write(a, written, &[7; 65536]), Status::SUCCESS);
    assert_eq!(rig.read(a, written, 65536), [7; 65536]);
}

#[test]
fn pages_of_what_was_deleted_are_used_before_a_write_is_refused() {
    let mut rig = Rig::new(&[64 * MIB]);
    rig.create("a", 128 * MIB, 4096);
    let a = rig.open("a");
    let names: Vec<String> = (0..24).map(|number| format!("v{number}")).collect();
    for name in &names {
        rig.create(name, MIB, 4096);
        let channel = rig.open(name);
        rig.write(channel, 0, &[1; 4096]);
        rig.close(channel);
    }
    let mut next = 0;
    let mut fill = |rig: &mut Rig| {
        let begin = next;
        while rig.write(a, next, &[5; 65536]).is_success() {
            next += 65536;
        }
        (next - begin) / 65536
    };
    fill(&mut rig);
    // The journal is empty then, so that no other checkpoint is due.
    rig.call(Call::Checkpoint).unwrap();
    fill(&mut rig);
    names.iter().for_each(|name| drop(rig.call(Call::Delete(name.clone())).unwrap()));
    let more = fill(&mut rig);
    // Each had a cluster, and ten pages.
    assert!(more >= 24 + 8, "{more} clusters");
    rig.check();
}

#[test]
fn a_full_pool_gives_up_no_more_than_the_rest_of_a_block_that_is_deallocated() {
    let mut rig = Rig::with_blocks(&[8 * MIB], 512);
    rig.create("a", 64 * MIB, 512);
    let a = rig.open("a");
    let mut end = 0;
    while rig.write(a, end, &[5; 65536]).is_success() {
        end += 65536;
    }
    assert_eq!(rig.deallocate(a, &[(512, 4096)]), Status::SUCCESS, "own blocks take no space");
    assert_eq!(rig.read(a, 0, 8192), [&[5; 512][..], &[0; 4096], &[5; 3584]].concat());
    rig.snapshot("a", "s");
    assert_eq!(rig.write(a, 65536, &[6; 512]), Status::CAPACITY_EXCEEDED);
    assert_eq!(rig.deallocate(a, &[(65536 + 512, 8192)]), Status::SUCCESS);
    let middle = rig.read(a, 65536, 12288);
    assert_eq!(middle, [&[5; 4096][..], &[0; 4096], &[5; 4096]].concat(), "edges are as they were");
    assert_eq!(rig.write_zeroes(a, 2 * 65536 + 512, 8192), Status::CAPACITY_EXCEEDED);
    let s = rig.open("s");
    assert_eq!(rig.read(s, 65536, 12288), [5; 12288]);
}

#[test]
fn an_io_that_the_journal_has_no_room_for_is_refused() {
    let mut rig = Rig::with_blocks(&[64 * MIB], 512);
    rig.create("a", 32 * MIB, 512);
    let a = rig.open("a");
    // As many records as there can be: nothing is whole but clusters.
    for round in 0..8 {
        assert_eq!(rig.write_bytes(a, 512, 4 * MIB), Status::SUCCESS, "round {round}");
        rig.snapshot("a", &format!("s{round}"));
    }
    let refused = Status::INVALID_FIELD.with_dnr();
    assert_eq!(rig.write_bytes(a, 0, 4 * MIB + 512), refused);
    assert_eq!(rig.write_bytes(a, 0, 1 << 40), refused, "lengths in bytes have 32 bits");
    assert_eq!(rig.write_zeroes(a, 0, 32 * MIB), Status::SUCCESS, "one record");
    rig.reopen();
}

#[test]
fn a_rollback_goes_back_and_keeps_what_was() {
    let mut rig = Rig::new(&[64 * MIB]);
    rig.create("a", 16 * MIB, 4096);
    let a = rig.open("a");
    rig.write(a, 0, &[1; 8192]);
    rig.snapshot("a", "s");
    rig.write(a, 0, &[2; 8192]);
    rig.close(a);
    let call = Call::Rollback { volume: "a".into(), snapshot: "s".into(), kept: "k".into() };
    rig.call(call).unwrap();
    for again in [false, true] {
        if again {
            rig.reopen();
        }
        let (a, k) = (rig.open("a"), rig.open("k"));
        assert_eq!(rig.read(a, 0, 8192), [1; 8192]);
        assert_eq!(rig.read(k, 0, 8192), [2; 8192]);
    }
}

#[test]
fn a_volume_that_shrank_and_grew_has_zeroes_there() {
    let mut rig = Rig::new(&[64 * MIB]);
    rig.create("a", 2 * MIB, 4096);
    let a = rig.open("a");
    rig.write(a, MIB, &[1; 65536]);
    let call = |bytes, force| Call::Resize { name: "a".into(), bytes, force };
    let refused = rig.call(call(MIB, false)).unwrap_err();
    assert_eq!(refused, VolumeError::Written { name: "a".into(), bytes: MIB });
    rig.call(call(MIB, true)).unwrap();
    assert_eq!(rig.write(a, MIB, &[1; 4096]), Status::LBA_OUT_OF_RANGE.with_dnr());
    rig.call(call(4 * MIB, false)).unwrap();
    assert_eq!(rig.read(a, MIB, 65536), [0; 65536]);
    rig.reopen();
    let Ok(Reply::Volumes(volumes)) = rig.call(Call::List) else { panic!() };
    assert_eq!(volumes[0].bytes, 4 * MIB);
}

#[test]
fn a_group_of_snapshots_is_of_one_instant() {
    let mut rig = Rig::new(&[64 * MIB]);
    let volumes: Vec<u32> = ["a", "b"]
        .map(|name| {
            rig.create(name, 4 * MIB, 4096);
            rig.open(name)
        })
        .to_vec();
    volumes.iter().for_each(|channel| {
        rig.write(*channel, 0, &[1; 4096]);
    });
    let members = vec![("a".into(), "a.s".into()), ("b".into(), "b.s".into())];
    let Ok(Reply::Volumes(made)) = rig.call(Call::Snapshot(members)) else { panic!() };
    assert_eq!(made.len(), 2);
    assert!(made[0].group.is_some() && made[0].group == made[1].group);
}

#[test]
fn a_diff_names_what_was_written_between_two_snapshots() {
    let mut rig = Rig::new(&[64 * MIB]);
    rig.create("a", 16 * MIB, 4096);
    let a = rig.open("a");
    rig.write(a, 0, &[1; 1 << 20]);
    rig.snapshot("a", "s1");
    rig.write(a, 8192, &[2; 8192]);
    rig.write(a, 2 * MIB, &[2; 4096]);
    rig.snapshot("a", "s2");
    rig.write(a, 0, &[3; 4096]);
    let diff = |from: Option<&str>| Call::Diff {
        from: from.map(str::to_owned),
        to: "s2".into(),
        start: 0,
    };
    let Ok(Reply::Extents(extents, None)) = rig.call(diff(Some("s1"))) else { panic!() };
    assert_eq!(extents, [(8192, 8192), (2 * MIB, 4096)]);
    let Ok(Reply::Extents(extents, None)) = rig.call(diff(None)) else { panic!() };
    assert_eq!(extents, [(0, MIB), (2 * MIB, 4096)]);
}

#[test]
fn a_promoted_clone_has_the_snapshots_that_both_come_from() {
    let mut rig = Rig::new(&[64 * MIB]);
    rig.create("a", MIB, 4096);
    ["s1", "s2", "s3"].iter().for_each(|name| rig.snapshot("a", name));
    rig.call(Call::Clone { snapshot: "s2".into(), name: "c".into(), read_only: false }).unwrap();
    rig.call(Call::Promote("c".into())).unwrap();
    rig.reopen();
    let Ok(Reply::Volumes(volumes)) = rig.call(Call::List) else { panic!() };
    let line = |name| volumes.iter().find(|v| v.name == name).unwrap().line.clone();
    assert_eq!(
        ["s1", "s2", "s3"].map(line),
        [Some("c".into()), Some("c".into()), Some("a".into())]
    );
    rig.call(Call::Delete("a".into())).unwrap();
}

#[test]
fn a_wrong_byte_in_any_page_closes_what_it_is_of_and_nothing_else() {
    let mut rig = Rig::new(&[4 * MIB]);
    for (name, byte) in [("a", 1), ("b", 2)] {
        rig.create(name, MIB, 4096);
        let channel = rig.open(name);
        rig.write(channel, 0, &[byte; 8192]);
        rig.close(channel);
    }
    rig.call(Call::Checkpoint).unwrap();
    let image = rig.image();
    let (mut closed, mut refused) = (0, 0);
    for page in (0..image.len() / 4096).filter(|page| image[page * 4096..][..4096] != [0; 4096]) {
        let data = [1, 2].iter().any(|byte| image[page * 4096..][..4096] == [*byte; 4096]);
        let mut wrong = image.clone();
        wrong[page * 4096 + 77] ^= 4;
        if data {
            continue; // data at rest has no checksum yet
        }
        if !rig.open_image(&wrong, GiveUp::Wrong) {
            refused += 1;
            continue;
        }
        let Ok(Reply::Pool(info)) = rig.call(Call::Info) else { panic!() };
        let damaged: Vec<&str> = info.damaged.iter().map(|(name, _)| name.as_str()).collect();
        closed += damaged.len();
        for (name, byte) in [("a", 1), ("b", 2)] {
            match damaged.contains(&name) {
                true => assert!(rig.call(Call::Open(name.into())).is_err()),
                false => {
                    let channel = rig.open(name);
                    assert_eq!(rig.read(channel, 0, 8192), [byte; 8192], "{name}, page {page}");
                }
            }
        }
    }
    assert!(closed >= 6 && refused == 0, "{closed} closed, {refused} pools refused");
}

#[test]
fn a_pool_full_of_lone_blocks_has_room_for_their_maps() {
    let mut rig = Rig::new(&[64 * MIB]);
    rig.create("a", 1 << 40, 4096);
    let a = rig.open("a");
    let mut written = 0;
    // Each in a leaf of its own.
    loop {
        let taken = rig.write_blocks(a, (written..written + 32).map(|leaf| leaf * 32 * MIB));
        written += taken as u64;
        if taken < 32 {
            break;
        }
    }
    assert!(written > 500, "{written}");
    rig.call(Call::Checkpoint).unwrap();
    assert_eq!(rig.deallocate(a, &[(0, 64 * MIB)]), Status::SUCCESS);
    rig.reopen();
    let a = rig.open("a");
    assert_eq!(rig.write(a, 0, &[6; 4096]), Status::SUCCESS);
    assert_eq!(rig.read(a, 0, 4096), [6; 4096]);
}
