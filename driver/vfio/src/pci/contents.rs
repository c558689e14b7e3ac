//! What a controller's namespaces bear.

use std::process::Command;

use super::{Controller, System};
use crate::error::VfioError;

impl System {
    /// File systems, partition tables and other signatures on the namespaces, in words. The
    /// knowledge is libblkid's, asked through `wipefs` in the mode that only reads: unlike `blkid`
    /// it reports every signature, backups at the end of the device too.
    ///
    /// # Errors
    /// They could not be read.
    pub fn signatures(&self, controller: &Controller) -> Result<Vec<String>, VfioError> {
        let bdf = controller.bdf;
        let mut found = Vec::new();
        for namespace in &controller.namespaces {
            if !namespace.partitions.is_empty() {
                found.push(format!(
                    "{}: {} partitions",
                    namespace.name,
                    namespace.partitions.len()
                ));
            }
            let node = self.dev.join(&namespace.name);
            let unknown = |reason: String| VfioError::ContentsUnknown { bdf, reason };
            let output = Command::new(&self.wipefs)
                .args(["--no-act", "--noheadings", "--parsable", "--output", "OFFSET,TYPE,LABEL"])
                .arg(&node)
                .output()
                .map_err(|error| {
                    unknown(format!("{}: {error}; install util-linux", self.wipefs.display()))
                })?;
            if !output.status.success() {
                let text = String::from_utf8_lossy(&output.stderr);
                return Err(unknown(text.trim().to_owned()));
            }
            for signature in String::from_utf8_lossy(&output.stdout).lines() {
                let mut fields = signature.split(',');
                let (offset, kind) = (fields.next(), fields.next().unwrap_or_default());
                let label = fields.next().filter(|label| !label.is_empty());
                let label = label.map(|label| format!(" {label:?}")).unwrap_or_default();
                let offset = offset.unwrap_or_default();
                found.push(format!("{}: {kind}{label} at byte {offset}", namespace.name));
            }
        }
        Ok(found)
    }
}
