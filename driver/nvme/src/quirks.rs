//! Controllers that need to be treated differently.

/// What to do differently for a controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quirks {
    /// FUA is accepted and ignored: a write that needs it is followed by a flush.
    pub ignores_fua: bool,
}

impl Quirks {
    /// By PCI vendor and device identifiers.
    pub fn of(ids: (u16, u16)) -> Self {
        match ids {
            // QEMU's emulated controller writes through its host's cache whatever FUA says.
            (0x1b36, 0x0010) => Self { ignores_fua: true },
            _ => Self::default(),
        }
    }
}
