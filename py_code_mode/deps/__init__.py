"""Which packages a workspace wants."""

from py_code_mode.deps.requirements import Problem, Requirements, parse

__all__ = ["Problem", "Requirements", "parse"]
