"""Build the dataset that the options describe, with the sizes that a model family needs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dsctl_core.data.buckets import ImageToBucket
from dsctl_core.data.captions import Captions
from dsctl_core.data.dataset import SINGLE_COLUMNS, UnifiedDataset
from dsctl_core.data.defaults import for_one_or_several
from dsctl_core.data.frame_rule import FrameRule
from dsctl_core.data.images import LoadImage
from dsctl_core.data.kinds import media_suffixes
from dsctl_core.data.known_files import KnownFiles
from dsctl_core.data.masks import MASK, alpha_operator, refuse_opaque
from dsctl_core.data.operators import ToAbsolutePath
from dsctl_core.data.problems import DataError
from dsctl_core.data.several import SeveralDatasets
from dsctl_core.data.sizes import ImageCropAndResize, Resize
from dsctl_core.errors import UsageError
from dsctl_core.family import Family
from dsctl_core.files.digest import digest
from dsctl_core.options.data import DataOptions, ReadingOptions
from dsctl_core.options.effects import NO_REMOTE
from dsctl_core.options.model_effects import PICTURES_ONLY
from dsctl_core.remote.archives import is_copied
from dsctl_core.remote.local import limit_disk

# Options on which it does not depend whether a row can be used.
NOT_CHECKED = frozenset({"recheck", "remote_cache_gb", "on_bad_sample", "dataset_repeat", "dataset_num_workers"})


def build_dataset(
    options: DataOptions,
    family: Family,
    defaults: Mapping[str, Any],
    division_factor: int | None = None,
    pictures: Sequence[str] = (),
    *,
    remember: bool = False,
    copied: bool = False,
) -> UnifiedDataset:
    """Build the dataset of `options`, or the several of its tables, for a model family.

    `defaults` are option values of the preset; they apply where the user set none. `division_factor` is that of these
    weights (None: the family's). `pictures` are columns of pictures, one in each row, that are loaded beside those of
    the options. With `remember` the user's cache folder is asked, and told, what is known of the files. `copied` says
    that the command makes local copies of something else at an address. Raises `UsageError` for a video option with a
    family of image models.
    """
    limit_disk(options.remote_cache_gb)
    if options.has_tables:
        tables = options.tables()
        if not copied and not any(is_copied(path) for each in tables for path in each.paths.values()):
            NO_REMOTE.refuse(options)
        parts = [
            _build_one(options.of_table(each), family, defaults, division_factor, each.caption, pictures, remember)
            for each in tables
        ]
        dataset: UnifiedDataset = SeveralDatasets(parts, tables, options.dataset_repeat)
    else:
        dataset = _build_one(options, family, defaults, division_factor, pictures=pictures, remember=remember)
    if MASK in options.extra_inputs and MASK not in dataset.data_file_keys:
        raise UsageError(
            f"--extra-inputs has {MASK}, and nothing says where masks are",
            hint=f"give --data-file-keys {','.join([*options.data_file_keys, MASK])}, or --mask-from-alpha",
        )
    return dataset


def _build_one(
    options: DataOptions,
    family: Family,
    defaults: Mapping[str, Any],
    division_factor: int | None = None,
    caption: str | None = None,
    pictures: Sequence[str] = (),
    remember: bool = False,
) -> UnifiedDataset:
    assert options.dataset_base_path is not None  # the options require it where there is no cache
    base = options.dataset_base_path
    resize = build_resize(options, division_factor or family.division_factor, defaults.get("max_pixels"))
    clips = family.time_division is not None
    known = KnownFiles(base, clips=clips, remember=remember, recheck=options.recheck)
    if family.time_division is None:
        PICTURES_ONLY.refuse(options, title=family.title)
        operator = UnifiedDataset.default_image_operator(
            base, allow_outside=options.allow_outside, resize=resize, convert_RGBA=family.decomposes, known=known
        )
        of_clip, every = None, None
    else:
        factor, remainder = family.time_division
        frames = options.num_frames or defaults.get("num_frames", 81)
        of_clip = partial(  # which worker processes can be sent
            UnifiedDataset.default_video_operator,
            base,
            num_frames=frames,
            time_division_factor=factor,
            time_division_remainder=remainder,
            fps=options.fps,
            short=options.short_clips,
            extraction=options.clip_extraction,
            allow_outside=options.allow_outside,
            resize=resize,
            known=known,
        )
        operator = of_clip()
        rule = FrameRule(frames, factor, remainder, options.fps, options.short_clips, options.clip_extraction)
        every = rule if rule.extraction == "every" else None
    if options.mask_from_alpha and MASK in options.data_file_keys:
        raise UsageError(
            f"--mask-from-alpha is given, and --data-file-keys names a column {MASK}", hint="give one of them"
        )
    target, masked = options.data_file_keys[0], options.mask_from_alpha
    from_alpha = alpha_operator(base, resize, allow_outside=options.allow_outside, clips=clips, known=known)
    alpha = {MASK: from_alpha} if masked else {}
    whole = for_one_or_several(ToAbsolutePath(base, options.allow_outside) >> LoadImage(family.decomposes))
    dataset = UnifiedDataset(
        base_path=base,
        metadata_path=options.dataset_metadata_path,
        repeat=options.dataset_repeat,
        data_file_keys=tuple(dict.fromkeys([*options.data_file_keys, *alpha, *pictures])),
        main_data_operator=operator,
        special_operator_map={
            **alpha,
            **{key: whole for key in options.data_file_keys if key in family.whole_inputs},
        },
        columns=options.columns,
        allow_outside=options.allow_outside,
        optional_keys=(*family.optional_inputs, MASK),
        single_keys=(*SINGLE_COLUMNS, MASK, *pictures, *family.along_inputs),
        list_keys=family.list_inputs,
        aligned_keys=family.aligned_inputs,
        along_keys=family.along_inputs,
        whole_keys=family.whole_inputs,
        companions=family.companion_inputs,
        captions=Captions(options.caption_prefix, options.caption_suffix, options.caption_dropout),
        copies=dict.fromkeys(alpha, target),
        caption=caption,
        clip_operator=of_clip,
        every_clip=every,
        frame_keys=family.frame_columns,
        known=known,
    )
    dataset.reading = _reading(options, family, defaults, division_factor, caption, pictures)
    if masked:
        refuse_opaque(path for number in dataset.rows_in_use for path in _found_files(dataset, number, target))
    return dataset


def _reading(
    options: DataOptions,
    family: Family,
    defaults: Mapping[str, Any],
    division_factor: int | None,
    caption: str | None,
    pictures: Sequence[str],
) -> str:
    """Return a digest of all that `_build_one` makes a dataset of, besides the files."""
    inputs = (family.optional_inputs, family.list_inputs, family.aligned_inputs, family.time_division)
    about = [family.name, family.decomposes, family.division_factor, *map(str, inputs)]
    values = {name: value for name, value in options.flat_values("json").items() if name not in NOT_CHECKED}
    return digest([values, division_factor, caption, list(pictures), about, _as_json(defaults)])


def _as_json(values: Mapping[str, Any]) -> str:
    return json.dumps(dict(values), sort_keys=True, default=str)


def _found_files(dataset: UnifiedDataset, number: int, key: str) -> list[Path]:
    """Return the files in the cell `key` of a row; none where the cell is wrong, which is found where it is checked."""
    try:
        return dataset.files(number, key)
    except DataError:
        return []


def refuse_file_names(dataset: UnifiedDataset, extra_inputs: Sequence[str]) -> None:
    """Raise a UsageError for an extra input whose column has the names of media files that are not to be loaded."""
    for name in extra_inputs:
        for number in dataset.rows_in_use if name not in dataset.data_file_keys else ():
            cell = dataset.metadata.rows.cell(number, name)
            for each in cell if isinstance(cell, list) else [cell]:
                if isinstance(each, str) and Path(each).suffix.lower() in media_suffixes():
                    raise UsageError(
                        f"--extra-inputs has {name}, whose column has files such as {each!r}, but they are not loaded",
                        hint=f"give --data-file-keys {','.join([*dataset.data_file_keys, name])} too",
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
