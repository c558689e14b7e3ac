# testbed: ssds=1 mark=ci timeout=180
# The RDMA device is removed under the daemon and comes back, five times: with a host attached and
# without. The removal ends, the daemon listens again, and the host finds its data. More rounds than
# the daemon has places for devices, so none may be lost.

nqn=nqn.2026-11.io.forebay:ram0

# The kernel tells its modules of a removal in the reverse order of their loading; see 10-verbs.
modprobe -r nvme_rdma nvmet_rdma rdma_ucm rdma_cm
modprobe -a nvme-rdma nvmet-rdma rdma_ucm
# rdma_cm does not notice when the last device goes, so there is a second one.
ip link add verbs0 type dummy
ip addr add 10.9.0.1/24 dev verbs0
ip link set verbs0 up
rdma link add rxe1 type rxe netdev verbs0
wait_for 10 "rxe0 is up" grep -q ACTIVE /sys/class/infiniband/rxe0/ports/1/state

target_start --cores 1 --listen "$HOST_IP:4420" --memory 64 --no-hugepages
check "a block device" forebay bdev create ram ram0 64M
line=$(export_bdev ram0 --any-host)
device=$(connect_line "$line" -k 60)
fio_verify "$device" --size=2m
sum=$(dd if="$device" bs=1M count=2 iflag=direct status=none | md5sum)
# What the host says as it loses its way to the target.
dmesg_allow 'Property Set error|I/O (error|tag)|starting error recovery|Connect rejected|failed to connect'

holds() { [ "$(dd if="$device" bs=1M count=2 iflag=direct status=none | md5sum)" = "$sum" ]; }
listens() { nvme discover -t rdma -a "$HOST_IP" -s 4420 -o json | grep -q "$nqn"; }
opened() { grep -c 'RDMA device opened' "$RESULTS/target.log"; }

for round in 1 2 3 4 5; do
    # In odd rounds a host is attached; in even ones only the listener is on the device.
    if [ $((round % 2)) = 0 ]; then
        detach "$nqn"
        what="without a host"
    else
        what="with a host"
    fi
    step "round $round, $what: the device goes and comes back"
    timeout 20 rdma link del rxe0 || fail "the removal does not end"
    check "rxe0 is gone" test ! -e /sys/class/infiniband/rxe0
    rdma link add rxe0 type rxe netdev eth0
    wait_for 20 "the daemon listens again" listens
    device=$(connect_line "$line" -k 60)
    # The kernel shows the device a moment before it can be opened.
    wait_for 20 "the data is there" holds
    expect_eq "times that the device was opened" "$(opened)" $((round + 1))
done
fio_verify "$device" --size=2m

detach "$nqn"
target_stop
rdma link del rxe1
ip link del verbs0
