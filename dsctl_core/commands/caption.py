"""`dsctl dataset caption`: write a caption for each picture or clip of a dataset that has none."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.checkpoint.build import one_line
from dsctl_core.commands.caption_files import Captions, Item, open_captions
from dsctl_core.commands.caption_model import Answer, Describer, Shown, check_captioner, load_describer, with_trigger
from dsctl_core.commands.infer import placement
from dsctl_core.data.frame_rule import FrameRule
from dsctl_core.data.images import LoadImage
from dsctl_core.data.sizes import ImageCropAndResize
from dsctl_core.data.video import frame_loader
from dsctl_core.errors import DsctlError
from dsctl_core.options.dataset import DatasetCaptionOptions
from dsctl_core.options.effects import NO_CLIPS
from dsctl_core.progress import NoProgress, Progress
from dsctl_core.random import derive_seed

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaptionResult:
    """How many captions were written, in this run and `earlier` in one that was stopped, and how many were kept.

    `cut` of those that were written were longer than they may be; `failed` files could not be described. `table` is the
    new table, None where the captions are beside the files, or all rows had one.
    """

    table: Path | None
    written: int
    earlier: int
    kept: int
    cut: int
    failed: int


def caption(options: DatasetCaptionOptions, progress: Progress | None = None) -> CaptionResult:
    """Describe each picture or clip without a caption, and write what the model says.

    Nothing that is there is changed: files with a caption, and rows with one, are left as they are. A file that cannot
    be described is left without a caption and told of in a warning. Raises DsctlError for a dataset or a model that
    cannot be read.
    """
    progress = progress or NoProgress()
    check_captioner(options)
    captions = open_captions(options)
    if captions.todo and not any(item.clip for item in captions.todo):
        NO_CLIPS.refuse(options)
    written = cut = failed = 0
    kept = captions.kept
    if captions.todo:
        describer = load_describer(options, *placement(options))
        total = len(captions.todo) + captions.done
        progress.start("Describing", total, captions.done, unit="file")
        for item, answer in _answers(describer, captions, options):
            if answer is None or not answer.text:
                failed += 1
                if answer is not None:
                    logger.warning("%s: the model said nothing", item.name)
            elif captions.write(item, with_trigger(options.trigger_word, answer.text)):
                written, cut = written + 1, cut + answer.cut
            else:
                kept += 1
            progress.advance()
        progress.finish()
    elif not captions.done and options.output is None:
        return CaptionResult(None, 0, 0, kept, 0, 0)  # there is nothing to write
    captions.finish()
    return CaptionResult(captions.table, written, captions.done, kept, cut, failed)


def _answers(
    describer: Describer, captions: Captions, options: DatasetCaptionOptions
) -> Iterator[tuple[Item, Answer | None]]:
    """Yield each file with its caption, or with None if it could not be described, which is logged."""
    size, todo = options.batch_size, captions.todo
    for start in range(0, len(todo), size):
        shown: list[tuple[Item, Shown]] = []
        for item in todo[start : start + size]:
            try:
                shown.append((item, _shown(item, options)))
            except DsctlError as error:
                logger.warning("%s", error.problem)
                yield item, None
        yield from _described(describer, shown)


def _described(describer: Describer, batch: list[tuple[Item, Shown]]) -> Iterator[tuple[Item, Answer | None]]:
    """Yield the captions of a batch; a file that the model does not take fails alone."""
    if not batch:
        return
    try:
        answers: list[Answer | None] = list(describer.describe([shown for _, shown in batch]))
    except ValueError as error:
        if len(batch) > 1:
            for each in batch:
                yield from _described(describer, [each])
            return
        logger.warning("%s: the model does not take it: %s", batch[0][0].name, one_line(error))
        answers = [None]
    yield from zip([item for item, _ in batch], answers, strict=True)


def _shown(item: Item, options: DatasetCaptionOptions) -> Shown:
    """Load the picture, or frames spread over the clip, no larger than they may be."""
    resize: Any = ImageCropAndResize(None, None, options.max_pixels, 1, 1)
    pictures: list[Image]
    if item.clip:
        rule = FrameRule(options.num_frames, 1, 0, None, "shorten", "uniform")
        pictures = frame_loader(item.file, rule, resize)(item.file)
    else:
        pictures = [resize(LoadImage()(item.file))]
    return Shown(pictures, item.clip, derive_seed("caption", options.seed, item.name))
