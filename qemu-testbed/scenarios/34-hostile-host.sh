# testbed: ssds=1 mark=ci timeout=240
# A host that sends garbage, and a port that is taken: a clear error for whoever asks, and a host
# beside it goes on with verified I/O on the same connection as before.

target_start
check "a block device" forebay bdev create ram ram0 64M
device=$(connect_line "$(export_bdev ram0 --any-host)" -k 60)
cntlid=$(forebay connection list --json | jq '.[].cntlid')

step "garbage while another host works"
verify_meanwhile "$device" --size=2m
output=$(/bin-share/examples/verbs_hostile "$HOST_IP:4420" 2>&1) || fail "verbs_hostile: $output"
say "$output"
expect_eq "last line" "$(tail -n 1 <<<"$output")" "verbs_hostile: ok"
check "each refusal is logged" test "$(grep -c 'connection refused' "$RESULTS/target.log")" -ge 5
verified_meanwhile
expect_json "the same controller, and no other" "$(forebay connection list --json)" \
    '[.[].cntlid] | join(" ")' "$cntlid"
# The queue pair of a capsule that does not fit ends with an error, at both ends.
dmesg_allow 'non-flush error status'
detach nqn.2026-11.io.forebay:ram0
check "unexport" forebay unexport nqn.2026-11.io.forebay:ram0
target_stop

step "a port that is taken"
nvmet_listen 4420
nvmet_export nqn.2026-11.io.forebay.bed:taken "$(null_blk nullb0 16)"
taken="10.0.0.1:4420.*Address already in use"
expect_failure "a daemon for it" "$taken" forebay-target --listen "$HOST_IP:4420"
target_start --listen "$HOST_IP:4421"
check "a block device" forebay bdev create null null0 16M
expect_failure "an export at it" "$taken" forebay export null0 --any-host --listen "$HOST_IP:4420"
device=$(connect_line "$(export_bdev null0)" -k 60)
check "the daemon goes on" dd if="$device" of=/dev/null bs=1M count=4 iflag=direct status=none
detach nqn.2026-11.io.forebay:null0
target_stop
