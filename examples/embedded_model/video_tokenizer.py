"""Makes the video model's tokenizer: T5's rules (a unigram model, an end token after each text) with 1,024 tokens.

Each word of the world is one token; so are frequent words of the drawings' names, and letters spell the others.
"""

from collections import Counter
from pathlib import Path

from transformers import T5Tokenizer

from drawings import Drawings
from objects import COLOURS, HELD_OUT, OBJECTS
from video_world import MOTIONS, NEW_MOTIONS, clip_captions, every_action

VOCABULARY = 1024
SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")
SPACE = "\u2581"  # how a unigram model writes the space before a word
LETTERS = [chr(code) for code in range(33, 127)]
WORD_SCORE, LETTER_SCORE = -5.0, -10.0  # logarithms of how likely they are: a word beats its letters


def make_tokenizer(drawings: Drawings, folder: Path) -> T5Tokenizer:
    """Write the tokenizer's files into `folder`, and return the tokenizer."""
    pieces = [(piece, LETTER_SCORE) for piece in (SPACE, *LETTERS)]
    room = VOCABULARY - len(SPECIAL_TOKENS) - len(pieces)
    pieces += [(SPACE + word, WORD_SCORE) for word in _words(drawings)[:room]]
    vocabulary = [(token, 0.0) for token in SPECIAL_TOKENS] + pieces
    T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512).save_pretrained(folder)
    tokenizer = T5Tokenizer.from_pretrained(folder)
    check(tokenizer)
    return tokenizer


def _words(drawings: Drawings) -> list[str]:
    """Return words: first those of captions and of what is left for a LoRA, then those of names by frequency."""
    captions = [text for action in every_action() for text in clip_captions(action)]
    captions += [words for said in (MOTIONS | NEW_MOTIONS).values() for words in said]
    captions += [*OBJECTS, *HELD_OUT, *COLOURS, "A An The"]
    ours = sorted({word for text in captions for word in text.split()})
    names = Counter(word for name in drawings.names() for word in name.split("-") if len(word) > 2)
    others = [word for word, _ in sorted(names.items(), key=lambda item: (-item[1], item[0]))]
    return list(dict.fromkeys([*ours, *others]))


def check(tokenizer: T5Tokenizer) -> None:
    """Raise unless each word of the captions is a token, and each text is closed by the end token."""
    if len(tokenizer) != VOCABULARY:
        raise ValueError(f"the vocabulary has {len(tokenizer)} tokens, not {VOCABULARY}")
    for action in every_action():
        for text in clip_captions(action):
            ids = tokenizer(text).input_ids
            if len(ids) != len(text.split()) + 1 or tokenizer.decode(ids, skip_special_tokens=True) != text:
                raise ValueError(f"{text!r} does not survive the tokenizer")
    if tokenizer("").input_ids != [tokenizer.eos_token_id]:
        raise ValueError("an empty prompt is not the end token alone")
