//! Who uses a controller: whatever is found here keeps it with the kernel, always.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::{BlockDevice, Controller, System, line, names};

/// Exclusive holds on a controller's namespaces. While they are kept, nothing can mount, swap on or
/// stack anything upon them.
pub(super) struct Holds {
    _files: Vec<File>,
}

impl System {
    /// Holds every namespace exclusively and looks for users, in this order, so that no user can
    /// come between the look and what is done after it.
    ///
    /// # Errors
    /// All uses that were found, in words.
    pub(super) fn hold(&self, controller: &Controller) -> Result<Holds, Vec<String>> {
        let (mut files, mut uses) = (Vec::new(), Vec::new());
        for namespace in &controller.namespaces {
            let path = self.dev.join(&namespace.name);
            // On a block device, O_EXCL without O_CREAT asks for an exclusive hold.
            match OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&path) {
                Ok(file) => files.push(file),
                Err(error) => uses.push(format!("{}: {error}", path.display())),
            }
        }
        uses.extend(self.uses(controller));
        if uses.is_empty() { Ok(Holds { _files: files }) } else { Err(uses) }
    }

    /// Who uses the controller or its namespaces, in words, without keeping anybody from it.
    pub fn uses(&self, controller: &Controller) -> Vec<String> {
        let mut uses = Vec::new();
        for namespace in &controller.namespaces {
            self.uses_of(namespace, &mut uses);
        }
        let mut nodes: Vec<String> = Vec::new();
        for namespace in &controller.namespaces {
            nodes.push(namespace.name.clone());
            nodes.push(namespace.name.replacen("nvme", "ng", 1));
            nodes.extend(namespace.partitions.iter().cloned());
        }
        let folder = self.device_path(controller.bdf).join("nvme");
        nodes.extend(names(&folder).unwrap_or_default());
        self.openers(&nodes, false, &mut uses);
        self.openers(&self.vfio_nodes(controller), true, &mut uses);
        uses
    }

    /// Nodes of /dev through which vfio gives the controller to a process: that of its group, and
    /// that of its own which newer kernels have.
    pub(super) fn vfio_nodes(&self, controller: &Controller) -> Vec<String> {
        let group = controller.iommu_group.map(|group| format!("vfio/{group}"));
        let own = names(&self.device_path(controller.bdf).join("vfio-dev")).unwrap_or_default();
        group.into_iter().chain(own.iter().map(|name| format!("vfio/devices/{name}"))).collect()
    }

    fn uses_of(&self, namespace: &BlockDevice, uses: &mut Vec<String>) {
        let folder = self.sys.join("class/block").join(&namespace.name);
        let whole = std::iter::once((namespace.name.as_str(), folder.clone()));
        let parts = namespace.partitions.iter().map(|name| (name.as_str(), folder.join(name)));
        for (name, folder) in whole.chain(parts) {
            for holder in names(&folder.join("holders")).unwrap_or_default() {
                uses.push(format!("{name} is held by {}", self.holder_name(&holder)));
            }
            if let Some(number) = line(&folder.join("dev")) {
                self.mounts(name, &number, uses);
            }
            self.swaps(name, uses);
            self.exports(name, uses);
        }
    }

    /// A device-mapper holder's own name says more than `dm-3`.
    fn holder_name(&self, holder: &str) -> String {
        match line(&self.sys.join("class/block").join(holder).join("dm/name")) {
            Some(name) => format!("{holder} ({name})"),
            None => holder.to_owned(),
        }
    }

    /// Looks through the mounts of every process: each may be in a mount namespace of its own.
    fn mounts(&self, name: &str, number: &str, uses: &mut Vec<String>) {
        let node = self.dev.join(name);
        for pid in self.processes() {
            let path = self.proc.join(&pid).join("mountinfo");
            // A process that ended in the meantime mounts nothing.
            let Ok(text) = fs::read_to_string(path) else { continue };
            for mount in text.lines() {
                let fields: Vec<&str> = mount.split(' ').collect();
                let source = fields.iter().position(|field| *field == "-").map(|at| at + 2);
                // File systems over several devices have numbers of their own: there the source
                // tells.
                let is_source = source.and_then(|at| fields.get(at)).map(Path::new) == Some(&node);
                if (fields.get(2) == Some(&number) || is_source)
                    && let Some(place) = fields.get(4)
                {
                    let found = format!("{name} is mounted at {place}");
                    if !uses.contains(&found) {
                        uses.push(found);
                    }
                }
            }
        }
    }

    fn swaps(&self, name: &str, uses: &mut Vec<String>) {
        let text = fs::read_to_string(self.proc.join("swaps")).unwrap_or_default();
        let node = self.dev.join(name);
        for swap in text.lines().skip(1) {
            if swap.split_whitespace().next().map(Path::new) == Some(&node) {
                uses.push(format!("{name} is swap space"));
            }
        }
    }

    /// The kernel's own target and loop devices use block devices without holding them.
    fn exports(&self, name: &str, uses: &mut Vec<String>) {
        let node = self.dev.join(name);
        let subsystems = self.sys.join("kernel/config/nvmet/subsystems");
        for subsystem in names(&subsystems).unwrap_or_default() {
            let namespaces = subsystems.join(&subsystem).join("namespaces");
            for nsid in names(&namespaces).unwrap_or_default() {
                let namespace = namespaces.join(nsid);
                let path = line(&namespace.join("device_path"));
                let enabled = line(&namespace.join("enable")).as_deref() == Some("1");
                if enabled && path.as_deref().map(Path::new) == Some(&node) {
                    uses.push(format!("{name} is exported by the kernel as {subsystem}"));
                }
            }
        }
        let block = self.sys.join("class/block");
        for device in names(&block).unwrap_or_default() {
            let file = line(&block.join(&device).join("loop/backing_file"));
            if file.as_deref().map(Path::new) == Some(&node) {
                uses.push(format!("{name} is behind {device}"));
            }
        }
    }

    /// Adds the processes that have one of these nodes of /dev open.
    pub(super) fn openers(&self, nodes: &[String], own: bool, uses: &mut Vec<String>) {
        let paths: Vec<_> = nodes.iter().map(|node| self.dev.join(node)).collect();
        let this = std::process::id().to_string();
        for pid in self.processes() {
            if pid == this && !own {
                continue;
            }
            let folder = self.proc.join(&pid);
            for fd in names(&folder.join("fd")).unwrap_or_default() {
                let Ok(target) = fs::read_link(folder.join("fd").join(fd)) else { continue };
                if paths.contains(&target) {
                    let comm = line(&folder.join("comm")).unwrap_or_default();
                    uses.push(format!("{} is open in process {pid} ({comm})", target.display()));
                    break;
                }
            }
        }
    }

    fn processes(&self) -> Vec<String> {
        let all = names(&self.proc).unwrap_or_default();
        all.into_iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).collect()
    }
}
