"""WebDataset shards and Parquet tables with the files in them are the dataset of the same files in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import huggingface_hub.constants
import pytest

from dsctl_core.commands.dataset import validate
from dsctl_core.data.dataset import UnifiedDataset
from dsctl_core.data.problems import DataError
from dsctl_core.data.video_file import decode, read_stamps
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.options import DatasetValidateOptions
from dsctl_core.remote import lookup, store
from dsctl_core.remote.errors import RemoteError, RemoteUnreachable
from dsctl_core.remote.local import LIMIT
from dsctl_core.remote.retry import Patience
from dsctl_core.remote.tar import index_of
from tests.archives import COUNT, PICTURES, ROWS, shard, table_of, tar_of
from tests.dsctl_core.data.test_video import CODECS, write
from tests.hub_server import LocalHub, local_hub
from tests.s3_server import Fault, S3Server

BUCKET = "shards"


FILES = {
    "tars/shard-08.tar": shard(range(3)),
    "tars/shard-09.tar": shard(range(3, COUNT)),
    "one/metadata.parquet": table_of(range(COUNT)),
    "hub/README.md": b"# A dataset",
    "hub/data/train-00000-of-00002.parquet": table_of(range(4)),
    "hub/data/train-00001-of-00002.parquet": table_of(range(4, COUNT)),
    "hub/data/test-00000-of-00001.parquet": table_of(range(1)),
}


@pytest.fixture(scope="module")
def places(running_s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("shards")
    running_s3.make_bucket(BUCKET)
    memory = fsspec.filesystem("memory")
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        running_s3.put(BUCKET, name, content)
        memory.pipe_file(f"/{BUCKET}/{name}", content)
    (folder / "plain").mkdir()
    for number, (prompt, picture) in enumerate(ROWS):
        (folder / "plain" / f"{number}.png").write_bytes(picture)
        (folder / "plain" / f"{number}.txt").write_text(prompt)
    return {
        "disk": str(folder),
        "s3": f"s3://{BUCKET}",
        "memory": f"memory://{BUCKET}",
        "web": f"{running_s3.url}/{BUCKET}",
        "modelscope": "modelscope://datasets/me/shards",
    }


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("disk", "tars"),
        ("s3", "tars"),
        ("s3", "tars/shard-{08..09}.tar"),
        ("web", "tars/shard-{08..09}.tar"),
        ("memory", "tars/shard-{08..09}.tar"),
        ("disk", "one"),
        ("web", "one"),
        ("disk", "hub"),
        ("s3", "hub"),
        ("modelscope", "tars"),
        ("modelscope", "tars/shard-{08..09}.tar"),
        ("modelscope", "one"),
        ("modelscope", "hub"),
    ],
)
def test_the_rows_are_those_of_the_files(
    s3: S3Server, modelscope: LocalHub, places: dict[str, str], where: str, name: str
) -> None:
    modelscope.dataset("me/shards", FILES)
    dataset = UnifiedDataset(f"{places[where]}/{name}")
    assert len(dataset) == COUNT
    for row, expected in zip(dataset, UnifiedDataset(f"{places['disk']}/plain"), strict=True):
        assert row["prompt"] == expected["prompt"]
        assert row["image"].size == expected["image"].size
        assert row["image"].tobytes() == expected["image"].tobytes()


@pytest.mark.parametrize("where", ["disk", "s3", "web", "memory", "modelscope"])
@pytest.mark.parametrize("name", ["tars/shard-08.tar", "one/metadata.parquet", "hub/data/test-00000-of-00001.parquet"])
def test_one_tar_and_one_parquet_file_are_given_alone(
    s3: S3Server, modelscope: LocalHub, places: dict[str, str], where: str, name: str
) -> None:
    modelscope.dataset("me/shards", FILES)
    found = validate(DatasetValidateOptions(path=f"{places[where]}/{name}"))
    assert [problem.message for problem in found.found.problems] == []
    assert found.found.rows == {"tars": 3, "one": COUNT, "hub": 1}[name.partition("/")[0]]


def test_a_dataset_of_a_hub_is_read_by_its_name(
    places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with local_hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        template = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE
        template = template.replace("https://huggingface.co", hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(store, "Patience", lambda: Patience(tries=1, timeout=5))
        files = {name[4:]: content for name, content in FILES.items() if name.startswith("hub/")}
        hub.add("me/set", files, "datasets")
        dataset = UnifiedDataset("hf://datasets/me/set")
        assert [row["prompt"] for row in dataset] == [prompt for prompt, _ in ROWS]
        assert not any("test-00000" in request and "resolve" in request for request, _ in hub.requests)


def test_a_web_server_without_a_listing_and_one_in_disorder_are_one_line(
    s3: S3Server, places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RemoteError, match="a web server has no listing"):
        UnifiedDataset(f"{places['web']}/tars")
    monkeypatch.setattr(store, "Patience", lambda: Patience(tries=2, first_wait=0.01, timeout=2))
    lookup._opened.cache_clear()  # of tests before, with more patience
    s3.faults.append(Fault("/shards/one", status=503))
    with pytest.raises(RemoteUnreachable, match=r"one/metadata\.csv cannot be reached: status 503"):
        UnifiedDataset(f"{places['web']}/one")


def test_one_tar_is_a_dataset_and_its_json_has_further_columns(places: dict[str, str]) -> None:
    dataset = UnifiedDataset(f"{places['disk']}/tars/shard-08.tar")
    assert [dataset.metadata.rows.cell(n, "score") for n in range(3)] == [0, None, 2]
    assert any("3 .cls" in note for note in dataset.notes())
    assert "shard-08.tar row 2 (sub/0001)" in dataset.location(1)
    assert "WebDataset of 1 shard with 3 samples" in dataset.notes()[0]


def test_a_remote_sample_is_one_read_of_its_bytes_once_the_index_is_known(
    s3: S3Server, places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    address = f"{places['s3']}/tars/shard-08.tar"
    UnifiedDataset(address)
    s3.requests.clear()
    row = UnifiedDataset(address)[1]
    start = FILES["tars/shard-08.tar"].index(PICTURES[1])
    assert row["prompt"] == "ball 1"
    assert s3.asked("GET /shards/tars/shard-08.tar") == [f"bytes={start}-{start + len(PICTURES[1]) - 1}"]


def test_pictures_beside_a_tar_are_the_dataset_as_ever(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PICTURES[0])
    (tmp_path / "a.txt").write_text("a ball")
    (tmp_path / "old.tar").write_bytes(FILES["tars/shard-08.tar"])
    dataset = UnifiedDataset(tmp_path)
    assert [dataset[0]["prompt"], len(dataset)] == ["a ball", 1]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (FILES["tars/shard-08.tar"][:1500], "cannot be read as a tar: unexpected end of data"),
        (b"\x1f\x8b" + b"x" * 600, "unpack it"),
        (tar_of({}), "is a tar without files"),
        (tar_of({"a.txt": b"x"}), "no sample in them has a file for the column 'image'"),
        (tar_of({"a.png": b"x", "a.jpg": b"x"}), "two files of the sample a"),
        (tar_of({"a.png": b"x", "a.json": b"{"}), "cannot be read as json"),
        (tar_of({"a.png": b"x", "a.json": b"[]"}), "no object of json"),
        (tar_of({"a.png": b"x", "a.json": b"{}", "a.JSON": b"{}"}), "two files of the sample a with its columns"),
    ],
)
def test_a_tar_that_cannot_be_used_is_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "bad.tar").write_bytes(content)
    with pytest.raises(DsctlError) as raised:
        UnifiedDataset(tmp_path / "bad.tar")
    assert said in f"{raised.value} {raised.value.hint}"
    assert str(tmp_path / "bad.tar") in str(raised.value)


def test_a_text_that_is_not_utf_8_and_a_picture_that_is_none_are_problems_of_their_rows(tmp_path: Path) -> None:
    (tmp_path / "bad.tar").write_bytes(
        tar_of({"a.png": b"none", "a.txt": b"a", "b.png": PICTURES[0], "b.txt": b"\xff"})
    )
    dataset = UnifiedDataset(tmp_path / "bad.tar")
    with pytest.raises(DataError, match=r"bad\.tar/a\.png"):
        dataset[0]
    with pytest.raises(DataError, match=r"b\.txt is not UTF-8"):
        dataset[1]


CAPTIONS = {
    "a.txt a.caption": ({"a.txt": b"a ball", "a.caption": b"a cube"}, "has two captions: a.caption and a.txt"),
    "equal a.txt a.caption": ({"a.txt": b"a ball", "a.caption": b"a ball"}, "has two captions: a.caption and a.txt"),
    "other json": ({"a.txt": b"a ball", "a.json": b'{"text": "a cube"}'}, "has two captions: a.json and a.txt"),
    "same json": ({"a.txt": b"a ball\n", "a.json": b'{"caption": " a ball", "n": 1}'}, "a ball"),
    "json of no caption": ({"a.txt": b"a ball", "a.json": b'{"n": 1}'}, "a ball"),
    "two keys": ({"a.json": b'{"text": "a cube", "prompt": "a ball"}'}, "has captions in 'prompt' and 'text'"),
    "two equal keys": ({"a.json": b'{"text": "a ball", "prompt": "a ball"}'}, "a ball"),
    "a list": ({"a.json": b'{"caption": ["a ball", "a cube"]}'}, ("a ball", "a cube")),
    "not UTF-8": ({"a.txt": b"\xff"}, "a.txt is not UTF-8"),
}


@pytest.mark.parametrize("name", CAPTIONS)
def test_a_caption_in_a_tar_is_or_is_refused_as_beside_a_file(tmp_path: Path, name: str) -> None:
    files, expected = CAPTIONS[name]
    files = {"a.png": PICTURES[0], **files}
    (tmp_path / "a.tar").write_bytes(tar_of(files))
    (tmp_path / "folder").mkdir()
    for each, content in files.items():
        (tmp_path / "folder" / each).write_bytes(content)

    def outcome(place: Path) -> Any:
        try:
            found = UnifiedDataset(place).prompts(0)
            return found[0] if len(found) == 1 else found
        except DataError as error:
            return error.problem

    for found in (outcome(tmp_path / "folder"), outcome(tmp_path / "a.tar")):
        assert found == expected or (isinstance(found, str) and isinstance(expected, str) and expected in found)


def test_a_table_in_a_tar_is_the_table_of_the_tar(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(
        tar_of({"sub/a.png": PICTURES[1], "metadata.csv": b"image,prompt\nsub/a.png,a ball"})
    )
    dataset = UnifiedDataset(tmp_path / "a.tar")
    assert (len(dataset), dataset[0]["prompt"], dataset.location(0)) == (
        1,
        "a ball",
        f"{tmp_path}/a.tar/metadata.csv row 1 (line 2)",
    )
    assert dataset[0]["image"] is not None


@pytest.mark.parametrize("name", ["one", "hub", "one/metadata.parquet"])
def test_the_limit_of_copies_is_taken_for_parquet_tables_on_a_disk_and_holds(
    places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(LIMIT, "1")
    path = Path(places["disk"]) / name
    with pytest.raises(RemoteError, match="larger than all local copies may be together"):
        validate(DatasetValidateOptions(path=path, remote_cache_gb=1e-8, recheck=True, workers=1))


@pytest.mark.parametrize("name", ["plain", "tars", "tars/shard-08.tar", "tars/shard-{08..09}.tar"])
def test_the_limit_of_copies_is_refused_where_nothing_is_copied(places: dict[str, str], name: str) -> None:
    with pytest.raises(UsageError, match="--remote-cache-gb has no effect on files of this machine that are in no Par"):
        DatasetValidateOptions(path=Path(places["disk"]) / name, remote_cache_gb=1)


@pytest.mark.parametrize(("name", "suffix"), [("tars", ".json"), ("one", ".arrow"), ("hub", ".arrow")])
def test_what_lies_in_archives_on_a_disk_is_read_in_its_place(
    places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, suffix: str
) -> None:
    """Beside the index of a tar, and the column of a table, no copy is made."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    index_of.cache_clear()  # of tests before
    path = Path(places["disk"]) / name
    validate(DatasetValidateOptions(path=path, recheck=True, workers=1))
    assert [row["image"].size for row in UnifiedDataset(path)] == [
        row["image"].size for row in UnifiedDataset(Path(places["disk"]) / "plain")
    ]
    assert {each.suffix for each in (tmp_path / "dsctl" / "remote").iterdir()} - {""} == {suffix}


def test_clips_in_a_tar_are_those_of_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    (tmp_path / "folder").mkdir()
    alone = [write(tmp_path / "folder" / f"a.{suffix}") for suffix in CODECS]
    files = {"a.png": PICTURES[0], **{f"clips/{path.name}": path.read_bytes() for path in alone}, "b.png": PICTURES[1]}
    (tmp_path / "a.tar").write_bytes(tar_of(files))
    for path in alone:
        inside, stamps = tmp_path / "a.tar" / "clips" / path.name, read_stamps(path)
        assert read_stamps(inside) == stamps
        frames = [[frame.tobytes() for frame in decode(each, [2, 5, 5, 17], stamps)] for each in (path, inside)]
        assert frames[0] == frames[1] and len(frames[0]) == 4
    assert {each.suffix for each in (tmp_path / "own" / "dsctl" / "remote").iterdir()} - {""} == {".json"}


@pytest.mark.parametrize(
    ("about", "allowed"),
    [
        ({"image": "a.png"}, True),
        ({"image": "sub/a.png"}, True),
        ({"edit_image": "a.edit_image.png", "image": None}, True),
        ({"image": "b.png"}, False),
        ({"edit_image": "sub/a.png"}, False),
        ({"edit_image": ["sub/a.edit_image.png"]}, False),
        ({"image": {"bytes": ""}}, False),
        ({"image": ""}, False),
    ],
)
def test_a_column_of_files_in_the_json_of_a_sample_is_that_of_the_sample_or_refused(
    tmp_path: Path, about: dict[str, Any], allowed: bool
) -> None:
    files = {"sub/a.png": PICTURES[0], "sub/a.edit_image.png": PICTURES[1], "sub/a.json": json.dumps(about).encode()}
    (tmp_path / "a.tar").write_bytes(tar_of(files))
    keys = ("image", "edit_image")
    if allowed:
        assert (
            UnifiedDataset(tmp_path / "a.tar", data_file_keys=keys).files(0, "edit_image")[0].name == "a.edit_image.png"
        )
    else:
        with pytest.raises(DataError, match=r"sub/a\.json has the key '.*image', which is a column of files"):
            UnifiedDataset(tmp_path / "a.tar", data_file_keys=keys)


LEFT = {
    "further files": ({"sub/metadata.csv": b"x", "b.txt": b"x", "b.cls": b"1"}, {".csv": 1, ".txt": 1, ".cls": 1}),
    "of the sample": ({"a.cls": b"1", "a.seg.png": b"x", "a.b.txt": b"x"}, {".cls": 1, ".png": 1, ".txt": 1}),
    "hidden": ({".hidden.png": b"x", "sub/._a.png": b"x", ".DS_Store": b"x"}, {"hidden": 3}),
    "without a stem": ({"README": b"x", "sub/LICENSE": b"x", "c.": b"x"}, {"without a suffix": 3}),
}


@pytest.mark.parametrize("name", LEFT)
def test_each_file_of_a_tar_that_no_row_has_is_counted_once(tmp_path: Path, name: str) -> None:
    files, expected = LEFT[name]
    files = {"a.png": PICTURES[0], "a.txt": b"a ball", **files}
    (tmp_path / "a.tar").write_bytes(tar_of(files, link=("symlink.png", "a.png")))
    assert dict(UnifiedDataset(tmp_path / "a.tar").metadata.left_out.suffixes) == {**expected, "symbolic links": 1}
