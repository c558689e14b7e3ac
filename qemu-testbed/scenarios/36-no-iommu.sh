# testbed: ssds=1 iommu=0 mark=long timeout=60
# Without an IOMMU an SSD could write anywhere: it is not taken, the error says what to do, and the
# kernel keeps it.

bdf=$(ssd_bdf 0)
target_start
expect_failure "bind" "IOMMU.*(intel_iommu=on|BIOS|firmware)" forebay device bind "$bdf"
expect_failure "bind by force" "IOMMU" forebay device bind --force "$bdf"
expect_eq "its driver" "$(basename "$(readlink "/sys/bus/pci/devices/$bdf/driver")")" nvme
check "it is read" dd if="$(ssd_device 0)" of=/dev/null bs=1M count=1 iflag=direct status=none
target_stop
