"""What a process uses at most, asked for in its own code."""

from __future__ import annotations

#: Defines `peak`, which gives the most bytes that the process has had in memory so far.
PEAK = r"""
def peak():
    import re, resource, sys
    try:
        # not ru_maxrss, which begins with what the parent used
        return int(re.search(r"VmHWM:\s*(\d+) kB", open("/proc/self/status").read())[1]) << 10
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10 * (sys.platform != "darwin")
"""
