"""Where workers find the weights of a run, and what names the vectors that they give.

source = BackboneSource(store, config.model).pinned(config.run_id)
backbone = source.load()            # on any node, and the same weights on all
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crossrec.config import ModelConfig
from crossrec.errors import ConfigError, explain
from crossrec.model.adapters import check_trainable
from crossrec.model.backbone import TextBackbone, load_backbone, weights_digest
from crossrec.model.checkpoint import load_model_backbone
from crossrec.model.fetch import Pin
from crossrec.model.vision import (
    VisionBackbone,
    check_image_layers,
    check_vision,
    load_vision,
    vision_digest,
)
from crossrec.model.weights import (
    BackboneFolder,
    files_digest,
    folder_digest,
    locate_weights,
    named_pooling,
    pin_of,
)
from crossrec.storage import Store

TEXTS, IMAGES = "model.backbone", "model.image_backbone"
"""What weights are for, by the key of the config that names them."""


@dataclass(frozen=True)
class BackboneSource:
    """Where the backbones of texts and images lie: in a model folder, or where the config says.

    pins: what URIs must hold, wherever they are read.
    """

    store: Store
    settings: ModelConfig
    model_folder: str | None = None
    pins: tuple[Pin, ...] = ()

    def pinned(self, run_id: str | None = None) -> "BackboneSource":
        """Return the source with its weights as they are now, which every node checks.

        Args:
            run_id: of a run that keeps to the weights it began with, through all of its restarts.

        Raises:
            ConfigError: there are no weights, or they are not those that the run began with.
        """
        known = {pin.uri for pin in self.pins}
        pins = [
            pin
            for key, place in self._places().items()
            if (pin := pin_of(place, self.store.options, key)) is not None and pin.uri not in known
        ]
        if run_id is not None:
            _keep_pins(self.store, run_id, pins)
        return replace(self, pins=(*self.pins, *pins))

    @property
    def has_images(self) -> bool:
        """Whether items are images too.

        Raises:
            ConfigError: the model folder says otherwise than the settings.
        """
        wanted = self.settings.image_backbone
        if self.model_folder:
            known = self._said()["settings"].get("image_backbone")
            if (known is None) != (wanted is None):
                expected, found = ("none" if name is None else name for name in (known, wanted))
                where = f"model.image_backbone, for {self.store.uri(self.model_folder)}"
                mend = f"set model.image_backbone={known or 'null'}, or train from the start"
                raise ConfigError(explain(where, f"{expected}, as trained", found, mend))
        return wanted is not None

    def _places(self) -> dict[str, str]:
        """Return where weights lie, by the key of the config that says so."""
        names = {TEXTS: "backbone"} | ({IMAGES: "image_backbone"} if self.has_images else {})
        if self.model_folder:
            folder = self.store.uri(self.model_folder).rstrip("/")
            return {key: f"{folder}/{name}" for key, name in names.items()}
        return {key: getattr(self.settings, name) for key, name in names.items()}

    def locate(self, key: str = TEXTS) -> str:
        """Return the local folder, or hub id, of the backbone of TEXTS or IMAGES."""
        return locate_weights(self._places()[key], self.store.options, key, self.pins)

    def load(self) -> TextBackbone:
        """Return the backbone, on the CPU."""
        if self.model_folder:
            return load_model_backbone(self.store, self.model_folder, self.settings, self.pins)
        return load_backbone(
            self.locate(),
            self.settings.text_tokens,
            self.settings.trust_remote_code,
            self.settings.pooling,
        )

    def check(self) -> None:
        """Find the backbones, and try what is to be done, so that mistakes fail before any work.

        Raises:
            ConfigError: there is no such folder or package, it holds no weights, no such layers
                and maps as the settings name, or no model of images.
        """
        place = self.locate()
        if self.settings.backbone_learns:
            check_trainable(place, self.settings)
        if self.has_images:
            config, _ = check_vision(self.locate(IMAGES), self.settings.trust_remote_code)
            if self.settings.images_learn:
                check_image_layers(config, self.settings)

    def digest(self) -> str:
        """Return what names the vectors of this backbone; loads only one of a hub.

        A model folder says which vectors its backbone gives: where it was not trained, those of
        the backbone that the model started from, which are there already.
        """
        if self.model_folder:
            known: str | None = self._said().get("text_digest")
            return known or weights_digest(self.load())
        place = Path(self.locate())
        if place.is_dir():
            return folder_digest(place, self.settings.text_tokens, self.settings.pooling)
        return weights_digest(self.load())

    def untrained(self) -> TextBackbone | BackboneFolder:
        """Return what `save_model` writes where the backbone was not trained."""
        place = Path(self.locate())
        if not place.is_dir():
            return self.load()
        if self.model_folder:
            # Its own, which need not be that of the settings: it may have been adapted.
            return BackboneFolder(place, self.digest(), self._said()["pooling"])
        return BackboneFolder(place, self.digest(), named_pooling(place, self.settings.pooling))

    def load_vision(self) -> VisionBackbone:
        """Return the model of images, on the CPU."""
        return load_vision(self.locate(IMAGES), self.settings.trust_remote_code)

    def image_digest(self) -> str:
        """Return what names the vectors of the model of images, as `digest` does of texts."""
        if self.model_folder:
            return str(self._said()["image_digest"])
        place = Path(self.locate(IMAGES))
        if place.is_dir():
            return files_digest(place, "images")
        return vision_digest(self.load_vision())

    def vision(self) -> VisionBackbone | BackboneFolder | None:
        """Return what `save_model` writes of a model of images that was not trained."""
        if not self.has_images:
            return None
        place = Path(self.locate(IMAGES))
        return BackboneFolder(place, self.image_digest()) if place.is_dir() else self.load_vision()

    def _said(self) -> dict[str, Any]:
        said: dict[str, Any] = self.store.read_json(f"{self.model_folder}/config.json")
        return said


def _keep_pins(store: Store, run_id: str, pins: list[Pin]) -> None:
    """Note down the weights of a run, or compare them with what it noted down before."""
    path = f"runs/{run_id}/weights.json"
    noted = {}
    if store.exists(path):
        noted = {said["uri"]: Pin.of_json(said) for said in store.read_json(path)}
    for pin in pins:
        if noted.get(pin.uri, pin) != pin:
            changed = sorted(name for name, *_ in {*pin.files} ^ {*noted[pin.uri].files})
            mend = "put them back, or start a run with another run_id"
            expected = f"the weights that run {run_id} began with"
            found = f"others: {', '.join(dict.fromkeys(changed))}"
            raise ConfigError(explain(pin.uri, expected, found, mend))
    together = noted | {pin.uri: pin for pin in pins}
    if together != noted:
        store.write_json(path, [pin.as_json() for _, pin in sorted(together.items())])
