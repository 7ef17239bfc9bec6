"""Specifications that take a runtime which knows mounts with mapped owners."""

from __future__ import annotations

import json
from typing import Any

import pytest

from taskd.errors import Unknown
from taskd.runtime.features import needs_idmapped_mounts, refuse_without_idmapped_mounts
from taskd.shim.command import FEATURES
from taskd.types import TypedValue

MAPPING = [{"containerID": 0, "hostID": 1000, "size": 1}]


@pytest.mark.parametrize(
    ("mount", "needs"),
    [
        ({"uidMappings": MAPPING}, True),
        ({"gidMappings": MAPPING}, True),
        ({"uidMappings": []}, True),
        ({"options": ["rbind", "idmap"]}, True),
        ({"options": ["ridmap"]}, True),
        ({"options": ["rbind", "ro"]}, False),
        ({"uidMappings": None, "options": None}, False),
        ({}, False),
    ],
)
def test_mounts(mount: dict[str, Any], needs: bool) -> None:
    spec = {"mounts": [{"destination": "/proc", "type": "proc"}, {"destination": "/a"} | mount]}
    assert needs_idmapped_mounts(json.dumps(spec).encode()) is needs


@pytest.mark.parametrize(
    "spec", [b"", b"{", b"[]", b"{}", b'{"mounts": null}', b'{"mounts": [1, {"options": 2}]}']
)
def test_what_is_no_specification_needs_nothing(spec: bytes) -> None:
    assert not needs_idmapped_mounts(spec)


def features(extensions: Any) -> TypedValue:
    return TypedValue(FEATURES, json.dumps({"linux": {"mountExtensions": extensions}}).encode())


@pytest.mark.parametrize(
    "known", [features({"idmap": {"enabled": True}}), TypedValue("example.Features", b"?")]
)
def test_who_may_have_them(known: TypedValue) -> None:
    refuse_without_idmapped_mounts(known)


MISSING = "idmap mounts not supported: missing `mountExtensions.idmap` entry in `features` command"
DISABLED = (
    "idmap mounts not supported: entry `mountExtensions.idmap.Enabled` in `features` command "
    "not present or disabled"
)


@pytest.mark.parametrize(
    ("known", "words"),
    [
        (features(None), MISSING),
        (features({}), MISSING),
        (features({"idmap": None}), MISSING),
        (TypedValue(FEATURES, b"{}"), MISSING),
        (features({"idmap": {}}), DISABLED),
        (features({"idmap": {"enabled": False}}), DISABLED),
        (features({"idmap": {"enabled": None}}), DISABLED),
        (TypedValue(FEATURES, b"{"), "unmarshal runtime features: "),
        (features([]), "unmarshal runtime features: "),
        (None, "unmarshal runtime features: the shim does not tell them"),
    ],
)
def test_who_is_refused(known: TypedValue | None, words: str) -> None:
    with pytest.raises(Unknown) as caught:
        refuse_without_idmapped_mounts(known)
    assert caught.value.message.startswith(words)
