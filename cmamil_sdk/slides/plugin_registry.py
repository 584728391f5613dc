"""Which plug-ins there are, and which of them reads a file."""

from __future__ import annotations

import importlib.metadata
from functools import cache
from pathlib import Path

from cmamil_sdk.errors import SlideFormatUnsupported
from cmamil_sdk.slides.plugins import SlidePlugin
from cmamil_sdk.slides.vendor_plugins import VENDOR_PLUGINS

GROUP = "cmamil_sdk.slide_readers"
"""Entry-point group of plug-ins."""


@cache
def _installed() -> tuple[dict[str, SlidePlugin], dict[str, str]]:
    """Plug-ins by the name of their entry point, and those that cannot be loaded with the reason."""
    found: dict[str, SlidePlugin] = {}
    broken: dict[str, str] = {}
    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            plugin = entry.load()
        except Exception as problem:  # noqa: BLE001
            # Whatever another package does, the other formats are still read.
            broken[entry.name] = (
                f"{entry.value} fails to load ({type(problem).__name__}: {problem})"
            )
            continue
        if isinstance(plugin, SlidePlugin):
            found[entry.name] = plugin
        else:
            broken[entry.name] = f"{entry.value} is no SlidePlugin"
    return found, broken


def plugins() -> tuple[SlidePlugin, ...]:
    """Plug-ins that other packages install, then those that come with this one."""
    return (*_installed()[0].values(), *VENDOR_PLUGINS)


def broken_plugins() -> dict[str, str]:
    """Entry points that cannot be used, each with the reason."""
    return dict(_installed()[1])


def plugin_suffixes() -> frozenset[str]:
    """Suffixes of all plug-ins, lower case, with their dot."""
    return frozenset(suffix for plugin in plugins() for suffix in plugin.suffixes)


def plugin_for(path: Path) -> SlidePlugin | None:
    """The plug-in for a file, by its suffix; an installed one comes before those of this package.

    Raises:
        SlideFormatUnsupported: two installed plug-ins claim the suffix.
    """
    suffix = path.suffix.lower()
    installed = [p for p in _installed()[0].values() if suffix in p.suffixes]
    if len(installed) > 1:
        names = " and ".join(plugin.name for plugin in installed)
        raise SlideFormatUnsupported(
            f"{path}: the plug-ins {names} both read {suffix}; uninstall all but one of them."
        )
    return next((plugin for plugin in plugins() if suffix in plugin.suffixes), None)


__all__ = ["GROUP", "broken_plugins", "plugin_for", "plugin_suffixes", "plugins"]
