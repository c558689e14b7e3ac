//! The corpora of the fuzz targets, and random inputs, as ordinary tests.

use std::path::Path;

use proptest::prelude::*;

fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut inputs = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        run(&std::fs::read(&path).unwrap());
        inputs += 1;
    }
    assert!(inputs > 0, "{} is empty", folder.display());
}

#[test]
fn corpus_of_admin() {
    replay("admin", fuzz_replay::admin);
}

#[test]
fn corpus_of_capsule() {
    replay("capsule", fuzz_replay::capsule);
}

#[test]
fn corpus_of_pool_image() {
    replay("pool_image", fuzz_replay::pool_image);
}

#[test]
fn corpus_of_private_data() {
    replay("private_data", fuzz_replay::private_data);
}

#[test]
fn corpus_of_sgl() {
    replay("sgl", fuzz_replay::sgl);
}

#[test]
fn corpus_of_tcp_host() {
    replay("tcp_host", fuzz_replay::tcp_host);
}

#[test]
fn corpus_of_tcp_target() {
    replay("tcp_target", fuzz_replay::tcp_target);
}

#[test]
fn corpus_of_tcp_target_engine() {
    replay("tcp_target_engine", fuzz_replay::tcp_target_engine);
}

#[test]
fn corpus_of_catalog() {
    replay("catalog", fuzz_replay::catalog);
}

#[test]
fn corpus_of_journal_block() {
    replay("journal_block", fuzz_replay::journal_block);
}

#[test]
fn corpus_of_leaf() {
    replay("leaf", fuzz_replay::leaf);
}

#[test]
fn corpus_of_superblock() {
    replay("superblock", fuzz_replay::superblock);
}

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..most)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_commands_for_the_control_half(bytes in bytes(2000)) {
        fuzz_replay::admin(&bytes);
    }

    #[test]
    fn any_capsules_and_events(bytes in bytes(4000)) {
        fuzz_replay::capsule(&bytes);
    }

    #[test]
    fn any_pool_image(bytes in bytes(200)) {
        fuzz_replay::pool_image(&bytes);
    }

    #[test]
    fn any_private_data(bytes in bytes(64)) {
        fuzz_replay::private_data(&bytes);
    }

    #[test]
    fn any_sgl(bytes in bytes(2000)) {
        fuzz_replay::sgl(&bytes);
    }

    #[test]
    fn any_controller_of_a_tcp_host(bytes in bytes(2000)) {
        fuzz_replay::tcp_host(&bytes);
    }

    #[test]
    fn any_hosts_of_a_tcp_target_engine(bytes in bytes(2000)) {
        fuzz_replay::tcp_target_engine(&bytes);
    }

    #[test]
    fn any_host_of_a_tcp_target(bytes in bytes(2000)) {
        fuzz_replay::tcp_target(&bytes);
    }

    #[test]
    fn any_superblock(bytes in bytes(1000)) {
        fuzz_replay::superblock(&bytes);
    }

    #[test]
    fn any_journal_block(bytes in bytes(4096)) {
        fuzz_replay::journal_block(&bytes);
    }

    #[test]
    fn any_leaf(bytes in bytes(8192)) {
        fuzz_replay::leaf(&bytes);
    }

    #[test]
    fn any_catalog(bytes in bytes(2000)) {
        fuzz_replay::catalog(&bytes);
    }
}
