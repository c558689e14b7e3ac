# testbed: ssds=1 size=512M mark=ci timeout=300
# A volume under verified load, many writes in flight, and the target killed at random times, five
# times over: whatever the checker's own log says was acknowledged is there, and the pool is whole.

kills=${kills:-5}
seed=${seed:-$RANDOM}
RANDOM=$seed
say "seed $seed"

nqn=nqn.2026-11.io.forebay:tank/data
# Each round continues the log of the ones before, so it verifies what they left, too.
log=/tmp/acknowledged.log
rm -f "$log" # of a scenario before, in the same boot
options=(--cores 1 --listen "$HOST_IP:4420" --listen "tcp://$HOST_IP" --memory 128)

target_start "${options[@]}"
check "bind" forebay device bind "$(ssd_bdf 0)"
check "pool" forebay pool create tank ssd0n1
check "volume" forebay volume create tank/data 128M
check "export" forebay export tank/data --any-host

writes() { forebay stats --json | jq '[.namespaces[].writes] | add // 0'; }
# Or has ended, and says why in the check that follows.
under_way() { [ "$(writes)" -gt 200 ] || ! kill -0 "$load" 2>/dev/null; }

# killed_in ROUND: load, a snapshot in the middle of it (so that what follows are first touches),
# and a kill some time after that.
killed_in() {
    local round=$1 transport=rdma status=0 failed
    [ $((round % 2)) = 0 ] || transport=tcp
    forebay-perf run "$transport://$HOST_IP/$nqn" --pattern random --read 0 --block-size 4k:90,64k:10 \
        --depth 96 --cores 1 --runtime 10s --size 96M --verify "$log" --destroy-data \
        >"$RESULTS/load.$round" 2>&1 &
    load=$!
    wait_for 60 "the load is on its way" under_way
    kill -0 "$load" || fail "the load: $(<"$RESULTS/load.$round")"
    [ "$round" -lt 2 ] || check "delete" forebay snapshot delete "tank/data.r$((round - 2))"
    check "snapshot" forebay snapshot create tank/data --name "r$round"
    sleep "$((RANDOM % 2)).$((RANDOM % 900 + 100))"
    # shellcheck disable=SC2154 # set by target_start
    kill -9 "$target_pid"
    wait "$target_pid" || true
    target_start "${options[@]}"
    # forebay-perf goes on when the target is back, and says what had been in flight.
    wait "$load" || status=$?
    expect_eq "exit status of the load" "$status" 1
    failed=$(sed -nE 's/^([0-9]+) I\/Os FAILED.*/\1/p' "$RESULTS/load.$round")
    # Of the 96 that it keeps in flight, those that had left the host: others it could send again.
    check "$failed writes were in flight" test "${failed:-0}" -ge 1
    [ "$failed" -lt "$most" ] || most=$failed
    check "verified" grep -E 'verified: [1-9][0-9]* blocks are what was written' "$RESULTS/load.$round"
}

most=0
for ((round = 0; round < kills; round++)); do
    step "kill $((round + 1)) of $kills"
    killed_in "$round"
    output=$(forebay-perf verify "$log" "rdma://$HOST_IP/$nqn" 2>&1) || fail "verify: $output"
    expect_match "verified after it" "$output" 'verified: [1-9][0-9]* blocks are what was written'
    expect_eq "the pool's check" "$(forebay pool check tank)" "nothing is wrong"
done
check "32 writes and more were in flight at some time: $most" test "$most" -ge 32
target_stop
