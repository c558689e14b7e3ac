# testbed: ssds=1 mark=ci timeout=240
# What a reactor asks of the kernel while hosts do I/O at queue depth 32: posting to the RDMA
# device, one call for the chain of a connection and turn, and for a block device in a file one
# call for all I/Os of a turn. No locks, no memory, no clock, no waiting.

target_start
check "in memory" forebay bdev create ram ram0 64M
truncate -s 64M /tmp/file0
check "in a file" forebay bdev create file file0 /tmp/file0

# thread NAME: prints the id of the daemon's thread of this name.
thread() { grep -lx "$1" "/proc/$target_pid"/task/*/comm | cut -d/ -f5; }
reactor=$(thread reactor-0)
expect_match "the reactor's thread" "$reactor" '^[0-9]+$'

counters() {
    forebay stats --json \
        | jq -r '"\([.cores[].busy_turns] | add) \([.cores[].ios] | add) \([.carriers[].system_calls] | add)"'
}

# traced BDEV: what the reactor calls while fio reads the bdev, but for giving up the CPU when it
# has nothing to do. Leaves `calls`, `turns`, `ios` and `chains`.
traced() {
    local device trace=$RESULTS/$1.strace before after
    device=$(connect_line "$(export_bdev "$1")" -k 60 --nr-io-queues=1)
    fio --name=load --filename="$device" --ioengine=libaio --direct=1 --rw=randread --bs=4k \
        --iodepth=32 --time_based --runtime=300 --output="$RESULTS/$1.txt" &
    load=$!
    wait_for 30 "it is read" reads_of "$1"
    read -r -a before <<<"$(counters)"
    # -y: which file a descriptor is. The end of strace is the end of the trace.
    timeout --preserve-status --signal=INT 4 \
        strace -q -y -e 'trace=!sched_yield' -o "$trace" -p "$reactor" || true
    read -r -a after <<<"$(counters)"
    kill -INT "$load"
    wait "$load" || true
    turns=$((after[0] - before[0])) ios=$((after[1] - before[1])) chains=$((after[2] - before[2]))
    calls=$(sed -E 's/^([a-z_0-9]+)\(([0-9]+<([^>]*)>)?.*/\1 \3/' "$trace" | sort | uniq -c)
    say "$calls"
    say "turns with work: $turns, I/Os: $ios, chains of sends: $chains"
    detach "nqn.2026-11.io.forebay:$1"
}

reads_of() {
    forebay stats --json | jq -e "[.channels[] | select(.bdev == \"$1\").submitted] | add > 100"
}

# count REGEX: how many of the calls match.
count() {
    awk -v regex="$1" '{ many = $1; sub(/^ *[0-9]+ /, "") } $0 ~ regex { sum += many }
                       END { print sum + 0 }' <<<"$calls"
}

posts='^write /dev/infiniband/'

# expect_only REGEX: no other call was made, but a few to ring for the control thread: every two
# seconds it asks for the counters that hosts are told by SMART.
expect_only() {
    local others rings
    rings=$(count '^write anon_inode:.eventfd')
    check "rings for the control thread: $rings in 4 s" test "$rings" -le 4
    others=$(awk -v regex="^write anon_inode:.eventfd|$1" '{ sub(/^ *[0-9]+ /, "") } $0 !~ regex' <<<"$calls")
    expect_eq "other calls" "$others" ""
}

step "in memory: only what posts"
traced ram0
expect_only "$posts"
check "it did something" test "$(count "$posts")" -gt 10
check "what the counter says" test "$(count "$posts")" -le "$chains"
# The admin queue is silent, so there is one connection; its receives need no call on soft-RoCE.
check "at most two calls for a connection and turn" test "$(count "$posts")" -le $((2 * turns))
check "fewer calls than I/Os" test "$(count "$posts")" -lt "$ios"

step "in a file: also one call for the I/Os of a turn"
traced file0
expect_only "$posts|^io_uring_enter "
check "it did something" test "$(count '^io_uring_enter ')" -gt 10
check "at most one call for a turn" test "$(count '^io_uring_enter ')" -le "$turns"
check "fewer calls than I/Os" test "$(count '^io_uring_enter ')" -lt "$ios"
target_stop
