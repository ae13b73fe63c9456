"""Write the tables of docs/guides/memory.md: what fits which GPU, for training and drawing with every published preset.

python docs/memory_table.py            # from docs/memory_table.json, which memory_predictions.py has made
python docs/memory_table.py --check    # say whether the page is current
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dsctl_core.commands.infer_offload import SPARE, fitted
from dsctl_core.errors import DsctlError
from dsctl_core.options import TrainOptions
from dsctl_core.training.fit.choose import choose
from dsctl_core.training.fit.fit import GB

sys.path.insert(0, str(Path(__file__).parent))
from memory_predictions import CARDS, FORMATS, KINDS, drawing_of, key_of, prediction_of, read

PAGE = Path(__file__).with_name("guides") / "memory.md"
BEGIN, END = "<!-- tables: python docs/memory_table.py -->\n", "<!-- end of tables -->\n"
NO = "-"
TITLES = {"lora": "LoRA of rank 32", "full": "the whole denoiser", "infer": "a picture or clip"}
DATA = "--dataset-base-path DATA --output-path OUT"
ABOUT = {
    "lora": f"`dsctl train sft --model MODEL {DATA} --lora-rank 32 --fit 24`, for a GPU of 24 GB:",
    "full": f"`dsctl train sft --model MODEL {DATA} --trainable-models dit --fit 141`:",
    "infer": '`dsctl infer --model MODEL --prompt "..."`, and where it says so with `--quantize`:',
}


def tables(data: dict[str, Any]) -> str:
    """Return the three tables, each with the command that does what it says."""
    parts = []
    for kind, title in TITLES.items():
        cell_of: Callable[[dict[str, Any], int], str] = drawn if kind == "infer" else partial(trained, KINDS[kind])
        rows: dict[tuple[str, ...], list[str]] = {}
        for preset, like in data["same"].items():
            if like in data["predictions"]:
                cells = tuple(cell_of(data["predictions"][like][kind], card) for card in CARDS)
                rows.setdefault(cells, []).append(preset)
        lines = [f"| {', '.join(names)} | {' | '.join(cells)} |" for cells, names in rows.items() if set(cells) != {NO}]
        none = [name for cells, names in rows.items() if set(cells) == {NO} for name in names]
        heads = [f"| {title} | {' | '.join(f'{card} GB' for card in CARDS)} |", "|---" * (len(CARDS) + 1) + "|"]
        more = [f"\nOn none of these: {', '.join(none)}."] if none else []
        parts.append("\n".join([ABOUT[kind], "", *heads, *lines, *more]) + "\n")
    return "\n".join(parts)


def trained(asked: dict[str, Any], known: dict[str, Any], card: int) -> str:
    """Return what --fit chooses on a GPU of `card` GB, and the peak in GiB."""
    if not known:  # its weights alone are too large
        return NO
    options = TrainOptions(model="tiny", dataset_base_path="data", output_path="out", **asked)
    try:
        found = choose(options, card * GB, lambda levers: prediction_of(known[key_of(levers)]), FORMATS)
    except DsctlError:
        return NO
    words, levers = [], found.chosen
    if levers.get("use_gradient_checkpointing"):
        some = levers.get("gradient_checkpointing_blocks")
        words.append("R" if some is None else f"R {some}")
    if levers.get("use_gradient_checkpointing_offload"):
        words.append("I")
    words += [part.replace("text_encoder", "text") for part in levers.get("quantize", ())]
    if levers.get("offload_blocks"):
        words.append(f"B {levers['offload_blocks']}")
    return f"{', '.join(words) or 'as it is'} ({found.peak / GB:.0f})"


def drawn(known: dict[str, Any], card: int) -> str:
    """Return what waits in main memory on a GPU of `card` GB, and the peak in GiB."""
    room = int(card * GB * (1 - SPARE))
    for held, memory in known.items():
        waiting, needed = fitted(drawing_of(memory), room)
        if needed <= room:
            place = {"none": "as it is", "components": "C", "blocks": f"B {waiting.blocks}"}[waiting.place]
            formats = held.replace("text_encoder", "text").split(",") if held else []
            return f"{', '.join([place, *formats])} ({needed / GB:.0f})"
    return NO


def page() -> str:
    """Return the page with its tables as they should be."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n{tables(read())}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Write the page, or check it."""
    wanted = page()
    if "--check" not in sys.argv:
        PAGE.write_text(wanted, encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != wanted:
        sys.exit("error: docs/guides/memory.md is not current\nhint: python docs/memory_table.py")


if __name__ == "__main__":
    main()
