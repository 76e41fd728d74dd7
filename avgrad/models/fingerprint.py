"""What tells one set of weights from another."""

from __future__ import annotations

import hashlib
from typing import Any

import torch


def model_fingerprint(model: Any) -> str:
    """SHA-256 over the model's tensors."""
    digest = hashlib.sha256()
    module = model if isinstance(model, torch.nn.Module) else model.model  # other libraries' models are wrapped
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
