//! The block devices of a daemon, by name, and who holds the claim on each.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::{Bdev, BdevError};

/// Block devices by name. One claim on each: whoever holds it is the only one who does I/O.
///
/// This keeps two users within one daemon apart. Between processes the backends do it: an SSD by
/// its VFIO group, a file by its lock.
#[derive(Default)]
pub struct Registry {
    entries: BTreeMap<String, Entry>,
}

struct Entry {
    bdev: Arc<dyn Bdev>,
    holder: Option<String>,
}

impl Registry {
    /// Adds a device.
    ///
    /// # Errors
    /// One of that name exists.
    pub fn add(&mut self, bdev: Arc<dyn Bdev>) -> Result<(), BdevError> {
        let name = bdev.name().to_owned();
        if self.entries.contains_key(&name) {
            return Err(BdevError::Exists { name });
        }
        self.entries.insert(name, Entry { bdev, holder: None });
        Ok(())
    }

    /// Takes a device out.
    ///
    /// # Errors
    /// There is none of that name, or somebody holds it.
    pub fn remove(&mut self, name: &str) -> Result<Arc<dyn Bdev>, BdevError> {
        let unknown = || BdevError::Unknown { name: name.to_owned() };
        if let Some(holder) = &self.entries.get(name).ok_or_else(unknown)?.holder {
            return Err(BdevError::Claimed { name: name.to_owned(), holder: holder.clone() });
        }
        self.entries.remove(name).map(|entry| entry.bdev).ok_or_else(unknown)
    }

    /// Claims a device for `holder`, which is told to whoever comes second.
    ///
    /// # Errors
    /// There is none of that name, or somebody holds it.
    pub fn claim(&mut self, name: &str, holder: &str) -> Result<Arc<dyn Bdev>, BdevError> {
        let unknown = || BdevError::Unknown { name: name.to_owned() };
        let entry = self.entries.get_mut(name).ok_or_else(unknown)?;
        if let Some(holder) = &entry.holder {
            return Err(BdevError::Claimed { name: name.to_owned(), holder: holder.clone() });
        }
        entry.holder = Some(holder.to_owned());
        Ok(Arc::clone(&entry.bdev))
    }

    /// Ends the claim on a device.
    pub fn release(&mut self, name: &str) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.holder = None;
        }
    }

    /// The device of that name.
    pub fn get(&self, name: &str) -> Option<&Arc<dyn Bdev>> {
        self.entries.get(name).map(|entry| &entry.bdev)
    }

    /// Who holds the claim on a device, if anybody.
    pub fn holder(&self, name: &str) -> Option<&str> {
        self.entries.get(name)?.holder.as_deref()
    }

    /// All devices in the order of their names, each with the holder of its claim.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<dyn Bdev>, Option<&str>)> {
        self.entries.values().map(|entry| (&entry.bdev, entry.holder.as_deref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NullBdev;

    #[test]
    fn the_second_to_claim_is_told_who_was_first() {
        let mut registry = Registry::default();
        registry.add(Arc::new(NullBdev::new("n0", 512, 8))).unwrap();
        let again = registry.add(Arc::new(NullBdev::new("n0", 512, 8)));
        assert!(matches!(again, Err(BdevError::Exists { .. })));
        registry.claim("n0", "export nqn.a").unwrap();
        let error = registry.claim("n0", "export nqn.b").err().unwrap().to_string();
        assert!(error.contains("nqn.a"), "{error}");
        assert!(registry.remove("n0").is_err(), "claimed");
        registry.release("n0");
        assert!(registry.claim("n1", "x").err().unwrap().to_string().contains("n1"));
        assert!(registry.remove("n0").is_ok());
    }
}
