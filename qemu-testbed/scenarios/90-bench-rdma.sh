# testbed: ssds=1 mark=long timeout=900
# Null namespaces, exported by Forebay and by the kernel's nvmet-rdma over the same soft-RoCE link in
# the same boot, in alternating runs of fio on the kernel's initiator. No aim is checked: machines
# are shared, and what counts is the ratio.
#
# Both ends do the same with the data. Forebay's null block device fills what is read with zeroes,
# because the buffer holds what another command left in it, and drops what is written. The kernel's
# null_blk leaves what is read as it is when it has no memory behind it; with memory that was never
# written it fills with zeroes too. So reads go to one with memory, and writes to one without.
#
# While it is the kernel's turn Forebay stands still: its polling would take a CPU from it.

ROUNDS=3
RUNTIME=4

target_start --cores 1 --listen "$HOST_IP:4420" --memory 192
forebay bdev create null null0 1G --block-size 4096
ours=$(connect_line "$(export_bdev null0 --any-host)" -k 60)

# kernel_null NAME MEMORY_BACKED: exports a null_blk by the kernel's target and attaches it; prints
# the block device.
kernel_null() {
    local config=/sys/kernel/config/nullb/$1 nqn=nqn.2026-11.io.forebay.bench:$1
    mkdir "$config"
    echo 1024 >"$config/size"
    echo 4096 >"$config/blocksize"
    echo "$2" >"$config/memory_backed"
    echo 0 >"$config/irqmode"
    echo 1 >"$config/power"
    nvmet_export "$nqn" "/dev/$1"
    nvme connect -t rdma -a "$HOST_IP" -s 4421 -n "$nqn" -k 60 >&2
    wait_for 10 "the kernel's namespace is there" ns_device "$nqn" 1
}

nvmet_listen 4421
theirs_read=$(kernel_null reads 1)
theirs_written=$(kernel_null writes 0)

busy() { forebay stats --json | jq '[.cores[] | .busy_ns, .ios]' -c; }
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

# row NAME THEIRS [fio options...]: the medians of alternating runs on our namespace and on theirs.
row() {
    local name=$1 theirs=$2 round before after line
    shift 2
    : >"/tmp/$name.ours"
    : >"/tmp/$name.theirs"
    before=$(busy)
    for ((round = 0; round < ROUNDS; round++)); do
        fio_rate "$name-ours" "$ours" --runtime=$RUNTIME "$@" >>"/tmp/$name.ours"
        kill -STOP "$target_pid"
        fio_rate "$name-theirs" "$theirs" --runtime=$RUNTIME "$@" >>"/tmp/$name.theirs"
        kill -CONT "$target_pid"
    done
    after=$(busy)
    line=$(jq -rn --argjson a "$before" --argjson b "$after" \
        --argjson ours "$(median <"/tmp/$name.ours")" \
        --argjson theirs "$(median <"/tmp/$name.theirs")" \
        '"\($ours) \($theirs) \(($ours / $theirs * 100 | round) / 100) \((($b[0] - $a[0]) / (1 + $b[1] - $a[1])) | floor)"')
    # shellcheck disable=SC2086 # four words
    printf '%-26s %10s %10s %7s %12s\n' "$name" $line >>"$RESULTS/report"
}

step "alternating runs"
printf '%-26s %10s %10s %7s %12s\n' "IOPS (median of $ROUNDS)" Forebay nvmet ratio "busy ns/I/O" >"$RESULTS/report"
row randread-4k-qd1 "$theirs_read" --rw=randread --bs=4k --iodepth=1
row randread-4k-qd32 "$theirs_read" --rw=randread --bs=4k --iodepth=32
row randread-4k-4xqd32 "$theirs_read" --rw=randread --bs=4k --iodepth=32 --numjobs=4
row randwrite-4k-qd32 "$theirs_written" --rw=randwrite --bs=4k --iodepth=32
row read-128k-qd8 "$theirs_read" --rw=read --bs=128k --iodepth=8
say "$(<"$RESULTS/report")"
nvme disconnect-all
nvmet_clear
target_stop
