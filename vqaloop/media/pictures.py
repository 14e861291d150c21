"""Frames as picture files, for judges that read those."""

import io

import torch
from PIL import Image

from vqaloop.media.colour import to_pictures
from vqaloop.media.planes import Frames


def bitmap(frame: Frames) -> bytes:
    """An (H * 3/2, W) frame of 4:2:0, BT.709 and limited range, as a BMP file of 8-bit R'G'B'.

    BMP is not compressed, and every reader has it built in.
    """
    rgb = to_pictures(torch.tensor(frame)[None])[0].permute(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(rgb.contiguous().numpy()).save(file, "BMP")
    return file.getvalue()
