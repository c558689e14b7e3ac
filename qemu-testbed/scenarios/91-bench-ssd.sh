# testbed: ssds=1 size=1G mark=long timeout=300
# forebay-perf through our driver beside fio with io_uring on the kernel's driver, on the same
# emulated SSD: I/Os a second, and CPU time for each. No aim: the emulation is the limit.

bdf=$(ssd_bdf 0)
device=$(ssd_device 0)
# Blocks that were never written would be answered from nowhere.
dd if=/dev/urandom of="$device" bs=1M oflag=direct status=none || true

# kernel_row RW BS DEPTH: prints "IOPS CPU_NS".
kernel_row() {
    fio --name=row --filename="$device" --ioengine=io_uring --direct=1 --rw="$1" --bs="$2" \
        --iodepth="$3" --time_based --runtime=4 --ramp_time=1 --randrepeat=0 \
        --output-format=json --output="$RESULTS/fio.json" || fail "fio $*"
    fio_json | jq -r '.jobs[0] | . as $job | [.read, .write | select(.total_ios > 0)][0]
        | "\(.iops | floor) \((($job.usr_cpu + $job.sys_cpu) / 100 * .runtime * 1e6 / .total_ios) | floor)"'
}

# our_row READ_PERCENT BS DEPTH: the same. A core that polls is busy all the time.
our_row() {
    forebay-perf run "pcie:$bdf" --read "$1" --block-size "$2" --depth "$3" --cores 1 --json \
        --runtime 4s --warm-up 1s --destroy-data \
        | jq -r '.jobs[0] | "\(.iops | floor) \(1e9 / .iops | floor)"'
}

say "I/O | fio, io_uring: IOPS, CPU ns | forebay-perf: IOPS, CPU ns"
for row in "randread 100 4k 1" "randread 100 4k 32" "randwrite 0 4k 32" "randread 100 128k 8"; do
    read -r rw read bs depth <<<"$row"
    kernel=$(kernel_row "$rw" "$bs" "$depth")
    ours=$(our_row "$read" "$bs" "$depth")
    wait_for 20 "the kernel has the SSD back" ssd_device 0 >/dev/null
    device=$(ssd_device 0)
    say "$rw $bs, depth $depth | $kernel | $ours"
    for figure in $kernel $ours; do
        check "a figure" test "$figure" -gt 0
    done
done
