"""Start a program of the guest from its own folder, under a private package name.

Run as ``python -I .../guest/__main__.py PROGRAM NUMBER...``, where the program is a module with a
``main`` (loop, keeper, zygote, wall) and the numbers are mostly descriptors. Given the file, Python
leaves this folder off sys.path, and py_code_mode need not be installed where the guest runs.
Nothing that matters for security depends on the name being private.
"""

import os
import sys
from importlib import import_module

NAME = "_code_mode_guest"

# multiprocessing imports the main module again in its children, under another name
if __name__ == "__main__":
    package = type(sys)(NAME)
    package.__path__ = [os.path.dirname(os.path.abspath(__file__))]
    sys.modules[NAME] = package
    import_module(f"{NAME}.{sys.argv[1]}").main(*map(int, sys.argv[2:]))
