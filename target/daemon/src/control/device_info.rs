//! What can be said of SSDs: who has them, what is on them, how they are.

use api::results::{DeviceHealth, DeviceInfo};
use api::{ErrorCode, RpcError};
use nvme_spec::log_page::{
    Smart, WARNING_READ_ONLY, WARNING_RELIABILITY, WARNING_SPARE, WARNING_TEMPERATURE,
    WARNING_VOLATILE_MEMORY, counter,
};
use serde_json::{Value, json};
use vfio::VfioError;
use vfio::pci::{Bdf, Controller, System};

use super::Control;
use super::job::Job;
use super::socket::Reply;

/// A data unit of the SMART log, in bytes.
const DATA_UNIT_BYTES: u64 = 512_000;

/// 0 degrees Celsius, as the SMART log has it.
const FREEZING_KELVIN: i32 = 273;

/// What was found out about a controller by looking from outside.
pub(super) struct Seen {
    controller: Controller,
    used_by: Vec<String>,
    signatures: Vec<String>,
    contents_unknown: Option<String>,
}

/// A caller that waits for a look at controllers.
pub(super) struct Look {
    job: Job<Vec<Seen>>,
    /// One controller is asked for, not a list.
    single: bool,
    reply: Reply,
}

impl Seen {
    /// Looks at a controller that Forebay does not drive, which takes a while: programs are run,
    /// and every process is asked what it has open.
    pub(super) fn look(system: &System, controller: Controller) -> Self {
        let used_by = system.uses(&controller);
        let (signatures, contents_unknown) = match controller.driver.as_deref() {
            Some("nvme") => match system.signatures(&controller) {
                Ok(found) => (found, None),
                Err(VfioError::ContentsUnknown { reason, .. }) => (Vec::new(), Some(reason)),
                Err(error) => (Vec::new(), Some(error.to_string())),
            },
            _ => (Vec::new(), Some("not with the kernel's driver".to_owned())),
        };
        Self { controller, used_by, signatures, contents_unknown }
    }

    /// A controller that Forebay drives: nobody else uses it, and what is on it is its hosts'.
    fn ours(controller: Controller) -> Self {
        let (used_by, signatures) = (Vec::new(), Vec::new());
        Self { controller, used_by, signatures, contents_unknown: None }
    }
}

impl Control {
    /// Answers with all controllers, or with the one at this address.
    pub(super) fn look_at_devices(&mut self, bdf: Option<&str>, reply: Reply) {
        let wanted = match bdf.map(str::parse::<Bdf>).transpose() {
            Ok(wanted) => wanted,
            Err(error) => return drop(reply.send(Err(vfio_error(error)))),
        };
        let ours = self.open_bdfs();
        let job = Job::start(move || {
            let system = System::default();
            let found = match wanted {
                Some(bdf) => system.controller(bdf).map(|one| vec![one]),
                None => system.controllers(),
            };
            let look = |controller: Controller| match ours.contains(&controller.bdf) {
                true => Seen::ours(controller),
                false => Seen::look(&system, controller),
            };
            Ok(found.map_err(vfio_error)?.into_iter().map(look).collect())
        });
        self.looks.push(Look { job, single: wanted.is_some(), reply });
    }

    pub(super) fn poll_looks(&mut self) {
        for mut look in std::mem::take(&mut self.looks) {
            let Some(result) = look.job.poll() else {
                self.looks.push(look);
                continue;
            };
            let answer = result.map(|seen| {
                let infos: Vec<_> = seen.into_iter().map(|seen| self.device_info(seen)).collect();
                if look.single { json!(infos.first()) } else { json!(infos) }
            });
            let _ = look.reply.send(answer);
        }
    }

    /// How a device that is ours is now, for the answer to the call that made it ours.
    pub(super) fn describe(&self, bdf: Bdf) -> Result<Value, RpcError> {
        let controller = System::default().controller(bdf).map_err(vfio_error)?;
        Ok(json!(self.device_info(Seen::ours(controller))))
    }

    pub(super) fn device_info(&self, seen: Seen) -> DeviceInfo {
        let Seen { controller, used_by, signatures, contents_unknown } = seen;
        let device = self.open_device(controller.bdf);
        let identity = device.and_then(|device| device.identity());
        DeviceInfo {
            bdf: controller.bdf.to_string(),
            vendor_id: controller.vendor,
            device_id: controller.device,
            model: controller.model.or_else(|| identity.map(|id| id.model.clone())),
            serial: controller.serial.or_else(|| identity.map(|id| id.serial.clone())),
            driver: controller.driver,
            iommu_group: controller.iommu_group,
            open: device.is_some(),
            used_by,
            signatures,
            contents_unknown,
            bdevs: self.bdevs_of(controller.bdf),
            health: device.and_then(|device| device.smart()).map(device_health),
        }
    }
}

fn device_health(smart: &Smart) -> DeviceHealth {
    let warnings = [
        (WARNING_SPARE, "spare"),
        (WARNING_TEMPERATURE, "temperature"),
        (WARNING_RELIABILITY, "reliability"),
        (WARNING_READ_ONLY, "read-only"),
        (WARNING_VOLATILE_MEMORY, "backup"),
    ];
    let warnings = warnings.into_iter().filter(|(bit, _)| smart.critical_warning & bit != 0);
    let kelvin = i32::from(smart.temperature_kelvin.get());
    DeviceHealth {
        warnings: warnings.map(|(_, word)| word.to_owned()).collect(),
        temperature_celsius: (kelvin != 0).then_some(kelvin - FREEZING_KELVIN),
        spare_percent: smart.available_spare,
        spare_threshold_percent: smart.spare_threshold,
        used_percent: smart.percentage_used,
        media_errors: narrow(smart.media_errors),
        unsafe_shutdowns: narrow(smart.unsafe_shutdowns),
        power_on_hours: narrow(smart.power_on_hours),
        written_bytes: narrow(smart.data_units_written).saturating_mul(DATA_UNIT_BYTES),
    }
}

/// A counter of the log; one beyond 64 bits counts nothing that can happen.
pub(super) fn narrow(field: [u8; 16]) -> u64 {
    u64::try_from(counter(field)).unwrap_or(u64::MAX)
}

pub(super) fn vfio_error(error: VfioError) -> RpcError {
    let code = match &error {
        VfioError::BadBdf { .. } => ErrorCode::InvalidParams,
        VfioError::NoDevice { .. } | VfioError::NotNvme { .. } => ErrorCode::NotFound,
        VfioError::InUse { .. } | VfioError::OtherDriver { .. } => ErrorCode::InUse,
        VfioError::BearsData { .. } | VfioError::ContentsUnknown { .. } => ErrorCode::NeedsForce,
        VfioError::NoIommu { .. }
        | VfioError::SharedGroup { .. }
        | VfioError::NoVfioPci { .. }
        | VfioError::Open { .. }
        | VfioError::Map { .. }
        | VfioError::LockedMemory { .. } => ErrorCode::Unavailable,
        _ => ErrorCode::Failed,
    };
    let plain = |advice: &str| RpcError::new(code, error.to_string()).with_advice(advice);
    match &error {
        // What was found has a place of its own.
        VfioError::InUse { bdf, uses } => {
            RpcError::new(code, format!("{bdf} is in use, and that cannot be forced"))
                .with_found(uses.clone())
                .with_advice("end what was found, then try again")
        }
        VfioError::BearsData { bdf, found } => {
            RpcError::new(code, format!("{bdf} bears data, which would be at risk"))
                .with_found(found.clone())
                .with_advice(format!("if it may be lost: forebay device bind --force {bdf}"))
        }
        VfioError::ContentsUnknown { bdf, reason } => {
            RpcError::new(code, format!("what is on {bdf} cannot be told"))
                .with_found(vec![reason.clone()])
                .with_advice(format!("if it may be lost: forebay device bind --force {bdf}"))
        }
        VfioError::SharedGroup { bdf, group, others } => {
            let message = format!("IOMMU group {group} of {bdf} holds other devices, too");
            RpcError::new(code, message).with_found(others.clone()).with_advice(
                "move the SSD to a slot of its own, or enable ACS in the firmware: all of a group \
                 leave the kernel, or none",
            )
        }
        VfioError::BadBdf { .. } | VfioError::NoDevice { .. } | VfioError::NotNvme { .. } => {
            plain("forebay device list")
        }
        VfioError::OtherDriver { bdf, driver } => plain(&format!(
            "if the SSD may be taken from it: echo {bdf} > /sys/bus/pci/drivers/{driver}/unbind"
        )),
        VfioError::NoIommu { .. } => {
            plain("enable VT-d or AMD-Vi in the firmware; intel_iommu=on for the kernel")
        }
        VfioError::NoVfioPci { .. } => plain("modprobe vfio-pci"),
        VfioError::NotBound { bdf } => plain(&format!("forebay device bind {bdf}")),
        VfioError::Open { .. } => plain("ls -l /dev/vfio; modprobe vfio-pci"),
        // The message says it.
        VfioError::LockedMemory { .. } => RpcError::new(code, error.to_string()),
        _ => plain("dmesg says why, as a rule; forebay device list shows who has the SSD now"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn health_is_what_the_log_says() {
        let mut smart = Smart::new_zeroed();
        smart.critical_warning = WARNING_SPARE | WARNING_READ_ONLY;
        smart.temperature_kelvin = 268.into();
        smart.media_errors = [0xFF; 16];
        smart.data_units_written[0] = 2;
        let health = device_health(&smart);
        assert_eq!(health.warnings, ["spare", "read-only"]);
        assert_eq!((health.temperature_celsius, health.written_bytes), (Some(-5), 1_024_000));
        assert_eq!(health.media_errors, u64::MAX);
        smart.temperature_kelvin = 0.into();
        assert_eq!(device_health(&smart).temperature_celsius, None);
    }

    #[test]
    fn an_error_says_what_was_found_and_what_to_do() {
        let bdf: Bdf = "0000:3b:00.0".parse().unwrap();
        let found = vec!["nvme0n1: ext4 at byte 0x438".to_owned()];
        let error = vfio_error(VfioError::BearsData { bdf, found: found.clone() });
        let data = error.data.unwrap();
        assert_eq!((error.code, data.found), (ErrorCode::NeedsForce, found));
        assert!(data.advice.unwrap().contains("bind --force 0000:3b:00.0"));
        let error = vfio_error(VfioError::NotTaken { bdf, driver: "nvme" });
        assert!(error.data.unwrap().advice.unwrap().contains("dmesg"));
    }
}
