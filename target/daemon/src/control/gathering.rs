//! What is told about pools and volumes: questions to one pool or all, and how full they are.

use std::collections::BTreeMap;

use api::Labels;
use api::results::{self, DamagedVolume, PoolDevice, PoolState, RemovalInfo};
use serde_json::json;
use volume::format::VolumeKind;
use volume::{Call, PoolInfo, VolumeInfo};

use super::Control;
use super::socket::Reply;
use super::volumes::{Then, full};

/// How full a pool is when it is warned of, in percent.
const WARNINGS: [u8; 2] = [80, 90];

/// A question to several pools.
pub(super) struct Gathering {
    question: Question,
    reply: Reply,
    left: usize,
    found: Vec<Found>,
}

pub(super) enum Question {
    Pools,
    Pool(String),
    Volumes(Labels),
    Volume(String),
    Snapshots(Option<String>),
}

pub(super) enum Found {
    Pool(PoolInfo),
    Volumes(String, Vec<VolumeInfo>),
}

impl Control {
    /// Asks one pool, or all.
    pub(super) fn ask_pools(&mut self, pool: Option<&str>, question: Question, reply: Reply) {
        let pools = match pool {
            Some(pool) if self.pools.is_serving(pool) => vec![pool.to_owned()],
            Some(pool) if !matches!(question, Question::Pool(_)) => {
                return drop(reply.send(Err(self.unknown_pool(pool))));
            }
            Some(_) => Vec::new(),
            None => self.pools.serving(),
        };
        let id = self.pools.next_id;
        self.pools.next_id += 1;
        let call = match question {
            Question::Pools | Question::Pool(_) => Call::Info,
            Question::Volumes(_) | Question::Volume(_) | Question::Snapshots(_) => Call::List,
        };
        let gathering = Gathering { question, reply, left: pools.len(), found: Vec::new() };
        if pools.is_empty() {
            return self.answer_gathering(gathering);
        }
        self.pools.gatherings.insert(id, gathering);
        for pool in pools {
            self.ask_pool(&pool, call.clone(), Then::Gather(id));
        }
    }

    pub(super) fn gather(&mut self, id: u64, found: Option<Found>) {
        let Some(gathering) = self.pools.gatherings.get_mut(&id) else { return };
        gathering.found.extend(found);
        gathering.left -= 1;
        if gathering.left == 0
            && let Some(gathering) = self.pools.gatherings.remove(&id)
        {
            self.answer_gathering(gathering);
        }
    }

    fn answer_gathering(&self, gathering: Gathering) {
        let Gathering { question, reply, found, .. } = gathering;
        let mut infos = Vec::new();
        let mut volumes = Vec::new();
        for found in found {
            match found {
                Found::Pool(info) => infos.push(info),
                Found::Volumes(pool, list) => {
                    volumes.extend(list.iter().map(|info| self.volume_info(&pool, info)));
                }
            }
        }
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        let answer = match question {
            Question::Pools => Ok(json!(self.pool_infos(&infos))),
            Question::Pool(name) => {
                let found = self.pool_infos(&infos).into_iter().find(|info| info.name == name);
                found.map(|info| json!(info)).ok_or_else(|| self.unknown_pool(&name))
            }
            Question::Volumes(labels) => {
                let has = |info: &results::VolumeInfo| {
                    labels.iter().all(|(key, value)| info.labels.get(key) == Some(value))
                };
                volumes.retain(has);
                Ok(json!(volumes))
            }
            Question::Volume(name) => {
                let found = volumes.into_iter().find(|info| info.name == name);
                found.map(|info| json!(info)).ok_or_else(|| self.unknown_bdev(&name))
            }
            Question::Snapshots(Some(of)) if !volumes.iter().any(|info| info.name == of) => {
                Err(self.unknown_bdev(&of))
            }
            Question::Snapshots(of) => {
                volumes.retain(|info| {
                    let of_it = of.is_none() || info.line == of;
                    info.kind == results::VolumeKind::Snapshot && of_it
                });
                Ok(json!(volumes))
            }
        };
        let _ = reply.send(answer);
    }

    /// All pools: those that have answered, those that are on their way, and those that are down.
    fn pool_infos(&self, answers: &[PoolInfo]) -> Vec<results::PoolInfo> {
        let mut all: BTreeMap<String, results::PoolInfo> = BTreeMap::new();
        for saved in &self.state.pools {
            let reason = self.pools.down.get(&saved.name);
            let state = match reason {
                Some(_) => PoolState::Down,
                None => PoolState::Changing,
            };
            let info = results::PoolInfo {
                state,
                reason: reason.cloned(),
                ..empty_pool(&saved.name, saved.uuid.to_string(), saved.bdevs.clone())
            };
            all.insert(saved.name.clone(), info);
        }
        for answer in answers {
            all.insert(answer.name.clone(), self.pool_info(answer));
        }
        all.into_values().collect()
    }

    pub(super) fn pool_info(&self, info: &PoolInfo) -> results::PoolInfo {
        let bdevs = self.pools.open.get(&info.name).map(|pool| pool.bdevs.clone());
        let used_percent = used_percent(info);
        let mut warnings = Vec::new();
        if let Some(limit) = WARNINGS.into_iter().rfind(|limit| used_percent >= *limit) {
            warnings.push(format!("{used_percent} % full, warns at {limit} %"));
        }
        if info.broken {
            warnings.push("takes no writes: its journal cannot be written".to_owned());
        }
        let open = self.pools.open.get(&info.name);
        warnings.extend(open.and_then(|open| open.not_removed.clone()));
        let damaged = |(name, reason): &(String, String)| DamagedVolume {
            name: full(&info.name, name),
            reason: reason.clone(),
        };
        results::PoolInfo {
            state: PoolState::Open,
            size_bytes: info.bytes,
            free_bytes: info.free_bytes,
            kept_bytes: info.kept_bytes,
            available_bytes: info.available_bytes,
            releasing_bytes: info.releasing_bytes,
            used_percent,
            journal_used: info.journal.0,
            journal_blocks: info.journal.1,
            volumes: info.volumes as u64,
            damaged: info.damaged.iter().map(damaged).collect(),
            devices: info.devices.iter().map(|device| self.pool_device(device)).collect(),
            removal: info.removal.as_ref().map(|removal| RemovalInfo {
                bdev: removal.device.clone(),
                total_bytes: removal.total_bytes,
                left_bytes: removal.left_bytes,
            }),
            warnings,
            ..empty_pool(&info.name, info.uuid.to_string(), bdevs.unwrap_or_default())
        }
    }

    fn pool_device(&self, info: &volume::DeviceInfo) -> PoolDevice {
        let cluster = u64::from(volume::limits::CLUSTER_BYTES);
        let bytes = self.bdev_bytes(&info.name) / cluster * cluster;
        PoolDevice {
            bdev: info.name.clone(),
            size_bytes: info.bytes,
            used_bytes: info.used_bytes,
            journal: info.journal,
            growth_bytes: bytes.saturating_sub(info.bytes),
        }
    }

    pub(super) fn volume_info(&self, pool: &str, info: &VolumeInfo) -> results::VolumeInfo {
        let name = full(pool, &info.name);
        results::VolumeInfo {
            kind: match info.kind {
                VolumeKind::Volume => results::VolumeKind::Volume,
                VolumeKind::Snapshot => results::VolumeKind::Snapshot,
            },
            parent: info.parent.as_ref().map(|parent| full(pool, parent)),
            line: info.line.as_ref().map(|line| full(pool, line)),
            uuid: info.uuid.to_string(),
            read_only: info.read_only,
            reserved: info.reserved,
            kept_bytes: info.kept_bytes,
            size_bytes: info.bytes,
            block_bytes: info.block_bytes,
            mapped_bytes: info.mapped_bytes,
            unique_bytes: info.unique_bytes,
            labels: info.labels.clone(),
            description: info.description.clone(),
            created_s: info.created_s,
            group: info.group.map(|group| group.to_string()),
            claimed_by: self.bdevs.holder(&name).map(str::to_owned),
            name,
        }
    }

    /// Warns once of each threshold that a pool goes beyond.
    pub(super) fn watch_pool(&mut self, info: &PoolInfo) {
        let Some(pool) = self.pools.open.get_mut(&info.name) else { return };
        let percent = used_percent(info);
        let reached = WARNINGS.into_iter().rfind(|limit| percent >= *limit).unwrap_or(0);
        if reached > pool.warned {
            let free = api::show_size(info.free_bytes);
            tracing::warn!(pool = info.name, percent, free, "it is getting full");
        }
        pool.warned = reached;
    }
}

fn empty_pool(name: &str, uuid: String, bdevs: Vec<String>) -> results::PoolInfo {
    results::PoolInfo {
        name: name.to_owned(),
        uuid,
        state: PoolState::Changing,
        reason: None,
        bdevs,
        size_bytes: 0,
        free_bytes: 0,
        kept_bytes: 0,
        available_bytes: 0,
        releasing_bytes: 0,
        used_percent: 0,
        journal_used: 0,
        journal_blocks: 0,
        volumes: 0,
        damaged: Vec::new(),
        devices: Vec::new(),
        removal: None,
        warnings: Vec::new(),
    }
}

fn used_percent(info: &PoolInfo) -> u8 {
    let used = u128::from(info.bytes.saturating_sub(info.free_bytes)) * 100;
    used.checked_div(u128::from(info.bytes)).unwrap_or(0).min(100) as u8
}
