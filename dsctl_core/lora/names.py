"""Parse the tensor names of LoRA files: the prefixes, matrices, adapter names and alphas that the trainers write.

A name is prefixes, a layer, and a part: `base_model.model.` + `blocks.0.to_q` + `.lora_A.default.weight`. Sources are
the files of peft, diffusers, kohya's tools and musubi-tuner, ai-toolkit, SimpleTuner, OneTrainer, diffusion-pipe,
DiffSynth-Studio and LyCORIS.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dsctl_core.errors import DsctlError
from dsctl_core.lora.lycoris import LOHA_PARTS, LOKR_PARTS

DENOISER = "dit"
FACTOR = "lokr_factor"  # of a whole LoKr, in files of musubi-tuner

# Prefixes of flat layer names, which have underscores instead of dots.
FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")
# Prefixes around those of any component, and prefixes of the denoiser; longer ones first.
WRAPPERS = ("base_model.model.", "pipe.")
DENOISER_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "unet.")
# Text encoders as other tools name them, which are not the text encoders of the models here.
FLAT_TEXT = re.compile(r"lora_te\d*_")
TEXT = re.compile(r"(?:text_encoder(?:_\d+)?|text_encoders|text_model|cond_stage_model|conditioner|clip_[lg]|t5xxl)\.")
EMBEDDING = re.compile(r"bundle_emb\.")  # embeddings of trigger words, which OneTrainer adds

_ADAPTER = r"(?:\.(?P<adapter>[^.]+))?"  # peft's name of the adapter: "default", "default_0", or the user's own
MATRIX = re.compile(
    r"^(?P<layer>.+)\.(?:(?P<down>lora_A|lora_down|lora\.down|lora_linear_layer\.down)"
    r"|(?P<up>lora_B|lora_up|lora\.up|lora_linear_layer\.up))" + _ADAPTER + r"\.weight$"
)
MAGNITUDE_NAME = re.compile(r"^(?P<layer>.+)\.lora_magnitude_vector(?:\.(?!weight$)(?P<adapter>[^.]+))?(?:\.weight)?$")
OTHER = re.compile(r"^(?P<layer>.+)\.(?P<part>alpha|dora_scale)$")
PRODUCT = re.compile(
    rf"^(?P<layer>.+)\.(?P<part>{'|'.join((*LOKR_PARTS, *LOHA_PARTS))})"
    r"(?:\.(?!weight$)(?P<adapter>[^.]+))?(?:\.weight)?$"
)

# Adapters of other kinds, recognized by a part of their tensor names.
OTHER_KINDS = (
    (re.compile(r"\.b?oft_|\.oft\."), "OFT"),
    (re.compile(r"\.ia3_|\.on_input$"), "IA3"),
    (re.compile(r"\.lora_mid\."), "LoCon with a middle matrix"),
    (re.compile(r"\.[ab][12]\.weight$"), "GLoRA"),
    (re.compile(r"\.vera_lambda_"), "VeRA"),
    (re.compile(r"\.lora_embedding_[AB]"), "LoRA on an embedding"),
    (re.compile(r"\.lora_[AB](\.[^.]+)?\.bias$"), "LoRA with biases"),
    (re.compile(r"\.diff(_b)?$"), "difference of whole weights"),
)


@dataclass(frozen=True)
class TensorName:
    """A parsed tensor name. `component` and `part` are None for what no model here has, and what is not used."""

    component: str | None
    layer: str
    part: str | None  # "down", "up", "magnitude", "alpha", "dora_scale", or a matrix of LoKr or LoHa
    adapter: str | None = None
    flat: bool = False  # the layer has underscores instead of dots


def parse(path: Path, key: str, component_names: Iterable[str]) -> TensorName:
    """Parse the tensor name `key` of the file `path`; raise DsctlError if it is no part of a LoRA, a LoKr or a LoHa.

    `component_names` are the components that a prefix can name; layers without a prefix belong to the denoiser.
    """
    component, bare, flat = split_prefixes(key, tuple(component_names))
    for pattern, kind in OTHER_KINDS:
        if pattern.search(key):
            raise DsctlError(
                f"{path} is a {kind} adapter ({key}), which cannot be read here", hint="give a LoRA, LoKr or LoHa"
            )
    if component is None:
        return TensorName(None, bare, None)
    if (match := MATRIX.match(bare)) is not None:
        return TensorName(component, match["layer"], "down" if match["down"] else "up", match["adapter"], flat)
    if (match := MAGNITUDE_NAME.match(bare)) is not None:
        return TensorName(component, match["layer"], "magnitude", match["adapter"], flat)
    if (match := PRODUCT.match(bare)) is not None:
        return TensorName(component, match["layer"], match["part"], match["adapter"], flat)
    if (match := OTHER.match(bare)) is not None:
        return TensorName(component, match["layer"], match["part"], None, flat)
    raise DsctlError(
        f"{path} is no LoRA that can be read here: its tensor {key!r} is not a LoRA matrix",
        hint="give a LoRA, LoKr or LoHa; `dsctl lora convert --help` lists the formats",
    )


def split_prefixes(key: str, component_names: tuple[str, ...]) -> tuple[str | None, str, bool]:
    """Return the component of the tensor name `key`, the name without prefixes, and whether its layer is flat."""
    for prefix in FLAT_PREFIXES:
        if key.startswith(prefix):
            return DENOISER, key.removeprefix(prefix), True
    if FLAT_TEXT.match(key) or EMBEDDING.match(key):
        return None, key, FLAT_TEXT.match(key) is not None
    component: str | None = None
    rest, before = key, ""
    while rest != before:
        before = rest
        for prefix in WRAPPERS:
            rest = rest.removeprefix(prefix)
        if component is not None:
            continue
        for prefix in DENOISER_PREFIXES:
            if rest.startswith(prefix):
                component, rest = DENOISER, rest.removeprefix(prefix)
                break
        else:
            known = ((name, prefix) for name in component_names for prefix in _prefixes_of(name))
            named = next(((name, prefix) for name, prefix in known if rest.startswith(prefix)), None)
            if named is not None:
                component, rest = named[0], rest.removeprefix(named[1])
            elif TEXT.match(rest):
                return None, rest, False
    return component or DENOISER, rest, False


def _prefixes_of(component: str) -> tuple[str, ...]:
    """Return the prefixes of the layers of `component`; a further denoiser, `dit_2`, also has that of diffusers."""
    number = component.removeprefix(f"{DENOISER}_")
    return (f"{component}.", f"transformer_{number}.") if number.isdigit() else (f"{component}.",)
