# The guest image: Debian 13 from packages, as a raw ext4 file, with its kernel and initrd.
# Sourced by setup and run.

# shellcheck shell=bash disable=SC2154 # `testbed` and `cache` come from paths.sh

# Everything that shapes the image; a change of any of it makes another image.
image_dir() {
    local hash
    hash=$(cat "$testbed/guest/packages" "$testbed/guest/stage0" "$testbed/lib/image.sh" \
        "$testbed"/guest/initramfs-tools/*/* | sha256sum)
    printf '%s/guest-%s\n' "$cache" "${hash:0:16}"
}

# build_image DIR: builds aside and renames, so that DIR is complete or absent.
build_image() {
    local image=$1 tree=$cache/building/tree started=$SECONDS option options=() packages
    say "Building the Debian 13 guest image (about 2 minutes; once, then kept in $cache)"
    # A tree left by an interrupted build belongs to root.
    as_root rm -rf "$cache/building"
    mkdir -p "$cache/building"
    # A proxy or other transport setting of this machine's apt holds for the guest's packages too.
    while read -r option; do
        options+=("--aptopt=$option")
    done < <(apt-config dump | grep -E '^Acquire::(http|https|Check-[A-Za-z-]+)(::[^ ]+)? "[^"]+";$')
    apt_quietly update || die "apt-get update failed"
    packages=$(paste -sd, "$testbed/guest/packages")
    # shellcheck disable=SC2016 # $1 is the tree, for the hook's own shell
    as_root env DEBIAN_FRONTEND=noninteractive mmdebstrap --quiet --variant=minbase \
        "${options[@]}" \
        --include="$packages" \
        --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --essential-hook="copy-in '$testbed/guest/initramfs-tools' /etc" \
        --customize-hook='mkdir -p "$1/testbed" "$1/bin-share" "$1/results" "$1/mnt"' \
        --customize-hook="copy-in '$testbed/guest/stage0' /" \
        trixie "$tree" "$(debian_mirror)" >"$cache/build.log" 2>&1 || {
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
    rm -rf "$cache"/guest-*
    mv "$cache/building/image" "$image"
    rm -rf "$cache/building"
    say "Guest image built in $((SECONDS - started)) s"
}
