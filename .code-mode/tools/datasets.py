"""Public data sets that come inside scikit-learn; they are read on the host, not in the guest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

__all__ = ["dataset"]


def dataset(name: Literal["breast_cancer", "diabetes", "iris", "wine"]) -> pd.DataFrame:
    """Load a public data set as a DataFrame; the column `target` is what one would predict.

    Args:
        name: which one.
    """
    from sklearn import datasets

    load: Callable[..., dict[str, pd.DataFrame]] = getattr(datasets, f"load_{name}")
    return load(as_frame=True)["frame"]
