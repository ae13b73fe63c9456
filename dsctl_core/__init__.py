"""Train and run diffusion transformers: pipelines made of units, and training that reuses them.

Names are imported on first use, so that `import dsctl_core` is fast and loads no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

from dsctl_core.version import __version__

_PUBLIC = {
    "BasePipeline": "dsctl_core.pipeline",
    "DiffusionTrainingModule": "dsctl_core.training.model.module",
    "DirectDistillLoss": "dsctl_core.losses",
    "DsctlError": "dsctl_core.errors",
    "FlowMatchSFTLoss": "dsctl_core.losses",
    "FlowMatchScheduler": "dsctl_core.scheduler",
    "ModelConfig": "dsctl_core.checkpoint.model_config",
    "ModelLogger": "dsctl_core.training.output.logger",
    "PipelineUnit": "dsctl_core.units",
    "TemplatePipeline": "dsctl_core.template.pipeline",
    "UnifiedDataset": "dsctl_core.data",
    "UnitRunner": "dsctl_core.units",
    "assets_path": "dsctl_core.assets",
    "gradient_checkpoint_forward": "dsctl_core.memory",
    "launch_training_task": "dsctl_core.training.loop.loop",
    "load_lora": "dsctl_core.lora",
    "load_state_dict": "dsctl_core.checkpoint.state_dict",
    "load_template_model": "dsctl_core.template.model",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    """Import a public name, or the pipeline class of a family, on first access."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name.endswith("Pipeline"):
        from dsctl_core.families import families, pipeline_class

        for family in families().values():
            if family.pipeline.endswith(f":{name}") or name in family.pipeline_aliases:
                return pipeline_class(family)
    raise AttributeError(f"module 'dsctl_core' has no attribute {name!r}")
