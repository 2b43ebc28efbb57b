"""Sources of the artwork: npm packages with pinned versions, their licenses and authors.

The packages are fetched only to rebuild the packed images (`python -m tools.embedded.build`); nothing here is needed
at run time.
"""

from typing import NamedTuple


class Package(NamedTuple):
    """One npm package."""

    name: str
    version: str
    license: str
    author: str

    @property
    def archive(self) -> str:
        """File name that `npm pack` gives the package."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


LABELS = Package("emojibase-data", "17.0.0", "MIT", "Miles Johnson")

_MICROSOFT = "Microsoft Corporation"
STYLES: dict[str, Package] = {
    "noto": Package("@iconify-json/noto", "1.2.9", "Apache-2.0", "Google Inc"),
    "noto-v1": Package("@iconify-json/noto-v1", "1.2.5", "Apache-2.0", "Google Inc"),
    "noto-mono": Package("@expo-google-fonts/noto-emoji", "0.4.7", "MIT AND OFL-1.1", "Google Inc"),
    "twemoji": Package("@iconify-json/twemoji", "1.2.5", "CC-BY-4.0", "Twitter, Inc and other contributors"),
    "emojione": Package("@iconify-json/emojione", "1.2.3", "CC-BY-4.0", "EmojiOne"),
    "emojione-v1": Package("@iconify-json/emojione-v1", "1.2.3", "CC-BY-SA-4.0", "EmojiOne"),
    "emojione-mono": Package("@iconify-json/emojione-monotone", "1.2.1", "CC-BY-4.0", "EmojiOne"),
    "fxemoji": Package("@iconify-json/fxemoji", "1.2.2", "Apache-2.0", "Mozilla"),
    "openmoji": Package("openmoji", "17.0.0", "CC-BY-SA-4.0", "OpenMoji authors"),
    "openmoji-black": Package("openmoji", "17.0.0", "CC-BY-SA-4.0", "OpenMoji authors"),
    "fluent-flat": Package("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT", _MICROSOFT),
    "fluent-hc": Package("@iconify-json/fluent-emoji-high-contrast", "1.2.6", "MIT", _MICROSOFT),
    "fluent-3d": Package("@lobehub/fluent-emoji-3d", "1.1.0", "MIT", _MICROSOFT + ", packaged by LobeHub"),
    "streamline": Package("@iconify-json/streamline-emojis", "1.2.4", "CC-BY-4.0", "Streamline"),
}

# Icons with names: optional extra pairs for pre-training. No set by artists of styles that pre-training must not see.
ICON_SETS: dict[str, Package] = {
    "game-icons": Package("@iconify-json/game-icons", "1.2.4", "CC-BY-3.0", "GameIcons"),
    "icon-park": Package("@iconify-json/icon-park", "1.2.4", "Apache-2.0", "ByteDance"),
    "mdi": Package("@iconify-json/mdi", "1.2.3", "Apache-2.0", "Pictogrammers"),
    "ph": Package("@iconify-json/ph", "1.2.2", "MIT", "Phosphor Icons"),
    "fa6-solid": Package("@iconify-json/fa6-solid", "1.2.4", "CC-BY-4.0", "Dave Gandy"),
    "healthicons": Package("@iconify-json/healthicons", "1.2.13", "MIT", "Resolve to Save Lives"),
    "flat-color-icons": Package("@iconify-json/flat-color-icons", "1.2.3", "MIT", "Icons8"),
    "solar": Package("@iconify-json/solar", "1.2.13", "CC-BY-4.0", "480 Design"),
    "mingcute": Package("@iconify-json/mingcute", "1.2.8", "Apache-2.0", "MingCute Design"),
    "meteocons": Package("@iconify-json/meteocons", "1.2.4", "MIT", "Bas Milius"),
    "maki": Package("@iconify-json/maki", "1.2.5", "CC0-1.0", "Mapbox"),
}
