"""What a sandbox allows, and what this machine can enforce (`py_code_mode.sandbox.probe`)."""

from py_code_mode.sandbox.hosts import HostPattern, is_allowed
from py_code_mode.sandbox.policy import Policy

__all__ = ["HostPattern", "Policy", "is_allowed"]
