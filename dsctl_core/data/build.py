"""Build the dataset that the options describe, with the sizes that a model family needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsctl_core.data.buckets import ImageToBucket
from dsctl_core.data.captions import Captions
from dsctl_core.data.dataset import UnifiedDataset
from dsctl_core.data.sizes import ImageCropAndResize, Resize
from dsctl_core.errors import UsageError
from dsctl_core.family import Family
from dsctl_core.options.data import DataOptions, ReadingOptions


def build_dataset(
    options: DataOptions, family: Family, defaults: Mapping[str, Any], division_factor: int | None = None
) -> UnifiedDataset:
    """Build the dataset of `options` for a model family.

    `defaults` are option values of the preset; they apply where the user set none. `division_factor` is that of these
    weights (None: the family's). Raises `UsageError` for a video option with a family of image models.
    """
    assert options.dataset_base_path is not None  # the options require it where there is no cache
    base = options.dataset_base_path
    resize = build_resize(options, division_factor or family.division_factor, defaults.get("max_pixels"))
    if family.time_division is None:
        _refuse_video_options(options, family)
        operator = UnifiedDataset.default_image_operator(base, allow_outside=options.allow_outside, resize=resize)
    else:
        factor, remainder = family.time_division
        operator = UnifiedDataset.default_video_operator(
            base,
            num_frames=options.num_frames or defaults.get("num_frames", 81),
            time_division_factor=factor,
            time_division_remainder=remainder,
            fps=options.fps,
            short=options.short_clips,
            allow_outside=options.allow_outside,
            resize=resize,
        )
    return UnifiedDataset(
        base_path=base,
        metadata_path=options.dataset_metadata_path,
        repeat=options.dataset_repeat,
        data_file_keys=options.data_file_keys,
        main_data_operator=operator,
        columns=options.columns,
        allow_outside=options.allow_outside,
        optional_columns=family.optional_columns,
        captions=Captions(options.caption_prefix, options.caption_suffix, options.caption_dropout),
    )


def build_resize(options: ReadingOptions, division_factor: int, native_max_pixels: int | None) -> Resize:
    """Return the operator that resizes images.

    `native_max_pixels` is the limit of the model; it applies unless the user set `max_pixels` or a size.
    """
    if options.resolutions:
        return ImageToBucket(options.resolutions, division_factor)
    use_option = options.given("max_pixels") or native_max_pixels is None
    max_pixels = options.max_pixels if use_option else native_max_pixels
    return ImageCropAndResize(
        options.height,
        options.width,
        None if options.height is not None else max_pixels,
        division_factor,
        division_factor,
    )


def _refuse_video_options(options: ReadingOptions, family: Family) -> None:
    for name in ("num_frames", "fps", "short_clips"):
        if getattr(options, name) != type(options).model_fields[name].default:
            raise UsageError(
                f"--{name.replace('_', '-')} has no effect: {family.title} generates images, not videos",
                hint="leave it out, or choose a model for videos",
            )
