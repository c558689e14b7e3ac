//! What the control socket is asked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::results::{BdevInfo, ConnectionInfo, QueueInfo, VersionInfo};
use api::{BdevCreate, BdevKind, Call, ErrorCode, RpcError};
use bdev::{Bdev, BdevError, FileBdev, Health, NullBdev, RamBdev};
use nvmf::engine::QueueLoad;
use serde_json::{Value, json};
use uuid::Uuid;

use super::Control;
use super::exports::bdev_error;
use super::gathering::Question;
use super::socket::Asked;
use super::stats::Wanted;
use crate::options::log_filter;
use crate::state::{SavedBdev, State};

/// How long the I/O of a daemon that was killed may take to end.
const FORMER_LIMIT: Duration = Duration::from_secs(5);

impl Control {
    pub(super) fn handle_call(&mut self, asked: Asked) {
        let Asked { call, reply } = asked;
        let result = match call {
            // These take a while, and answer for themselves.
            Call::ExportAdd(params) => return self.add_export(params, reply),
            Call::ExportRemove(params) => return self.remove_export(&params, reply),
            Call::DeviceList(_) => return self.look_at_devices(None, reply),
            Call::DeviceShow(params) => return self.look_at_devices(Some(&params.bdf), reply),
            Call::DeviceBind(params) => return self.bind_device(&params, reply),
            Call::DeviceRelease(params) => return self.release_device(&params.bdf, reply),
            Call::Stats(_) => return self.collect_stats(Wanted::Stats(reply)),
            Call::ConnectionList(_) => return self.collect_stats(Wanted::Connections(reply)),
            Call::PoolCreate(params) => return self.create_pool(params, reply),
            Call::PoolImport(params) => return self.import_pool(params, reply),
            Call::PoolScan(_) => return self.scan_pools(reply),
            Call::PoolExport(params) => return self.export_pool(&params.name, reply),
            Call::PoolAdd(params) => return self.add_to_pool(params, reply),
            Call::PoolGrow(params) => return self.grow_pool(&params.name, reply),
            Call::PoolRemove(params) => return self.remove_from_pool(params, reply),
            Call::PoolDestroy(params) => return self.destroy_pool(&params, reply),
            Call::PoolCheck(params) => return self.check_pool(params, reply),
            Call::PoolList(_) => return self.ask_pools(None, Question::Pools, reply),
            Call::PoolShow(api::PoolName { name }) => {
                return self.ask_pools(Some(&name.clone()), Question::Pool(name), reply);
            }
            call @ (Call::VolumeCreate(_)
            | Call::VolumeList(_)
            | Call::VolumeShow(_)
            | Call::VolumeDelete(_)
            | Call::VolumeRename(_)
            | Call::VolumeResize(_)
            | Call::VolumeReserve(_)
            | Call::VolumeLabel(_)
            | Call::VolumeRollback(_)
            | Call::VolumePromote(_)
            | Call::SnapshotCreate(_)
            | Call::SnapshotList(_)
            | Call::SnapshotDelete(_)
            | Call::SnapshotDiff(_)
            | Call::SnapshotClone(_)) => return self.handle_volume_call(call, reply),
            Call::Version(_) => Ok(json!(self.version())),
            Call::BdevList(_) => Ok(json!(self.bdev_list())),
            Call::BdevCreate(params) => self.create_bdev(params),
            Call::BdevDelete(params) => self.delete_bdev(&params.name),
            Call::ExportList(_) => Ok(json!(self.export_list())),
            Call::HostAllow(change) => self.allow_host(&change),
            Call::HostDeny(change) => self.deny_host(&change),
            Call::HostList(params) => self.host_list(params.nqn.as_deref()),
            Call::LogLevel(params) => self.set_log_level(params.level),
            Call::Shutdown(_) => {
                self.stopping = true;
                Ok(json!({}))
            }
        };
        // A caller that has hung up does not want to know.
        let _ = reply.send(result);
    }

    fn version(&self) -> VersionInfo {
        VersionInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: api::PROTOCOL_VERSION,
            pid: std::process::id(),
            uptime_ms: self.started.elapsed().as_millis() as u64,
        }
    }

    fn set_log_level(&self, level: api::LogLevel) -> Result<Value, RpcError> {
        let name = match level {
            api::LogLevel::Error => "error",
            api::LogLevel::Warn => "warn",
            api::LogLevel::Info => "info",
            api::LogLevel::Debug => "debug",
        };
        let internal = |error: String| RpcError::new(ErrorCode::Internal, error);
        let filter = log_filter(name).map_err(|error| internal(error.to_string()))?;
        self.log.reload(filter).map_err(|error| internal(error.to_string()))?;
        Ok(json!({}))
    }

    pub(super) fn bdev_list(&self) -> Vec<BdevInfo> {
        let info = |(bdev, holder): (&Arc<dyn Bdev>, Option<&str>)| {
            let mut info = bdev_info(bdev.as_ref(), holder);
            let saved = self.state.bdevs.iter().find(|saved| saved.name == info.name);
            let path = saved.and_then(|saved| saved.path.as_ref());
            info.path = path.map(|path| path.display().to_string());
            info.path = info.path.or_else(|| self.device_of_bdev(&info.name));
            info
        };
        self.bdevs.iter().map(info).collect()
    }

    fn create_bdev(&mut self, params: BdevCreate) -> Result<Value, RpcError> {
        let BdevCreate { kind, name, size_bytes, block_bytes, path } = params;
        let saved = SavedBdev {
            kind,
            name,
            size_bytes: size_bytes.unwrap_or(0),
            block_bytes,
            path: path.map(Into::into),
        };
        if self.bdevs.get(&saved.name).is_some() {
            return Err(bdev_error(BdevError::Exists { name: saved.name }));
        }
        if let (BdevKind::File, Some(bytes), Some(path)) = (kind, size_bytes, &saved.path) {
            FileBdev::create(&saved.name, &path.to_string_lossy(), bytes).map_err(bdev_error)?;
        }
        let bdev = make_bdev(&saved)?;
        let name = saved.name.clone();
        let enter = |state: &mut State| {
            // One of that name that could not be made again after a restart is replaced.
            state.bdevs.retain(|known| known.name != saved.name);
            state.bdevs.push(saved);
        };
        self.commit(enter, |control| control.bdevs.add(bdev).map_err(bdev_error))?;
        self.serve_waiting(&name);
        self.wake_pools();
        Ok(json!(self.bdev_list().into_iter().find(|info| info.name == name)))
    }

    /// Makes again what users created before a restart.
    pub(crate) fn restore_bdevs(&mut self) {
        let limit = Instant::now() + FORMER_LIMIT;
        for saved in &self.state.bdevs {
            let made = loop {
                match make_bdev(saved) {
                    // The kernel ends the I/O of a process that was killed after the process.
                    Err(error) if error.code == ErrorCode::InUse && Instant::now() < limit => {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    made => break made,
                }
            };
            let added = made.and_then(|bdev| self.bdevs.add(bdev).map_err(bdev_error));
            if let Err(error) = added {
                tracing::error!(bdev = saved.name, %error, "not there after the restart");
            }
        }
    }

    fn delete_bdev(&mut self, name: &str) -> Result<Value, RpcError> {
        let ours = self.state.bdevs.iter().any(|saved| saved.name == name);
        if !ours && self.bdevs.get(name).is_some() {
            let error = RpcError::new(ErrorCode::InUse, format!("{name} is on an SSD"));
            return Err(error.with_advice("forebay device release BDF gives the SSD back"));
        }
        let forget = |state: &mut State| state.bdevs.retain(|saved| saved.name != name);
        self.commit(forget, |control| match control.bdevs.remove(name) {
            // It could not be made again after a restart: its entry was all there is.
            Err(BdevError::Unknown { .. }) if ours => Ok(json!({})),
            removed => removed.map(|_| json!({})).map_err(bdev_error),
        })
    }

    pub(super) fn connection_list(&self, loads: &[(u64, QueueLoad)]) -> Vec<ConnectionInfo> {
        let of = |controller: nvmf::ControllerInfo| {
            let admin = (0, controller.admin_queue);
            let queues = std::iter::once(&admin).chain(&controller.io_queues);
            let queues = queues.filter_map(|&(qid, key)| self.queue_info(qid, key.0, loads));
            ConnectionInfo {
                queues: queues.collect(),
                nqn: controller.subsystem_nqn,
                host_nqn: controller.host_nqn,
                host_id: Uuid::from_bytes(controller.host_id).to_string(),
                cntlid: controller.cntlid,
                transport: api_transport(controller.transport),
                host_address: controller.peer,
                local_address: controller.local,
                keep_alive_ms: controller.kato_ms,
            }
        };
        self.target.controllers().map(of).collect()
    }

    fn queue_info(&self, qid: u16, key: u64, loads: &[(u64, QueueLoad)]) -> Option<QueueInfo> {
        let connection = self.connections.get(key)?;
        let load = loads.iter().find(|(of, _)| *of == key).map(|(_, load)| load);
        Some(QueueInfo {
            qid,
            core: connection.core as u32,
            depth: connection.entries,
            in_flight: load.map_or(0, |load| load.in_flight),
            commands: load.map_or(0, |load| load.commands),
        })
    }
}

fn api_transport(transport: nvmf::Transport) -> api::Transport {
    match transport {
        nvmf::Transport::Rdma => api::Transport::Rdma,
        nvmf::Transport::Tcp => api::Transport::Tcp,
    }
}

fn make_bdev(saved: &SavedBdev) -> Result<Arc<dyn Bdev>, RpcError> {
    let SavedBdev { kind, name, size_bytes, block_bytes, path } = saved;
    let block_count = size_bytes / u64::from(*block_bytes);
    let made: Result<Arc<dyn Bdev>, _> = match kind {
        BdevKind::Ram => {
            RamBdev::new(name, *block_bytes, block_count).map(|bdev| Arc::new(bdev) as Arc<_>)
        }
        BdevKind::Null => Ok(Arc::new(NullBdev::new(name, *block_bytes, block_count))),
        BdevKind::File => {
            let path = path.as_ref().ok_or_else(|| RpcError::invalid("path", "is missing"))?;
            FileBdev::open(name, &path.to_string_lossy(), *block_bytes)
                .map(|bdev| Arc::new(bdev) as Arc<_>)
        }
    };
    made.map_err(bdev_error)
}

fn bdev_info(bdev: &dyn Bdev, holder: Option<&str>) -> BdevInfo {
    let geometry = bdev.geometry();
    BdevInfo {
        name: bdev.name().to_owned(),
        kind: bdev.kind().to_owned(),
        size_bytes: geometry.block_count * u64::from(geometry.block_bytes),
        block_bytes: geometry.block_bytes,
        health: match bdev.health() {
            Health::Live => "live",
            Health::Recovering => "recovering",
            Health::Failed => "failed",
        }
        .to_owned(),
        claimed_by: holder.map(str::to_owned),
        path: None,
    }
}
