"""Platforms, and which one an image is for. Source: the project ``containerd/platforms``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from taskd.platforms import here as this_machine

__all__ = ["Matcher", "Platform", "anything", "exactly", "here", "normalized", "only", "order"]

_ARCHITECTURES = {
    "i386": "386",
    "i686": "386",
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "armhf": "arm",
    "armel": "arm",
}


@dataclass(frozen=True, slots=True)
class Platform:
    os: str = ""
    architecture: str = ""
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()


Matcher = Callable[[Platform], bool]


def normalized(found: Platform) -> Platform:
    """With each name in its usual form."""
    os = found.os.lower()
    architecture, variant = found.architecture.lower(), found.variant.lower()
    if architecture in ("x86_64", "x86-64", "amd64"):
        variant = "" if variant == "v1" else variant
    elif architecture in ("aarch64", "arm64"):
        variant = "" if variant in ("8", "v8", "8.0", "v8.0") else variant
    elif architecture == "armhf":
        variant = "v7"
    elif architecture == "armel":
        variant = "v6"
    elif architecture == "arm":
        variant = {"": "v7", "5": "v5", "6": "v6", "7": "v7", "8": "v8"}.get(variant, variant)
    return replace(
        found,
        os={"macos": "darwin", "": "linux"}.get(os, os),
        architecture=_ARCHITECTURES.get(architecture, architecture),
        variant=variant,
    )


def here() -> Platform:
    """That of this machine."""
    return normalized(Platform(*this_machine()))


def anything(_: Platform) -> bool:
    return True


def exactly(*wanted: Platform) -> Matcher:
    """What is for one of `wanted`, or for anything if there is none."""
    if not wanted:
        return anything
    names = {_key(normalized(each)) for each in wanted}
    return lambda found: _key(normalized(found)) in names


def only(wanted: Platform) -> Matcher:
    """What runs on `wanted`: variants below it, too."""
    names = {_key(each) for each in _runs(normalized(wanted))}
    return lambda found: _key(normalized(found)) in names


def order(wanted: Sequence[Platform]) -> Callable[[Platform | None], int]:
    """A key that sorts by the order in which platforms are wanted; without a platform last."""
    places: dict[tuple[str, str, str], int] = {}
    for each in wanted:
        places.setdefault(_key(normalized(each)), len(places))

    def place(found: Platform | None) -> int:
        if found is None:
            return len(places) + 1
        return places.get(_key(normalized(found)), len(places))

    return place


def _key(found: Platform) -> tuple[str, str, str]:
    return found.os, found.architecture, found.variant


def _runs(wanted: Platform) -> list[Platform]:
    match wanted.architecture, wanted.variant:
        case "arm", variant if variant in ("v6", "v7", "v8"):
            lower = [f"v{number}" for number in range(int(variant[1]), 4, -1)]
            return [replace(wanted, variant=each) for each in lower]
        case "arm64", "":
            arm = [Platform(wanted.os, "arm", f"v{number}") for number in range(8, 4, -1)]
            return [wanted, *arm]
        case "amd64", variant:
            number = int(variant[1:]) if variant[1:].isdigit() else 1
            lower = [f"v{each}" if each > 1 else "" for each in range(number, 0, -1)]
            return [
                *(replace(wanted, variant=each) for each in lower),
                Platform(wanted.os, "386"),
            ]
    return [wanted]
