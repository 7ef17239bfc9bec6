from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from taskd.errors import FailedPrecondition, InvalidArgument, Unknown
from taskd.qos import groups, rdt, resctrl
from taskd.qos.origin import Origin
from taskd.qos.resctrl import Resctrl

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Lays out a folder as the kernel does; of each resource there is what is written to `info`."""

    def layout(schemata: str, **info: dict[str, str]) -> Path:
        root = tmp_path / "resctrl"
        (root / "info").mkdir(parents=True)
        (root / "info/last_cmd_status").write_text("ok\n")
        (root / "schemata").write_text(schemata)
        (root / "tasks").write_text("1\n")
        for name, files in info.items():
            (root / "info" / name).mkdir()
            for file, text in files.items():
                (root / "info" / name / file).write_text(f"{text}\n")
        return root

    return layout


def cat(mask: str, min_bits: int = 1) -> dict[str, str]:
    return {"cbm_mask": mask, "min_cbm_bits": str(min_bits), "num_closids": "8"}


MB = {"min_bandwidth": "10", "bandwidth_gran": "10", "num_closids": "8"}


@pytest.fixture
def machine(make: Make) -> Path:
    """Two caches of 16 bits, at least 2 of which make a share, and memory bandwidth."""
    text = "    MB:0=100;1=100\n    L3:0=ffff;1=ffff\n"
    return make(text, L3=cat("ffff", 2), MB=MB)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rdt.yaml"


def granted(file: Path, root: Path, text: str, *, mbps: bool = False) -> dict[str, list[str]]:
    file.write_text(text)
    found = groups.schemata(rdt.parse(file), resctrl.read(root, mbps=mbps))
    return {name: schemata.splitlines() for name, schemata in found.items()}


def test_what_the_machine_has(machine: Path) -> None:
    found = resctrl.read(machine)
    assert found.caches == {"L3": resctrl.Cache((0, 1), 0xFFFF, 2, split=False)}
    assert found.bandwidth == resctrl.Bandwidth((0, 1), 10, mbps=False)


def test_partitions_lie_side_by_side_and_classes_within_them(file: Path, machine: Path) -> None:
    text = """
partitions:
  b:
    l3Allocation: 50%
    mbAllocation: [50%]
    classes:
      whole:
      half: {l3Allocation: 50%, mbAllocation: [50%]}
      upper: {l3Allocation: 51-100%, mbAllocation: [10%]}
      bits: {l3Allocation: {all: "1-3", 1: "0xf0"}}
  a:
    l3Allocation: {all: 25%, 1: 50%}
    classes:
      tiny: {l3Allocation: 1%}
      end: {l3Allocation: 100-100%}
"""
    assert granted(file, machine, text) == {
        "tiny": ["L3:0=3;1=3", "MB:0=100;1=100"],
        "end": ["L3:0=c;1=c0", "MB:0=100;1=100"],
        "whole": ["L3:0=ff0;1=ff00", "MB:0=50;1=50"],
        "half": ["L3:0=f0;1=f00", "MB:0=25;1=25"],
        "upper": ["L3:0=f00;1=f000", "MB:0=10;1=10"],
        "bits": ["L3:0=e0;1=f000", "MB:0=50;1=50"],
    }


def test_small_partitions_are_rounded_up_and_large_ones_give(file: Path, machine: Path) -> None:
    text = "partitions:\n"
    for name, share in {"a": 90, "b": 5, "c": 5}.items():
        text += f"  {name}:\n    l3Allocation: {share}%\n    classes: {{in-{name}: }}\n"
    found = granted(file, machine, text)
    assert {name: lines[0] for name, lines in found.items()} == {
        "in-a": "L3:0=fff;1=fff",
        "in-b": "L3:0=3000;1=3000",
        "in-c": "L3:0=c000;1=c000",
    }


SPLIT = """
partitions:
  a:
    l3Allocation: {all: {unified: 50%, code: 25%, data: 75%}}
    classes:
      c: {l3Allocation: {all: 100%, 1: {unified: 100%, code: "0x3", data: 50%}}}
  b:
    l3Allocation: {all: {unified: 50%, code: 75%, data: 25%}}
"""


def test_code_and_data_count_where_the_machine_splits_them(file: Path, make: Make) -> None:
    root = make(
        "L3DATA:0=ff;1=ff\nL3CODE:0=ff;1=ff\n", L3CODE=cat("ffff", 2), L3DATA=cat("ffff", 2)
    )
    assert granted(file, root, SPLIT)["c"] == ["L3CODE:0=f;1=3", "L3DATA:0=fff;1=3f"]


def test_code_and_data_do_not_count_elsewhere(file: Path, machine: Path) -> None:
    assert granted(file, machine, SPLIT)["c"][0] == "L3:0=ff;1=ff"


def test_level_2_has_ids_of_its_own(file: Path, make: Make) -> None:
    root = make("L2:0=ff;2=ff;4=ff\nL3:0=f\n", L2=cat("ff"), L3=cat("f"))
    text = "partitions: {a: {l2Allocation: {2-4: 50%}, classes: {c: {l2Allocation: 50%}}}}"
    assert granted(file, root, text)["c"] == ["L2:0=f;2=3;4=3", "L3:0=f"]


def test_bandwidth_in_megabytes(file: Path, make: Make) -> None:
    root = make("MB:0=4294967295;1=4294967295\n", MB=MB)
    text = """
partitions:
  a:
    mbAllocation: {all: [50%, 2000MBps], 1: [50%, 100MBps]}
    classes:
      c: {mbAllocation: [10%, 1000MBps]}
      d:
  b: {classes: {e: }}
"""
    assert granted(file, root, text, mbps=True) == {
        "c": ["MB:0=1000;1=100"],
        "d": ["MB:0=2000;1=100"],
        "e": ["MB:0=4294967295;1=4294967295"],
    }
    assert granted(file, root, text)["c"] == ["MB:0=10;1=10"]


def test_what_is_optional_need_not_be_there(file: Path, make: Make) -> None:
    text = """
partitions:
  a:
    l3Allocation: 100%
    mbAllocation: [100%]
    classes: {c: {l3Allocation: 50%, mbAllocation: [50%]}}
options: {l3: {optional: true}, mb: {optional: true}}
"""
    root = make("")
    assert granted(file, root, text) == {"c": []}
    for resource, key in (("l3", "l3Allocation"), ("mb", "mbAllocation")):
        needed = text.replace(f"{resource}: {{optional: true}}", f"{resource}: {{}}")
        with pytest.raises(InvalidArgument, match=f"^{file}:6: {key}: this machine does not sup"):
            granted(file, root, needed)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("parts: {}", "2: parts: unknown key"),
        ("options: {l4: {}}", "2: l4: unknown key"),
        ("options: {l3: {optional: 1}}", "2: optional: '1' is neither true nor false"),
        ("partitions: {a: {classes: {..: }}}", "2: ..: is not a name for a class"),
        ("partitions: {a: {classes: {a/b: }}}", "2: a/b: is not a name for a class"),
        ("partitions: {a: {classes: {info: }}}", "2: info: is not a name for a class"),
        (
            'partitions:\n  a: {classes: {"": }}\n  b:\n    classes:\n      system/default:',
            "6: system/default: is the name of another class, too",
        ),
        ("partitions: {a: {l3allocation: 101%}}", "2: l3allocation: '101%' is not a percentage"),
        ("partitions: {a: {l3Allocation: 9-8%}}", "2: l3Allocation: '9-8%' is not a percentage"),
        ("partitions: {a: {l3Allocation: x%}}", "2: l3Allocation: 'x%' is not a percentage"),
        ('partitions: {a: {l3Allocation: "0x5"}}', "2: l3Allocation: '0x5' is not one block"),
        ('partitions: {a: {l3Allocation: "0x"}}', "2: l3Allocation: '0x' is not a list of num"),
        ("partitions: {a: {l3Allocation: 4-2}}", "2: l3Allocation: '4-2' is not a list of numb"),
        ("partitions: {a: {l3Allocation: '64'}}", "2: l3Allocation: '64' is not a list of numb"),
        ("partitions: {a: {l3Allocation: {0: 0xf}}}", "2: 0: is not a mapping"),
        (
            "partitions: {a: {l3Allocation: {0: {unified: 15}}}}",
            "2: unified: 15 is a number, and not text; put it in quotes",
        ),
        ("partitions: {a: {l3Allocation: {x: 5%}}}", "2: x: 'x' is not a list of numbers"),
        ("partitions: {a: {l3Allocation: {0-1: 5%,\n 1: 6%}}}", "3: 1: cache 1 is given twice"),
        ("partitions: {a: {l3Allocation: {0: {code: 5%}}}}", "2: 0: unified is missing"),
        (
            "partitions: {a: {l3Allocation: {0: {unified: 5%, code: 5%}}}}",
            "2: code: data is missing beside it",
        ),
        ("partitions: {a: {mbAllocation: 50%}}", "2: mbAllocation: is not a mapping"),
        ("partitions: {a: {mbAllocation: [50]}}", "2: mbAllocation: '50' is neither a percent"),
        ("partitions: {a: {mbAllocation: [101%]}}", "2: mbAllocation: '101%' is neither a per"),
        ("partitions: {a: {mbAllocation: [5%, 6%]}}", "2: mbAllocation: % is given twice"),
        (
            "partitions: {a: {classes: {c: {l3Allocation: 5%}}}}",
            "2: l3Allocation: the partition has none of it",
        ),
        (
            "partitions: {a: {classes: {c: {mbAllocation: [5%]}}}}",
            "2: mbAllocation: the partition has none of it",
        ),
        # What only this machine makes wrong:
        (
            "partitions:\n  a: {l3Allocation: 60%}\n  b:\n    l3Allocation: 41%",
            "5: l3Allocation: the partitions ask for 101% in all",
        ),
        ("partitions: {a: {l3Allocation: 0%}}", "2: l3Allocation: there are not enough bits"),
        ("partitions: {a: {l3Allocation: 1-9%}}", "2: l3Allocation: a partition cannot have a r"),
        ('partitions: {a: {l3Allocation: "0x1"}}', "2: l3Allocation: has fewer bits than the 2"),
        ('partitions: {a: {l3Allocation: "15-16"}}', "2: l3Allocation: the cache has no more bi"),
        (
            'partitions:\n  a: {l3Allocation: 0-3}\n  b: {l3Allocation: "0x18"}',
            "4: l3Allocation: overlaps with another partition",
        ),
        (
            "partitions:\n  a: {l3Allocation: 0-3}\n  b: {l3Allocation: 50%}",
            "4: l3Allocation: percentages and bits cannot be mixed among partitions",
        ),
        (
            "partitions:\n  a: {l3Allocation: 50%}\n  b: {}",
            "4: b: asks for no unified L3 of cache 0, as other partitions do",
        ),
        (
            "partitions: {a: {l3Allocation: 0-3, classes: {c: {l3Allocation: 3-4}}}}",
            "2: l3Allocation: 0x18 does not fit into the partition's 0xf",
        ),
        (
            "partitions: {a: {l3Allocation: 50%, classes: {c: {l3Allocation: 0%}}}}",
            "2: l3Allocation: is nothing at all",
        ),
        ("partitions: {a: {mbAllocation: [9MBps]}}", "2: mbAllocation: has no value in %"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(
    file: Path, machine: Path, text: str, words: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        granted(file, machine, f"\n{text}\n")
    assert caught.value.message.startswith(f"{file}:{words}")


CLASSES = """
partitions:
  a:
    l3Allocation: 100%
    classes:
      gold: {l3Allocation: 50%}
      pods: {kubernetes: {denyContainerAnnotation: true}}
      containers: {kubernetes: {denyPodAnnotation: true}}
      system/default: {l3Allocation: 75%}
"""


@pytest.fixture
def configured(file: Path, machine: Path) -> groups.Rdt:
    file.write_text(CLASSES)
    return groups.configure(rdt.parse(file), resctrl.read(machine))


def test_every_class_is_a_group(configured: groups.Rdt, machine: Path) -> None:
    assert (machine / "gold/schemata").read_text() == "L3:0=ff;1=ff\nMB:0=100;1=100\n"
    assert (machine / "schemata").read_text() == "L3:0=fff;1=fff\nMB:0=100;1=100\n"
    found = {path.name for path in machine.iterdir() if path.is_dir()}
    assert found == {"info", "gold", "pods", "containers"}


def test_a_class_s_name_is_its_closid(configured: groups.Rdt) -> None:
    assert configured.closid("gold", Origin.POD) == "gold"
    assert configured.closid("pods", Origin.POD) == "pods"
    assert configured.closid("containers", Origin.CONTAINER) == "containers"
    assert configured.closid("system/default", Origin.POD) is None
    assert configured.closid("", Origin.POD) is None
    for name, origin, words in (
        ("none", Origin.POD, 'RDT class "none" does not exist in configuration'),
        ("a/b", Origin.POD, 'unqualified RDT class name "a/b"'),
        ("pods", Origin.CONTAINER, 'RDT class "pods" not allowed from Container annotation'),
        ("containers", Origin.POD, 'RDT class "containers" not allowed from Pod annotations'),
    ):
        with pytest.raises(Unknown, match=f"^{words}$"):
            configured.closid(name, origin)


def test_groups_of_no_class_go_unless_they_are_used(
    file: Path,
    machine: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, tasks in {"stale": "\n", "used": "12\n", "gold": "13\n"}.items():
        (machine / name).mkdir()
        (machine / name / "tasks").write_text(tasks)
    # The kernel removes a group with all that is in it; a folder elsewhere must be empty.
    monkeypatch.setattr(Path, "rmdir", shutil.rmtree)
    file.write_text(CLASSES)
    groups.configure(rdt.parse(file), resctrl.read(machine))
    assert not (machine / "stale").exists()
    assert (machine / "used").exists()
    assert (machine / "gold/tasks").read_text() == "13\n"
    assert caplog.messages == [f"resctrl group {machine}/used is in use; it stays"]


def test_what_the_kernel_refuses_is_told_with_its_line_and_reason(
    file: Path, machine: Path
) -> None:
    (machine / "gold/schemata").mkdir(parents=True)
    (machine / "info/last_cmd_status").write_text("Mask 0 out of range\n")
    file.write_text(CLASSES)
    with pytest.raises(InvalidArgument, match=f"^{file}:6: gold: Mask 0 out of range$"):
        groups.configure(rdt.parse(file), resctrl.read(machine))


def test_nothing_is_written_for_a_bad_file(file: Path, machine: Path) -> None:
    before = sorted(machine.rglob("*"))
    file.write_text(CLASSES.replace("75%", "0-15").replace("100%", "0-7"))
    with pytest.raises(InvalidArgument, match="does not fit"):
        groups.configure(rdt.parse(file), resctrl.read(machine))
    assert sorted(machine.rglob("*")) == before


def test_where_resctrl_is_mounted(machine: Path, tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("proc /proc proc rw 0 0\n")
    assert resctrl.mounted(mounts=mounts) is None
    found = resctrl.mounted(machine, mounts=mounts)
    assert found is not None
    assert found.path == machine
    # Names need not be UTF-8.
    other = b"x /\xff\xc2\x85 tmpfs rw 0 0\n"
    mounts.write_bytes(
        other + f"proc /proc proc rw 0 0\nresctrl {machine} resctrl rw,mba_MBps 0 0\n".encode()
    )
    for path in (None, machine):
        found = resctrl.mounted(path, mounts=mounts)
        assert isinstance(found, Resctrl)
        assert found.bandwidth is not None
        assert found.bandwidth.mbps


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: shutil.rmtree(root / "info"), "there is no folder info in it"),
        (lambda root: (root / "info/L3/cbm_mask").unlink(), "No such file or directory"),
        (lambda root: (root / "info/MB/min_bandwidth").write_text("x"), "invalid literal"),
        (lambda root: (root / "schemata").write_text("MB:0=100"), "there is no L3 in its schemata"),
    ],
)
def test_a_folder_that_is_not_resctrl_s(
    machine: Path, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(machine)
    with pytest.raises(FailedPrecondition, match=f"^resctrl at {machine}: .*{words}"):
        resctrl.read(machine)
