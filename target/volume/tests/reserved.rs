//! Reserved volumes on a pool that others fill: no write of theirs is refused.

mod rig;

use nvme_spec::status::Status;
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use rig::Rig;
use volume::{Call, PoolInfo, Reply, VolumeError, VolumeInfo};

const MIB: u64 = 1 << 20;
const CLUSTER: u64 = 64 << 10;

fn info(rig: &mut Rig) -> PoolInfo {
    let Ok(Reply::Pool(info)) = rig.call(Call::Info) else { panic!() };
    info
}

fn volume(rig: &mut Rig, name: &str) -> VolumeInfo {
    let Ok(Reply::Volumes(volumes)) = rig.call(Call::List) else { panic!() };
    volumes.into_iter().find(|volume| volume.name == name).unwrap()
}

fn snapshot(rig: &mut Rig, volume: &str, name: &str) -> Result<Reply, VolumeError> {
    rig.call(Call::Snapshot(vec![(volume.to_owned(), name.to_owned())]))
}

fn reserve(rig: &mut Rig, name: &str, reserve: bool) -> Result<Reply, VolumeError> {
    rig.call(Call::Reserve { name: name.to_owned(), reserve })
}

/// Writes a volume from its beginning until it is refused; bytes written.
fn fill(rig: &mut Rig, channel: u32, most: u64) -> u64 {
    for byte in (0..most).step_by(CLUSTER as usize) {
        match rig.write(channel, byte, &[9; CLUSTER as usize]) {
            Status::SUCCESS => {}
            status => {
                assert_eq!(status, Status::CAPACITY_EXCEEDED);
                return byte;
            }
        }
    }
    most
}

#[test]
fn a_reserved_volume_is_written_to_its_end_on_a_pool_that_others_have_filled() {
    let mut rig = Rig::new(&[64 * MIB]);
    rig.try_create("kept", 32 * MIB, 4096, true).unwrap();
    assert_eq!(volume(&mut rig, "kept").kept_bytes, 32 * MIB + 4 * CLUSTER);
    rig.create("thin", 256 * MIB, 4096);
    let thin = rig.open("thin");
    let filled = fill(&mut rig, thin, 256 * MIB);
    assert!((20 * MIB..32 * MIB).contains(&filled), "{filled}");
    assert_eq!(info(&mut rig).available_bytes, 0);
    for again in [false, true] {
        if again {
            rig.reopen();
        }
        let (kept, thin) = (rig.open("kept"), rig.open("thin"));
        let half = 16 * MIB * u64::from(again);
        for byte in (half..half + 16 * MIB).step_by(CLUSTER as usize) {
            let status = rig.write(kept, byte, &[1; CLUSTER as usize]);
            assert_eq!(status, Status::SUCCESS, "byte {byte}, again: {again}");
        }
        let refused = rig.write(thin, 128 * MIB, &[9; 4096]);
        assert_eq!(refused, Status::CAPACITY_EXCEEDED, "again: {again}");
    }
    assert_eq!(volume(&mut rig, "kept").kept_bytes, 4 * CLUSTER, "its map's pages");
    rig.check();
}

#[test]
fn what_does_not_fit_is_refused_with_the_amount_that_is_missing() {
    let mut rig = Rig::new(&[64 * MIB]);
    rig.call(Call::Checkpoint).unwrap();
    let available = info(&mut rig).available_bytes;
    let Err(VolumeError::Space { missing }) = rig.try_create("a", 256 * MIB, 4096, true) else {
        panic!()
    };
    // Leaves of 256 MiB, and what is above them, are kept twice.
    assert_eq!(missing, 256 * MIB + 2 * (8 + 1) * CLUSTER - available);
    rig.try_create("a", 24 * MIB, 4096, true).unwrap();
    let grow = |bytes| Call::Resize { name: "a".into(), bytes, force: true };
    let refused = rig.call(grow(128 * MIB)).unwrap_err();
    assert!(matches!(refused, VolumeError::Space { .. }), "{refused}");
    rig.call(grow(32 * MIB)).unwrap();
    assert_eq!(volume(&mut rig, "a").kept_bytes, 32 * MIB + 4 * CLUSTER);
    rig.call(grow(MIB)).unwrap();
    assert_eq!(volume(&mut rig, "a").kept_bytes, MIB + 4 * CLUSTER);
    rig.call(Call::Delete("a".into())).unwrap();
    assert_eq!(info(&mut rig).kept_bytes, 0);
}

#[test]
fn a_snapshot_of_a_reserved_volume_reserves_again_or_is_refused() {
    let mut rig = Rig::new(&[64 * MIB]);
    rig.try_create("a", 16 * MIB, 4096, true).unwrap();
    let a = rig.open("a");
    assert_eq!(fill(&mut rig, a, 16 * MIB), 16 * MIB);
    snapshot(&mut rig, "a", "s1").unwrap();
    assert_eq!(volume(&mut rig, "a").kept_bytes, 16 * MIB + 4 * CLUSTER);
    assert_eq!(volume(&mut rig, "s1").kept_bytes, 0, "nobody writes to a snapshot");
    assert_eq!(fill(&mut rig, a, 16 * MIB), 16 * MIB);
    snapshot(&mut rig, "a", "s2").unwrap();
    assert_eq!(fill(&mut rig, a, 16 * MIB), 16 * MIB);
    let Err(VolumeError::Space { missing }) = snapshot(&mut rig, "a", "s3") else { panic!() };
    assert!((1..16 * MIB).contains(&missing), "{missing}");
    // What s1 alone has comes back, and is waited for.
    rig.call(Call::Delete("s1".into())).unwrap();
    snapshot(&mut rig, "a", "s3").unwrap();
    let thin = rig.try_create("thin", 64 * MIB, 4096, false).map(|_| rig.open("thin")).unwrap();
    fill(&mut rig, thin, 64 * MIB);
    assert_eq!(fill(&mut rig, a, 16 * MIB), 16 * MIB);
    rig.check();
}

#[test]
fn deleting_what_a_reserved_volume_shared_gives_back_what_was_kept() {
    let mut rig = Rig::new(&[64 * MIB]);
    rig.try_create("a", 16 * MIB, 4096, true).unwrap();
    let a = rig.open("a");
    fill(&mut rig, a, 16 * MIB);
    snapshot(&mut rig, "a", "s").unwrap();
    rig.write(a, 0, &[2; 8192]);
    assert_eq!(info(&mut rig).kept_bytes, 16 * MIB + 3 * CLUSTER);
    rig.call(Call::Delete("s".into())).unwrap();
    rig.idle(std::time::Duration::from_millis(500));
    assert_eq!(info(&mut rig).kept_bytes, 4 * CLUSTER);
    assert_eq!(rig.deallocate(a, &[(0, 4 * CLUSTER), (10 * MIB, 4096)]), Status::SUCCESS);
    assert_eq!(info(&mut rig).kept_bytes, 8 * CLUSTER, "four clusters went, and one block");
    rig.reopen();
    assert_eq!(info(&mut rig).kept_bytes, 8 * CLUSTER);
}

#[test]
fn a_volume_becomes_reserved_and_thin_again() {
    let mut rig = Rig::new(&[64 * MIB]);
    rig.create("a", 48 * MIB, 4096);
    let a = rig.open("a");
    fill(&mut rig, a, 40 * MIB);
    reserve(&mut rig, "a", true).unwrap();
    assert_eq!(volume(&mut rig, "a").kept_bytes, 8 * MIB + 2 * 3 * CLUSTER, "what it lacks");
    rig.reopen();
    assert!(volume(&mut rig, "a").reserved);
    assert_eq!(info(&mut rig).kept_bytes, 8 * MIB + 2 * 3 * CLUSTER);
    reserve(&mut rig, "a", false).unwrap();
    assert_eq!(info(&mut rig).kept_bytes, 0);
    rig.call(Call::Resize { name: "a".into(), bytes: 80 * MIB, force: false }).unwrap();
    let refused = reserve(&mut rig, "a", true).unwrap_err();
    assert!(matches!(refused, VolumeError::Space { .. }), "{refused}");
    assert_eq!(info(&mut rig).kept_bytes, 0);
}

#[test]
fn a_rollback_of_a_reserved_volume_reserves_again() {
    let mut rig = Rig::new(&[64 * MIB]);
    rig.try_create("a", 16 * MIB, 4096, true).unwrap();
    let a = rig.open("a");
    fill(&mut rig, a, 16 * MIB);
    snapshot(&mut rig, "a", "s").unwrap();
    fill(&mut rig, a, 16 * MIB);
    rig.close(a);
    let call = Call::Rollback { volume: "a".into(), snapshot: "s".into(), kept: "k".into() };
    rig.call(call.clone()).unwrap();
    assert_eq!(info(&mut rig).kept_bytes, 16 * MIB + 4 * CLUSTER);
    let a = rig.open("a");
    assert_eq!(fill(&mut rig, a, 16 * MIB), 16 * MIB);
    rig.close(a);
    let call = Call::Rollback { volume: "a".into(), snapshot: "s".into(), kept: "k2".into() };
    let refused = rig.call(call).unwrap_err();
    assert!(matches!(refused, VolumeError::Space { .. }), "{refused}");
}

/// Writes, clears, snapshots and deletions by chance, while another volume takes all that it can
/// get: what is kept is enough, and is all counted when the pool is opened again.
#[test]
fn no_sequence_of_changes_makes_a_write_to_a_reserved_volume_fail() {
    const BYTES: u64 = 4 * MIB;
    let mut random = Xoshiro256PlusPlus::seed_from_u64(7);
    let mut rig = Rig::new(&[40 * MIB]);
    rig.try_create("a", BYTES, 4096, true).unwrap();
    rig.create("thin", 64 * MIB, 4096);
    let (mut a, mut thin) = (rig.open("a"), rig.open("thin"));
    let (mut names, mut next, mut refused) = (Vec::new(), 0, 0);
    for turn in 0..6000 {
        let block = random.random_range(0..BYTES / 4096) * 4096;
        let blocks = random.random_range(1..40u64).min((BYTES - block) / 4096) * 4096;
        match random.random_range(0..40) {
            0..16 => {
                let status = rig.write(a, block, &vec![turn as u8; blocks as usize]);
                assert_eq!(status, Status::SUCCESS, "turn {turn}: {:?}", info(&mut rig));
            }
            16..24 => assert_eq!(rig.deallocate(a, &[(block, blocks)]), Status::SUCCESS),
            24..36 => {
                let byte = random.random_range(0..1024) * CLUSTER;
                rig.write(thin, byte, &[9; CLUSTER as usize]);
            }
            36 => {
                let name = format!("s{next}");
                next += 1;
                match snapshot(&mut rig, "a", &name) {
                    Ok(_) => names.push(name),
                    Err(VolumeError::Space { .. }) => refused += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            37..39 if !names.is_empty() => {
                let name = names.swap_remove(random.random_range(0..names.len()));
                rig.call(Call::Delete(name)).unwrap();
            }
            39 if turn % 8 == 0 => {
                rig.reopen();
                (a, thin) = (rig.open("a"), rig.open("thin"));
            }
            _ => {
                let byte = random.random_range(0..1024) * CLUSTER;
                rig.deallocate(thin, &[(byte, 8 * CLUSTER)]);
            }
        }
    }
    assert!(refused > 0 && next > refused, "{refused} of {next} snapshots refused");
    rig.check();
}
