# testbed: ssds=2 mark=ci timeout=240
# Two reactors: both queues of the host and both queue pairs of each SSD are at work, and the CPU
# copies nothing.

target_start --cores 2 --listen "$HOST_IP:4420" --memory 192

step "two SSDs"
for ssd in 0 1; do
    check "bind SSD $ssd" forebay device bind "$(ssd_bdf "$ssd")"
done
hostnqn=$(nvme gen-hostnqn)
nqn=nqn.2026-11.io.forebay:shared
export_bdev ssd0n1 --nqn "$nqn" --host "$hostnqn" >line
check "a second namespace in the subsystem" forebay export ssd1n1 --nqn "$nqn"

step "attach"
device=$(connect_line "$(<line)" -q "$hostnqn" -I "${hostnqn##*:}" -k 60 --nr-io-queues=2)
wait_for 10 "namespace 2 is there" ns_device "$nqn" 2 >/dev/null
second=$(ns_device "$nqn" 2)

step "verified data on both, from both CPUs"
for namespace in "$device" "$second"; do
    fio_verify "$namespace" --bssplit=4k/95:1m --size=4m --numjobs=2 --offset_increment=4m \
        --iodepth=8 --cpus_allowed=0,1 --cpus_allowed_policy=split
done

step "both cores, both queues, both queue pairs"
stats=$(forebay stats --json)
expect_json "cores that did I/O" "$stats" '[.cores[] | select(.ios > 100)] | length' 2
expect_json "queue pairs that did I/O" "$stats" \
    '[.queue_pairs[] | select(.submissions > 10)] | length' 4
expect_json "stale completions" "$stats" '[.queue_pairs[].stale] | add' 0
expect_json "bytes copied by the CPU" "$stats" '[.cores[].copied_bytes] | add' 0
expect_json "queues that took commands" "$(forebay connection list --json)" \
    '[.[].queues[] | select(.qid > 0 and .commands > 100)] | length' 2
detach "$nqn"
target_stop
