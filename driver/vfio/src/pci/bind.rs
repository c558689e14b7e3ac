//! Taking a controller from the kernel, and giving it back.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use super::{Bdf, Controller, System, line, link_name, names};
use crate::error::VfioError;

/// How long a driver may take to appear after it was asked to probe.
const PROBE_LIMIT: Duration = Duration::from_secs(10);

impl System {
    /// Gives the controller to vfio-pci. Nothing else is unbound, whatever happens. With `force`,
    /// data on it is no obstacle; a user always is.
    ///
    /// # Errors
    /// The controller is in use, bears data, shares its IOMMU group, or a step failed; it is then
    /// with the kernel's driver again.
    pub fn bind(&self, bdf: Bdf, force: bool) -> Result<Controller, VfioError> {
        let controller = self.controller(bdf)?;
        self.check_isolation(&controller)?;
        match controller.driver.as_deref() {
            Some("vfio-pci") => return Ok(controller),
            Some("nvme") => {}
            Some(driver) => {
                return Err(VfioError::OtherDriver { bdf, driver: driver.to_owned() });
            }
            // Somebody unbound it; the kernel shows nothing of what is on it.
            None if force => {}
            None => {
                let reason = "no driver has it".to_owned();
                return Err(VfioError::ContentsUnknown { bdf, reason });
            }
        }
        self.load_vfio_pci()?;
        let holds = self
            .hold(&controller)
            .map_err(|uses| VfioError::InUse { bdf, uses: uses.join(", ") })?;
        if !force {
            let found = self.signatures(&controller)?;
            if !found.is_empty() {
                return Err(VfioError::BearsData { bdf, found: found.join(", ") });
            }
        }
        let moved = self.hand_over(bdf, "vfio-pci", "vfio-pci");
        drop(holds);
        if let Err(error) = moved {
            if let Err(second) = self.hand_over(bdf, "", "nvme") {
                tracing::error!(%bdf, error = %second, "not back with the kernel's driver");
            }
            return Err(error);
        }
        tracing::info!(%bdf, force, "taken from the kernel");
        self.controller(bdf)
    }

    /// Gives the controller back to the kernel's driver.
    ///
    /// # Errors
    /// A process has it open, or the driver does not take it.
    pub fn release(&self, bdf: Bdf) -> Result<Controller, VfioError> {
        let controller = self.controller(bdf)?;
        match controller.driver.as_deref() {
            Some("nvme") => return Ok(controller),
            Some("vfio-pci") | None => {}
            Some(driver) => {
                return Err(VfioError::OtherDriver { bdf, driver: driver.to_owned() });
            }
        }
        // Unbinding would wait, without end, for whoever has the group open.
        let mut uses = Vec::new();
        if let Some(group) = controller.iommu_group {
            self.openers(&[format!("vfio/{group}")], true, &mut uses);
        }
        if !uses.is_empty() {
            return Err(VfioError::InUse { bdf, uses: uses.join(", ") });
        }
        self.hand_over(bdf, "", "nvme")?;
        tracing::info!(%bdf, "given back to the kernel");
        self.controller(bdf)
    }

    /// Names who else is in the group. Bridges do not count: they stay with the kernel, which vfio
    /// allows, because their driver starts no memory access.
    fn check_isolation(&self, controller: &Controller) -> Result<(), VfioError> {
        let bdf = controller.bdf;
        let group = controller.iommu_group.ok_or(VfioError::NoIommu { bdf })?;
        let devices = names(&self.device_path(bdf).join("iommu_group/devices"))?;
        let mut others: Vec<String> = Vec::new();
        for name in devices.into_iter().filter(|name| *name != bdf.to_string()) {
            let path = self.sys.join("bus/pci/devices").join(&name);
            let class = line(&path.join("class")).unwrap_or_default();
            if !class.starts_with("0x0604") {
                let driver = link_name(&path.join("driver")).unwrap_or("no driver".to_owned());
                others.push(format!("{name} ({driver})"));
            }
        }
        others.sort();
        if others.is_empty() {
            return Ok(());
        }
        Err(VfioError::SharedGroup { bdf, group, others: others.join(", ") })
    }

    fn load_vfio_pci(&self) -> Result<(), VfioError> {
        let folder = self.sys.join("bus/pci/drivers/vfio-pci");
        if folder.exists() {
            return Ok(());
        }
        let reason = match Command::new(&self.modprobe).arg("vfio-pci").output() {
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => format!("{}: {error}", self.modprobe.display()),
        };
        if folder.exists() { Ok(()) } else { Err(VfioError::NoVfioPci { reason }) }
    }

    /// Moves the controller: names the only driver that may take it, takes it from the present one,
    /// and has the kernel probe again. In this order no third driver can come between.
    fn hand_over(&self, bdf: Bdf, only: &str, driver: &'static str) -> Result<(), VfioError> {
        let path = self.device_path(bdf);
        write(path.join("driver_override"), &format!("{only}\n"))?;
        if link_name(&path.join("driver")).is_some() {
            write(path.join("driver/unbind"), &bdf.to_string())?;
        }
        write(self.sys.join("bus/pci/drivers_probe"), &bdf.to_string())?;
        let limit = Instant::now() + PROBE_LIMIT;
        while link_name(&path.join("driver")).as_deref() != Some(driver) {
            if Instant::now() >= limit {
                return Err(VfioError::NotTaken { bdf, driver });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

fn write(path: PathBuf, text: &str) -> Result<(), VfioError> {
    fs::write(&path, text).map_err(|source| VfioError::File { action: "writing", path, source })
}
