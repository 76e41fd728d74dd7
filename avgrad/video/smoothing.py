"""Averages of moments over time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import torch

from avgrad.video.moment import Moment


def smoothed(moments: Iterator[Moment], fps: float, seconds: float) -> Iterator[Moment]:
    """Moments whose maps, scores and presence are means over the moments at most `seconds / 2` away.

    Where the own sound is silent it counts neither in the means of others nor gets one.

    Args:
        moments: evenly spaced.
        fps: of the moments.
        seconds: 0 for no smoothing.
    """
    reach = round(seconds * fps / 2)
    if reach == 0:
        yield from moments
        return
    around: deque[Moment] = deque()  # at most 2 reach + 1 of them
    place = 0  # of the next moment to give, in `around`
    for moment in moments:
        around.append(moment)
        if len(around) - place > reach:
            yield _mean(around, place, reach)
            place += 1
            if place > reach:
                around.popleft()
                place -= 1
    while place < len(around):
        yield _mean(around, place, reach)
        place += 1


def _mean(around: deque[Moment], place: int, reach: int) -> Moment:
    moment = around[place]
    near = [around[index] for index in range(max(0, place - reach), min(len(around), place + reach + 1))]
    scores, maps, layer_maps = moment.scores.clone(), moment.maps.clone(), moment.layer_maps.clone()
    presence = None if moment.presence is None else moment.presence.clone()
    for index in range(len(moment.prompts)):
        if moment.explains(index):
            own = [other for other in near if other.explains(index)]
            scores[index] = torch.stack([other.scores[index] for other in own]).mean()
            maps[index] = torch.stack([other.maps[index] for other in own]).mean(0)
            layer_maps[index] = torch.stack([other.layer_maps[index] for other in own]).mean(0)
            if presence is not None:
                presence[index] = torch.stack(
                    [p[index] for p in (other.presence for other in own) if p is not None]
                ).mean()
    return replace(moment, scores=scores, maps=maps, layer_maps=layer_maps, presence=presence)
