"""The older ``monai-generative`` package under today's MONAI: its networks, schedulers and inferers, as they are.

The package (0.2.3) looks for ``IgniteInfo`` where MONAI had it before version 1.4, and can't be imported without.
"""

import monai.config
from monai.utils import IgniteInfo

monai.config.IgniteInfo = IgniteInfo  # type: ignore[attr-defined]

from generative.inferers import DiffusionInferer, LatentDiffusionInferer  # noqa: E402
from generative.networks.nets import AutoencoderKL, DiffusionModelUNet  # noqa: E402
from generative.networks.schedulers import DDIMScheduler, DDPMScheduler  # noqa: E402

__all__ = [
    "AutoencoderKL",
    "DDIMScheduler",
    "DDPMScheduler",
    "DiffusionInferer",
    "DiffusionModelUNet",
    "LatentDiffusionInferer",
]
