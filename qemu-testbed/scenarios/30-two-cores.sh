# testbed: ssds=2 mark=ci timeout=300
# Two reactors: both queues of the host and both queue pairs of each SSD are at work, and the CPU
# copies nothing. Identity field by field; xfs.

target_start --cores 2 --listen "$HOST_IP:4420" --memory 192
mkdir -p /mnt/a

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
controller=/dev/$(ns_controllers "$nqn")

step "identity"
id=$(nvme id-ctrl "$controller" -o json)
serial=$(forebay exports --json | jq -r '.[0].serial')
expect_json "id-ctrl" "$id" '.sn | sub(" +$"; "")' "$serial"
expect_json "id-ctrl" "$id" '.mn | sub(" +$"; "")' "Forebay"
expect_json "id-ctrl" "$id" '.subnqn' "$nqn"
expect_json "id-ctrl: 1 MiB at most" "$id" '.mdts' 8
expect_json "id-ctrl" "$id" '.kas > 0 and .ioccsz == 260 and .iorcsz == 1 and .icdoff == 0' true
expect_json "id-ctrl: a volatile write cache, no flush of all" "$id" '.vwc' 5
for nsid in 1 2; do
    ns=$(nvme id-ns "$(ns_device "$nqn" "$nsid")" -o json)
    expect_json "id-ns $nsid" "$ns" '.nsze' $((1 << 21))
    expect_json "id-ns $nsid" "$ns" '.nguid' \
        "$(forebay exports --json | jq -r ".[] | select(.nsid == $nsid) | .nguid")"
done
expect_json "smart-log" "$(nvme smart-log "$controller" -o json)" '.critical_warning' 0
expect_json "list-subsys" "$(nvme list-subsys -o json)" \
    "[.[].Subsystems[] | select(.NQN == \"$nqn\") | .Paths[].Transport] | unique | join(\",\")" rdma
expect_match "list" "$(nvme list -o json | jq -c .)" "Forebay"

step "xfs on the one, raw data on the other, from several CPUs"
check "mkfs.xfs" mkfs.xfs -q "$device"
check "mount" mount "$device" /mnt/a
fio_verify /mnt/a/file --bsrange=4k-1m --size=16m --numjobs=2 --offset_increment=16m --iodepth=8
check "umount" umount /mnt/a
check "xfs_repair finds nothing" xfs_repair -n "$device"
fio_verify "$second" --bs=4k --size=8m --numjobs=2 --offset_increment=64m --iodepth=16

step "both cores, both queues, both queue pairs"
stats=$(forebay stats --json)
expect_json "cores that did I/O" "$stats" '[.cores[] | select(.ios > 100)] | length' 2
expect_json "queue pairs that did I/O" "$stats" \
    '[.queue_pairs[] | select(.submissions > 10)] | length' 4
expect_json "stale completions" "$stats" '[.queue_pairs[].stale] | add' 0
expect_json "bytes copied by the CPU" "$stats" \
    '[.channels[].copied_bytes, .carriers[].copied_bytes] | add' 0
expect_json "queues that took commands" "$(forebay connection list --json)" \
    '[.[].queues[] | select(.qid > 0 and .commands > 100)] | length' 2

detach "$nqn"
target_stop
