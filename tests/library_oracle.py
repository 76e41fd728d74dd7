"""LeGrad by autograd through a library's own modules: the oracle that no line of avgrad takes part in.

The library runs its own forward pass with the graph cut in front of every block, and every attention matrix, caught
where the library calls softmax, is a leaf whose gradient is asked for. So rotary positions, biases, norms, gates and
whatever else makes a block are the library's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_SOFTMAX = (torch.softmax, torch.Tensor.softmax, F.softmax)


class Softmax(TorchFunctionMode):
    """Makes every softmax within it a leaf of the graph, and keeps it.

    Attributes:
        seen: the outputs, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in _SOFTMAX:
            output = output.detach().requires_grad_()
            self.seen.append(output)
        return output


def unfused(model: nn.Module) -> Any:
    """A copy of a timm model that computes its attention matrices, in eval mode and without gradients of weights."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    return model


def legrad(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    run: Callable[[], object],
    score: Callable[[Tensor], Tensor],
    num_prefix_tokens: int,
    *,
    pooler: bool = False,
    pick: Callable[[list[Tensor]], Tensor] = lambda gradients: torch.cat(gradients, dim=1),
) -> Tensor:
    """LeGrad's raw maps (Bousselham et al. 2025, Eqs. 3 to 7).

    Args:
        model: what `run` runs; its attention must not be fused.
        blocks: its transformer blocks, in order.
        run: runs the model's forward pass.
        score: the scores `[B, P]` of a layer from its output `[B, n, d]`.
        num_prefix_tokens: tokens in front of the patches.
        pooler: take the gradient of the attention row within `score`, not of the blocks' matrices.
        pick: makes `[B, h, n, n]` of the gradients of all attention matrices of one block.

    Returns:
        `[B, P, L, patches]`.
    """
    outputs: list[tuple[list[Tensor], Tensor]] = []
    with torch.enable_grad(), Softmax() as softmax:

        def cut(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            softmax.seen.clear()
            return (args[0].detach(), *args[1:]), kwargs

        def keep(_: nn.Module, __: Any, output: Any) -> None:
            outputs.append((list(softmax.seen), output[0] if isinstance(output, tuple) else output))

        handles = [block.register_forward_pre_hook(cut, with_kwargs=True) for block in blocks]
        handles += [block.register_forward_hook(keep) for block in blocks]
        run()
        for handle in handles:
            handle.remove()
        assert len(outputs) == len(blocks)
        layers = []
        for matrices, z in outputs:
            softmax.seen.clear()
            scores = score(z.detach() if pooler else z)
            matrices = list(softmax.seen) if pooler else matrices
            assert matrices, "no attention matrix was computed: is the attention fused?"
            maps = []
            for p in range(scores.shape[1]):
                gradients = list(torch.autograd.grad(scores[:, p].sum(), matrices, retain_graph=True))
                maps.append(pick(gradients).relu().mean((1, 2)))
            layers.append(torch.stack(maps, dim=1))
    maps_of_all = torch.stack(layers, dim=2)
    patches = outputs[0][1].shape[1] - num_prefix_tokens
    return maps_of_all[..., maps_of_all.shape[-1] - patches :]  # a pooler may not see the tokens in front


def timm_legrad(
    model: Any,
    pixels: Tensor,
    prompts: Tensor | None = None,
    classes: Sequence[int] = (),
    pooling: str = "mean",
    projection: bool = False,
) -> Tensor:
    """LeGrad of a model of timm.

    Args:
        model: as timm gives it.
        pixels: of the model's own size, `[B, 3, h, w]`.
        prompts: embeddings `[P, D]`, scored by the cosine with the layer's; or
        classes: of the model's classifier, scored by the logit.
        pooling: "mean" of all tokens or "cls". Where the model pools by attention its pooler looks at each layer.
        projection: whether the model's head belongs to its embeddings, as that of a CLIP model does.
    """
    model = unfused(model)
    differential = any("Diff" in type(module).__name__ for module in model.modules())

    def logits(token: Tensor) -> Tensor:
        if hasattr(model, "head_dist"):
            return (model.head(token) + model.head_dist(token)) / 2
        return model.head(token)

    def score(z: Tensor) -> Tensor:
        if getattr(model, "attn_pool", None) is not None:
            token = model._pool(z) if hasattr(model, "_pool") else model.pool(z)
        else:
            token = model.fc_norm(model.norm(z.mean(1) if pooling == "mean" else z[:, 0]))
        if prompts is None:
            return logits(token)[:, list(classes)]
        return F.normalize(model.head(token) if projection else token, dim=-1) @ prompts.T

    def first_of_each_pair(gradients: list[Tensor]) -> Tensor:
        # A = A_1 - lambda A_2, so the gradient of A is that of A_1
        return gradients[0].unflatten(1, (-1, 2))[:, :, 0]

    options: dict[str, Any] = {"pick": first_of_each_pair} if differential else {}
    pooler = getattr(model, "attn_pool", None) is not None
    run = lambda: model.forward_features(pixels)  # noqa: E731
    return legrad(model, list(model.blocks), run, score, model.num_prefix_tokens, pooler=pooler, **options)


def timm_features(model: Any, pixels: Tensor, projection: bool = False) -> Tensor:
    """What a model of timm gives its classifier, `[B, d]`; of a distilled model what it gives its two, side by side;
    with a projection, what that gives."""
    model = unfused(model)
    with torch.no_grad():
        tokens = model.forward_features(pixels)
        if hasattr(model, "head_dist"):
            return tokens[:, :2].flatten(1)
        features: Tensor = model.forward_head(tokens, pre_logits=not projection)
    return features


def timm_at_size(model: Any, size: tuple[int, int]) -> Any:
    """A copy of a model of timm for images of another size, resized by timm; but its position embeddings in float64,
    where timm interpolates them in float32."""
    resized = copy.deepcopy(model)
    if not hasattr(model, "set_input_size"):  # NaFlexVit takes images of any size
        return resized
    old = model.patch_embed.grid_size
    resized.set_input_size(img_size=size)
    grid, positions = resized.patch_embed.grid_size, getattr(model, "pos_embed", None)
    if positions is not None and grid != old:
        count = old[0] * old[1]
        front, square = positions[:, :-count], positions[:, -count:].unflatten(1, old).permute(0, 3, 1, 2)
        square = F.interpolate(square, size=grid, mode="bicubic", antialias=True)
        resized.pos_embed.data = torch.cat([front, square.flatten(2).mT], dim=1)
    return resized


@contextmanager
def in_float64() -> Iterator[None]:
    """Keeps a library from computing anything of a float64 model in float32."""
    with mock.patch.object(Tensor, "float", lambda tensor: tensor):
        yield
