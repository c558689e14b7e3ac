//! Pools and volumes on the control thread, with real cores and the real engine over memory and
//! files; no host.

use std::path::Path;
use std::time::Duration;

use api::results::{ExportInfo, ExportState, PoolInfo, PoolState, VolumeInfo};
use api::{Call, ErrorCode, RpcError};
use nvme_spec::command::Sqe;
use nvme_spec::identify::cns;
use nvme_spec::opcode;
use nvme_spec::sgl::SglDescriptor;
use nvmf::engine::EngineConfig;
use nvmf::{QueueInfo, QueueKey, TargetConfig};
use reactor::IdlePolicy;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use zerocopy::IntoBytes;

use super::tests::{ALICE, NQN, connect, enable};
use super::*;
use crate::core::Core;

const LIMIT: Duration = Duration::from_secs(20);

struct World {
    control: Control,
}

impl World {
    /// A daemon with two cores and the state of `directory`, restored.
    async fn start(directory: &Path) -> Self {
        let arena = Arena::plain_pages(48 << 20).unwrap();
        let cpu = core_affinity::get_core_ids().unwrap()[0].id;
        let idle =
            IdlePolicy { yield_turns: 0, nap: Duration::from_micros(200), ..IdlePolicy::SPIN };
        let ring = ControlRing::new(256, nix::sys::eventfd::EventFd::new().unwrap());
        let core = |core| {
            let pool = || dma::Pool::new(arena, 4 << 20, 1 << 20).unwrap();
            let config = EngineConfig { requests: 8, max_transfer_bytes: 4096, queue_share: 1 };
            let worker = Core::new(core, config, pool(), pool(), Arc::clone(&ring)).unwrap();
            Reactor::spawn("real", cpu, 64, idle, move || worker).unwrap()
        };
        let state_file = StateFile::new(directory);
        let parts = Parts {
            target: Target::new(TargetConfig::default()),
            cores: (0..2).map(core).collect(),
            ring,
            rdma: None,
            tcp: Tcp::new().unwrap(),
            state: state_file.load().unwrap(),
            state_file,
            arena,
            log: reload::Layer::new(EnvFilter::new("info")).1,
        };
        let mut control = Control::new(parts);
        control.restore_bdevs();
        control.restore_pools().await;
        control.restore_exports();
        control.settle().await.unwrap();
        Self { control }
    }

    fn begin(&mut self, method: &str, params: Value) -> oneshot::Receiver<Result<Value, RpcError>> {
        let line = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let call: Call = api::Request::parse(line.to_string().as_bytes()).unwrap().call;
        let (reply, answer) = oneshot::channel();
        self.control.handle_call(Asked { call, reply });
        answer
    }

    async fn ask(&mut self, method: &str, params: Value) -> Result<Value, RpcError> {
        let mut answer = self.begin(method, params);
        let mut answered = None;
        let limit = Instant::now() + LIMIT;
        let came = |_: &mut Control| {
            answered = answered.take().or_else(|| answer.try_recv().ok());
            answered.is_some()
        };
        assert!(self.control.wait_until(limit, came).await, "{method} is not answered");
        answered.unwrap()
    }

    async fn refusal(&mut self, method: &str, params: Value) -> RpcError {
        self.ask(method, params).await.expect_err("a refusal")
    }

    async fn make(&mut self, kind: &str, name: &str, path: Option<&Path>) {
        let mut params = json!({"kind": kind, "name": name, "size_bytes": 16 << 20});
        if let Some(path) = path {
            params["path"] = json!(path);
        }
        // A file is locked until whoever had it before, in this very process, has let it go.
        for _ in 0..200 {
            match self.ask("bdev.create", params.clone()).await {
                Err(error) if error.code == ErrorCode::InUse => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                made => return assert!(made.is_ok(), "{made:?}"),
            }
        }
        panic!("{name} stays in use");
    }

    /// A pool in memory, with a volume.
    async fn with_volume(directory: &Path) -> Self {
        let mut world = Self::start(directory).await;
        world.make("ram", "r", None).await;
        world.ask("pool.create", json!({"name": "tank", "bdevs": ["r"]})).await.unwrap();
        let params = json!({"volume": "tank/a", "size_bytes": 1 << 30});
        world.ask("volume.create", params).await.unwrap();
        world
    }

    async fn export(&mut self, bdev: &str) -> ExportInfo {
        let params = json!({"bdev": bdev, "nqn": NQN, "any_host": true});
        serde_json::from_value(self.ask("export.add", params).await.unwrap()).unwrap()
    }

    async fn volumes(&mut self) -> Vec<VolumeInfo> {
        serde_json::from_value(self.ask("volume.list", json!({})).await.unwrap()).unwrap()
    }

    async fn names(&mut self) -> Vec<String> {
        self.volumes().await.into_iter().map(|info| info.name).collect()
    }

    async fn pool(&mut self) -> PoolInfo {
        let shown = self.ask("pool.show", json!({"name": "tank"})).await.unwrap();
        serde_json::from_value(shown).unwrap()
    }

    fn namespace(&self) -> nvmf::Namespace {
        let subsystem = self.control.target.subsystem(NQN).unwrap();
        subsystem.namespaces().next().unwrap().clone()
    }

    async fn end(mut self) {
        self.control.end_exports().await;
        self.control.end_pools().await;
        assert!(self.control.pools.open.is_empty());
    }
}

async fn until(world: &mut World, is_so: impl FnMut(&mut Control) -> bool) {
    assert!(world.control.wait_until(Instant::now() + LIMIT, is_so).await);
}

#[tokio::test]
async fn a_pool_comes_and_goes_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::start(directory.path()).await;
    let memory = world.control.arena.bytes_left();
    world.make("ram", "r", None).await;
    world.make("ram", "s", None).await;
    for round in 0..3 {
        let params = json!({"name": "tank", "bdevs": ["r", "s"], "force": round > 0});
        let info = world.ask("pool.create", params).await.unwrap();
        assert_eq!((info["state"].as_str(), info["volumes"].as_u64()), (Some("open"), Some(0)));
        assert_eq!(world.control.bdevs.holder("r"), Some("pool tank"));
        let error = world.refusal("pool.create", json!({"name": "tank", "bdevs": ["r"]})).await;
        assert_eq!(error.code, ErrorCode::Exists);
        let error = world.refusal("pool.create", json!({"name": "b", "bdevs": ["r"]})).await;
        assert_eq!(error.code, ErrorCode::InUse);
        world.ask("pool.export", json!({"name": "tank"})).await.unwrap();
        assert_eq!(world.control.bdevs.holder("r"), None);
        assert_eq!(world.control.arena.bytes_left(), memory);
        assert_eq!(world.control.state_file.load().unwrap().pools, []);
    }
    let error = world.refusal("pool.create", json!({"name": "b", "bdevs": ["r"]})).await;
    assert_eq!(error.code, ErrorCode::NeedsForce, "{error:?}");
    assert!(error.message.contains("tank"), "{error:?}");
    let found = world.ask("pool.scan", json!({})).await.unwrap();
    assert_eq!((&found[0]["name"], &found[0]["bdevs"]), (&json!("tank"), &json!(["r", "s"])));
    let error = world.refusal("pool.import", json!({"name": "other"})).await;
    assert_eq!(error.code, ErrorCode::NotFound);
    world.ask("bdev.delete", json!({"name": "s"})).await.unwrap();
    let error = world.refusal("pool.import", json!({"name": "tank"})).await;
    assert!(error.message.contains("2 block devices, of which 1"), "{error:?}");
    assert_eq!(world.control.arena.bytes_left(), memory);
}

#[tokio::test]
async fn a_pool_is_found_again_by_its_labels() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::with_volume(directory.path()).await;
    world.ask("pool.export", json!({"name": "tank"})).await.unwrap();
    assert_eq!(world.names().await, [""; 0]);
    let info = world.ask("pool.import", json!({"name": "tank"})).await.unwrap();
    assert_eq!(info["volumes"], 1);
    assert_eq!(world.names().await, ["tank/a"]);
    let error = world.refusal("pool.import", json!({"name": "tank"})).await;
    assert_eq!(error.code, ErrorCode::Exists);
}

#[tokio::test]
async fn an_exported_pool_says_that_it_was_closed_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("f");
    let mut world = World::start(directory.path()).await;
    world.make("file", "f", Some(&file)).await;
    world.ask("pool.create", json!({"name": "tank", "bdevs": ["f"]})).await.unwrap();
    world.ask("pool.export", json!({"name": "tank"})).await.unwrap();
    let found = world.ask("pool.scan", json!({})).await.unwrap();
    assert_eq!((&found[0]["name"], &found[0]["exported"]), (&json!("tank"), &json!(true)));
    world.ask("pool.import", json!({"name": "tank"})).await.unwrap();
    // A daemon that ends has its pools back when it starts.
    world.control.end_pools().await;
    let found = world.ask("pool.scan", json!({})).await.unwrap();
    assert_eq!((&found[0]["name"], &found[0]["exported"]), (&json!("tank"), &json!(false)));
    world.end().await;
}

#[tokio::test]
async fn a_pool_is_destroyed_if_that_is_meant_and_its_devices_are_free() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::with_volume(directory.path()).await;
    let memory = world.control.arena.bytes_left();
    world.export("tank/a").await;
    let destroy = json!({"name": "tank", "force": true});
    let error = world.refusal("pool.destroy", destroy.clone()).await;
    assert_eq!(error.code, ErrorCode::InUse, "{error:?}");
    world.ask("export.remove", json!({"nqn": NQN})).await.unwrap();
    let error = world.refusal("pool.destroy", json!({"name": "tank"})).await;
    assert_eq!(error.code, ErrorCode::NeedsForce, "{error:?}");
    world.ask("pool.destroy", destroy.clone()).await.unwrap();
    assert_eq!(world.control.bdevs.holder("r"), None);
    assert!(world.control.arena.bytes_left() > memory);
    assert_eq!(world.ask("pool.scan", json!({})).await.unwrap(), json!([]));
    let error = world.refusal("pool.destroy", destroy).await;
    assert_eq!(error.code, ErrorCode::NotFound, "{error:?}");
    world.ask("pool.create", json!({"name": "other", "bdevs": ["r"]})).await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn block_devices_come_to_an_open_pool_and_go() {
    let directory = tempfile::tempdir().unwrap();
    let files = ["f", "g", "h"].map(|name| directory.path().join(name));
    let mut world = World::start(directory.path()).await;
    for (name, file) in ["f", "g", "h"].iter().zip(&files) {
        world.make("file", name, Some(file)).await;
    }
    world.make("ram", "other", None).await;
    world.ask("pool.create", json!({"name": "elsewhere", "bdevs": ["other"]})).await.unwrap();
    world.ask("pool.create", json!({"name": "tank", "bdevs": ["f"]})).await.unwrap();
    world.ask("volume.create", json!({"volume": "tank/a", "size_bytes": 1 << 30})).await.unwrap();
    world.export("tank/a").await;
    let memory = world.control.arena.bytes_left();
    let error = world.refusal("pool.add", json!({"name": "tank", "bdevs": ["other"]})).await;
    assert_eq!(error.code, ErrorCode::InUse, "{error:?}");
    let size = world.pool().await.size_bytes;
    world.ask("pool.add", json!({"name": "tank", "bdevs": ["g", "h"]})).await.unwrap();
    let info = world.pool().await;
    assert_eq!(
        (info.size_bytes, &info.bdevs[..]),
        (3 * size, &["f", "g", "h"].map(String::from)[..])
    );
    assert_eq!(
        info.devices.iter().map(|one| one.journal).collect::<Vec<_>>(),
        [true, false, false]
    );
    assert_eq!(world.control.bdevs.holder("h"), Some("pool tank"));
    assert_eq!(world.control.state_file.load().unwrap().pools[1].bdevs, ["f", "g", "h"]);
    world.ask("pool.grow", json!({"name": "tank"})).await.unwrap();
    let error = world.refusal("pool.remove", json!({"name": "tank", "bdev": "other"})).await;
    assert!(error.message.contains("no such device"), "{error:?}");
    world.ask("pool.remove", json!({"name": "tank", "bdev": "f"})).await.unwrap();
    until(&mut world, |control| control.bdevs.holder("f").is_none()).await;
    let info = world.pool().await;
    assert_eq!((info.bdevs.len(), info.removal, info.warnings.len()), (2, None, 0));
    assert_eq!(world.control.arena.bytes_left(), memory, "jobs give their memory back");
    // It bears no label any more.
    world.ask("pool.create", json!({"name": "third", "bdevs": ["f"]})).await.unwrap();
    world.end().await;
    let mut world = World::start(directory.path()).await;
    assert_eq!(world.pool().await.bdevs, ["g", "h"]);
    assert_eq!(world.names().await, ["tank/a"]);
    world.end().await;
}

#[tokio::test]
async fn a_removal_is_refused_for_want_of_room_and_says_so_when_it_is_cancelled() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::with_volume(directory.path()).await;
    let remove = json!({"name": "tank", "bdev": "r"});
    let error = world.refusal("pool.remove", remove.clone()).await;
    assert!(error.message.contains("the only one"), "{error:?}");
    world.make("ram", "s", None).await;
    world.ask("pool.add", json!({"name": "tank", "bdevs": ["s"]})).await.unwrap();
    // Both are asked before the owner has had a turn in between.
    let begun = world.begin("pool.remove", remove.clone());
    let cancel = json!({"name": "tank", "bdev": "r", "cancel": true});
    let cancelled = world.ask("pool.remove", cancel.clone()).await;
    assert!(begun.await.unwrap().is_ok());
    let removed = |control: &mut Control| control.pools.open["tank"].removing.is_none();
    until(&mut world, removed).await;
    let info = world.pool().await;
    match cancelled {
        Ok(_) => assert!(info.warnings[0].contains("cancelled"), "{info:?}"),
        Err(_) => assert_eq!(info.bdevs, ["s"]),
    }
    let error = world.refusal("pool.remove", cancel).await;
    assert!(error.message.contains("not being removed"), "{error:?}");
    world.end().await;
}

#[tokio::test]
async fn a_volume_is_reserved_and_what_does_not_fit_is_refused_with_the_amount() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::with_volume(directory.path()).await;
    let create =
        |name: &str, bytes: u64| json!({"volume": name, "size_bytes": bytes, "reserve": true});
    let info = world.ask("volume.create", create("tank/r", 1 << 20)).await.unwrap();
    assert_eq!((&info["reserved"], &info["kept_bytes"]), (&json!(true), &json!(20 << 16)));
    let pool = world.ask("pool.show", json!({"name": "tank"})).await.unwrap();
    assert_eq!(pool["kept_bytes"], json!(20 << 16));
    let error = world.refusal("volume.create", create("tank/s", 1 << 40)).await;
    assert_eq!(error.code, ErrorCode::Limit);
    assert!(error.message.contains("bytes are missing"), "{error}");
    let change = json!({"volume": "tank/r", "reserve": false});
    let info = world.ask("volume.reserve", change).await.unwrap();
    assert_eq!((&info["reserved"], &info["kept_bytes"]), (&json!(false), &json!(0)));
}

/// Changes a byte of each page of a file that says `text`; how many there were.
fn spoil(path: &Path, text: &str) -> usize {
    let mut bytes = std::fs::read(path).unwrap();
    let says = |page: &&mut [u8]| page.windows(text.len()).any(|part| part == text.as_bytes());
    let pages: Vec<&mut [u8]> = bytes.chunks_mut(4096).filter(says).collect();
    let count = pages.len();
    pages.into_iter().for_each(|page| page[40] ^= 1);
    std::fs::write(path, bytes).unwrap();
    count
}

#[tokio::test]
async fn a_pool_that_is_not_open_is_checked_and_a_damaged_volume_stays_closed_and_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::start(directory.path()).await;
    let file = directory.path().join("disk");
    world.make("file", "f", Some(&file)).await;
    world.ask("pool.create", json!({"name": "tank", "bdevs": ["f"]})).await.unwrap();
    for name in ["tank/a", "tank/b"] {
        let params = json!({"volume": name, "size_bytes": 1 << 20, "description": name});
        world.ask("volume.create", params).await.unwrap();
    }
    let (named, check) = (json!({"name": "tank"}), json!({"name": "tank", "repair": true}));
    assert_eq!(world.refusal("pool.check", check.clone()).await.code, ErrorCode::InUse);
    world.ask("pool.export", named.clone()).await.unwrap();
    let report = world.ask("pool.check", check.clone()).await.unwrap();
    assert_eq!((&report["faults"], &report["open"]), (&json!([]), &json!(false)));
    world.ask("bdev.delete", json!({"name": "f"})).await.unwrap();
    // One of the two copies of the catalog.
    let mut bytes = std::fs::read(&file).unwrap();
    let labels = [0, 4096, 32768, 36864].map(|at| &bytes[at..at + 4096]);
    let labels = labels.map(|label| volume::format::Superblock::decode(label).unwrap());
    let newest = labels.into_iter().max_by_key(|label| label.generation).unwrap();
    bytes[newest.catalog[0].page as usize * 4096 + 20] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    world.make("file", "f", Some(&file)).await;
    let report = world.ask("pool.check", named.clone()).await.unwrap();
    assert_eq!(
        (&report["faults"][0]["repairable"], &report["repaired"]),
        (&json!(true), &json!(false))
    );
    let report = world.ask("pool.check", check.clone()).await.unwrap();
    assert_eq!(report["repaired"], json!(true));
    let report = world.ask("pool.check", named.clone()).await.unwrap();
    assert_eq!((&report["faults"], &report["notes"]), (&json!([]), &json!([])));
    world.ask("bdev.delete", json!({"name": "f"})).await.unwrap();
    assert!(spoil(&file, "\"description\":\"tank/b\"") > 0);
    world.make("file", "f", Some(&file)).await;
    let report = world.ask("pool.check", named.clone()).await.unwrap();
    assert_eq!(report["faults"][0]["volumes"], json!(["tank/b"]), "{report}");
    assert_eq!(world.refusal("pool.check", check).await.code, ErrorCode::NeedsForce);
    let info = world.ask("pool.import", named).await.unwrap();
    assert_eq!((&info["volumes"], &info["damaged"][0]["name"]), (&json!(1), &json!("tank/b")));
    assert_eq!(world.names().await, ["tank/a"]);
    world.ask("volume.delete", json!({"volume": "tank/b"})).await.unwrap();
    assert_eq!(world.pool().await.damaged, []);
    world.end().await;
}

#[tokio::test]
async fn volumes_snapshots_and_clones_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::with_volume(directory.path()).await;
    let labels = json!({"tier": "gold"});
    let params = json!({"volume": "tank/b", "size_bytes": 1 << 20, "labels": labels,
        "description": "for b"});
    let info = world.ask("volume.create", params.clone()).await.unwrap();
    assert_eq!((&info["labels"], &info["description"]), (&labels, &json!("for b")));
    assert_eq!(world.refusal("volume.create", params).await.code, ErrorCode::Exists);
    let params = json!({"volumes": ["tank/a", "tank/b"], "name": "s"});
    let made = world.ask("snapshot.create", params).await.unwrap();
    assert_eq!((&made[0]["name"], &made[1]["name"]), (&json!("tank/a.s"), &json!("tank/b.s")));
    assert!(made[0]["group"].is_string() && made[0]["group"] == made[1]["group"]);
    let diff = json!({"from": "tank/a.s", "to": "tank/a"});
    let diff = world.ask("snapshot.diff", diff).await.unwrap();
    assert_eq!(diff, json!({"extents": [], "next": null}));
    let report = world.ask("pool.check", json!({"name": "tank"})).await.unwrap();
    assert_eq!((&report["faults"], &report["open"]), (&json!([]), &json!(true)));
    let of_a = world.ask("snapshot.list", json!({"volume": "tank/a"})).await.unwrap();
    assert_eq!((of_a.as_array().unwrap().len(), &of_a[0]["name"]), (1, &json!("tank/a.s")));
    let params = json!({"snapshot": "tank/a.s", "name": "c", "read_only": true});
    let clone = world.ask("snapshot.clone", params).await.unwrap();
    assert_eq!((&clone["parent"], &clone["read_only"]), (&json!("tank/a.s"), &json!(true)));
    let params = json!({"volume": "tank/a", "labels": {"tier": "gold", "x": "1"}});
    world.ask("volume.label", params).await.unwrap();
    let params = json!({"volume": "tank/a", "labels": {"x": null}});
    assert_eq!(world.ask("volume.label", params).await.unwrap()["labels"], labels);
    let listed = world.ask("volume.list", json!({"pool": "tank", "labels": labels})).await.unwrap();
    let listed: Vec<&str> =
        listed.as_array().unwrap().iter().map(|info| info["name"].as_str().unwrap()).collect();
    assert!(listed.contains(&"tank/a") && listed.contains(&"tank/b"), "{listed:?}");
    let renamed =
        world.ask("volume.rename", json!({"volume": "tank/c", "name": "d"})).await.unwrap();
    assert_eq!(renamed["name"], "tank/d");
    let error = world.refusal("volume.delete", json!({"volume": "tank/a.s"})).await;
    assert!(error.message.contains("a snapshot, not a volume"), "{error:?}");
    // In any order, clones or not.
    world.ask("snapshot.delete", json!({"volume": "tank/a.s"})).await.unwrap();
    world.ask("volume.delete", json!({"volume": "tank/a"})).await.unwrap();
    assert_eq!(world.names().await, ["tank/b", "tank/b.s", "tank/d"]);
    let bdevs = world.control.bdev_list();
    let kinds: Vec<_> = bdevs.iter().map(|b| (b.name.as_str(), b.kind.as_str())).collect();
    let expected =
        [("r", "ram"), ("tank/b", "volume"), ("tank/b.s", "snapshot"), ("tank/d", "volume")];
    assert_eq!(kinds, expected);
    let error = world.refusal("volume.show", json!({"volume": "tank/a"})).await;
    assert_eq!(error.code, ErrorCode::NotFound);
    let error = world.refusal("volume.list", json!({"pool": "none"})).await;
    assert_eq!(error.code, ErrorCode::NotFound);
}

#[tokio::test]
async fn an_exported_volume_is_its_hosts() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::with_volume(directory.path()).await;
    let export = world.export("tank/a").await;
    let volume = world.ask("volume.show", json!({"volume": "tank/a"})).await.unwrap();
    assert_eq!((export.state, &json!(export.uuid)), (ExportState::Up, &volume["uuid"]));
    assert!(volume["claimed_by"].as_str().unwrap().contains(NQN));
    for (method, params) in [
        ("volume.delete", json!({"volume": "tank/a"})),
        ("volume.rename", json!({"volume": "tank/a", "name": "b"})),
        ("export.add", json!({"bdev": "tank/a", "any_host": true})),
        ("pool.export", json!({"name": "tank"})),
        ("bdev.delete", json!({"name": "r"})),
    ] {
        assert_eq!(world.refusal(method, params).await.code, ErrorCode::InUse, "{method}");
    }
    // Hosts hear of another size.
    let params = json!({"volume": "tank/a", "size_bytes": 2u64 << 30});
    assert_eq!(world.ask("volume.resize", params).await.unwrap()["size_bytes"], 2u64 << 30);
    assert_eq!(world.namespace().geometry.block_count, (2 << 30) / 4096);
    let saved = world.control.state_file.load().unwrap();
    assert_eq!(saved.exports[0].namespaces[0].made_on.block_count, (2 << 30) / 4096);
    // Unexported, it is everybody's; exported again, it is the same.
    world.ask("export.remove", json!({"nqn": NQN})).await.unwrap();
    assert_eq!(world.control.bdevs.holder("tank/a"), None);
    assert_eq!(world.export("tank/a").await.nguid, export.nguid);
    world.ask("export.remove", json!({"nqn": NQN})).await.unwrap();
    let params = json!({"volume": "tank/a", "size_bytes": 1 << 20});
    world.ask("volume.resize", params).await.unwrap();
    world.ask("volume.delete", json!({"volume": "tank/a"})).await.unwrap();
    let error = world.refusal("export.add", json!({"bdev": "tank/a", "any_host": true})).await;
    assert_eq!(error.code, ErrorCode::NotFound);
}

#[tokio::test]
async fn a_snapshot_is_exported_read_only() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::with_volume(directory.path()).await;
    world.ask("snapshot.create", json!({"volumes": ["tank/a"], "name": "s"})).await.unwrap();
    let export = world.export("tank/a.s").await;
    assert_eq!((export.state, world.namespace().read_only), (ExportState::Up, true));
}

#[tokio::test]
async fn a_rollback_of_an_exported_volume_takes_it_from_its_hosts_meanwhile() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::with_volume(directory.path()).await;
    world.ask("snapshot.create", json!({"volumes": ["tank/a"], "name": "s"})).await.unwrap();
    let export = world.export("tank/a").await;
    let mut params = json!({"volume": "tank/a", "snapshot": "a.s"});
    let error = world.refusal("volume.rollback", params.clone()).await;
    assert_eq!(error.code, ErrorCode::InUse);
    assert!(error.data.unwrap().advice.unwrap().contains("--force"));
    params["force"] = json!(true);
    params["snapshot"] = json!("none");
    assert_eq!(world.refusal("volume.rollback", params.clone()).await.code, ErrorCode::NotFound);
    assert_eq!(world.control.export_list(), std::slice::from_ref(&export));
    params["snapshot"] = json!("a.s");
    let info = world.ask("volume.rollback", params.clone()).await.unwrap();
    assert_eq!(info["parent"], "tank/a.s");
    assert_eq!(
        world.control.export_list(),
        std::slice::from_ref(&export),
        "the same namespace, and up"
    );
    params["keep"] = json!("mine");
    world.ask("volume.rollback", params).await.unwrap();
    assert_eq!(
        world.names().await,
        ["tank/a", "tank/a.before-rollback-1", "tank/a.s", "tank/mine"]
    );
    world.ask("export.remove", json!({"nqn": NQN})).await.unwrap();
    world.ask("volume.rollback", json!({"volume": "tank/a", "snapshot": "mine"})).await.unwrap();
    assert_eq!(world.control.bdevs.holder("tank/a"), None);
}

#[tokio::test]
async fn a_rollback_waits_for_hosts_that_have_not_seen_the_namespace_go() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::with_volume(directory.path()).await;
    world.ask("snapshot.create", json!({"volumes": ["tank/a"], "name": "s"})).await.unwrap();
    let export = world.export("tank/a").await;
    let now = Instant::now();
    let (address, transport) = ("10.0.0.1:4420".parse().unwrap(), nvmf::Transport::Rdma);
    let info = QueueInfo { transport, local: address, peer: address, qid: Some(0), entries: 32 };
    let command = |request| CommandKey { queue: QueueKey(1), request };
    let (sqe, data) = connect();
    let target = &mut world.control.target;
    target.handle_queue_opened(now, QueueKey(1), info);
    target.handle_command(now, command(1), &sqe, data.as_bytes());
    target.handle_command(now, command(2), &enable(), &[]);
    let params = json!({"volume": "tank/a", "snapshot": "a.s", "force": true});
    let mut answer = world.begin("volume.rollback", params);
    let mut came = |_: &mut Control| answer.try_recv().ok();
    let soon = Instant::now() + Duration::from_millis(200);
    assert!(!world.control.wait_until(soon, |control| came(control).is_some()).await);
    assert_eq!(world.control.target.hosts_with_removed(NQN, 1), [ALICE]);
    assert_eq!(world.control.export_list()[0].state, ExportState::Down);
    let mut list = Sqe::new(opcode::admin::IDENTIFY, 0);
    list.set_sgl(SglDescriptor::keyed(0x1000, 4096, 7, false));
    list.cdw10 = u32::from(cns::ACTIVE_NAMESPACES).into();
    world.control.target.handle_command(Instant::now(), command(3), &list, &[]);
    let mut rolled = None;
    until(&mut world, |control| {
        rolled = came(control);
        rolled.is_some()
    })
    .await;
    assert_eq!(rolled.unwrap().unwrap()["parent"], "tank/a.s");
    assert_eq!(world.control.export_list(), [export]);
}

#[tokio::test]
async fn pools_are_open_again_after_a_restart_before_their_exports() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("disk");
    let mut world = World::start(directory.path()).await;
    world.make("file", "f", Some(&file)).await;
    world.ask("pool.create", json!({"name": "tank", "bdevs": ["f"]})).await.unwrap();
    let params = json!({"volume": "tank/a", "size_bytes": 1 << 30});
    world.ask("volume.create", params).await.unwrap();
    let export = world.export("tank/a").await;
    world.end().await;
    let mut world = World::start(directory.path()).await;
    assert_eq!(world.control.export_list(), std::slice::from_ref(&export));
    // Killed, this time, after a change.
    let params = json!({"volume": "tank/a", "size_bytes": 2u64 << 30});
    world.ask("volume.resize", params).await.unwrap();
    drop(world);
    let mut world = World::start(directory.path()).await;
    assert_eq!(world.control.export_list(), std::slice::from_ref(&export));
    assert_eq!(world.namespace().geometry.block_count, (2 << 30) / 4096);
    assert_eq!(world.pool().await.state, PoolState::Open);
    world.end().await;
}

#[tokio::test]
async fn a_pool_whose_device_is_missing_waits_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("disk");
    let mut world = World::start(directory.path()).await;
    world.make("file", "f", Some(&file)).await;
    world.ask("pool.create", json!({"name": "tank", "bdevs": ["f"]})).await.unwrap();
    let params = json!({"volume": "tank/a", "size_bytes": 1 << 30});
    world.ask("volume.create", params).await.unwrap();
    let export = world.export("tank/a").await;
    world.end().await;
    let hidden = directory.path().join("hidden");
    std::fs::rename(&file, &hidden).unwrap();
    let mut world = World::start(directory.path()).await;
    let down = world.control.export_list().remove(0);
    assert_eq!((down.state, &down.uuid), (ExportState::Down, &export.uuid));
    let reason = down.reason.unwrap();
    assert!(reason.contains("pool tank is not open") && reason.contains(": f"), "{reason}");
    let pool = world.pool().await;
    assert_eq!((pool.state, pool.bdevs), (PoolState::Down, vec!["f".to_owned()]));
    let error =
        world.refusal("volume.create", json!({"volume": "tank/b", "size_bytes": 4096})).await;
    assert_eq!(error.code, ErrorCode::Unavailable);
    // Under another name it is the same pool.
    world.make("file", "g", Some(&hidden)).await;
    until(&mut world, |control| control.pools.is_serving("tank") && control.changes.is_empty())
        .await;
    assert_eq!(world.control.export_list(), [export]);
    assert_eq!(world.pool().await.bdevs, ["g"]);
    world.end().await;
}

#[tokio::test]
async fn a_lost_device_ends_its_pool_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::with_volume(directory.path()).await;
    world.make("ram", "s", None).await;
    world.ask("pool.create", json!({"name": "other", "bdevs": ["s"]})).await.unwrap();
    world.export("tank/a").await;
    let memory = world.control.arena.bytes_left();
    world.control.stop_serving("r");
    until(&mut world, |control| !control.pools.open.contains_key("tank")).await;
    let down = world.control.export_list().remove(0);
    assert_eq!(down.state, ExportState::Down);
    assert_eq!(world.control.bdevs.holder("r"), None);
    assert!(world.control.arena.bytes_left() > memory, "its memory is given back");
    assert_eq!(world.pool().await.reason.unwrap(), "r failed or was removed");
    assert!(world.control.pools.is_serving("other"));
    // It is back, as far as anybody can tell.
    world.ask("pool.import", json!({"name": "tank"})).await.unwrap();
    until(&mut world, |control| control.changes.is_empty()).await;
    assert_eq!(world.control.export_list()[0].state, ExportState::Up);
}
