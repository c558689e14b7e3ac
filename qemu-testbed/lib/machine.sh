# One boot of the guest: QEMU's command line, its shares, and the answers to the guest's requests.
# Sourced by run and shell. A boot has a folder of its own, `boot_dir`:
#   ssdN-M.img   bytes of namespace M of SSD N      console   serial console of the guest
#   ssdN-M.nbd   socket of its volatile cache       results/  writable share of the guest
#   qmp          QEMU's control socket              console.N of the boots before a cut of the power

# shellcheck shell=bash disable=SC2154 # paths come from paths.sh, `image` and `binaries` from run

cache_pids=()

# KVM is used only when a kernel was seen to run on it: a device node that opens proves nothing.
# The answer is kept for as long as the machine is up.
accelerator() {
    local probe=$cache/accelerator key log
    key="$(cat /proc/sys/kernel/random/boot_id) $(id -u) $(qemu-system-x86_64 --version | head -n 1)"
    if [ "$(head -n 1 "$probe" 2>/dev/null)" != "$key" ]; then
        log=$(mktemp)
        # Without a root file system the kernel panics at the end of its boot, and QEMU exits.
        timeout 20 qemu-system-x86_64 -accel kvm -machine q35,kernel-irqchip=split -cpu max -m 512M \
            -nodefaults -display none -serial "file:$log" -no-reboot -kernel "$image/vmlinuz" \
            -append "console=ttyS0 panic=-1" >/dev/null 2>&1 || true
        if grep -q 'Unable to mount root' "$log"; then
            printf '%s\n%s\n' "$key" kvm >"$probe.$$"
        else
            printf '%s\n%s\n' "$key" tcg,thread=multi >"$probe.$$"
        fi
        mv "$probe.$$" "$probe"
        rm -f "$log"
    fi
    tail -n 1 "$probe"
}

# ssd_arguments SCENARIO N: fills `arguments` for one SSD and creates its backing files.
ssd_arguments() {
    local scenario=$1 n=$2 nsid bus=pcie.0 address=,addr=0x1$2 file
    local powercut
    powercut=$(header "$scenario" powercut)
    if [ "$(header "$scenario" hotplug "$n")" = 1 ]; then
        arguments+=(-device "pcie-root-port,id=port$n,chassis=$((n + 1)),addr=0x1$n")
        bus=port$n address=
    fi
    arguments+=(-device "nvme,id=ssd$n,serial=ssd$n,bus=$bus$address,mdts=$(header "$scenario" mdts "$n")")
    for ((nsid = 1; nsid <= $(header "$scenario" namespaces "$n"); nsid++)); do
        file=$boot_dir/ssd$n-$nsid.img
        truncate -s "$(header "$scenario" size "$n")" "$file"
        if [ "$powercut" = 1 ]; then
            start_cache "$file" "${file%.img}.nbd"
            file="nbd+unix:///?socket=${file%.img}.nbd"
        fi
        arguments+=(
            -drive "file=$file,if=none,id=drive$n-$nsid,format=raw,cache=writeback,discard=unmap"
            -device "nvme-ns,drive=drive$n-$nsid,bus=ssd$n,nsid=$nsid,logical_block_size=$(header \
                "$scenario" block "$n"),physical_block_size=4096"
        )
    done
}

# start_cache FILE SOCKET: a volatile cache before a backing file. QEMU alone loses nothing when it is
# killed, as what was written is in the page cache; this one keeps it until it is flushed.
start_cache() {
    rm -f "$2"
    setpriv --pdeathsig KILL nbdkit -f -U "$2" --filter=cache file "$1" \
        cache=writeback cache-max-size=1G 2>>"$boot_dir/nbdkit.log" &
    cache_pids+=($!)
    until [ -S "$2" ]; do
        kill -0 "$!" 2>/dev/null || die "nbdkit ended: $(tail -n 3 "$boot_dir/nbdkit.log")"
        sleep 0.05
    done
}

# start_machine SCENARIO [QEMU ARGUMENTS...]: boots the machine that the scenario's header asks for
# in the background; its process id is then in `qemu_pid`.
start_machine() {
    local scenario=$1 n iommu=()
    started_with=("$@")
    cache_pids=()
    shift
    mkdir -p "$boot_dir/results/requests"
    # Before the devices that it translates.
    # shellcheck disable=SC2054 # the commas are QEMU's
    [ "$(header "$scenario" iommu)" = 0 ] \
        || iommu=(-device intel-iommu,intremap=on,caching-mode=on)
    # shellcheck disable=SC2054 # the commas are QEMU's
    arguments=(
        -name forebay-testbed
        -machine q35,kernel-irqchip=split,pit=off -accel "$(accelerator)" -cpu max
        -smp "$(header "$scenario" vcpus)" -m "$(header "$scenario" memory)"
        -nodefaults -display none -no-reboot
        -kernel "$image/vmlinuz" -initrd "$image/initrd"
        # pit=off above: the kernel measures its clock by the PIT where there is one, and on a busy
        # machine found it ten times too fast; by the HPET it does not.
        # tsc=reliable: a busy machine must not make the guest's kernel doubt its clock, and patch
        # itself under running CPUs, which QEMU's emulation does not survive; no_timer_check: nor
        # must it conclude, from ticks that came late, that there are none.
        -append "console=ttyS0 quiet root=/dev/vda rw init=/stage0 net.ifnames=0 panic=-1 \
tsc=reliable no_timer_check intel_iommu=on iommu=pt hugepages=$(header "$scenario" hugepages)"
        "${iommu[@]}"
        -drive "file=$image/root.img,if=none,id=root,format=raw,snapshot=on"
        -device "virtio-blk-pci,drive=root"
        -netdev "user,id=net0,restrict=on" -device "virtio-net-pci,netdev=net0"
        -virtfs "local,path=$testbed,mount_tag=testbed,security_model=none,readonly=on"
        -virtfs "local,path=$binaries,mount_tag=binaries,security_model=none,readonly=on"
        -virtfs "local,path=$boot_dir/results,mount_tag=results,security_model=none"
        -qmp "unix:$boot_dir/qmp,server=on,wait=off"
    )
    for ((n = 0; n < $(header "$scenario" ssds); n++)); do
        ssd_arguments "$scenario" "$n"
    done
    # However the runner ends, QEMU ends with it.
    setpriv --pdeathsig KILL qemu-system-x86_64 "${arguments[@]}" "$@" 2>"$boot_dir/qemu.log" &
    qemu_pid=$!
}

# stop_machine: `qemu_crash` is then the signal that QEMU itself had died of before, or empty.
stop_machine() {
    local killed=no status=0
    qemu_crash=
    [ -n "${qemu_pid:-}" ] || return 0
    if kill -9 "$qemu_pid" 2>/dev/null; then killed=yes; fi
    wait "$qemu_pid" 2>/dev/null || status=$?
    if [[ $killed = no && $status -gt 128 ]]; then qemu_crash=$(kill -l "$status"); fi
    qemu_pid=
    if [ ${#cache_pids[@]} -gt 0 ]; then
        kill -9 "${cache_pids[@]}" 2>/dev/null || true
        wait "${cache_pids[@]}" 2>/dev/null || true
        cache_pids=()
    fi
}

# cut_power: as the guest's power_cut wants it. The same machine boots again, with what was flushed
# to its SSDs.
cut_power() {
    local consoles=("$boot_dir"/console*)
    stop_machine
    mv "$boot_dir/console" "$boot_dir/console.${#consoles[@]}"
    start_machine "${started_with[@]}"
}

machine_runs() { kill -0 "$qemu_pid" 2>/dev/null; }

# qmp COMMAND: one QMP command as JSON; prints QEMU's replies, fails when one is an error.
qmp() {
    local replies
    # QEMU answers in order, but drops a connection that is closed at once.
    replies=$({
        printf '{"execute":"qmp_capabilities"}\n%s\n' "$1"
        sleep 0.5
    } | socat -t 1 - "UNIX-CONNECT:$boot_dir/qmp") || return
    printf '%s\n' "$replies"
    ! grep -q '"error"' <<<"$replies"
}

blank_ssds() {
    local file
    for file in "$boot_dir"/ssd*.img; do
        fallocate --punch-hole --offset 0 --length "$(stat -c %s "$file")" "$file" || return
    done
}

# replug_ssd N: plugs an SSD behind a root port in again, with the bytes it had (namespace 1).
replug_ssd() {
    [[ $1 == [0-7] ]] || return
    local file=$boot_dir/ssd$1-1.img node=replugged$1
    # QEMU 10 keeps the drive of a namespace that went with its SSD, and a lock on the file. Earlier
    # ones do not, and say so here, which is no error. Nor is it that there was no earlier replug.
    qmp '{"execute": "human-monitor-command", "arguments": {"command-line": "drive_del drive'"$1"'-1"}}'
    qmp '{"execute": "blockdev-del", "arguments": {"node-name": "'"$node"'"}}'
    qmp '{"execute": "blockdev-add", "arguments": {"node-name": "'"$node"'", "driver": "raw",
        "file": {"driver": "file", "filename": "'"$file"'"}}}' || return
    qmp '{"execute": "device_add", "arguments": {"driver": "nvme", "id": "ssd'"$1"'",
        "serial": "ssd'"$1"'", "bus": "port'"$1"'", "drive": "'"$node"'"}}'
}

# serve REQUEST: does what guest/lib.sh's host_do asks for.
serve() {
    local verb argument
    read -r verb argument <<<"$1"
    case $verb in
        qmp) qmp "$argument" ;;
        blank) blank_ssds ;;
        replug) replug_ssd "$argument" ;;
        compare) compare_with_ssd "$argument" ;;
        sha256) sha256_of_range "$argument" ;;
        *) echo "no such request: $verb"; return 1 ;;
    esac
}

# compare_with_ssd "SSD FILE", of namespace 1; FILE is within results/, where the guest put it.
compare_with_ssd() {
    local ssd file
    read -r ssd file <<<"$1"
    [[ $ssd == [0-7] && $file != *..* ]] || return
    file=$boot_dir/results/$file
    cmp --bytes="$(stat -c %s "$file")" "$file" "$boot_dir/ssd$ssd-1.img"
}

# sha256_of_range "SSD OFFSET LENGTH", of namespace 1.
sha256_of_range() {
    local ssd offset length
    read -r ssd offset length <<<"$1"
    [[ "$ssd $offset $length" =~ ^[0-7]\ [0-9]+\ [0-9]+$ ]] || return
    dd if="$boot_dir/ssd$ssd-1.img" iflag=skip_bytes,count_bytes,fullblock bs=1M \
        skip="$offset" count="$length" status=none | sha256sum | cut -d' ' -f1
}

# serve_requests: answers all that wait.
serve_requests() {
    local request output status
    for request in "$boot_dir"/results/requests/*; do
        [[ -e $request && $request != *.part && $request != *.answer && ! -e $request.answer ]] || continue
        if [ "$(<"$request")" = power-cut ]; then
            rm "$request"
            cut_power
            continue
        fi
        status=0
        output=$(serve "$(<"$request")" 2>&1) || status=$?
        printf '%s\n%s\n' "$status" "$output" >"$request.answer.part"
        mv "$request.answer.part" "$request.answer"
    done
}

# new_boot_dir: makes `boot_dir`, held by a lock, and clears away old ones that nobody holds.
new_boot_dir() {
    local old
    mkdir -p "$runs"
    find "$runs" -maxdepth 1 -name 'boot.*' -printf '%T@ %p\n' | sort -rn | tail -n +16 \
        | while read -r _ old; do
            flock -n "$old" rm -rf "$old" || true
        done
    boot_dir=$(mktemp -d "$runs/boot.XXXXXX")
    exec 8<"$boot_dir"
    flock 8
    ln -sfn "${boot_dir##*/}" "$runs/last"
}
