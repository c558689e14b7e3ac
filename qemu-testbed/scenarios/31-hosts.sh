# testbed: ssds=1 mark=ci timeout=240
# Who may come in: a host that is not allowed, two hosts that share a namespace, and one of them
# denied while the other goes on.

target_start
check "a block device" forebay bdev create ram ram0 64M
nqn=nqn.2026-11.io.forebay:shared
first=$(nvme gen-hostnqn)
second=$(nvme gen-hostnqn)
check "export to the first host" forebay export ram0 --nqn "$nqn" --host "$first"

# seen_by HOSTNQN: in how many records of its discovery log the subsystem is.
seen_by() {
    nvme_as "$1" discover -o json | jq "[.records[]? | select(.subnqn == \"$nqn\")] | length"
}

# passthru HOSTNQN OPCODE SLBA [nvme options...]: one command on one block through the controller of
# that host: its block device is the same as that of the other one.
passthru() {
    local host=$1 opcode=$2 slba=$3
    shift 3
    nvme io-passthru "/dev/$(controller_of "$host" "$nqn")" --opcode="$opcode" --namespace-id=1 \
        --data-len=4096 --cdw10="$slba" "$@"
}
dmesg_allow 'using deprecated NVME_IOCTL_IO_CMD'

# The opcodes of write and read.
write_as() { passthru "$1" 1 "$2" --write --input-file="$3" >&2; }
read_as() { passthru "$1" 2 "$2" --read --raw-binary; }

commands_of() {
    forebay connection list --json \
        | jq "[.[] | select(.host_nqn == \"$1\") | .queues[] | select(.qid > 0) | .commands] | add"
}

step "a host that is not allowed sees nothing and does not come in"
expect_eq "records that the first host sees" "$(seen_by "$first")" 1
expect_eq "records that the second host sees" "$(seen_by "$second")" 0
expect_failure "its connect" "failed to write to nvme-fabrics|could not add new controller" \
    nvme_as "$second" connect -n "$nqn"
not_allowed="Connect for subsystem $nqn is not allowed, hostnqn: $second"
expect_kernel "why" "$not_allowed"
dmesg_allow "$not_allowed"
dmesg_allow 'failed to connect queue: 0'
expect_eq "controllers" "$(forebay connection list --json | jq length)" 0

step "two hosts share the namespace"
check "the first host" nvme_as "$first" connect -n "$nqn" -k 60
check "allow the second" forebay host allow "$nqn" "$second"
expect_eq "records that the second host sees" "$(seen_by "$second")" 1
check "the second host" nvme_as "$second" connect -n "$nqn" -k 60
device=$(wait_for 10 "the namespace is there" ns_device "$nqn" 1)
expect_json "hosts" "$(forebay connection list --json)" '[.[].host_nqn] | sort | join(" ")' \
    "$(printf '%s\n' "$first" "$second" | sort | paste -sd ' ')"
expect_json "controllers" "$(forebay connection list --json)" '[.[].cntlid] | unique | length' 2
head -c 4096 /dev/urandom >one
head -c 4096 /dev/urandom >two
check "the second host writes" write_as "$second" 0 one
check "the first host writes" write_as "$first" 1 two
read_as "$first" 0 >got
check "the first host reads what the second wrote" cmp got one
read_as "$second" 1 >got
check "the second host reads what the first wrote" cmp got two
expect_failure "unexport while attached" "in use|connected" forebay unexport "$nqn"

step "denied, the second host goes and the first stays"
gone=$(controller_of "$second" "$nqn")
before=$(commands_of "$first")
check "deny" forebay host deny "$nqn" "$second"
wait_for 60 "the kernel gives the denied host's controller up" test ! -e "/sys/class/nvme/$gone"
dmesg_allow "$gone: (starting error recovery|Reconnecting in|Failed reconnect|Removing|RECV for CQE)"
# What the kernel says when it takes leave of a controller that is gone already.
dmesg_allow "$gone: (Property Set error|I/O|failed)"
expect_json "who is left" "$(forebay connection list --json)" '[.[].host_nqn] | join(" ")' "$first"
expect_eq "records that the second host sees" "$(seen_by "$second")" 0
head -c 4096 /dev/urandom >one
check "the first host writes" write_as "$first" 0 one
read_as "$first" 0 >got
check "and reads it back" cmp got one
fio_verify "$device" --size=4m
check "by its own queues" test "$(commands_of "$first")" -gt "$((before + 2048))"
detach "$nqn"
target_stop
