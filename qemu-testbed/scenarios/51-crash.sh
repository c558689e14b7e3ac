# testbed: ssds=1 size=256M mark=ci timeout=240
# The daemon is killed with I/O in flight: the host goes on by itself when it is back, every block
# that was acknowledged is there, and who may come in is as before.

options=(--cores 1 --listen "$HOST_IP:4420" --memory 128)
target_start "${options[@]}"
check "bind" forebay device bind "$(ssd_bdf 0)"
nqn=nqn.2026-11.io.forebay:crash
host=$(nvme gen-hostnqn)
denied=$(nvme gen-hostnqn)
check "export" forebay export ssd0n1 --nqn "$nqn" --host "$host" --host "$denied"
check "deny" forebay host deny "$nqn" "$denied"
before=$(forebay host list --json | jq -S .)
check "connect" nvme_as "$host" connect -n "$nqn" -k 60 --reconnect-delay=1
device=$(wait_for 10 "the namespace is there" ns_device "$nqn" 1)
controller=$(controller_of "$host" "$nqn")

step "killed under load"
# Each block is written once, so that what is verified at the end was acknowledged then, be it
# before the kill or after it. The rate keeps fio busy for longer than the daemon is away.
fio --name=load --filename="$device" --ioengine=libaio --direct=1 --rw=randwrite --bs=4k \
    --iodepth=16 --size=12m --rate_iops=300 --verify=crc32c --verify_fatal=1 --do_verify=1 \
    --output="$RESULTS/load.txt" &
load=$!
written() { forebay stats --json | jq -e '[.namespaces[].writes] | add > 500' >/dev/null; }
wait_for 30 "five hundred blocks are written" written
kill -9 "$target_pid"
wait "$target_pid" || true
wait_for 30 "the host has noticed" grep -qv live "/sys/class/nvme/$controller/state"
dmesg_allow "$controller: (starting error recovery|Reconnecting in|Failed reconnect|RECV for CQE)"
dmesg_allow "$controller: (Connect rejected|rdma connection establishment failed|failed to)"
dmesg_allow 'no usable path|I/O Cmd|reconnect|rejected|error -104|(block|nvme).* I/O '
check "the load waits" kill -0 "$load"
target_start "${options[@]}"
wait_for 60 "the host is connected again" grep -q live "/sys/class/nvme/$controller/state"
check "every acknowledged block is there" wait "$load"

step "who may come in is as before"
expect_eq "hosts" "$(forebay host list --json | jq -S .)" "$before"
expect_failure "the denied host" "failed to write to nvme-fabrics|could not add new controller" \
    nvme_as "$denied" connect -n "$nqn"
expect_kernel "why" "Connect for subsystem $nqn is not allowed, hostnqn: $denied"
dmesg_allow "is not allowed, hostnqn: $denied"
dmesg_allow 'failed to connect queue: 0'
expect_json "its host" "$(forebay connection list --json)" '[.[].host_nqn] | join(" ")' "$host"
detach "$nqn"
target_stop
