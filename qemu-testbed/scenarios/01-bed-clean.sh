# testbed: ssds=1 mark=ci timeout=60
# A scenario that shares its boot with another one finds the guest as after a fresh boot.

step "nothing of an earlier scenario is left"
expect_eq "attached block devices" "$(lsblk -dno NAME | grep -c nvme)" 1
check "SSD 0 reads zeroes" cmp -n $((64 << 20)) "$(ssd_device 0)" /dev/zero
expect_eq "free hugepages" "$(</sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages)" 128
expect_eq "subsystems of the kernel's target" \
    "$(find /sys/kernel/config/nvmet/subsystems -mindepth 1 | wc -l)" 0
