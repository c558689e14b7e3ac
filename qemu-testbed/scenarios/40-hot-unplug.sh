# testbed: ssds=2 hotplug=1 mark=ci timeout=300
# An SSD is unplugged in order, under load: its namespace fails, the other one goes on, the daemon
# lives, and the SSD's end is clean. Plugged in again, it is served again.

target_start --cores 1 --listen "$HOST_IP:4420" --memory 192
for ssd in 0 1; do
    check "bind SSD $ssd" forebay device bind "$(ssd_bdf "$ssd")"
done
bdf=$(ssd_bdf 0)
going=$(connect_line "$(export_bdev ssd0n1 --any-host)" -k 60)
staying=$(connect_line "$(export_bdev ssd1n1 --any-host)" -k 60)
fio_verify "$going" --size=4m
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
# The going namespace, as a whole and as a path to it, and the request to let the SSD go.
head=${going#/dev/}
path="${head%n1}c[0-9]+n1"
dmesg_allow "$path: I/O Cmd|dev $path, sector|dev $head, logical block"
dmesg_allow "block $head: no (usable|available) path"
dmesg_allow "vfio-pci $bdf: Relaying device request"
if wait "$going_pid"; then fail "I/O to what is gone succeeded"; fi
say "ok: I/O to what is gone fails"

step "the other goes on"
check "verified load on the other SSD" wait "$staying_pid"
fio_verify "$staying" --size=8m
expect_json "exports are kept" "$(forebay exports --json)" 'length' 2
expect_json "the SSD is closed" "$(forebay device list --json)" '[.[] | select(.open)] | length' 1
check "the log says why" grep -q "the SSD is lost" "$RESULTS/target.log"

step "plugged in again, it is served again"
host_do replug 0
wait_for 40 "the SSD is there" test -e "/sys/bus/pci/devices/$bdf"
wait_for 20 "the kernel drives it" ssd_device 0 >/dev/null
check "bind, although it bears data that our hosts wrote" forebay device bind --force "$bdf"
wait_for 20 "the host has its namespace again" ns_device nqn.2026-11.io.forebay:ssd0n1 1 >/dev/null
going=$(ns_device nqn.2026-11.io.forebay:ssd0n1 1)
expect_eq "what it holds" "$(dd if="$going" bs=1M count=4 iflag=direct status=none | md5sum)" "$sum"
fio_verify "$going" --size=8m
nvme disconnect-all
target_stop
