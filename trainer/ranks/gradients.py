"""The gradients of a minibatch: the sum of the ranks', whose losses have the denominators of the whole."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from trainer.ranks.exchange import Ranks

BUCKET_BYTES = 64 << 20  # that go in one call


def is_sharded(model: nn.Module) -> bool:
    """Whether ranks hold parts of the weights: passes are calls among the ranks then."""
    return any(isinstance(weight, DTensor) for weight in model.parameters())


def sum_gradients(ranks: Ranks, weights: Sequence[Tensor]) -> None:
    """Add up the gradients over the ranks, in place.

    Those of sharded weights were added up by the backward pass. A weight has none where no rank has one.
    """
    if ranks.world.alone:
        return
    plain = [weight for weight in weights if not isinstance(weight, DTensor)]
    if not plain:
        return
    used = ranks.any(torch.tensor([weight.grad is not None for weight in plain])).tolist()
    gradients = []
    for weight, anywhere in zip(plain, used, strict=True):
        if anywhere:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            gradients.append(weight.grad)
    for bucket in _buckets(gradients):
        if len(bucket) == 1 and bucket[0].is_contiguous():
            ranks.add_up(bucket[0])
            continue
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        ranks.add_up(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """In order, those that follow each other and are of one type together."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and (size + gradient.nbytes > BUCKET_BYTES or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.nbytes
    if bucket:
        yield bucket
