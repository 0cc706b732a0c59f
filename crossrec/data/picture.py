"""An encoded picture, decoded with limits on what it may cost: it comes from somewhere else.

picture = decode_image(data)        # RGB; BadImage where it cannot be
"""

import io
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded: no format that runs programs or reads other files."""

LARGEST_BYTES = 32 * 2**20
"""Of one encoded image."""

UNDECODABLE, TOO_LARGE = "undecodable", "too large"


class BadImage(ValueError):
    """Bytes that are no image, or too large a one; its text is UNDECODABLE or TOO_LARGE."""


def decode_image(data: bytes, quickly: bool = False) -> "Image":
    """Return an image as RGB, upright, transparent parts white; of several frames the first.

    Args:
        data: as the input has it.
        quickly: only whether it can be decoded is asked for; a JPEG may come out small.

    Raises:
        BadImage: it has more pixels than PIL takes for safe (89 million), or more than 32 MiB, or
            cannot be decoded to its end.
    """
    from PIL import Image, ImageOps

    if len(data) > LARGEST_BYTES:
        raise BadImage(TOO_LARGE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and what is an error below
            image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or 0):
                raise BadImage(TOO_LARGE)
            if quickly:
                image.draft("RGB", (1, 1))
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.has_transparency_data:
                above = image.convert("RGBA")
                white = Image.new("RGBA", above.size, "white")
                image = Image.alpha_composite(white, above)
            return image.convert("RGB")
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage(TOO_LARGE) from error
    except Exception as error:  # what decoders raise at damaged bytes is written down nowhere
        raise BadImage(UNDECODABLE) from error
