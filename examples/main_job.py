"""The main job: from a public data set to a chart, in a worker process with its own packages.

What a model would write is in the texts below; each is one run, and variables stay between runs.
The session works on a copy of the sample workspace, `.code-mode`, made in `examples/output`.
Needs the extra `examples`, and at the first time a package index: the worker's environment and
matplotlib are installed from it.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import anyio

from py_code_mode import Display, Session

HERE = Path(__file__).parent
WORKSPACE = HERE / "output" / "main_job"

LOAD = """
wine = tools.dataset(name="wine")      # a Python tool: runs on the host, gives a DataFrame
host = tools.uname.platform().strip()  # a command line tool: tools/uname.yaml
print(f"on {host}: {len(wine)} wines of {wine.target.nunique()} growers")
wine.describe().loc[["mean", "std"], ["alcohol", "flavanoids", "proline"]].round(2)
"""

WORKFLOW = '''
async def run(frame, by: str, top: int = 5):
    """Args:
    frame: a DataFrame of numbers.
    by: the column that names the group of a row.
    top: how many columns to return.
    """
    groups = frame.groupby(by)
    between = groups.mean().std()
    within = groups.std().mean()
    return (between / within).sort_values(ascending=False).head(top)
'''

USE_WORKFLOW = """
separation = workflows.separation(frame=wine, by="target", top=3)
note = "Which measurements tell growers apart"
artifacts.save("separation", separation.round(3).to_dict(), description=note)
separation.round(2)
"""

CHART = """
installed = deps.add("matplotlib")  # into this session's own packages, usable at once
if installed["failed"]:
    raise RuntimeError(installed["errors"])

import matplotlib.pyplot as plt

x, y = separation.index[:2]
figure, axes = plt.subplots(figsize=(6, 4))
for grower, rows in wine.groupby("target"):
    axes.scatter(rows[x], rows[y], s=18, label=f"grower {grower}")
axes.set(xlabel=x, ylabel=y, title="Three growers, two measurements")
axes.legend()
plt.show()
"""


async def main() -> None:
    shutil.rmtree(WORKSPACE, ignore_errors=True)
    shutil.copytree(HERE.parent / ".code-mode", WORKSPACE)
    began = time.perf_counter()
    async with Session.subprocess(WORKSPACE, timeout=300) as session:
        print(f"session started after {time.perf_counter() - began:.2f} s")

        await run(session, LOAD)

        await session.add_workflow(
            "separation", WORKFLOW, "Rank columns by how well they tell groups apart"
        )
        await run(session, USE_WORKFLOW)

        displays = await run(session, CHART)
        chart = await session.save_artifact("chart", displays[0], "Wines by grower")

        print("\nkept in", WORKSPACE)
        for artifact in await session.list_artifacts():
            print(f"  artifact {artifact['name']}: {artifact['description']}")
        for workflow in await session.list_workflows():
            print(f"  workflow {workflow['name']}: {workflow['description']}")
        print("chart:", chart["path"])


async def run(session: Session, code: str) -> tuple[Display, ...]:
    """Run one piece of code, show what a model would see, and give what it displayed."""
    print(f"\n--- {code.strip().splitlines()[0][:72]} …")
    result = await session.run(code)
    print(result.to_text())
    if not result.is_ok:
        sys.exit("the run above failed")
    return result.displays


if __name__ == "__main__":
    anyio.run(main)
