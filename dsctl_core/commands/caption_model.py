"""Ask a vision-language model about pictures: load it, and make captions of its answers."""

from __future__ import annotations

import copy
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.options.dataset import DatasetCaptionOptions

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from dsctl_core.families.resolve import ResolvedModel

PICTURE_PROMPT = (
    "Describe this picture in one paragraph: the subject, what it does, the setting, the colours, the light and the "
    "style. Begin with the subject, and say only what can be seen."
)
CLIP_PROMPT = (
    "These are frames of one clip, in their order. Describe the clip in one paragraph: the subject, how it moves, the "
    "setting, the light, and how the camera moves. Begin with the subject, and say only what can be seen."
)
SENTENCE_ENDS = ".!?。！？"
EXAMPLE = "--captioner HuggingFaceTB/SmolVLM-500M-Instruct"


@dataclass(frozen=True)
class Shown:
    """What the model is asked about: a picture, or the frames of a clip; and the seed of the words of its caption."""

    pictures: Sequence[Image]
    clip: bool
    seed: int


@dataclass(frozen=True)
class Answer:
    """A caption on one line, "" if the model said nothing; `cut` is whether it was longer than it may be."""

    text: str
    cut: bool


class Describer:
    """A vision-language model with its processor, and how it is asked.

    Args:
        model: A model of transformers that generates text from text and pictures.
        processor: Its processor, with a chat template.
        options: The question, the longest caption, and how words are chosen.
    """

    def __init__(self, model: Any, processor: Any, options: DatasetCaptionOptions) -> None:
        self.model, self.processor, self.options = model, processor, options
        self.tokenizer = processor.tokenizer
        # A caption follows its prompt, so that shorter prompts of a batch are padded in front.
        self.tokenizer.padding_side = "left"
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        own = copy.deepcopy(model.generation_config)
        self.warped = {"temperature": options.temperature, "top_k": own.top_k, "top_p": own.top_p}
        own.update(do_sample=False, temperature=None, top_k=None, top_p=None, max_length=None)
        own.update(max_new_tokens=options.max_tokens, pad_token_id=self.tokenizer.pad_token_id)
        own.eos_token_id = self.tokenizer.eos_token_id if own.eos_token_id is None else own.eos_token_id
        self.generation = own
        ends = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
        self.ends = {end for end in ends if end is not None}

    def describe(self, shown: Sequence[Shown]) -> list[Answer]:
        """Return the caption of each of `shown`; it does not depend on the others.

        Raises ValueError for a picture that the processor does not take.
        """
        import torch

        texts = [self._chat(each) for each in shown]
        bos = self.tokenizer.bos_token  # which some chat templates have and some do not
        read = self.processor(
            text=texts,
            images=[list(each.pictures) for each in shown],
            padding=True,
            return_tensors="pt",
            add_special_tokens=not (bos is not None and texts[0].startswith(bos)),
        ).to(device=self.model.device, dtype=self.model.dtype)
        with torch.inference_mode():
            made = self.model.generate(
                **read, generation_config=self.generation, logits_processor=self._words([each.seed for each in shown])
            )
        return [self._answer(row) for row in made[:, read["input_ids"].shape[1] :].tolist()]

    def _chat(self, shown: Shown) -> str:
        question = self.options.prompt or (CLIP_PROMPT if shown.clip else PICTURE_PROMPT)
        content = [*({"type": "image"} for _ in shown.pictures), {"type": "text", "text": question}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )

    def _words(self, seeds: Sequence[int]) -> Any:
        """Return how the next words are chosen: none, for the likeliest, or drawn with a seed for each caption."""
        import transformers
        from transformers import LogitsProcessorList

        if self.options.temperature == 0:
            return LogitsProcessorList()
        warpers: list[Any] = [transformers.TemperatureLogitsWarper(self.options.temperature)]
        if self.warped["top_k"]:
            warpers.append(transformers.TopKLogitsWarper(self.warped["top_k"]))
        if self.warped["top_p"] is not None and self.warped["top_p"] < 1:
            warpers.append(transformers.TopPLogitsWarper(self.warped["top_p"]))
        return LogitsProcessorList([*warpers, drawing(seeds)])

    def _answer(self, tokens: list[int]) -> Answer:
        """Return the caption of the tokens that were made after the prompt."""
        end = next((place for place, token in enumerate(tokens) if token in self.ends), None)
        text = self.tokenizer.decode(tokens[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        text = one_line(text)
        if end is None:
            last = max(text.rfind(mark) for mark in SENTENCE_ENDS)
            text = text[: last + 1] if last >= 0 else text
        return Answer(text, end is None)


def drawing(seeds: Sequence[int]) -> Any:
    """Return a logits processor after which the likeliest word is one drawn by its probability, with a seed a row.

    The largest of log p + G, with G of Gumbel's distribution, is a sample of p (Gumbel 1954; Maddison et al. 2014,
    "A* Sampling"). So a caption does not depend on those that are made beside it, as it would with one generator.
    """
    import torch
    from transformers import LogitsProcessor

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    class Drawing(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            shape = scores.shape[1:]
            drawn = [torch.empty(shape).exponential_(generator=each) for each in generators]
            noise = [each.clamp_min_(torch.finfo(each.dtype).tiny).log_().neg_() for each in drawn]
            return scores.float() + torch.stack(noise).to(scores.device)

    return Drawing()


def one_line(text: str) -> str:
    """Return `text` on one line, without control characters."""
    plain = "".join(each if each.isspace() or unicodedata.category(each) not in ("Cc", "Cs") else "" for each in text)
    return " ".join(plain.split())


def with_trigger(word: str | None, caption: str) -> str:
    """Return the caption with the trigger word before it, unless it has it."""
    return caption if word is None or word in caption else f"{word}, {caption}"


def check_captioner(options: DatasetCaptionOptions) -> None:
    """Raise a DsctlError for a --model that cannot describe pictures, before anything is loaded."""
    if options.model is None:
        return
    from dsctl_core.families.resolve import resolve_model

    resolved = resolve_model(options.model)
    if can_describe(resolved):
        return
    if resolved.family.captioner is None:
        raise UsageError(
            f"the text encoder of {resolved.family.title} reads no pictures",
            hint=f"name a vision-language model instead: {EXAMPLE}",
        )
    raise UsageError(
        f"{options.model} is too small to describe pictures",
        hint=f"name a vision-language model instead: {EXAMPLE}",
    )


def can_describe(resolved: ResolvedModel) -> bool:
    """Return whether the text encoder of a model can describe pictures; those that come with the package cannot."""
    embedded = resolved.preset is not None and resolved.preset.model_id is None
    return resolved.family.captioner is not None and not embedded


def suggested(folder: Path, resolved: ResolvedModel) -> str:
    """Return the command that describes the pictures in `folder`, by the text encoder of the model if it can."""
    how = f"--model {resolved.label}" if can_describe(resolved) else EXAMPLE
    return f"dsctl dataset caption {folder} {how}"


def load_describer(options: DatasetCaptionOptions, device: torch.device, dtype: torch.dtype) -> Describer:
    """Load the text encoder of --model, or the --captioner."""
    if options.captioner is not None:
        from dsctl_core.checkpoint.processors import load_vision_language_model

        folder = hub_folder(options.captioner, "--captioner", "model*.safetensors")
        model, processor = load_vision_language_model(folder, dtype)
        model.to(device)
    else:
        model, processor = _of_family(options, device, dtype)
    if not (processor.chat_template or processor.tokenizer.chat_template):
        raise DsctlError(
            f"{options.captioner} has no chat template, so it cannot be asked",
            hint="choose a model that was trained to answer, often called instruct",
        )
    return Describer(model, processor, options)


def _of_family(options: DatasetCaptionOptions, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    import importlib

    from dsctl_core.families.resolve import resolve_model

    resolved = resolve_model(options.model)
    captioner = resolved.family.captioner
    assert captioner is not None
    pipe = resolved.load_pipeline(torch_dtype=dtype, device=device, only=(captioner.component,))
    module, _, name = captioner.processor.partition(":")
    processor = getattr(importlib.import_module(module), name)(pipe)
    return pipe.component(captioner.component), processor


def hub_folder(named: str, flag: str, weights: str = "*.safetensors") -> Path:
    """Return the folder of a model of transformers: `named` itself, or after a download that of OWNER/NAME.

    `weights` is the pattern of its files in the repository.
    """
    from dsctl_core.checkpoint.model_config import ModelConfig

    if not Path(named).exists() and ("/" not in named or named.startswith((".", "/", "~"))):
        raise DsctlError(f"{flag} {named} does not exist", hint="give a folder, or OWNER/NAME on a hub")
    there = Path(named).exists()
    config = ModelConfig(path=named) if there else ModelConfig(model_id=named, origin_file_pattern=weights)
    found = config.resolve()[0]
    return found if found.is_dir() else found.parent
