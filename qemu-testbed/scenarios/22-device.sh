# testbed: ssds=2 mark=ci timeout=240
# SSDs through the daemon: who may be taken, what a host reads of their health, and that the CPU
# moves no data for them, but does for memory.

target_start --cores 1 --listen "$HOST_IP:4420" --memory 128
bdf=$(ssd_bdf 0)
other=$(ssd_bdf 1)
driver_of() { basename "$(readlink "/sys/bus/pci/devices/$1/driver")"; }

step "an SSD with data on it is refused, and what was found is named"
check "mkfs" mkfs.ext4 -q "$(ssd_device 1)"
error=$(forebay --json device bind "$other" 2>&1) && fail "it was bound: $error"
expect_json "found" "$error" '.error.data.found | join(" ") | test("ext4")' true
expect_json "advice" "$error" '.error.data.advice | test("--force")' true
expect_eq "its driver" "$(driver_of "$other")" nvme

step "one that vfio-pci has already may be somebody else's"
modprobe vfio-pci
ssd_unbind "$other"
echo vfio-pci >"/sys/bus/pci/devices/$other/driver_override"
echo "$other" >/sys/bus/pci/drivers_probe
wait_for 10 "vfio-pci has it" test "$(driver_of "$other")" = vfio-pci
expect_json "in the list" "$(forebay device show "$other" --json)" \
    '.open == false and (.contents_unknown | length) > 0' true
expect_failure "bind" "found: vfio-pci has it already" forebay device bind "$other"
exec 9<>"/dev/vfio/$(basename "$(readlink "/sys/bus/pci/devices/$other/iommu_group")")"
expect_failure "bind by force" "found: .* is open in process" forebay device bind --force "$other"
exec 9<&-
check "bind by force, once it is closed" forebay device bind --force "$other"
check "release" forebay device release "$other"
expect_eq "its driver" "$(driver_of "$other")" nvme

step "two callers want the same SSD"
forebay device bind "$bdf" >"$RESULTS/first" 2>&1 &
first=$!
second=0
forebay device bind "$bdf" >"$RESULTS/second" 2>&1 || second=$?
status=0
wait "$first" || status=$?
expect_eq "one of them has it" $((status + second)) 1
expect_match "the other is told why" "$(cat "$RESULTS/first" "$RESULTS/second")" \
    'is being bound|is driven by forebay already'

step "what the host reads of its health"
nqn=nqn.2026-11.io.forebay:ssd0n1
device=$(connect_line "$(export_bdev ssd0n1 --any-host)" -k 60)
controller=/dev/$(ns_controllers "$nqn")
fio_verify "$device" --bs=128k --size=16m
health=$(forebay device show "$bdf" --json)
forebay device show "$bdf" >&2
smart() { nvme smart-log "$controller" -o json; }
# 16 MiB are 33 data units of 512,000 bytes, rounded up; 128 commands.
counted() { smart | jq -e '.data_units_written >= 33 and .host_write_commands >= 128
    and .data_units_read >= 33 and .host_read_commands >= 128'; }
wait_for 10 "what fio wrote and read is counted" counted >/dev/null
expect_json "temperature, K" "$(smart)" .temperature \
    "$(jq '.health.temperature_celsius + 273' <<<"$health")"
expect_json "spare" "$(smart)" .avail_spare "$(jq .health.spare_percent <<<"$health")"
expect_json "used" "$(smart)" .percent_used "$(jq .health.used_percent <<<"$health")"
expect_json "media errors" "$(smart)" .media_errors "$(jq .health.media_errors <<<"$health")"

step "the CPU moves no data between SSD and network, and all of it for memory"
copied() { forebay stats --json | jq '[.cores[].copied_bytes] | add'; }
expect_eq "bytes moved for the SSD" "$(copied)" 0
check "memory" forebay bdev create ram ram0 64M
memory=$(connect_line "$(export_bdev ram0 --any-host)" -k 60)
fio_verify "$memory" --bs=128k --size=4m
check "bytes moved for memory" test "$(copied)" -ge $((8 << 20))
expect_failure "more memory than there is" "bytes of memory wanted, [0-9]* are available" \
    forebay bdev create ram ram1 1000G

step "given back"
detach "$nqn"
detach nqn.2026-11.io.forebay:ram0
expect_failure "release while exported" "in use" forebay device release "$bdf"
check "unexport" forebay unexport "$nqn"
check "release" forebay device release "$bdf"
expect_eq "its driver" "$(driver_of "$bdf")" nvme
target_stop
