# Installing Debian packages, for the scripts that promise to work on a fresh machine.
# Sourced, never run. What will be installed is said before anything is.

# shellcheck shell=bash

# To build the project, and to build and boot the guest; QEMU itself comes by install_qemu.
# shellcheck disable=SC2034 # used by those who source this
BUILD_PACKAGES=(gcc libc6-dev pkg-config libibverbs-dev librdmacm-dev)
# shellcheck disable=SC2034
TESTBED_PACKAGES=(mmdebstrap socat e2fsprogs nbdkit)

say() { printf '%s\n' "$*" >&2; }
die() {
    say "error: $*"
    exit 1
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "not root and no sudo: cannot run: $*"
    fi
}

apt_quietly() {
    local log
    log=$(mktemp)
    if as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y "$@" >"$log" 2>&1; then
        rm -f "$log"
        return 0
    fi
    tail -n 30 "$log" >&2
    rm -f "$log"
    return 1
}

package_is_installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# missing_packages PACKAGE...: prints those that are not installed.
missing_packages() {
    local package
    for package in "$@"; do
        package_is_installed "$package" || echo "$package"
    done
}

# install_packages PACKAGE...: installs those that are missing.
install_packages() {
    local missing
    command -v apt-get >/dev/null || die "this needs Debian's apt-get to install: $*"
    mapfile -t missing < <(missing_packages "$@")
    [ ${#missing[@]} -gt 0 ] || return 0
    say "Installing Debian packages: ${missing[*]}"
    apt_quietly update || die "apt-get update failed"
    apt_quietly install --no-install-recommends "${missing[@]}" \
        || die "could not install: ${missing[*]}"
}

# QEMU is refused by apt where newer QEMU tools from backports are installed already: the system
# emulator must then come from backports too. Any other failure (no network, say) is only told.
install_qemu() {
    local log
    command -v qemu-system-x86_64 >/dev/null && return 0
    say "Installing Debian packages: qemu-system-x86"
    apt_quietly update || die "apt-get update failed"
    log=$(mktemp)
    if as_root env DEBIAN_FRONTEND=noninteractive LC_ALL=C apt-get -q -y install \
        --no-install-recommends qemu-system-x86 >"$log" 2>&1; then
        rm -f "$log"
        return 0
    fi
    tail -n 30 "$log" >&2
    if grep -qE 'held broken packages|have unmet dependencies|Unsatisfied dependencies' "$log"; then
        rm -f "$log"
        install_qemu_from_backports
        return
    fi
    rm -f "$log"
    die "could not install qemu-system-x86"
}

install_qemu_from_backports() {
    local codename mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    local source=/etc/apt/sources.list.d/forebay-backports.sources
    codename=$(debian_codename)
    mirror=$(debian_mirror)
    say "The plain package conflicts with what is installed: taking QEMU from $codename-backports"
    say "(adds $source)"
    as_root tee "$source" >/dev/null <<SOURCES
Types: deb
URIs: $mirror
Suites: $codename-backports
Components: main
Signed-By: $keyring
SOURCES
    if apt_quietly update \
        && apt_quietly install --no-install-recommends -t "$codename-backports" qemu-system-x86; then
        return 0
    fi
    as_root rm -f "$source"
    die "could not install qemu-system-x86, neither plain nor from backports ($source is gone again)"
}

# In a substitution as argument of a command, a failure of these two ends only the substitution:
# assign what they print to a variable first.
debian_codename() { (. /etc/os-release && printf '%s\n' "${VERSION_CODENAME:?}"); }

# The mirror that apt on this machine takes Debian from; needs the lists of `apt-get update`.
debian_mirror() {
    local codename mirror
    codename=$(debian_codename)
    # shellcheck disable=SC2016 # the $(...) belong to apt
    mirror=$(apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(CODENAME)|$(REPO_URI)' \
        'Created-By: Packages' | awk -F '|' -v codename="$codename" \
        '$1 == "Debian" && $2 == "Debian" && $3 == codename { print $4; exit }')
    [ -n "$mirror" ] || die "apt on this machine knows no Debian mirror for $codename"
    printf '%s\n' "${mirror%/}"
}
