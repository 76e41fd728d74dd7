"""timm's transformer blocks as the engine's: which class is which kind of block, and what its attention does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.layers.attention import Attention as TimmAttention
from timm.layers.attention import AttentionRope
from timm.layers.diff_attention import DiffAttention as TimmDiffAttention
from timm.layers.pos_embed_sincos import RotaryEmbeddingMixed
from timm.models import beit, eva, vision_transformer, vision_transformer_relpos
from torch import nn

from avgrad.engine.attention import Attention
from avgrad.engine.blocks import Block, PostNorm, PreNorm
from avgrad.engine.mlp import Mlp
from avgrad.engine.parallel_blocks import AttentionBranch, MlpBranch, Parallel, ParallelThings
from avgrad.engine.parts import Linear
from avgrad.models.timm_diff import DiffAttention
from avgrad.models.timm_parts import activation, check_parts, layer_scale, mlp, needed_norm, norm, refuse
from avgrad.models.timm_positions import RelativeBias, Rotary


def timm_blocks(model: Any) -> list[Block]:
    """The blocks of a timm model, in order.

    Raises:
        UnsupportedModelError: naming the part that no block of the engine computes.
    """
    return [_block(model, block, index) for index, block in enumerate(model.blocks)]


def _block(model: Any, block: Any, index: int) -> Block:
    kind = type(block)
    if kind in _PRE_NORM or kind in _POST_NORM:
        check_parts(block, "norm1 attn ls1 gamma_1 drop_path1 norm2 mlp ls2 gamma_2 drop_path2")
        attn, perceptron = _attention(model, block.attn, index), mlp(block.mlp)
        norms = needed_norm(block.norm1), needed_norm(block.norm2)
        scales = [layer_scale(block, f"ls{i}") or layer_scale(block, f"gamma_{i}") for i in (1, 2)]
        if kind in _POST_NORM:
            return PostNorm(attn, norms[0], perceptron, norms[1], *scales)
        return PreNorm(norms[0], attn, norms[1], perceptron, *scales)
    if kind is vision_transformer.ParallelThingsBlock:
        return _parallel_things(model, block, index)
    if kind in (vision_transformer.ParallelScalingBlock, vision_transformer.DiffParallelScalingBlock):
        return _parallel(block)
    raise refuse(f"its blocks are {kind.__name__}, which is not known here")


_PRE_NORM = (vision_transformer.Block, eva.EvaBlock, beit.Block, vision_transformer_relpos.RelPosBlock)
_POST_NORM = (
    vision_transformer.ResPostBlock,
    eva.EvaBlockPostNorm,
    vision_transformer_relpos.ResPostRelPosBlock,
)


def _parallel_things(model: Any, block: Any, index: int) -> Block:
    check_parts(block, "attns ffns")
    attentions, perceptrons = [], []
    for branch in block.attns:
        check_parts(branch, "norm attn ls drop_path")
        attn = _attention(model, branch.attn, index)
        attentions.append(AttentionBranch(needed_norm(branch.norm), attn, layer_scale(branch, "ls")))
    for branch in block.ffns:
        check_parts(branch, "norm mlp ls drop_path")
        perceptrons.append(MlpBranch(needed_norm(branch.norm), mlp(branch.mlp), layer_scale(branch, "ls")))
    return ParallelThings(attentions, perceptrons)


def _parallel(block: Any) -> Block:
    differential = type(block) is vision_transformer.DiffParallelScalingBlock
    own = "sub_norm lambda_q1 lambda_k1 lambda_q2 lambda_k2 lambda_a lambda_b" if differential else ""
    known = "in_norm in_proj mlp_bias q_norm k_norm mlp_act out_proj attn_out_proj mlp_out_proj ls drop_path"
    check_parts(block, f"{known} {own}")
    hidden, width = block.in_split[0], block.in_split[1]
    total = hidden + 3 * width
    qkv = Linear(block.in_proj, rows=(hidden, total))
    # the MLP's bias is a piece of the projection's, or a parameter of the block
    bias = "in_proj.bias" if block.mlp_bias is None else "mlp_bias"
    fc1 = Linear(block, "in_proj.weight", bias, rows=(0, hidden))
    if block.out_proj is not None:
        out = Linear(block.out_proj, columns=(0, width))
        fc2 = Linear(block.out_proj, bias=None, columns=(width, width + hidden))
    else:
        out, fc2 = Linear(block.attn_out_proj), Linear(block.mlp_out_proj)
    q_norm, k_norm = norm(block.q_norm), norm(block.k_norm)
    attn: Attention
    if differential:
        attn = DiffAttention(block, qkv, out, needed_norm(block.sub_norm), q_norm=q_norm, k_norm=k_norm)
    else:
        attn = Attention(qkv, out, block.num_heads, q_norm=q_norm, k_norm=k_norm)
    scale = layer_scale(block, "ls")
    return Parallel(needed_norm(block.in_norm), attn, Mlp(fc1, activation(block.mlp_act), fc2), scale, scale)


def _attention(model: Any, module: Any, index: int) -> Attention:
    if type(module) not in _ATTENTIONS:
        raise refuse(f"its attention is a {type(module).__name__}, which is not known here")
    return _ATTENTIONS[type(module)](model, module, index)


def _check_width(model: Any, out: Linear) -> Linear:
    if out.out_features != model.embed_dim:
        raise refuse("its attention's output is not as wide as its tokens")
    return out


def _standard(model: Any, module: Any, index: int) -> Attention:
    """timm's `Attention`."""
    check_parts(module, "qkv q_norm k_norm norm gate proj")
    return Attention(
        Linear(module.qkv),
        _check_width(model, Linear(module.proj)),
        module.num_heads,
        q_norm=norm(module.q_norm),
        k_norm=norm(module.k_norm),
        gate=None if module.gate is None else Linear(module.gate),
        inner_norm=norm(module.norm),
    )


def _rotary(model: Any, module: Any, index: int) -> Attention:
    """timm's `AttentionRope` and `EvaAttention`."""
    check_parts(module, "qkv q_proj k_proj v_proj q_bias v_bias q_norm k_norm norm gate proj")
    if module.qkv is None:
        qkv: Linear | list[Linear] = [Linear(m) for m in (module.q_proj, module.k_proj, module.v_proj)]
    elif getattr(module, "q_bias", None) is not None:
        qkv = Linear(module, "qkv.weight", ("q_bias", "k_bias", "v_bias"))
    else:
        qkv = Linear(module.qkv)
    rotary = None
    if getattr(model, "rope", None) is not None:
        mixed = type(model.rope) is RotaryEmbeddingMixed
        rotary = Rotary(model.rope, module.rotate_half, module.num_prefix_tokens, index if mixed else None)
    return Attention(
        qkv,
        _check_width(model, Linear(module.proj)),
        module.num_heads,
        getattr(module, "num_kv_heads", None),
        q_norm=norm(module.q_norm),
        k_norm=norm(module.k_norm),
        rotary=rotary,
        gate=None if module.gate is None else Linear(module.gate),
        inner_norm=norm(module.norm),
    )


def _beit(model: Any, module: Any, index: int) -> Attention:
    """BEiT's attention, with a table of relative positions of its own, a shared one, or both."""
    check_parts(module, "qkv q_bias v_bias relative_position_bias_table proj")
    own = module if module.relative_position_bias_table is not None else None
    biases = tuple(part for part in (own, model.rel_pos_bias) if part is not None)
    separate = ("q_bias", "k_bias", "v_bias")
    return Attention(
        Linear(module.qkv) if module.q_bias is None else Linear(module, "qkv.weight", separate),
        _check_width(model, Linear(module.proj)),
        module.num_heads,
        bias=RelativeBias(biases) if biases else None,
    )


def _relative(model: Any, module: Any, index: int) -> Attention:
    """The attention of timm's `VisionTransformerRelPos`: its own positions, or the shared ones."""
    check_parts(module, "qkv q_norm k_norm rel_pos proj")
    source = model.shared_rel_pos if module.rel_pos is None else module.rel_pos
    return Attention(
        Linear(module.qkv),
        _check_width(model, Linear(module.proj)),
        module.num_heads,
        q_norm=norm(module.q_norm),
        k_norm=norm(module.k_norm),
        bias=None if source is None else RelativeBias((source,)),
    )


def _differential(model: Any, module: Any, index: int) -> Attention:
    lambdas = "lambda_q1 lambda_k1 lambda_q2 lambda_k2 lambda_a lambda_b"
    check_parts(module, f"qkv q_norm k_norm norm sub_norm proj {lambdas}")
    return DiffAttention(
        module,
        Linear(module.qkv),
        _check_width(model, Linear(module.proj)),
        needed_norm(module.sub_norm),
        q_norm=norm(module.q_norm),
        k_norm=norm(module.k_norm),
        inner_norm=norm(module.norm),
    )


_ATTENTIONS: dict[type[nn.Module], Callable[[Any, Any, int], Attention]] = {
    TimmAttention: _standard,
    AttentionRope: _rotary,
    eva.EvaAttention: _rotary,
    beit.Attention: _beit,
    vision_transformer_relpos.RelPosAttention: _relative,
    TimmDiffAttention: _differential,
}
