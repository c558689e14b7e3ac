# testbed: ssds=1 size=256M mark=ci timeout=240
# Exports survive a restart of the daemon, and a `kill -9`: the attached host reconnects by itself,
# to the same namespace, and finds every acknowledged write.

target_start --cores 1 --listen "$HOST_IP:4420" --memory 128
check "bind" forebay device bind "$(ssd_bdf 0)"
nqn=nqn.2026-11.io.forebay:kept
device=$(connect_line "$(export_bdev ssd0n1 --nqn "$nqn" --any-host)" -k 60 --reconnect-delay=1)
before=$(forebay exports --json | jq -S 'map(del(.listeners, .connect_commands))')
dmesg_allow 'starting error recovery|Reconnecting in|Failed reconnect|RECV for CQE|reconnect'
dmesg_allow 'no usable path|Connect rejected|rejected|failed to connect|I/O Cmd|queue_io'

step "written without a flush, then kill -9"
fio --name=w --filename="$device" --ioengine=libaio --direct=1 --rw=write --bs=64k --iodepth=8 \
    --size=16m --verify=crc32c --do_verify=0 --output="$RESULTS/write.txt"
kill -9 "$target_pid"
wait "$target_pid" || true
target_start --cores 1 --listen "$HOST_IP:4420" --memory 128
after=$(forebay exports --json | jq -S 'map(del(.listeners, .connect_commands))')
expect_eq "exports after the restart" "$after" "$before"
live() { grep -q live "/sys/class/nvme/$(ns_controllers "$nqn")/state"; }
wait_for 60 "the host is connected again" live
check "what was acknowledged is there" fio --name=w --filename="$device" --ioengine=libaio --direct=1 \
    --rw=write --bs=64k --iodepth=8 --size=16m --verify=crc32c --verify_only=1 \
    --output="$RESULTS/verify.txt"

step "a second daemon is refused"
expect_failure "a second daemon" "another forebay-target serves" \
    forebay-target --cores 1 --memory 16

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

detach "$nqn"
target_stop
