"""The paths of all files of a dataset are the same whether they are made in bulk or one by one."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsctl_core.data.dataset import UnifiedDataset
from dsctl_core.data.looking import look_at_files
from dsctl_core.errors import DsctlError

PLAIN = [f"{number % 7}/{number:05d}.png" for number in range(5000)]  # more than are made at a time


class Seen:
    """Notes the paths that are asked for."""

    def __init__(self) -> None:
        self.done, self.paths, self.count = 0, list[str](), 0

    def read(self, paths, count, progress, *, whole):
        self.paths, self.count = list(paths), count


@pytest.mark.parametrize(
    ("images", "excluded"),
    [
        (PLAIN, set()),
        ([*PLAIN[:-1], "\u00e9/a b.png"], set()),
        ([*PLAIN[:20], "../out.png", "/absolute.png", "", "s3://bucket/a.png", "x.tar/a.png", *PLAIN[20:]], set()),
        (PLAIN, {3, 4098}),
        (PLAIN[:1], set()),
    ],
    ids=["plain", "other letters", "some that are refused", "some left out", "one"],
)
def test_each_file_of_the_rows_in_use_is_asked_for_in_order(tmp_path: Path, images: list[str], excluded: set[int]):
    lines = [f'"{image}","e{image}",a' for image in images]
    (tmp_path / "metadata.csv").write_text("\n".join(["image,edit_image,prompt", *lines]) + "\n", encoding="utf-8")
    dataset = UnifiedDataset(tmp_path, data_file_keys=("image", "edit_image"))
    dataset.numbers = dataset.numbers.without(excluded)
    dataset.known = seen = Seen()  # type: ignore[assignment]
    expected = []
    for number in dataset.rows_in_use:
        for key in ("image", "edit_image"):
            try:
                expected += [str(path) for path in dataset.files(number, key)]
            except DsctlError:
                continue
    look_at_files(dataset)
    assert seen.paths == expected
    assert seen.count == 2 * (len(images) - len(excluded))
    assert len(expected) > 1
