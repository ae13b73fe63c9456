"""LoKr and LoHa files against Kronecker and elementwise products in plain torch: read, applied, fused, rewritten."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dsctl_core.errors import DsctlError
from dsctl_core.lora import FORMATS, fuse_lora, load_lora, read_lora, save_lora
from dsctl_core.lora.algebra import resize_layers
from dsctl_core.lora.dora import update_of
from dsctl_core.lora.formats import with_dots
from dsctl_core.lora.lycoris import LohaLayer, LokrLayer, as_lora
from dsctl_core.lora.merge import ScaledLora, merge_into_one
from tests.dsctl_core.lora.test_layers import Pipe

ROWS, COLUMNS = 12, 8  # of the layer blocks.0.to_q
NAME = "blocks.0.to_q"
PREFIXES = ("diffusion_model.", "transformer.", "lycoris_", "lora_unet_", "")


def rand(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 17 * sum(shape)))


W1, W1A, W1B = rand(4, 2), rand(4, 3, seed=1), rand(3, 2, seed=2)
W2, W2A, W2B = rand(3, 4, seed=3), rand(3, 3, seed=4), rand(3, 4, seed=5)
T2, T2A, T2B = rand(2, 2, seed=6), rand(2, 3, seed=7), rand(2, 4, seed=8)
H1A, H1B, H2A, H2B = rand(12, 3), rand(3, 8), rand(12, 3, seed=2), rand(3, 8, seed=2)
ALPHA = torch.tensor(1.5)  # the ranks are 3: a scale of a half
# {what a file has: (its tensors, the update that they are)}
FILES = {
    "whole": ({"lokr_w1": W1, "lokr_w2": W2}, torch.kron(W1, W2)),
    # The scale of whole matrices is one, whatever the alpha: LyCORIS writes the rank, ai-toolkit 1e10.
    "whole, with an alpha": ({"lokr_w1": W1, "lokr_w2": W2, "alpha": torch.tensor(9999999999.0)}, torch.kron(W1, W2)),
    "infinite alpha": ({"lokr_w1": W1, "lokr_w2": W2, "alpha": torch.tensor(torch.inf).half()}, torch.kron(W1, W2)),
    "w2 low": ({"lokr_w1": W1, "lokr_w2_a": W2A, "lokr_w2_b": W2B, "alpha": ALPHA}, torch.kron(W1, W2A @ W2B) / 2),
    "w1 low": ({"lokr_w1_a": W1A, "lokr_w1_b": W1B, "lokr_w2": W2, "alpha": ALPHA}, torch.kron(W1A @ W1B, W2) / 2),
    "both low": (
        {"lokr_w1_a": W1A, "lokr_w1_b": W1B, "lokr_w2_a": W2A, "lokr_w2_b": W2B, "alpha": ALPHA[None]},
        torch.kron(W1A @ W1B, W2A @ W2B) / 2,
    ),
    "no alpha": ({"lokr_w1": W1, "lokr_w2_a": W2A, "lokr_w2_b": W2B}, torch.kron(W1, W2A @ W2B)),
    "middle": (
        {"lokr_w1": W1, "lokr_t2": T2[..., None, None], "lokr_w2_a": T2A, "lokr_w2_b": T2B},
        torch.kron(W1, T2A.T @ T2 @ T2B),
    ),
    "kernel of one": ({"lokr_w1": W1, "lokr_w2": W2[..., None, None]}, torch.kron(W1, W2)),
    "factors of musubi-tuner": (
        {"lokr_w1": W1, "lokr_w2": W2, "alpha": torch.tensor(2.0), "lokr_factor": torch.tensor(-1)},
        torch.kron(W1, W2) / 2,
    ),
    "loha": (
        {"hada_w1_a": H1A, "hada_w1_b": H1B, "hada_w2_a": H2A, "hada_w2_b": H2B, "alpha": ALPHA},
        (H1A @ H1B) * (H2A @ H2B) / 2,
    ),
    "loha, no alpha": (
        {"hada_w1_a": H1A, "hada_w1_b": H1B, "hada_w2_a": H2A, "hada_w2_b": H2B},
        (H1A @ H1B) * (H2A @ H2B),
    ),
}


class Net(nn.Module):
    """One layer of 12 x 8, and one of another name."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleDict({"to_q": nn.Linear(COLUMNS, ROWS), "to_k": nn.Linear(8, 12)})])

    def forward(self, x):
        return self.blocks[0]["to_q"](x) + self.blocks[0]["to_k"](x)


def net():
    torch.manual_seed(0)
    return Net().requires_grad_(False)


def write(path, tensors, prefix="diffusion_model."):
    name = NAME.replace(".", "_") if prefix.endswith("_") else NAME
    own = {key if key == "lokr_factor" else f"{prefix}{name}.{key}": value for key, value in tensors.items()}
    save_file({key: value.contiguous() for key, value in own.items()}, path)
    return path


def read(path):
    return with_dots(read_lora(path), "dit", ["blocks.0.to_q", "blocks.0.to_k"])


@pytest.fixture
def x():
    return rand(5, 8, seed=40)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("what", FILES)
def test_a_file_is_the_product_in_its_formula(tmp_path, what, prefix):
    tensors, expected = FILES[what]
    layer = read(write(tmp_path / "l.safetensors", tensors, prefix))[NAME]
    assert layer.shape == (ROWS, COLUMNS)
    torch.testing.assert_close(layer.matrix() * layer.scale, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(layer.times(rand(8, 3)), layer.matrix() @ rand(8, 3), atol=1e-5, rtol=1e-5)
    for first, last in ((0, 12), (3, 9), (2, 7), (4, 5), (6, 12)):
        part = layer.rows(first, last)
        assert part.shape == (last - first, COLUMNS)
        assert torch.equal(part.matrix(), layer.matrix()[first:last]) or what.startswith("loha")
        torch.testing.assert_close(part.rows(0, 1).matrix(), layer.matrix()[first : first + 1])
        torch.testing.assert_close(part.times(rand(8, 2)), (layer.matrix() @ rand(8, 2))[first:last])
    torch.testing.assert_close(layer.rolled(6).matrix(), layer.matrix().roll(6, dims=0))


@pytest.mark.parametrize("strength", [1.0, 0.3, 0.0, -2.0])
@pytest.mark.parametrize("what", FILES)
def test_what_is_applied_equals_what_is_fused_and_the_formula(tmp_path, x, what, strength):
    tensors, update = FILES[what]
    path = write(tmp_path / "l.safetensors", tensors)
    loaded, fused = net(), net()
    load_lora(Pipe(dit=loaded), path, strength)
    fuse_lora(Pipe(dit=fused), path, "dit", strength)
    expected = net()(x) + strength * x @ update.T
    torch.testing.assert_close(loaded(x), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loaded(x), fused(x), atol=1e-5, rtol=1e-6)
    if strength == 0:
        assert torch.equal(loaded(x), net()(x))


@pytest.mark.parametrize("form", [form for form, each in FORMATS.items() if each.products])
@pytest.mark.parametrize("what", FILES)
def test_every_format_that_holds_it_reads_back_the_same_numbers(tmp_path, what, form):
    layers = read(write(tmp_path / "l.safetensors", FILES[what][0]))
    shapes = {"dit": {NAME: (ROWS, COLUMNS)}}
    path = save_lora(tmp_path / "again.safetensors", {"dit": layers}, {}, form=form, shapes=shapes)
    found = read_lora(path)
    assert found.format == form
    torch.testing.assert_close(read(path)[NAME].matrix() * read(path)[NAME].scale, FILES[what][1], atol=1e-6, rtol=1e-6)
    names = {key.rpartition(".")[2] for key in load_file(path)}
    assert names - {"alpha"} <= {f"lokr_w{n}{end}" for n in "12" for end in ("", "_a", "_b")} | set(FILES["loha"][0])


@pytest.mark.parametrize("form", ["diffsynth", "peft"])
@pytest.mark.parametrize(("what", "title"), [("w2 low", "LoKr"), ("loha", "LoHa")])
def test_a_format_that_cannot_hold_it_is_refused_and_writes_nothing(tmp_path, what, title, form):
    layers = read(write(tmp_path / "l.safetensors", FILES[what][0]))
    with pytest.raises(DsctlError, match=f"the format {form} cannot hold a {title}"):
        save_lora(tmp_path / "again", {"dit": layers}, {}, form=form)
    assert [path.name for path in tmp_path.iterdir()] == ["l.safetensors"]


@pytest.mark.parametrize("what", ["w2 low", "no alpha", "loha"])
def test_a_low_rank_one_is_a_lora_of_the_product_of_the_ranks(tmp_path, what):
    low = {key: value[..., :1] if key.endswith("_a") else value for key, value in FILES[what][0].items()}
    low = {key: value[:1] if key.endswith("_b") else value for key, value in low.items()}
    layer = read(write(tmp_path / "l.safetensors", low))[NAME]
    made = as_lora(NAME, layer)
    assert made.rank == (1 if what == "loha" else 2)  # of a LoKr: the side of a whole w1, times the rank of w2
    torch.testing.assert_close(made.matrix() * made.scale, layer.matrix() * layer.scale, atol=1e-6, rtol=1e-6)


def test_two_networks_merge_into_one_lora_that_equals_both_applied(tmp_path, x):
    low = {"hada_w1_a": H1A[:, :2], "hada_w1_b": H1B[:2], "hada_w2_a": H2A[:, :2], "hada_w2_b": H2B[:2]}
    loha = write(tmp_path / "a.safetensors", low)
    lokr = write(tmp_path / "b.safetensors", {"lokr_w1": W1, "lokr_w2_a": W2A[:, :1], "lokr_w2_b": W2B[:1]})
    both = [ScaledLora(read_lora(loha), 0.8), ScaledLora(read_lora(lokr), -0.5)]
    merged, _ = merge_into_one(both, {}, None)
    one = save_lora(tmp_path / "c.safetensors", merged, {})
    assert merged["dit"][NAME].rank == 4 + 2
    applied, together = net(), net()
    load_lora(Pipe(dit=applied), loha, 0.8)
    load_lora(Pipe(dit=applied), lokr, -0.5)
    load_lora(Pipe(dit=together), one)
    torch.testing.assert_close(together(x), applied(x), atol=1e-5, rtol=1e-5)


SQUARE = ({"lokr_w1": rand(3, 2), "lokr_w2": rand(4, 4)}, torch.kron(rand(3, 2), rand(4, 4)))


@pytest.mark.parametrize(("tensors", "update"), [SQUARE, FILES["loha"]])
def test_one_of_full_rank_has_no_exact_lora_and_the_nearest_says_how_near_it_is(tmp_path, tensors, update):
    layers = read(write(tmp_path / "l.safetensors", tensors))
    with pytest.raises(DsctlError, match=r"has no exact LoRA: its Lo.. has rank \d+, and the weight is 12x8") as caught:
        merge_into_one([ScaledLora(read_lora(tmp_path / "l.safetensors"), 1.0)], {}, None)
    assert "dsctl lora resize" in caught.value.hint
    near, kept = resize_layers(layers, 3)
    best = torch.linalg.svdvals(update)[:3].square().sum() / update.square().sum()
    assert kept.share == pytest.approx(float(best), abs=1e-5) and kept.share < 1
    missed = (near[NAME].matrix() * near[NAME].scale - update).square().sum() / update.square().sum()
    assert float(missed) == pytest.approx(1 - float(best), abs=1e-5)


@pytest.mark.parametrize(("network", "most"), [("lora", 8), ("lokr", 7), ("loha", 7)])
def test_no_rank_is_written_with_which_a_lora_would_be_larger_than_the_weight(tmp_path, network, most):
    lora = {"lora_down.weight": rand(2, 8), "lora_up.weight": rand(12, 2)}
    tensors = {"lora": lora, "lokr": SQUARE[0], "loha": FILES["loha"][0]}[network]
    layers = read(write(tmp_path / "l.safetensors", tensors))
    assert resize_layers(layers, most)[0][NAME].rank == most
    for rank in (most + 1, 400):
        with pytest.raises(DsctlError, match=f"no layer has a LoRA of rank {rank} .* is 12x8") as caught:
            resize_layers(layers, rank)
        assert "below 8" in caught.value.hint


NORMS = rand(12, 1, seed=9).abs() + 0.5


@pytest.mark.parametrize("strength", [1.0, 0.4, 0.0])
@pytest.mark.parametrize("what", ["lora", "w2 low", "whole", "loha"])
def test_norms_of_rows_beside_any_network_are_applied_fused_and_written(tmp_path, x, what, strength):
    down, up = rand(2, 8), rand(12, 2)
    lora = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(1.0)}
    tensors, update = (lora, up @ down / 2) if what == "lora" else FILES[what]
    path = write(tmp_path / "l.safetensors", {**tensors, "dora_scale": NORMS}, "lycoris_")
    layer = read(path)[NAME]
    weight = net().blocks[0]["to_q"].weight
    turned = weight + update
    changed = NORMS * turned / turned.norm(dim=1, keepdim=True)
    torch.testing.assert_close(update_of(weight, layer), changed - weight, atol=1e-5, rtol=1e-5)
    loaded, fused = net(), net()
    load_lora(Pipe(dit=loaded), path, strength)
    fuse_lora(Pipe(dit=fused), path, "dit", strength)
    expected = net()(x) + strength * x @ (changed - weight).T
    torch.testing.assert_close(loaded(x), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fused(x), expected, atol=1e-5, rtol=1e-5)
    again = save_lora(tmp_path / "again.safetensors", {"dit": {NAME: layer}}, {}, form="lycoris")
    assert torch.equal(load_file(again)[f"lycoris_{NAME.replace('.', '_')}.dora_scale"], NORMS)
    for form in ("comfyui", "kohya", *(() if what == "lora" else ("diffusers",))):
        with pytest.raises(DsctlError, match=f"the format {form} cannot hold a .*(DoRA|with magnitudes)"):
            save_lora(tmp_path / "no.safetensors", {"dit": {NAME: layer}}, {}, form=form)


def test_adapters_of_every_network_on_one_layer_add_up_in_any_order(tmp_path, x):
    down, up = rand(2, 8), rand(12, 2)
    lora = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(1.0)}
    kinds = {"lora": lora, "dora": {**lora, "dora_scale": NORMS}, **{k: FILES[k][0] for k in ("w2 low", "loha")}}
    paths = {kind: write(tmp_path / f"{kind}.safetensors", tensors) for kind, tensors in kinds.items()}
    alone = {}
    for kind, path in paths.items():
        model = net()
        load_lora(Pipe(dit=model), path, 0.7)
        alone[kind] = model(x) - net()(x)
    for order in (list(paths), list(paths)[::-1], ["loha", "dora", "lora", "w2 low"]):
        model = net()
        for kind in order:
            load_lora(Pipe(dit=model), paths[kind], 0.7)
        torch.testing.assert_close(model(x), net()(x) + sum(alone.values()), atol=2e-5, rtol=1e-5)
    assert not [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"lokr_w1": W1}, "needs lokr_w2, or lokr_w2_a and lokr_w2_b, and has lokr_w1"),
        ({"lokr_w1": W1, "lokr_w2_a": W2A}, "needs lokr_w2"),
        ({"lokr_w1": W1, "lokr_w2": W2, "lokr_w2_a": W2A, "lokr_w2_b": W2B}, "needs lokr_w2, or"),
        ({"lokr_w1": W1, "lokr_w2_a": W2A, "lokr_w2_b": rand(2, 4)}, "do not fit each other"),
        ({"lokr_w1": W1, "lokr_t2": T2, "lokr_w2": W2}, "do not fit each other"),
        ({"lokr_w1": W1, "lokr_w2": rand(3, 4, 3, 3)}, "not that of a linear layer"),
        ({"lokr_w1": W1, "lokr_w2": rand(3)}, "not that of a linear layer"),
        (
            {"lokr_w1_a": W1A[:, :2], "lokr_w1_b": W1B[:2], "lokr_w2_a": W2A, "lokr_w2_b": W2B, "alpha": ALPHA},
            "have the ranks 2 and 3, and one alpha",
        ),
        ({"hada_w1_a": H1A, "hada_w1_b": H1B}, "needs hada_w2"),
        ({"hada_w1_a": H1A, "hada_w1_b": H1B, "hada_w2_a": H2A[:5], "hada_w2_b": H2B}, "do not fit each other"),
        ({"lokr_w1": W1, "lokr_w2": W2, "hada_w1_a": H1A}, "parts of two networks"),
        ({**FILES["loha"][0], "lora_down.weight": rand(2, 8)}, "parts of two networks"),
        ({**FILES["loha"][0], "dora_scale": rand(1, 8)}, "norms of the columns of the weight, not of its rows"),
        ({**FILES["loha"][0], "dora_scale": rand(5, 1)}, r"magnitude of .* is \(5,\), not \(12,\)"),
        ({"alpha": ALPHA, "dora_scale": NORMS}, "no LoRA layers"),
        ({"lokr_w1": W1, "lokr_w2_a": W2A, "lokr_w2_b": W2B * torch.nan}, "lokr_w2_b"),
    ],
)
def test_a_file_that_is_not_whole_or_not_exact_is_refused_in_one_line(tmp_path, tensors, message):
    path = write(tmp_path / "l.safetensors", tensors)
    with pytest.raises(DsctlError, match=message) as caught:
        read_lora(path)
    assert str(path) in caught.value.problem and "\n" not in caught.value.problem
    assert caught.value.hint


@pytest.mark.parametrize("kind", [LokrLayer, LohaLayer])
def test_the_matrix_has_the_gradients_of_its_parts(kind):
    parts = [part.clone().requires_grad_() for part in (H1A, H1B, H2A, H2B)]
    layer = kind((parts[0], parts[1]), (parts[2], parts[3]))
    (layer.matrix() ** 2).sum().backward()
    assert all(part.grad is not None and part.grad.abs().sum() > 0 for part in parts)
