"""How far a result may be from the recorded one: the table of the vectors' README, as named limits.

The measured noise floor of the reference against itself lies 5 to 20 times below each of them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """|actual - expected| <= absolute + relative * |expected|, for all but a `share` of the elements.

    `network` marks results of neural networks: in half precision those are held to HALF_PRECISION_SNR instead, because
    no absolute error was measured for it.
    """

    absolute: float
    relative: float = 0.0
    share: float = 0.0
    network: bool = False


EXACT = Limit(0.0)
LATENT = Limit(5e-5, network=True)  # m_p, logs_p, z_p, z
AUDIO = Limit(2e-5, network=True)  # decoder output, full scale 1
SOURCE = Limit(1e-4)  # harmonic source; its float32 bookkeeping against an exact phase is 1.5e-5
MEL = Limit(5e-3)  # natural log; 2.4e-3 near the floor of 1e-5 with another FFT
MEL_FILTER = Limit(1e-6)  # filterbank and window
SALIENCE = Limit(2e-4, network=True)  # sigmoid output, 4e-5 with another FFT
SALIENCE_F0 = Limit(0.05)  # Hz, where the decision is not a toss-up
SALIENCE_MARGIN = 1e-4  # frames whose two best bins (or best bin and threshold) are closer than this decide nothing
DECODED_F0 = Limit(5e-3)  # Hz, salience given
CONTENT_TINY = Limit(1e-4, network=True)
CONTENT_FULL = Limit(3e-4, network=True)
ARITHMETIC = Limit(1e-6, relative=1e-5)  # loudness, retrieval, protect
HIGHPASS = Limit(1e-9)  # float64
EXACT_F0 = Limit(1e-6)  # Hz, float64 trackers: pm, harvest, dio
REALTIME_F0 = Limit(1e-6, relative=1.2e-7)  # Hz, the same handed on as float32: one rounding more
NEURAL_F0 = Limit(0.5, share=0.02)  # Hz: crepe, fcpe; 2 % of the frames may differ in voicing
NEURAL_COARSE = Limit(1.0, share=0.02)  # 0.5 Hz may cross one boundary of the pitch code
DECODED_FILE = Limit(1e-3)  # 16 kHz samples; the reference's resampler depends on its ffmpeg build
DECODED_EDGE = 100  # samples at either end where resamplers differ in what they assume beyond it
DECODED_LEVEL = Limit(0.1)  # dB, edges included
INT16 = Limit(4.0, network=True)  # steps of a whole conversion
INT16_FCPE = Limit(40.0, network=True)  # p08: the tracker is another library's network
INT16_RECIPE = Limit(100.0, network=True)  # p16, p17: content encoder and pitch network of full size in the chain

HALF_PRECISION_SNR = 30.0  # dB, float16 and bfloat16 against the float32 recording
