"""LoKr, LoHa and DoRA in training: from a dry run to a merged model, resumed and from a cache, as a LoRA is."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from dsctl.app import main
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.lora import LokrLayer, fuse_lora, load_lora
from dsctl_core.lora.adapters import NetworkSettings
from dsctl_core.lora.formats import LoraFile
from dsctl_core.lora.layers import add_network, continue_lora, linear_shapes, trained_layers
from dsctl_core.lora.save import save_lora
from tests.dsctl_core.lora.test_layers import Pipe

LOKR = ("--network", "lokr", "--lokr-factor", "4")
# {network: (its options, what the header of its file says)}
NETWORKS = {
    "lokr": ((*LOKR, "--lora-rank", "2"), {"network": "lokr", "rank": "2", "alpha": "2", "factor": "4"}),
    "lokr, both low": (
        (*LOKR[:2], "--lora-rank", "1", "--lora-alpha", "3", "--lokr-decompose-both", "--lora-format", "comfyui"),
        {"network": "lokr", "rank": "1", "alpha": "3", "factor": "-1", "decompose_both": "true"},
    ),
    "lokr, whole": (
        (*LOKR, "--lokr-full-matrix", "--lora-format", "lycoris"),
        {"network": "lokr", "factor": "4", "full_matrix": "true"},
    ),
    "loha": (
        ("--network", "loha", "--lora-rank", "2", "--lora-alpha", "3", "--lora-format", "kohya"),
        {"network": "loha", "rank": "2", "alpha": "3"},
    ),
    "dora": (
        ("--network", "dora", "--lora-rank", "2", "--lora-format", "lycoris"),
        {"network": "dora", "rank": "2", "alpha": "2", "use_dora": "true"},
    ),
}


@pytest.fixture
def data():
    Path("data").mkdir()
    for name in ("red", "blue"):
        Image.new("RGB", (32, 32), name).save(f"data/{name}.png")
    Path("data/metadata.csv").write_text("image,prompt\nred.png,red\nblue.png,blue\n", encoding="utf-8")
    return "data"


def run(capsys, *words):
    assert main([str(word) for word in (*words, "--json")]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def train(capsys, model, data, *more, output="out", steps=3):
    words = ("train", "sft", "--model", model, "--dataset-base-path", data, "--max-steps", steps)
    return run(capsys, *words, "--learning-rate", "1e-2", "--device", "cpu", "--output-path", output, *more)


def losses(output):
    lines = Path(output, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def updates_in(path, weights):
    """The updates in a LyCORIS file for `weights`, computed from its tensors alone."""
    tensors = load_file(path)
    found = {}
    for name, weight in weights.items():
        layer = name.removesuffix(".weight")
        spellings = (layer, layer.replace(".", "_"))
        own = {}
        for key, tensor in tensors.items():
            head, _, part = key.partition(".lora_") if ".lora_" in key else key.rpartition(".")
            if any(head.endswith((f".{each}", f"lycoris_{each}", f"unet_{each}")) for each in spellings):
                own[part] = tensor
        if not own:
            continue
        if "hada_w1_a" in own:
            update = (own["hada_w1_a"] @ own["hada_w1_b"]) * (own["hada_w2_a"] @ own["hada_w2_b"])
            rank = len(own["hada_w1_b"])
        elif "down.weight" in own:
            update, rank = own["up.weight"] @ own["down.weight"], len(own["down.weight"])
        else:
            pairs = [(own.get(f"lokr_w{n}"), own.get(f"lokr_w{n}_a"), own.get(f"lokr_w{n}_b")) for n in (1, 2)]
            first, second = (a @ b if whole is None else whole for whole, a, b in pairs)
            update, rank = torch.kron(first, second), next((len(b) for _, _, b in pairs[::-1] if b is not None), None)
        update = update * (1 if rank is None or "alpha" not in own else float(own["alpha"]) / rank)
        if "dora_scale" in own:
            turned = weight + update
            update = own["dora_scale"] * turned / turned.norm(dim=1, keepdim=True) - weight
        found[name] = update
    return found


@pytest.mark.parametrize("network", NETWORKS)
def test_a_run_is_what_its_dry_run_says_and_merged_equals_applied(capsys, tiny_folder, data, load_pipe, network):
    more, header = NETWORKS[network]
    predicted = train(capsys, tiny_folder, data, *more, "--dry-run")
    path = Path(train(capsys, tiny_folder, data, *more)["checkpoint"])
    report = json.loads(Path("out/run.json").read_text(encoding="utf-8"))
    assert {name: predicted["parameters"][name] for name in ("trained", "all")} == report["parameters"]
    with safe_open(path, "pt") as file:
        about = file.metadata()
        stored = sum(file.get_tensor(key).numel() for key in file.keys() if not key.endswith(".alpha"))  # noqa: SIM118
    assert stored == predicted["parameters"]["trained"] == predicted["disk"]["checkpoints"] / 4
    assert header.items() <= about.items()
    assert about.keys().isdisjoint({"rank", "alpha", "factor", "decompose_both", "full_matrix"} - header.keys())
    assert run(capsys, "lora", "info", path)["network"] == [header["network"]]

    base = {name: tensor.clone() for name, tensor in load_pipe(only=["dit"]).dit.state_dict().items()}
    updates = updates_in(path, {name: each for name, each in base.items() if each.ndim == 2})
    assert len(updates) == run(capsys, "lora", "info", path)["components"]["dit"] > 5
    run(capsys, "merge-lora", "--model", tiny_folder, "--lora", f"{path}:0.7", "--output", "merged")
    merged = load_file(next(Path("merged/transformer").glob("*.safetensors")))
    fused, applied = load_pipe(only=["dit"]), load_pipe(only=["dit"])
    fuse_lora(fused, path, "dit", 0.7)
    load_lora(applied, path, 0.7)
    for name, tensor in base.items():
        expected = tensor + 0.7 * updates[name] if name in updates else tensor
        torch.testing.assert_close(merged[name], expected, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(fused.dit.state_dict()[name], expected, atol=1e-6, rtol=1e-6)
        if name in updates:
            layer, x = name.removesuffix(".weight"), torch.randn(3, tensor.shape[1])
            whole = fused.dit.get_submodule(layer)(x)
            torch.testing.assert_close(applied.dit.get_submodule(layer)(x), whole, atol=1e-5, rtol=1e-5)
    assert sum(bool(update.abs().max() > 1e-5) for update in updates.values()) > 5  # the last block's text has no loss
    if network != "loha":
        return  # one is enough for the command
    words = ("--prompt", "red", "--height", "32", "--width", "32", "--num-inference-steps", "2", "--output")
    run(capsys, "infer", "--model", "./merged", *words, "a.png")
    run(capsys, "infer", "--model", tiny_folder, "--lora", f"{path}:0.7", *words, "b.png")
    a, b = (torch.frombuffer(bytearray(Image.open(f"{n}.png").tobytes()), dtype=torch.uint8).int() for n in "ab")
    assert (a - b).abs().max() <= 1


@pytest.mark.parametrize("network", ["lokr", "lokr, whole", "loha"])
def test_resumed_equals_straight_and_cached_equals_anew_and_a_preset_is_part_of_the_base(
    capsys, tiny_folder, data, network
):
    more = NETWORKS[network][0]
    straight = Path(train(capsys, tiny_folder, data, *more, steps=4)["checkpoint"])
    train(capsys, tiny_folder, data, *more, "--save-steps", "2", steps=2, output="parts")
    resumed = train(
        capsys, tiny_folder, data, *more, "--save-steps", "2", "--resume", "latest", output="parts", steps=4
    )
    one, other = load_file(straight), load_file(resumed["checkpoint"])
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert losses("parts") == losses("out")
    train(capsys, tiny_folder, data, *more, "--no-cache", steps=4, output="anew")
    assert losses("anew") == losses("out")
    assert len({round(loss, 6) for loss in losses("out")}) > 2
    again = ("--lora-checkpoint", straight)
    train(capsys, tiny_folder, data, *more, *again, steps=1, output="on")
    train(capsys, tiny_folder, data, "--lora-rank", "2", "--preset-lora-path", straight, steps=1, output="beyond")
    # Both begin at the weights that the straight run ended with.
    assert losses("on")[0] == pytest.approx(losses("beyond")[0], rel=1e-5)
    assert losses("on")[0] != losses("out")[0]


def layers_of(**settings):
    """A model of two layers with a network that is away from its start, and the names of what is trained."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"to_q": nn.Linear(24, 36), "to_k": nn.Linear(24, 24)}).requires_grad_(False)
    model.bfloat16() if settings.pop("half", False) else None
    add_network(model, ["to_q", "to_k"], NetworkSettings(**settings), seed=3)
    return model


SETTINGS = [
    {"network": "lokr", "rank": 2},
    {"network": "lokr", "rank": 1, "decompose_both": True, "alpha": 0.5},
    {"network": "lokr", "rank": 2, "factor": 3, "alpha": 5},
    {"network": "lokr", "full_matrix": True},
    {"network": "loha", "rank": 3, "alpha": 2},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_new_network_changes_nothing_and_is_all_that_trains_and_comes_back_from_its_file(tmp_path, settings):
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(1))
    for half in (False, True):
        model = layers_of(**settings, half=half)
        given = x.to(model["to_q"].get_base_layer().weight.dtype)
        for layer in model.values():
            assert torch.equal(layer(given), layer.get_base_layer()(given))
        trained = [p for p in model.parameters() if p.requires_grad]
        assert {p.dtype for p in trained} == {torch.float32}
        layers = trained_layers(model)
        assert sum(p.numel() for p in trained) == sum(p.numel() for e in layers.values() for p in e.parts().values())
        model["to_q"](given).float().square().sum().backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    assert {layer.scale for layer in layers.values()} <= {1.0, settings.get("alpha", 0) / settings.get("rank", 1)}
    same, other = (layers_of(**settings) for _ in "ab")
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), other.parameters(), strict=True))
    generator = torch.Generator().manual_seed(2)
    for parameter in same.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(generator=generator)
    shapes = {"dit": {"to_q": (36, 24), "to_k": (24, 24)}}
    path = save_lora(tmp_path / "l.safetensors", {"dit": trained_layers(same)}, {}, shapes=shapes)
    alpha = {} if "full_matrix" in settings else {"alpha": 7.0}
    go_on = layers_of(**{**settings, **alpha})
    continue_lora(go_on, "dit", path)
    plain = nn.ModuleDict({name: layer.get_base_layer() for name, layer in layers_of(**settings).items()})
    load_lora(Pipe(dit=plain), path)
    assert linear_shapes(plain) == shapes["dit"]
    for name in ("to_q", "to_k"):
        torch.testing.assert_close(go_on[name](x), same[name](x), atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(plain[name](x), same[name](x), atol=1e-4, rtol=1e-5)


def test_the_factor_is_that_of_lycoris_where_it_divides_and_alpha_without_effect_is_an_error():
    shapes = {name: layer.blocks for name, layer in trained_layers(layers_of(network="lokr", factor=3, rank=2)).items()}
    assert shapes == {"to_q": ((3, 3), (12, 8)), "to_k": ((3, 3), (8, 8))}
    near = trained_layers(layers_of(network="lokr", rank=2))["to_q"].blocks
    assert near == ((6, 4), (6, 6)) and math.prod(side for block in near for side in block) == 36 * 24
    with pytest.raises(UsageError, match="alpha has no effect on this LoKr: at rank 32 all"):
        layers_of(network="lokr", rank=32, alpha=2.0)


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"network": "loha", "rank": 2}, "is a LoKr, and this run trains a LoHa", "--network lokr"),
        ({"network": "lora", "rank": 2}, "is a LoKr, and this run trains a LoRA", "--network lokr"),
        ({"network": "lokr", "rank": 1}, "has rank 2, but this run trains rank 1", "--lora-rank 2"),
        ({"network": "lokr", "rank": 2, "factor": 2}, "LoKr of other factors: it has lokr_w1 6x4", "--lokr-factor"),
        ({"network": "lokr", "full_matrix": True}, "this run trains lokr_w1 6x4, lokr_w2 6x6", "--lokr-full-matrix"),
    ],
)
def test_going_on_as_another_network_is_refused(tmp_path, settings, message, hint):
    path = save_lora(
        tmp_path / "l.safetensors", {"dit": trained_layers(layers_of(network="lokr", rank=2))}, {"family": "net"}
    )
    with pytest.raises(DsctlError, match=message) as caught:
        continue_lora(layers_of(**settings), "dit", path)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "change", [lambda each: each.rows(1, 37), lambda each: each.with_values(scale=1.0, magnitude=torch.ones(36))]
)
def test_what_no_run_trains_is_refused_as_a_start(tmp_path, monkeypatch, change):
    """Rows of a LoKr on a fused layer, and a LoKr with magnitudes, as files of other trainers can have."""
    wide = LokrLayer((torch.ones(2, 4),), (torch.ones(19, 6),))
    layer = change(wide if change(wide).shape == (36, 24) else LokrLayer((torch.ones(6, 4),), (torch.ones(6, 6),)))
    found = LoraFile(tmp_path / "l.safetensors", {"dit": {"to_q": layer, "to_k": layer.rows(0, 24)}})
    monkeypatch.setattr("dsctl_core.lora.layers.read_lora", lambda *_: found)
    with pytest.raises(DsctlError, match="is a LoKr with (magnitudes|layers that are one with others), which no run"):
        continue_lora(layers_of(network="lokr", rank=2), "dit", found.path)
    if layer.magnitude is None:
        with pytest.raises(
            DsctlError, match="36 rows of a LoKr, which was put on a layer that is one with others, are"
        ):
            save_lora(tmp_path / "again.safetensors", {"dit": {"to_q": layer}}, {})
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--network", "loha", "--lora-dropout", "0.1"), "--lora-dropout has no effect with --network loha"),
        (("--network", "lokr", "--use-rslora"), "--use-rslora has no effect with --network lokr"),
        (("--network", "dora", "--use-dora"), "--network and --use-dora are both given"),
        (("--lora-rank", "2", "--lokr-factor", "4"), "--lokr-factor has no effect without --network lokr"),
        (("--network", "loha", "--lokr-full-matrix"), "--lokr-full-matrix has no effect without --network lokr"),
        (("--network", "lokr", "--lokr-full-matrix", "--lora-rank", "2"), "--lora-rank has no effect with --lokr-full"),
        (
            ("--network", "lokr", "--lokr-full-matrix", "--lokr-decompose-both"),
            "--lokr-decompose-both has no effect with --lokr-full-matrix",
        ),
        (("--trainable-models", "dit", "--lokr-factor", "4"), "--lokr-factor has no effect without a LoRA to train"),
        (("--network", "lokr", "--lora-format", "diffsynth"), "--lora-format diffsynth cannot hold a LoKr"),
        (("--network", "loha", "--lora-format", "peft"), "--lora-format peft cannot hold a LoHa"),
        (("--network", "dora", "--lora-format", "comfyui"), "--lora-format comfyui cannot hold a DoRA"),
        (("--network", "glora"), "--network is 'glora', which is unknown"),
    ],
)
def test_an_option_of_another_network_is_a_usage_error(capsys, tiny_folder, words, message):
    start = ("train", "--model", str(tiny_folder), "--dataset-base-path", "x", "--output-path", "o")
    assert main([*start, *words]) == UsageError.exit_code
    assert message in capsys.readouterr().err
