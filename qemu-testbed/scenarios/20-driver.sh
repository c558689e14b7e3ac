# testbed: ssds=2 mark=ci timeout=240
# The driver on an emulated SSD: taken from the kernel, verified at all sizes on two queue pairs,
# reset under load, given back. Beside it: an SSD in use and one with data on it are refused.

nvme_verify=/bin-share/examples/nvme_verify
check "the example is built" test -x "$nvme_verify"
bdf=$(ssd_bdf 0)

step "an SSD in use is refused, even with --force"
device=$(ssd_device 1)
mkfs.ext4 -q "$device"
mount "$device" /mnt
expect_failure "mounted" "is in use: .*mounted at /mnt" "$nvme_verify" "$(ssd_bdf 1)" --force
expect_eq "driver of SSD 1" "$(basename "$(readlink "/sys/bus/pci/devices/$(ssd_bdf 1)/driver")")" nvme
umount /mnt

step "an SSD with a file system is refused"
expect_failure "file system" "bears data: .*ext4" "$nvme_verify" "$(ssd_bdf 1)"
expect_failure "unknown address" "no PCI device" "$nvme_verify" 0000:00:1f.7

step "taking, verifying, resetting, giving back"
output=$("$nvme_verify" "$bdf" 2>&1) || fail "nvme_verify: $output"
say "$output"
expect_eq "last line" "$(tail -n 1 <<<"$output")" "nvme_verify: ok"

step "the kernel has it again"
wait_for 10 "the block device is back" ssd_device 0
expect_eq "driver" "$(basename "$(readlink "/sys/bus/pci/devices/$bdf/driver")")" nvme
expect_eq "driver_override" "$(<"/sys/bus/pci/devices/$bdf/driver_override")" "(null)"
