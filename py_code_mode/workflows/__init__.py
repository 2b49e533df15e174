"""Sources that can be run by name."""

from py_code_mode.workflows.library import WorkflowLibrary
from py_code_mode.workflows.origin import is_as_strong, is_sandboxed
from py_code_mode.workflows.workflow import Parameter, Workflow

__all__ = ["Parameter", "Workflow", "WorkflowLibrary", "is_as_strong", "is_sandboxed"]
