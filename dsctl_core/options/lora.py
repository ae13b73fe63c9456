"""The LoRA to train, those to train on top of, and how LoRA files are named."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from dsctl_core.errors import UsageError
from dsctl_core.options.base import Alternative, Names, Options, Text
from dsctl_core.options.effects import Idle
from dsctl_core.options.lora_effects import FULL_LOKR, NO_LORA, NO_PRESET_LORA, ONLY_LOKR, ONLY_LORA
from dsctl_core.options.messages import Takes


@dataclass(frozen=True)
class LoraFile:
    """A LoRA and how much of it to apply."""

    form: ClassVar[str] = "FILE[:SCALE]"

    path: Path
    scale: float = 1.0

    @classmethod
    def parse(cls, text: Any) -> "LoraFile":
        """Read FILE or FILE:SCALE.

        A colon belongs to the path where the whole text is a path that exists, or where a separator comes after it.
        """
        if isinstance(text, LoraFile):
            return text
        if isinstance(text, dict) and text.keys() == {"path", "scale"}:  # from run.json
            return cls(Path(text["path"]), text["scale"])
        if not isinstance(text, str):
            raise ValueError(f"{text!r} is no text")
        path, colon, scale = text.rpartition(":")
        if not text or (colon and not path):
            raise ValueError("this names no file")
        if not colon or "/" in scale or "\\" in scale or Path(text).exists():
            return cls(Path(text))
        try:
            number = float(scale)
        except ValueError:
            raise ValueError(f"the scale {scale!r} is not a number") from None
        if not -100 <= number <= 100:  # also false for nan
            raise ValueError(f"the scale {scale!r} is not between -100 and 100")
        return cls(Path(path), number)


LoraFiles = Annotated[tuple[Annotated[LoraFile, BeforeValidator(LoraFile.parse)], ...], Takes("FILE or FILE:SCALE")]
LoraFormatName = Literal["diffusers", "comfyui", "kohya", "lycoris", "diffsynth", "peft"]
# The formats that can hold each network; all of them hold a LoRA.
HOLDS = {
    "dora": ("diffusers", "lycoris", "peft"),
    "lokr": ("diffusers", "comfyui", "kohya", "lycoris"),
    "loha": ("diffusers", "comfyui", "kohya", "lycoris"),
}
TITLES = {"lora": "LoRA", "dora": "DoRA", "lokr": "LoKr", "loha": "LoHa"}
FloatName = Literal["float32", "bfloat16", "float16"]


class LoraOptions(Options):
    """The LoRA to train, and one to merge in before."""

    panel: ClassVar[str] = "LoRA"
    idle: ClassVar[tuple[Idle, ...]] = (NO_LORA, ONLY_LORA, ONLY_LOKR, FULL_LOKR, NO_PRESET_LORA)
    exclusive: ClassVar[tuple[Alternative, ...]] = (("network", "use_dora"),)

    network: Literal["lora", "dora", "lokr", "loha"] | None = Field(
        None,
        description="What is learned beside the weights: lora, a product of two small matrices; dora, a LoRA and the "
        "length of every row of the weights; lokr, a Kronecker product, of few numbers and high rank; loha, the "
        "elementwise product of two low-rank matrices. The --lora options are of all four. Left out: lora.",
    )

    lora_base_model: Text | None = Field(
        None,
        description="Component that the LoRA is put on, or several, separated by commas, such as both denoisers of a "
        "model that has two. Left out: dit.",
    )
    lora_target_modules: Names | None = Field(
        None,
        min_length=1,
        description="Layers that the LoRA is put on, separated by commas: names, regular expressions that match whole "
        "names, or auto, every linear layer of the repeated blocks. Left out: the family's for the dit, else auto.",
    )
    lora_rank: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        None,
        description="Rank of the LoRA. Alone it means a LoRA on the dit with the family's layers. Left out: 32. From "
        "half of a side of the second matrix of a LoKr on, that matrix is whole.",
    )
    lora_alpha: Annotated[float, Field(gt=0)] | None = Field(
        None, description="The LoRA counts alpha / rank times. Left out: the rank."
    )
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of what goes into the LoRA that is left out at random, by sample."
    )
    use_dora: bool = Field(
        False, description="Learn the length of every row of the weights too (DoRA): the same as --network dora."
    )
    lokr_factor: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        None,
        description="Of a LoKr: the sides of its first matrix, or the next lower divisors of the sides of the weight. "
        "Higher: fewer numbers. Left out: next to the square roots, the fewest.",
    )
    lokr_decompose_both: bool = Field(False, description="Of a LoKr: the first matrix is a low-rank product too.")
    lokr_full_matrix: bool = Field(
        False, description="Of a LoKr: both matrices are whole; there is no rank (lokr_full_rank of ai-toolkit)."
    )
    use_rslora: bool = Field(False, description="The LoRA counts alpha / sqrt(rank) times (rsLoRA).")
    lora_checkpoint: Path | None = Field(None, description="LoRA file to train on from.")
    preset_lora_path: Path | None = Field(
        None, description="LoRA file to merge into the model before training, so that the difference is learned."
    )
    preset_lora_model: Text | None = Field(
        None, description="Component that --preset-lora-path is merged into. Left out: dit."
    )

    lora: LoraFiles = Field(
        (),
        description="LoRA to merge into the model before training, FILE or FILE:SCALE, in any format. "
        "Can be given several times.",
    )
    lora_format: LoraFormatName = Field(
        "diffusers",
        description="Key names of the saved LoRA. diffusers' load in ComfyUI and DiffSynth too; peft writes a folder.",
    )
    lora_dtype: FloatName = Field("float32", description="Precision of the saved LoRA.")
    trigger_words: Text | None = Field(None, description="Words that call for what was learned, noted in the LoRA.")

    @property
    def lora_components(self) -> tuple[str, ...]:
        """Names of the components that get a LoRA."""
        named = tuple(part.strip() for part in (self.lora_base_model or "dit").split(",") if part.strip())
        return named if self.wants_lora else ()

    @property
    def wants_lora(self) -> bool:
        """Whether a LoRA is to be trained."""
        asked = (self.lora_base_model, self.lora_target_modules, self.lora_rank, self.lora_checkpoint, self.network)
        return any(value is not None for value in asked)

    @property
    def kind(self) -> str:
        """The network to train: "lora", "dora", "lokr" or "loha"."""
        return self.network or ("dora" if self.use_dora else "lora")

    def check(self) -> None:
        """Raise a UsageError for what the file of the LoRA cannot hold."""
        able = HOLDS.get(self.kind)
        if able is not None and self.lora_format not in able:
            raise UsageError(
                f"--lora-format {self.lora_format} cannot hold a {TITLES[self.kind]}", hint=f"give {' or '.join(able)}"
            )
