//! Taking a controller from the kernel, and giving it back.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use super::{Bdf, Controller, System, line, link_name, names};
use crate::error::VfioError;

/// Drivers that a controller is taken from.
const KNOWN_DRIVERS: [&str; 2] = ["nvme", "vfio-pci"];

/// Who had a controller before it was taken.
#[derive(Clone, Debug)]
pub struct Before {
    driver: Option<String>,
    driver_override: String,
}

impl System {
    /// Gives the controller to vfio-pci, and tells who had it before. Nothing else is unbound,
    /// whatever happens. With `force`, data on it is no obstacle; a user always is.
    ///
    /// # Errors
    /// The controller is in use, bears data, shares its IOMMU group, or a step failed; it is then
    /// with its earlier driver again.
    pub fn bind(&self, bdf: Bdf, force: bool) -> Result<Before, VfioError> {
        let controller = self.controller(bdf)?;
        self.check_isolation(&controller)?;
        let driver = controller.driver.clone();
        if let Some(driver) = driver.clone().filter(|name| !KNOWN_DRIVERS.contains(&&**name)) {
            return Err(VfioError::OtherDriver { bdf, driver });
        }
        self.load_vfio_pci()?;
        let holds = self.hold(&controller).map_err(|uses| VfioError::InUse { bdf, uses })?;
        if !force {
            self.check_contents(&controller)?;
        }
        let driver_override = line(&self.device_path(bdf).join("driver_override"));
        // What the kernel prints where there is none.
        let driver_override = driver_override.filter(|text| text != "(null)").unwrap_or_default();
        let before = Before { driver, driver_override };
        if before.driver.as_deref() == Some("vfio-pci") {
            return Ok(before);
        }
        let moved = self.hand_over(bdf, "vfio-pci", Some("vfio-pci"));
        drop(holds);
        if let Err(error) = moved {
            if let Err(second) = self.restore(bdf, &before) {
                tracing::error!(%bdf, error = %second, "not back with its earlier driver");
            }
            return Err(error);
        }
        tracing::info!(%bdf, force, from = before.driver, "taken");
        Ok(before)
    }

    /// Undoes [`System::bind`].
    ///
    /// # Errors
    /// A process has it open, or its driver does not take it.
    pub fn restore(&self, bdf: Bdf, before: &Before) -> Result<(), VfioError> {
        let driver = match before.driver.as_deref() {
            Some("vfio-pci") => return Ok(()),
            Some(_) => Some("nvme"),
            None => None,
        };
        self.check_closed(&self.controller(bdf)?)?;
        self.hand_over(bdf, &before.driver_override, driver)
    }

    /// Gives the controller to the kernel's driver.
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
        self.check_closed(&controller)?;
        self.hand_over(bdf, "", Some("nvme"))?;
        tracing::info!(%bdf, "given back to the kernel");
        self.controller(bdf)
    }

    /// Whether anything is on the controller's namespaces. Only while the kernel's driver has it
    /// can that be seen.
    fn check_contents(&self, controller: &Controller) -> Result<(), VfioError> {
        let bdf = controller.bdf;
        let unknown =
            |reason: &str| Err(VfioError::ContentsUnknown { bdf, reason: reason.to_owned() });
        match controller.driver.as_deref() {
            Some("nvme") => {}
            Some(_) => return unknown("vfio-pci has it already, perhaps for a virtual machine"),
            None => return unknown("no driver has it"),
        }
        let found = self.signatures(controller)?;
        if found.is_empty() { Ok(()) } else { Err(VfioError::BearsData { bdf, found }) }
    }

    /// Unbinding would wait, without end, for whoever has the controller open through vfio.
    fn check_closed(&self, controller: &Controller) -> Result<(), VfioError> {
        let mut uses = Vec::new();
        self.openers(&self.vfio_nodes(controller), true, &mut uses);
        let bdf = controller.bdf;
        if uses.is_empty() { Ok(()) } else { Err(VfioError::InUse { bdf, uses }) }
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
        Err(VfioError::SharedGroup { bdf, group, others })
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
    /// and has the kernel probe again. In this order no third driver can come between. Without a
    /// driver to go to it is left without one.
    fn hand_over(
        &self,
        bdf: Bdf,
        only: &str,
        driver: Option<&'static str>,
    ) -> Result<(), VfioError> {
        let path = self.device_path(bdf);
        write(path.join("driver_override"), &format!("{only}\n"))?;
        if link_name(&path.join("driver")).is_some() {
            write(path.join("driver/unbind"), &bdf.to_string())?;
        }
        let Some(driver) = driver else { return Ok(()) };
        write(self.sys.join("bus/pci/drivers_probe"), &bdf.to_string())?;
        let limit = Instant::now() + self.probe_limit;
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
