# The guest image: Debian 13 from packages, as a raw ext4 file, with its kernel and initrd.
# Sourced by setup, run, shell and demo.

# Days without use after which an image of other contents may go.
IMAGE_KEPT_DAYS=14

# shellcheck shell=bash disable=SC2154 # `testbed` and `cache` come from paths.sh

# Everything that shapes the image; a change of any of it makes another image.
image_dir() {
    local hash
    hash=$({
        cat "$testbed/guest/packages" "$testbed/guest/stage0" "$testbed"/guest/initramfs-tools/*/*
        declare -f build_image
    } | sha256sum)
    printf '%s/guest-%s\n' "$cache" "${hash:0:16}"
}

# use_image: sets `image`, and holds it for as long as this process and its QEMU live.
use_image() {
    image=$(image_dir)
    exec 7<"$image"
    flock --shared 7
}

# drop_old_images: those that nobody holds. `setup` dates an image that it finds, under the same
# lock as this, so none goes between a setup and the use that follows.
drop_old_images() {
    local old
    find "$cache" -maxdepth 1 -name 'guest-*' -mtime "+$IMAGE_KEPT_DAYS" | while read -r old; do
        flock --nonblock "$old" rm -rf "$old" || true
    done
}

# watched LOG COMMAND...: runs it with its output in LOG; a terminal shows the last line meanwhile.
watched() {
    local log=$1 started=$SECONDS watcher='' status=0
    shift
    if [ -t 2 ]; then
        # The end of this process by Ctrl-C does not reach what it has in the background.
        while sleep 2 && kill -0 $$ 2>/dev/null; do
            printf '\r\e[K%4d s  %s' "$((SECONDS - started))" \
                "$(tail -n 1 "$log" | tr -d '\r' | cut -c 1-70)" >&2
        done &
        watcher=$!
    fi
    "$@" >"$log" 2>&1 || status=$?
    if [ -n "$watcher" ]; then
        kill "$watcher" 2>/dev/null || true
        wait "$watcher" 2>/dev/null || true
        printf '\r\e[K' >&2
    fi
    return "$status"
}

# build_image DIR: builds aside and renames, so that DIR is complete or absent.
build_image() {
    local image=$1 tree=$cache/building/tree started=$SECONDS option options=() packages mirror
    say "Building the Debian 13 guest image (about 2 minutes; once, then kept in $cache)"
    # A tree left by an interrupted build belongs to root.
    as_root rm -rf "$cache/building"
    mkdir -p "$cache/building"
    # A proxy or other transport setting of this machine's apt holds for the guest's packages too.
    while read -r option; do
        options+=("--aptopt=$option")
    done < <(apt-config dump | grep -E '^Acquire::(http|https|Check-[A-Za-z-]+)(::[^ ]+)? "[^"]+";$')
    apt_quietly update || die "apt-get update failed"
    mirror=$(debian_mirror)
    packages=$(paste -sd, "$testbed/guest/packages")
    # shellcheck disable=SC2016 # $1 is the tree, for the hook's own shell
    watched "$cache/build.log" as_root env DEBIAN_FRONTEND=noninteractive \
        mmdebstrap --variant=minbase \
        "${options[@]}" \
        --include="$packages" \
        --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --essential-hook="copy-in '$testbed/guest/initramfs-tools' /etc" \
        --customize-hook='mkdir -p "$1/testbed" "$1/bin-share" "$1/results" "$1/mnt"' \
        --customize-hook="copy-in '$testbed/guest/stage0' /" \
        trixie "$tree" "$mirror" || {
        tail -n 30 "$cache/build.log" >&2
        die "mmdebstrap failed; its whole output is in $cache/build.log"
    }
    mkdir "$cache/building/image"
    # shellcheck disable=SC2016 # $1 and so on belong to the inner shell
    as_root sh -c '
        set -e
        cp "$1"/boot/vmlinuz-* "$2/vmlinuz"
        cp "$1"/boot/initrd.img-* "$2/initrd"
        truncate -s 3G "$2/root.img"
        mkfs.ext4 -q -d "$1" "$2/root.img"
        chown -R "$3" "$2"
        chmod -R u+rw,a+r "$2"
        rm -rf "$1"' sh "$tree" "$cache/building/image" "$(id -u):$(id -g)" >&2
    mv "$cache/building/image" "$image"
    rm -rf "$cache/building"
    say "Guest image built in $((SECONDS - started)) s"
}
