"""Sources that can be run by name."""

from py_code_mode.workflows.library import WorkflowLibrary
from py_code_mode.workflows.workflow import Parameter, Workflow

__all__ = ["Parameter", "Workflow", "WorkflowLibrary"]
