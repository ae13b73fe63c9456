"""Trains the tokenizer: Qwen2's rules with a vocabulary of 2,048 tokens.

The pipeline cuts a fixed number of tokens off the front of every encoded prompt, 34 for pictures from
text and 64 for editing. So the words of the two official templates must each be one token, as they
are in the large vocabulary; `check` proves it.
"""

import json
import random
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from drawings import Drawings
from objects import COLOURS, HELD_OUT, OBJECTS, SHAPES
from scenes import captions, random_scene

VOCABULARY = 2048
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# The texts that Qwen-Image and Qwen-Image-Edit put in front of a prompt, and their length in tokens.
SYSTEM_PREFIX = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, "
    "text, spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
EDIT_PREFIX = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, "
    "objects, background), then explain how the user's text instruction should alter or modify the "
    "image. Generate a new image that meets the user's requirements while maintaining consistency "
    "with the original input where appropriate.<|im_end|>\n<|im_start|>user\n"
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
PREFIX_TOKENS = {SYSTEM_PREFIX: 34, EDIT_PREFIX: 64}
STYLES = ("flat", "blueprint", "sketch", "pixel art", "watercolor", "night", "neon", "cartoon")


def train_tokenizer(drawings: Drawings, folder: Path, seed: int = 0) -> Qwen2Tokenizer:
    """Train on captions, templates and the drawings' names, and write the tokenizer's files."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(drawings, random.Random(seed)), trainer)
    if tokenizer.get_vocab_size() != VOCABULARY - len(SPECIAL_TOKENS):
        raise ValueError(f"the corpus gave only {tokenizer.get_vocab_size()} tokens")
    state = tokenizer.model.__getstate__()
    trained = _vocabulary_and_merges(state)
    result = Qwen2Tokenizer(*trained, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    result.add_special_tokens({"extra_special_tokens": list(SPECIAL_TOKENS[1:])})
    result.save_pretrained(folder)
    result = Qwen2Tokenizer.from_pretrained(folder)
    check(result)
    return result


def check(tokenizer: Qwen2Tokenizer) -> None:
    """Raise unless prefixes have the official length and the special tokens close the vocabulary."""
    if len(tokenizer) != VOCABULARY:
        raise ValueError(f"the vocabulary has {len(tokenizer)} tokens, not {VOCABULARY}")
    ids = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    if ids != list(range(VOCABULARY - len(SPECIAL_TOKENS), VOCABULARY)):
        raise ValueError(f"the special tokens have the ids {ids}")
    for prefix, expected in PREFIX_TOKENS.items():
        found = len(tokenizer(prefix).input_ids)
        if found != expected:
            tokens = tokenizer.tokenize(prefix)
            raise ValueError(f"a prefix has {found} tokens, not {expected}: {tokens}")
    for word in (*OBJECTS, *HELD_OUT, *COLOURS, *SHAPES):
        if tokenizer.decode(tokenizer(f"a {word}").input_ids) != f"a {word}":
            raise ValueError(f"{word!r} does not survive the tokenizer")


def prompt_length(tokenizer: Qwen2Tokenizer, caption: str) -> int:
    """Return how many tokens a caption adds to the template."""
    return len(tokenizer(caption).input_ids)


def _vocabulary_and_merges(state: bytes) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Read a trained model, and give the special tokens the ids behind its last one."""
    content = json.loads(state)
    vocabulary = dict(content["vocab"])
    for token in SPECIAL_TOKENS:
        vocabulary[token] = len(vocabulary)
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in content["merges"]]
    return vocabulary, merges


def _corpus(drawings: Drawings, rng: random.Random) -> list[str]:
    """Return texts: the templates often enough that each of their words becomes one token."""
    texts = [text for _ in range(6000) for text in captions(random_scene(rng), rng)]
    templates = [part for prefix in PREFIX_TOKENS for part in _between_special(prefix + SUFFIX)]
    texts += templates * 2000
    words = [name.replace("-", " ") for name in drawings.names()]
    for subject in (*OBJECTS, *HELD_OUT, *words):
        texts.append(f"a {subject} in {rng.choice(STYLES)} style")
    for subject in (*OBJECTS, *HELD_OUT, *SHAPES, *COLOURS, *STYLES):
        texts += [f"a {subject} in {style} style" for style in STYLES] * 4
    return texts


def _between_special(text: str) -> list[str]:
    for token in SPECIAL_TOKENS:
        text = text.replace(token, "\x00")
    return [part for part in text.split("\x00") if part]
