# testbed: ssds=2 vcpus=4 memory=4G hugepages=256 mark=long timeout=420
# What the host is told, field by field; xfs on one SSD, raw data on another, from four CPUs and
# over two cores.

target_start --cores 2 --listen "$HOST_IP:4420" --memory 256
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

detach "$nqn"
target_stop
