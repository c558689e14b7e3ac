# testbed: ssds=1 size=256M mark=ci timeout=240
# Exports survive a restart of the daemon, and a `kill -9`: the attached host reconnects by itself,
# to the same namespace, and finds every acknowledged write. Memory does not survive it, and comes
# back as another namespace.

options=(--cores 1 --listen "$HOST_IP:4420" --memory 128)
# exported BDEV: what is to be the same after a restart.
exported() {
    forebay exports --json | jq -S "map(select(.bdev == \"$1\") | del(.listeners, .connect_commands))"
}
log_lacks_errors() { ! grep ERROR "$RESULTS/target.log"; }

target_start "${options[@]}"
check "bind" forebay device bind "$(ssd_bdf 0)"
nqn=nqn.2026-11.io.forebay:kept
device=$(connect_line "$(export_bdev ssd0n1 --nqn "$nqn" --any-host)" -k 60 --reconnect-delay=1)
before=$(exported ssd0n1)
dmesg_allow 'starting error recovery|Reconnecting in|Failed reconnect|RECV for CQE|reconnect'
dmesg_allow 'no usable path|Connect rejected|rejected|failed to connect|I/O Cmd|queue_io'

step "exports with listeners of their own"
ip addr add 10.0.0.2/24 dev eth0
wait_for 10 "the RDMA device has the second address" grep -lr '0a00:0002' /sys/class/infiniband/rxe0/ports/1/gids >/dev/null
check "memory" forebay bdev create ram ram0 16M
lines=$(forebay export ram0 --any-host --listen 10.0.0.2:4421 --json | jq -r '.connect_commands[]')
expect_match "its line" "$lines" '-a 10.0.0.2 -s 4421'
check "more memory" forebay bdev create ram ram1 16M
lines=$(forebay export ram1 --any-host --listen 0.0.0.0:4422 --json | jq -r '.connect_commands[]')
expect_match "all addresses are named" "$lines" "-a $HOST_IP -s 4422.*-a 10.0.0.2 -s 4422"
memory_before=$(exported ram0 | jq -r '.[].uuid')

step "written without a flush, then kill -9"
fio --name=w --filename="$device" --ioengine=libaio --direct=1 --rw=write --bs=64k --iodepth=8 \
    --size=16m --verify=crc32c --do_verify=0 --output="$RESULTS/write.txt"
kill -9 "$target_pid"
wait "$target_pid" || true
ip addr del 10.0.0.2/24 dev eth0
target_start "${options[@]}"
expect_eq "the export after the restart" "$(exported ssd0n1)" "$before"
expect_eq "state" "$(jq -r '.[].state' <<<"$before")" up
live() { grep -q live "/sys/class/nvme/$(ns_controllers "$nqn")/state"; }
wait_for 60 "the host is connected again" live
check "what was acknowledged is there" fio --name=w --filename="$device" --ioengine=libaio --direct=1 \
    --rw=write --bs=64k --iodepth=8 --size=16m --verify=crc32c --verify_only=1 \
    --output="$RESULTS/verify.txt"

step "memory is another namespace, and its listener opens when its address is there"
expect_eq "state" "$(exported ram0 | jq -r '.[].state')" up
check "another UUID" test "$(exported ram0 | jq -r '.[].uuid')" != "$memory_before"
check "the log says so" grep -q "made anew and is empty" "$RESULTS/target.log"
check "the log says that an address is missing" grep -q "not listening yet" "$RESULTS/target.log"
ip addr add 10.0.0.2/24 dev eth0
discovered() { nvme discover -t rdma -a 10.0.0.2 -s 4421 | grep -q 'io.forebay:ram0'; }
wait_for 20 "it is discovered there" discovered
check "the other listener is open" nvme discover -t rdma -a "$HOST_IP" -s 4422 >/dev/null
check "its export ends" forebay unexport nqn.2026-11.io.forebay:ram1
expect_failure "and its listener" "failed|refused|rejected" \
    nvme discover -t rdma -a "$HOST_IP" -s 4422

step "a second daemon is refused before it takes anything"
expect_failure "with the same options" "another forebay-target, process $target_pid, serves" \
    forebay-target "${options[@]}"
expect_failure "with another socket" "process $target_pid, serves /var/lib/forebay" \
    forebay-target --socket /tmp/x.sock "${options[@]}"
expect_failure "with another state" "process $target_pid, serves /run/forebay/forebay.sock" \
    forebay-target --state-dir /tmp/x "${options[@]}"

step "bad command lines and states"
expect_failure "an address that is no RDMA device's" "no RDMA device has this address" \
    forebay-target --socket /tmp/x.sock --state-dir /tmp/x --memory 16 --listen 127.0.0.1:4420
expect_failure "too few hugepages" "vm.nr_hugepages" \
    forebay-target --socket /tmp/x.sock --state-dir /tmp/x --memory 100000
expect_failure "an SSD that is ours already" "already" forebay device bind "$(ssd_bdf 0)"
expect_failure "an SSD that is not there" "no PCI device" forebay device bind 0000:7f:00.0
expect_failure "release while exported" "in use" forebay device release "$(ssd_bdf 0)"
mkdir -p /tmp/bad
echo '{"version": 1' >/tmp/bad/state.json
expect_failure "a damaged state file" "state.json" \
    forebay-target --socket /tmp/x.sock --state-dir /tmp/bad --no-hugepages --memory 16
expect_eq "left alone" "$(cat /tmp/bad/state.json)" '{"version": 1'

step "an orderly end under load: the SSD is shut down and stays ours, the host comes back"
fio --name=load --filename="$device" --ioengine=libaio --direct=1 --rw=randwrite --bs=4k \
    --iodepth=16 --size=16m --time_based --runtime=20 --output="$RESULTS/load.txt" &
load_pid=$!
sleep 1
target_stop
expect_eq "SSDs that were shut down" "$(grep -c 'shut down in order' "$RESULTS/target.log")" 1
expect_match "its driver" "$(readlink "/sys/bus/pci/devices/$(ssd_bdf 0)/driver")" 'vfio-pci$'
target_start "${options[@]}"
expect_eq "the export after the restart" "$(exported ssd0n1)" "$before"
check "the load saw no error" wait "$load_pid"
check "no errors in the daemon's log" log_lacks_errors

detach "$nqn"
target_stop
ip addr del 10.0.0.2/24 dev eth0
