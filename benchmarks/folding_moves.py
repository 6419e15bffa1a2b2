"""What BatchNorm after an activation can hand on to what reads it.

ECAPA-TDNN and x-vectors have BatchNorm after the activation, so that it folds
into no convolution before it. What it adds to a channel, and what it multiplies
it with, can move into the convolutions that read the channel: all of them, and
all of them linear. The function stays the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Optional

import torch
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from speechbrain.lobes.models.Xvector import Xvector
from torch import nn

__all__ = [
    "Group",
    "Source",
    "ecapa_groups",
    "equalize",
    "fold",
    "gains",
    "offsets",
    "xvector_groups",
]


# -- what can be moved, and where to -------------------------------------------


@dataclass
class Source:
    """Channels that a BatchNorm writes, and the convolutions that read them.

    Arguments
    ---------
    norm : torch.nn.BatchNorm1d
        The writer.
    channels : slice
        Which of its channels.
    readers : list of tuple
        Convolutions, with the slice of their inputs.
    """

    norm: nn.BatchNorm1d
    channels: slice
    readers: list[tuple[nn.Conv1d, slice]]

    def gain_and_offset(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return BatchNorm as one factor and one addend a channel."""
        norm = self.norm
        gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        offset = norm.bias - gain * norm.running_mean
        return gain[self.channels].clone(), offset[self.channels].clone()

    def shift(self, offset: torch.Tensor) -> None:
        """Move an addend; readers need not be the only ones of a sum."""
        self.norm.bias[self.channels] -= offset
        for conv, inputs in self.readers:
            conv.bias += conv.weight[:, inputs].sum(2) @ offset


@dataclass
class Group:
    """Sources that are added somewhere, and so share a factor.

    Arguments
    ---------
    sources : list of Source
        What is added.
    pooled : torch.nn.BatchNorm1d, optional
        Normalizes means and deviations of these channels.
    """

    sources: list[Source]
    pooled: Optional[nn.BatchNorm1d] = None

    def readers(self) -> list[tuple[nn.Conv1d, slice]]:
        """Return each reader once."""
        found = {}
        for source in self.sources:
            for conv, inputs in source.readers:
                found[id(conv), inputs.start] = conv, inputs
        return list(found.values())

    def scale(self, factor: torch.Tensor) -> None:
        """Multiply the channels, and divide in what reads them."""
        for source in self.sources:
            source.norm.weight[source.channels] *= factor
            source.norm.bias[source.channels] *= factor
        for conv, inputs in self.readers():
            conv.weight[:, inputs] /= factor[:, None]
        if self.pooled is not None:
            both = torch.cat([factor, factor])
            self.pooled.running_mean *= both
            self.pooled.weight /= both


def ecapa_groups(model: ECAPA_TDNN) -> dict[str, list[Group]]:
    """Return what can be moved in an ECAPA-TDNN, by place."""
    blocks = list(model.blocks[1:])
    fc = model.fc.conv
    mfa, asp = model.mfa, model.asp.tdnn.conv.conv
    width = mfa.norm.norm.num_features
    chain = []
    for i, block in enumerate(model.blocks):
        norm = block.norm.norm if i == 0 else block.tdnn2.norm.norm
        later = blocks[i:]
        readers = [(b.tdnn1.conv.conv, slice(0, None)) for b in later]
        if i > 0:
            readers.append((block.se_block.conv1.conv, slice(0, None)))
        count = norm.num_features
        # The sum after a block has all earlier ones in it.
        readers += [
            (mfa.conv.conv, slice(j * count, (j + 1) * count))
            for j in range(max(i - 1, 0), len(blocks))
        ]
        chain.append(Source(norm, slice(0, None), readers))
    statistics = [
        (asp, slice(j * width, (j + 1) * width))
        for j in range(asp.in_channels // width)
    ]
    return {
        "res2": [g for block in blocks for g in res2_groups(block)],
        "residual": [Group(chain)],
        "mfa": [
            Group(
                [Source(mfa.norm.norm, slice(0, None), statistics)],
                model.asp_bn.norm,
            )
        ],
        "fc": [
            Group(
                [
                    Source(
                        model.asp_bn.norm,
                        slice(0, None),
                        [(fc, slice(0, None))],
                    )
                ]
            )
        ],
    }


def res2_groups(block: nn.Module) -> Iterator[Group]:
    """Yield the groups between the two 1x1 convolutions of a block.

    Part i of the input is added to the output of sub-block i - 1 and read by
    sub-block i; outputs are also read by the second 1x1 convolution.
    """
    inner = list(block.res2net_block.blocks)
    last = block.tdnn2.conv.conv
    size = block.tdnn1.norm.norm.num_features // (len(inner) + 1)
    whole = slice(0, size)
    parts = [slice(i * size, (i + 1) * size) for i in range(len(inner) + 1)]
    outputs = []
    for i, sub in enumerate(inner, 1):
        readers = [(last, parts[i])]
        if i < len(inner):
            readers.append((inner[i].conv.conv, whole))
        outputs.append(Source(sub.norm.norm, whole, readers))
    norm = block.tdnn1.norm.norm
    yield Group([Source(norm, parts[0], [(last, parts[0])])])
    for i, sub in enumerate(inner, 1):
        source = Source(norm, parts[i], [(sub.conv.conv, whole)])
        yield Group([source, outputs[i - 2]] if i > 1 else [source])
    yield Group([outputs[-1]])


def xvector_groups(model: Xvector) -> dict[str, list[Group]]:
    """Return what can be moved in an x-vector model: all but the last."""
    blocks = [m for m in model.blocks if hasattr(m, "norm")]
    convs = [m.conv for m in model.blocks if hasattr(m, "conv")]
    return {
        "blocks": [
            Group(
                [Source(block.norm, slice(0, None), [(conv, slice(0, None))])]
            )
            for block, conv in zip(blocks, convs[1:])
        ]
    }


# -- ways to move it -----------------------------------------------------------


def offsets(groups, magnitudes) -> None:
    """Move what BatchNorm adds: zeros of a ReLU are zeros again."""
    for source in (s for g in groups for s in g.sources):
        source.shift(source.gain_and_offset()[1])


def gains(groups, magnitudes) -> None:
    """Move what BatchNorm multiplies with, out of groups of one."""
    for group in groups:
        (source,) = group.sources
        group.scale(1 / source.gain_and_offset()[0])


def fold(groups, magnitudes) -> None:
    """Move all of BatchNorm."""
    offsets(groups, magnitudes)
    gains(groups, magnitudes)


def equalize(groups, magnitudes, alpha: float) -> None:
    """Share ranges between inputs and weights, as SmoothQuant does.

    Readers count the same, whatever their own range.
    """
    for group in groups:
        inputs, weights = [], []
        for conv, part in group.readers():
            seen = magnitudes[id(conv)]
            inputs.append((seen / seen.median())[part])
            rows = conv.weight.abs()
            columns = rows.amax(2) / rows.amax((1, 2))[:, None]
            columns = columns.square().mean(0).sqrt()
            weights.append((columns / columns.median())[part])
        inputs, weights = _geometric_mean(inputs), _geometric_mean(weights)
        group.scale(weights ** (1 - alpha) / inputs**alpha)


def _geometric_mean(rows) -> torch.Tensor:
    return torch.stack(rows).clamp(min=1e-4).log().mean(0).exp()
