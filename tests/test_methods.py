"""The baseline methods against slow versions written from their papers: one image, one prompt, one head at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from random_views import WIDTH, random_input, random_view
from slow_transformer import PLAIN, VIEWS, Slow, affine, by_logit, compare, grad, layer_norm
from torch import Tensor

from avgrad import attribute
from avgrad.engine import trace as trace_module
from avgrad.engine.methods import list_methods
from avgrad.engine.textspan import decompose
from avgrad.engine.view import ViTView
from avgrad.errors import UnsupportedModelError

RELEVANCE = ("lrp", "lrp_conserving", "partial_lrp", "partial_lrp_conserving", "transformer_attribution")
NEED_NO_POOLER = ("legrad_last", "textspan", "grad_eclip", *RELEVANCE)


@pytest.mark.parametrize("name", list(VIEWS))
def test_the_slow_forward_pass_is_the_model(name: str) -> None:
    view = VIEWS[name]()
    pixels, prompts = random_input(view, batch=1, height=12, width=16, prompts=2)
    slow = Slow.run(view, pixels[0]).embedding().detach()
    torch.testing.assert_close(slow / slow.norm(), view.encode(pixels)[0], rtol=1e-10, atol=1e-12)
    assert prompts.shape[-1] == len(slow)


@pytest.mark.parametrize("name", list(VIEWS))
@pytest.mark.parametrize("layers", [None, [1], [0, 1]], ids=str)
def test_rollout(name: str, layers: list[int] | None) -> None:
    def expected(slow: Slow, prompt: Tensor) -> Tensor:
        slow.embedding()
        result = torch.eye(len(slow.x), dtype=torch.float64)
        for index in range(len(slow.attentions)) if layers is None else layers:
            matrix = sum(slow.attentions[index]) / len(slow.attentions[index]) + torch.eye(len(slow.x))
            result = matrix / matrix.sum(-1, keepdim=True) @ result
        pooler = slow.pooler_attention
        return slow.readout(result, sum(pooler)[0] / len(pooler) if pooler else None)[None]  # type: ignore[index]

    compare(VIEWS[name](), "rollout", expected, layers)


@pytest.mark.parametrize("name", list(VIEWS))
@pytest.mark.parametrize("class_token", [True, False])
def test_gradcam(name: str, class_token: bool) -> None:
    view = VIEWS[name]()

    def one_layer(slow: Slow, prompt: Tensor, layer: int) -> Tensor:
        outputs = [*slow.inputs[1:], slow.x]
        (gradient,) = grad(slow.embedding() @ prompt, outputs[layer])
        start = slow.view.num_prefix_tokens
        weights = gradient[0 if class_token else start :].mean(0)
        return (outputs[layer][start:] @ weights).clamp_min(0)

    def expected(slow: Slow, prompt: Tensor) -> Tensor:
        return one_layer(slow, prompt, {3: 1, 2: 0}[len(view.blocks)])[None]

    def every(slow: Slow, prompt: Tensor) -> Tensor:
        return torch.stack([one_layer(slow, prompt, layer) for layer in range(len(view.blocks))])

    compare(view, "gradcam", expected, class_token=class_token)
    compare(view, "gradcam", every, class_token=class_token, every_layer=True)
    compare(view, "gradcam", lambda s, p: one_layer(s, p, 0)[None], layers=[0], class_token=class_token)


def test_gradcam_takes_layer_8_of_12() -> None:
    for depth, layer in ((12, 7), (24, 15), (6, 3), (1, 0)):
        view = random_view(layers=depth)
        pixels, prompts = random_input(view, batch=1, height=8, width=8, prompts=1)
        maps = attribute(view, pixels, prompts, "gradcam", per_layer=True)
        torch.testing.assert_close(maps, attribute(view, pixels, prompts, "gradcam", [layer], per_layer=True))


@pytest.mark.parametrize("name", list(VIEWS))
def test_attentioncam(name: str) -> None:
    view = VIEWS[name]()

    def expected(slow: Slow, prompt: Tensor) -> Tensor:
        score = slow.embedding() @ prompt
        start, patches = view.num_prefix_tokens, len(slow.x) - view.num_prefix_tokens
        total = torch.zeros(patches, dtype=torch.float64)
        heads = slow.pooler_attention or slow.attentions[-1]
        for attention, gradient in zip(heads, grad(score, heads), strict=True):
            if slow.pooler_attention:
                total += gradient[0, -patches:].mean() * attention[0, -patches:] / len(heads)
            elif view.pool == "cls":
                total += gradient[0, start:].mean() * attention[0, start:] / len(heads)
            else:
                total += gradient[start:, start:].mean() * attention[start:, start:].mean(0) / len(heads)
        return total.clamp_min(0)[None]

    def literal(slow: Slow, prompt: Tensor) -> Tensor:
        score = slow.embedding() @ prompt
        heads = slow.pooler_attention or slow.attentions[-1]
        pairs = zip(heads, grad(score, heads), strict=True)
        matrix = sum(gradient.mean() * attention for attention, gradient in pairs) / len(heads)
        if slow.pooler_attention:
            return matrix[:, -(len(slow.x) - view.num_prefix_tokens) :]  # type: ignore[index]
        return slow.readout(matrix)[None]  # type: ignore[arg-type]

    compare(view, "attentioncam", expected)
    compare(view, "attentioncam", literal, whole_matrix=True)


@pytest.mark.parametrize("name", list(VIEWS))
@pytest.mark.parametrize(("layers", "scale"), [(None, 1.0), ([1], 1.0), (None, 100.0)], ids=str)
def test_chefercam(name: str, layers: list[int] | None, scale: float) -> None:
    def average(heads: list[Tensor], score: Tensor) -> Tensor:
        pairs = zip(heads, grad(score, heads), strict=True)
        return sum((attention * gradient).clamp_min(0) for attention, gradient in pairs) / len(heads)  # type: ignore[return-value]

    def expected(slow: Slow, prompt: Tensor) -> Tensor:
        score = scale * (slow.embedding() @ prompt)
        relevance = torch.eye(len(slow.x), dtype=torch.float64)
        for index in range(len(slow.attentions)) if layers is None else layers:
            relevance = relevance + average(slow.attentions[index], score) @ relevance
        pooler = slow.pooler_attention
        if pooler:  # Eqs. 8 and 9
            gathered = relevance - torch.eye(len(slow.x))
            relevance = gathered / gathered.sum(-1, keepdim=True) + torch.eye(len(slow.x))
        return slow.readout(relevance, average(pooler, score)[0] if pooler else None)[None]

    compare(VIEWS[name](), "chefercam", expected, layers, scale=scale)


@pytest.mark.parametrize("name", ["class token", "registers", "no biases", "logit"])
@pytest.mark.parametrize("layer", [0, 1])
def test_grad_eclip(name: str, layer: int) -> None:
    view = VIEWS[name]()

    def expected(slow: Slow, prompt: Tensor) -> Tensor:
        start = view.num_prefix_tokens
        (gradient,) = grad(slow.embedding() @ prompt, slow.contexts[layer])
        block = view.blocks[layer]
        normed = layer_norm(block.norm1, slow.inputs[layer])
        queries, keys, values = affine(block.attn.qkv, normed).chunk(3, dim=-1)
        cosines = torch.stack([queries[0] @ key / queries[0].norm() / key.norm() for key in keys[start:]])
        loosened = (cosines - cosines.min()) / (cosines.max() - cosines.min())
        return (loosened * (values[start:] @ gradient[0])).clamp_min(0)[None]

    compare(view, "grad_eclip", expected, [layer])
    if layer == len(view.blocks) - 1:
        compare(view, "grad_eclip", expected)


@pytest.mark.parametrize("name", list(PLAIN))
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("relu", [True, False])
def test_legrad_of_the_last_score(name: str, pooling: str, relu: bool) -> None:
    view = PLAIN[name]()
    if pooling == "cls" and not view.num_prefix_tokens:
        return

    def expected(slow: Slow, prompt: Tensor) -> Tensor:
        token = slow.x.mean(0) if pooling == "mean" else slow.x[0]
        embedding = view.head(token)
        score = prompt @ (embedding / embedding.norm() if view.head.cosine else embedding)
        maps = []
        for heads in slow.attentions:
            found = [gradient.clamp_min(0) if relu else gradient for gradient in grad(score, heads)]
            maps.append((sum(found) / len(heads)).mean(0)[view.num_prefix_tokens :])  # type: ignore[union-attr]
        return torch.stack(maps)

    compare(view, "legrad_last", expected, pooling=pooling, relu=relu)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_last_layer_scores_itself(pooling: Any) -> None:
    view = random_view()
    pixels, prompts = random_input(view, batch=2, height=8, width=12, prompts=2)
    for relu in (True, False):
        options = {"layers": [2], "pooling": pooling, "per_layer": True, "relu": relu}
        own = attribute(view, pixels, prompts, "legrad", **options)
        torch.testing.assert_close(attribute(view, pixels, prompts, "legrad_last", **options), own)


def test_legrad_without_relu() -> None:
    for name in ("class token", "attention"):
        view = VIEWS[name]()

        def expected(slow: Slow, prompt: Tensor, view: ViTView = view) -> Tensor:
            maps = []
            for z, heads in zip([*slow.inputs[1:], slow.x], slow.attentions, strict=True):
                if view.pooler is None:
                    embedding = view.head(z.mean(0))
                else:
                    embedding = view.layer_head(slow.attention_pool(view.pooler, z))
                    heads = slow.pooler_attention
                gradients = grad(embedding @ prompt / embedding.norm(), heads)
                maps.append((sum(gradients) / len(heads)).mean(0)[view.num_prefix_tokens :])  # type: ignore[union-attr]
            return torch.stack(maps)

        compare(view, "legrad", expected, relu=False)


@pytest.mark.parametrize("name", list(PLAIN))
def test_the_decomposition_sums_to_the_embedding(name: str) -> None:
    view = PLAIN[name]()
    pixels, prompts = random_input(view, batch=2, height=12, width=16, prompts=3)
    units = torch.eye(view.embed_dim, dtype=torch.float64).expand(2, -1, -1)
    embedding = view.scored(view.output(view.tokens(pixels)))
    torch.testing.assert_close(decompose(view, pixels, units).total, embedding, rtol=1e-9, atol=1e-11)
    scores = (prompts @ embedding[..., None])[..., 0]
    torch.testing.assert_close(decompose(view, pixels, prompts).total, scores, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", list(PLAIN))
def test_textspan(name: str) -> None:
    """What a token adds through a head is what the score loses with it, the final norm's statistics kept."""
    view = PLAIN[name]()

    def expected(slow: Slow, prompt: Tensor) -> Tensor:
        norm, start = view.head.norm, view.num_prefix_tokens
        output = slow.embedding()
        rows = [0] if view.pool == "cls" else range(start, len(slow.x))
        raw = view.output(slow.x[None])[0].norm() if view.head.cosine else torch.tensor(1.0)
        mean = slow.x[rows].mean(0)
        maps = torch.zeros(len(view.blocks), len(slow.x), dtype=torch.float64)
        for layer, block in enumerate(view.blocks):
            for head, matrix in enumerate(slow.attentions[layer]):
                for token in range(len(slow.x)):
                    for row in rows:
                        context = torch.zeros(WIDTH, dtype=torch.float64)
                        width = WIDTH // block.num_heads
                        value = slow.values[layer][head][token]
                        context[head * width : (head + 1) * width] = matrix[row, token] * value
                        addend = block.attn.out.weight @ context * (1 if block.scale1 is None else block.scale1())
                        if norm is not None:
                            against = slow.x[row] if view.norm_before_pool else mean
                            addend = addend / (against.var(correction=0) + norm.eps(torch.float64)).sqrt()
                            addend = addend if norm.weight is None else addend * norm.weight
                        addend = view.head.projection.weight @ addend if view.head.projection else addend
                        maps[layer, token] += (addend @ prompt / raw / len(rows)).detach()
        assert output.shape == prompt.shape
        return maps[:, start:]

    pixels, prompts = random_input(view, batch=1, height=8, width=8, prompts=1)
    actual = attribute(view, pixels, prompts, "textspan", per_layer=True)[0, 0].flatten(-2)
    torch.testing.assert_close(actual, expected(Slow.run(view, pixels[0]), prompts[0, 0]), rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("method", NEED_NO_POOLER)
def test_what_cannot_be_explained_is_refused(method: str) -> None:
    view = VIEWS["attention"]()
    pixels, prompts = random_input(view, batch=1, height=8, width=8, prompts=1)
    with pytest.raises(UnsupportedModelError, match="pool"):
        attribute(view, pixels, prompts, method)


def test_grad_eclip_needs_a_class_token() -> None:
    view = VIEWS["mean of patches"]()
    pixels, prompts = random_input(view, batch=1, height=8, width=8, prompts=1)
    with pytest.raises(UnsupportedModelError, match="by its class token"):
        attribute(view, pixels, prompts, "grad_eclip")


def test_options_are_known_by_name() -> None:
    view = random_view()
    pixels, prompts = random_input(view, batch=1, height=8, width=8, prompts=1)
    with pytest.raises(ValueError, match="'legrad' has no option 'class_token'; its options: relu"):
        attribute(view, pixels, prompts, class_token=False)
    for wrong in (0, -1.0, "100", float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"scale=.* is not a positive number"):
            attribute(view, pixels, prompts, "chefercam", scale=wrong)
    with pytest.raises(ValueError, match="'cosine' has no option 'relu'; its options: none"):
        attribute(view, pixels, prompts, "cosine", relu=False)


@pytest.mark.parametrize("method", list_methods())
@pytest.mark.parametrize("name", ["registers", "mean of patches", "attention, own norms"])
def test_batches_change_nothing(method: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    view = VIEWS[name]()
    if (view.pooler and method in NEED_NO_POOLER) or (name == "mean of patches" and method == "grad_eclip"):
        return
    if name == "mean of patches" and method == "raw_attention":
        return
    pixels, prompts = random_input(view, batch=3, height=12, width=16, prompts=4)
    together = attribute(view, pixels, prompts, method, per_layer=True)
    monkeypatch.setattr(trace_module, "GRAPH_BYTES", 1)
    monkeypatch.setattr("avgrad.engine.lrp.RELEVANCE_BYTES", 1)
    alone = [
        torch.cat([attribute(view, image[None], p[None], method, per_layer=True) for p in own], dim=1)
        for image, own in zip(pixels, prompts, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-9, atol=1e-13)
    in_parts = attribute(view, pixels, prompts, method, per_layer=True)
    torch.testing.assert_close(in_parts, together, rtol=1e-9, atol=1e-13)


@pytest.mark.slow  # the package alone takes long to import
@pytest.mark.parametrize("layer", [0, 2])
def test_gradcam_is_that_of_pytorch_grad_cam(layer: int) -> None:
    """Held against the package grad-cam; both leave the class token out."""
    import pytorch_grad_cam as grad_cam
    import timm
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    from avgrad.models.timm_view import trunk_view

    torch.manual_seed(0)
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3, "num_classes": 5}
    model = timm.models.VisionTransformer(**shape).eval()
    torch.nn.init.normal_(model.head.weight)
    view = trunk_view(model, "small")
    view = by_logit(view)
    pixels = torch.randn(2, 3, 32, 32)
    original = grad_cam.GradCAM(
        model, [model.blocks[layer]], reshape_transform=lambda x: x[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    )
    expected = torch.from_numpy(original(pixels, [ClassifierOutputTarget(kind) for kind in (1, 3)]))
    prompts = model.head.weight[[1, 3]].detach()[:, None]
    actual = attribute(view, pixels, prompts, "gradcam", layers=[layer], class_token=False)[:, 0]
    assert actual.amax() == 1
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)
