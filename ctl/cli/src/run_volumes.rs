//! Carries out the commands for pools, volumes and snapshots.

use std::io::{IsTerminal as _, Write};
use std::time::Duration;

use api::results::{Difference, FoundPool, PoolInfo, PoolReport, VolumeInfo, VolumeKind};
use api::{Call, Nothing, PoolName, VolumeName};

use crate::error::CliError;
use crate::run::Session;
use crate::volume_arguments::{Labels, PoolCommand, SnapshotCommand, VolumeCommand};
use crate::volume_tables as tables;

/// How often something that takes long is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

pub(crate) fn run_pool<W: Write>(
    command: &PoolCommand,
    session: &mut Session<'_, W>,
) -> Result<(), CliError> {
    let named = |name: &String| PoolName { name: name.clone() };
    match command {
        PoolCommand::Create { name, bdevs, force, journal } => {
            let create = api::PoolCreate {
                name: name.clone(),
                bdevs: bdevs.clone(),
                force: *force,
                journal_bytes: *journal,
            };
            session.wait_for(format!("making {name}"));
            session.show(Call::PoolCreate(create), |info: &PoolInfo| tables::pool(info))
        }
        PoolCommand::Import { name: Some(name), force } => {
            session.wait_for(format!("opening {name}"));
            let import = api::PoolImport { name: name.clone(), force: *force };
            session.show(Call::PoolImport(import), |info: &PoolInfo| tables::pool(info))
        }
        PoolCommand::Import { name: None, .. } => {
            session.wait_for("looking at block devices".to_owned());
            session.show(Call::PoolScan(Nothing {}), |found: &Vec<FoundPool>| tables::found(found))
        }
        PoolCommand::Export { name } => {
            session.wait_for(format!("closing {name}"));
            session.done(Call::PoolExport(named(name)), "closed; its block devices are free")
        }
        PoolCommand::Add { name, bdevs, force } => {
            session.wait_for(format!("adding to {name}"));
            let add = api::PoolAdd { name: name.clone(), bdevs: bdevs.clone(), force: *force };
            session.show(Call::PoolAdd(add), |info: &PoolInfo| tables::pool(info))
        }
        PoolCommand::Grow { name } => {
            session.show(Call::PoolGrow(named(name)), |info: &PoolInfo| tables::pool(info))
        }
        PoolCommand::Remove { name, bdev, no_wait, cancel } => {
            let remove =
                api::PoolRemove { name: name.clone(), bdev: bdev.clone(), cancel: *cancel };
            let info: PoolInfo = session.call(Call::PoolRemove(remove))?;
            let info = match *no_wait || *cancel {
                true => info,
                false => wait_for_removal(name, bdev, session)?,
            };
            session.print(&info, tables::pool)
        }
        PoolCommand::Destroy { name, force, yes } => {
            if !yes {
                ask(&format!("Destroy {name}"), &format!("{name} would be destroyed"))?;
            }
            session.wait_for(format!("destroying {name}"));
            let destroy = api::PoolDestroy { name: name.clone(), force: *force };
            session.done(Call::PoolDestroy(destroy), "destroyed; its block devices are free")
        }
        PoolCommand::Check { name, repair } => {
            session.wait_for(format!("checking {name}"));
            let check = api::PoolCheck { name: name.clone(), repair: *repair };
            let report: PoolReport = session.call(Call::PoolCheck(check))?;
            session.print(&report, tables::report)?;
            match report.faults.len() {
                count if count > 0 && !report.repaired => Err(CliError::Faults { count }),
                _ => Ok(()),
            }
        }
        PoolCommand::List => {
            session.show(Call::PoolList(Nothing {}), |infos: &Vec<PoolInfo>| tables::pools(infos))
        }
        PoolCommand::Show { name } => {
            session.show(Call::PoolShow(named(name)), |info: &PoolInfo| tables::pool(info))
        }
    }
}

/// Shows how far a removal is until it has ended.
fn wait_for_removal<W: Write>(
    name: &str,
    bdev: &str,
    session: &mut Session<'_, W>,
) -> Result<PoolInfo, CliError> {
    let bar = session.bar(0, &format!("emptying {bdev}"));
    loop {
        let info: PoolInfo = session.call(Call::PoolShow(PoolName { name: name.to_owned() }))?;
        match &info.removal {
            Some(removal) => {
                bar.set_length(removal.total_bytes);
                bar.set_position(removal.total_bytes.saturating_sub(removal.left_bytes));
                std::thread::sleep(LOOK_AGAIN);
            }
            None if info.bdevs.iter().any(|known| known == bdev) => {
                bar.finish_and_clear();
                let why = info.warnings.iter().find(|warning| warning.contains("not removed"));
                let why = why.cloned().unwrap_or_else(|| format!("{bdev}: not removed"));
                let error = api::RpcError::new(api::ErrorCode::Failed, why);
                return Err(CliError::Call(api::CallError::Refused(error)));
            }
            None => {
                bar.finish_and_clear();
                return Ok(info);
            }
        }
    }
}

pub(crate) fn run_volume<W: Write>(
    command: &VolumeCommand,
    session: &mut Session<'_, W>,
) -> Result<(), CliError> {
    let one = |info: &VolumeInfo| tables::volume(info);
    let named = |volume: &String| VolumeName { volume: volume.clone() };
    match command {
        VolumeCommand::List { pool, labels, tree } => {
            let list = api::VolumeList { pool: pool.clone(), labels: labels.map() };
            session.show(Call::VolumeList(list), |infos: &Vec<VolumeInfo>| match tree {
                true => tables::tree(infos),
                false => tables::volumes(infos),
            })
        }
        VolumeCommand::Show { volume } => session.show(Call::VolumeShow(named(volume)), one),
        VolumeCommand::Delete { volumes, labels, yes } => {
            let volumes = match volumes.is_empty() {
                true => labelled(labels, *yes, session)?,
                false => volumes.clone(),
            };
            let call = |volume: &String| Call::VolumeDelete(named(volume));
            session.each(&volumes, call, "deleted")
        }
        VolumeCommand::Promote { volume } => session.show(Call::VolumePromote(named(volume)), one),
        VolumeCommand::Rollback { volume, .. } => {
            session.wait_for(format!("rolling {volume} back"));
            session.show(change_call(command)?, one)
        }
        _ => session.show(change_call(command)?, one),
    }
}

/// The call of a command that makes or changes one volume.
fn change_call(command: &VolumeCommand) -> Result<Call, CliError> {
    Ok(match command {
        VolumeCommand::Create { volume, size, block_size, reserve, labels, description } => {
            Call::VolumeCreate(api::VolumeCreate {
                volume: volume.clone(),
                size_bytes: *size,
                block_bytes: *block_size,
                reserve: *reserve,
                labels: labels.map(),
                description: description.clone(),
            })
        }
        VolumeCommand::Rename { volume, name } => {
            Call::VolumeRename(api::VolumeRename { volume: volume.clone(), name: name.clone() })
        }
        VolumeCommand::Resize { volume, size, force } => Call::VolumeResize(api::VolumeResize {
            volume: volume.clone(),
            size_bytes: *size,
            force: *force,
        }),
        VolumeCommand::Reserve { volume, off } => {
            Call::VolumeReserve(api::VolumeReserve { volume: volume.clone(), reserve: !off })
        }
        VolumeCommand::Label { volume, changes, description } => {
            Call::VolumeLabel(api::VolumeLabel {
                volume: volume.clone(),
                labels: changes.iter().cloned().collect(),
                description: description.clone(),
            })
        }
        VolumeCommand::Rollback { volume, snapshot, keep, force } => {
            Call::VolumeRollback(api::VolumeRollback {
                volume: volume.clone(),
                snapshot: in_pool_of(volume, snapshot)?,
                keep: keep.clone(),
                force: *force,
            })
        }
        VolumeCommand::List { .. }
        | VolumeCommand::Show { .. }
        | VolumeCommand::Delete { .. }
        | VolumeCommand::Promote { .. } => unreachable!("`run_volume` has seen to them"),
    })
}

/// A snapshot's name without its pool, which has to be the volume's.
fn in_pool_of(volume: &str, snapshot: &str) -> Result<String, CliError> {
    let pool = |name: &str| api::split_volume_name(name).map(|(pool, _)| pool.to_owned());
    let name = match api::split_volume_name(snapshot) {
        Some(_) if pool(snapshot) != pool(volume) => {
            let message = format!("{snapshot} is not in the pool of {volume}");
            return Err(CliError::Usage(message));
        }
        Some((_, name)) => name,
        None => snapshot,
    };
    api::check_pool_name(name)
        .map_err(|reason| CliError::Usage(format!("snapshot {name}: {reason}")))?;
    Ok(name.to_owned())
}

/// The volumes with these labels, once whoever asks has said yes.
fn labelled<W: Write>(
    labels: &Labels,
    yes: bool,
    session: &mut Session<'_, W>,
) -> Result<Vec<String>, CliError> {
    let list = api::VolumeList { pool: None, labels: labels.map() };
    let infos: Vec<VolumeInfo> = session.call(Call::VolumeList(list))?;
    let volumes = infos.into_iter().filter(|info| info.kind == VolumeKind::Volume);
    let volumes: Vec<String> = volumes.map(|info| info.name).collect();
    if yes || volumes.is_empty() {
        return Ok(volumes);
    }
    let names = volumes.join(", ");
    ask(&format!("Delete {names}"), &format!("{names} would be deleted"))?;
    Ok(volumes)
}

/// Asks on a terminal whether that is meant; elsewhere it needs to be said at once.
fn ask(question: &str, would: &str) -> Result<(), CliError> {
    if !std::io::stdin().is_terminal() {
        return Err(CliError::Usage(format!("{would}; --yes does it")));
    }
    let mut errors = std::io::stderr();
    write!(errors, "{question}? [y/N] ")?;
    errors.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(CliError::Usage("nothing was done".to_owned())),
    }
}

pub(crate) fn run_snapshot<W: Write>(
    command: &SnapshotCommand,
    session: &mut Session<'_, W>,
) -> Result<(), CliError> {
    let many = |infos: &Vec<VolumeInfo>| tables::volumes(infos);
    match command {
        SnapshotCommand::Create { volumes, name } => {
            let create = api::SnapshotCreate { volumes: volumes.clone(), name: name.clone() };
            session.show(Call::SnapshotCreate(create), many)
        }
        SnapshotCommand::List { volume } => {
            let list = api::SnapshotList { volume: volume.clone() };
            session.show(Call::SnapshotList(list), many)
        }
        SnapshotCommand::Delete { snapshots } => {
            let call = |name: &String| Call::SnapshotDelete(VolumeName { volume: name.clone() });
            session.each(snapshots, call, "deleted")
        }
        SnapshotCommand::Diff { from, to } => {
            let mut whole = Vec::new();
            let mut next = Some(0);
            while let Some(start) = next {
                let diff = api::SnapshotDiff { from: Some(from.clone()), to: to.clone(), start };
                let part: Difference = session.call(Call::SnapshotDiff(diff))?;
                whole.extend(part.extents);
                // It goes on further behind, or not at all.
                next = part.next.filter(|next| *next > start);
            }
            session.print(&whole, |extents| tables::extents(extents))
        }
        SnapshotCommand::Clone { snapshot, name, read_only } => {
            let clone = api::SnapshotClone {
                snapshot: snapshot.clone(),
                name: name.clone(),
                read_only: *read_only,
            };
            session.show(Call::SnapshotClone(clone), |info: &VolumeInfo| tables::volume(info))
        }
    }
}
