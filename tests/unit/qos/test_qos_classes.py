from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from taskd.errors import InvalidArgument, Unknown
from taskd.qos import Qos
from taskd.qos.blockio import BlockIO
from taskd.qos.groups import Rdt
from taskd.qos.origin import Origin
from taskd.types import TypedValue

SPEC = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
BLOCKIO = "blockio.resources.beta.kubernetes.io"
RDT = "rdt.resources.beta.kubernetes.io"

QOS = Qos(
    BlockIO({"slow": {"weight": 10}, "fast": {"weight": 900}}),
    Rdt({"gold": frozenset(), "shut": frozenset([Origin.POD])}),
)


def spec(annotations: object, **rest: object) -> TypedValue:
    return TypedValue(SPEC, json.dumps({"annotations": annotations, **rest}).encode())


def applied(annotations: dict[str, str], qos: Qos = QOS, **rest: object) -> Any:
    found = qos.apply("c1", spec(annotations, **rest))
    assert found is not None
    assert found.type_url == SPEC
    return json.loads(found.value)


@pytest.mark.parametrize(
    ("annotations", "weight"),
    [
        ({f"{BLOCKIO}/pod": "slow"}, 10),
        ({f"{BLOCKIO}/pod": "slow", f"{BLOCKIO}/container.c1": "fast"}, 900),
        ({f"{BLOCKIO}/pod": "slow", f"{BLOCKIO}/container.c2": "fast"}, 10),
        ({f"{BLOCKIO}/container.c1": "slow", "io.kubernetes.cri.blockio-class": "fast"}, 900),
        (
            {
                "io.kubernetes.cri.container-name": "app",
                f"{BLOCKIO}/container.app": "fast",
                f"{BLOCKIO}/container.c1": "slow",
            },
            900,
        ),
    ],
)
def test_which_annotation_goes_before_which(annotations: dict[str, str], weight: int) -> None:
    assert applied(annotations)["linux"]["resources"]["blockIO"] == {"weight": weight}


def test_the_rest_of_the_spec_stays(tmp_path: Path) -> None:
    rest = {"hostname": "h", "linux": {"resources": {"pids": {"limit": 2**60}}, "x": [1.5]}}
    annotations = {f"{BLOCKIO}/pod": "slow", f"{RDT}/pod": "gold"}
    expected = json.loads(spec(annotations, **rest).value)
    expected["linux"]["resources"]["blockIO"] = {"weight": 10}
    expected["linux"]["intelRdt"] = {"closID": "gold"}
    assert applied(annotations, **rest) == expected


def test_a_class_replaces_what_the_spec_had() -> None:
    annotations = {f"{BLOCKIO}/pod": "slow", f"{RDT}/pod": "gold"}
    linux = {"resources": {"blockIO": {"leafWeight": 5}}, "intelRdt": {"l3CacheSchema": "x"}}
    assert applied(annotations, linux=linux)["linux"] == {
        "resources": {"blockIO": {"weight": 10}},
        "intelRdt": {"closID": "gold"},
    }


@pytest.mark.parametrize(
    "given",
    [
        None,
        TypedValue(SPEC, b"nonsense"),
        TypedValue(SPEC, b"[1]"),
        TypedValue("other/Spec", spec({f"{BLOCKIO}/pod": "none"}).value),
        spec(None),
        spec([1]),
        spec({f"{BLOCKIO}/pod": 1}),
        spec({f"{BLOCKIO}/pod": ""}),
        spec({f"{RDT}/pod": "system/default"}),
        spec({"some": "thing", f"{BLOCKIO}/container.other": "slow"}),
    ],
)
def test_a_spec_that_names_no_class_is_not_touched(given: TypedValue | None) -> None:
    assert QOS.apply("c1", given) is given


@pytest.mark.parametrize(
    ("qos", "annotations", "words"),
    [
        (QOS, {f"{BLOCKIO}/pod": "none"}, 'no OCI BlockIO parameters for class "none"'),
        (
            Qos(),
            {f"{BLOCKIO}/pod": "slow"},
            "failed to set blockio class: blockio disabled, refusing to set blockio class of"
            ' container "c1" to "slow"',
        ),
        (
            QOS,
            {f"{RDT}/pod": "none"},
            'failed to set RDT class: RDT class "none" does not exist in configuration',
        ),
        (
            QOS,
            {f"{RDT}/container.c1": "shut"},
            'failed to set RDT class: RDT class "shut" not allowed from Pod annotations',
        ),
        (
            Qos(),
            {"io.kubernetes.cri.rdt-class": "gold"},
            'failed to set RDT class: RDT not initialized, class "gold" not available',
        ),
    ],
)
def test_what_is_refused_is_refused_in_containerd_s_words(
    qos: Qos, annotations: dict[str, str], words: str
) -> None:
    with pytest.raises(Unknown) as caught:
        qos.apply("c1", spec(annotations))
    assert caught.value.message == f'failed to generate container "c1" spec: {words}'


def test_a_spec_that_has_no_room_for_a_class() -> None:
    with pytest.raises(InvalidArgument, match="spec: linux is not an object$"):
        QOS.apply("c1", spec({f"{BLOCKIO}/pod": "slow"}, linux=[1]))


def test_without_resctrl_there_is_no_rdt_but_its_file_must_be_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("taskd.qos.resctrl.mounted", lambda path: None)
    file = tmp_path / "rdt.yaml"
    file.write_text("partitions: {a: {classes: {gold: }}}")
    assert Qos.load(None, file) == Qos()
    assert caplog.messages == ["RDT initialization failed: resctrl is not mounted"]
    file.write_text("nonsense: 1")
    with pytest.raises(InvalidArgument, match=f"^{file}:1: nonsense: unknown key"):
        Qos.load(None, file)
