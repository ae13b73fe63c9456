"""A LoRA is the same in every format, loads in diffusers, and is not written when it would not be."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.errors import DsctlError
from dsctl_core.families import load_family, pipeline_class
from dsctl_core.lora import FORMATS, LoraLayer, load_lora, read_lora, save_lora
from dsctl_core.lora.files import ADAPTER_CONFIG, ADAPTER_FILE
from dsctl_core.lora.formats import with_dots
from dsctl_core.lora.layers import linear_shapes
from tests.tiny_models import write_tiny_model

FAMILY = load_family("qwen-image")
TARGETS = ("to_q", "add_k_proj", "to_out.0", "net.2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_model("qwen-image", tmp_path_factory.mktemp("models") / "tiny")


def pipeline(folder):
    return pipeline_class(FAMILY).from_pretrained(
        torch_dtype=torch.float32, device="cpu", model_configs=[ModelConfig(folder)], only=["dit"]
    )


@pytest.fixture(scope="module")
def shapes(folder):
    return linear_shapes(pipeline(folder).dit)


@pytest.fixture(scope="module")
def layers(shapes):
    """A LoRA on layers of every kind, of two ranks, with scales that are not one."""
    generator = torch.Generator().manual_seed(5)
    made = {}
    for number, (name, (rows, columns)) in enumerate(sorted(shapes.items())):
        if name.endswith(TARGETS):
            rank = 2 + number % 2
            down, up = (torch.randn(size, generator=generator) * 0.3 for size in ((rank, columns), (rows, rank)))
            made[name] = LoraLayer(down, up, 0.5 if number % 3 else 1.25)
    assert len(made) > 8
    return made


def path_of(tmp_path, form):
    return tmp_path / ("lora" if FORMATS[form].folder else "lora.safetensors")


def velocity(dit):
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        return dit(
            hidden_states=torch.randn(1, 6, 64, generator=generator),
            timestep=torch.tensor([0.5]),
            encoder_hidden_states=torch.randn(1, 3, 32, generator=generator),
            encoder_hidden_states_mask=torch.ones(1, 3, dtype=torch.bool),
            img_shapes=[[(1, 2, 3)]],
            return_dict=False,
        )[0]


@pytest.fixture(scope="module")
def expected(folder, layers):
    """What the model predicts with the updates in its weights, and without."""
    dit = pipeline(folder).dit
    base = velocity(dit)
    modules = dict(dit.named_modules())
    with torch.no_grad():
        for name, layer in layers.items():
            modules[name].weight += layer.scale * layer.up @ layer.down
    return velocity(dit), base


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_read_back_and_applied_gives_the_same_output(tmp_path, folder, shapes, layers, expected, form):
    path = save_lora(path_of(tmp_path, form), {"dit": layers}, {}, form=form, shapes={"dit": shapes})
    found = read_lora(path)
    assert found.format == form
    assert set(with_dots(found, "dit", shapes)) == set(layers)
    pipe = pipeline(folder)
    load_lora(pipe, path)
    changed, base = expected
    torch.testing.assert_close(velocity(pipe.dit), changed, atol=1e-5, rtol=1e-5)
    assert (changed - base).abs().max() > 0.05


def test_all_formats_give_outputs_within_1e_6_of_each_other(tmp_path, folder, shapes, layers):
    outputs = []
    for form in FORMATS:
        path = (
            save_lora(path_of(tmp_path / form, form), {"dit": layers}, {}, form=form)
            if ((tmp_path / form).mkdir() is None)
            else None
        )
        pipe = pipeline(folder)
        load_lora(pipe, path)
        outputs.append(velocity(pipe.dit))
    assert len(outputs) > 2
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], atol=1e-6, rtol=1e-6)


def diffusers_pipeline(folder):
    from diffusers import QwenImagePipeline

    return QwenImagePipeline.from_pretrained(str(folder), local_files_only=True)


@pytest.mark.parametrize("form", ["diffusers", "comfyui", "kohya", "diffsynth"])
def test_diffusers_loads_all_layers_without_a_warning_and_gives_our_output(
    tmp_path, folder, shapes, layers, expected, form, caplog
):
    path = save_lora(path_of(tmp_path, form), {"dit": layers}, {}, form=form, shapes={"dit": shapes})
    pipe = diffusers_pipeline(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    loaded = {name for name, module in pipe.transformer.named_modules() if hasattr(module, "lora_A")}
    assert loaded == set(layers)
    torch.testing.assert_close(velocity(pipe.transformer), expected[0], atol=1e-5, rtol=1e-5)


def test_peft_loads_the_folder_and_gives_our_output(tmp_path, folder, layers, expected):
    from peft import PeftModel

    path = save_lora(tmp_path / "lora", {"dit": layers}, {"base_model": "tiny"}, form="peft")
    model = PeftModel.from_pretrained(diffusers_pipeline(folder).transformer, str(path))
    torch.testing.assert_close(velocity(model), expected[0], atol=1e-5, rtol=1e-5)


def test_what_diffusers_saves_with_an_alpha_is_read_at_its_strength(tmp_path, folder, expected):
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = diffusers_pipeline(folder)
    config = LoraConfig(r=4, lora_alpha=2, target_modules=["to_q"], init_lora_weights=False)
    pipe.transformer.add_adapter(config)
    wanted = velocity(pipe.transformer)
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.transformer))
    pipe.save_lora_weights(
        str(tmp_path), transformer_lora_layers=state, transformer_lora_adapter_metadata=config.to_dict()
    )
    ours = pipeline(folder)
    load_lora(ours, tmp_path / "pytorch_lora_weights.safetensors")
    torch.testing.assert_close(velocity(ours.dit), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_smaller_dtype_is_written_and_proven(tmp_path, shapes, layers, dtype):
    path = save_lora(tmp_path / "l.safetensors", {"dit": layers}, {}, dtype=dtype, shapes={"dit": shapes})
    assert {tensor.dtype for tensor in load_file(path).values()} == {getattr(torch, dtype)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layers: {**layers, "stranger": next(iter(layers.values()))}, "stranger of the dit is None in the base"),
        (lambda layers: {**layers, "img_in": LoraLayer(torch.ones(2, 3), torch.ones(32, 2))}, "img_in of the dit is"),
        (
            lambda layers: {name: LoraLayer(each.down * float("nan"), each.up) for name, each in layers.items()},
            "has a value that is no finite number",
        ),
    ],
)
def test_a_file_that_would_not_be_the_lora_is_not_written(tmp_path, shapes, layers, change, message):
    with pytest.raises(DsctlError, match=message):
        save_lora(tmp_path / "l.safetensors", {"dit": change(layers)}, {}, shapes={"dit": shapes})
    assert list(tmp_path.iterdir()) == []


def test_a_value_beyond_float16_is_an_error_and_no_file(tmp_path, layers):
    huge = {name: LoraLayer(layer.down, layer.up * 1e6, layer.scale) for name, layer in layers.items()}
    with pytest.raises(DsctlError, match="was not written.* has a value that is no finite number"):
        save_lora(tmp_path / "l.safetensors", {"dit": huge}, {}, dtype="float16")
    assert list(tmp_path.iterdir()) == []


def test_another_component_has_its_name_in_front_and_other_formats_refuse_it(tmp_path, layers):
    both = {"dit": layers, "text_encoder": layers}
    path = save_lora(tmp_path / "l.safetensors", both, {})
    found = read_lora(path, ("dit", "text_encoder")).components
    assert set(found) == {"dit", "text_encoder"}
    with pytest.raises(DsctlError, match="kohya has no names for a LoRA on the text_encoder"):
        save_lora(tmp_path / "k.safetensors", both, {}, form="kohya")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"lora_alpha": "much"}, "lora_alpha is the text 'much', not a number"),
    ],
)
def test_peft_settings_that_are_not_a_plain_lora_are_refused(tmp_path, layers, settings, message):
    path = save_lora(tmp_path / "lora", {"dit": layers}, {}, form="peft")
    config = path / ADAPTER_CONFIG
    config.write_text(json.dumps({**json.loads(config.read_text()), **settings}))
    with pytest.raises(DsctlError, match=message):
        read_lora(path)


def test_rslora_divides_alpha_by_the_root_of_the_rank(tmp_path):
    one = {"a": LoraLayer(torch.ones(4, 3), torch.ones(5, 4), 2.0)}
    path = save_lora(tmp_path / "lora", {"dit": one}, {}, form="peft")
    config = path / ADAPTER_CONFIG
    config.write_text(json.dumps({**json.loads(config.read_text()), "use_rslora": True}))
    for place in (path, path / ADAPTER_FILE):
        found = read_lora(place).components["dit"]["a"]
        assert found.scale == pytest.approx(4 / 2)  # the scale of 2 is in the matrices, and alpha is the rank
        torch.testing.assert_close(found.up, torch.full((5, 4), 2.0))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"diffusion_model.a.oft_R": torch.ones(2, 2)}, "is a OFT adapter"),
        ({"diffusion_model.a.alpha": torch.ones(())}, "has no LoRA layers"),
        (
            {
                "lora_unet_a.lora_down.weight": torch.ones(1, 2),
                "a.b.lora_up.weight": torch.ones(2, 1),
            },
            "mixes two formats",
        ),
    ],
)
def test_what_is_no_plain_lora_is_named(tmp_path, tensors, message):
    save_file(tensors, tmp_path / "l.safetensors")
    with pytest.raises(DsctlError, match=message):
        read_lora(tmp_path / "l.safetensors")


def test_a_folder_without_a_lora_and_one_with_a_pickle_are_refused(tmp_path):
    with pytest.raises(DsctlError, match="holds no LoRA"):
        read_lora(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(DsctlError, match="only a pickle"):
        read_lora(Path(tmp_path))


def test_a_flat_name_that_fits_two_layers_is_refused(tmp_path):
    one = {"a.b": LoraLayer(torch.ones(1, 2), torch.ones(2, 1))}
    path = save_lora(tmp_path / "l.safetensors", {"dit": one}, {}, form="kohya")
    with pytest.raises(DsctlError, match=r"a_b can be a\.b or a_b"):
        with_dots(read_lora(path), "dit", ["a.b", "a_b"])


def test_a_peft_folder_replaces_one_of_ours_and_nothing_else(tmp_path):
    layer = LoraLayer(torch.ones(2, 8), torch.ones(8, 2), 1.0)
    layers = {"transformer_blocks.0.attn.to_q": layer}
    path = save_lora(tmp_path / "lora", {"dit": layers}, {}, form="peft")
    save_lora(path, {"dit": layers}, {}, form="peft")
    (path / "notes.txt").write_text("mine")
    with pytest.raises(DsctlError, match="no LoRA that dsctl wrote"):
        save_lora(path, {"dit": layers}, {}, form="peft")
    assert (path / "notes.txt").read_text() == "mine"
