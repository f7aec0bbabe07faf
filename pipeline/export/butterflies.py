"""A detector of hybrids from photographs of butterflies, as the platform calls it: `Model().load()`, `.predict(image)`.

An exported submission's model.py, beside `network.py`. The platform rounds scores to four decimals and asks for more than a
threshold that is itself a score: so what is submitted is no probability, of which many round to 1, but where the image's log
odds stand among those of validation images, which keeps the order.
"""

from __future__ import annotations

import numpy as np
import plain
import torch
from decoding import decode_opened
from network import Batch, load  # as plain.py and correction.py it lies beside this file
from PIL import Image


class Model:
    """What the platform asks for."""

    def load(self) -> None:
        """Read the folder's files and build the members."""
        self.spec, self.backbone, self.members = load()

    def predict(self, image: Image.Image) -> float:
        """The score of one photograph, within 0 … 1: higher is more likely a hybrid."""
        try:
            image = decode_opened(image, self.backbone.how).image
        except Exception:  # a damaged file: PIL's decoders raise errors of many kinds, and nobody would catch them
            return float(self.spec["neutral"])  # the validation images' median
        return float(plain.spread(self.log_odds(image), self.spec["knots"]))

    def log_odds(self, image: Image.Image) -> float:
        """log p / (1 − p) of a decoded photograph being of a hybrid, the mean of what the members say."""
        batch = Batch([{"relative_img": image, "domainID": None, "scientificName": None}], self.backbone)
        with torch.inference_mode():
            return float(np.mean([member.log_odds(batch)[0] for member in self.members]))
