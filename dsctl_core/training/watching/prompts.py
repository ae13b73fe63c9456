"""What the sample pictures of a run show: prompts from the options, a file or the dataset, with their settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.data import UnifiedDataset
from dsctl_core.errors import DsctlError, UsageError, unknown_name
from dsctl_core.inference import prompt_lines, text_lines

if TYPE_CHECKING:
    from dsctl_core.options import TrainOptions

CAPTIONS = 4  # of the dataset, that are drawn where no prompt is given
KINDS: dict[str, tuple[type, ...]] = {
    "prompt": (str,),
    "negative_prompt": (str,),
    "seed": (int,),
    "height": (int,),
    "width": (int,),
    "num_inference_steps": (int,),
    "cfg_scale": (int, float),
}
LEAST = {"seed": 0, "height": 1, "width": 1, "num_inference_steps": 1, "cfg_scale": 0}


@dataclass(frozen=True)
class SamplePrompt:
    """One picture to draw again and again: the same seed and settings every time. Height and width in pixels."""

    prompt: str
    negative_prompt: str
    seed: int
    height: int
    width: int
    num_inference_steps: int
    cfg_scale: float

    def inputs(self) -> dict[str, Any]:
        """Return what a pipeline is called with."""
        return asdict(self)


def sample_prompts(
    options: TrainOptions, defaults: Mapping[str, Any], trained_size: tuple[int, int] | None, captions: list[str]
) -> list[SamplePrompt]:
    """Return what `options` have drawn.

    What they leave open is the model's own of `defaults`, but for the size: the (height, width) that is trained at,
    where there is one. `captions` are the prompts where none is given.
    """
    rows = _rows(options, captions)
    height, width = options.sample_height, options.sample_width
    if height is None or width is None:
        height, width = trained_size or (defaults["height"], defaults["width"])
    shared = {
        "negative_prompt": options.sample_negative_prompt,
        "height": height,
        "width": width,
        "num_inference_steps": options.sample_steps or defaults["num_inference_steps"],
        "cfg_scale": defaults["cfg_scale"] if options.sample_cfg_scale is None else options.sample_cfg_scale,
    }
    numbered = enumerate(rows)
    prompts = [SamplePrompt(**{**shared, "seed": options.sample_seed + number, **row}) for number, row in numbered]
    for prompt in prompts:
        if prompt.negative_prompt and prompt.cfg_scale == 1:
            raise UsageError(
                "a sample's negative prompt has no effect at a cfg_scale of 1, which is no guidance",
                hint="give a --sample-cfg-scale above 1, or leave out the negative prompt",
            )
    return prompts


def captions_of(dataset: Any) -> list[str]:
    """Return a few different captions from all over the dataset, in order."""
    if not isinstance(dataset, UnifiedDataset):
        return []
    found = dict.fromkeys(
        text
        for number in dataset.numbers
        for text in dataset.captions.texts(dataset.metadata.rows[number].get("prompt"))
    )
    texts = [text for text in found if text.strip()]
    return texts[:: max(-(-len(texts) // CAPTIONS), 1)]


def _rows(options: TrainOptions, captions: list[str]) -> list[dict[str, Any]]:
    file = options.sample_prompts_file
    if file is not None and file.suffix.lower() == ".jsonl":
        return _from_jsonl(file)
    if file is not None:
        return [{"prompt": prompt} for prompt in prompt_lines(file, "--sample-prompts-file")]
    given = [str(prompt) for prompt in options.sample_prompt]
    if not given and not captions:
        raise UsageError(
            "--sample-every is given without a prompt, and the dataset has no captions",
            hint='give --sample-prompt "..." or --sample-prompts-file FILE',
        )
    return [{"prompt": prompt} for prompt in given or captions]


def _from_jsonl(file: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(text_lines(file, "--sample-prompts-file"), 1):
        if line.strip():
            rows.append(_checked(f"--sample-prompts-file {file} line {number}", line))
    if not rows:
        raise DsctlError(
            f"--sample-prompts-file {file} has no prompt in it",
            hint='write lines such as {"prompt": "a cat", "seed": 1}',
        )
    return rows


def _checked(place: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DsctlError(f"{place} is not JSON: {error}", hint='write {"prompt": "a cat", "seed": 1}') from error
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise DsctlError(f"{place} has no prompt", hint='write {"prompt": "a cat", "seed": 1}')
    for name, value in row.items():
        if name not in KINDS:
            raise unknown_name(f"key in {place}", name, [field.name for field in fields(SamplePrompt)])
        if not isinstance(value, KINDS[name]) or isinstance(value, bool) or _too_small(name, value):
            kind = "text" if KINDS[name] == (str,) else f"a number of at least {LEAST[name]}"
            raise DsctlError(f"{place}: {name} is {value!r}", hint=f"{name} takes {kind}")
    if ("height" in row) != ("width" in row):
        raise DsctlError(f"{place} has a height or a width alone", hint="give both, or neither")
    return row


def _too_small(name: str, value: Any) -> bool:
    return name in LEAST and value < LEAST[name]
