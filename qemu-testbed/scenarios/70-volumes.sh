# testbed: ssds=1 size=512M mark=ci timeout=420
# A pool on an SSD, and a thin volume of it, larger than the SSD, attached over RDMA: a snapshot under
# load, its clone attached beside the origin and compared with it, a rollback that hosts see, another
# size that they see too, an orderly restart and a `kill -9`, and the pool closed and found again.

nqn=nqn.2026-11.io.forebay:tank
options=(--cores 2 --listen "$HOST_IP:4420" --memory 128)
bdf=$(ssd_bdf 0)

sums() { (cd "$1" && find etc -type f | sort | xargs -d '\n' md5sum); }
# same_files FOLDER: those of the beginning.
same_files() { (cd "$1" && md5sum --quiet --check - <<<"$files"); }
live() { grep -q live "/sys/class/nvme/$(ns_controllers "$nqn")/state"; }
used() { forebay pool show tank --json | jq '.size_bytes - .free_bytes - .releasing_bytes'; }
used_less_than() { [ "$(used)" -lt "$1" ]; }
exported() { forebay exports --json | jq -S 'map(del(.listeners, .connect_commands))'; }

target_start "${options[@]}"
check "bind" forebay device bind "$bdf"

step "a pool and a thin volume"
check "pool" forebay pool create tank ssd0n1
expect_failure "what belongs to a pool is not exported" "pool tank" forebay export ssd0n1 --any-host
expect_failure "nor released" "forebay pool export tank" forebay device release "$bdf"
check "volume" forebay volume create tank/data 1G --label set=train --description "what runs read"
line=$(export_bdev tank/data --nqn "$nqn" --any-host)
device=$(connect_line "$line" -k 60 --reconnect-delay=1)
expect_eq "size of $device" "$(blockdev --getsize64 "$device")" $((1 << 30))
expect_eq "UUID" "$(forebay volume show tank/data --json | jq -r .uuid)" \
    "$(cat "/sys/class/block/${device##*/}/uuid")"

step "verified data on it"
fio_verify "$device" --bsrange=4k-512k --size=64m
fio_verify "$device" --bs=4k --iodepth=64 --numjobs=2 --size=8m --offset_increment=32m

step "a file system"
check "mkfs" mkfs.ext4 -q "$device"
mkdir -p /mnt/a /mnt/b
check "mount" mount "$device" /mnt/a
cp -r /etc /mnt/a/
sync
files=$(sums /mnt/a)
check "many files" test "$(wc -l <<<"$files")" -gt 50

step "a snapshot under load"
fio --name=load --filename=/mnt/a/load --ioengine=libaio --direct=1 --rw=randwrite --bs=4k \
    --iodepth=16 --size=32m --time_based --runtime=12 --output="$RESULTS/load.txt" &
load_pid=$!
wait_for 30 "the load has begun" test -s /mnt/a/load
sleep 2
check "snapshot" forebay snapshot create tank/data --name before
check "the load sees no error" wait "$load_pid"
echo later >/mnt/a/later
sync

step "its clone beside the origin"
check "clone" forebay snapshot clone tank/data.before trial
forebay volume list --tree >&2
forebay export tank/trial --nqn "$nqn" --any-host >&2
clone=$(wait_for 10 "the host sees namespace 2" ns_device "$nqn" 2)
check "mount" mount "$clone" /mnt/b
same_files /mnt/a || fail "a file of the origin is not as it was"
same_files /mnt/b || fail "a file of the clone is not as it was"
check "what came later is not in the clone" test ! -e /mnt/b/later -a -e /mnt/a/later
rm -r /mnt/b/etc
echo "of the clone" >/mnt/b/own
check "umount" umount /mnt/b
check "fsck of the clone" e2fsck -fn "$clone"
same_files /mnt/a || fail "the clone changed the origin"

step "a snapshot is read-only"
forebay export tank/data.before --nqn "$nqn" --any-host >&2
snapshot=$(wait_for 10 "the host sees namespace 3" ns_device "$nqn" 3)
expect_eq "read-only" "$(blockdev --getro "$snapshot")" 1
check "unexport" forebay unexport "$nqn" --nsid 3 --force

step "a rollback"
rm -r /mnt/a/etc
check "umount" umount /mnt/a
expect_failure "not while it is exported" "forebay unexport" \
    forebay volume rollback tank/data data.before
before=$(exported)
check "but by force" forebay volume rollback tank/data data.before --keep spoilt --force
expect_eq "the export is what it was" "$(exported)" "$before"
device=$(wait_for 20 "the namespace is back" ns_device "$nqn" 1)
check "mount" mount "$device" /mnt/a
same_files /mnt/a || fail "a file is not as it was at the snapshot"
check "what came later is gone" test ! -e /mnt/a/later
check "what it was is kept" forebay snapshot clone tank/spoilt look --read-only

step "another size"
check "grow" forebay volume resize tank/data 2G
grown() { [ "$(blockdev --getsize64 "$device")" = $((2 << 30)) ]; }
wait_for 20 "the host sees it" grown
check "the file system grows" resize2fs "$device" >&2
expect_failure "written blocks are not cut off" "force" forebay volume resize tank/data 1M
same_files /mnt/a || fail "a file is not as it was"

step "an orderly restart"
dmesg_allow 'starting error recovery|Reconnecting in|Failed reconnect|RECV for CQE|reconnect'
dmesg_allow 'no usable path|Connect rejected|rejected|failed to connect|I/O Cmd|queue_io'
before=$(exported)
target_stop
target_start "${options[@]}"
expect_eq "the exports are what they were" "$(exported)" "$before"
expect_eq "they are up" "$(jq -r '[.[].state] | unique | join(" ")' <<<"$before")" up
wait_for 60 "the host is connected again" live
same_files /mnt/a || fail "a file is not as it was"
check "umount" umount /mnt/a
check "fsck" e2fsck -fn "$device"

step "kill -9 after writes that were not flushed"
write=(--name=w --filename="$device" --ioengine=libaio --direct=1 --rw=randwrite --bs=4k
    --iodepth=32 --size=48m --randrepeat=1 --verify=crc32c)
fio "${write[@]}" --do_verify=0 --output="$RESULTS/write.txt"
# shellcheck disable=SC2154 # set by target_start
kill -9 "$target_pid"
wait "$target_pid" || true
target_start "${options[@]}"
expect_eq "the exports are what they were" "$(exported)" "$before"
wait_for 60 "the host is connected again" live
check "what was acknowledged is there" \
    fio "${write[@]}" --verify_only=1 --output="$RESULTS/verify.txt"
# The clone, which nothing has written to since.
clone=$(wait_for 10 "the clone" ns_device "$nqn" 2)
check "fsck of the clone" e2fsck -fn "$clone"
check "mount" mount -o ro "$clone" /mnt/b
expect_eq "its own file" "$(cat /mnt/b/own)" "of the clone"
check "umount" umount /mnt/b

step "deleted in any order, space comes back"
detach "$nqn"
check "unexport" forebay unexport "$nqn"
full=$(used)
check "the snapshot that has a clone" forebay snapshot delete tank/data.before
check "the volume" forebay volume delete tank/data
check "the rest" forebay snapshot delete tank/spoilt
check "clones" forebay volume delete tank/look tank/trial
expect_eq "volumes" "$(forebay volume list --json | jq length)" 0
wait_for 30 "the space is free" used_less_than $((full / 4))

step "the pool is closed, and found again"
check "a volume" forebay volume create tank/last 64M
check "export" forebay pool export tank
expect_match "it is found" "$(forebay pool import)" "tank .*ssd0n1"
check "import" forebay pool import tank
expect_eq "its volume" "$(forebay volume list tank --json | jq -r '.[].name')" tank/last
check "export" forebay pool export tank
check "release" forebay device release "$bdf"
target_stop
