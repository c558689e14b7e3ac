//! The command register of a function, in configuration space.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::uio::{pread, pwrite};

/// Offset in configuration space.
const PCI_COMMAND: i64 = 4;
const MEMORY: u16 = 1 << 1;
const BUS_MASTER: u16 = 1 << 2;
/// Always 0 in a function that answers. Other fields do not tell: VFIO keeps a copy of the
/// identifiers, and answers for a function that is gone.
const RESERVED: u16 = 0xF800;

/// What the register says of bus mastering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BusMaster {
    On,
    Off,
    /// All ones: no function answers, so none starts an access either.
    Absent,
}

/// Turns bus mastering on or off and says what reads back. Configuration space begins at `offset`
/// of `file`. An access that fails is an error, never an answer.
pub(crate) fn set_bus_master(file: impl AsFd, offset: i64, on: bool) -> Result<BusMaster, Errno> {
    let at = offset + PCI_COMMAND;
    let read = || {
        let mut bytes = [0; 2];
        match pread(&file, &mut bytes, at)? {
            2 => Ok(u16::from_le_bytes(bytes)),
            _ => Err(Errno::EIO),
        }
    };
    let old = read()?;
    if old & RESERVED == RESERVED {
        return Ok(BusMaster::Absent);
    }
    let bit = if on { BUS_MASTER } else { 0 };
    let new = old & !BUS_MASTER | MEMORY | bit;
    if pwrite(&file, &new.to_le_bytes(), at)? != 2 {
        return Err(Errno::EIO);
    }
    Ok(match read()? {
        got if got & RESERVED == RESERVED => BusMaster::Absent,
        got if got & BUS_MASTER != 0 => BusMaster::On,
        _ => BusMaster::Off,
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};

    use super::*;

    fn space(command: u16) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[0xEE; 12]).unwrap();
        file.write_all(&command.to_le_bytes()).unwrap();
        file
    }

    #[test]
    fn one_bit_changes_and_registers_stay_reachable() {
        let mut file = space(0x0140);
        assert_eq!(set_bus_master(&file, 8, true), Ok(BusMaster::On));
        assert_eq!(set_bus_master(&file, 8, false), Ok(BusMaster::Off));
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes[12..], 0x0142u16.to_le_bytes());
        assert_eq!(bytes[..12], [0xEE; 12]);
    }

    #[test]
    fn an_access_that_fails_is_not_an_answer() {
        let short = tempfile::tempfile().unwrap();
        assert_eq!(set_bus_master(&short, 0, false), Err(Errno::EIO), "nothing to read");
        let read_only = File::open("/proc/self/exe").unwrap();
        assert_eq!(set_bus_master(&read_only, 0, false), Err(Errno::EBADF), "no write");
    }

    #[test]
    fn all_ones_are_nobodys_answer() {
        // VFIO fills in the bits that it emulates.
        for command in [0xFFFF, 0xFBFF] {
            assert_eq!(set_bus_master(space(command), 8, false), Ok(BusMaster::Absent));
        }
    }
}
