"""The interpreters and packages guests run with, made through uv."""

from py_code_mode.environments.base import (
    DEFAULT_PACKAGES,
    Environment,
    EnvironmentSpec,
    cache_root,
    host_environment,
    realise,
)
from py_code_mode.environments.interpreters import (
    Interpreter,
    available_interpreters,
    find_interpreter,
)
from py_code_mode.environments.overlay import InstallReport, Overlay, RemovalReport

__all__ = [
    "DEFAULT_PACKAGES",
    "Environment",
    "EnvironmentSpec",
    "InstallReport",
    "Interpreter",
    "Overlay",
    "RemovalReport",
    "available_interpreters",
    "cache_root",
    "find_interpreter",
    "host_environment",
    "realise",
]
