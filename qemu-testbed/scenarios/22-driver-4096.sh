# testbed: ssds=1 block=4096 namespaces=2 mdts=2 mark=ci timeout=180
# The driver on an SSD with blocks of 4096 bytes, two namespaces, and commands of 16 KiB at most: the
# second namespace is verified, the first keeps its bytes.

nvme_verify=/bin-share/examples/nvme_verify
check "the example is built" test -x "$nvme_verify"
bdf=$(ssd_bdf 0)

step "a mark on the first namespace"
device=$(ssd_device 0)
printf 'mark%.0s' {1..1024} >"$RESULTS/mark"
dd if="$RESULTS/mark" of="$device" bs=4096 oflag=direct status=none

step "taking, verifying the second namespace, giving back"
output=$("$nvme_verify" "$bdf" --force 2 2>&1) || fail "nvme_verify: $output"
say "$output"
expect_match "blocks" "$output" "nsid: 2, block_bytes: 4096"
expect_match "longest command" "$output" "transfer_bytes: 16384"
expect_eq "last line" "$(tail -n 1 <<<"$output")" "nvme_verify: ok"

step "the first namespace has its mark"
wait_for 10 "the block device is back" ssd_device 0
dd if="$(ssd_device 0)" of="$RESULTS/back" bs=4096 count=1 iflag=direct status=none
check "the mark" cmp "$RESULTS/mark" "$RESULTS/back"
