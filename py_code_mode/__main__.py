"""``python -m py_code_mode``, and ``py-code-mode``: the command line."""

import sys


def main() -> None:
    """Run it; Ctrl-C while it is still being imported ends it quietly, as later."""
    try:
        from py_code_mode.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
