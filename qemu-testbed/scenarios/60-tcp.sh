# testbed: ssds=1 size=256M mark=ci timeout=240
# NVMe/TCP: an SSD and memory exported by Forebay and attached by the kernel's initiator, over IPv4
# and IPv6, with digests and without; a host that breaks the rules, connections that say nothing,
# and a daemon that is killed.

TRANSPORT=tcp
ip=fd00::60
check "an IPv6 address" ip address add "$ip/64" dev lo nodad
options=(--cores 2 --listen "tcp://$HOST_IP" --listen "tcp://$ip" --listen "$HOST_IP" --memory 192)
target_start "${options[@]}"
check "a block device" forebay bdev create ram ram0 64M
check "bind" forebay device bind "$(ssd_bdf 0)"
nqn=nqn.2026-11.io.forebay:ram0
ssd=nqn.2026-11.io.forebay:ssd0n1

# connect_by WORDS: the line of the last export that has all of them.
connect_by() { grep -oE 'nvme connect .*' <<<"$lines" | grep -F -- "$1"; }

step "discovery and the lines that attach"
lines=$(forebay export ram0 --any-host)
expect_eq "lines" "$(grep -c 'nvme connect -t' <<<"$lines")" 3
log=$(nvme discover -t tcp -a "$HOST_IP" -s 4420 -o json)
expect_json "records" "$log" '[.records[] | select(.subnqn == "'"$nqn"'").trtype] | sort | join(" ")' \
    "rdma tcp tcp"

step "IPv4, without digests"
device=$(connect_line "$(connect_by "-t tcp -a $HOST_IP")" -k 60)
controller=/dev/$(ns_controllers "$nqn")
expect_json "SGLs: of the transport, and not keyed" "$(nvme id-ctrl "$controller" -o json)" \
    '.sgls' $((0x300001))
fio_verify "$device" --bsrange=4k-1m --size=48m
fio_verify "$device" --bs=4k --iodepth=128 --numjobs=4 --size=4m --offset_increment=8m
queues=$(forebay connection list --json)
expect_json "transport" "$queues" '.[0].transport' tcp
expect_json "cores of the I/O queues" "$queues" \
    '[.[0].queues[] | select(.qid > 0).core] | unique | length' 2
detach "$nqn"

step "IPv6, with digests of headers and data"
device=$(connect_line "$(connect_by "-t tcp -a $ip")" -k 60 --hdr-digest --data-digest)
fio_verify "$device" --bsrange=4k-1m --size=48m
detach "$nqn"

step "one namespace over both transports"
over_rdma=$(connect_line "$(connect_by "-t rdma")" -k 60)
fio_verify "$over_rdma" --size=8m --offset=8m
detach "$nqn"
device=$(connect_line "$(connect_by "-t tcp -a $HOST_IP")" -k 60)
fio --name=read-back --filename="$device" --ioengine=libaio --direct=1 --rw=randwrite --bs=4k \
    --iodepth=16 --size=8m --offset=8m --verify=crc32c --verify_fatal=1 --verify_only=1 \
    --randrepeat=1 >"$RESULTS/read-back.txt" || fail "what was written over RDMA reads otherwise"

step "hosts that break the rules, and connections that say nothing"
verify_meanwhile "$device" --size=8m --offset=32m
for round in {1..20}; do
    exec {raw}<>"/dev/tcp/$HOST_IP/4420"
    head -c 200 /dev/urandom | sed 's/^\x00/\x0f/' >&"$raw" || true
    answer=$(timeout 10 head -c 1 <&"$raw" | od -An -tx1)
    expect_eq "C2HTermReq, round $round" "$answer" " 03"
    exec {raw}>&-
done
silent=()
for _ in {1..700}; do
    exec {raw}<>"/dev/tcp/$HOST_IP/4420"
    silent+=("$raw")
done
other=$(nvme gen-hostnqn)
check "another host connects" nvme_as "$other" connect -n "$nqn" -k 60
verified_meanwhile
check "and disconnects" nvme disconnect -d "/dev/$(controller_of "$other" "$nqn")"
for raw in "${silent[@]}"; do
    exec {raw}>&-
done
detach "$nqn"

step "killed under load"
lines=$(forebay export ssd0n1 --any-host)
device=$(connect_line "$(connect_by "-t tcp -a $HOST_IP")" -k 60 --reconnect-delay=1)
name=$(ns_controllers "$ssd")
fio --name=load --filename="$device" --ioengine=libaio --direct=1 --rw=randwrite --bs=4k \
    --iodepth=16 --size=12m --rate_iops=300 --verify=crc32c --verify_fatal=1 --do_verify=1 \
    --output="$RESULTS/load.txt" &
load=$!
written() {
    forebay stats --json \
        | jq -e "[.namespaces[] | select(.nqn == \"$ssd\").writes] | add > 500" >/dev/null
}
wait_for 30 "five hundred blocks are written" written
kill -9 "$target_pid"
wait "$target_pid" || true
wait_for 30 "the host has noticed" grep -qv live "/sys/class/nvme/$name/state"
dmesg_allow "$name: (starting error recovery|Reconnecting in|Failed reconnect|failed to connect)"
dmesg_allow 'no usable path|I/O Cmd|reconnect|(block|nvme).* I/O |queue [0-9]+: '
target_start "${options[@]}"
wait_for 60 "the host is connected again" grep -q live "/sys/class/nvme/$name/state"
check "every acknowledged block is there" wait "$load"
detach "$ssd"
target_stop
