"""Every way in which a dataset was seen to be wrong: how to make it so, and what must be said about it."""

from __future__ import annotations

from tests.dsctl.commands.spoiled import (
    Bad,
    animated,
    bomb,
    captions_beside,
    copied,
    cut,
    damaged_in_the_middle,
    edited,
    link,
    loop_of_folders,
    metadata,
    pairs,
    parquet,
    picture,
    row,
    smaller_copy,
    swapped,
    two_tables,
    unknown_pixels,
    video,
)

JSON = '[{"image": "a.png", "prompt": "a dog"},\n {"image": "b.png", "prompt": '
LISTS = '{"image": "a.png", "style": [], "prompt": "x"}\n'
FEW = ("--num-frames", "5")

BAD = {
    "missing file": Bad(row("gone.webp,x"), "missing file", "row 5 (line 6), image 'gone.webp'", "remove the row"),
    "misspelt file": Bad(row("B.PNG,x"), "missing file", "B.PNG does not exist", "did you mean 'b.png'?"),
    "missing folder": Bad(row("no/a.png,x"), "missing file", "no/a.png does not exist", "there is no folder"),
    "folder for a file": Bad(lambda f: [(f / "x").mkdir(), row("x,x")(f)], "path", "x is a folder", "name a file"),
    "truncated png": Bad(cut("x.png", 0.7), "damaged file", "x.png is damaged or cut off (", "download the file again"),
    "truncated jpeg": Bad(cut("x.jpg", 0.7), "damaged file", "x.jpg is damaged or cut off (", "download"),
    "truncated webp": Bad(cut("x.webp", 0.7), "damaged file", "x.webp is damaged or cut off (", "download"),
    "damaged in the middle": Bad(
        damaged_in_the_middle, "damaged file", "row 2 (line 3), image 'b.png'", "download", seen_by_train=False
    ),
    "not a picture": Bad(row("x.png,x", "x.png", b"hello"), "not a picture", "x.png is not a picture", "download"),
    "zero bytes": Bad(row("x.png,x", "x.png", b""), "not a picture", "x.png is empty (0 bytes)", "download"),
    "web page": Bad(
        row("x.jpg,x", "x.jpg", b"<!DOCTYPE html>"), "not a picture", "is a web page", "the picture itself"
    ),
    "git-lfs pointer": Bad(
        row("x.png,x", "x.png", b"version https://git-lfs.github.com/spec/v1"),
        "not a picture",
        "is a git-lfs pointer",
        "git lfs pull",
    ),
    "heic": Bad(row("x.jpg,x", "x.jpg", b"\0\0\0 ftypheic" + bytes(9)), "not a picture", "a HEIC picture", "again"),
    "unknown pixels": Bad(unknown_pixels, "not a picture", "pixels of mode 'F'", "8-bit RGB"),
    "wrong suffix": Bad(picture((96, 64), "x.jpg", "PNG"), "wrong suffix", "x.jpg is a PNG", "right suffix", "warning"),
    "no prompt column": Bad(
        metadata("metadata.csv", "image,promt\na.png,x\n"), "column", "no column 'prompt'", "--column prompt=promt"
    ),
    "no image column": Bad(
        metadata("metadata.csv", "file,prompt\na.png,x\n"), "column", "no column 'image'", "--column image"
    ),
    "empty prompt": Bad(row("a.png,"), "caption", "row 5 (line 6), prompt '': the cell is empty", "add a text"),
    "blank prompt": Bad(row('a.png,"  "'), "caption", "row 5 (line 6), prompt '", "add a text"),
    "empty file cell": Bad(row(",x"), "missing file", "image '': the cell is empty", "remove the row"),
    "number for a prompt": Bad(
        metadata("metadata.jsonl", '{"image": "a.png", "prompt": 7}'), "caption", "the number 7, not text", "quotes"
    ),
    "half a character": Bad(
        metadata("metadata.jsonl", '{"image": "a.png", "prompt": "\\ud83d"}'),
        "caption",
        "an unpaired surrogate",
        "again",
    ),
    "only a header": Bad(metadata("metadata.csv", "image,prompt\n"), "table", "has a header but no rows", "one row"),
    "empty table": Bad(metadata("metadata.csv", ""), "table", "metadata.csv is empty", "one row"),
    "cut-off json": Bad(metadata("metadata.json", JSON), "table", "metadata.json line 2, column", "cut off"),
    "cut-off jsonl": Bad(
        metadata("metadata.jsonl", '{"image": "a.png", "prompt": "x"}\n{"image'), "table", "row 2 (line 2)", "cut off"
    ),
    "duplicate header": Bad(
        metadata("metadata.csv", "image,prompt,image\n"), "table", "'image' twice in its header", "rename or remove"
    ),
    "duplicate key": Bad(
        metadata("metadata.json", '[{"image": "a", "image": "b"}]'), "table", "the key 'image' twice", "keep one"
    ),
    "too many cells": Bad(row("a.png,a red, round ball"), "table", "has 3 cells, but the header has 2", "quotes"),
    "too few cells": Bad(row("a.png"), "table", "has 1 cells, but the header has 2", "add a value for 'prompt'"),
    "semicolons": Bad(
        metadata("metadata.csv", "image;prompt\na.png;x;y\n"), "table", "3 cells, but the header has 2", "semicolon"
    ),
    "latin-1": Bad(metadata("metadata.csv", b"image,prompt\na.png,caf\xe9\n"), "table", "line 2 is not UTF-8", "iconv"),
    "utf-16": Bad(metadata("metadata.csv", "image,prompt\n".encode("utf-16")), "table", "is UTF-16", "as UTF-8"),
    "damaged parquet": Bad(metadata("metadata.parquet", b"PAR1"), "table", "cannot be read as parquet", "again"),
    "missing value in parquet": Bad(
        parquet([{"image": "a.png", "prompt": None}]), "caption", "prompt None: the cell is empty", "add a text"
    ),
    "damaged picture inside parquet": Bad(
        parquet([{"image": b"x", "prompt": "x"}]), "not a picture", "0/image/file is not a picture", "again"
    ),
    "several tables": Bad(two_tables, "table", "several metadata files", "--dataset-metadata-path"),
    "no table": Bad(lambda folder: (folder / "metadata.csv").unlink(), "table", "no file in it has a caption", "1.txt"),
    "caption missing": Bad(captions_beside(("b.txt", None)), "caption", "row 2 (b.png)", "caption to this file"),
    "caption empty": Bad(captions_beside(("b.txt", b" ")), "caption", "b.txt is empty", "caption to this file"),
    "caption in latin-1": Bad(captions_beside(("b.txt", b"\xe9")), "caption", "b.txt is not UTF-8: byte 0xe9", "UTF-8"),
    "folders in a circle": Bad(loop_of_folders, "path", "is a link to a folder that contains it", "remove the link"),
    "two captions": Bad(
        captions_beside(("b.caption", b"x")), "caption", "b.png has two captions: b.caption and b.txt", "remove one"
    ),
    "caption of nothing visible": Bad(
        captions_beside(("b.txt", b"\xe2\x80\x8b")), "caption", "b.txt is empty", "caption to this file"
    ),
    "raw camera file": Bad(
        captions_beside(("b.nef", b"II*\0")), "not a picture", "b.nef is a raw camera file", "convert it to png"
    ),
    "caption alone": Bad(
        captions_beside(("e.txt", b"x")),
        "caption alone",
        "e.txt is the caption of no picture",
        "add the file",
        "warning",
    ),
    "no partner": Bad(
        pairs("target/b.png"),
        "partner",
        "row 2 (target/b.png), edit_image (not read): control/ has no picture of the name of target/b.png",
        "or remove target/b.png",
        options=("--data-file-keys", "image,edit_image"),
    ),
    "pair read as one column": Bad(pairs(), "column", "has target/ and control/ with pairs", "image,edit_image"),
    "list of files": Bad(
        metadata("metadata.jsonl", '{"image": ["a.png", "b.png"], "prompt": "x"}'),
        "list",
        "row 1 (line 1), image ['a.png', 'b.png']: the value is a list of 2, but a row has one image",
        'write it as "a.png"',
    ),
    "number for a file": Bad(
        metadata("metadata.jsonl", '{"image": 7, "prompt": "x"}'), "missing file", "the number 7, not a file", '"a.png"'
    ),
    "object for a file": Bad(
        metadata("metadata.json", '[{"image": {"path": "a.png"}, "prompt": "x"}]'),
        "missing file",
        "row 1, image {'path': 'a.png'}: the value is an object, not a file name",
        '"a.png"',
    ),
    "truth for a file": Bad(
        metadata("metadata.jsonl", '{"image": true, "prompt": "x"}'), "missing file", "is true or false, not", '"a.png"'
    ),
    "null for a file": Bad(
        metadata("metadata.jsonl", '{"image": null, "prompt": "x"}'), "missing file", "the cell is empty", "file name"
    ),
    "no key for a file": Bad(
        metadata("metadata.jsonl", '{"image": "a.png", "prompt": "x"}\n{"prompt": "x"}'),
        "missing file",
        "row 2 (line 2), image: the cell is empty",
        "file name",
    ),
    "list of numbers": Bad(
        metadata("metadata.jsonl", '{"image": "a.png", "style": ["b.png", 7], "prompt": "x"}'),
        "missing file",
        "row 1 (line 1), style ['b.png', 7]: the value is the number 7, not a file name",
        '"a.png"',
        options=("--data-file-keys", "image,style"),
        seen_by_train=False,
    ),
    "address of a bucket": Bad(row("s3://bucket/a.png,x"), "path", "is a URL, not a file", "download the file"),
    "picture as text": Bad(row('"data:image/png;base64,AA==",x'), "path", "is a URL, not a file", "download the file"),
    "absolute path": Bad(row("/etc/hosts,x"), "path", "image '/etc/hosts': the path is absolute", "--allow-outside"),
    "path out of the folder": Bad(row("../x.png,x"), "path", "leads out of the dataset folder", "--allow-outside"),
    "address": Bad(row("https://host/a.png,x"), "path", "is a URL, not a file", "download the file"),
    "link in a circle": Bad(link("x.png", "x.png"), "unreadable file", "x.png cannot be read", "check the path"),
    "link to nowhere": Bad(link("x.png", "gone.png"), "missing file", "x.png does not exist", "check the path"),
    "10x10": Bad(picture((10, 10)), "size", "the picture is 10x10 pixels, but both sides must", "a larger picture"),
    "too thin": Bad(
        picture((2000, 18)),
        "size",
        "2000x18 pixels; at 4096 pixels it",
        "--max-pixels",
        options=("--max-pixels", "4096"),
    ),
    "bomb": Bad(
        row("x.png,x", "x.png", bomb()),
        "size",
        "x.png is too large: more than 89478485 pixels, the limit against decompression bombs",
        "scale the picture down",
    ),
    "empty list": Bad(
        metadata("metadata.jsonl", LISTS),
        "list",
        "style []",
        "write it as",
        options=("--data-file-keys", "image,style"),
        seen_by_train=False,
    ),
    "short clip": Bad(video(3), "video", "has 3 frames, but 5 are needed", "longer clip", "error", FEW, False),
    "one frame": Bad(video(1), "video", "has 1 frame, but 5 are needed", "longer clip", "error", FEW, False),
    "cut-off video": Bad(video(20, 0.8), "damaged file", "x.mp4 is cut off", "again", seen_by_train=False),
    "video for pictures": Bad(
        video(9), "not a picture", "is a video, not a picture", "a picture", options=("--model", "tiny")
    ),
    "swapped columns": Bad(
        swapped,
        "swapped columns",
        "every edit_image is the image of another row",
        "--column image=edit_image,edit_image=image",
        "warning",
        ("--data-file-keys", "image,edit_image"),
    ),
    "nothing edited": Bad(
        edited((96, 64), False),
        "same as target",
        "row 1: the edit_image data/reference.jpg is the image itself",
        "before the edit",
        "warning",
        ("--data-file-keys", "image,edit_image"),
    ),
    "another ratio": Bad(
        edited((64, 96), True),
        "aspect ratio",
        "data/reference.jpg is 64x96, but the image is 96x64",
        "crop both",
        "warning",
        ("--data-file-keys", "image,edit_image"),
    ),
    "same bytes": Bad(copied, "same bytes", "e.png has the same bytes as data/a.png (row 1)", "remove one", "warning"),
    "same picture": Bad(smaller_copy, "same picture", "small.jpg shows the same picture as", "remove one", "warning"),
    "same row": Bad(row("a.png,a dog"), "same row", "row 5 is the same as row 1", "remove one", "warning"),
    "animation": Bad(animated, "animation", "x.gif has 2 frames", "use a picture", "warning", ("--model", "tiny")),
    "enlarged": Bad(
        picture((48, 48)),
        "enlarged",
        "x.png is 48x48 and is enlarged 2 times to 96x96",
        "larger picture",
        "warning",
        ("--height", "96", "--width", "96"),
    ),
}
