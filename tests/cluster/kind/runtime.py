"""A container runtime for machines that lack CAP_SYS_RESOURCE.

Docker gives a privileged container every capability there is, and runc fails where the machine itself lacks one. The
wrapper takes this one capability, and the lowered out-of-memory scores that need it, out of what runc is told.
"""

from __future__ import annotations

from pathlib import Path

CAP_SYS_RESOURCE = 24

WRAPPER = """\
#!/bin/sh
# runc for a machine without CAP_SYS_RESOURCE: that capability and oomScoreAdj are taken out of the container's and the
# process's description, each with the comma beside it: any other comma may be a part of somebody's command.
strip() {
    [ -f "$1" ] || return
    for entry in '"CAP_SYS_RESOURCE"' '"oomScoreAdj": ?-?[0-9]+'; do
        sed -i -E "s/$entry, ?//g; s/(, ?)?$entry//g" "$1"
    done
}
previous=
for argument in "$@"; do
    case "$previous" in
    --bundle | -b) strip "$argument/config.json" ;;
    --process | -p) strip "$argument" ;;
    esac
    previous=$argument
done
exec @RUNC@ "$@"
"""


def lacks_resource_capability() -> bool:
    """Whether this process, and so everything it starts, is without CAP_SYS_RESOURCE."""
    lines = Path("/proc/self/status").read_text().splitlines()
    bounding = next(int(line.split()[1], 16) for line in lines if line.startswith("CapBnd:"))
    return not bounding >> CAP_SYS_RESOURCE & 1


def wrapper(runc: str) -> str:
    """The wrapper's text, for the runc at the given path."""
    return WRAPPER.replace("@RUNC@", runc)
