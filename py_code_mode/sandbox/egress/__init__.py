"""The proxy through which a session reaches the hosts its policy lists; `proxy` is the way in."""

from py_code_mode.sandbox.egress.audit import EgressRecord
from py_code_mode.sandbox.egress.proxy import MAX_REFUSALS, Egress, guest_variables

__all__ = ["MAX_REFUSALS", "Egress", "EgressRecord", "guest_variables"]
