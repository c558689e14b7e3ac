//! Who may reach what.

use api::results::HostAccess;
use api::{HostChange, RpcError};
use serde_json::{Value, json};

use super::Control;
use super::exports::{not_found, target_error};
use crate::state::Export;

impl Control {
    /// Lets a host in, or every host. It is saved before anybody comes in.
    pub(super) fn allow_host(&mut self, change: &HostChange) -> Result<Value, RpcError> {
        let HostChange { nqn, host, any_host } = change;
        self.export(nqn)?;
        self.commit(
            |state| {
                if let Some(export) = state.export_mut(nqn) {
                    export.any_host |= any_host;
                    export.hosts.extend(host.clone());
                }
            },
            |control| control.apply_access(nqn),
        )?;
        Ok(json!(host_access(self.export(nqn)?)))
    }

    /// Takes that back, and disconnects who may not be there any more: at once, also where it
    /// cannot be saved.
    pub(super) fn deny_host(&mut self, change: &HostChange) -> Result<Value, RpcError> {
        let HostChange { nqn, host, any_host } = change;
        let export = self.export(nqn)?;
        if *any_host && !export.any_host {
            return Err(not_found(format!("not every host may connect to {nqn}")));
        }
        if let Some(host) = host {
            if export.any_host {
                let message = format!("every host may connect to {nqn}, {host} too");
                let advice = format!("forebay host deny {nqn} --any-host leaves those named");
                return Err(RpcError::invalid("host", message).with_advice(advice));
            }
            if !export.hosts.contains(host) {
                return Err(not_found(format!("host {host} is not allowed for {nqn}")));
            }
        }
        if let Some(export) = self.state.export_mut(nqn) {
            export.any_host &= !any_host;
            export.hosts.retain(|known| Some(known) != host.as_ref());
        }
        self.apply_access(nqn)?;
        self.save_state()?;
        Ok(json!(host_access(self.export(nqn)?)))
    }

    pub(super) fn host_list(&self, nqn: Option<&str>) -> Result<Value, RpcError> {
        if let Some(nqn) = nqn {
            return Ok(json!([host_access(self.export(nqn)?)]));
        }
        Ok(json!(self.state.exports.iter().map(host_access).collect::<Vec<_>>()))
    }

    /// Has the control half follow the state in who may reach a subsystem.
    pub(super) fn apply_access(&mut self, nqn: &str) -> Result<(), RpcError> {
        match (self.state.export(nqn), self.target.subsystem(nqn).is_some()) {
            (Some(Export { any_host, hosts, .. }), true) => {
                self.target.set_access(nqn, *any_host, hosts.clone()).map_err(target_error)
            }
            _ => Ok(()),
        }
    }

    fn export(&self, nqn: &str) -> Result<&Export, RpcError> {
        self.state.export(nqn).ok_or_else(|| not_found(format!("no export has the NQN {nqn}")))
    }
}

fn host_access(export: &Export) -> HostAccess {
    HostAccess {
        nqn: export.nqn.clone(),
        any_host: export.any_host,
        hosts: export.hosts.iter().cloned().collect(),
    }
}
