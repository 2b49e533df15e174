"""``py-code-mode sessions``: what sessions did, on record."""

import re
from dataclasses import asdict
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from py_code_mode.cli.cell import Comeback, run_cell
from py_code_mode.cli.files import write_file
from py_code_mode.cli.options import Base, Figures, Force, Json, Limit, Query, option, workspace
from py_code_mode.cli.place import Place, takes_place
from py_code_mode.cli.run import cell_of
from py_code_mode.cli.terminal import complain, say, show_json, show_table, show_text
from py_code_mode.workspace import SESSIONS

if TYPE_CHECKING:
    from py_code_mode.journal import Journal
    from py_code_mode.journal.loader import Problem

_FOUND_PROBLEMS = 1
_EXPORTED = {".md": "markdown", ".json": "json", ".html": "html", ".htm": "html", ".ipynb": "ipynb"}
_SPANS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

app = typer.Typer(
    name="sessions",
    short_help="Sessions on record: list, show, search, export, resume.",
    help="List, show, search, export, resume and look after recorded sessions (sessions/).",
    epilog="""\
\b
Examples:
  py-code-mode sessions list
  py-code-mode sessions search read_csv prices
  py-code-mode sessions show 0199c2a4-5f0e-7c1b-9d53-6d2f7e0c8a11
  py-code-mode sessions export 0199c2a4-5f0e-7c1b-9d53-6d2f7e0c8a11 --output analysis.ipynb
  py-code-mode sessions resume 0199c2a4-5f0e-7c1b-9d53-6d2f7e0c8a11 -c "df.head()"
  py-code-mode sessions prune --older-than 30d --dry-run
""",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class Format(StrEnum):
    """What a session can be exported as."""

    MARKDOWN = "markdown"
    JSON = "json"
    HTML = "html"
    IPYNB = "ipynb"


class Mode(StrEnum):
    """How variables come back."""

    RESTORE = "restore"
    REPLAY = "replay"


class Ambiguous(StrEnum):
    """What to do about runs that were cut short."""

    SKIP = "skip"
    RAISE = "raise"
    RERUN = "rerun"


class Age(StrEnum):
    """What the age of a session is counted from."""

    CREATED = "created"
    UPDATED = "updated"


Id: TypeAlias = Annotated[str, typer.Argument(metavar="ID", show_default=False)]
OneOrAll: TypeAlias = Annotated[
    str | None,
    typer.Argument(metavar="[ID]", help="[default: all sessions]", show_default=False),
]


def sessions(base: Path | None) -> Path:
    """The folder with a workspace's sessions; it may not exist."""
    return workspace(base) / SESSIONS


def read(folder: Path, session_id: str) -> "Journal":
    """A session as far as it can be read; what cannot be is told on stderr."""
    from py_code_mode.journal import find_journal, read_journal
    from py_code_mode.journal.migrations import migrating

    path = find_journal(folder, session_id).path
    journal = read_journal(path, on_error="skip", upgrade=migrating(path))
    for problem in journal.problems:
        if not problem.is_accepted:
            complain(_placed(problem))
    return journal


@app.command("list")
def list_(
    limit: Limit = 50,
    cursor: Annotated[
        str | None, option("--cursor", "CURSOR", "Go on where a listing ended, which tells it.")
    ] = None,
    base: Base = None,
    as_json: Json = False,
) -> None:
    """List the sessions, the newest first; those that cannot be read are told on stderr."""
    from py_code_mode.journal import SessionIndex

    folder = sessions(base)
    with SessionIndex(folder) as index:
        try:
            page = index.page(limit, cursor)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--cursor") from error
    for name, reason in page.unreadable.items():
        complain(f"session {name}: {reason}")
    if as_json:
        found = [{**asdict(each), "path": str(each.path)} for each in page.sessions]
        show_json({"sessions": found, "cursor": page.cursor})
        return
    columns = ("id", "status", "created", "updated", "title")
    rows = [
        (each.session_id, each.status, each.created_at, each.updated_at, each.title or "")
        for each in page.sessions
    ]
    readable = "no sessions that can be read" if page.unreadable else "no sessions"
    show_table(columns, rows, f"{readable} in {folder}")
    if page.cursor is not None:
        say(f"there are more: --cursor {page.cursor}")


@app.command()
def show(session_id: Id, base: Base = None, as_json: Json = False) -> None:
    """Show a session: its runs with their output, values and errors, its calls and messages."""
    from py_code_mode.journal import to_json, to_markdown

    journal = read(sessions(base), session_id)
    if as_json:
        print(to_json(journal), end="", flush=True)  # ASCII
    else:
        show_text(to_markdown(journal))


@app.command()
def search(query: Query, limit: Limit = 50, base: Base = None, as_json: Json = False) -> None:
    """Find runs and messages that have all the words, the newest session's first."""
    from py_code_mode.journal import SessionIndex

    with SessionIndex(sessions(base)) as index:
        try:
            found = index.search(" ".join(query), limit)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="WORDS") from error
    if as_json:
        show_json([asdict(hit) for hit in found])
        return
    rows = [
        (
            hit.session_id,
            f"run {hit.run_id}" if hit.run_id is not None else f"{hit.record_type} {hit.seq}",
            hit.snippet,
        )
        for hit in found
    ]
    show_table(("session", "where", "text"), rows, "nothing found")


@app.command()
def export(
    session_id: Id,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where it goes; `-` is stdout.",
        ),
    ] = "-",
    format_: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="What it becomes.  [default: what FILE's extension says, else markdown]",
            show_default=False,
        ),
    ] = None,
    force: Force = False,
    base: Base = None,
) -> None:
    """Write a session as Markdown, JSON, a page of HTML, or a Jupyter notebook.

    The file is there as a whole or not at all, and one that is there already is not replaced.
    """  # fmt: skip
    kind = format_ or Format(_EXPORTED.get(Path(output).suffix.lower(), Format.MARKDOWN))
    text = _exported(read(sessions(base), session_id), kind)
    if output == "-":
        show_text(text)
        return
    path = Path(output).expanduser()
    write_file(path, text.encode("utf-8", "backslashreplace"), force=force)
    say(f"saved {path}")


def _exported(journal: "Journal", kind: Format) -> str:
    import json

    from py_code_mode.journal import to_html, to_json, to_markdown, to_notebook

    match kind:
        case Format.MARKDOWN:
            return to_markdown(journal)
        case Format.JSON:
            return to_json(journal)
        case Format.HTML:
            return to_html(journal)
        case Format.IPYNB:
            return json.dumps(to_notebook(journal), indent=1, allow_nan=False) + "\n"


@app.command()
@takes_place
def resume(
    place: Place,
    session_id: Id,
    file: Annotated[
        str | None,
        typer.Argument(metavar="FILE", help="A Python file; `-` is stdin.", show_default=False),
    ] = None,
    code: Annotated[str | None, option("-c", "CODE", "Python code.")] = None,
    mode: Annotated[
        Mode, typer.Option(help="Load what was saved and run the rest again, or run all again.")
    ] = Mode.RESTORE,
    on_ambiguous: Annotated[
        Ambiguous, typer.Option(help="What to do about runs that were cut short.")
    ] = Ambiguous.SKIP,
    trusted: Annotated[
        bool, typer.Option("--trusted", help="Also where the code gets more rights than it had.")
    ] = False,
    figures: Figures = Path(),
    as_json: Json = False,
) -> None:
    """Run Python in a session that has ended, with its variables back.

    No tool is called to bring them back: calls are answered from the record. What happens now is
    recorded behind it. Output and exit status are as of `run`.
    """
    comeback = Comeback(
        session_id=session_id,
        mode=mode.value,
        on_ambiguous=on_ambiguous.value,
        trusted=trusted,
    )
    cell = cell_of(file, code)
    raise typer.Exit(run_cell(cell, place, figures=figures, as_json=as_json, comeback=comeback))


@app.command()
def fork(
    session_id: Id,
    at: Annotated[
        int | None, option("--at", "RUN", "The last run of its past.  [default: the latest]")
    ] = None,
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Make a session that has another one's past, to be resumed by itself; prints its id."""
    from py_code_mode.errors import CodeModeError
    from py_code_mode.journal import fork_session

    try:
        made = fork_session(sessions(base), session_id, at=at)
    except CodeModeError:
        raise
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--at") from error
    if as_json:
        show_json({"id": made, "parent": session_id, "at": at})
    else:
        show_text(made)


@app.command()
def check(
    session_id: OneOrAll = None,
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Read sessions whole and tell what is wrong with them; the exit status is 1 if anything is."""
    from py_code_mode.journal import check_sessions

    folder = sessions(base)
    found = 0
    told: list[dict[str, object]] = []
    for problem in check_sessions(folder, session_id):
        found += 1
        if as_json:
            told.append(problem._asdict())
        else:
            show_text(_placed(problem).replace("\x1b", "\\x1b"))
    if as_json:
        show_json(told)
    elif not found:
        say("nothing is wrong" if folder.is_dir() else f"no sessions in {folder}")
    if found:
        raise typer.Exit(_FOUND_PROBLEMS)


@app.command()
def repair(
    session_id: OneOrAll = None,
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Mend what crashes have left; what is cut off a journal is kept beside it.

    Given an ID, that session goes on without what is damaged further up in its journal.
    """
    from py_code_mode.journal import repair_sessions

    folder = sessions(base)
    done = repair_sessions(folder, session_id)
    if as_json:
        cut = {name: str(path) for name, path in done.cut.items()}
        show_json({**asdict(done), "cut": cut})
        return
    if not folder.is_dir():
        say(f"no sessions in {folder}")
        return
    for name in done.closed:
        say(f"closed session {name}")
    for name, count in done.passed_over.items():
        where = "one place" if count == 1 else f"{count} places"
        say(f"session {name} goes on without what is damaged in {where}")
    for name, path in done.cut.items():
        say(f"cut a part of a line off session {name}; it is in {path}")
    for name in done.in_use:
        say(f"left session {name} alone: it is being written")
    for name, reason in done.failed.items():
        complain(f"session {name}: {reason}")
    if done.blobs is None:
        say("no blobs were removed: some journals cannot be read; `sessions check` tells which")
    elif done.blobs:
        say(f"removed {len(done.blobs)} blobs that no session names")
    say("made the index anew" if done.is_indexed else "the index cannot be had; searches read all")
    if done.failed:
        raise typer.Exit(_FOUND_PROBLEMS)


@app.command()
def prune(
    older_than: Annotated[
        str,
        typer.Option(metavar="AGE", help="Such as 30d, 12h or 8w.", show_default=False),
    ],
    by: Annotated[Age, typer.Option(help="What the age is counted from.")] = Age.CREATED,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell which sessions would be removed.")
    ] = False,
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Remove old sessions; not those that are being written, or that kept ones were forked from.

    Large values that no session has any more are removed as well, an hour after they were written.
    """
    from py_code_mode.journal import SessionIndex, prune_sessions, sweep_blobs

    folder = sessions(base)
    removed = [
        str(each)
        for each in prune_sessions(
            older_than=_age(older_than),
            by="created_at" if by is Age.CREATED else "updated_at",
            dry_run=dry_run,
            folder=folder,
        )
    ]
    if not dry_run:
        sweep_blobs(folder)
    if removed and not dry_run:
        with SessionIndex(folder) as index:  # which forgets their text
            index.rebuild()
    if as_json:
        show_json({"dry_run": dry_run, "removed": removed})
        return
    if not folder.is_dir():
        say(f"no sessions in {folder}")
        return
    for name in removed:
        show_text(name)
    word = "would be removed" if dry_run else "removed"
    say(f"{len(removed)} sessions {word}" if len(removed) != 1 else f"1 session {word}")


def _age(text: str) -> timedelta:
    found = re.fullmatch(r"([0-9]{1,6})([mhdw])", text.strip())
    if found is None:
        raise typer.BadParameter(
            f"{text!r} is no age; give a number and m, h, d or w: 30d", param_hint="--older-than"
        )
    return timedelta(**{_SPANS[found[2]]: int(found[1])})


def _placed(problem: "Problem") -> str:
    return f"{problem.path}:{problem.line}:{problem.offset}: {problem.reason}"
