"""``py-code-mode trust``: folders that others wrote, and whose content may run here."""

from pathlib import Path
from typing import Annotated

import typer

from py_code_mode.cli.options import Json, workspace
from py_code_mode.cli.terminal import say, show_json, show_table
from py_code_mode.errors import ConfigError

EPILOG = """\
\b
Examples:
  py-code-mode trust
  py-code-mode trust /srv/shared/.code-mode
  py-code-mode trust --list
  py-code-mode trust --remove /srv/shared/.code-mode

A workspace's tools run on this machine with your rights; so do its workflows and saved sessions,
without a sandbox. Where somebody else owns the workspace, or may write to it, they are not used
until you have said so here. Trust is for you alone, for this folder, and for those who own or may
write to it now.

The same holds for what was made, or changed, in a folder that sandboxed code could write to: with
--workdir and --write, or by a policy. Such folders are remembered; to trust one as a whole, as it
is now, name it.
"""


def trust(
    folder: Annotated[
        str | None,
        typer.Argument(
            metavar="FOLDER",
            help="A workspace, or a folder of tools.  [default: the nearest .code-mode]",
            show_default=False,
        ),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List what is trusted.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Trust it no longer.")] = False,
    as_json: Json = False,
) -> None:
    """Trust a workspace that is not yours alone, so that its tools may run here."""
    from py_code_mode.trust import distrust, doubts, exposed, trusted

    if list_:
        if folder is not None or remove:
            raise typer.BadParameter("it takes no folder", param_hint="--list")
        known = [
            {
                "folder": str(each.folder),
                "owners": sorted(each.owners),
                "written by others": each.is_shared,
            }
            for each in trusted()
        ]
        if as_json:
            show_json(known)
        else:
            show_table(("folder",), [[str(each["folder"])] for each in known], "nothing is trusted")
            for each in exposed():
                when = "can" if each.open else "could"
                say(f"note: sandboxed code {when} write to {each.folder}; see `trust --help`")
        return
    place = _place(folder)
    if remove:
        if not distrust(place):
            reason = "is not trusted; `py-code-mode trust --list` shows what is"
            raise ConfigError(str(place), reason)
        if as_json:
            show_json({"removed": str(place.resolve())})
        else:
            say(f"no longer trusted: {place.resolve()}")
        return
    from py_code_mode.trust import trust as give

    seen = [str(doubt) for doubt in doubts(place)]
    made = give(place)
    if as_json:
        show_json({"trusted": str(made.folder), "doubts": seen})
    else:
        for doubt in seen:
            say(f"note: {doubt}")
        say(f"trusted: {made.folder}")


def _place(folder: str | None) -> Path:
    if folder is None:
        return workspace(None).absolute()
    if not folder:
        raise typer.BadParameter("it is empty; `.` is this folder", param_hint="FOLDER")
    return Path(folder).expanduser().absolute()
