# testbed: ssds=1 mark=ci timeout=180
# A block device in memory, exported by Forebay over RDMA and attached by the kernel's initiator:
# discovery, identity field by field, a file system, verified data of all sizes.

NQN=nqn.2026-11.io.forebay:ram0

target_start --cores 1 --listen "$HOST_IP:4420" --memory 128
check "a block device" forebay bdev create ram ram0 256M

step "deny by default"
expect_failure "an export without hosts" "no host could connect" forebay export ram0
line=$(export_bdev ram0 --any-host)

step "discovery"
log=$(nvme discover -t rdma -a "$HOST_IP" -s 4420 -o json)
expect_json "the subsystem" "$log" '[.records[] | select(.subtype == "nvme subsystem")][0].subnqn' "$NQN"
expect_json "its address" "$log" '[.records[] | select(.subtype == "nvme subsystem")][0].traddr' "$HOST_IP"

step "attach"
# A slow machine must not look like a dead one.
device=$(connect_line "$line" -k 60)
say "attached as $device"
controller=/dev/$(ns_controllers "$NQN")
expect_json "id-ctrl" "$(nvme id-ctrl "$controller" -o json)" '.subnqn' "$NQN"
expect_json "id-ns" "$(nvme id-ns "$device" -o json)" '.nsze' 65536

step "verified data"
fio_verify "$device" --bsrange=4k-1m --size=64m
fio_verify "$device" --bs=4k --iodepth=32 --numjobs=1 --size=32m

step "full depth: every capsule finds a receive"
# Two queues of 128. A receiver that is not ready is not only slow: rxe's initiator breaks its
# connection when it repeats the registration of memory after one.
fio_verify "$device" --bs=4k --iodepth=128 --numjobs=4 --size=4m --offset_increment=8m
for counter in send_rnr_err rcvd_rnr_err; do
    expect_eq "$counter" "$(cat "/sys/class/infiniband/rxe0/ports/1/hw_counters/$counter")" 0
done

step "a file system"
check "mkfs" mkfs.ext4 -q "$device"
mkdir -p /mnt/a
check "mount" mount "$device" /mnt/a
# Mounted again, they come from the target and not from the page cache.
check "write" cp -r /etc /usr/lib/udev /mnt/a/
sums=$(cd /mnt/a && find etc udev -type f | sort | xargs -d '\n' md5sum)
check "several files" test "$(wc -l <<<"$sums")" -gt 100
check "umount" umount /mnt/a
check "fsck" e2fsck -fn "$device"
check "mount" mount -o ro "$device" /mnt/a
(cd /mnt/a && md5sum --quiet --check - <<<"$sums") || fail "a file is not as it was"
check "umount" umount /mnt/a

step "detach"
detach "$NQN"

step "the same over IPv6"
check "an address" ip address add fd00::20/64 dev eth0 nodad
wait_for 10 "the RDMA device has it" grep -qr fd00:0000.*:0020 /sys/class/infiniband/rxe0/ports/1/gids
check "another block device" forebay bdev create ram ram1 64M
line=$(forebay export ram1 --any-host --listen "[fd00::20]" | grep -o "nvme connect .*fd00.*")
device=$(connect_line "$line" -k 60)
fio_verify "$device" --size=8m
detach nqn.2026-11.io.forebay:ram1
ip address del fd00::20/64 dev eth0
target_stop
