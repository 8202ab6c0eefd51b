"""How many cores this process may use, for everything that starts a thread a core."""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
"""Where a container reads its limits."""


def cores(cgroup: Path = CGROUP) -> int:
    """Those that it may run on, or as many as its container's share of their time comes to, rounded up; at least one.

    A container that may use two cores of sixty-four runs on any of them, and is stopped again and again if it starts
    a thread for each.
    """
    mask = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(mask, _share(cgroup))))


def _share(cgroup: Path) -> float:
    """The limit in cores; infinity if there is none."""
    both = cgroup / "cpu.max"  # version 2 of control groups: "MAX PERIOD"
    quota, period = cgroup / "cpu" / "cpu.cfs_quota_us", cgroup / "cpu" / "cpu.cfs_period_us"  # version 1
    if both.is_file():
        found = both.read_text().split()
    elif quota.is_file() and period.is_file():
        found = [quota.read_text(), period.read_text()]
    else:
        return math.inf
    allowed, each = found
    return int(allowed) / int(each) if allowed.strip().isdigit() else math.inf  # "max", or -1: none
