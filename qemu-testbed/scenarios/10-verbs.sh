# testbed: ssds=1 mark=ci timeout=180
# The verbs layer over soft-RoCE: both ends of connections in one process, and an RDMA device that
# is removed under a connection and comes back. The program compares every byte itself.

# One write goes to a key that was invalidated, on purpose; rxe reports its completion.
dmesg_allow 'make_send_cqe: non-flush error status = 10'

verbs_ping=/bin-share/examples/verbs_ping
check "the example is built" test -x "$verbs_ping"

step "capsules, RDMA WRITE and READ, invalidated windows, rejects and disconnects"
wait_for 10 "rxe0 is up" grep -q ACTIVE /sys/class/infiniband/rxe0/ports/1/state
output=$("$verbs_ping" "$HOST_IP:4420" 2>&1) || fail "verbs_ping: $output"
say "$output"
expect_eq "last line" "$(tail -n 1 <<<"$output")" "verbs_ping: ok"

step "an address that no RDMA device has"
ip link add verbs0 type dummy
ip addr add 10.9.0.1/24 dev verbs0
ip link set verbs0 up
expect_failure "bind" "no RDMA device has this address" "$verbs_ping" 10.9.0.1:4420

step "the device is removed and comes back"
# The kernel tells its modules of a removal in the reverse order of their loading. ib_uverbs waits
# until rxe has no users (other devices can be torn from theirs), so rdma_cm must hear of it before:
# it is what tells the users.
modprobe -r nvme_rdma nvmet_rdma rdma_ucm rdma_cm
modprobe -a nvme-rdma nvmet-rdma rdma_ucm
# rdma_cm does not notice when the last device goes, so there is a second one.
rdma link add rxe1 type rxe netdev verbs0
"$verbs_ping" "$HOST_IP:4420" removal >removal.log 2>&1 &
program=$!
wait_for 10 "connections are up" grep -q 'removal: connected' removal.log
timeout 20 rdma link del rxe0 || fail "the removal does not end: $(cat removal.log)"
wait_for 10 "everything is given back" grep -q 'removal: everything given back' removal.log
rdma link add rxe0 type rxe netdev eth0
check "connections are up again" wait "$program"
expect_eq "last line" "$(tail -n 1 removal.log)" "removal: ok"

rdma link del rxe1
ip link del verbs0
