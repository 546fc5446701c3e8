"""One step of several sequences at once: from each one's last token to its next, on whatever device.

    tokens, positions [slots] -> network -> hidden -> head(s) -> drawn -> tokens, positions [slots]

The state of all slots lies in tensors that never move, and a step reads and writes only these, so that the very same
function runs eagerly, or recorded once as a CUDA graph and replayed. Eagerly only the running slots are computed, each
over its own length. Recorded, the first 1, 2, 4, 8 ... slots are, over one of a few lengths; an idle slot among them
works on the cache's scratch position. Refuses to know requests, streams and threads.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rvc_spark.tts.spark_lm import HeadRows, SparkLM
from rvc_spark.tts.spark_lm_cache import MaskedAttention, RowAttention
from rvc_spark.tts.spark_sampling import Draws, Sampling, candidates, choose, uniforms

MAX_GRAPHS = 96  # recorded steps kept at once
FIRST_LENGTH = 256  # the lengths recorded are this, doubled until the cache is full

Work = Callable[[], None]
Capture = Callable[[Work, Sequence[Tensor]], Work]


@dataclass(frozen=True)
class GraphKey:
    """What a recorded step is for: the first `rows` slots, `length` positions, these heads, this many candidates."""

    rows: int
    length: int
    heads: tuple[HeadRows, ...]
    width: int


class Batch:
    """The slots of a running model and the step that takes all running ones one token further.

    Args:
        lm: the model.
        slots: how many sequences at once.
        max_length: of each, prompt and new tokens together.
        capture: how a step is recorded, or None to run eagerly; see `capture_graph`.
    """

    def __init__(self, lm: SparkLM, slots: int, max_length: int, capture: Capture | None = None) -> None:
        self.lm, self.slots, self.max_length = lm, slots, max_length
        self.cache = lm.new_cache(slots, max_length)
        self._capture = capture
        self._graphs: OrderedDict[GraphKey, Work] = OrderedDict()
        real = torch.float32 if lm.device.type == "mps" else torch.float64

        def state(dtype: torch.dtype, fill: float = 0, *shape: int) -> Tensor:
            return torch.full((slots, *shape), fill, dtype=dtype, device=lm.device)

        self._tokens, self._made = state(torch.int64), state(torch.int64)
        self._positions = state(torch.int64, self.cache.scratch)
        self._running = state(torch.int64)  # 1 or 0
        self._member = state(torch.int64)  # which of the step's heads a slot uses
        self._temperature, self._top_k, self._top_p = state(torch.float32), state(torch.int64, 1), state(real, 1.0)
        self._uniform = state(real, 0.0, max_length)
        self._heads: dict[int, HeadRows] = {}  # of the running slots, with the host's copy of what it must know
        self._at: dict[int, int] = {}
        self._width: dict[int, int] = {}

    @property
    def running(self) -> list[int]:
        """The slots that take part in a step, ascending."""
        return sorted(self._heads)

    def start(
        self, slot: int, prompt: Sequence[int], head: HeadRows, sampling: Sampling, seed: int, limit: int
    ) -> None:
        """Let a slot take part whose prompt has been read but for its last token, which is its first input."""
        self._tokens[slot] = prompt[-1]
        self._positions[slot] = len(prompt) - 1
        self._made[slot] = 0
        self._running[slot] = 1
        self._temperature[slot], self._top_k[slot], self._top_p[slot] = (
            float(sampling.temperature), sampling.top_k, float(sampling.top_p),
        )  # fmt: skip
        self._uniform[slot, :limit] = torch.from_numpy(uniforms(seed, limit)).to(self._uniform)
        self._at[slot] = len(prompt) - 1
        self._width[slot] = candidates(sampling.top_k, len(head.ids))
        self._heads[slot] = head

    def stop(self, slot: int) -> None:
        """Take a slot out; harmless when it is not in."""
        if self._heads.pop(slot, None) is not None:
            del self._at[slot], self._width[slot]
            self._running[slot] = 0
            self._tokens[slot] = 0
            self._positions[slot] = self.cache.scratch

    def step(self) -> Mapping[int, int]:
        """One more token for every running slot: slot -> id, or `NOTHING` where the logits are not finite."""
        slots = self.running
        heads = tuple(dict.fromkeys(self._heads[slot] for slot in slots))
        width = max(self._width[slot] for slot in slots)
        if len(heads) > 1:  # with one, every row is its member whatever was written
            for slot in slots:
                self._member[slot] = heads.index(self._heads[slot])
        if self._capture is None:
            rows = torch.tensor(slots, device=self.lm.device)
            attention = RowAttention(self.cache, slots, [self._at[slot] for slot in slots])
            self._advance(rows, attention, heads, width)
            drawn = self._tokens[rows].tolist()
        else:
            count = min(_doubled(1, slots[-1] + 1), self.slots)
            length = min(_doubled(FIRST_LENGTH, max(self._at[slot] for slot in slots) + 1), self.cache.capacity)
            self._recorded(GraphKey(count, length, heads, width), self._capture)()
            everyone = self._tokens[:count].tolist()  # the one moment the host waits for the device
            drawn = [everyone[slot] for slot in slots]
        for slot in slots:
            self._at[slot] += 1
        return dict(zip(slots, drawn, strict=True))

    def warm(self, head: HeadRows, sampling: Sampling) -> int:
        """Record every step that requests with this head and these settings can need; the number recorded now."""
        if self._capture is None:
            return 0
        before = len(self._graphs)
        width = candidates(sampling.top_k, len(head.ids))
        for rows in _doublings(1, self.slots):
            for length in _doublings(FIRST_LENGTH, self.cache.capacity):
                self._recorded(GraphKey(rows, length, (head,), width), self._capture)
        return len(self._graphs) - before

    def _recorded(self, key: GraphKey, capture: Capture) -> Work:
        work = self._graphs.get(key)
        if work is None:
            rows = torch.arange(key.rows, device=self.lm.device)

            def run() -> None:
                attention = MaskedAttention(self.cache, self._positions[: key.rows], key.length)
                self._advance(rows, attention, key.heads, key.width)

            work = self._graphs[key] = capture(run, (self._tokens, self._positions, self._made))
            while len(self._graphs) > MAX_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        return work

    def _advance(
        self, rows: Tensor, attention: MaskedAttention | RowAttention, heads: tuple[HeadRows, ...], width: int
    ) -> None:
        """The step itself for the slots `rows`; asks the device nothing."""
        running, made, positions = self._running[rows], self._made[rows], self._positions[rows]
        hidden = self.lm(self._tokens[rows], positions, attention)
        at = made.clamp(max=self.max_length - 1)[:, None]
        draws = Draws(
            self._temperature[rows], self._top_k[rows], self._top_p[rows], self._uniform[rows].gather(1, at)[:, 0]
        )
        member = self._member[rows]
        drawn = torch.zeros_like(member)
        for number, head in enumerate(heads):
            column = choose(self.lm.logits(hidden, head), draws, min(width, len(head.ids)))
            token = torch.where(column >= 0, head.ids[column.clamp(min=0)], column)
            drawn = token if len(heads) == 1 else torch.where(member == number, token, drawn)
        self._tokens[rows] = drawn * running
        self._positions[rows] = positions + running
        self._made[rows] = made + running


def _doubled(first: int, wanted: int) -> int:
    """The first of `first`, 2 first, 4 first ... that is at least `wanted`."""
    while first < wanted:
        first *= 2
    return first


def _doublings(first: int, last: int) -> list[int]:
    """`first`, doubled while below `last`, and `last`."""
    sizes = []
    while first < last:
        sizes.append(first)
        first *= 2
    return [*sizes, last]


def capture_graph(work: Work, changed: Sequence[Tensor]) -> Work:
    """Record `work` as a CUDA graph; calling the result replays it.

    It runs once before, on a stream of its own, because kernels choose and allocate on their first run; what it changed
    is put back. Recording is thread-local: other threads may use the device meanwhile.
    """
    kept = [tensor.clone() for tensor in changed]
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        work()
    torch.cuda.current_stream().wait_stream(aside)
    for tensor, before in zip(changed, kept, strict=True):
        tensor.copy_(before)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph.replay
