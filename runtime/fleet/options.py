"""What every replica of a fleet is started with: plain values, as they stand in a file for Ray Serve."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fastblt.models.shown import shown
from fastblt.runtime.backends.entry import ROOMY
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.manifest import MANIFEST_FILE, BundleError, load_manifest, sha256_of
from fastblt.runtime.serving.api_keys import environment_keys, read_keys
from fastblt.runtime.serving.chat_template import find_template
from fastblt.runtime.serving.model_host import Loader
from fastblt.runtime.serving.settings import ServingSettings


class FleetError(ValueError):
    """Reports options of a fleet that cannot be used."""


@dataclass(frozen=True)
class FleetOptions:
    """Holds how a replica loads a bundle and serves it; ``fastblt serve`` has options of the same names."""

    sequences: int = 8
    max_bytes: int = ROOMY
    backend: str = "onnxruntime"
    provider: str = "auto"
    threads: int | None = None
    workers: int | None = None
    slots: int | None = None
    row_floor: int = 1
    method: str | None = None
    model_name: str | None = None
    queue: int = ServingSettings.queue
    choices: int = ServingSettings.choices
    timeout: float = ServingSettings.timeout
    stall: float = ServingSettings.stall
    max_body: int = ServingSettings.max_body
    drain: float = ServingSettings.drain
    api_keys: str | None = None
    """File on every machine; None: the keys in the environment of the replica."""
    chat_template: str | None = None
    log_prompts: bool = False
    page: bool = True

    def settings(self, bundle: Path) -> ServingSettings:
        """Return what the server is made with.

        Args:
            bundle: what it serves; its chat template is taken where the options name none.

        Raises:
            ApiKeysError: the keys cannot be used.
            ChatTemplateError: the template of the bundle is malformed.
            ValueError: a value is out of range.
            OSError: a file cannot be read.
        """
        own = {field.name for field in dataclasses.fields(ServingSettings)}
        plain = {name: value for name, value in dataclasses.asdict(self).items() if name in own}
        if self.chat_template is not None:
            template: Path | None = Path(self.chat_template)
        else:
            template = bundle if find_template(bundle) else None
        keys = environment_keys() if self.api_keys is None else read_keys(Path(self.api_keys))
        return ServingSettings(**{**plain, "chat_template": template}, keys=keys)

    def loader(self, bundle: Path) -> Loader:
        """Return what loads a bundle."""
        return partial(
            BltRuntime.from_pretrained,
            bundle,
            provider=self.provider,
            backend=self.backend,
            max_bytes=self.max_bytes,
            threads=self.threads,
            sequences=self.sequences,
            row_floor=self.row_floor,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the options that differ from the defaults, and ``sequences``."""
        plain = dataclasses.asdict(self)
        changed = {name: value for name, value in plain.items() if value != getattr(_DEFAULTS, name)}
        return {"sequences": self.sequences, **changed}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FleetOptions:
        """Return the options in a mapping; numbers may be text, as on a command line.

        Raises:
            FleetError: there is no such option, or its value is of another type.
        """
        fields = {field.name: str(field.type) for field in dataclasses.fields(cls)}
        for name in data:
            if name not in fields:
                raise FleetError(f"args: found {shown(name)}, expected one of {', '.join(fields)}")
        return cls(**{name: _value(name, value, fields[name]) for name, value in data.items()})


_DEFAULTS = FleetOptions()
_SWITCHES = {"true": True, "false": False}


def _value(name: str, value: Any, kind: str) -> Any:
    """Return a value as the type of its field."""
    if value is None and kind.endswith("None"):
        return None
    kind = kind.split()[0]
    try:
        if kind == "bool" and (isinstance(value, bool) or str(value).lower() in _SWITCHES):
            return value if isinstance(value, bool) else _SWITCHES[str(value).lower()]
        if kind == "str" and isinstance(value, str):
            return value
        if kind in ("int", "float") and isinstance(value, int | float | str) and not isinstance(value, bool):
            number = float(value) if kind == "float" else int(value)
            if number == float(value):
                return number
    except (ValueError, OverflowError):
        pass
    raise FleetError(f"args: {name}: found {shown(value)}, expected a value of type {kind}")


@dataclass(frozen=True)
class BundleChoice:
    """Names the bundle that a replica serves; it can change while the replica runs."""

    bundle: Path
    sha256: str | None = None
    """Digest of its manifest, which has the digests of all other files; None: whatever is there."""

    @classmethod
    def of(cls, bundle: Path) -> BundleChoice:
        """Return the choice of a bundle as it is now.

        Raises:
            BundleError: it is none, or cannot be read.
        """
        load_manifest(bundle)
        return cls(bundle.resolve(), sha256_of(bundle / MANIFEST_FILE))

    @classmethod
    def from_dict(cls, data: Any) -> BundleChoice:
        """Return the choice in a ``user_config``.

        Raises:
            FleetError: it is none.
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("bundle"), str) or not data["bundle"]:
            raise FleetError(f"user_config: found {shown(data)}, expected the folder of a bundle (bundle: /FOLDER)")
        sha256 = data.get("sha256")
        if (sha256 is not None and not isinstance(sha256, str)) or set(data) - {"bundle", "sha256"}:
            raise FleetError(f"user_config: found {shown(data)}, expected bundle and sha256 only")
        return cls(Path(data["bundle"]), sha256)

    def to_dict(self) -> dict[str, str]:
        """Return the ``user_config``."""
        return {"bundle": str(self.bundle), **({"sha256": self.sha256} if self.sha256 else {})}

    def check(self) -> str:
        """Return the digest of the bundle's manifest.

        Raises:
            BundleError: it is another one, or cannot be read. Loading compares the other files with the manifest.
        """
        path = self.bundle / MANIFEST_FILE
        digest = sha256_of(path)
        if self.sha256 not in (None, digest):
            raise BundleError(f"{path}: found sha256 {digest}, expected {self.sha256} (user_config)")
        return digest
