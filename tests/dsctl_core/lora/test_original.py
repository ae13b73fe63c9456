"""Original layer names: the same update under them and back, whatever was fused, and nothing written that has none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dsctl_core.errors import DsctlError
from dsctl_core.families.flux2.original_names import ORIGINAL_NAMES
from dsctl_core.family import OriginalNames
from dsctl_core.lora.formats import Layers, LoraLayer
from dsctl_core.lora.original import from_original, to_original

ATTENTION = "transformer_blocks.3.attn"


def layer(rank: int, seed: int, shape: tuple[int, int] = (6, 5), scale: float = 1.0) -> LoraLayer:
    generator = torch.Generator().manual_seed(seed)
    down, up = (torch.randn(size, generator=generator) for size in ((rank, shape[1]), (shape[0], rank)))
    return LoraLayer(down, up, scale)


def update(each: LoraLayer) -> torch.Tensor:
    return each.scale * each.up @ each.down


def close(actual: Layers, expected: Layers) -> None:
    assert set(actual) == set(expected)
    for name, each in expected.items():
        torch.testing.assert_close(update(actual[name]), update(each), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("ranks", [(2, 2, 2), (1, 3, 2)])
def test_three_projections_become_one_layer_with_the_same_update(ranks: tuple[int, ...]) -> None:
    parts = {
        f"{ATTENTION}.to_{p}": layer(r, n, scale=0.5 + n) for n, (p, r) in enumerate(zip("qkv", ranks, strict=True))
    }
    made = to_original(parts, ORIGINAL_NAMES, "kohya")
    assert list(made) == ["double_blocks.3.img_attn.qkv"]
    stacked = torch.cat([update(each) for each in parts.values()])
    torch.testing.assert_close(update(made["double_blocks.3.img_attn.qkv"]), stacked, atol=1e-6, rtol=1e-6)
    back = from_original(made, [ORIGINAL_NAMES], flat=False)
    close(back, parts)
    assert tuple(each.rank for each in back.values()) == ranks


@pytest.mark.parametrize("missing", ["q", "k", "v"])
def test_a_projection_that_is_not_there_does_not_come_back(missing: str) -> None:
    parts = {f"{ATTENTION}.add_{p}_proj": layer(2, n) for n, p in enumerate("qkv") if p != missing}
    close(from_original(to_original(parts, ORIGINAL_NAMES, "comfyui"), [ORIGINAL_NAMES], flat=False), parts)


def test_a_projection_whose_up_is_still_zero_comes_back() -> None:
    parts = {f"{ATTENTION}.to_{p}": layer(2, n) for n, p in enumerate("qkv")}
    parts[f"{ATTENTION}.to_k"] = LoraLayer(torch.ones(2, 5), torch.zeros(6, 2))
    close(from_original(to_original(parts, ORIGINAL_NAMES, "kohya"), [ORIGINAL_NAMES], flat=False), parts)


@pytest.mark.parametrize("rank", [4, 6])
def test_one_update_of_all_three_is_split_without_loss(rank: int) -> None:
    whole = layer(rank, 0, shape=(18, 5), scale=0.7)  # as a tool that trains the original layer makes it
    found = from_original({"double_blocks.0.txt_attn.qkv": whole}, [ORIGINAL_NAMES], flat=False)
    assert list(found) == [f"transformer_blocks.0.attn.add_{part}_proj" for part in "qkv"]
    torch.testing.assert_close(torch.cat([update(each) for each in found.values()]), update(whole))


@pytest.mark.parametrize("flat", [False, True])
def test_every_layer_of_the_blocks_comes_back_under_its_name(flat: bool) -> None:
    double = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out")
    names = [f"transformer_blocks.{n}.attn.{part}" for n in (0, 11) for part in double]
    names += [
        f"transformer_blocks.2.{part}.{end}" for part in ("ff", "ff_context") for end in ("linear_in", "linear_out")
    ]
    names += [f"single_transformer_blocks.{n}.attn.{part}" for n in (1, 20) for part in ("to_qkv_mlp_proj", "to_out")]
    names += ["x_embedder", "context_embedder", "proj_out", "single_stream_modulation.linear"]
    ratios = {"linear_in": (6, 1), "linear_out": (1, 3), "to_qkv_mlp_proj": (9, 1), "attn.to_out": (1, 4)}
    sizes = [next((size for end, size in ratios.items() if name.endswith(end)), (6, 5)) for name in names]
    layers = {name: layer(2, number, size) for number, (name, size) in enumerate(zip(names, sizes, strict=True))}
    written = to_original(layers, ORIGINAL_NAMES, "kohya")
    assert not set(written) & set(layers)
    shown = {name.replace(".", "_") if flat else name: each for name, each in written.items()}
    close(from_original(shown, [ORIGINAL_NAMES], flat=flat), layers)


def test_a_layer_without_an_original_name_is_refused() -> None:
    with pytest.raises(DsctlError, match="kohya has no name for the layer norm_out.linear"):
        to_original({"norm_out.linear": layer(1, 0)}, ORIGINAL_NAMES, "kohya")


def test_names_of_other_models_stay_as_they_are() -> None:
    layers = {name: layer(1, 0) for name in ("transformer_blocks.0.attn.to_q", "img_in", "proj_out")}
    assert from_original(layers, [ORIGINAL_NAMES], flat=False) is layers


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    ("names", "converted"),
    [
        (["layers.0.feed_forward.w1", "layers.0.attention.qkv"], True),
        (["layers.0.feed_forward.w1", "layers.0.attention.to_q"], False),
        (["layers.0.feed_forward.w1"], True),
        (["x_embedder"], False),  # another model may have a layer of this name
    ],
)
def test_a_name_of_both_layouts_is_no_sign_of_the_original_one(names: list[str], converted: bool, flat: bool) -> None:
    layout = OriginalNames(
        single={"layers.{}.feed_forward.w1": "layers.{}.feed_forward.w1", "x_embedder": "all_x_embedder"},
        fused={"layers.{}.attention.qkv": tuple(f"layers.{{}}.attention.to_{part}" for part in "qkv")},
    )
    layers = {name.replace(".", "_") if flat else name: layer(3, n, shape=(6, 5)) for n, name in enumerate(names)}
    found = from_original(layers, [layout], flat=flat)
    assert (found is not layers) == converted
    assert all(("." in name) == converted for name in found if flat)


WIDE = OriginalNames(
    single={"b.{}.last": "blocks.{}.out"},
    fused={"b.{}.in": ("blocks.{}.q", "blocks.{}.mlp")},
    shares={"b.{}.in": (1, 4)},
    swapped=("b.{}.last",),
    ratios={"b.{}.in": (5, 1)},
)


@pytest.mark.parametrize("missing", [None, "q", "mlp"])
def test_parts_of_several_sizes_and_swapped_halves_come_back(missing: str | None) -> None:
    parts = {"q": layer(2, 1, (6, 6)), "mlp": layer(3, 2, (24, 6), scale=0.5), "out": layer(1, 3, (6, 6))}
    given = {f"blocks.7.{name}": each for name, each in parts.items() if name != missing}
    made = to_original(given, WIDE, "kohya")
    assert set(made) == {"b.7.in", "b.7.last"}
    assert made["b.7.in"].shape == (30, 6)
    assert torch.equal(made["b.7.last"].up, torch.cat([parts["out"].up[3:], parts["out"].up[:3]]))
    close(from_original(made, [WIDE], flat=False), given)


def test_a_layout_with_other_sizes_is_not_that_of_the_layers() -> None:
    other = {"b.7.in": layer(2, 1, (36, 6))}
    assert from_original(other, [WIDE], flat=False) is other
    assert from_original({"b.7.in": layer(2, 1, (30, 6))}, [WIDE], flat=False).keys() == {"blocks.7.q", "blocks.7.mlp"}


def test_halves_of_a_magnitude_are_swapped_with_its_rows() -> None:
    one = replace(layer(2, 1, (6, 6)), magnitude=torch.arange(6.0))
    made = to_original({"blocks.7.out": one}, WIDE, "kohya")["b.7.last"]
    assert made.magnitude is not None
    assert made.magnitude.tolist() == [3, 4, 5, 0, 1, 2]
