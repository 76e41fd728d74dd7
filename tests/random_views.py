"""Random vision transformers of every kind, small and in float64: what the closed form is held against autograd on."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avgrad.engine.attention import Attention
from avgrad.engine.blocks import Block, PostNorm, PreNorm, Sandwich
from avgrad.engine.heads import AttentionPooler, Head, Tail
from avgrad.engine.mlp import Activation, GatedMlp, Mlp
from avgrad.engine.norms import Norm
from avgrad.engine.parallel_blocks import AttentionBranch, MlpBranch, Parallel, ParallelThings
from avgrad.engine.parts import Linear, Weight
from avgrad.engine.view import Pool, ViTView

WIDTH, PATCH, DIM = 24, 4, 10
Kind = Literal["pre_norm", "post_norm", "sandwich", "parallel", "parallel_things"]


class Embedding(nn.Module):
    """Patches and prefix tokens without positions, so that any grid will do."""

    def __init__(self, random: Random, prefix: int, patch: tuple[int, int]) -> None:
        super().__init__()
        self.kernel = nn.Parameter(random.number(WIDTH, 3, *patch))
        self.prefix = nn.Parameter(random.number(1, prefix, WIDTH))

    def forward(self, pixels: Tensor) -> Tensor:
        stride = (self.kernel.shape[2], self.kernel.shape[3])
        patches = F.conv2d(pixels, self.kernel, stride=stride).flatten(2).transpose(1, 2)
        return torch.cat([self.prefix.expand(len(pixels), -1, -1), patches], dim=1)


class Rotary(nn.Module):
    """Turns pairs of channels of the patches by angles that depend on row and column."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix

    def turn(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
        place = torch.stack([rows.flatten(), columns.flatten()], dim=-1).to(x)
        half = x.shape[-1] // 2
        angle = place.repeat(1, half)[:, :half] * 0.7 ** torch.arange(half).to(x)
        front, (one, two) = x[:, :, : self.prefix], x[:, :, self.prefix :].chunk(2, dim=-1)
        turned = [one * angle.cos() - two * angle.sin(), one * angle.sin() + two * angle.cos()]
        return torch.cat([front, torch.cat(turned, dim=-1)], dim=2)

    def forward(self, q: Tensor, k: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        return self.turn(q, grid), self.turn(k, grid)


class DistanceBias(nn.Module):
    """A bias by the distance of two tokens, of each head its own."""

    def __init__(self, random: Random, heads: int, prefix: int) -> None:
        super().__init__()
        self.factor, self.prefix = nn.Parameter(random.number(heads, 1, 1, scale=1.0)), prefix

    def forward(self, grid: tuple[int, int]) -> Tensor:
        place = torch.arange(self.prefix + grid[0] * grid[1]).to(self.factor)
        return self.factor * (place[:, None] - place).abs().sqrt()


class LogitScale(nn.Module):
    def __init__(self, random: Random, heads: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(random.number(heads, 1, 1))

    def forward(self) -> Tensor:
        return self.log_scale.exp()


class Tower(nn.Module):
    """A tail: two linear layers, an activation and a norm behind them."""

    def __init__(self, random: Random, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(random.linear(width, 16), nn.Tanh(), random.linear(16, DIM), random.layer_norm(DIM))

    def forward(self, token: Tensor) -> Tensor:
        embedded: Tensor = self.layers(token)
        return embedded


class Random:
    """Makes modules and parts with random weights, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def number(self, *shape: int, scale: float = 0.3) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64) * scale

    def linear(self, inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
        layer = nn.Linear(inputs, outputs, bias=bias, dtype=torch.float64)
        for parameter in layer.parameters():
            parameter.data = self.number(*parameter.shape)
        return layer

    def layer_norm(self, width: int, affine: bool = True) -> nn.LayerNorm:
        norm = nn.LayerNorm(width, eps=1e-6 if affine else 1e-5, elementwise_affine=affine, dtype=torch.float64)
        if affine:
            norm.weight.data, norm.bias.data = 1 + self.number(width), self.number(width)
        return norm

    def norm(self, width: int, kind: Literal["layer", "rms"] = "layer", affine: bool = True) -> Norm:
        if kind == "layer":
            return Norm(self.layer_norm(width, affine))
        norm = nn.RMSNorm(width, eps=1e-6, dtype=torch.float64)
        norm.weight.data = 1 + self.number(width)
        return Norm(norm, "rms")

    def scale(self, width: int, wanted: bool) -> Weight | None:
        return (
            Weight(nn.ParameterDict({"gamma": nn.Parameter(self.number(width, scale=1.0))}), "gamma")
            if wanted
            else None
        )


def make_attention(random: Random, heads: int, prefix: int, bias: bool, extras: tuple[str, ...]) -> Attention:
    """An attention with any of the extras that models have."""
    head = WIDTH // heads
    kv_heads = heads // 2 if "grouped" in extras else heads
    qkv: Any = Linear(random.linear(WIDTH, (heads + 2 * kv_heads) * head, bias))
    if "separate" in extras:
        qkv = [Linear(random.linear(WIDTH, count * head, bias)) for count in (heads, kv_heads, kv_heads)]
    options: dict[str, Any] = {}
    if "qk_norm" in extras:
        options |= {"q_norm": random.norm(head), "k_norm": random.norm(head, "rms")}
    if "v_norm" in extras:
        options["v_norm"] = random.norm(head)
    if "rotary" in extras:
        options["rotary"] = Rotary(prefix)
    if "bias" in extras:
        options["bias"] = DistanceBias(random, heads, prefix)
    if "scale" in extras:
        options["scale"] = LogitScale(random, heads)
    if "gate" in extras:
        options["gate"] = Linear(random.linear(WIDTH, WIDTH))
    if "head_gate" in extras:
        options["gate"] = Linear(random.linear(WIDTH, heads))
    if "inner_norm" in extras:
        options["inner_norm"] = random.norm(WIDTH)
    if "head_scale" in extras:
        scale = nn.ParameterDict({"scale": nn.Parameter(random.number(heads, 1, 1, scale=1.0))})
        options["head_scale"] = Weight(scale, "scale")
    if "softcap" in extras:
        options["softcap"] = 2.0
    return Attention(qkv, Linear(random.linear(WIDTH, WIDTH, bias)), heads, kv_heads, **options)


def make_mlp(random: Random, activation: Activation, bias: bool, extras: tuple[str, ...]) -> Mlp:
    hidden = 3 * WIDTH  # not the usual 4, so that a mixed-up dimension shows
    norm = random.norm(hidden, "layer") if "mlp_norm" in extras else None
    if "gated" in extras:
        packed = random.linear(WIDTH, 2 * hidden, bias)
        gate, value = Linear(packed, rows=(0, hidden)), Linear(packed, rows=(hidden, 2 * hidden))
        return GatedMlp(gate, value, Linear(random.linear(hidden, WIDTH, bias)), activation, norm)
    fc1, fc2 = random.linear(WIDTH, hidden, bias), random.linear(hidden, WIDTH, bias)
    return Mlp(Linear(fc1), activation, Linear(fc2), norm)


def random_view(
    seed: int = 0,
    *,
    kind: Kind = "pre_norm",
    extras: tuple[str, ...] = (),
    norm: Literal["layer", "rms"] = "layer",
    heads: int = 3,
    layers: int = 3,
    prefix: int = 1,
    activation: Activation = "gelu",
    layer_scale: bool = False,
    bias: bool = True,
    affine: bool = True,
    head: bool = True,
    tail: bool = False,
    pool: Pool | None = None,
    patch: int | tuple[int, int] = PATCH,
    dtype: torch.dtype = torch.float64,
) -> ViTView:
    """A random transformer for images of any size.

    Args:
        seed: of its weights.
        kind: of its blocks.
        extras: what its attention and MLP have, see `make_attention` and `make_mlp`.
        pool: None for the class token, or the mean where there is none.
        tail: whether a tail follows, in the place of one projection.
    """
    random = Random(seed)

    def mean(width: int = WIDTH) -> Norm:
        return random.norm(width, norm, affine)

    def attention() -> Attention:
        return make_attention(random, heads, prefix, bias, extras)

    def mlp() -> Mlp:
        return make_mlp(random, activation, bias, extras)

    def scale() -> Weight | None:
        return random.scale(WIDTH, layer_scale)

    def block() -> Block:
        if kind == "pre_norm":
            return PreNorm(mean(), attention(), mean(), mlp(), scale(), scale())
        if kind == "post_norm":
            return PostNorm(attention(), mean(), mlp(), mean(), scale(), scale())
        if kind == "sandwich":
            return Sandwich(mean(), attention(), mean(), mean(), mlp(), mean(), scale(), scale())
        if kind == "parallel":
            return Parallel(mean(), attention(), mlp(), scale(), scale())
        attentions = [AttentionBranch(mean(), attention(), scale()) for _ in range(2)]
        return ParallelThings(attentions, [MlpBranch(mean(), mlp(), scale()) for _ in range(2)])

    blocks = [block() for _ in range(layers)]
    pool = pool or ("cls" if prefix else "mean")
    pooled = 2 if pool in ("cls_mean", "prefix") else 1
    shape = (patch, patch) if isinstance(patch, int) else patch
    last: Any = Tail(Tower(random, WIDTH * pooled), DIM) if tail else Linear(random.linear(WIDTH * pooled, DIM))
    view = ViTView(
        embed=Embedding(random, prefix, shape),
        blocks=blocks,
        head=Head(mean() if head else None, last if head else None, num_pooled=pooled),
        patch_size=patch,
        num_prefix_tokens=prefix,
        pool=pool,
    )
    return view if dtype == torch.float64 else to(view, dtype)


def modules_of(part: Any) -> list[nn.Module]:
    """The modules that a view or one of its parts holds."""
    if isinstance(part, nn.Module):
        return [part]
    items = part if isinstance(part, list | tuple) else vars(part).values() if hasattr(part, "__dict__") else []
    return [module for item in items for module in modules_of(item)]


def to(view: ViTView, *arguments: Any) -> ViTView:
    """The view, its modules moved as `torch.nn.Module.to` moves them."""
    for module in modules_of(view):
        module.to(*arguments)
    return view


def random_input(view: ViTView, batch: int, height: int, width: int, prompts: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(batch, 3, height, width, generator=generator, dtype=torch.float64)
    return pixels.to(view.dtype), torch.randn(batch, prompts, view.embed_dim, generator=generator, dtype=torch.float64)


def attention_pooler(seed: int = 5, *, queries: int = 1, positions: int = 0, **options: Any) -> AttentionPooler:
    """A pooler with an MLP as SigLIP's has; `own_norms` in its place as CoCa's has."""
    random = Random(seed)
    own, extras = options.pop("own_norms", False), options.pop("qk_norm", False)
    query = Weight(nn.ParameterDict({"query": nn.Parameter(random.number(queries, WIDTH, scale=1.0))}), "query")
    query_norm, token_norm = (random.norm(WIDTH), random.norm(WIDTH)) if own else (None, None)
    maps = [Linear(random.linear(WIDTH, WIDTH)) for _ in range(4)]
    mlp = Mlp(Linear(random.linear(WIDTH, 40)), "gelu_tanh", Linear(random.linear(40, WIDTH)))
    place = nn.ParameterDict({"positions": nn.Parameter(random.number(positions, WIDTH))})
    return AttentionPooler(
        query,
        maps[1],
        maps[2],
        maps[3],
        4,
        query_norm=query_norm,
        query_proj=maps[0],
        token_norm=token_norm,
        q_norm=random.norm(WIDTH // 4) if extras else None,
        k_norm=random.norm(WIDTH // 4) if extras else None,
        positions=Weight(place, "positions") if positions else None,
        mlp=None if own else mlp,
        mlp_norm=None if own else random.norm(WIDTH),
        **options,
    )
