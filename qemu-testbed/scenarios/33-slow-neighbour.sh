# testbed: ssds=1 mark=ci timeout=300
# A namespace whose block device takes its time is removed and added again and again, by force and
# with I/O in flight: another host's I/O and keep-alive do not wait for it.

# What the slow block device takes for each I/O, and what the other one may take at most. The
# machine itself is slow too; what counts is that nobody waits for the slow one.
DELAY_MS=1000
ROUNDS=4

step "a block device that takes $DELAY_MS ms"
disk=$(null_blk nullb0 64)
# Nobody makes device nodes in this guest but dmsetup itself.
DM_DISABLE_UDEV=1 dmsetup create slow \
    --table "0 $(blockdev --getsz "$disk") delay $disk 0 $DELAY_MS"
target_start
check "the slow one" forebay bdev create file slow0 /dev/mapper/slow
check "the other one" forebay bdev create ram ram0 64M
device=$(connect_line "$(export_bdev ram0)" -k 5)
controller=$(ns_controllers nqn.2026-11.io.forebay:ram0)

step "load on the other one"
fio --name=load --filename="$device" --ioengine=libaio --direct=1 --rw=randrw --bs=4k --iodepth=4 \
    --time_based --runtime=600 --output-format=json --output="$RESULTS/fio.json" &
load=$!

in_flight() {
    forebay stats --json | jq -e '[.channels[] | select(.bdev == "slow0").in_flight] | add > 0'
}

for ((round = 1; round <= ROUNDS; round++)); do
    step "round $round"
    nqn=nqn.2026-11.io.forebay:slow0
    forebay export slow0 --any-host >/dev/null
    # The host reads the namespace's partition table at once.
    nvme connect -t rdma -a "$HOST_IP" -s 4420 -n "$nqn" -k 60 >&2
    wait_for 20 "an I/O is in flight" in_flight >/dev/null
    gone=$(ns_controllers "$nqn")
    head=$(ns_device "$nqn" 1)
    dmesg_allow "(^| )($gone|${gone}c[0-9]+n1|${head#/dev/})[:, ]"
    check "unexport" forebay unexport --force "$nqn"
    nvme disconnect -n "$nqn" >&2 || true
done
dmesg_allow 'nvme_ns_head_submit_bio: [0-9]+ callbacks suppressed'

step "nobody waited"
check "the load goes on" kill -0 "$load"
kill -INT "$load"
wait "$load" || true
expect_json "errors" "$(fio_json)" '[.jobs[].error] | add' 0
slowest=$(fio_json | jq '[.jobs[0] | .read, .write | .clat_ns.max / 1e6 | floor] | max')
check "the slowest I/O of the other host took $slowest ms, less than $DELAY_MS" \
    test "$slowest" -lt "$DELAY_MS"
if kernel_said "$controller: .*(error recovery|[Rr]econnect|keep.alive)"; then
    fail "the other host lost its controller"
fi
expect_eq "state of the other host" "$(<"/sys/class/nvme/$controller/state")" live
detach nqn.2026-11.io.forebay:ram0
target_stop
