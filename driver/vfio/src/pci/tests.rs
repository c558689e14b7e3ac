//! Over a tree of files that looks like the kernel's.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use super::{Bdf, System};
use crate::error::VfioError;

const BDF: &str = "0000:3b:00.0";

struct Fake {
    root: tempfile::TempDir,
    system: System,
    bdf: Bdf,
}

impl Fake {
    /// One controller with one namespace of 1 MiB, driven by the kernel, used by nobody.
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        let system = System {
            sys: path("sys"),
            proc: path("proc"),
            dev: path("dev"),
            wipefs: path("wipefs"),
            modprobe: path("modprobe"),
            probe_limit: Duration::ZERO,
        };
        let fake = Self { system, root, bdf: BDF.parse().unwrap() };
        let device = format!("sys/bus/pci/devices/{BDF}");
        for (name, text) in [
            ("class", "0x010802"),
            ("vendor", "0x1b36"),
            ("device", "0x0010"),
            ("numa_node", "-1"),
            ("nvme/nvme0/model", "A model   "),
            ("nvme/nvme0/serial", "S1"),
            ("nvme/nvme0/nvme0c0n1/x", ""),
        ] {
            fake.file(&format!("{device}/{name}"), text);
        }
        for folder in
            ["sys/kernel/iommu_groups/7/devices", "sys/bus/pci/drivers/nvme", "proc/42/fd"]
        {
            fs::create_dir_all(fake.at(folder)).unwrap();
        }
        fs::create_dir_all(fake.at("sys/bus/pci/drivers/vfio-pci")).unwrap();
        fake.link("sys/kernel/iommu_groups/7", &format!("{device}/iommu_group"));
        fake.link("sys/bus/pci/drivers/nvme", &format!("{device}/driver"));
        fake.link(&device, &format!("sys/kernel/iommu_groups/7/devices/{BDF}"));
        fake.file("sys/class/block/nvme0n1/size", "2048");
        fake.file("sys/class/block/nvme0n1/dev", "259:0");
        fake.file("dev/nvme0n1", "");
        fake.file("proc/swaps", "Filename Type Size Used Priority\n");
        fake.file("proc/42/mountinfo", "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n");
        fake.file("proc/42/comm", "program");
        fake.wipefs("");
        fake
    }

    fn at(&self, name: &str) -> std::path::PathBuf {
        self.root.path().join(name)
    }

    fn file(&self, name: &str, text: &str) {
        let path = self.at(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn link(&self, to: &str, name: &str) {
        let path = self.at(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(self.at(to), path).unwrap();
    }

    fn wipefs(&self, output: &str) {
        self.file("wipefs", &format!("#!/bin/sh\nprintf '{output}'\n"));
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(self.at("wipefs"), mode).unwrap();
    }

    /// Lets another driver, or none, have the controller.
    fn drive(&self, driver: Option<&str>) {
        let device = format!("sys/bus/pci/devices/{BDF}");
        fs::remove_file(self.at(&format!("{device}/driver"))).unwrap();
        fs::remove_dir_all(self.at(&format!("{device}/nvme"))).unwrap();
        if let Some(driver) = driver {
            self.link(&format!("sys/bus/pci/drivers/{driver}"), &format!("{device}/driver"));
        }
    }

    fn driver(&self) -> Option<String> {
        let link = fs::read_link(self.at(&format!("sys/bus/pci/devices/{BDF}/driver"))).ok()?;
        Some(link.file_name()?.to_str()?.to_owned())
    }

    /// Refused, and nothing has changed.
    fn refusal(&self, force: bool) -> String {
        let before = self.driver();
        let error = self.system.bind(self.bdf, force).unwrap_err();
        assert_eq!(self.driver(), before, "nothing was unbound");
        let overridden = self.at(&format!("sys/bus/pci/devices/{BDF}/driver_override"));
        assert!(!Path::exists(&overridden), "nothing was overridden: {error}");
        error.to_string()
    }
}

#[test]
fn addresses() {
    for text in ["0000:3b:00.0", "10000:01:1f.7"] {
        assert_eq!(text.parse::<Bdf>().unwrap().to_string(), text);
    }
    assert_eq!("3b:00.0".parse::<Bdf>().unwrap().to_string(), BDF);
    for text in ["", "3b:00", "0000:3b:20.0", "0000:3b:00.8", "../:00:00.0", "0000:+b:00.0"] {
        assert!(text.parse::<Bdf>().is_err(), "{text}");
    }
}

#[test]
fn a_controller_is_found_with_what_it_is() {
    let fake = Fake::new();
    let all = fake.system.controllers().unwrap();
    assert_eq!(all.len(), 1);
    let one = &all[0];
    assert_eq!((one.vendor, one.device, one.iommu_group), (0x1b36, 0x10, Some(7)));
    assert_eq!((one.model.as_deref(), one.serial.as_deref()), (Some("A model"), Some("S1")));
    assert_eq!((one.driver.as_deref(), one.numa_node), (Some("nvme"), None));
    assert_eq!((one.namespaces[0].name.as_str(), one.namespaces[0].bytes), ("nvme0n1", 1 << 20));
    assert!(matches!(
        fake.system.controller("00:00.0".parse().unwrap()),
        Err(VfioError::NoDevice { .. })
    ));
}

#[test]
fn whatever_uses_it_keeps_it_even_from_force() {
    let mounted = "2 1 259:0 / /mnt/data rw - ext4 /dev/x rw\n";
    let cases: [(&str, &str, &str); 4] = [
        ("proc/42/mountinfo", mounted, "nvme0n1 is mounted at /mnt/data"),
        ("sys/class/block/nvme0n1/holders/dm-3/x", "", "nvme0n1 is held by dm-3"),
        ("sys/class/block/loop1/loop/backing_file", "DEV", "nvme0n1 is behind loop1"),
        ("proc/swaps", "head\nDEV partition 1 0 -2\n", "nvme0n1 is swap space"),
    ];
    for (name, text, wanted) in cases {
        let fake = Fake::new();
        fake.file(name, &text.replace("DEV", fake.at("dev/nvme0n1").to_str().unwrap()));
        for force in [false, true] {
            let refusal = fake.refusal(force);
            assert!(refusal.contains(wanted), "{refusal}");
        }
    }
    let fake = Fake::new();
    fake.link("dev/nvme0", "proc/42/fd/3");
    assert!(fake.refusal(true).contains("open in process 42 (program)"));
}

#[test]
fn a_mounted_partition_counts() {
    let fake = Fake::new();
    fake.file("sys/class/block/nvme0n1/nvme0n1p1/partition", "1");
    fake.file("sys/class/block/nvme0n1/nvme0n1p1/dev", "259:1");
    assert!(fake.refusal(false).contains("1 partitions"));
    fake.file("proc/42/mountinfo", "2 1 259:1 / /boot rw - vfat /dev/x rw\n");
    assert!(fake.refusal(true).contains("nvme0n1p1 is mounted at /boot"));
}

#[test]
fn signatures_are_named() {
    let fake = Fake::new();
    fake.wipefs("0x438,ext4,backups\\n0x1fe,dos,\\n");
    let refusal = fake.refusal(false);
    assert!(refusal.contains("nvme0n1: ext4 \"backups\" at byte 0x438"), "{refusal}");
    assert!(refusal.contains("nvme0n1: dos at byte 0x1fe"), "{refusal}");
    fs::remove_file(fake.at("wipefs")).unwrap();
    assert!(fake.refusal(false).contains("install util-linux"));
}

#[test]
fn one_that_vfio_has_may_be_somebody_elses() {
    let fake = Fake::new();
    fake.drive(Some("vfio-pci"));
    let refusal = fake.refusal(false);
    assert!(refusal.contains("perhaps for a virtual machine"), "{refusal}");
    let before = fake.system.bind(fake.bdf, true).unwrap();
    fake.system.restore(fake.bdf, &before).unwrap();
    assert_eq!(fake.driver().as_deref(), Some("vfio-pci"), "it is left where it was");
    for node in ["vfio/7", "vfio/devices/vfio0"] {
        let fake = Fake::new();
        fake.drive(Some("vfio-pci"));
        fake.file(&format!("sys/bus/pci/devices/{BDF}/vfio-dev/vfio0/dev"), "1:1");
        fake.link(&format!("dev/{node}"), "proc/42/fd/9");
        let refusal = fake.refusal(true);
        assert!(refusal.contains("open in process 42 (program)"), "{refusal}");
        assert!(matches!(fake.system.release(fake.bdf), Err(VfioError::InUse { .. })));
    }
}

#[test]
fn one_that_no_driver_has_goes_back_to_none() {
    let fake = Fake::new();
    fake.drive(None);
    assert!(fake.refusal(false).contains("no driver has it"));
    // No kernel is there to bind it: the attempt fails, and leaves it as it was.
    let error = fake.system.bind(fake.bdf, true).unwrap_err();
    assert!(matches!(error, VfioError::NotTaken { driver: "vfio-pci", .. }), "{error}");
    assert_eq!(fake.driver(), None);
    let path = fake.at(&format!("sys/bus/pci/devices/{BDF}/driver_override"));
    assert_eq!(fs::read_to_string(path).unwrap().trim(), "");
}

#[test]
fn others_in_the_group_are_named_and_left_alone() {
    let fake = Fake::new();
    fake.file("sys/bus/pci/devices/0000:3a:00.0/class", "0x060400");
    fake.file("sys/bus/pci/devices/0000:3c:00.0/class", "0x020000");
    for other in ["0000:3a:00.0", "0000:3c:00.0"] {
        fake.file(&format!("sys/kernel/iommu_groups/7/devices/{other}"), "");
    }
    let refusal = fake.refusal(true);
    assert!(refusal.contains("also holds 0000:3c:00.0 (no driver):"), "{refusal}");
    fs::remove_file(fake.at(&format!("sys/bus/pci/devices/{BDF}/iommu_group"))).unwrap();
    assert!(fake.refusal(true).contains("intel_iommu=on"));
}
