//! Random I/O, compared with what a plain list of bytes would have done.

use bdev::Op;
use nvme_spec::status::Status;
use proptest::prelude::*;

use crate::user::User;
use crate::{Backend, file, ram};

/// Blocks that are used: few, so that I/Os meet.
const BLOCKS: u32 = 64;

#[derive(Clone, Copy, Debug)]
enum Action {
    Write { value: u8, fua: bool },
    Read,
    Compare { changed: bool },
    Zero { deallocate: bool, fua: bool },
    Deallocate,
    Flush,
}

fn actions() -> impl Strategy<Value = Vec<(Action, u32, u32)>> {
    let action = prop_oneof![
        3 => (any::<u8>(), any::<bool>()).prop_map(|(value, fua)| Action::Write { value, fua }),
        2 => Just(Action::Read),
        1 => any::<bool>().prop_map(|changed| Action::Compare { changed }),
        1 => (any::<bool>(), any::<bool>())
            .prop_map(|(deallocate, fua)| Action::Zero { deallocate, fua }),
        1 => Just(Action::Deallocate),
        1 => Just(Action::Flush),
    ];
    let one = (action, 0..BLOCKS, 1..=BLOCKS)
        .prop_map(|(action, slba, count)| (action, slba, count.min(BLOCKS - slba)));
    prop::collection::vec(one, 1..40)
}

fn run(backend: &Backend, actions: &[(Action, u32, u32)]) -> Result<(), TestCaseError> {
    let geometry = backend.bdev.geometry();
    let block = geometry.block_bytes as usize;
    let mut model = vec![0_u8; BLOCKS as usize * block];
    let mut user = User::new(backend.bdev.as_ref());
    for &(action, slba, count) in actions {
        let part = &mut model[slba as usize * block..(slba + count) as usize * block];
        let data = user.data(count);
        let slba = u64::from(slba);
        let (mut expected, mut op) = (Status::SUCCESS, Op::Read);
        match action {
            Action::Write { value, fua } => {
                // Different bytes in each block, so that a shift would show.
                for (at, byte) in part.iter_mut().enumerate() {
                    *byte = value.wrapping_add((at / 512) as u8);
                }
                data.write(0, part);
                op = Op::Write { fua };
            }
            Action::Read => data.fill(0xA5),
            Action::Compare { changed } => {
                data.write(0, part);
                if changed {
                    data.write(data.len() - 1, &[!part[part.len() - 1]]);
                    expected = Status::COMPARE_FAILURE.with_dnr();
                }
                op = Op::Compare;
            }
            Action::Zero { deallocate, fua } => {
                part.fill(0);
                op = Op::WriteZeroes { deallocate, fua };
            }
            Action::Deallocate => {
                prop_assert_eq!(user.deallocate(&[(slba, count)]), Status::SUCCESS);
                if geometry.deallocate_reads_zeroes {
                    part.fill(0);
                }
            }
            Action::Flush => op = Op::Flush,
        }
        prop_assert_eq!(user.run(op, slba, count, Some(data)), expected);
        if op == Op::Read {
            let mut bytes = vec![0; part.len()];
            data.read(0, &mut bytes);
            prop_assert!(bytes == part, "{:?} of {} blocks from {}", action, count, slba);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 48,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn ram_is_a_list_of_bytes(actions in actions()) {
        run(&ram(512), &actions)?;
    }

    #[test]
    fn a_file_is_a_list_of_bytes(actions in actions(), large_blocks in any::<bool>()) {
        run(&file(if large_blocks { 4096 } else { 512 }), &actions)?;
    }
}
