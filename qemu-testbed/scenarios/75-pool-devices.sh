# testbed: ssds=2 size=256M mark=ci timeout=240
# A volume's data moves from one SSD to another while a host writes and verifies: an SSD comes to the
# pool, the first one is emptied and goes, and is free for something else. A kill in the middle of it
# loses nothing.

nqn=nqn.2026-11.io.forebay:tank/data
options=(--cores 1 --listen "$HOST_IP:4420" --memory 128)
members() { forebay pool show tank --json | jq -r '.bdevs | join(" ")'; }
live() { grep -q live "/sys/class/nvme/$(ns_controllers "$nqn")/state"; }

target_start "${options[@]}"
check "bind" forebay device bind "$(ssd_bdf 0)"
check "pool" forebay pool create tank ssd0n1
check "volume" forebay volume create tank/data 128M
device=$(connect_line "$(export_bdev tank/data --any-host)" -k 60 --reconnect-delay=1)
fio_verify "$device" --size=48m
check "snapshot" forebay snapshot create tank/data --name before
sum=$(dd if="$device" bs=1M count=48 iflag=direct status=none | md5sum)
expect_failure "the only SSD stays" "only|last" forebay pool remove tank ssd0n1

step "another SSD comes"
check "bind" forebay device bind "$(ssd_bdf 1)"
check "add" forebay pool add tank ssd1n1
expect_eq "members" "$(members)" "ssd0n1 ssd1n1"

step "killed while the first one is emptied"
dmesg_allow 'starting error recovery|Reconnecting in|Failed reconnect|RECV for CQE|reconnect'
dmesg_allow 'no usable path|Connect rejected|rejected|failed to connect|I/O Cmd|queue_io'
forebay pool remove tank ssd0n1 --no-wait >&2
sleep 0.3
# shellcheck disable=SC2154 # set by target_start
kill -9 "$target_pid"
wait "$target_pid" || true
target_start "${options[@]}"
wait_for 60 "the host is connected again" live
expect_eq "what it holds" "$(dd if="$device" bs=1M count=48 iflag=direct status=none | md5sum)" "$sum"

step "emptied under load"
fio --name=load --filename="$device" --ioengine=libaio --direct=1 --rw=randwrite --bs=4k \
    --iodepth=16 --offset=48m --size=32m --verify=crc32c --verify_fatal=1 --do_verify=1 \
    --rate_iops=400 --output="$RESULTS/load.txt" &
load=$!
sleep 1
# It may have ended before the kill.
[ "$(members)" = ssd1n1 ] || check "remove" forebay pool remove tank ssd0n1
expect_eq "members" "$(members)" ssd1n1
check "the host noticed nothing" wait "$load"
expect_eq "what it holds" "$(dd if="$device" bs=1M count=48 iflag=direct status=none | md5sum)" "$sum"
expect_eq "what its check finds" "$(forebay pool check tank)" "nothing is wrong"

step "the first one is free"
check "release" forebay device release "$(ssd_bdf 0)"
wait_for 20 "the kernel has it" ssd_device 0 >/dev/null
clone=$(forebay snapshot clone tank/data.before look --read-only && export_bdev tank/look --any-host)
look=$(connect_line "$(tail -n 1 <<<"$clone")" -k 60)
expect_eq "what the snapshot holds" \
    "$(dd if="$look" bs=1M count=48 iflag=direct status=none | md5sum)" "$sum"
nvme disconnect-all
target_stop
