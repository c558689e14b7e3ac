# testbed: ssds=1 mark=ci timeout=240
# forebay-perf, and with it our own host side: verified load on an SSD through our driver, on the
# kernel's target over TCP, and on ours, over IPv4 and IPv6, with digests and without; and a target
# that is killed under it.

ip=fd00::61
check "an IPv6 address" ip address add "$ip/64" dev lo nodad
nqn=nqn.2026-11.io.forebay:host

# verified NAME TARGET [forebay-perf options...]: load of all kinds, each block read back at the end.
verified() {
    local name=$1 target=$2 output
    shift 2
    output=$(forebay-perf run "$target" --pattern random --read 50 --block-size 4k:70,64k:20,1m:10 \
        --depth 16 --cores 1 --runtime 2s --size 32M --flush-every 50 --verify "/tmp/$name.log" \
        --destroy-data "$@" 2>&1) || fail "forebay-perf on $name: $output"
    say "$output"
    expect_match "$name" "$output" 'verified: [1-9][0-9]* blocks are what was written'
}

step "an SSD, through our driver"
bdf=$(ssd_bdf 0)
verified ssd "pcie:$bdf"
wait_for 20 "the kernel has it back" ssd_device 0 >/dev/null

step "the kernel's target"
modprobe nvmet-tcp
nvmet_listen 4431 tcp
nvmet_listen 4432 tcp "$ip"
nvmet_export "$nqn" "$(null_blk nullb9 64)"
verified nvmet "tcp://$HOST_IP:4431/$nqn"
verified nvmet-digests "tcp://[$ip]:4432/$nqn" --hdr-digest --data-digest
nvmet_clear

step "our target"
options=(--cores 1 --listen "tcp://$HOST_IP" --listen "tcp://$ip" --memory 128)
target_start "${options[@]}"
check "bind" forebay device bind --force "$bdf"
check "export" forebay export ssd0n1 --nqn "$nqn" --any-host
verified ours "tcp://$HOST_IP/$nqn"
verified ours-digests "tcp://[$ip]/$nqn" --hdr-digest --data-digest
expect_failure "a subsystem that is not there" "Connect Invalid Parameters" \
    forebay-perf run "tcp://$HOST_IP/$nqn-other" --runtime 1s
expect_failure "an address where nobody is" "Connection refused" \
    forebay-perf run "tcp://$HOST_IP:4499/$nqn" --runtime 1s

step "our target, killed under load"
writes() { forebay stats --json | jq '[.namespaces[].writes] | add'; }
before=$(writes)
forebay-perf run "tcp://$HOST_IP/$nqn" --read 30 --depth 16 --cores 1 --runtime 8s --size 32M \
    --verify /tmp/killed.log --destroy-data >"$RESULTS/killed.txt" 2>&1 &
load=$!
# More than those of the runs before: it has connected.
written() { [ "$(writes)" -gt $((before + 500)) ]; }
wait_for 30 "five hundred more writes" written
kill -9 "$target_pid"
wait "$target_pid" || true
target_start "${options[@]}"
# Writes that were on their way have failed, and forebay-perf says so.
status=0
wait "$load" || status=$?
expect_eq "exit status" "$status" 1
expect_match "what it says" "$(<"$RESULTS/killed.txt")" 'verified: [1-9][0-9]* blocks'
output=$(forebay-perf verify /tmp/killed.log "tcp://$HOST_IP/$nqn" 2>&1) || fail "verify: $output"
expect_match "verified after it" "$output" 'verified: [1-9][0-9]* blocks are what was written'
target_stop
