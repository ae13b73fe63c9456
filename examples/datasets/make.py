"""Writes the same pictures as a dataset of each format that dsctl reads: python examples/datasets/make.py FOLDER."""

import csv
import json
import shutil
import sys
from pathlib import Path

import av
import pyarrow
import pyarrow.parquet
from PIL import Image, ImageDraw

ROBOTS = Path("dsctl_core/assets/datasets/robot")


def main(root: Path) -> None:
    with (ROBOTS / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    shapes = [(96, 96), (128, 72), (72, 128)]
    for name in ("csv", "jsonl", "parquet", "captions", "imagefolder", "edit"):
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, row in enumerate(rows):
            with Image.open(ROBOTS / row["image"]) as picture:
                picture.resize(shapes[number % 3]).save(folder / row["image"])

    with (root / "csv" / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["file", "caption"])
        writer.writeheader()
        writer.writerows({"file": row["image"], "caption": row["prompt"]} for row in rows)

    several = [{**row, "prompt": [row["prompt"], row["prompt"].replace("robot", "machine")]} for row in rows]
    lines = "".join(json.dumps(row) + "\n" for row in several)
    (root / "jsonl" / "metadata.jsonl").write_text(lines, encoding="utf-8")

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), root / "parquet" / "metadata.parquet")

    for row in rows:
        caption = (root / "captions" / row["image"]).with_suffix(".txt")
        caption.write_text(row["prompt"] + "\n", encoding="utf-8")

    lines = "".join(json.dumps({"file_name": row["image"], "text": row["prompt"]}) + "\n" for row in rows)
    (root / "imagefolder" / "metadata.jsonl").write_text(lines, encoding="utf-8")

    edits = [
        {"image": after["image"], "edit_image": [before["image"], rows[0]["image"]], "prompt": "change the background"}
        for before, after in zip(rows[1:], rows[2:], strict=False)
    ]
    (root / "edit" / "metadata.json").write_text(json.dumps(edits, indent=1), encoding="utf-8")

    write_masks(root / "masks", rows)
    write_videos(root / "video", rows[:3])


def write_masks(folder: Path, rows: list[dict[str, str]]) -> None:
    """Write each picture with a mask in which the middle counts."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["image,mask,prompt"]
    for row in rows:
        shutil.copy(ROBOTS / row["image"], folder / row["image"])
        with Image.open(folder / row["image"]) as picture:
            mask = Image.new("L", picture.size)
            ImageDraw.Draw(mask).ellipse((8, 8, picture.width - 8, picture.height - 8), fill=255)
        name = f"mask_{row['image']}"
        mask.save(folder / name)
        lines.append(f'{row["image"]},{name},"{row["prompt"]}"')
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_videos(folder: Path, rows: list[dict[str, str]]) -> None:
    """Write each picture as a clip of 24 frames in which it grows."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lines = ["video,prompt"]
    for number, row in enumerate(rows):
        with (
            Image.open(ROBOTS / row["image"]).convert("RGB") as picture,
            av.open(str(folder / f"{number}.mp4"), "w") as file,
        ):
            stream = file.add_stream("libx264", rate=12)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            for frame in range(24):
                cut = 24 - frame
                shown = picture.resize((96, 64), box=(cut, cut, 96 - cut, 96 - cut))
                file.mux(stream.encode(av.VideoFrame.from_image(shown)))
            file.mux(stream.encode(None))
        lines.append(f"{number}.mp4,{row['prompt']}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/datasets"))
