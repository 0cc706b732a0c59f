"""Vectors of items through backbones that learn: of their texts, of their images, or of both.

    learning = LearningItems(vectors_IJ, LearningTexts(backbone, texts), None)
    learning(rows_U)        # (U, J), with gradients
    learning.whole()        # (I, J), as the weights are now

Tensor suffixes: U unique items, I items, K images, C, H and W channels, height and width of one,
T width of a text's vector, V of an image's, J of both side by side.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, distributed, nn
from torch.utils.checkpoint import checkpoint

from crossrec.data.imagefile import ImageFile
from crossrec.data.picture import BadImage, decode_image
from crossrec.model.backbone import TextBackbone, encode_texts
from crossrec.model.vision import IMAGES_A_BATCH, VisionBackbone
from crossrec.train.sharding import is_sharded, place_among_workers

TEXTS_A_PART = {"cpu": 64, "cuda": 512}
"""Of about the same length, that are encoded at once, by device."""


class LearningTexts(nn.Module):
    """Text vectors through a backbone that learns: each call encodes anew, with gradients."""

    def __init__(self, backbone: TextBackbone, texts: list[str]) -> None:
        super().__init__()
        self.backbone = backbone
        self.texts = texts
        self.tokens_read = 0

    def forward(self, rows_U: Tensor) -> Tensor:
        """Return the vectors (U, T) of catalogue rows; zero where there is no text."""
        texts = [self.texts[row] for row in rows_U.tolist()]
        has_text_U1 = torch.tensor([[bool(text)] for text in texts], device=rows_U.device)
        # Decoders make no token of an empty text, and cannot read a part without any.
        read = [text or str(self.backbone.tokenizer.pad_token) for text in texts]
        tokens = {
            name: part.to(rows_U.device) for name, part in self.backbone.tokenize(read).items()
        }
        return torch.where(has_text_U1, self._encode(tokens), 0.0)

    def _encode(self, tokens: dict[str, Tensor]) -> Tensor:
        """Encode texts of about the same length together: else most of what is read is padding."""
        lengths_U = tokens["attention_mask"].sum(1)
        order_U = lengths_U.argsort(stable=True)
        # Where workers share the weights, all of them go through these as often.
        a_part = TEXTS_A_PART[lengths_U.device.type]
        if is_sharded(self.backbone.model):
            a_part = len(order_U)
        found = []
        for part in order_U.split(a_part):
            longest = int(lengths_U[part].max())
            shorter = {name: ids[part, :longest] for name, ids in tokens.items()}
            self.tokens_read += shorter["input_ids"].numel()
            found.append(self.backbone(**shorter))
        return torch.cat(found)[order_U.argsort()]

    def whole(self, share: tuple[int, int]) -> Tensor:
        """Return a worker's share of all items' vectors (I, T), as `encode_texts` does."""
        return torch.from_numpy(encode_texts(self.backbone, self.texts, share))


class LearningImages(nn.Module):
    """Image vectors through a backbone that learns: each call encodes anew, with gradients.

    Each image of a call is decoded and encoded once, however many of its items have it.
    saves_memory: whether activations are computed again in the backward pass, a few images at a
    time.
    """

    def __init__(
        self, backbone: VisionBackbone, images: ImageFile, saves_memory: bool = False
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.images = images
        self.numbers_I = torch.from_numpy(images.numbers_I)
        self.saves_memory = saves_memory

    def forward(self, rows_U: Tensor) -> Tensor:
        """Return the vectors (U, V) of catalogue rows; zero where there is no image."""
        if not len(self.images):
            return torch.zeros(len(rows_U), self.backbone.width, device=rows_U.device)
        numbers_U = self.numbers_I[rows_U.cpu()]
        has_image_U1 = (numbers_U >= 0).unsqueeze(1).to(rows_U.device)
        # Items without an image look one up too: every pass of any worker reaches all that learns.
        looked_up_U = torch.where(numbers_U >= 0, numbers_U, numbers_U.max().clamp(min=0))
        numbers_K, places_U = torch.unique(looked_up_U, return_inverse=True)
        vectors_KV = self._encode(numbers_K.tolist())
        return torch.where(has_image_U1, vectors_KV[places_U.to(rows_U.device)], 0.0)

    @torch.no_grad()
    def whole(self, share: tuple[int, int]) -> Tensor:
        """Return a worker's share of all items' vectors (I, V): of every so-manieth batch."""
        rank, world = share
        count = len(self.images)
        vectors_KV = torch.zeros(count, self.backbone.width)
        was_training = self.backbone.training
        self.backbone.eval()
        for start in range(rank * IMAGES_A_BATCH, count, world * IMAGES_A_BATCH):
            numbers = range(start, min(start + IMAGES_A_BATCH, count))
            vectors_KV[start : numbers.stop] = self._encode(numbers).cpu()
        self.backbone.train(was_training)
        has_image_I = self.numbers_I >= 0
        vectors_IV = torch.zeros(len(self.numbers_I), self.backbone.width)
        vectors_IV[has_image_I] = vectors_KV[self.numbers_I[has_image_I]]
        return vectors_IV

    def _encode(self, numbers: Sequence[int]) -> Tensor:
        """Return the vectors (K, V) of images by their numbers; zero for one that is damaged."""
        device = next(self.backbone.parameters()).device
        # Decoders let go of the interpreter; torch is idle meanwhile.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            found = list(pool.map(self._pixels, numbers))
        blank_1CHW = torch.zeros(1, *self.backbone.shape)
        pixels = torch.cat([blank_1CHW if part is None else part for part in found])
        pixels_KCHW = pixels.to(device)
        is_whole_K1 = torch.tensor([[part is not None] for part in found], device=device)
        if self.saves_memory and torch.is_grad_enabled():
            parts = [
                checkpoint(self.backbone, part, use_reentrant=False)
                for part in pixels_KCHW.split(IMAGES_A_BATCH)
            ]
            return torch.where(is_whole_K1, torch.cat(parts), 0.0)
        return torch.where(is_whole_K1, self.backbone(pixels_KCHW), 0.0)

    def _pixels(self, number: int) -> Tensor | None:
        try:
            return self.backbone.pixels(decode_image(self.images.read(number)))
        except BadImage:
            return None


class LearningItems(nn.Module):
    """Vectors of items, of which a part learns, or both: the text's, the image's.

    What does not learn stays as it is in vectors_IJ, the vectors before training.
    """

    def __init__(
        self, vectors_IJ: Tensor, texts: LearningTexts | None, images: LearningImages | None
    ) -> None:
        super().__init__()
        self.texts = texts
        self.images = images
        self.items_read = 0
        image_width = images.backbone.width if images is not None else 0
        text_width = (
            texts.backbone.width if texts is not None else vectors_IJ.shape[1] - image_width
        )
        self.texts_IT, self.images_IV = vectors_IJ[:, :text_width], vectors_IJ[:, text_width:]

    def forward(self, rows_U: Tensor) -> Tensor:
        """Return the vectors (U, J) of catalogue rows; zero for what an item lacks."""
        self.items_read += len(rows_U)
        texts_UT = self.texts_IT[rows_U] if self.texts is None else self.texts(rows_U)
        images_UV = self.images_IV[rows_U] if self.images is None else self.images(rows_U)
        return torch.cat([texts_UT, images_UV], 1)

    def whole(self) -> Tensor:
        """Return the vectors (I, J) of all items, without gradients.

        All workers take part: each encodes its share.
        """
        texts_IT = self.texts_IT if self.texts is None else self._gather(self.texts)
        images_IV = self.images_IV if self.images is None else self._gather(self.images)
        return torch.cat([texts_IT, images_IV], 1)

    def _gather(self, learner: LearningTexts | LearningImages) -> Tensor:
        share = place_among_workers()
        vectors = learner.whole(share).to(self.texts_IT)
        if share[1] > 1:
            distributed.all_reduce(vectors)
        return vectors
