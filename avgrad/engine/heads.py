"""What turns pooled tokens into an embedding: projections, tails of any kind, and attentional poolers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from avgrad.engine.attention import HeadNorm, attention_matrix
from avgrad.engine.mlp import Mlp
from avgrad.engine.norms import Norm
from avgrad.engine.parts import Linear, Part, Weight


class Tail(Part):
    """Any small differentiable function from a token to an embedding, pulled back by `torch.func.vjp`.

    Args:
        function: `[N, d]` to `[N, D]`, token by token. So that views can be pickled and copied it is an instance of a
            class which holds its modules, and no lambda.
        out_features: D.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], out_features: int) -> None:
        self.function, self.out_features = function, out_features

    def __call__(self, token: Tensor) -> Tensor:
        """`[..., D]` from `[..., d]`."""
        embedding: Tensor = self.function(token.flatten(0, -2))
        return embedding.unflatten(0, token.shape[:-1])

    def pull(self, token: Tensor, g: Tensor) -> Tensor:
        """Gradient of the tokens `[B, d]` from that of their embeddings, `[B, P, D]`: `[B, P, d]`."""
        with torch.inference_mode(False), torch.enable_grad():
            # tensors of inference mode cannot take part in a graph
            tokens = token[:, None].expand(-1, g.shape[1], -1).clone()
            pull = torch.func.vjp(self, tokens)[1]
            gradient: Tensor = pull(g.clone())[0]
        return gradient.detach()


class VideoTail(Tail):
    """A tail that makes one embedding of the frames of a video: the images of a batch in groups of `num_frames`.

    Each frame's embedding is that of its video, and each frame's gradient is that of the one score of its video.

    Args:
        function: `[N, F, d]` to `[N, D]`: the pooled tokens of N videos of F frames to their embeddings; an instance
            of a class, as for `Tail`.
        out_features: D.
        num_frames: F.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], out_features: int, num_frames: int = 1) -> None:
        super().__init__(function, out_features)
        self.num_frames = num_frames

    def __call__(self, token: Tensor) -> Tensor:
        """`[N F, ..., D]` from `[N F, ..., d]`, a video's frames in a row."""
        frames = token.unflatten(0, (-1, self.num_frames)).movedim(1, -2)  # [N, ..., F, d]
        video = self.function(frames.flatten(0, -3)).unflatten(0, frames.shape[:-2])
        # repeated for each frame: of the sum of all frames' scores, autograd gives the gradient of one
        video = video.detach() + (video - video.detach()) / self.num_frames
        return video.repeat_interleave(self.num_frames, dim=0)

    def pull(self, token: Tensor, g: Tensor) -> Tensor:
        """Gradient of the tokens `[N F, d]` from that of their embeddings, `[N F, P, D]`, the same for all frames of a
        video: `[N F, P, d]`."""
        with torch.inference_mode(False), torch.enable_grad():
            frames = token.unflatten(0, (-1, self.num_frames))[:, None].expand(-1, g.shape[1], -1, -1)
            pull = torch.func.vjp(self.function, frames.flatten(0, 1).clone())[1]
            gradient: Tensor = pull(g[:: self.num_frames].flatten(0, 1).clone())[0]
        return gradient.unflatten(0, (-1, g.shape[1])).transpose(1, 2).flatten(0, 1).detach()


class Head(Part):
    """What turns a pooled token into an embedding: the final norm and the projection.

    Args:
        norm: the final norm, or None.
        projection: a `Linear`, a `Tail`, or None where the embedding is the token itself.
        cosine: whether the model's own score is the cosine of embedding and prompt, or their plain product (a logit).
        num_pooled: how many pooled tokens, side by side, the projection takes (`ViTView.pool`). The one pooled token of
            a layer's score stands for all of them.
    """

    def __init__(
        self, norm: Norm | None, projection: Linear | Tail | None = None, cosine: bool = True, num_pooled: int = 1
    ) -> None:
        self.norm, self.projection, self.cosine, self.num_pooled = norm, projection, cosine, num_pooled

    def __call__(self, token: Tensor) -> Tensor:
        """Embedding, not normalized, `[..., D]`, of one pooled token each, `[..., d]`."""
        normed = token if self.norm is None else self.norm(token)
        return self.project(normed if self.num_pooled == 1 else torch.cat([normed] * self.num_pooled, dim=-1))

    def project(self, pooled: Tensor) -> Tensor:
        """The projection alone, `[..., D]`, of normed and pooled tokens `[..., num_pooled d]`."""
        return pooled if self.projection is None else self.projection(pooled)

    def scores(self, token: Tensor, prompts: Tensor) -> Tensor:
        """`<normalize(head(token)), prompt>` (not normalized without `cosine`), `[B, P]`; differentiable.

        Args:
            token: one token per image, `[B, d]`.
            prompts: `[B, P, D]`.
        """
        embedding = F.normalize(self(token), dim=-1) if self.cosine else self(token)
        return (embedding[:, None] * prompts).sum(-1)

    def gradient(self, token: Tensor, prompts: Tensor) -> Tensor:
        """Gradient of `scores` with respect to the token.

        Args:
            token: one token per image, `[B, d]`.
            prompts: `[B, P, D]`.

        Returns:
            `[B, P, d]`.
        """
        if self.norm is None:
            normed = token
        else:
            normed, statistics = self.norm.statistics(token)
        pooled = normed if self.num_pooled == 1 else torch.cat([normed] * self.num_pooled, dim=-1)
        grad = prompts
        if self.cosine:
            embedding = self.project(pooled)
            length = embedding.norm(dim=-1, keepdim=True).clamp_min(1e-12)
            unit = (embedding / length)[:, None]
            grad = (prompts - (prompts * unit).sum(-1, keepdim=True) * unit) / length[:, None]
        if isinstance(self.projection, Tail):
            grad = self.projection.pull(pooled, grad)
        elif self.projection is not None:
            grad = self.projection.pull(grad)
        if self.num_pooled > 1:
            grad = grad.unflatten(-1, (self.num_pooled, -1)).sum(-2)
        if self.norm is not None:
            # the norm overwrites its gradient, which may still be the caller's prompts
            grad = self.norm.pull(self.norm.cache(token, statistics), grad.clone())
        return grad


class AttentionPooler(Part):
    """Pools tokens by attention: learned queries look at them, `o = W_o concat_k(a_k V_k)`, then an MLP with residual,
    `p = o + mlp(norm(o))`.

    Args:
        query: the learned queries before their norm and projection, `[L, d_q]` or `[1, L, d_q]`.
        key, value: maps of the tokens, to `[d_p]`.
        out: `W_o`, or None for none.
        num_heads: number of heads.
        query_norm: norm of the queries, or None.
        query_proj: map of the queries to `[d_p]`; None where they are used as they are.
        token_norm: the pooler's own norm of the tokens, or None.
        q_norm, k_norm: of each head's queries and keys.
        positions: added to the tokens that the pooler sees, `[m, d]`.
        mlp, mlp_norm: what follows the attention, or None.
        pool: "first" takes the first query's `p`, and the others do not matter; "mean" the mean of all.
        num_skipped: tokens in front that the pooler does not see.
    """

    def __init__(
        self,
        query: Weight,
        key: Linear,
        value: Linear,
        out: Linear | None,
        num_heads: int,
        *,
        query_norm: Norm | None = None,
        query_proj: Linear | None = None,
        token_norm: Norm | None = None,
        q_norm: HeadNorm | None = None,
        k_norm: HeadNorm | None = None,
        positions: Weight | None = None,
        mlp: Mlp | None = None,
        mlp_norm: Norm | None = None,
        pool: Literal["first", "mean"] = "first",
        num_skipped: int = 0,
    ) -> None:
        self.query, self.key, self.value, self.out, self.num_heads = query, key, value, out, num_heads
        self.query_norm, self.query_proj, self.token_norm = query_norm, query_proj, token_norm
        self.q_norm, self.k_norm, self.positions = q_norm, k_norm, positions
        self.mlp, self.mlp_norm, self.pool, self.num_skipped = mlp, mlp_norm, pool, num_skipped

    @property
    def width(self) -> int:
        """Size d_p of a pooled token."""
        return (self.value if self.out is None else self.out).out_features

    def heads(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The queries of every head, `[B, h, L, d_h]`, and its keys and values, `[B, h, m, d_h]`.

        Args:
            tokens: all of a layer's tokens, `[B, n, d]`; the pooler sees `m = n - num_skipped` of them.
        """
        tokens = tokens[:, self.num_skipped :]
        tokens = tokens if self.positions is None else tokens + self.positions()
        if self.token_norm is not None:
            tokens = self.token_norm(tokens)
        query = self.query().flatten(0, -2)
        query = query[:1] if self.pool == "first" else query
        query = query if self.query_norm is None else self.query_norm(query)
        query = query if self.query_proj is None else self.query_proj(query)
        mapped = (query, self.key(tokens), self.value(tokens))
        query, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3) for t in mapped)
        query = query if self.q_norm is None else self.q_norm(query)
        return query.expand(len(tokens), -1, -1, -1), k if self.k_norm is None else self.k_norm(k), v

    def matrix(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The attention of the queries `[B, h, L, m]` and the values `[B, h, m, d_h]`, of tokens `[B, n, d]`."""
        q, k, v = self.heads(tokens)
        return attention_matrix(q, k), v

    def mix(self, context: Tensor) -> Tensor:
        """`o` `[B, r, d_p]` from the heads' outputs `[B, h, r, d_h]` for r queries."""
        mixed = context.transpose(1, 2).flatten(2)
        return mixed if self.out is None else self.out(mixed)

    def attend(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """`o` `[B, L, d_p]` and the heads' values `[B, h, m, d_h]`, from all of a layer's tokens `[B, n, d]`."""
        q, k, v = self.heads(tokens)
        return self.mix(F.scaled_dot_product_attention(q, k, v)), v

    def transform(self, attended: Tensor) -> Tensor:
        """`p` `[..., d_p]` from `o` `[..., d_p]`."""
        if self.mlp is None:
            return attended
        return attended + self.mlp(attended if self.mlp_norm is None else self.mlp_norm(attended))

    def finish(self, attended: Tensor) -> Tensor:
        """The pooled token `[B, d_p]` from `o` `[B, L, d_p]`."""
        return self.transform(attended).mean(1)

    def __call__(self, tokens: Tensor) -> Tensor:
        """The pooled token `[B, d_p]` of all of a layer's tokens `[B, n, d]`."""
        return self.finish(self.attend(tokens)[0])

    def pull(self, attended: Tensor, g: Tensor) -> Tensor:
        """Gradient of the heads' outputs.

        Args:
            attended: `o`, `[B, L, d_p]`.
            g: gradient of the pooled token, `[B, P, d_p]`.

        Returns:
            `[B, P, L, h, d_h]`.
        """
        e = (g / attended.shape[1])[:, :, None].expand(-1, -1, attended.shape[1], -1)
        if self.mlp is not None:
            normed, statistics = attended, None
            if self.mlp_norm is not None:
                normed, statistics = self.mlp_norm.statistics(attended)
            _, cache = self.mlp.forward(normed)
            changed = self.mlp.pull(cache, self.mlp.lead(e))
            if self.mlp_norm is not None and statistics is not None:
                changed = self.mlp_norm.pull(self.mlp_norm.cache(attended, statistics), changed)
            e = e + changed
        u = e if self.out is None else self.out.pull(e)
        return u.unflatten(-1, (self.num_heads, -1))
