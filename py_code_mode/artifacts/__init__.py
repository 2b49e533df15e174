"""Values with a name that outlive a session."""

from py_code_mode.artifacts.artifacts import Artifacts

__all__ = ["Artifacts"]
