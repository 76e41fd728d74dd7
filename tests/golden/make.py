"""Makes the golden values beside this file from the original packages: `python tests/golden/make.py [--out FOLDER]`.

README.md says what each file holds and which packages are needed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, this file has only its own folder there

import torch
import torch.nn.functional as F
from golden import frozen
from safetensors.torch import save_file
from torch import Tensor, nn

STEP = 3  # every third row and column of heatmaps and pixels is stored; it meets every place within a patch
IMAGEBIND = {
    "vision_embed_dim": 64, "vision_num_blocks": 4, "vision_num_heads": 4,
    "audio_embed_dim": 48, "audio_num_blocks": 3, "audio_num_heads": 4,
    "text_embed_dim": 32, "text_num_blocks": 2, "text_num_heads": 2,
    "out_embed_dim": 40,
    "depth_embed_dim": 16, "depth_num_blocks": 1, "depth_num_heads": 2,
    "thermal_embed_dim": 16, "thermal_num_blocks": 1, "thermal_num_heads": 2,
    "imu_embed_dim": 16, "imu_num_blocks": 1, "imu_num_heads": 2,
}  # fmt: skip
TEXTS = ["a photo of a dog", "The siren wails; 3 police cars!", "naïve café \u2014 ünïcode"]
OPEN_CLIP: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 64, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}
SIGLIP: dict[str, Any] = {
    "img_size": 64, "patch_size": 16, "embed_dim": 96, "depth": 3, "num_heads": 4,
    "class_token": False, "global_pool": "map", "num_classes": 0, "fc_norm": False,
}  # fmt: skip
Weights = dict[str, Tensor]
Values = dict[str, Tensor]


# ------------------------------------------------------------------ imagebind-packaged


def bare_package(name: str) -> Path:
    """Put an empty package in the place of an installed one, whose `__init__` imports what installs hardly anywhere.

    Returns:
        The package's folder; its modules can be imported from now on.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"{name} is not installed")
    sys.modules[name] = importlib.util.module_from_spec(spec)
    return Path(spec.submodule_search_locations[0])


def imagebind_model() -> Any:
    bare_package("imagebind")
    model = importlib.import_module("imagebind.models.imagebind_model").ImageBindModel(**IMAGEBIND)
    return model.eval().requires_grad_(False)


def imagebind_layout() -> dict[str, list[int]]:
    """Shapes of the vision, audio and text towers."""
    return {
        key: list(value.shape)
        for key, value in imagebind_model().state_dict().items()
        if key.split(".")[1] in ("vision", "audio", "text")
    }


def imagebind_small(weights: Weights, inputs: Values) -> Values:
    """Embeddings of the original model, and its LeGrad heatmaps by autograd."""
    model = imagebind_model()
    from imagebind.models.multimodal_preprocessors import SimpleTokenizer

    found = model.load_state_dict(weights, strict=False)  # the towers that avgrad has no use for are missing
    assert not found.unexpected_keys
    vocabulary = bare_package("imagebind") / "bpe" / "bpe_simple_vocab_16e6.txt.gz"
    tokenizer = SimpleTokenizer(str(vocabulary))
    outputs = {"text_tokens": torch.stack([tokenizer(text) for text in TEXTS])}
    embeddings = model({"vision": inputs["image"], "audio": inputs["audio"], "text": outputs["text_tokens"]})
    outputs |= {f"{name}_embedding": value for name, value in embeddings.items()}
    outputs["vision_embedding_308"] = model({"vision": inputs["image_308"]})["vision"]
    outputs |= imagebind_heatmaps(model, inputs)
    return outputs


def imagebind_heatmaps(model: Any, inputs: Values) -> Values:
    """LeGrad over the original vision tower, as the paper defines it."""
    trunk, head = model.modality_trunks["vision"], model.modality_heads["vision"]
    attention: list[Tensor] = []
    outputs: list[Tensor] = []

    def recording(layer: nn.MultiheadAttention) -> Callable[..., Tensor]:
        def forward(x: Tensor, attn_mask: Tensor | None) -> Tensor:
            length, batch, _ = x.shape
            q, k, v = F.linear(x, layer.in_proj_weight, layer.in_proj_bias).chunk(3, dim=-1)
            q, k, v = (t.reshape(length, batch, layer.num_heads, -1).permute(1, 2, 0, 3) for t in (q, k, v))
            weights = ((q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)).softmax(-1).requires_grad_(True)
            attention.append(weights)
            return layer.out_proj((weights @ v).permute(2, 0, 1, 3).reshape(x.shape))

        return forward

    def layers_of(pixels: Tensor, pooling: str) -> Tensor:
        attention.clear()
        outputs.clear()
        model({"vision": pixels[:1]})
        layers = []
        for weights, tokens in zip(attention, outputs, strict=True):  # tokens [n, 1, D]
            pooled = tokens.mean(0) if pooling == "mean" else tokens[0]
            embedding = F.normalize(head[2](head[0](pooled)), dim=-1)
            maps = []
            for prompt in inputs["prompts"]:
                gradient = torch.autograd.grad((embedding * prompt).sum(), weights, retain_graph=True)[0]
                maps.append(gradient[0].clamp(min=0).mean((0, 1))[1:])
            layers.append(torch.stack(maps))
        return torch.stack(layers)  # [L, P, n]

    def heatmaps(layers: Tensor) -> Tensor:
        side = math.isqrt(layers.shape[-1])
        total = F.interpolate(layers.sum(0).unflatten(-1, (side, side))[None], scale_factor=14, mode="bilinear")[0]
        low, high = total.amin((1, 2), keepdim=True), total.amax((1, 2), keepdim=True)
        return (total - low) / (high - low)

    for block in trunk.blocks:
        block.attn.forward = recording(block.attn)
        block.register_forward_hook(lambda _block, _inputs, output: outputs.append(output))
    mean, cls = layers_of(inputs["image"], "mean"), layers_of(inputs["image"], "cls")
    larger = layers_of(inputs["image_308"], "mean")
    return {
        "legrad_mean_layers": mean,
        "legrad_cls_layers": cls,
        "legrad_mean_layers_308": larger,
        "legrad_mean_map": heatmaps(mean),
        "legrad_mean_last2_map": heatmaps(mean[-2:]),
        "legrad_mean_map_308": heatmaps(larger),
    }


def imagebind_media(samples: Path) -> tuple[Values, dict[str, Any]]:
    """What the original loaders make of the recordings and images in a folder, and where the clips lie."""
    import soundfile
    import torchaudio

    bare_package("imagebind")
    transforms, *unused = (mock.MagicMock() for _ in range(3))  # of pytorchvideo only the clip sampler takes part
    bare_package("pytorchvideo")
    sys.modules["pytorchvideo"].transforms = transforms  # type: ignore[attr-defined]
    bare_package("pytorchvideo.data")
    sys.modules |= dict(zip(("pkg_resources", "pytorchvideo.data.encoded_video"), unused, strict=True))
    data = importlib.import_module("imagebind.data")
    values: Values = {}
    timepoints: dict[str, list[list[float]]] = {}

    def load(path: str) -> tuple[Tensor, int]:  # torchaudio's own needs torchcodec
        frames, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
        return torch.from_numpy(frames.T.copy()), sample_rate

    original_timepoints = data.get_clip_timepoints

    def remember(sampler: Any, duration: float) -> Any:
        found = original_timepoints(sampler, duration)
        timepoints[f"{name}_clip_timepoints"] = [[float(start), float(stop)] for start, stop in found]
        return found

    with mock.patch.object(torchaudio, "load", load), mock.patch.object(data, "get_clip_timepoints", remember):
        for name in frozen.SAMPLES:
            audio = [str(samples / f"{name}_audio.wav")]
            values[f"{name}_audio"] = data.load_and_transform_audio_data(audio, "cpu")[0]
            image = [str(next(samples.glob(f"{name}_image.*")))]
            values[f"{name}_image"] = data.load_and_transform_vision_data(image, "cpu")[0]
    return values, {"meta": timepoints}


# ------------------------------------------------------------------ legrad_torch


def legrad(model: nn.Module, layer: int, image: Tensor, prompts: Tensor, **options: Any) -> Tensor:
    """Heatmaps `[P, h, w]` of the original, which patches the model."""
    from legrad import LeWrapper

    with contextlib.redirect_stdout(io.StringIO()):
        wrapped = LeWrapper(model, layer_index=layer)
    for name, value in options.pop("attributes", {}).items():
        setattr(wrapped, name, value)
    maps = wrapped.compute_legrad(text_embedding=prompts, image=image, **options).detach()
    return maps.flatten(0, 1)


def open_clip_model(weights: Weights | None, quick_gelu: bool) -> Any:
    import open_clip

    model = open_clip.CLIP(
        embed_dim=OPEN_CLIP["embed_dim"],
        vision_cfg=open_clip.CLIPVisionCfg(**OPEN_CLIP["vision_cfg"]),
        text_cfg=open_clip.CLIPTextCfg(**OPEN_CLIP["text_cfg"]),
        quick_gelu=quick_gelu,
    )
    if weights is not None:
        model.load_state_dict(weights)
    return model.eval()


def openclip_small(weights: Weights, inputs: Values) -> Values:
    """Heatmaps of legrad_torch over open_clip: all layers, the last two, and all layers of a larger image."""
    with torch.no_grad():
        embedding = open_clip_model(weights, False).encode_image(inputs["image"])
    maps = {}
    for key, layer, image in (
        ("map_from_0", 0, "image"),
        ("map_from_-2", -2, "image"),
        ("map_96_from_0", 0, "image_96"),
    ):
        maps[key] = legrad(open_clip_model(weights, False), layer, inputs[image], inputs["text"])
    return {"image_embedding": embedding, **maps}


def openai_small(weights: Weights, inputs: Values) -> Values:
    """The same with QuickGELU, all layers."""
    return {"map_from_0": legrad(open_clip_model(weights, True), 0, inputs["image"], inputs["text"])}


def siglip_trunk(weights: Weights | None) -> nn.Module:
    import timm

    trunk = timm.create_model("vit_base_patch16_224", **SIGLIP)
    if weights is not None:
        trunk.load_state_dict(weights)
    return trunk.eval()


def siglip_small(weights: Weights, inputs: Values) -> Values:
    """Heatmaps of legrad_torch over timm's attentional pooler, without and with the correction by an empty prompt."""
    import open_clip
    from open_clip.timm_model import TimmModel

    def model() -> nn.Module:
        clip = open_clip.CustomTextCLIP(
            embed_dim=SIGLIP["embed_dim"],
            vision_cfg=open_clip.CLIPVisionCfg(image_size=64, layers=1, width=32, head_width=8, patch_size=16),
            text_cfg=open_clip.CLIPTextCfg(**OPEN_CLIP["text_cfg"]),
        )
        with torch.device("meta"):
            clip.visual = TimmModel("vit_base_patch16_siglip_224", embed_dim=96, image_size=64, pool="map", proj="none")
        clip.visual.trunk = siglip_trunk(weights)
        return clip.eval()

    with torch.no_grad():
        values = {"image_embedding": siglip_trunk(weights)(inputs["image"])}
    empty = {"empty_embedding": inputs["empty_text"].T}  # its tokenizer would be downloaded
    for key, on in (("map_correction_0", False), ("map_correction_1", True)):
        values[key] = legrad(model(), 0, inputs["image"], inputs["text"], apply_correction=on, attributes=empty)
    return values


# ------------------------------------------------------------------ files


def unit(name: str, shape: tuple[int, int]) -> Tensor:
    """Prompts: rows of length 1."""
    return F.normalize(torch.from_numpy(frozen.draw(name, shape)), dim=-1).float()


def write(folder: Path, model: str, values: Values, metadata: dict[str, Any]) -> None:
    path = folder / f"{model}.io.safetensors"
    tensors = {key: value.detach().contiguous() for key, value in values.items()}
    save_file(tensors, path, {key: json.dumps(value) for key, value in metadata.items()})
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def make(
    folder: Path,
    model: str,
    run: Callable[[Weights, Values], Values],
    layout: dict[str, list[int]],
    shapes: Mapping[str, tuple[int, ...]],
    prompts: dict[str, tuple[int, int]],
    config: dict[str, Any],
    packages: Sequence[str],
) -> Values:
    """Draw weights, inputs and prompts, run the original and write its outputs.

    Returns:
        Everything that the original was given and gave.
    """
    weights = {key: torch.from_numpy(value) for key, value in frozen.weights(model, layout).items()}
    inputs = {key: torch.from_numpy(value) for key, value in frozen.inputs(model, shapes).items()}
    given = {key: unit(f"{model}/{key}", shape) for key, shape in prompts.items()}
    outputs = run(weights, inputs | given)
    outputs = {k: v[..., ::STEP, ::STEP] if k.startswith("legrad") and "_map" in k else v for k, v in outputs.items()}
    versions = {name: version(name) for name in (*packages, "torch")}
    drawn = {"drawn_weights": layout, "drawn_inputs": shapes}
    write(folder, model, given | outputs, {**config, **drawn, "versions": versions})
    return inputs | given | outputs


def check_siglip(layout: dict[str, list[int]], values: Values) -> None:
    """The correction sets patches above a threshold to 0: no patch may lie so near to it that rounding decides."""
    assert (values["map_correction_1"] - values["map_correction_0"]).abs().amax() > 0.1
    weights = {key: torch.from_numpy(value) for key, value in frozen.weights("siglip_small", layout).items()}
    for factor in (1 - 1e-4, 1 + 1e-4):
        moved = siglip_small(weights, {**values, "image": factor * values["image"]})
        assert (moved["map_correction_1"] - values["map_correction_1"]).abs().amax() < 1e-2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    make(
        folder,
        "imagebind_small",
        imagebind_small,
        imagebind_layout(),
        {"image": (2, 3, 224, 224), "image_308": (1, 3, 308, 308), "audio": (2, 3, 1, 128, 204)},
        {"prompts": (3, 40)},
        {"config": IMAGEBIND, "texts": TEXTS},
        ("imagebind-packaged",),
    )
    with tempfile.TemporaryDirectory() as samples:
        frozen.write_samples(Path(samples))
        values, metadata = imagebind_media(Path(samples))
    values = {key: value[..., ::STEP, ::STEP] if key.endswith("_image") else value for key, value in values.items()}
    packages = ["imagebind-packaged", "pytorchvideo", "torchaudio", "torchvision", "pillow", "torch"]
    write(folder, "imagebind_media", values, {**metadata, "versions": {name: version(name) for name in packages}})
    image, larger = {"image": (1, 3, 64, 64)}, {"image": (1, 3, 64, 64), "image_96": (1, 3, 96, 96)}
    packages = ["legrad_torch", "open_clip_torch", "timm"]
    layout = {key: list(value.shape) for key, value in open_clip_model(None, False).state_dict().items()}
    make(folder, "openclip_small", openclip_small, layout, larger, {"text": (3, 32)}, OPEN_CLIP, packages)
    config = {**OPEN_CLIP, "quick_gelu": 1}
    make(folder, "openai_small", openai_small, layout, image, {"text": (3, 32)}, config, packages)
    layout = {key: list(value.shape) for key, value in siglip_trunk(None).state_dict().items()}
    prompts = {"text": (1, 96), "empty_text": (1, 96)}
    found = make(folder, "siglip_small", siglip_small, layout, image, prompts, {"timm": SIGLIP}, packages)
    check_siglip(layout, found)


if __name__ == "__main__":
    main()
