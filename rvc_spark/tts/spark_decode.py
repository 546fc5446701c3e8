"""Tokens to sound while more tokens are coming: windows of the codec with everything that is final kept.

A decoded token depends on 57 tokens on either side in the prenet and on 10 frames in the wave generator. The prenet's
frames of earlier windows are kept once they cannot change any more, so a window costs what is new plus the edges:

    prenet  [kept frames ........|~57~ new frames ~57~]
    wave                  [~10~ kept samples ~10~]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from rvc_spark.tts.bicodec import BiCodec
from rvc_spark.tts.chunk_schedule import Window


class WindowedCodec:
    """A loaded codec as `spark_speech` needs it."""

    def __init__(self, codec: BiCodec) -> None:
        self._codec = codec
        self.reach = codec.prenet_reach + codec.wave_reach
        self.semantic_size = codec.semantic_size
        self.global_size = codec.global_size

    def utterance(self, global_tokens: Sequence[int]) -> Callable[[Sequence[int], Window], np.ndarray]:
        """See `spark_speech.Codec`."""
        return UtteranceDecoder(self._codec, global_tokens)


class UtteranceDecoder:
    """Decodes windows of one utterance, asked for in order.

    global_tokens: of the voice, [32].
    """

    def __init__(self, codec: BiCodec, global_tokens: Sequence[int]) -> None:
        self._codec = codec
        self._device = next(codec.parameters()).device
        self._globals = torch.tensor(global_tokens, dtype=torch.int32, device=self._device).reshape(1, 1, -1)
        self._final: torch.Tensor | None = None  # prenet frames [1, C, n] that no later token changes
        self._final_start = 0

    @torch.inference_mode()
    def __call__(self, semantic: Sequence[int], window: Window) -> np.ndarray:
        """float32 [320 * kept tokens]. `semantic`: all tokens known so far, of which the window is a part."""
        codec = self._codec
        first = max(window.start, window.keep_start - codec.wave_reach)
        last = min(window.stop, window.keep_stop + codec.wave_reach)
        frames, begin = self._frames(semantic, first, window)
        sound = codec.wave(frames[..., first - begin : last - begin])
        step = codec.samples_per_token
        kept = sound[0, 0, (window.keep_start - first) * step : (window.keep_stop - first) * step]
        return kept.float().cpu().numpy()

    def _frames(self, semantic: Sequence[int], first: int, window: Window) -> tuple[torch.Tensor, int]:
        """Prenet frames from `begin <= first` to the end of the window, and `begin`."""
        reach = self._codec.prenet_reach
        begin = self._final_start
        have = 0 if self._final is None else self._final.shape[-1]
        if self._final is None or first < begin or begin + have <= first:
            self._final, begin, have = None, first, 0
        new = begin + have  # the first frame that is computed now
        start = max(0, new - reach)
        tokens = torch.tensor(semantic[start : window.stop], dtype=torch.int64, device=self._device)[None]
        computed = self._codec.prenet_frames(tokens, self._globals)[..., new - start :]
        frames = computed if self._final is None else torch.cat([self._final, computed], dim=-1)
        # The next window begins wave_reach before where this one stops keeping; nothing before that is asked for again.
        final = max(0, window.stop - reach - begin)
        drop = min(final, max(0, window.keep_stop - self._codec.wave_reach - self._codec.reach - begin))
        self._final, self._final_start = frames[..., drop:final].clone(), begin + drop
        return frames, begin
