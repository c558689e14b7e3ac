# What a scenario's header says. Sourced by run and shell.
#
# The header is the line `# testbed: key=value ...` in the first line of a scenario.

# shellcheck shell=bash disable=SC2154 # `testbed` comes from run or shell
declare -A header_defaults=(
    [mark]=manual     # ci: part of tests/run; long: of tests/run --all; manual: only when named
    [timeout]=120     # seconds for the scenario, without the boot
    [ssds]=1          # emulated NVMe SSDs, at most 8
    [vcpus]=2
    [memory]=2G
    [hugepages]=128   # of 2 MiB
    [iommu]=1         # 0: a machine without one
    [hotplug]=0       # 1: each SSD behind a root port, so that it can be unplugged
    [size]=1G         # of each namespace
    [block]=512       # logical block size in bytes
    [namespaces]=1    # of each SSD
    [powercut]=0      # 1: power_cut works, and loses what was not flushed to the SSDs
    [mdts]=7          # largest transfer of an SSD, 2^mdts pages of 4 KiB
)

scenario_file() {
    local file=$testbed/scenarios/$1.sh
    [ -e "$file" ] || die "no such scenario: $1 (see $testbed/run --list)"
    printf '%s\n' "$file"
}

header_line() {
    local line
    IFS= read -r line <"$(scenario_file "$1")"
    [[ $line == "# testbed:"* ]] || die "$1: the first line is not '# testbed: key=value ...'"
    printf '%s\n' "${line#\# testbed:}"
}

# header NAME KEY [SSD]: prints a value; ssdN.KEY overrides KEY for one SSD.
header() {
    local pair value=${header_defaults[$2]}
    for pair in $(header_line "$1"); do
        [[ $pair != "$2="* ]] || value=${pair#*=}
    done
    for pair in $(header_line "$1"); do
        [[ $pair != "ssd${3:-}.$2="* ]] || value=${pair#*=}
    done
    printf '%s\n' "$value"
}

check_header() {
    local pair key
    for pair in $(header_line "$1"); do
        key=${pair%%=*}
        [[ $pair == *=* && -n ${header_defaults[${key#ssd[0-7].}]:-} ]] \
            || die "$1: unknown key in the header: $pair"
    done
}

# What must be equal for two scenarios to share a boot.
machine_of() {
    local pair
    for pair in $(header_line "$1"); do
        case $pair in
            mark=* | timeout=*) ;;
            *) echo "$pair" ;;
        esac
    done | sort | paste -sd ' '
}

all_scenarios() {
    local file
    for file in "$testbed"/scenarios/*.sh; do
        file=${file##*/}
        echo "${file%.sh}"
    done
}
