"""Start the guest worker from its own folder, under a private package name.

Run as ``python -I .../guest/__main__.py FD LIFELINE``: given the file, Python leaves this folder
off sys.path, and py_code_mode need not be installed where the guest runs. Nothing that matters for
security depends on the name being private.
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
    import_module(NAME + ".loop").main(*map(int, sys.argv[1:]))
