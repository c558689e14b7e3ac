//! The control thread without RDMA, over cores that say nothing by themselves: the test answers for
//! them, so that what happens in between happens exactly when the test says.

use api::Endpoint;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use api::results::{ExportInfo, ExportState};
use api::{Call, ErrorCode, RpcError};
use bdev::{Bdev, BdevError, Channel, Geometry, NullBdev};
use nvme_spec::command::Sqe;
use nvme_spec::fabrics::{Connect, ConnectData, Property, fctype_of};
use nvme_spec::opcode;
use nvme_spec::registers::{CC, Cc};
use nvme_spec::sgl::SglDescriptor;
use nvmf::engine::RequestId;
use nvmf::{QueueInfo, QueueKey, TargetConfig, Transport};
use reactor::{IdlePolicy, Worker};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use uuid::Uuid;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::*;

pub(super) const NQN: &str = "nqn.2026-11.io.forebay:e";
pub(super) const ALICE: &str = "nqn.2026-11.io.host:alice";
const BOB: &str = "nqn.2026-11.io.host:bob";

/// A core that takes messages and does nothing.
struct Silent;

impl Worker for Silent {
    type Message = CoreMessage;
    fn handle_message(&mut self, _: CoreMessage) {}
    fn poll(&mut self, _: Instant) -> usize {
        0
    }
}

type Answer = oneshot::Receiver<Result<Value, RpcError>>;

struct World {
    control: Control,
}

impl World {
    /// A daemon with two cores and the state of `directory`, restored.
    fn start(directory: &Path) -> Self {
        let mut world = Self::before_restore(directory);
        world.control.restore_bdevs();
        world.restore_exports();
        world
    }

    fn before_restore(directory: &Path) -> Self {
        let cpu = core_affinity::get_core_ids().unwrap()[0].id;
        let idle = IdlePolicy { yield_turns: 0, nap: Duration::from_millis(1), ..IdlePolicy::SPIN };
        let core = |_| Reactor::spawn("silent", cpu, 64, idle, || Silent).unwrap();
        let bell = nix::sys::eventfd::EventFd::new().unwrap();
        let state_file = StateFile::new(directory);
        let parts = Parts {
            target: Target::new(TargetConfig::default()),
            cores: (0..2).map(core).collect(),
            ring: ControlRing::new(64, bell),
            rdma: None,
            tcp: Tcp::new().unwrap(),
            state: state_file.load().unwrap(),
            state_file,
            arena: Arena::plain_pages(1 << 20).unwrap(),
            log: reload::Layer::new(EnvFilter::new("info")).1,
        };
        Self { control: Control::new(parts) }
    }

    fn restore_exports(&mut self) {
        self.control.restore_exports();
        self.finish_changes();
    }

    /// Asks, and lets the cores do what comes of it.
    fn ask(&mut self, method: &str, params: Value) -> Result<Value, RpcError> {
        let answer = self.begin(method, params);
        self.finish_changes();
        self.control.handle_outputs();
        let mut answer = answer;
        answer.try_recv().expect("an answer")
    }

    fn begin(&mut self, method: &str, params: Value) -> Answer {
        let line = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let call: Call = api::Request::parse(line.to_string().as_bytes()).unwrap().call;
        let (reply, answer) = oneshot::channel();
        self.control.handle_call(Asked { call, reply });
        answer
    }

    fn refusal(&mut self, method: &str, params: Value) -> RpcError {
        self.ask(method, params).expect_err("a refusal")
    }

    /// Every core answers one change.
    fn finish_change(&mut self, (subsystem, nsid): Place) {
        for _ in 0..self.control.cores.len() {
            self.control.handle_namespace_set(subsystem, nsid);
        }
    }

    fn finish_changes(&mut self) {
        while let Some(&place) = self.control.changes.keys().next() {
            self.finish_change(place);
        }
    }

    fn create_ram(&mut self, name: &str) {
        let params = json!({"kind": "ram", "name": name, "size_bytes": 1 << 20});
        self.ask("bdev.create", params).unwrap();
    }

    fn exports(&self) -> Vec<ExportInfo> {
        self.control.export_list()
    }

    /// Who may connect: by the control half, by the state, and by the file.
    fn access(&self) -> (bool, Vec<String>) {
        let subsystem = self.control.target.subsystem(NQN).unwrap();
        let hosts: Vec<String> = subsystem.hosts().map(str::to_owned).collect();
        let export = self.control.state.export(NQN).unwrap();
        assert_eq!(export.any_host, subsystem.any_host());
        assert!(export.hosts.iter().eq(hosts.iter()));
        assert_eq!(self.control.state_file.load().unwrap(), self.control.state);
        (subsystem.any_host(), hosts)
    }

    /// Nothing is exported, nor on its way, and the block device is free.
    fn assert_nothing_exported(&self) {
        assert_eq!(self.control.target.subsystems().count(), 0);
        assert_eq!(self.control.state.exports, []);
        assert_eq!(self.control.state_file.load().unwrap().exports, []);
        assert!(self.control.changes.is_empty() && self.control.listeners.is_empty());
        assert!(self.control.bdevs.iter().all(|(_, holder)| holder.is_none()));
    }
}

fn world() -> (World, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    (World::start(directory.path()), directory)
}

/// A block device whose identity and health are the test's.
struct Odd {
    blocks: NullBdev,
    uuid: Uuid,
    failed: AtomicBool,
}

impl Odd {
    fn new(name: &str, uuid: u128) -> Self {
        let blocks = NullBdev::new(name, 4096, 256);
        Self { blocks, uuid: Uuid::from_u128(uuid), failed: AtomicBool::new(false) }
    }
}

impl Bdev for Odd {
    fn name(&self) -> &str {
        self.blocks.name()
    }
    fn kind(&self) -> &'static str {
        "nvme"
    }
    fn geometry(&self) -> Geometry {
        self.blocks.geometry()
    }
    fn uuid(&self) -> Uuid {
        self.uuid
    }
    fn health(&self) -> bdev::Health {
        match self.failed.load(Ordering::Relaxed) {
            true => bdev::Health::Failed,
            false => bdev::Health::Live,
        }
    }
    fn open_channel(&self, core: usize) -> Result<Box<dyn Channel>, BdevError> {
        self.blocks.open_channel(core)
    }
}

#[test]
fn an_export_that_fails_lets_nobody_in() {
    let (mut world, _directory) = world();
    world.create_ram("a");
    world.ask("export.add", json!({"bdev": "a", "nqn": NQN, "hosts": [ALICE]})).unwrap();
    let error = world.refusal("export.add", json!({"bdev": "b", "nqn": NQN, "any_host": true}));
    assert_eq!(error.code, ErrorCode::NotFound);
    // One that is taken, and one whose listener cannot open.
    let error = world.refusal("export.add", json!({"bdev": "a", "nqn": NQN, "hosts": [BOB]}));
    assert_eq!(error.code, ErrorCode::InUse);
    world.create_ram("b");
    let params = json!({"bdev": "b", "nqn": NQN, "any_host": true, "listeners": ["10.0.0.1:4420"]});
    assert!(world.refusal("export.add", params).message.contains("no RDMA"));
    assert_eq!(world.access(), (false, vec![ALICE.to_owned()]));
    assert_eq!(world.control.bdevs.holder("b"), None);
    world.ask("export.add", json!({"bdev": "b", "nqn": NQN, "hosts": [BOB]})).unwrap();
    assert_eq!(world.access(), (false, vec![ALICE.to_owned(), BOB.to_owned()]));
}

#[test]
fn a_failed_export_leaves_nothing_to_a_later_one() {
    let (mut world, _directory) = world();
    world.refusal("export.add", json!({"bdev": "a", "nqn": NQN, "any_host": true}));
    world.assert_nothing_exported();
    world.create_ram("a");
    world.ask("export.add", json!({"bdev": "a", "nqn": NQN, "hosts": [ALICE]})).unwrap();
    assert_eq!(world.access(), (false, vec![ALICE.to_owned()]));
}

#[test]
fn hosts_hear_of_a_namespace_only_when_every_core_has_it() {
    let (mut world, _directory) = world();
    world.create_ram("a");
    let mut answer = world.begin("export.add", json!({"bdev": "a", "nqn": NQN, "any_host": true}));
    let subsystem = world.control.target.subsystem(NQN).unwrap();
    let id = subsystem.id().0;
    assert!(!subsystem.any_host() && subsystem.namespaces().count() == 0);
    world.control.handle_namespace_set(id, 1);
    assert!(answer.try_recv().is_err(), "the second core is still to come");
    assert_eq!(world.exports(), []);
    // Meanwhile the NSID is not free, and the export not to be ended.
    world.create_ram("b");
    let params = json!({"bdev": "b", "nqn": NQN, "any_host": true, "nsid": 1});
    let mut second = world.begin("export.add", params);
    assert_eq!(second.try_recv().unwrap().unwrap_err().code, ErrorCode::InUse);
    world.control.handle_namespace_set(id, 1);
    let info: ExportInfo = serde_json::from_value(answer.try_recv().unwrap().unwrap()).unwrap();
    assert_eq!((info.state, info.nsid), (ExportState::Up, 1));
    assert_eq!(world.access(), (true, vec![]));
}

#[test]
fn an_export_that_cannot_be_saved_is_taken_back() {
    let (mut world, directory) = world();
    world.create_ram("a");
    let blocker = directory.path().join("state.json.new");
    std::fs::create_dir(&blocker).unwrap();
    let params = json!({"bdev": "a", "nqn": NQN, "any_host": true});
    let error = world.refusal("export.add", params.clone());
    assert!(error.message.contains("cannot be saved"), "{error:?}");
    world.assert_nothing_exported();
    std::fs::remove_dir(&blocker).unwrap();
    world.ask("export.add", params).unwrap();
    std::fs::create_dir(&blocker).unwrap();
    world.refusal("export.remove", json!({"nqn": NQN}));
    world.refusal("host.allow", json!({"nqn": NQN, "host": ALICE}));
    world.refusal("bdev.create", json!({"kind": "null", "name": "n", "size_bytes": 4096}));
    assert_eq!(world.access(), (true, vec![]));
    assert_eq!(world.exports()[0].state, ExportState::Up);
    assert!(world.control.bdevs.get("n").is_none());
    // Nobody is kept in by a full disk.
    let error = world.refusal("host.deny", json!({"nqn": NQN, "any_host": true}));
    assert!(error.message.contains("gone after a restart"), "{error:?}");
    assert!(!world.control.target.subsystem(NQN).unwrap().any_host());
}

#[test]
fn a_device_that_fails_on_the_way_is_not_exported() {
    let (mut world, _directory) = world();
    let odd = Arc::new(Odd::new("ssd", 7));
    world.control.bdevs.add(odd.clone()).unwrap();
    let mut answer =
        world.begin("export.add", json!({"bdev": "ssd", "nqn": NQN, "any_host": true}));
    odd.failed.store(true, Ordering::Relaxed);
    world.control.stop_serving("ssd");
    world.finish_changes();
    let error = answer.try_recv().unwrap().unwrap_err();
    assert!(error.message.contains("failed while"), "{error:?}");
    world.assert_nothing_exported();
}

#[test]
fn unexport_is_answered_when_all_namespaces_are_gone() {
    let (mut world, _directory) = world();
    for name in ["a", "b", "c"] {
        world.create_ram(name);
        world.ask("export.add", json!({"bdev": name, "nqn": NQN, "any_host": true})).unwrap();
    }
    let id = world.control.target.subsystem(NQN).unwrap().id().0;
    let mut answer = world.begin("export.remove", json!({"nqn": NQN}));
    for nsid in [3, 1, 2] {
        assert!(answer.try_recv().is_err(), "namespace {nsid} is still there");
        world.finish_change((id, nsid));
    }
    assert!(answer.try_recv().unwrap().is_ok());
    world.assert_nothing_exported();
    for name in ["a", "b", "c"] {
        world.ask("bdev.delete", json!({"name": name})).unwrap();
    }
}

#[test]
fn who_may_connect_can_be_taken_back() {
    let (mut world, _directory) = world();
    world.create_ram("a");
    world.ask("export.add", json!({"bdev": "a", "nqn": NQN, "any_host": true})).unwrap();
    world.ask("host.allow", json!({"nqn": NQN, "host": ALICE})).unwrap();
    let error = world.refusal("host.deny", json!({"nqn": NQN, "host": ALICE}));
    assert!(error.message.contains("every host"), "{error:?}");
    assert_eq!(world.access(), (true, vec![ALICE.to_owned()]));
    let access = world.ask("host.deny", json!({"nqn": NQN, "any_host": true})).unwrap();
    assert_eq!(access, json!({"nqn": NQN, "any_host": false, "hosts": [ALICE]}));
    let error = world.refusal("host.deny", json!({"nqn": NQN, "any_host": true}));
    assert_eq!(error.code, ErrorCode::NotFound);
    world.ask("host.deny", json!({"nqn": NQN, "host": ALICE})).unwrap();
    assert_eq!(world.access(), (false, vec![]));
    world.ask("host.allow", json!({"nqn": NQN, "any_host": true})).unwrap();
    assert_eq!(world.access(), (true, vec![]));
}

#[test]
fn memory_made_anew_comes_back_as_another_namespace() {
    let (mut world, directory) = world();
    world.create_ram("a");
    world.ask("export.add", json!({"bdev": "a", "nqn": NQN, "hosts": [ALICE]})).unwrap();
    let before = world.exports().remove(0);
    drop(world);
    let world = World::start(directory.path());
    let after = world.exports().remove(0);
    assert_eq!((after.state, &after.serial), (ExportState::Up, &before.serial));
    assert_ne!(after.uuid, before.uuid);
    assert_ne!(after.nguid, before.nguid);
    assert_eq!(world.access(), (false, vec![ALICE.to_owned()]), "and the file has it");
    assert_eq!(world.control.state_file.load().unwrap().exports[0].namespaces.len(), 1);
}

#[test]
fn another_device_of_the_same_name_is_not_exported() {
    let (mut world, directory) = world();
    world.control.bdevs.add(Arc::new(Odd::new("ssd", 7))).unwrap();
    world.ask("export.add", json!({"bdev": "ssd", "nqn": NQN, "hosts": [ALICE]})).unwrap();
    let before = world.exports().remove(0);
    drop(world);
    let restored = |bdevs: &[(&str, u128)]| {
        let mut world = World::before_restore(directory.path());
        for &(name, uuid) in bdevs {
            world.control.bdevs.add(Arc::new(Odd::new(name, uuid))).unwrap();
            // As a device does that comes up before the exports are restored: to no effect.
            world.control.serve_waiting(name);
        }
        assert!(world.control.changes.is_empty() && world.control.down.is_empty());
        world.restore_exports();
        world
    };
    let reason = |world: &World| {
        let export = world.exports().remove(0);
        assert_eq!((export.state, &export.uuid), (ExportState::Down, &before.uuid));
        assert_eq!(world.control.bdevs.holder("ssd"), None);
        export.reason.unwrap()
    };
    let other = restored(&[("ssd", 8)]);
    let wanted = format!("expected UUID {}, 256 blocks of 4096", Uuid::from_u128(7));
    assert!(reason(&other).contains(&wanted), "{}", reason(&other));
    assert!(reason(&other).contains(&format!("found UUID {}", Uuid::from_u128(8))));
    let twins = restored(&[("ssd", 7), ("other", 7)]);
    assert!(reason(&twins).contains("cannot be told"), "{}", reason(&twins));
    let mut missing = restored(&[]);
    assert!(reason(&missing).contains("no block device is named ssd"));
    missing.control.bdevs.add(Arc::new(Odd::new("ssd", 7))).unwrap();
    missing.control.serve_waiting("ssd");
    assert_eq!(missing.exports()[0].state, ExportState::Down, "on its way");
    missing.finish_changes();
    assert_eq!(missing.exports(), [before]);
}

#[test]
fn listeners_of_exports_are_kept_and_closed_with_the_last() {
    let (mut world, _directory) = world();
    let [given, asked]: [Endpoint; 2] =
        ["10.0.0.1:4420".parse().unwrap(), "10.0.0.1:4421".parse().unwrap()];
    // What `open_listener` does where there is RDMA.
    world.control.configured.push(given);
    world.control.listeners = vec![given, asked];
    for name in ["a", "b"] {
        world.create_ram(name);
        let params = json!({"bdev": name, "any_host": true, "listeners": [asked]});
        let info = world.ask("export.add", params).unwrap();
        assert_eq!(info["listeners"].as_array().unwrap().len(), 2);
        assert!(info["connect_commands"][1].as_str().unwrap().contains("-a 10.0.0.1 -s 4421"));
    }
    let saved = world.control.state_file.load().unwrap();
    assert!(saved.exports.iter().all(|export| export.listeners.contains(&asked)));
    world.ask("export.remove", json!({"nqn": api::default_nqn("a")})).unwrap();
    assert_eq!(world.control.listeners, [given, asked]);
    world.ask("export.remove", json!({"nqn": api::default_nqn("b")})).unwrap();
    assert_eq!(world.control.listeners, [given]);
}

#[test]
fn what_arrived_in_time_counts_though_this_thread_was_late() {
    for alive in [true, false] {
        let (mut world, _directory) = world();
        world.create_ram("a");
        world.ask("export.add", json!({"bdev": "a", "nqn": NQN, "any_host": true})).unwrap();
        let long_ago = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
        let address = "10.0.0.1:4420".parse().unwrap();
        let transport = Transport::Rdma;
        let info =
            QueueInfo { transport, local: address, peer: address, qid: Some(0), entries: 32 };
        let target = &mut world.control.target;
        target.handle_queue_opened(long_ago, QueueKey(1), info);
        let (sqe, data) = connect();
        let command = |request| CommandKey { queue: QueueKey(1), request };
        target.handle_command(long_ago, command(1), &sqe, data.as_bytes());
        target.handle_command(long_ago, command(2), &enable(), &[]);
        assert_eq!(target.controllers().count(), 1);
        if alive {
            let mut sqe = Sqe::new(opcode::admin::KEEP_ALIVE, 0);
            sqe.set_sgl(SglDescriptor::keyed(0, 0, 0, false));
            let command =
                ControlMessage::Command { key: 1, request: RequestId(3), sqe, data: None };
            assert!(world.control.ring.push(command).is_ok());
        }
        world.control.handle_tick().unwrap();
        let ending = world.control.target.controllers().next().unwrap().ending;
        assert_eq!(ending, !alive);
    }
}

/// Property Set of CC.EN.
pub(super) fn enable() -> Sqe {
    let mut sqe = Sqe::new(opcode::FABRICS, u32::from(fctype_of::PROPERTY_SET));
    sqe.set_sgl(SglDescriptor::keyed(0, 0, 0, false));
    let mut property = Property::read_from_bytes(sqe.as_bytes()).unwrap();
    property.offset = CC.into();
    property.value = u64::from(Cc::enabled(0, 0).0).into();
    Sqe::read_from_bytes(property.as_bytes()).unwrap()
}

/// Connect of an admin queue with a keep-alive time-out of 5 s.
pub(super) fn connect() -> (Sqe, ConnectData) {
    let mut sqe = Sqe::new(opcode::FABRICS, u32::from(fctype_of::CONNECT));
    sqe.set_sgl(SglDescriptor::keyed(0x1000, 1024, 7, false));
    let mut connect = Connect::read_from_bytes(sqe.as_bytes()).unwrap();
    connect.sqsize_z = 31.into();
    connect.kato_ms = 5000.into();
    let mut data = ConnectData::new_zeroed();
    data.hostid = [1; 16];
    data.cntlid = 0xFFFF.into();
    data.subnqn[..NQN.len()].copy_from_slice(NQN.as_bytes());
    data.hostnqn[..ALICE.len()].copy_from_slice(ALICE.as_bytes());
    (Sqe::read_from_bytes(connect.as_bytes()).unwrap(), data)
}
