# testbed: ssds=1 size=128M mark=ci timeout=300
# The main job, end to end: an SSD taken from the kernel, exported over RDMA, attached by the
# kernel's initiator, with a file system on it; compared with the SSD's bytes outside the guest.

nqn=nqn.2026-11.io.forebay:demo
bdf=$(ssd_bdf 0)
size_mib=128

device_field() {
    forebay device list --json | jq -r --arg bdf "$bdf" ".[] | select(.bdf == \$bdf) | $1"
}

step "The kernel drives the SSD $bdf; starting forebay-target on one core"
target_start
forebay device list >&2
expect_eq "driver of the SSD" "$(device_field .driver)" nvme

step "Taking the SSD from the kernel: forebay device bind $bdf"
check "bind" forebay device bind "$bdf"
expect_eq "driver of the SSD" "$(device_field .driver)" vfio-pci
bdev=$(device_field '.bdevs[0]')
forebay bdev list >&2

step "Exporting it: forebay export $bdev --nqn $nqn --any-host"
line=$(export_bdev "$bdev" --nqn "$nqn" --any-host)

step "Attaching it: $line"
device=$(connect_line "$line")
expect_eq "size of $device in bytes" "$(blockdev --getsize64 "$device")" $((size_mib << 20))
attached=$(nvme list -o json | jq -r --arg device "$device" \
    '[.. | objects | select(.DevicePath? == $device or .NameSpace? == ($device | ltrimstr("/dev/")))][0]
     | .ModelNumber // "namespace \(.NSID)"')

step "Making an ext4 file system on $device and verifying files on it with fio (crc32c)"
check "mkfs" mkfs.ext4 -q "$device"
check "mount" mount "$device" /mnt
fio_verify /mnt/small --bs=4k --size=16m
fio_verify /mnt/mixed --bsrange=4k-1m --size=48m
file_sum=$(md5sum </mnt/small)
check "umount" umount /mnt
check "fsck finds nothing" fsck.ext4 -fn "$device"

step "Comparing all $size_mib MiB, as the host reads them, with the SSD's backing file outside"
compare_outside 0 "$device" $size_mib

step "Measuring"
read -r qd1_iops qd1_p50 qd1_p99 <<<"$(fio_rate qd1 "$device" --iodepth=1)"
read -r qd32_iops qd32_p50 qd32_p99 <<<"$(fio_rate qd32 "$device" --iodepth=32)"
stats=$(forebay stats --json)
expect_json "bytes copied by the CPU" "$stats" '[.cores[].copied_bytes] | add' 0

step "Detaching, and giving the SSD back to the kernel"
detach "$nqn"
check "unexport" forebay unexport "$nqn"
check "release" forebay device release "$bdf"
device=$(wait_for 15 "the kernel has the SSD again" ssd_device 0)
check "mount, by the kernel's own driver" mount -o ro "$device" /mnt
expect_eq "md5 of a file" "$(md5sum </mnt/small)" "$file_sum"
check "umount" umount /mnt
target_stop

cat >"$RESULTS/report" <<REPORT
  SSD           $bdf, $size_mib MiB, driven from user space
  exported as   $nqn
  attached by   $line
                as "$attached"
  verified      64 MiB by fio (crc32c) on ext4; all $size_mib MiB equal outside the guest
  4 KiB reads   QD1   $qd1_iops IOPS, p50 $qd1_p50 us, p99 $qd1_p99 us
                QD32  $qd32_iops IOPS, p50 $qd32_p50 us, p99 $qd32_p99 us
  CPU copies    0 bytes
  versions      $(forebay --version), Linux $(uname -r), $(nvme version | head -n 1)
REPORT
