# testbed: ssds=2 hotplug=1 mark=ci timeout=180
# Orderly hot-unplug of an SSD that the driver reads from: the kernel asks for it, what is in flight
# ends, the device goes. Another SSD of the same process goes on.

nvme_hold=/bin-share/examples/nvme_hold
check "the example is built" test -x "$nvme_hold"
bdf=$(ssd_bdf 0)

log=$RESULTS/hold.log

# wait_for_line SECONDS LINE: until the program says so; it must not end before.
wait_for_line() {
    wait_for "$1" "nvme_hold says '$2', or ends" said_or_ended "$2"
    grep -q "$2" "$log" || fail "nvme_hold ended without '$2': $(<"$log")"
    say "ok: $2"
}

said_or_ended() { grep -q "$1" "$log" || ! kill -0 "$program" 2>/dev/null; }

step "reading from two SSDs"
"$nvme_hold" "$bdf" "$(ssd_bdf 1)" >"$log" 2>&1 &
program=$!
wait_for_line 60 'hold: reading$'

step "unplugging the first"
host_do qmp '{"execute":"device_del","arguments":{"id":"ssd0"}}' >/dev/null
wait_for_line 60 'hold: let go$'
wait_for 30 "it is gone" test ! -e "/sys/bus/pci/devices/$bdf"

step "the other one goes on"
wait "$program" || fail "nvme_hold: $(<"$log")"
say "$(<"$log")"
expect_eq "last line" "$(tail -n 1 "$log")" "nvme_hold: ok"
