"""Values by name: kept in memory as long as there is room, else in files that lose nothing."""

from py_code_mode.handles.cache import SessionCache
from py_code_mode.handles.info import HandleInfo, Origin, Problem
from py_code_mode.handles.session import SessionHandles

__all__ = ["HandleInfo", "Origin", "Problem", "SessionCache", "SessionHandles"]
