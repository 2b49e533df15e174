"""``python -m py_code_mode``: the command line."""

from py_code_mode.cli.main import main

if __name__ == "__main__":
    main()
