# testbed: ssds=2 hotplug=1 mark=ci timeout=300
# The SSD of a pool is unplugged in order, under load on a volume of it: its exports end and say why,
# another pool goes on. Plugged in again and bound, the pool opens by itself, and what was flushed
# is there.

target_start --cores 1 --listen "$HOST_IP:4420" --memory 192
for ssd in 0 1; do
    check "bind SSD $ssd" forebay device bind "$(ssd_bdf "$ssd")"
    check "pool" forebay pool create "tank$ssd" "ssd${ssd}n1"
    check "volume" forebay volume create "tank$ssd/v" 64M
done
bdf=$(ssd_bdf 0)
nqn=nqn.2026-11.io.forebay:tank0/v
going=$(connect_line "$(export_bdev tank0/v --any-host)" -k 60)
staying=$(connect_line "$(export_bdev tank1/v --any-host)" -k 60)
fio_verify "$going" --size=4m
check "flushed" nvme flush "$going" -n 1
sum=$(dd if="$going" bs=1M count=4 iflag=direct status=none | md5sum)

step "load on both"
fio --name=going --filename="$going" --ioengine=libaio --direct=1 --rw=randrw --bs=4k --iodepth=8 \
    --offset=4m --time_based --runtime=60 --output="$RESULTS/going.txt" &
going_pid=$!
fio --name=staying --filename="$staying" --ioengine=libaio --direct=1 --rw=randwrite --bs=4k \
    --iodepth=8 --time_based --runtime=25 --verify=crc32c --verify_fatal=1 --size=16m \
    --output="$RESULTS/staying.txt" &
staying_pid=$!
sleep 3

step "unplugged"
host_do qmp '{"execute": "device_del", "arguments": {"id": "ssd0"}}'
wait_for 40 "the SSD is gone" test ! -e "/sys/bus/pci/devices/$bdf"
head=${going#/dev/}
path="${head%n1}c[0-9]+n1"
dmesg_allow "$path: I/O Cmd|dev $path, sector|dev $head, logical block"
dmesg_allow "block $head: no (usable|available) path"
dmesg_allow "vfio-pci $bdf: Relaying device request"
if wait "$going_pid"; then fail "I/O to what is gone succeeded"; fi
say "ok: I/O to what is gone fails"

step "the other goes on"
check "verified load on the other pool" wait "$staying_pid"
fio_verify "$staying" --size=8m
exports=$(forebay exports --json)
expect_json "the export is kept" "$exports" '.[] | select(.bdev == "tank0/v") | .state' down
expect_json "the other is up" "$exports" '.[] | select(.bdev == "tank1/v") | .state' up
pools=$(forebay pool list --json)
expect_json "the pool says why" "$pools" '.[] | select(.name == "tank0") | .reason' \
    "ssd0n1 failed or was removed"
expect_failure "so do its volumes" "ssd0n1 failed" forebay volume create tank0/w 1M

step "plugged in again, the pool opens by itself"
host_do replug 0
wait_for 40 "the SSD is there" test -e "/sys/bus/pci/devices/$bdf"
wait_for 20 "the kernel drives it" ssd_device 0 >/dev/null
check "bind, although it bears a pool" forebay device bind --force "$bdf"
going=$(wait_for 20 "the host has its namespace again" ns_device "$nqn" 1)
expect_eq "what it holds" "$(dd if="$going" bs=1M count=4 iflag=direct status=none | md5sum)" "$sum"
fio_verify "$going" --size=8m
expect_eq "what its check finds" "$(forebay pool check tank0)" "nothing is wrong"
nvme disconnect-all
target_stop
