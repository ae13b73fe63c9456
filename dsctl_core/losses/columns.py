"""The columns that a loss reads from the rows itself, looked at before anything is loaded."""

from __future__ import annotations

from collections.abc import Hashable

from dsctl_core.data import DataError, UnifiedDataset
from dsctl_core.errors import DsctlError
from dsctl_core.losses import Loss


def unreadable_rows(dataset: UnifiedDataset, loss: Loss) -> dict[int, DataError]:
    """Return the rows in whose columns `loss` does not find what it needs, with what is wrong."""
    if loss.read_row is None:
        return {}
    found = {}
    for number in dataset.rows_in_use:
        try:
            loss.read_row(dataset.metadata.rows[number])
        except DsctlError as error:
            found[number] = DataError(f"{dataset.location(number)} {error.problem}", hint=error.hint, kind="column")
    return found


def refuse_unreadable(dataset: UnifiedDataset, loss: Loss) -> None:
    """Raise what is wrong with the first row that `loss` cannot read, and how many more there are."""
    found = list(unreadable_rows(dataset, loss).values())
    if found:
        more = f" (and {len(found) - 1} more rows)" if len(found) > 1 else ""
        raise DataError(f"{found[0].problem}{more}", hint=found[0].hint, kind=found[0].kind) from found[0]


def with_columns_alike(buckets: list[Hashable], dataset: UnifiedDataset, loss: Loss) -> list[Hashable]:
    """Divide `buckets`, one for each row, further, so that a batch agrees in the columns in which `loss` needs it."""
    rows = dataset.metadata.rows
    return [
        (bucket, *(str(rows.cell(number, name)) for name in loss.same_in_batch))
        for bucket, number in zip(buckets, dataset.numbers, strict=True)
    ]
