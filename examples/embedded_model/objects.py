"""The small world that the embedded model knows: its objects, shapes, colours, places and scenes.

A small world drawn well beats a large one drawn vaguely, so every list here is short. `OBJECTS` and
`HELD_OUT` map the word used in a caption to the name of a drawing in the Fluent Emoji (flat) set.
"""

import zlib

OBJECTS = {
    # animals
    "fox": "fox",
    "cat": "cat-face",
    "dog": "dog-face",
    "panda": "panda",
    "frog": "frog",
    "pig": "pig-face",
    "penguin": "penguin",
    "chick": "front-facing-baby-chick",
    "koala": "koala",
    "lion": "lion",
    "bear": "bear",
    "rabbit": "rabbit-face",
    "cow": "cow-face",
    "owl": "owl",
    "whale": "spouting-whale",
    "fish": "tropical-fish",
    "octopus": "octopus",
    "turtle": "turtle",
    "butterfly": "butterfly",
    "ladybug": "lady-beetle",
    "snail": "snail",
    "duck": "duck",
    "unicorn": "unicorn",
    # food
    "apple": "red-apple",
    "banana": "banana",
    "strawberry": "strawberry",
    "watermelon": "watermelon",
    "lemon": "lemon",
    "cherry": "cherries",
    "pear": "pear",
    "grapes": "grapes",
    "pineapple": "pineapple",
    "carrot": "carrot",
    "hamburger": "hamburger",
    "pizza": "pizza",
    "doughnut": "doughnut",
    "ice cream": "soft-ice-cream",
    "cake": "birthday-cake",
    "avocado": "avocado",
    "tomato": "tomato",
    "coffee": "hot-beverage",
    # nature
    "mushroom": "mushroom",
    "tulip": "tulip",
    "sunflower": "sunflower",
    "pine tree": "evergreen-tree",
    "palm tree": "palm-tree",
    "sun": "sun",
    "moon": "crescent-moon",
    "snowman": "snowman-without-snow",
    # things
    "house": "house",
    "car": "automobile",
    "guitar": "guitar",
    "balloon": "balloon",
    "umbrella": "umbrella",
    "key": "key",
    "bell": "bell",
    "crown": "crown",
    "light bulb": "light-bulb",
    "soccer ball": "soccer-ball",
    "gift": "wrapped-gift",
    "top hat": "top-hat",
    "book": "blue-book",
    "skull": "skull",
    "pumpkin": "jack-o-lantern",
    "ghost": "ghost",
    "anchor": "anchor",
    "alarm clock": "alarm-clock",
}

# Never in the base's data, so that a LoRA can teach them as something new.
HELD_OUT = {
    "robot": "robot",
    "teapot": "teapot",
    "rocket": "rocket",
    "sailboat": "sailboat",
    "cactus": "cactus",
}

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart")

COLOURS = {
    "red": (214, 48, 39),
    "orange": (247, 135, 30),
    "yellow": (250, 209, 47),
    "green": (52, 158, 70),
    "teal": (64, 190, 184),
    "blue": (48, 92, 220),
    "purple": (130, 60, 190),
    "pink": (252, 160, 190),
    "brown": (130, 78, 46),
    "black": (22, 22, 26),
    "white": (250, 250, 250),
    "gray": (148, 148, 152),
}

# scene -> how a caption says it
SCENES = {
    "grass": "on the grass",
    "night": "under the night sky",
    "beach": "on the beach",
    "snow": "in the snow",
}

# place -> (x, y) of the drawing's centre, in parts of the canvas, and how a caption says it
PLACES = {
    "center": ((0.50, 0.50), "in the center"),
    "left": ((0.29, 0.50), "on the left"),
    "right": ((0.71, 0.50), "on the right"),
    "top": ((0.50, 0.29), "at the top"),
    "bottom": ((0.50, 0.71), "at the bottom"),
    "top left": ((0.29, 0.29), "in the top left corner"),
    "top right": ((0.71, 0.29), "in the top right corner"),
    "bottom left": ((0.29, 0.71), "in the bottom left corner"),
    "bottom right": ((0.71, 0.71), "in the bottom right corner"),
}

# Words without an article: "a cup of coffee" is shorter as "coffee", "grapes" is a plural.
_BARE = {"coffee", "grapes"}


def with_article(words: str) -> str:
    """Put "a", "an", "the" or nothing in front of an object's words."""
    if words in _BARE:
        return words
    if words in ("sun", "moon"):
        return f"the {words}"
    return f"an {words}" if words[0] in "aeio" or words.startswith("umbrella") else f"a {words}"


def never_shown_on(subject: str, background: str) -> bool:
    """Say whether this pair is kept out of training, so that prompts for it test composition.

    One pair in ten, fixed by a checksum of the words: no list to keep, the same on every machine.
    """
    return zlib.crc32(f"{subject}|{background}".encode()) % 10 == 0
