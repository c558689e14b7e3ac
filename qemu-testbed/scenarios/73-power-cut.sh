# testbed: ssds=1 size=512M powercut=1 mark=ci timeout=200
# The power goes, twice, under a file system on a volume: what was flushed is there, also in the
# snapshot that was taken meanwhile; the pool is whole, and fsck finds nothing.

cuts=2
nqn=nqn.2026-11.io.forebay:tank/data
# Outside of the guest: it keeps its power.
flushed=$RESULTS/flushed
touch "$flushed"
cut=$(power_cuts)

# write_files: one after the other, each noted when it and its folder are flushed.
write_files() {
    local n sum
    for ((n = 0; ; n++)); do
        head -c $(((RANDOM % 32 + 1) * 4000)) /dev/urandom >"/mnt/new" || return
        sum=$(md5sum </mnt/new)
        mv /mnt/new "/mnt/$cut.$n"
        sync "/mnt/$cut.$n" /mnt
        echo "${sum%% *}  $cut.$n" >>"$flushed"
        # Room, and blocks that were used before.
        [ "$n" -lt 64 ] || [ $((n % 4)) = 0 ] || forget "$cut.$((n - 64))"
    done
}
# forget FILE: noted first, then removed.
forget() {
    sed -i "/  $1\$/d" "$flushed"
    rm -f "/mnt/$1"
}
# flushed_files FOLDER LIST
flushed_files() { (cd "$1" && md5sum --quiet --check "$2"); }
noted() { [ "$(wc -l <"$flushed")" -ge "$1" ]; }

target_start --cores 1 --listen "$HOST_IP:4420" --memory 128
if [ "$cut" = 0 ]; then
    check "bind" forebay device bind "$(ssd_bdf 0)"
    check "pool" forebay pool create tank ssd0n1
    check "volume" forebay volume create tank/data 256M
else
    step "after the power came back"
    check "bind" forebay device bind --force "$(ssd_bdf 0)"
    check "import" forebay pool import tank
    expect_eq "what its check finds" "$(forebay pool check tank)" "nothing is wrong"
fi
device=$(connect_line "$(export_bdev tank/data --any-host)" -k 60)

if [ "$cut" = 0 ]; then
    check "mkfs" mkfs.ext4 -q "$device"
else
    check "its journal is replayed" mount "$device" /mnt
    check "what was flushed is there" flushed_files /mnt "$flushed"
    say "$(wc -l <"$flushed") files"
    check "umount" umount /mnt
    check "fsck" e2fsck -fn "$device"
    forebay snapshot clone "tank/data.cut$cut" "clone$cut" >&2
    clone=$(connect_line "$(export_bdev "tank/clone$cut" --any-host)" -k 60)
    check "the snapshot mounts" mount "$clone" /mnt
    check "what was flushed before it is there" flushed_files /mnt "$RESULTS/flushed.$cut"
    check "umount" umount /mnt
    check "fsck" e2fsck -fn "$clone"
fi
if [ "$cut" -lt "$cuts" ]; then
    step "load, a snapshot, and the power goes"
    check "mount" mount "$device" /mnt
    fio --name=load --filename=/mnt/load --ioengine=libaio --direct=1 --rw=randwrite --bs=4k \
        --iodepth=32 --size=32m --time_based --runtime=60 --output="$RESULTS/load.txt" &
    write_files &
    wait_for 60 "thirty files are flushed" noted 30
    # What was noted before it and is noted still was there at its instant.
    sort "$flushed" >/tmp/before
    check "snapshot" forebay snapshot create tank/data --name "cut$((cut + 1))"
    sort "$flushed" | comm -12 /tmp/before - >"$RESULTS/flushed.$((cut + 1))"
    sleep "$((RANDOM % 3 + 1)).$((RANDOM % 900 + 100))"
    power_cut
fi
nvme disconnect-all
target_stop
