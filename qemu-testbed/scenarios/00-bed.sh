# testbed: ssds=1 mark=ci timeout=180
# The bed itself, without Forebay: the kernel's own nvmet exports the emulated SSD and a null block
# device over soft-RoCE, and the kernel's initiator attaches both.

nqn_ssd=nqn.2014-08.org.nvmexpress:bed-ssd
nqn_null=nqn.2014-08.org.nvmexpress:bed-null

step "what the guest has"
expect_eq "IOMMU groups of SSD 0" "$(ls "/sys/bus/pci/devices/$(ssd_bdf 0)/iommu_group/devices")" \
    "$(ssd_bdf 0)"
expect_eq "free hugepages" "$(</sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages)" 128
check "rxe0 is up" grep -q ACTIVE /sys/class/infiniband/rxe0/ports/1/state
device=$(ssd_device 0)
check "SSD 0 reads zeroes at first" cmp -n $((16 << 20)) "$device" /dev/zero

step "exporting by the kernel's target"
nvmet_listen
nvmet_export "$nqn_ssd" "$device"
nvmet_export "$nqn_null" "$(null_blk nullb0)"

step "discovering and attaching"
log=$(nvme discover -t rdma -a "$HOST_IP" -s 4420 -o json)
expect_json "subsystems found" "$log" \
    '[.records[] | select(.subtype == "nvme subsystem") | .subnqn] | sort | join(" ")' \
    "$nqn_null $nqn_ssd"
ssd=$(attach "$nqn_ssd")
null=$(attach "$nqn_null")

step "writing and verifying"
fio_verify "$null"
fio_verify "$ssd" --bs=64k

step "comparing with the SSD's backing file outside the guest"
compare_outside 0 "$ssd" 32
expect_eq "sha256 of the first MiB outside" "$(host_do sha256 0 0 $((1 << 20)))" \
    "$(head -c 1M "$ssd" | sha256sum | cut -d' ' -f1)"
check "the first MiB has data" test "$(head -c 1M "$ssd" | tr -d '\0' | wc -c)" -gt 0

step "detaching"
detach "$nqn_ssd"
detach "$nqn_null"
