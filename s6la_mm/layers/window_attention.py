"""Attention within windows for a plain ViT: what makes high-resolution images affordable (ViTDet, arXiv 2203.16527)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attend_in_windows(attn: nn.Module, x: Tensor, hw: tuple[int, int], window_size: int) -> Tensor:
    """Runs an attention layer in each window of a map on its own.

    Maps that the window does not divide are padded at the bottom and on the right. Padding is masked: no token attends
    to it, so that a window that is cut by the border gives what attention over its part of the map gives.

    Args:
        attn (nn.Module): mmpretrain's MultiheadAttention; its weights, dropout and drop path are used.
        x (Tensor): Patch tokens, (batch, H · W, D).
        hw (tuple[int, int]): H and W of the map.
        window_size (int): Side of the windows, in tokens.

    Returns:
        Tensor: Output of the attention layer, (batch, H · W, D).

    Example:
        >>> import torch
        >>> from mmpretrain.models.utils import MultiheadAttention
        >>> attend_in_windows(MultiheadAttention(32, num_heads=2), torch.rand(2, 15, 32), (3, 5), window_size=2).shape
        torch.Size([2, 15, 32])
    """
    (height, width), size = hw, window_size
    batch, heads = x.shape[0], attn.num_heads
    right, bottom = -width % size, -height % size
    rows, columns = (height + bottom) // size, (width + right) // size

    def to_windows(maps: Tensor, channels: int) -> Tensor:
        """(batch, H · W, channels) to (batch · windows, tokens of a window, channels), padded."""
        maps = F.pad(maps.reshape(-1, height, width, channels), (0, 0, 0, right, 0, bottom))
        maps = maps.view(-1, rows, size, columns, size, channels).transpose(2, 3)
        return maps.reshape(-1, size * size, channels)

    # Projected before the partition: padding is neither projected nor does it take part with the bias.
    qkv = to_windows(attn.qkv(x), 3 * attn.embed_dims)
    q, k, v = qkv.view(-1, size * size, 3, heads, attn.head_dims).permute(2, 0, 3, 1, 4)
    mask = None
    if right or bottom:
        mask = to_windows(torch.ones(height * width, device=x.device), 1) > 0
        mask = mask.view(1, -1, 1, 1, size * size).expand(batch, -1, -1, -1, -1).flatten(0, 1)
    dropout = attn.attn_drop if attn.training else 0.0
    out = attn.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    out = out.transpose(1, 2).reshape(batch, rows, columns, size, size, attn.embed_dims).transpose(2, 3)
    out = out.reshape(batch, rows * size, columns * size, -1)[:, :height, :width].reshape(batch, height * width, -1)
    return attn.out_drop(attn.gamma1(attn.proj_drop(attn.proj(out))))
