# testbed: ssds=1 mark=ci timeout=120
# What the machine lacks: each error says what was wanted, what was found, and the command that
# mends it; what it refers to is then done, and it works.

# As a user without the right to lock any amount of memory.
with_memlock() {
    local bytes=$1
    shift
    prlimit --memlock="$bytes:$bytes" setpriv --bounding-set=-ipc_lock --inh-caps=-ipc_lock "$@"
}

step "too few hugepages"
expect_failure "the daemon" \
    "256 free hugepages of 2048 KiB wanted, 128 found; .*: sysctl -w vm.nr_hugepages=256" \
    forebay-target --memory 512

step "a low limit on locked memory, for an SSD"
FOREBAY_SOCKET=/run/low.sock
export FOREBAY_SOCKET
with_memlock 1048576 forebay-target --memory 64 --state-dir /tmp/low >low.log 2>&1 &
low=$!
wait_for 30 "it answers" forebay version >/dev/null
expect_failure "bind" "67108864 bytes.*1048576 bytes.*ulimit -l unlimited" \
    forebay device bind "$(ssd_bdf 0)"
dmesg_allow 'vfio_pin_pages_remote: RLIMIT_MEMLOCK'
check "shutdown" forebay shutdown
wait "$low"

step "the same for an RDMA device"
with_memlock 1048576 forebay-target --memory 64 --no-hugepages --listen "$HOST_IP" \
    --state-dir /tmp/low >low.log 2>&1 &
low=$!
wait_for 30 "it answers" forebay version >/dev/null
check "a block device" forebay bdev create null null0 16M
line=$(export_bdev null0)
expect_failure "attach" "failed to write to nvme-fabrics|could not add new controller" \
    eval "$line"
dmesg_allow 'rdma connection establishment failed|Connect rejected: status 28|rxe_reg_user_mr'
expect_match "the log" "$(<low.log)" "67108864 bytes.*1048576 bytes.*ulimit -l unlimited"
check "shutdown" forebay shutdown
wait "$low"

step "with the limit raised"
with_memlock unlimited forebay-target --memory 64 --listen "$HOST_IP" --state-dir /tmp/low \
    >low.log 2>&1 &
target_pid=$!
wait_for 30 "it answers" forebay version >/dev/null
check "bind" forebay device bind "$(ssd_bdf 0)"
attached=$(connect_line "$(export_bdev ssd0n1)" -k 60)
fio_verify "$attached" --size=1m
detach nqn.2026-11.io.forebay:ssd0n1
target_stop
