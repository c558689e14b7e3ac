# Helpers for scenarios. Sourced by guest/scenario, which sets `set -euEo pipefail`: a command that
# fails ends the scenario, and so does every helper here, saying what was expected.
# shellcheck shell=bash

HOST_IP=10.0.0.1
RESULTS=/results/${SCENARIO:-shell}

# ---- Saying and checking -----------------------------------------------------------------------

say() { printf '[%7.1f] %s\n' "$(cut -d' ' -f1 /proc/uptime)" "$*" >&2; }

# step WORDS: what the story does next; also shown by the demo as progress.
step() { say "== $*"; }

fail() {
    local frame where=
    for frame in "${!BASH_SOURCE[@]}"; do
        if [[ ${BASH_SOURCE[frame]} == /testbed/scenarios/* ]]; then
            where=" (${BASH_SOURCE[frame]##*/}:${BASH_LINENO[frame - 1]})"
            break
        fi
    done
    say "FAILED: $*$where"
    exit 1
}

# check WHAT COMMAND...: the command must succeed.
check() {
    local what=$1
    shift
    "$@" || fail "$what: \`$*\` ended with status $?"
    say "ok: $what"
}

# expect_eq WHAT GOT WANTED
expect_eq() {
    [ "$2" = "$3" ] || fail "$1: got '$2', wanted '$3'"
    say "ok: $1 = $2"
}

# expect_match WHAT GOT REGEX
expect_match() {
    [[ $2 =~ $3 ]] || fail "$1: got '$2', wanted a match of '$3'"
    say "ok: $1 = $2"
}

# expect_failure WHAT REGEX COMMAND...: the command must fail and its output must match.
expect_failure() {
    local what=$1 regex=$2 output
    shift 2
    if output=$("$@" 2>&1); then
        fail "$what: \`$*\` succeeded: $output"
    fi
    [[ $output =~ $regex ]] || fail "$what: the error says '$output', wanted a match of '$regex'"
    say "ok: $what: $output"
}

# expect_json WHAT JSON FILTER WANTED: the jq filter over the text must print this.
expect_json() {
    local got
    got=$(jq -r "$3" <<<"$2") || fail "$1: jq '$3' refused: $2"
    expect_eq "$1 ($3)" "$got" "$4"
}

# wait_for SECONDS WHAT COMMAND...: until the command succeeds; its output is that of the last try.
wait_for() {
    local limit=$((SECONDS + $1)) what=$2 output
    shift 2
    until output=$("$@" 2>&1); do
        [ "$SECONDS" -lt "$limit" ] || fail "waited in vain until $what: ${output:-$*}"
        sleep 0.1
    done
    printf '%s' "${output:+$output$'\n'}"
}

# ---- The kernel's log --------------------------------------------------------------------------

# A slow machine is not a fault of the target.
# And how often something was said says nothing beside what was said.
dmesg_allowed=('callbacks suppressed' 'long keepalive RTT')
# dmesg_allow REGEX: a warning that this scenario provokes on purpose.
dmesg_allow() { dmesg_allowed+=("$1"); }

# kernel_log [dmesg options...]: prints what the kernel has said since the scenario began.
kernel_log() {
    dmesg --notime "$@" \
        | awk -v mark="testbed: begin $SCENARIO" '$0 == mark { text = ""; next }
                                                  { text = text $0 "\n" } END { printf "%s", text }'
}

# expect_kernel WHAT REGEX: the kernel must have said so since the scenario began, or soon.
expect_kernel() {
    wait_for 10 "the kernel says '$2'" kernel_said "$2" >/dev/null
    say "ok: $1: $(kernel_log | grep -E -- "$2" | tail -n 1)"
}

kernel_said() { kernel_log | grep -E -- "$1" >/dev/null; }

# A keep-alive that is in flight when the host itself takes leave is cancelled, and the host's kernel
# calls that a failure. Prints such lines; a failure at any other time is one.
cancelled_keep_alives() {
    kernel_log | awk '/^nvme nvme[0-9]+: new ctrl/ { delete leaving[$2] }
                      /^nvme nvme[0-9]+: Removing ctrl/ { leaving[$2] = 1 }
                      /: failed nvme_keep_alive_end_io/ && leaving[$2]'
}

# dmesg_clean: no error or warning since the scenario began from what Forebay has to do with.
dmesg_clean() {
    local lines regex
    lines=$(kernel_log --level emerg,alert,crit,err,warn \
        | grep -iE 'nvme|rxe|rdma|infiniband|ib_|vfio|DMAR|iommu|BUG|WARNING:|Oops|hung|blocked for|Call Trace|I/O error' \
        || true)
    lines=$(grep -vxF -f <(cancelled_keep_alives) <<<"$lines" || true)
    for regex in "${dmesg_allowed[@]}"; do
        lines=$(grep -vE "$regex" <<<"$lines" || true)
    done
    [ -z "$lines" ] || fail "the kernel's log has errors or warnings:"$'\n'"$lines"
    say "ok: the kernel's log is clean"
}

# ---- The world outside the guest -----------------------------------------------------------------

# host_do REQUEST...: has the runner outside do something; prints its answer. The requests:
#   qmp JSON                       a QMP command
#   replug SSD                     an unplugged SSD is plugged in again
#   compare SSD FILE               FILE, in /results, with the first bytes of an SSD's backing file
#   sha256 SSD OFFSET LENGTH       of a range (bytes) of an SSD's backing file
#   blank                          every SSD's backing file reads zeroes
host_do() {
    local id=$BASHPID-$RANDOM
    printf '%s\n' "$*" >"/results/requests/$id.part"
    mv "/results/requests/$id.part" "/results/requests/$id"
    wait_for 60 "the runner answers '$*'" test -e "/results/requests/$id.answer"
    read -r status <"/results/requests/$id.answer"
    tail -n +2 "/results/requests/$id.answer"
    [ "$status" = 0 ] || fail "the runner could not do '$*'"
}

# compare_outside SSD DEVICE LENGTH_MIB: what DEVICE reads must be what the SSD's backing file has.
# The bytes go out to be compared there: hashing is slow on an emulated CPU.
compare_outside() {
    local copy=$RESULTS/compared
    dd if="$2" of="$copy" bs=1M count="$3" iflag=direct status=none || fail "reading $2"
    expect_eq "size of the copy" "$(stat -c %s "$copy")" $(($3 << 20))
    host_do compare "$1" "${copy#/results/}" >&2
    rm "$copy"
    say "ok: the first $3 MiB of $2 are equal outside"
}

# power_cut: the machine stops at once, and boots again with what was flushed to its SSDs (header:
# powercut=1). The scenario begins anew; power_cuts prints how often that happened.
power_cut() {
    echo cut >>"$RESULTS/cuts"
    printf 'power-cut\n' >/results/requests/cut.part
    mv /results/requests/cut.part /results/requests/cut
    sleep 30
    fail "the power was not cut"
}

power_cuts() {
    touch "$RESULTS/cuts"
    wc -l <"$RESULTS/cuts"
}

# ---- SSDs --------------------------------------------------------------------------------------

# SSD N sits in slot 0x10 + N, or behind a root port in that slot (header: hotplug=1).
ssd_count() {
    local slots=(/sys/bus/pci/devices/0000:00:1[0-7].0)
    [ -e "${slots[0]}" ] && echo ${#slots[@]} || echo 0
}

# ssd_bdf N: prints its PCI address.
ssd_bdf() {
    local slot="/sys/bus/pci/devices/0000:00:1$1.0" child
    [ -e "$slot" ] || fail "this boot has no SSD $1"
    if [[ $(<"$slot/class") == 0x0604* ]]; then
        for child in "$slot"/0000:*:00.0; do
            [ -e "$child" ] || fail "SSD $1 is unplugged"
            echo "${child##*/}"
        done
    else
        echo "0000:00:1$1.0"
    fi
}

# ssd_device N [NSID]: prints the block device that the kernel's driver made of it.
ssd_device() {
    local namespace
    for namespace in /sys/bus/pci/devices/"$(ssd_bdf "$1")"/nvme/nvme*/nvme*n*; do
        if [ "$(cat "$namespace/nsid" 2>/dev/null)" = "${2:-1}" ]; then
            namespace=${namespace##*/}
            # With native multipath the path is nvmeXcYnZ, and the device nvmeXnZ.
            [[ $namespace =~ ^(nvme[0-9]+)(c[0-9]+)?(n[0-9]+)$ ]]
            echo "/dev/${BASH_REMATCH[1]}${BASH_REMATCH[3]}"
            return
        fi
    done
    return 1
}

ssd_unbind() {
    local device=/sys/bus/pci/devices/$1
    [ ! -e "$device/driver" ] || echo "$1" >"$device/driver/unbind"
}

ssd_to_kernel() {
    echo >"/sys/bus/pci/devices/$1/driver_override"
    echo "$1" >/sys/bus/pci/drivers_probe
}

# ---- Forebay ---------------------------------------------------------------------------------------

# target_start [forebay-target options...]: starts the daemon and waits until it answers. Its log is
# target.log among the results. Without options: one core, listening on the guest's address.
target_start() {
    [ $# -gt 0 ] || set -- --cores 1 --listen "$HOST_IP:4420"
    forebay-target "$@" >>"$RESULTS/target.log" 2>&1 &
    target_pid=$!
    wait_for 60 "forebay-target answers or ends" target_answers_or_ended
    kill -0 "$target_pid" 2>/dev/null \
        || fail "forebay-target $* ended at once: $(tail -n 5 "$RESULTS/target.log")"
    say "ok: forebay-target $* is up"
}

target_answers_or_ended() {
    forebay version || ! kill -0 "$target_pid" 2>/dev/null
}

# target_stop: asks the daemon to end, and fails unless it ends well.
target_stop() {
    local status=0
    forebay shutdown >/dev/null || fail "forebay shutdown"
    wait_for 30 "forebay-target ends" target_ended
    wait "$target_pid" || status=$?
    expect_eq "exit status of forebay-target" "$status" 0
}

# A process that ended and was not waited for yet still has its id.
target_ended() { ! grep -qs '^State:.[^Z]' "/proc/$target_pid/status"; }

# export_bdev BDEV [forebay export options...]: exports to any host unless told otherwise; prints
# the line that attaches it, as a user would see it.
export_bdev() {
    local output
    [ $# -gt 1 ] || set -- "$1" --any-host
    output=$(forebay export "$@") || fail "forebay export $*"
    say "$output"
    grep -oE 'nvme connect .*' <<<"$output" | head -n 1
}

# connect_line LINE [nvme connect options...]: runs a line printed by `forebay export`, and prints
# the block device of namespace 1.
connect_line() {
    local line=$1 nqn
    shift
    nqn=$(sed -nE "s/.* -n '?([^ ']+)'?.*/\1/p" <<<"$line")
    eval "$line $*" >&2 || fail "$line $*"
    wait_for 10 "namespace 1 of $nqn is there" ns_device "$nqn" 1
}

# ---- Attaching over the fabric -----------------------------------------------------------------

# ns_device NQN NSID: prints the block device of a namespace attached over a fabric; looked up in
# sysfs, because device numbers do not follow NSIDs.
ns_device() {
    local subsystem head
    for subsystem in /sys/class/nvme-subsystem/nvme-subsys*; do
        [ "$(cat "$subsystem/subsysnqn" 2>/dev/null)" = "$1" ] || continue
        for head in "$subsystem"/nvme*n*; do
            [[ ${head##*/} =~ ^nvme[0-9]+n[0-9]+$ ]] || continue
            if [ "$(cat "$head/nsid")" = "$2" ]; then
                echo "/dev/${head##*/}"
                return
            fi
        done
    done
    return 1
}

# ns_controllers NQN: prints the names (nvmeN) of the controllers attached for a subsystem.
ns_controllers() {
    local controller
    for controller in /sys/class/nvme/nvme*; do
        [ "$(cat "$controller/subsysnqn" 2>/dev/null)" != "$1" ] || echo "${controller##*/}"
    done
}

# nvme_as HOSTNQN VERB [nvme options...]: nvme as another host than the guest itself; `-n` and what
# else the verb needs is up to the caller.
nvme_as() {
    local hostnqn=$1 verb=$2
    shift 2
    nvme "$verb" -t "${TRANSPORT:-rdma}" -a "$HOST_IP" -s 4420 -q "$hostnqn" -I "${hostnqn##*:}" "$@"
}

# controller_of HOSTNQN NQN: prints the name (nvmeN) of the controller that this host has.
controller_of() {
    local name
    for name in $(ns_controllers "$2"); do
        if [ "$(cat "/sys/class/nvme/$name/hostnqn")" = "$1" ]; then
            echo "$name"
            return
        fi
    done
    return 1
}

# attach NQN [NSID [nvme connect options...]]: connects and prints the block device. Keep-alive is
# slow, because on a busy machine a guest stands still for seconds.
attach() {
    local nqn=$1 nsid=${2:-1}
    shift $(($# > 1 ? 2 : 1))
    nvme connect -t "${TRANSPORT:-rdma}" -a "$HOST_IP" -s 4420 -n "$nqn" -k 30 "$@" >&2 || fail "nvme connect to $nqn"
    wait_for 10 "namespace $nsid of $nqn is there" ns_device "$nqn" "$nsid"
}

# detach NQN: disconnects, and fails unless something was connected.
detach() {
    local output
    output=$(nvme disconnect -n "$1" 2>&1) || fail "nvme disconnect -n $1: $output"
    expect_match "disconnect of $1" "$output" 'disconnected [1-9][0-9]* controller'
}

# ---- Load ----------------------------------------------------------------------------------------

# fio_verify FILENAME [fio options...]: writes, reads back and compares crc32c; later options win.
fio_verify() {
    local filename=$1
    shift
    fio --name=verify --filename="$filename" --ioengine=libaio --direct=1 --rw=randwrite --bs=4k \
        --iodepth=16 --size=32m --verify=crc32c --verify_fatal=1 --do_verify=1 --randrepeat=1 \
        --output-format=json --output="$RESULTS/fio.json" "$@" \
        || fail "fio with verification on $filename $*: $(fio_json | jq -c '.jobs[].error')"
    expect_json "fio $* without errors" "$(fio_json)" '[.jobs[].error] | add' 0
}

# verify_meanwhile FILENAME [fio options...]: fio_verify again and again in the background, until
# verified_meanwhile, which fails unless all of it went well.
verify_meanwhile() {
    rm -f /tmp/enough
    until [ -e /tmp/enough ]; do
        fio_verify "$@"
    done &
    verifying=$!
}

verified_meanwhile() {
    touch /tmp/enough
    check "verified meanwhile" wait "$verifying"
}

# fio writes its warnings into the same file, before the JSON.
fio_json() { sed -n '/^{/,$p' "$RESULTS/fio.json"; }

# fio_rate NAME FILENAME [fio options...]: one timed job; prints "IOPS p50_us p99_us".
fio_rate() {
    local name=$1 filename=$2
    shift 2
    fio --name="$name" --filename="$filename" --ioengine=libaio --direct=1 --rw=randread --bs=4k \
        --time_based --runtime=5 --ramp_time=1 --group_reporting --randrepeat=0 \
        --output-format=json --output="$RESULTS/fio-$name.json" "$@" \
        || fail "fio $name on $filename"
    jq -r '[.jobs[0] | .read, .write | select(.total_ios > 0)][0]
        | "\(.iops | floor) \(.clat_ns.percentile["50.000000"] / 1000 | floor) \(.clat_ns.percentile["99.000000"] / 1000 | floor)"' \
        "$RESULTS/fio-$name.json"
}

# ---- The kernel's own target, for comparison -----------------------------------------------------

NVMET=/sys/kernel/config/nvmet

# nvmet_listen [PORT [TRANSPORT [ADDRESS]]]: opens a port of the kernel's target, by default for RDMA
# on the guest's address.
nvmet_listen() {
    local address=${3:-$HOST_IP} family=ipv4 count port
    [[ $address != *:* ]] || family=ipv6
    count=$(find "$NVMET/ports" -mindepth 1 -maxdepth 1 | wc -l)
    port=$NVMET/ports/$((count + 1))
    mkdir "$port"
    echo "${2:-rdma}" >"$port/addr_trtype"
    echo "$family" >"$port/addr_adrfam"
    echo "$address" >"$port/addr_traddr"
    echo "${1:-4420}" >"$port/addr_trsvcid"
}

# nvmet_export NQN DEVICE: exports a block device as namespace 1, to any host, on all ports.
nvmet_export() {
    local subsystem=$NVMET/subsystems/$1 port
    mkdir "$subsystem" "$subsystem/namespaces/1"
    echo 1 >"$subsystem/attr_allow_any_host"
    echo -n "$2" >"$subsystem/namespaces/1/device_path"
    echo 1 >"$subsystem/namespaces/1/enable"
    for port in "$NVMET"/ports/*; do
        ln -s "$subsystem" "$port/subsystems/"
    done
}

# nvmet_clear: ends everything that the kernel's target serves.
nvmet_clear() {
    local entry
    for entry in "$NVMET"/ports/*/subsystems/*; do
        [ ! -L "$entry" ] || rm "$entry"
    done
    for entry in "$NVMET"/subsystems/*/namespaces/* "$NVMET"/subsystems/* "$NVMET"/ports/*; do
        [ ! -d "$entry" ] || rmdir "$entry"
    done
    for entry in /sys/kernel/config/nullb/*/; do
        [ ! -d "$entry" ] || rmdir "$entry"
    done
}

# null_blk NAME [SIZE_MIB]: makes a null block device with memory behind it; prints its path.
null_blk() {
    local config=/sys/kernel/config/nullb/$1
    mkdir "$config"
    echo "${2:-256}" >"$config/size"
    echo 1 >"$config/memory_backed"
    echo 1 >"$config/power"
    echo "/dev/$1"
}
