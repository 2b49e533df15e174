"""Writes the files that a command is asked for with `--output`."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pathlib import Path


def write_file(path: Path, data: bytes, *, force: bool) -> None:
    """Write a file that is whole at every moment.

    Raises:
        typer.BadParameter: there is one, and it is not to be replaced; or what is there is no file.
        OSError: it cannot be written.
    """
    try:
        _refuse_others(path)
        _replace(path, data, force=force)
    except OSError as error:  # of a name that nobody has asked for
        raise OSError(error.errno, error.strerror, str(path)) from error


def _refuse_others(path: Path) -> None:
    """Refuse what has no content that could be replaced: folders, devices, pipes, dead links."""
    if not os.path.lexists(path) or path.is_file():
        return
    kind = "a folder" if path.is_dir() else "no regular file"
    raise typer.BadParameter(f"{path} is {kind}; give a file", param_hint="--output")


def _replace(path: Path, data: bytes, *, force: bool) -> None:
    new = path.with_name(f".{path.name[:100]}.{os.urandom(6).hex()}")
    try:
        with new.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if force:
            os.replace(new, path)
            return
        try:
            os.link(new, path)  # unlike a rename it replaces nothing
        except FileExistsError:
            raise typer.BadParameter(
                f"{path} exists; --force replaces it", param_hint="--output"
            ) from None
        except OSError:  # a file system without links
            if os.path.lexists(path):
                raise
            os.replace(new, path)
    finally:
        with suppress(FileNotFoundError):
            new.unlink()
