//! Asynchronous events (NVMe Base 2.1, section 5.1.2).

/// DW0 of the completion of an Asynchronous Event Request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsyncEvent(pub u32);

/// Event types.
pub mod event_type {
    /// Error status.
    pub const ERROR: u8 = 0;
    /// SMART / health status.
    pub const SMART: u8 = 1;
    /// Notice.
    pub const NOTICE: u8 = 2;
    /// Immediate.
    pub const IMMEDIATE: u8 = 3;
    /// One-shot.
    pub const ONE_SHOT: u8 = 4;
    /// Specific to an I/O command set.
    pub const COMMAND_SET: u8 = 6;
    /// Vendor specific.
    pub const VENDOR: u8 = 7;
}

/// Event information of error events.
pub mod error {
    /// Write to Invalid Doorbell Register.
    pub const INVALID_DOORBELL_REGISTER: u8 = 0x00;
    /// Invalid Doorbell Write Value.
    pub const INVALID_DOORBELL_VALUE: u8 = 0x01;
    /// Diagnostic Failure.
    pub const DIAGNOSTIC_FAILURE: u8 = 0x02;
    /// Persistent Internal Error.
    pub const PERSISTENT_INTERNAL_ERROR: u8 = 0x03;
    /// Transient Internal Error.
    pub const TRANSIENT_INTERNAL_ERROR: u8 = 0x04;
    /// Firmware Image Load Error.
    pub const FIRMWARE_IMAGE_LOAD_ERROR: u8 = 0x05;
}

/// Event information of SMART events.
pub mod smart {
    /// NVM subsystem reliability.
    pub const RELIABILITY: u8 = 0x00;
    /// Temperature threshold.
    pub const TEMPERATURE_THRESHOLD: u8 = 0x01;
    /// Spare below threshold.
    pub const SPARE_BELOW_THRESHOLD: u8 = 0x02;
}

/// Event information of notices.
pub mod notice {
    /// Attached Namespace Attribute Changed.
    pub const NAMESPACE_ATTRIBUTE_CHANGED: u8 = 0x00;
    /// Firmware Activation Starting.
    pub const FIRMWARE_ACTIVATION_STARTING: u8 = 0x01;
    /// Asymmetric Namespace Access Change.
    pub const ANA_CHANGE: u8 = 0x03;
    /// Discovery Log Page Change.
    pub const DISCOVERY_LOG_CHANGE: u8 = 0xF0;
}

impl AsyncEvent {
    /// From its parts: type, information, and the log page that tells more and clears the event.
    pub const fn new(event_type: u8, information: u8, log_page: u8) -> Self {
        Self(event_type as u32 & 7 | (information as u32) << 8 | (log_page as u32) << 16)
    }

    /// Type.
    pub const fn event_type(self) -> u8 {
        (self.0 & 7) as u8
    }

    /// Information.
    pub const fn information(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Log page.
    pub const fn log_page(self) -> u8 {
        (self.0 >> 16) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log_page::lid;

    #[test]
    fn the_discovery_event_is_the_one_that_udev_rules_match() {
        let event =
            AsyncEvent::new(event_type::NOTICE, notice::DISCOVERY_LOG_CHANGE, lid::DISCOVERY);
        assert_eq!(event.0, 0x0070_F002);
    }

    #[test]
    fn fields_decode_apart_from_reserved_bits() {
        let event = AsyncEvent(0xFF02_01F9);
        assert_eq!(event.event_type(), event_type::SMART);
        assert_eq!(event.information(), smart::TEMPERATURE_THRESHOLD);
        assert_eq!(event.log_page(), lid::SMART);
    }
}
