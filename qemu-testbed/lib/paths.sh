# Where things are. Sourced by the scripts of the testbed after they set `testbed`, the folder
# that this file's folder is in.

# shellcheck shell=bash disable=SC2034 # used by those who source this
top=$(cd "${testbed:?}/.." && pwd)
cache=${FOREBAY_TESTBED_CACHE:-$testbed/cache}
build=${CARGO_TARGET_DIR:-$top/build}
runs=$build/testbed
