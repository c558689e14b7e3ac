//! NVMe controllers in sysfs.

mod bdf;
mod bind;
mod contents;
#[cfg(test)]
mod tests;
mod uses;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use bdf::Bdf;
pub use bind::Before;

use crate::error::VfioError;

/// Where the kernel's file systems are; anything but the default is for tests.
#[derive(Clone, Debug)]
pub struct System {
    /// sysfs.
    pub sys: PathBuf,
    /// procfs.
    pub proc: PathBuf,
    /// devfs.
    pub dev: PathBuf,
    /// `wipefs` of util-linux.
    pub wipefs: PathBuf,
    /// `modprobe` of kmod.
    pub modprobe: PathBuf,
    /// How long a driver may take to appear after it was asked to probe.
    pub probe_limit: Duration,
}

impl Default for System {
    fn default() -> Self {
        Self {
            sys: "/sys".into(),
            proc: "/proc".into(),
            dev: "/dev".into(),
            wipefs: "wipefs".into(),
            modprobe: "modprobe".into(),
            probe_limit: Duration::from_secs(10),
        }
    }
}

/// An NVMe controller as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    /// PCI address.
    pub bdf: Bdf,
    /// PCI vendor identifier.
    pub vendor: u16,
    /// PCI device identifier.
    pub device: u16,
    /// The driver that has it.
    pub driver: Option<String>,
    /// Model number, while the kernel's driver has it.
    pub model: Option<String>,
    /// Serial number, while the kernel's driver has it.
    pub serial: Option<String>,
    /// IOMMU group; none without an IOMMU.
    pub iommu_group: Option<u32>,
    /// NUMA node it hangs on, where there is more than one.
    pub numa_node: Option<u32>,
    /// Block devices that the kernel's driver made of its namespaces.
    pub namespaces: Vec<BlockDevice>,
}

/// A namespace as a block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockDevice {
    /// Kernel name, like `nvme0n1`.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Names of its partitions.
    pub partitions: Vec<String>,
}

impl System {
    /// All NVMe controllers, by address.
    ///
    /// # Errors
    /// The list of PCI devices cannot be read.
    pub fn controllers(&self) -> Result<Vec<Controller>, VfioError> {
        let mut found = Vec::new();
        for name in names(&self.sys.join("bus/pci/devices"))? {
            let Ok(bdf) = name.parse() else { continue };
            match self.controller(bdf) {
                Ok(controller) => found.push(controller),
                // Not ours, or unplugged while we looked.
                Err(VfioError::NotNvme { .. } | VfioError::NoDevice { .. }) => {}
                Err(error) => tracing::warn!(%error, "skipped"),
            }
        }
        found.sort_by_key(|controller| controller.bdf);
        Ok(found)
    }

    /// The NVMe controller at `bdf`.
    ///
    /// # Errors
    /// There is none.
    pub fn controller(&self, bdf: Bdf) -> Result<Controller, VfioError> {
        let path = self.device_path(bdf);
        let hex = |name| {
            let text = line(&path.join(name)).ok_or(VfioError::NoDevice { bdf })?;
            u32::from_str_radix(text.trim_start_matches("0x"), 16)
                .map_err(|_| VfioError::NoDevice { bdf })
        };
        let class = hex("class")?;
        if class >> 8 != 0x0108 {
            return Err(VfioError::NotNvme { bdf, class });
        }
        let nvme = names(&path.join("nvme")).unwrap_or_default().into_iter().next();
        let nvme = nvme.map(|name| path.join("nvme").join(name));
        let text = |name| line(&nvme.as_ref()?.join(name));
        Ok(Controller {
            bdf,
            vendor: hex("vendor")? as u16,
            device: hex("device")? as u16,
            driver: link_name(&path.join("driver")),
            model: text("model"),
            serial: text("serial"),
            iommu_group: link_name(&path.join("iommu_group")).and_then(|name| name.parse().ok()),
            numa_node: line(&path.join("numa_node")).and_then(|node| node.parse().ok()),
            namespaces: nvme.as_deref().map(|nvme| self.namespaces(nvme)).unwrap_or_default(),
        })
    }

    /// sysfs folder of a PCI function.
    pub fn device_path(&self, bdf: Bdf) -> PathBuf {
        self.sys.join("bus/pci/devices").join(bdf.to_string())
    }

    fn namespaces(&self, nvme: &Path) -> Vec<BlockDevice> {
        let mut names: Vec<_> =
            names(nvme).unwrap_or_default().iter().filter_map(|name| head_name(name)).collect();
        names.sort();
        names.dedup();
        names.into_iter().map(|name| self.block_device(name)).collect()
    }

    fn block_device(&self, name: String) -> BlockDevice {
        let path = self.sys.join("class/block").join(&name);
        let sectors = line(&path.join("size")).and_then(|size| size.parse::<u64>().ok());
        let entries = names(&path).unwrap_or_default();
        let mut partitions: Vec<_> = entries
            .into_iter()
            .filter(|entry| path.join(entry).join("partition").exists())
            .collect();
        partitions.sort();
        BlockDevice { name, bytes: sectors.unwrap_or(0).saturating_mul(512), partitions }
    }
}

/// The block device of an entry in a controller's folder: `nvme0n1` stands for itself, and the path
/// `nvme0c1n1` of a subsystem with several controllers for its head `nvme0n1`.
fn head_name(entry: &str) -> Option<String> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (instance, namespace) = entry.strip_prefix("nvme")?.split_once('n')?;
    let (instance, path) = instance.split_once('c').map_or((instance, "0"), |parts| parts);
    (digits(instance) && digits(path) && digits(namespace))
        .then(|| format!("nvme{instance}n{namespace}"))
}

/// First line of a file, trimmed; `None` when it cannot be read.
fn line(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// Last part of where a link points.
fn link_name(path: &Path) -> Option<String> {
    Some(fs::read_link(path).ok()?.file_name()?.to_string_lossy().into_owned())
}

/// Names in a folder.
fn names(path: &Path) -> Result<Vec<String>, VfioError> {
    let file = |source| VfioError::File { action: "reading", path: path.to_owned(), source };
    let entries = fs::read_dir(path).map_err(file)?;
    Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}
