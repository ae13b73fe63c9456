"""Skeletons: OpenPose's points and limbs at their places in their colours, as far as they are seen."""

from __future__ import annotations

import numpy as np

from dsctl_core.data.skeleton import COCO, LIMBS, OPENPOSE, colour, draw_people

# A person who stands upright in a picture of 256 x 512 pixels: the right side is on the left.
SIDES = {
    "left": {"eye": (140, 48), "ear": (156, 56), "shoulder": (178, 120), "elbow": (210, 200), "wrist": (210, 280)},
    "right": {"eye": (116, 48), "ear": (100, 56), "shoulder": (78, 120), "elbow": (46, 200), "wrist": (46, 280)},
}
SIDES["left"] |= {"hip": (158, 280), "knee": (158, 380), "ankle": (158, 480)}
SIDES["right"] |= {"hip": (98, 280), "knee": (98, 380), "ankle": (98, 480)}
STANDING = {"nose": (128, 60)}
STANDING |= {f"{side} {part}": at for side, parts in SIDES.items() for part, at in parts.items()}


def person(**scores: float) -> np.ndarray:
    """The key points (17, 3) of the person, with a confidence of 0.9 except for those of `scores`."""
    return np.array([(*STANDING[name], scores.get(name.replace(" ", "_"), 0.9)) for name in COCO])


def drawn(*people: np.ndarray, size: tuple[int, int] = (256, 512)) -> np.ndarray:
    return np.array(draw_people(np.array(people), size))


def test_points_and_limbs_are_where_they_belong_in_the_colours_that_control_networks_know() -> None:
    made = drawn(person())
    points = {
        "nose": ((128, 60), (255, 0, 0)),
        "neck": ((128, 120), (255, 85, 0)),
        "right wrist": ((46, 280), (170, 255, 0)),
        "left shoulder": ((178, 120), (85, 255, 0)),
        "right ankle": ((98, 480), (0, 170, 255)),
        "left ankle": ((158, 480), (85, 0, 255)),
        "right eye": ((116, 48), (170, 0, 255)),
        "left ear": ((156, 56), (255, 0, 85)),
    }
    for name, ((x, y), expected) in points.items():
        assert tuple(made[y, x]) == expected, name
    limbs = {  # in the middle between two points, at 0.6 of the colour
        "neck to the right shoulder": ((103, 120), (153, 0, 0)),
        "neck to the left shoulder": ((153, 120), (153, 51, 0)),
        "right forearm": ((46, 240), (153, 153, 0)),
        "left forearm": ((210, 240), (51, 153, 0)),
        "right shin": ((98, 430), (0, 153, 102)),
        "left shin": ((158, 430), (0, 51, 153)),
        "neck to the nose": ((128, 90), (0, 0, 153)),
    }
    for name, ((x, y), expected) in limbs.items():
        assert tuple(made[y, x]) == expected, name
    assert not made[300:, :90].any(), "black beside the legs"
    assert not made[:40].any()
    assert (len(OPENPOSE), len(LIMBS), len({colour(number) for number in range(18)})) == (18, 17, 18)


def test_points_and_limbs_have_a_size_by_the_shorter_side() -> None:
    for scale, radius in ((1, 2), (2, 4), (4, 8)):  # shorter sides of 256, 512 and 1024
        made = drawn(person() * (scale, scale, 1), size=(256 * scale, 512 * scale))
        wrist = (made == (170, 255, 0)).all(axis=-1)
        assert wrist.any(axis=0).sum() == 2 * radius + 1
        shin = made[430 * scale, 60 * scale : 130 * scale].any(axis=-1)
        assert abs(int(shin.sum()) - (2 * radius + 1)) <= 1


def test_a_point_without_confidence_is_left_out_with_its_limbs_and_a_shoulder_with_the_neck() -> None:
    whole = drawn(person())
    without = drawn(person(left_wrist=0.29))
    assert not without[270:290, 200:220].any()
    assert not without[240, 200:220].any(), "the forearm"
    assert tuple(without[200, 210]) == (0, 255, 0), "the elbow"
    changed = (whole != without).any(axis=-1)
    assert not changed[:190].any()
    assert not changed[:, :190].any()
    assert (drawn(person(left_wrist=0.3)) == whole).all()
    headless = drawn(person(right_shoulder=0.1))
    assert not headless[120, 90:170].any(), "no neck"
    assert not headless[90, 128].any()
    assert tuple(headless[60, 128]) == (255, 0, 0), "the nose"
    assert not drawn(person() * (1, 1, 0.1)).any()


def test_several_people_are_each_drawn_as_alone() -> None:
    alone = drawn(person(), size=(600, 512))
    other = drawn(person() + (300, 0, 0), size=(600, 512))
    both = drawn(person(), person() + (300, 0, 0), size=(600, 512))
    assert (both == np.maximum(alone, other)).all()
    nobody = draw_people(np.zeros((0, 17, 3)), (600, 512))
    assert (nobody.size, nobody.getbbox()) == ((600, 512), None)
