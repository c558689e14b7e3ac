//! The arena, registered with RDMA devices: once for each device, however many connections there
//! are, and for as long as there is one. An arena is pinned whole, which takes time and counts
//! against the limit on locked memory.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use dma::Arena;
use verbs::{Access, Device, Mr, Pd, VerbsError};

/// A registration, and what it is one of.
#[derive(Debug)]
pub(crate) struct Registration {
    arena: &'static Arena,
    pub(crate) device: Device,
    pub(crate) mr: Mr,
}

/// The registrations of this process.
static REGISTRATIONS: Mutex<Vec<Weak<Registration>>> = Mutex::new(Vec::new());

impl Registration {
    /// That of `arena` with `device`. It gives nobody access: windows do.
    ///
    /// # Errors
    /// The device cannot pin so much.
    pub(crate) fn of(device: Device, arena: &'static Arena) -> Result<Arc<Self>, VerbsError> {
        let mut all = REGISTRATIONS.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|known| known.strong_count() > 0);
        let is_it = |known: &Arc<Self>| known.device == device && std::ptr::eq(known.arena, arena);
        if let Some(known) = all.iter().filter_map(Weak::upgrade).find(is_it) {
            return Ok(known);
        }
        let access = Access { bind: true, ..Access::default() };
        let mr = Mr::register(&Pd::new(&device)?, arena, access)?;
        let made = Arc::new(Self { arena, device, mr });
        all.push(Arc::downgrade(&made));
        Ok(made)
    }
}
