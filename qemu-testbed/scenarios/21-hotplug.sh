# testbed: ssds=2 hotplug=1 mark=ci timeout=180
# Orderly hot-unplug of an SSD that the driver reads from: the kernel asks for it, what is in flight
# ends, the device goes. Another SSD of the same process goes on.

nvme_hold=/bin-share/examples/nvme_hold
check "the example is built" test -x "$nvme_hold"
bdf=$(ssd_bdf 0)

step "reading from two SSDs"
"$nvme_hold" "$bdf" "$(ssd_bdf 1)" >hold.log 2>&1 &
program=$!
wait_for 30 "both are read from" grep -q 'hold: reading$' hold.log

step "unplugging the first"
host_do qmp '{"execute":"device_del","arguments":{"id":"ssd0"}}' >/dev/null
wait_for 30 "it was let go" grep -q 'hold: let go' hold.log
wait_for 30 "it is gone" test ! -e "/sys/bus/pci/devices/$bdf"

step "the other one goes on"
wait "$program" || fail "nvme_hold: $(<hold.log)"
say "$(<hold.log)"
expect_eq "last line" "$(tail -n 1 hold.log)" "nvme_hold: ok"
