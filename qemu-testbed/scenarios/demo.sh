# testbed: ssds=2 size=128M mark=ci timeout=600
# The main job, end to end: an SSD taken from the kernel, exported over RDMA, attached by the
# kernel's initiator, with a file system on it; compared with the SSD's bytes outside the guest. And
# another SSD carved into volumes: a snapshot, its clone attached beside the origin, a rollback.

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

step "Carving volumes from another SSD: forebay pool create, forebay volume create"
tank=nqn.2026-11.io.forebay:tank
other=$(ssd_bdf 1)
check "bind" forebay device bind "$other"
check "pool" forebay pool create tank ssd1n1
check "volume" forebay volume create tank/data 1G
device=$(connect_line "$(export_bdev tank/data --nqn "$tank" --any-host)")
check "mkfs" mkfs.ext4 -q "$device"
mkdir -p /mnt/data /mnt/trial
check "mount" mount "$device" /mnt/data
cp -r /etc /mnt/data/
sync
# files FOLDER: one sum of all the files in it.
files() { (cd "$1" && find etc -type f | sort | xargs -d '\n' md5sum | md5sum); }
origin=$(files /mnt/data)

step "A snapshot, and its clone attached beside the origin"
check "snapshot" forebay snapshot create tank/data --name v1
check "clone" forebay snapshot clone tank/data.v1 trial
check "export" forebay export tank/trial --nqn "$tank" >&2
clone=$(wait_for 10 "the clone is there" ns_device "$tank" 2)
check "mount" mount "$clone" /mnt/trial
expect_eq "files of the clone" "$(files /mnt/trial)" "$origin"
rm /mnt/trial/etc/passwd
sync
expect_eq "files of the origin, after writes to the clone" "$(files /mnt/data)" "$origin"
forebay volume list --tree >&2
tree=$(forebay volume list --tree)

step "Rolling the volume back: forebay volume rollback tank/data data.v1"
rm -r /mnt/data/etc
check "umount" umount /mnt/data
check "rollback" forebay volume rollback tank/data data.v1 --force >&2
device=$(wait_for 20 "the volume is back" ns_device "$tank" 1)
check "mount" mount "$device" /mnt/data
expect_eq "files after the rollback" "$(files /mnt/data)" "$origin"
check "umount" umount /mnt/data /mnt/trial
detach "$tank"
check "unexport" forebay unexport "$tank"
check "pool export" forebay pool export tank
check "release" forebay device release "$other"
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
  volumes       of $other: a snapshot, its clone and a rollback, every file verified
                ${tree//$'\n'/$'\n'                }
  versions      $(forebay --version), Linux $(uname -r), $(nvme version | head -n 1)
REPORT
