//! Checking pools: one that is open is asked, one that is not is looked for and read by a job.

use api::results::{PoolFault, PoolReport};
use api::{ErrorCode, PoolCheck, RpcError};
use bdev::Bdev;
use serde_json::json;
use std::sync::Arc;
use volume::Call;
use volume::pool::Report;

use super::Control;
use super::exports::in_use;
use super::job::Job;
use super::pools::{Wanted, What, Work, pool_error};
use super::socket::Reply;
use super::volumes::{Then, full};
use crate::limits::POOL_BLOCK_BYTES;

/// What a job found, and whether it repaired it.
pub(super) type Checked = (Report, bool);

impl Control {
    pub(super) fn check_pool(&mut self, params: PoolCheck, reply: Reply) {
        let PoolCheck { name, repair } = &params;
        if self.pools.is_serving(name) {
            if !repair {
                return self.ask_pool(name, Call::Check, Then::Tell(reply));
            }
            let error = in_use(format!("{name} is open"));
            let advice = format!("forebay pool export {name} closes it");
            return drop(reply.send(Err(error.with_advice(advice))));
        }
        if self.pools.open.contains_key(name) || self.pools.is_opening(name) {
            let error = in_use(format!("{name} is being opened or closed; try again in a moment"));
            return drop(reply.send(Err(error)));
        }
        self.search(Wanted::Check(params, reply));
    }

    /// Its block devices are there, and nobody uses them.
    pub(super) fn start_check(
        &mut self,
        found: api::results::FoundPool,
        repair: bool,
        reply: Reply,
    ) {
        let api::results::FoundPool { name, bdevs, .. } = found;
        match self.prepare(&name, &bdevs) {
            Ok((devices, memory)) => {
                let job = Job::start(move || {
                    let buffers = || dma::Pool::over(memory, POOL_BLOCK_BYTES);
                    check(&devices, repair, buffers)
                });
                self.pools.works.push(Work { memory, bdevs, what: What::Check(job, reply) });
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    pub(super) fn finish_check(&mut self, work: Work, checked: Result<Checked, RpcError>) {
        let Work { memory, bdevs, what } = work;
        bdevs.iter().for_each(|name| self.bdevs.release(name));
        self.take_memory_back(memory, &bdevs, checked.as_ref().err());
        let What::Check(_, reply) = what else { return };
        let _ = reply.send(checked.map(|(report, repaired)| json!(closed(&report, repaired))));
    }

    /// What a pool that serves found in itself.
    pub(super) fn report_open(&self, pool: &str, faults: Vec<String>) -> PoolReport {
        let open = self.pools.open.get(pool);
        let fault = |what| PoolFault { volumes: Vec::new(), what, repairable: false };
        PoolReport {
            name: pool.to_owned(),
            uuid: open.map(|open| open.uuid.to_string()).unwrap_or_default(),
            open: true,
            faults: faults.into_iter().map(fault).collect(),
            notes: Vec::new(),
            repaired: false,
        }
    }
}

/// Reads a pool, and writes it anew if that is wanted and would help.
fn check(
    devices: &[Arc<dyn Bdev>],
    repair: bool,
    buffers: impl Fn() -> dma::Pool,
) -> Result<Checked, RpcError> {
    let report = volume::pool::check(devices, buffers()).map_err(pool_error)?;
    let is_whole = report.faults.is_empty() && report.notes.is_empty();
    if !repair || is_whole {
        return Ok((report, false));
    }
    if !report.is_repairable() {
        let found = report.faults.iter().map(|fault| describe(&report.pool, fault)).collect();
        let message = format!("{}: there is no other copy of what is damaged", report.pool);
        let error = RpcError::new(ErrorCode::NeedsForce, message).with_found(found);
        let advice = format!(
            "nothing was written; forebay pool import {} opens what is whole, and gives up the \
             damaged volumes",
            report.pool
        );
        return Err(error.with_advice(advice));
    }
    volume::pool::repair(devices, buffers()).map_err(pool_error)?;
    Ok((report, true))
}

fn describe(pool: &str, fault: &volume::pool::Finding) -> String {
    let volumes: Vec<String> = fault.volumes.iter().map(|name| full(pool, name)).collect();
    let colon = if volumes.is_empty() { "" } else { ": " };
    format!("{}{colon}{}", volumes.join(", "), fault.what)
}

fn closed(report: &Report, repaired: bool) -> PoolReport {
    let fault = |fault: &volume::pool::Finding| PoolFault {
        volumes: fault.volumes.iter().map(|name| full(&report.pool, name)).collect(),
        what: fault.what.clone(),
        repairable: fault.repairable,
    };
    PoolReport {
        name: report.pool.clone(),
        uuid: report.uuid.to_string(),
        open: false,
        faults: report.faults.iter().map(fault).collect(),
        notes: report.notes.clone(),
        repaired,
    }
}
