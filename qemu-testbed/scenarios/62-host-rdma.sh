# testbed: ssds=1 mark=ci timeout=120
# Our host side over RDMA and TCP: against forebay-target, and over RDMA against the kernel's own
# target. Verified data of 4 KiB to 1 MiB, many I/Os at a time; a name that is not there; a
# controller that goes in the middle of I/O, and one that comes back.

attach=/bin-share/examples/attach
verify=/bin-share/examples/host_verify
check "the examples are built" test -x "$attach" -a -x "$verify"
wait_for 10 "rxe0 is up" grep -q ACTIVE /sys/class/infiniband/rxe0/ports/1/state
ours=nqn.2026-11.io.forebay:ram0
kernels=nqn.2026-11.io.forebay.bed:kernel

# verified TRANSPORT NQN
verified() {
    local output
    output=$(timeout 60 "$verify" "$1" "$HOST_IP:4420" "$2" 1 2>&1) || fail "host_verify $*: $output"
    say "$output"
    expect_eq "last line" "$(tail -n 1 <<<"$output")" "host_verify: ok"
}

# load_verified NQN: forebay-perf with blocks of all sizes, each read back at the end.
load_verified() {
    local output
    output=$(forebay-perf run "rdma://$HOST_IP/$1" --pattern random --read 50 --cores 1 \
        --block-size 4k:70,64k:20,1m:10 --depth 16 --runtime 1s --size 16M --flush-every 50 \
        --verify "$(mktemp -u)" --destroy-data 2>&1) || fail "forebay-perf on $1: $output"
    expect_match "forebay-perf" "$output" 'verified: [1-9][0-9]* blocks are what was written'
}

# begin_load NQN WORD: I/O on its way, in the background, with its words in load.log.
begin_load() {
    "$verify" rdma "$HOST_IP:4420" "$1" 1 "$2" >load.log 2>&1 &
    load=$!
    wait_for 20 "I/O is on its way" grep -q 'until lost' load.log
    sleep 0.5
}

end_load() {
    wait "$load" || fail "host_verify: $(cat load.log)"
    say "$(cat load.log)"
}

step "forebay-target"
target_start --cores 1 --listen "$HOST_IP:4420" --listen "tcp://$HOST_IP" --memory 128
check "a block device" forebay bdev create ram ram0 64M
check "an export" forebay export ram0 --any-host
for transport in rdma tcp; do
    output=$("$attach" "$transport" "$HOST_IP:4420" "$ours" 1 2>&1) || fail "attach: $output"
    expect_eq "attach over $transport" "$(tail -n 1 <<<"$output")" "wrote a block and read it back"
    verified "$transport" "$ours"
done
load_verified "$ours"

step "what cannot be attached is told"
expect_failure "another name" "Connect failed: .*the subsystem NQN" \
    "$attach" rdma "$HOST_IP:4420" nqn.2026-11.io.forebay:none 1
expect_failure "another namespace" "no namespace 9" "$attach" rdma "$HOST_IP:4420" "$ours" 9
expect_failure "nobody listens" "nobody listens there" "$attach" rdma "$HOST_IP:4444" "$ours" 1

step "the target goes in the middle of I/O"
begin_load "$ours" until-lost
check "the controller goes" forebay unexport "$ours" --force
end_load
target_stop

step "the kernel's target"
dmesg_allow 'connect request for invalid subsystem'
nvmet_listen 4420
nvmet_export "$kernels" "$(null_blk nullb0 64)"
verified rdma "$kernels"
load_verified "$kernels"
expect_failure "another name" "Connect failed: .*the subsystem NQN" \
    "$attach" rdma "$HOST_IP:4420" nqn.2026-11.io.forebay:none 1

step "the kernel's target goes in the middle of I/O and comes back"
begin_load "$kernels" through-loss
check "the controller goes" rm "$NVMET/ports/1/subsystems/$kernels"
wait_for 20 "the host has noticed" grep '^lost' load.log
check "and comes back" ln -s "$NVMET/subsystems/$kernels" "$NVMET/ports/1/subsystems/"
end_load
