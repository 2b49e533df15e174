"""Which modules of the interpreter's own `test` package are run."""

from __future__ import annotations

#: Seconds one way of one module may take.
TIMEOUT = 200.0

#: Run always: together a few seconds.
SAMPLE = (
    "test_builtin",
    "test_coroutines",
    "test_dataclasses",
    "test_exceptions",
    "test_functools",
    "test_generators",
    "test_grammar",
    "test_inspect",
    "test_json",
    "test_sqlite3",
    "test_traceback",
    "test_typing",
)

#: Run besides, where PY_CODE_MODE_FULL is set. Without test_socket and its like: they wait for
#: networks that a build machine may not have, whoever runs them.
FULL = (
    "test_ast",
    "test_asyncgen",
    "test_asyncio.test_tasks",
    "test_bisect",
    "test_bytes",
    "test_collections",
    "test_compile",
    "test_contextlib",
    "test_contextlib_async",
    "test_copy",
    "test_csv",
    "test_datetime",
    "test_decimal",
    "test_dict",
    "test_enum",
    "test_float",
    "test_fstring",
    "test_gc",
    "test_heapq",
    "test_int",
    "test_io",
    "test_itertools",
    "test_list",
    "test_logging",
    "test_math",
    "test_os",
    "test_pathlib",
    "test_patma",
    "test_pickle",
    "test_queue",
    "test_random",
    "test_re",
    "test_scope",
    "test_select",
    "test_set",
    "test_signal",
    "test_statistics",
    "test_struct",
    "test_subprocess",
    "test_tempfile",
    "test_threading",
    "test_unicode",
    "test_unittest",
    "test_weakref",
    "test_with",
    "test_zlib",
)
