"""What runs where the code runs.

Standard library only and relative imports only: the worker loads this folder under a private name
(`__main__.py`), the host imports parts of it as `py_code_mode.guest`.
"""
