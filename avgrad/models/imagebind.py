"""ImageBind (Girdhar et al., CVPR 2023): sound, text and images in one embedding space.

Written from the paper and the layout of the published checkpoint, which loads key by key.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avgrad.encoders.audio import LogMelClips
from avgrad.encoders.image import Preprocess
from avgrad.encoders.text import tokenize
from avgrad.engine.heads import Head
from avgrad.engine.norms import Norm
from avgrad.engine.parts import Linear
from avgrad.engine.view import ViTView
from avgrad.errors import CheckpointError
from avgrad.media import Audio
from avgrad.models.checkpoints import check_layout, checkpoint_path, read_checkpoint, read_configuration
from avgrad.models.model import Calibration
from avgrad.models.naming import NamesSounds
from avgrad.models.registry import TOWERS, Entry, Family, Source, family
from avgrad.models.towers import (
    EPS,
    AudioStem,
    ImageBindConfig,
    LogitScale,
    TextHead,
    TextStem,
    Trunk,
    VisionEmbedding,
    VisionStem,
)

if TYPE_CHECKING:
    from PIL import Image

MINI = Path(__file__).with_name("mini") / "mini.safetensors"


class ImageBind(nn.Module, NamesSounds):
    """Vision, audio and text towers; only those asked for are built.

    Parameters lie on the meta device, without memory or values, until `from_state_dict` or `initialize` gives them.

    Args:
        config: the model's shape.
        towers: which of "vision", "audio" and "text" to build.
        name: what `avgrad.load` calls the model.
        vocabulary: CLIP token ids that the text tower knows, ascending, where its vocabulary is a trimmed one; its own
            ids are their places in this list, and other tokens become the first. None: CLIP's whole vocabulary.
        calibration: turns a score into the probability that the object is in the image, where the training learned it.
    """

    def __init__(
        self,
        config: ImageBindConfig | None = None,
        towers: Sequence[str] = TOWERS,
        name: str = "imagebind",
        vocabulary: Sequence[int] | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__()
        unknown = set(towers) - set(TOWERS)
        if unknown:
            raise ValueError(f"unknown tower {min(unknown)!r}; there are {', '.join(TOWERS)}")
        self.config = config = config or ImageBindConfig()
        self.name, self.vocabulary = name, None if vocabulary is None else list(vocabulary)
        self.calibration = calibration
        self.towers = tuple(tower for tower in TOWERS if tower in towers)
        self.preprocess = Preprocess(size=config.image_size, patch_size=config.kernel_size[-1])
        self.audio_preprocess = LogMelClips()
        stems: dict[str, nn.Module] = {}
        trunks: dict[str, nn.Module] = {}
        heads: dict[str, nn.Module] = {}
        scales: dict[str, nn.Module] = {}
        with torch.device("meta"):
            for tower in self.towers:
                width: int = getattr(config, f"{tower}_embed_dim")
                shape = width, getattr(config, f"{tower}_num_blocks"), getattr(config, f"{tower}_num_heads")
                if tower == "text":
                    stems[tower], trunks[tower] = TextStem(config), Trunk(*shape)
                    heads[tower] = TextHead(width, config.out_embed_dim)
                    scales[tower] = nn.Sequential(nn.Identity(), LogitScale(learned=True))
                    continue
                projection = nn.Linear(width, config.out_embed_dim, bias=False)
                heads[tower] = nn.Sequential(nn.LayerNorm(width, eps=EPS), nn.Identity(), projection)
                if tower == "vision":
                    stems[tower], trunks[tower] = VisionStem(config), Trunk(*shape, pre_norm=True)
                else:
                    stems[tower], trunks[tower] = AudioStem(config), Trunk(*shape, bias_kv=True)
                    scales[tower] = nn.Sequential(nn.Identity(), LogitScale(learned=False))
        self.modality_preprocessors = nn.ModuleDict(stems)
        self.modality_trunks = nn.ModuleDict(trunks)
        self.modality_heads = nn.ModuleDict(heads)
        self.modality_postprocessors = nn.ModuleDict(scales)

    # ------------------------------------------------------------------ where weights come from

    @classmethod
    def from_state_dict(
        cls,
        state_dict: Mapping[str, Tensor],
        *,
        towers: Sequence[str] | None = None,
        name: str = "imagebind",
        vocabulary: Sequence[int] | None = None,
        **config: Any,
    ) -> ImageBind:
        """A model on the tensors of a state dict in the checkpoint's layout, which it shares and does not copy.

        Args:
            state_dict: tensors under the checkpoint's names; those of towers that are not built are passed over.
            towers: which to build; None for all that the state dict holds.
            name: what to call the model.
            vocabulary: as in the constructor.
            **config: keyword names of the original (`vision_embed_dim`, `vision_num_blocks`, ...), see
                `ImageBindConfig`; what is not given is as in imagebind_huge.

        Raises:
            CheckpointError: a tensor is missing or has another shape than the configuration asks for.
        """
        if towers is None:
            towers = [t for t in TOWERS if any(key.startswith(f"modality_trunks.{t}.") for key in state_dict)]
        model = cls(ImageBindConfig.from_names(config), towers, name, vocabulary)
        shapes = model.shapes
        check_layout(state_dict, shapes, "the checkpoint")
        model.load_state_dict({key: state_dict[key] for key in shapes}, assign=True)
        return model.eval().requires_grad_(False)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike[str],
        *,
        towers: Sequence[str] = TOWERS,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        name: str = "imagebind",
        **config: Any,
    ) -> ImageBind:
        """A model on the weights of a checkpoint file; towers that are not asked for are neither built nor read.

        In the file's own type on the CPU the weights are the memory-mapped file itself: nothing is copied, and
        processes share the memory. In another type or on another device they are converted one by one.

        Args:
            path: a `.pth` or `.safetensors` file in the published layout.
            towers: which of "vision", "audio" and "text" to build.
            dtype: floating-point type of the weights.
            device: where the weights are to lie.
            name: what to call the model.
            **config: as in `from_state_dict`; what is not given is as the file's metadata say (the bundled model's do),
                else as in imagebind_huge.

        Raises:
            CheckpointError: there is no such file, it is no checkpoint, or a tensor is missing or has another shape
                than the configuration asks for.
        """
        stored = read_configuration(path)
        try:
            shape = ImageBindConfig.from_names({**stored.config, **config})
        except TypeError as error:
            if set(stored.config) <= set(config):  # the caller's own mistake
                raise
            raise CheckpointError(f"the metadata of {path} describe another model: {error}") from None
        model = cls(shape, towers, name, stored.vocabulary, stored.calibration)
        model.load_state_dict(read_checkpoint(path, model.shapes, dtype, device), assign=True)
        return model.eval().requires_grad_(False)

    @classmethod
    def from_original(cls, original: nn.Module) -> ImageBind:
        """A model that shares the weights of an object of the original `imagebind` package.

        Args:
            original: an `ImageBindModel`.

        Raises:
            CheckpointError: the object is not an ImageBind model.
        """
        state = original.state_dict()
        trunks = getattr(original, "modality_trunks", {})
        towers = [tower for tower in TOWERS if tower in trunks]
        try:
            config: dict[str, Any] = {
                "out_embed_dim": state["modality_heads.vision.2.weight"].shape[0],
                "kernel_size": tuple(state["modality_preprocessors.vision.rgbt_stem.proj.1.weight"].shape[2:]),
            }
            for tower in towers:
                blocks = trunks[tower].blocks
                config[f"{tower}_num_blocks"] = len(blocks)
                config[f"{tower}_num_heads"] = blocks[0].attn.num_heads
                config[f"{tower}_embed_dim"] = blocks[0].attn.embed_dim
            if "audio" in towers:
                convolution = original.modality_preprocessors["audio"].rgbt_stem.proj  # type: ignore[index,union-attr]
                config["audio_kernel_size"] = convolution.kernel_size[0]
                config["audio_stride"] = convolution.stride[0]
        except (KeyError, IndexError, AttributeError, TypeError) as error:
            raise CheckpointError(
                f"{type(original).__name__} is not an ImageBind model of the original package (no {error})"
            ) from None
        return cls.from_state_dict({key: value.detach() for key, value in state.items()}, towers=towers, **config)

    def initialize(self, generator: torch.Generator) -> ImageBind:
        """Gives every parameter memory and a random value, for training: the same generator, the same model."""
        self.to_empty(device="cpu")
        with torch.no_grad():
            for name, tensor in self.state_dict().items():
                if tensor.ndim == 0:
                    tensor.fill_(float(np.log(20.0 if ".audio." in name else 1 / 0.07)))
                elif name.endswith("text.mask"):
                    tensor.fill_(float("-inf")).triu_(1)
                elif name.endswith("bias") or "bias_" in name:
                    tensor.zero_()
                elif tensor.ndim == 1:
                    tensor.fill_(1.0)
                elif "token" in name or "pos_embed" in name:
                    nn.init.normal_(tensor, std=0.02, generator=generator)
                else:
                    nn.init.xavier_uniform_(tensor.flatten(1), generator=generator)
        return self

    # ------------------------------------------------------------------ the networks

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """The keys that the model takes from a checkpoint, and their shapes."""
        return {key: tensor.shape for key, tensor in self.state_dict().items()}

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def modalities(self) -> tuple[str, ...]:
        """The prompts that the model understands: "audio" and "text", as far as their towers are there."""
        return tuple(tower for tower in self.towers if tower != "vision")

    @property
    def understands_words(self) -> bool:
        """Whether the embedding of recorded words is of what they say: the bundled model was trained with spoken
        phrases, ImageBind with sounds of all kinds."""
        return self.name == "mini"

    @property
    def vision(self) -> ViTView:
        """The vision tower as the attribution methods see it."""
        trunk, head = self.modality_trunks["vision"], self.modality_heads["vision"]
        stem = self.modality_preprocessors["vision"]
        return ViTView(
            embed=VisionEmbedding(stem, trunk.pre_transformer_layer),  # type: ignore[arg-type]
            blocks=[block.view() for block in trunk.blocks],  # type: ignore[union-attr,operator]
            head=Head(Norm(head[0]), Linear(head[2])),  # type: ignore[index]
            patch_size=self.config.kernel_size[-1],
        )

    def tower(self, name: str, inputs: Tensor) -> Tensor:
        """Unit-norm embeddings `[B, D]` from one tower.

        Args:
            name: "vision" (pixels `[B, 3, h, w]`), "audio" (log-mel `[B, 1, 128, 204]`) or "text" (token ids
                `[B, length]` of the tower's own vocabulary).
            inputs: as named there.
        """
        tokens = self.modality_trunks[name](self.modality_preprocessors[name](inputs), causal=name == "text")
        head = self.modality_heads[name]
        if name == "text":  # the end-of-text token has the highest id
            pooled = head.proj(tokens[torch.arange(len(tokens), device=tokens.device), inputs.argmax(-1)])  # type: ignore
        else:
            pooled = head(tokens[:, 0])
        return F.normalize(pooled, dim=-1)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Embeddings as the original model gives them: audio and text scaled by the model's logit scales.

        Args:
            inputs: "vision": pixels `[B, 3, h, w]`; "audio": log-mel clips `[B, clips, 1, 128, 204]`; "text": token ids
                `[B, length]`.

        Returns:
            `[B, D]` for each modality given.
        """
        outputs = {}
        for name, value in inputs.items():
            if name == "audio":
                clips = self.tower("audio", value.flatten(0, 1))
                clips = self.modality_postprocessors["audio"](clips)
                outputs[name] = clips.unflatten(0, value.shape[:2]).mean(1)
            elif name == "text":
                outputs[name] = self.modality_postprocessors["text"](self.tower("text", value))
            else:
                outputs[name] = self.tower(name, value)
        return outputs

    # ------------------------------------------------------------------ prompts and images

    def _require(self, tower: str) -> None:
        if tower not in self.towers:
            raise CheckpointError(f"{self.name} was loaded without its {tower} tower; load it with towers={TOWERS}")

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Tensor:
        """Unit-norm embeddings `[B, D]`, float32, of preprocessed pixels `[B, 3, h, w]`."""
        self._require("vision")
        return self.vision.encode(pixels).float()

    @torch.no_grad()
    def encode_audio(self, inputs: Sequence[Tensor]) -> Tensor:
        """Unit-norm embeddings of sounds, each the mean of its clips'.

        Args:
            inputs: of P sounds the log-mel clips, `[clips, 1, 128, 204]`, as `audio_preprocess` gives them.

        Returns:
            `[P, D]`, float32.
        """
        self._require("audio")
        # of a short sound all clips are one
        distinct = [c[:1] if all(torch.equal(clip, c[0]) for clip in c[1:]) else c for c in inputs]
        clips = self.tower("audio", torch.cat(distinct).to(self.device, self.dtype)).float()
        means = [own.mean(0) for own in clips.split([len(own) for own in distinct])]
        return F.normalize(torch.stack(means), dim=-1)

    def encode_sound(self, sound: Audio) -> Tensor:
        """The unit-norm embedding `[D]`, float32, of an open sound: the mean of its three clips'.

        Raises:
            MediaError: the sound is damaged, silent or not finite.
        """
        return self.encode_audio([self.audio_preprocess(sound)])[0]

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm embeddings `[P, D]`, float32, of P texts."""
        self._require("text")
        tokens = self.tokens(texts).to(self.device)
        return self.tower("text", tokens).float()

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Token ids `[P, length]`, int64, in the text tower's own vocabulary."""
        tokens = tokenize(texts, self.config.text_context_length)
        if self.vocabulary is not None:
            vocabulary = torch.tensor(self.vocabulary)
            place = torch.searchsorted(vocabulary, tokens).clamp_max(len(vocabulary) - 1)
            tokens = torch.where(vocabulary[place] == tokens, place, 0)
        return tokens

    def knows(self, text: str) -> bool:
        """Whether all words of a text are in the vocabulary of the text tower."""
        return self.vocabulary is None or set(tokenize([text])[0].tolist()) <= {0, *self.vocabulary}

    @property
    def naming_scale(self) -> float:
        """The learned scale of the cosines of texts and sounds."""
        if self.calibration is not None:  # mini's objective has one scale for all pairs
            return self.calibration.scale
        self._require("text")
        return float(self.modality_postprocessors["text"][1].log_logit_scale.exp().clamp(max=100))  # type: ignore

    def pixels(self, image: Image.Image) -> Tensor:
        """The original's preprocessing: short side to the model's size, centre crop; `[3, size, size]`."""
        return self.preprocess(image)


@family("mini", "imagebind_huge")
class ImageBindFamily(Family):
    """The bundled model, and the published ImageBind."""

    def load(
        self, name: str, *, checkpoint: Source | None, device: torch.device, dtype: torch.dtype, towers: Sequence[str]
    ) -> ImageBind:
        path = checkpoint or (MINI if name == "mini" else checkpoint_path(name))
        return ImageBind.from_checkpoint(path, towers=towers, dtype=dtype, device=device, name=name)

    def names(self) -> list[str]:
        return ["mini", "imagebind_huge"]

    def entries(self) -> list[Entry]:
        here = checkpoint_path("imagebind_huge").exists()
        return [
            Entry("mini", ("audio", "text"), "here (bundled)"),
            Entry("imagebind_huge", ("audio", "text"), "here" if here else "`avgrad download imagebind_huge`"),
        ]
