# testbed: ssds=1 size=512M mark=long timeout=900
# The same as 72-volume-crash, twenty times over.

# shellcheck disable=SC2034 # for the scenario
kills=20
# shellcheck source=72-volume-crash.sh
. /testbed/scenarios/72-volume-crash.sh
