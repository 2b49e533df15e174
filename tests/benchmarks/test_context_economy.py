"""What a model reads of a table or document, and what it learns from it: tokens and facts.

The frames and documents come inside packages (the extra ``benchmark``). Each is told in four or two
ways; a fact counts as told where the text itself says it. Tokens are bytes / 4, and those of a real
tokenizer whose tables come inside its package.
"""

# The packages have no stubs, and documents are of any shape.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false
from __future__ import annotations

import gzip
import importlib
import io
import json
import math
import statistics
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from time import perf_counter
from typing import TYPE_CHECKING, Any

import pytest

from py_code_mode.guest.snapshot import snapshot, snapshot_text

from .report import summarised

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .report import Report

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(300)]

TOKENS = 300
BYTES = 4 * TOKENS
SCIKIT = ("iris", "wine", "breast_cancer", "diabetes", "digits")
STATSMODELS = (
    *("anes96", "fair", "fertility", "grunfeld"),
    *("macrodata", "modechoice", "randhie", "star98"),
)
VEGA = (
    *("airports", "barley", "cars", "la_riots"),
    *("seattle_weather", "stocks", "us_employment"),
)
DOCUMENTS = (
    ("vega_datasets", "_data/cars.json"),
    ("vega_datasets", "_data/barley.json"),
    ("vega_datasets", "_data/ohlc.json"),
    ("vega_datasets", "_data/wheat.json"),
    ("vega_datasets", "/datasets.json"),
    ("vega_datasets", "dataset_info.json"),
    ("jsonschema-specifications", "draft4/metaschema.json"),
    ("jsonschema-specifications", "draft7/metaschema.json"),
    ("jsonschema-specifications", "draft202012/metaschema.json"),
    ("altair", "vega-lite-schema.json"),
    ("altair", "vega-themes.json"),
    ("botocore", "data/endpoints.json"),
    ("botocore", "data/partitions.json"),
    ("botocore", "data/_retry.json"),
    ("botocore", "data/s3/2006-03-01/service-2.json.gz"),
    ("botocore", "data/s3/2006-03-01/paginators-1.json"),
    ("plotly", "datasets/election.geojson.gz"),
    ("plotly", "templates/plotly.json"),
    ("plotly", "labextension/package.json"),
    ("uv", "uv.cyclonedx.json"),
)
MISSING = "needs the extra `benchmark`: pip install 'py-code-mode[benchmark]'"


def frames() -> Iterator[tuple[str, Any]]:
    scikit: Any = pytest.importorskip("sklearn.datasets", reason=MISSING)
    statsmodels: Any = pytest.importorskip("statsmodels.datasets", reason=MISSING)
    vega: Any = pytest.importorskip("vega_datasets", reason=MISSING)
    for name in SCIKIT:
        yield f"scikit-learn {name}", getattr(scikit, f"load_{name}")(as_frame=True).frame
    for name in STATSMODELS:
        module = importlib.import_module(f"{statsmodels.__name__}.{name}")
        yield f"statsmodels {name}", module.load_pandas().data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dates without a format, a peer's own affair
        for name in VEGA:
            yield f"vega {name}", getattr(vega.local_data, name)()


def documents() -> Iterator[tuple[str, Any]]:
    for package, ending in DOCUMENTS:
        try:
            files = distribution(package).files or []
        except PackageNotFoundError:
            pytest.skip(MISSING)
        found = sorted(str(file.locate()) for file in files if str(file).endswith(ending))
        assert found, f"{package} has no {ending}"
        open_it: Any = gzip.open if found[0].endswith(".gz") else open
        with open_it(found[0], "rt", encoding="utf-8") as file:
            yield f"{package} {ending.strip('/')}", json.load(file)


def tokenizer() -> Callable[[str], int]:
    bpe: Any = pytest.importorskip("bpe_openai", reason=MISSING)
    encoding = bpe.get_encoding("o200k_base")
    return lambda text: len(encoding.encode(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One text about one value.

    Attributes:
        facts: of each kind of fact, which share of it is told.
    """

    text: str
    facts: dict[str, float]


FRAME_FACTS = ("shape", "columns", "dtypes", "nulls", "ranges or top", "rows")
TREE_FACTS = ("valid JSON", "top-level keys", "distinct keys", "length")


def expanded(names: list[str]) -> list[str]:
    """All names, where some are told by the first and the last."""
    found: list[str] = []
    for name in names:
        first, between, last = name.partition(" … ")
        stem = first.rstrip("0123456789")
        if not between:
            found.append(name)
        else:
            span = range(int(first[len(stem) :]), int(last[len(stem) :]) + 1)
            found += [f"{stem}{number}" for number in span]
    return found


def of_snapshot(frame: Any) -> Told:
    found = snapshot(frame)
    height, width = frame.shape
    by_dtype: dict[str, Any] = found.get("columns_by_dtype", {})
    columns: dict[str, Any] = {str(column["name"]): column for column in found.get("columns", ())}
    dtypes = {name: column["dtype"] for name, column in columns.items()}
    for dtype, group in by_dtype.items():
        names: Any = expanded(group["names"]) if "names" in group else group
        dtypes.update(dict.fromkeys(names, dtype))
        # what is told of all columns of a type together counts for none
        together = "" if "nulls" not in group else "?"
        columns.update(dict.fromkeys(names, together) if "names" in group else group)
    ranges = rows = nulls = 0
    for at, name in enumerate(map(str, frame.columns)):
        facts = columns.get(name)
        count = int(frame.iloc[:, at].isna().sum())
        if isinstance(facts, dict):
            ranges += any(key in facts for key in ("min", "top", "distinct"))
            nulls += facts.get("nulls", 0) == count
        elif facts:
            ranges += any(mark in facts for mark in ("…", "×", "distinct"))
            rows += facts.count("|") - (" null" in facts) > 0
            nulls += (f"{count} null" in facts) if count else True
        elif facts == "":
            nulls += not count
    told = sum(dtypes.get(str(name)) == str(kind) for name, kind in frame.dtypes.items())
    return Told(
        text=snapshot_text(frame),
        facts={
            "shape": float(found.get("shape") == [height, width]),
            "columns": sum(str(name) in columns for name in frame.columns) / width,
            "dtypes": told / width,
            "nulls": nulls / width,
            "ranges or top": ranges / width,
            "rows": 1.0
            if found.get("head")
            else max(rows, len(found.get("first_row", ()))) / width,
        },
    )


def named(frame: Any, text: str) -> float:
    words = text.split()
    return sum(all(part in words for part in str(n).split()) for n in frame.columns) / len(
        frame.columns
    )


def of_head(frame: Any) -> Told:
    text = frame.head().to_string()
    facts = dict.fromkeys(FRAME_FACTS, 0.0) | {"columns": named(frame, text), "rows": 1.0}
    return Told(text=text, facts=facts)


def of_info(frame: Any) -> Told:
    stream = io.StringIO()
    frame.info(buf=stream)
    text = stream.getvalue() + frame.head().to_string()
    # beyond pandas' limit, it counts columns only
    told = float("Non-Null Count" in text)
    return Told(
        text=text,
        facts={
            **{"shape": 1.0, "columns": named(frame, text), "dtypes": told, "nulls": told},
            **{"ranges or top": 0.0, "rows": 1.0},
        },
    )


def of_dumps(frame: Any) -> Told:
    whole = frame.to_json(orient="records", date_format="iso")
    text = whole[:BYTES]
    row = json.loads(whole)[0]
    seen = sum(f'"{name}":' in text for name in row) / len(row)
    facts = dict.fromkeys(FRAME_FACTS, 0.0) | {"columns": seen, "rows": seen}
    return Told(text=text, facts=facts)


def keys_of(value: Any) -> set[str]:
    found: set[str] = set()
    waiting: list[Any] = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            entries: dict[str, Any] = one
            found.update(entries)
            waiting.extend(entries.values())
        elif isinstance(one, list):
            waiting.extend(one)
    return found


def of_tree(document: Any, text: str) -> dict[str, float]:
    """Which facts of a nested document a text tells."""
    try:
        json.loads(text)
        is_valid = True
    except ValueError:
        is_valid = False
    distinct = keys_of(document)
    said = sum(f'"{key}"' in text or f" {key}," in text or f" {key}>" in text for key in distinct)
    top: list[str] = list(document if isinstance(document, dict) else document[0])
    size = f'"length":{len(document)}'
    return {
        "valid JSON": float(is_valid),
        "top-level keys": sum(f'"{key}"' in text for key in top) / len(top),
        "distinct keys": said / len(distinct),
        "length": float(size in text),
    }


def compare(
    report: Report,
    title: str,
    facts: tuple[str, ...],
    told: dict[str, dict[str, Told]],
) -> None:
    """Put one table into the report: a line for each value, and the means."""
    count = tokenizer()
    ways = list(next(iter(told.values())))
    lines = [
        f"**{title}**: tokens as bytes / 4 (in brackets: o200k_base), and the share of facts told "
        f"({', '.join(facts)}).",
        "",
        "| | " + " | ".join(ways) + " |",
        "|---|" + "---|" * len(ways),
    ]
    rough: dict[str, list[int]] = {way: [] for way in ways}
    real: dict[str, list[int]] = {way: [] for way in ways}
    for name, texts in told.items():
        cells: list[str] = []
        for way, one in texts.items():
            rough[way].append(math.ceil(len(one.text.encode()) / 4))
            real[way].append(count(one.text))
            shares = " ".join(f"{100 * one.facts[fact]:.0f}" for fact in facts)
            cells.append(f"{rough[way][-1]} ({real[way][-1]}): {shares}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    means: list[str] = []
    for way in ways:
        shares = " ".join(
            f"{100 * statistics.mean(texts[way].facts[fact] for texts in told.values()):.0f}"
            for fact in facts
        )
        means.append(
            f"{statistics.mean(rough[way]):.0f} ({statistics.mean(real[way]):.0f}): {shares}"
        )
    lines.append("| **mean** | " + " | ".join(means) + " |")
    report.tables.append("\n".join(lines))
    largest = [float(max(rough[ways[0]]))]
    rows = [summarised(f"{title}: largest snapshot", largest, "tokens", bound=TOKENS)]
    for way in ways:
        rows.append(
            summarised(f"{title}: {way}, o200k_base", list(map(float, real[way])), "tokens")
        )
        mean = [100 * statistics.mean(one[way].facts.values()) for one in told.values()]
        is_ours = way == ways[0]
        rows.append(
            summarised(
                f"{title}: {way}, facts told",
                mean,
                "%",
                bound=90 if is_ours and facts is FRAME_FACTS else None,
                is_rate=True,
            )
        )
    report.add(*rows)


def test_frames(report: Report) -> None:
    ways: dict[str, Callable[[Any], Told]] = {
        "snapshot": of_snapshot,
        "head()": of_head,
        "info() + head()": of_info,
        f"JSON cut at {BYTES} bytes": of_dumps,
    }
    told = {
        f"{name} {frame.shape[0]:,} x {frame.shape[1]}": {
            way: tell(frame) for way, tell in ways.items()
        }
        for name, frame in frames()
    }
    assert len(told) == 20
    compare(report, "20 frames", FRAME_FACTS, told)


def test_documents(report: Report) -> None:
    told: dict[str, dict[str, Told]] = {}
    for name, document in documents():
        cut = json.dumps(document, ensure_ascii=False)[:BYTES]
        ours = snapshot_text(document)
        told[name] = {
            "snapshot": Told(text=ours, facts=of_tree(document, ours)),
            f"json.dumps cut at {BYTES} characters": Told(text=cut, facts=of_tree(document, cut)),
        }
    assert len(told) == 20
    compare(report, "20 JSON documents", TREE_FACTS, told)


def test_cost(report: Report) -> None:
    import numpy
    import pandas

    np: Any = numpy
    pd: Any = pandas
    values = {
        "10,000,000 x 5 frame": (pd.DataFrame(np.random.rand(10_000_000, 5)), 5),
        "1,000 x 5,000 frame": (pd.DataFrame(np.random.rand(1000, 5000)), 20),
        "list of 10,000,000 ints": (list(range(10_000_000)), 5),
        "dict of 1,000,000": ({str(at): at for at in range(1_000_000)}, 5),
        "text of 50,000,000 characters": ("line\n" * 10_000_000, 10),
    }
    for name, (value, bound) in values.items():
        times: list[float] = []
        for _ in range(21):
            began = perf_counter()
            snapshot(value)
            times.append(perf_counter() - began)
        report.add(summarised(f"snapshot: {name}", times, "ms", scale=1e3, bound=bound))
