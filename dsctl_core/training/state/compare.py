"""Check that a run may resume from a saved state: all that its results depend on must be unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.checkpoint.identify import weight_files
from dsctl_core.checkpoint.load import find_component_paths
from dsctl_core.data import UnifiedDataset
from dsctl_core.data.identity import identity_of_dataset
from dsctl_core.errors import DsctlError, UsageError, unknown_name
from dsctl_core.families.resolve import ResolvedModel
from dsctl_core.files.digest import digest, weights_identity
from dsctl_core.files.json import through_json
from dsctl_core.options import TrainOptions
from dsctl_core.options.datasets import DatasetTable
from dsctl_core.readable import counted
from dsctl_core.remote.address import place_of
from dsctl_core.training.optim.lr_schedule import follows_length
from dsctl_core.training.state.contents import model_files, option_contents
from dsctl_core.training.state.folder import SavedState

# Options that change no result and may differ in a resumed run. All others are compared. The length of a run changes
# some results: if the learning rate depends on it, the total number of steps is compared as "max_steps".
FREE = frozenset(
    {
        # paths and names: the content is compared instead, as "dataset" and "model"
        *("model", "model_paths", "model_id_with_origin_paths", "tokenizer_path", "from_cache", "cache"),
        *("dataset_base_path", "dataset_metadata_path", "allow_outside"),
        *("dataset", "dataset_config"),  # by table: see `table_settings`
        # the length of the run, and when and in what format files are written
        *("output_path", "resume", "allow_changed", "save_steps", "state_total_limit", "num_epochs", "max_steps"),
        *("max_hours", "mirror"),
        *("lora_format", "lora_dtype", "remove_prefix_in_ckpt", "trigger_words"),
        # how the work is divided; the samples of a step are compared instead, as "samples_per_step"
        *("batch_size", "gradient_accumulation_steps", "dataset_num_workers", "find_unused_parameters", "device"),
        *("use_gradient_checkpointing", "use_gradient_checkpointing_offload", "on_bad_sample", "trust_template"),
        *("gradient_checkpointing_blocks", "offload_blocks", "dry_run", "dry_run_nodes", "recheck", "remote_cache_gb"),
        *("num_processes", "accelerate_config", "process_timeout"),
        # callbacks that only observe the run
        *("track", "track_project", "validation_every", "sample_every", "sample_prompt", "sample_prompts_file"),
        *("sample_negative_prompt", "sample_height", "sample_width", "sample_steps", "sample_cfg_scale", "sample_seed"),
        # the resolved value is compared in the loop
        "mixed_precision",
    }
)
# Values that are compared beside options, and their descriptions
DATASETS = "datasets"
OTHERS = {
    DATASETS: "names of the datasets",
    "task": "task",
    "dataset": "dataset",
    "dataset_files": "content of the dataset's files",
    "model": "model",
    "model_files": "configs, schedule or tokenizers of the model",
    "lora": "content of --lora, or its scale,",
    "preset_lora_path": "content of --preset-lora-path",
    "lora_checkpoint": "content of --lora-checkpoint",
    "controlnet": "weights of --controlnet, or its scale,",
    "template": "code of --template, or its frozen weights,",
    "samples_per_step": "number of samples a step (processes x batch size x accumulation)",
    "samples": "number of samples an epoch",
    "max_steps": "number of steps in all, which the course of the learning rate depends on,",
    "batches_of": "batch size, with pictures of several shapes",
}


def identity_of(
    options: TrainOptions, resolved: ResolvedModel, source: UnifiedDataset | CachedDataset, rate: float
) -> dict[str, Any]:
    """Return all that the results of a run depend on: its resolved options, its data and its weights.

    Dataset, cache, model, LoRAs and template are identified by their content, not by their path.
    """
    given = {name: value for name, value in options.flat_values("json").items() if name not in FREE}
    for name, value in given.items():
        if isinstance(options.value_of(name), Path):
            given[name] = place_of(Path(value))
    cached = isinstance(source, CachedDataset)
    if follows_length(options.optim) and options.training.max_steps is not None:
        given["max_steps"] = options.training.max_steps
    running = _running(options, resolved) if cached else None
    files = {}
    if isinstance(source, UnifiedDataset):
        files["dataset_files"] = identity_of_dataset(source).files
    return {
        **given,
        **option_contents(options, resolved),
        **files,
        **table_settings(source.tables),
        "model_files": model_files(resolved, running, readers=not cached),
        "learning_rate": rate,
        "task": source.manifest.recipe.task if isinstance(source, CachedDataset) else options.loss_task,
        "dataset": digest([entry.key for entry in source.entries])
        if isinstance(source, CachedDataset)
        else identity_of_dataset(source).rows,
        "model": _model_identity(resolved, running),
    }


def table_settings(tables: Sequence[DatasetTable]) -> dict[str, Any]:
    """Return what the tables of several datasets say, {"NAME.key": value}, without where they are."""
    found: dict[str, Any] = {}
    for table in tables:
        values = {name: None for name in type(table).model_fields if name not in ("path", "metadata", "name")}
        values |= table.model_dump(mode="json", include=set(values))
        found |= {f"{table.label}.{name}": value for name, value in values.items()}
    return {DATASETS: [table.label for table in tables], **found} if tables else {}


def _running(options: TrainOptions, resolved: ResolvedModel) -> list[str]:
    """Return the components that training from a cache runs: the trained ones, and all denoisers if none is trained."""
    denoisers = [denoiser.name for denoiser in resolved.parts.denoisers]
    trained = options.trained_components
    return [*trained, *(() if set(trained) & set(denoisers) else denoisers)]


def _model_identity(resolved: ResolvedModel, components: Sequence[str] | None) -> str:
    """Return a hash of the weights of `components` (None: all that are on the disk)."""
    names = [each.name for each in resolved.family.components] if components is None else components
    found = {}
    for name in dict.fromkeys(names):
        try:
            folder = find_component_paths(resolved.family, resolved.configs_of([name])).components.get(name)
        except DsctlError:
            continue  # not on the disk; loading raises an error if it is needed
        if folder is not None:
            found[name] = weights_identity(weight_files(folder))
    settings = [dict(resolved.parts.settings)] if resolved.parts.settings else []
    return digest([resolved.family.name, found, *settings])


def require_steps_left(state: SavedState, total: int) -> None:
    """Raise a DsctlError if a run has finished all its `total` steps."""
    if state.step >= total:
        raise DsctlError(
            f"the run in {state.output_path} is done: {state.step} of {counted(total, 'step')}",
            hint="give more --max-steps, or --num-epochs, to train on",
        )


def refuse_changes(
    saved: Mapping[str, Any], current: Mapping[str, Any], allowed: Sequence[str], where: Path
) -> dict[str, list[Any]]:
    """Raise a UsageError if `current` differs from `saved`, of the state in `where`; return the allowed differences.

    Names that only one of the two has are compared with None, except for whole groups that one of them lacks.
    """
    current = through_json(current)  # the same round trip through JSON as for `saved`
    known = sorted({*saved, *current, *OTHERS})
    for name in allowed:
        if name not in known:
            raise unknown_name("option in --allow-changed", name, known)
    both = [name for name in current if name in saved]
    changed = {name: [saved[name], current[name]] for name in both if saved[name] != current[name]}
    refused = {name: values for name, values in changed.items() if name not in allowed}
    if not refused:
        return changed
    told = [f"{_called(name)} was {_shown(old)}, now it is {_shown(new)}" for name, (old, new) in refused.items()]
    raise UsageError(
        f"{where} cannot be resumed from, for the results would change: {'; '.join(told)}",
        hint=f"give the old value, or let the change through with --allow-changed {','.join(refused)}",
    )


def _called(name: str) -> str:
    label, dot, key = name.rpartition(".")
    if dot:
        return f"{key} of [[dataset]] {label}"
    return f"the {OTHERS[name]}" if name in OTHERS else f"--{name.replace('_', '-')}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_shown, value)) or "empty"
    text = "not given" if value is None else str(value)
    return f"{text[:12]}..." if len(text) == 64 and text.isalnum() else text
