"""The mount manager, with real mounts and loop devices.

What is expected is what the source of containerd 2.4 says: no release that has it is packaged.
"""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest
from harness.real import need

from taskd import procfs
from taskd.activations import Active, MountManager, making
from taskd.content import ContentStore
from taskd.errors import AlreadyExists, NotFound, TaskdError, Unimplemented
from taskd.gc.collector import Collector
from taskd.metadata import Container, ContainerStore, Database, LeaseStore
from taskd.types import Mount, TypedValue


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    need("mkfs.ext4")
    with Database(tmp_path / "metadata.db") as opened:
        yield opened


@pytest.fixture
async def manager(tmp_path: Path, database: Database) -> AsyncIterator[MountManager]:
    made = await another(tmp_path, database)
    yield made
    for each in made.list("ns"):
        await made.deactivate("ns", each.name)
    await made.sweep()
    assert list((tmp_path / "state/t").iterdir()) == []
    assert mounted(tmp_path) == []


async def another(tmp_path: Path, database: Database) -> MountManager:
    """As a daemon has it that has just started."""
    (tmp_path / "root").mkdir(exist_ok=True)
    made = MountManager(database, tmp_path / "state", [tmp_path / "root"])
    await made.load()
    return made


def mounted(folder: Path) -> list[str]:
    return [str(each.point) for each in procfs.mounts() if str(each.point).startswith(str(folder))]


def tmpfs(**options: str) -> Mount:
    return Mount("tmpfs", "tmpfs", **options)


LOOPS = Path("/sys/block")


def backing() -> list[str]:
    """The files that loop devices are made of."""
    return [each.read_text().strip() for each in LOOPS.glob("loop*/loop/backing_file")]


async def test_nothing_to_be_done(manager: MountManager) -> None:
    for mounts in ([], [tmpfs()], [Mount("overlay", "o"), Mount("un/known", "x")]):
        with pytest.raises(Unimplemented, match="^not implemented$"):
            await manager.activate("ns", "one", mounts)
    assert manager.list("ns") == []


async def test_formats(manager: MountManager, tmp_path: Path) -> None:
    activation = await manager.activate(
        "ns",
        "one",
        [
            Mount("tmpfs", "first"),
            Mount("format/tmpfs", "second {{ source 0 }}", options=("size=1M",)),
            Mount("tmpfs", "third"),
            Mount(
                "format/mkdir/overlay",
                "overlay",
                options=(
                    "lowerdir={{ overlay 2 1 }}",
                    "upperdir={{mount 0}}/upper",
                    "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
                    "X-containerd.mkdir.path={{ mount 0 }}/work",
                    "workdir={{ mount 0 }}/work",
                ),
            ),
            Mount("bind", "/left/alone"),
        ],
        {"a": "b"},
    )
    top = tmp_path / "state/t/1"
    points = [f"{top}/3", f"{top}/2", f"{top}/1"]
    assert [each.point for each in activation.active] == points
    assert activation.active[1].mount.source == "second first"
    assert activation.system == (
        Mount(
            "overlay",
            "overlay",
            options=(
                f"lowerdir={top}/1:{top}/2",
                f"upperdir={top}/3/upper",
                f"workdir={top}/3/work",
            ),
        ),
        Mount("bind", "/left/alone"),
    )
    assert sorted(mounted(tmp_path)) == sorted(points)
    assert (top / "3/upper").stat().st_mode & 0o777 == 0o755
    assert (top / "3/work").stat().st_mode & 0o777 == 0o700
    assert manager.info("ns", "one") == activation
    assert manager.list("ns") == [activation]
    assert manager.list("other") == []
    with pytest.raises(AlreadyExists, match='mount "one"'):
        await manager.activate("ns", "one", [Mount("format/tmpfs", "x"), tmpfs()])


@pytest.mark.parametrize(
    ("mount", "words"),
    [
        (Mount("format/bind", "{{ mount 1 }}"), "index out of bounds: 1, has 1 active mounts"),
        (Mount("format/bind", "{{ overlay 0 1 }}"), "invalid range: 0-1, has 1 active mounts"),
        (Mount("format/bind", "{{ nosuch 0 }}"), "no such function: nosuch 0"),
        (Mount("format/bind", "{{ mount"), "cannot be understood"),
        (Mount("mkdir/bind", "x", options=("X-containerd.mkdir.nosuch=1",)), "invalid mkdir"),
        (Mount("mkdir/bind", "x", options=("X-containerd.mkdir.path=/root:9",)), "invalid mode 9"),
        (Mount("mkdir/bind", "x", options=("X-containerd.mkdir.path=/a:7777",)), "mode 7777"),
        (Mount("mkdir/bind", "x", options=("X-containerd.mkdir.path=/a:0:b:1",)), 'uid "b"'),
        (Mount("mkdir/bind", "x", options=("X-containerd.mkdir.path=/etc/a",)), "no root"),
        (Mount("loop", "/no/such"), "no such file or directory"),
        (Mount("format/nosuchfs", "x"), None),
    ],
)
async def test_what_fails_leaves_nothing(
    manager: MountManager, tmp_path: Path, mount: Mount, words: str | None
) -> None:
    after = [Mount("loop", "/no/such/either")] if words is None else []
    with pytest.raises(TaskdError, match=words):
        await manager.activate("ns", "one", [tmpfs(), mount, *after])
    assert mounted(tmp_path) == []
    assert manager.list("ns") == []
    with pytest.raises(NotFound, match='^mount "one" not found$'):
        manager.info("ns", "one")


async def test_folders_are_made_nowhere_else(manager: MountManager, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "link").symlink_to("/")
    (root / "here").mkdir()

    async def make(value: str) -> None:
        option = f"X-containerd.mkdir.path={value}"
        mounts = [Mount("mkdir/bind", "x", options=("ro", option))]
        found = await manager.activate("ns", value, mounts)
        assert found.system == (Mount("bind", "x", options=("ro",)),)

    await make(f"{root}/here/there:0711:5:6")
    found = (root / "here/there").stat()
    assert (found.st_mode & 0o777, found.st_uid, found.st_gid) == (0o711, 5, 6)
    await make(f"{root}/here/there:0711")  # is there
    for value in (f"{root}/here/..", f"{root}/link/etc/escaped"):
        with pytest.raises(TaskdError):
            await make(value)
    with pytest.raises(Unimplemented, match="not a directory of mode 755"):
        await make(f"{root}/here/there:0755")
    await make(f"{root}/link/../../inside")
    assert (root / "inside").is_dir()
    assert not Path("/etc/escaped").exists()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_text("words")
    file = tmp_path / "image"
    subprocess.run(["mkfs.ext4", "-q", "-d", tree, file, "1M"], check=True)
    return file


async def test_loop_devices(manager: MountManager, tmp_path: Path, image: Path) -> None:
    mounts = [Mount("loop", str(image)), Mount("format/ext4", "{{ mount 0 }}", options=("ro",))]
    activation = await manager.activate("ns", "one", mounts)
    device = Path(activation.active[0].point).readlink()
    assert str(device).startswith("/dev/loop")
    assert str(image) in backing()
    [left] = activation.system
    assert left == Mount("ext4", activation.active[0].point, options=("ro",))
    await manager.deactivate("ns", "one")
    assert str(image) not in backing()
    with pytest.raises(NotFound, match='missing mount "one"'):
        await manager.deactivate("ns", "one")


async def test_file_systems_are_made(manager: MountManager, tmp_path: Path) -> None:
    file = tmp_path / "root/scratch"
    of = "X-containerd.mkfs."
    uuid = "00000000-1111-2222-3333-444444444444"
    mounts = [
        Mount("mkfs/loop", str(file), options=(f"{of}size=2MiB", f"{of}uuid={uuid}")),
        Mount("format/ext4", "{{ mount 0 }}"),
    ]
    activation = await manager.activate("ns", "one", mounts, temporary=True)
    assert activation.active[0].mount == Mount("loop", str(file))
    assert uuid in subprocess.check_output(["blkid", "-p", file], text=True)
    assert file.stat().st_size == 2 << 20
    Path(activation.system[0].source, "file").write_text("words")
    await manager.deactivate("ns", "one")
    # What is there is left as it is.
    again = await manager.activate("ns", "one", mounts, temporary=True)
    assert Path(again.system[0].source, "file").read_text() == "words"


@pytest.mark.parametrize(
    ("options", "place", "words"),
    [
        ((), "root/a", "mkfs requires mkfs.size option"),
        (("size=x",), "root/a", "invalid size: 'x'"),
        (("size=1M", "fs=nosuch"), "root/a", 'unsupported filesystem "nosuch"'),
        (("size=1M", "nosuch=1"), "root/a", "unknown mount option nosuch"),
        (("size=1M",), "elsewhere", "no root .* configured for mkfs"),
        (("size=1M",), "root/no/such", "no such file or directory"),
        (("size=1M", "uuid=bad"), "root/a", "(?s)mkfs.ext4 failed: .*: exit status 1"),
    ],
)
async def test_no_file_system_is_made(
    manager: MountManager, tmp_path: Path, options: tuple[str, ...], place: str, words: str
) -> None:
    given = tuple(f"X-containerd.mkfs.{each}" for each in options)
    mounts = [Mount("mkfs/loop", str(tmp_path / place), options=given), Mount("format/ext4", "x")]
    with pytest.raises(TaskdError, match=words):
        await manager.activate("ns", "one", mounts)
    assert list((tmp_path / "root").iterdir()) == []


async def test_all_of_it_for_a_while(manager: MountManager, tmp_path: Path, image: Path) -> None:
    mounts = [Mount("loop", str(image)), Mount("format/ext4", "{{ mount 0 }}", options=("ro",))]
    activation = await manager.activate("ns", "one", mounts, temporary=True)
    [left] = activation.system
    assert left == Mount("bind", f"{tmp_path}/state/t/1/1", options=("rbind",))
    assert Path(left.source, "file").read_text() == "words"
    # What has it open keeps it from being unmounted, and then it goes with the next collection.
    with Path(left.source, "file").open() as held:
        with pytest.raises(TaskdError, match="busy"):
            await manager.deactivate("ns", "one")
        assert manager.list("ns") == []
        await manager.sweep()
        assert str(image) in backing()
        assert held.read() == "words"
    await manager.sweep()
    assert str(image) not in backing()


async def test_who_mounts_it_may_do_more(manager: MountManager) -> None:
    mounts = [Mount("loop", "/some/file"), Mount("format/ext4", "{{ mount 0 }}")]
    with pytest.raises(Unimplemented):
        await manager.activate("ns", "one", mounts, allowed={"loop", "format/*"})
    with pytest.raises(Unimplemented):
        await manager.activate("ns", "one", mounts, allowed={"loop", "format/ext4"})


async def test_collection(manager: MountManager, database: Database, tmp_path: Path) -> None:
    leases = LeaseStore(database)
    await leases.create("ns", "lease", {})
    record = Container("container", runtime_name="r", spec=TypedValue("x"))
    refers = {"containerd.io/gc.ref.mount/x": "referred"}
    other = Container("other", refers, runtime_name="r", spec=TypedValue("x"))
    await ContainerStore(database).create("ns", other)
    await ContainerStore(database).create("ns", record)
    of = {"containerd.io/gc.bref.container": "container"}
    two = [Mount("tmpfs", "x"), Mount("format/bind", "{{ mount 0 }}")]
    await manager.activate("ns", "leased", two, lease="lease")
    await manager.activate("ns", "of container", two, of)
    await manager.activate("ns", "referred", two)
    await manager.activate("ns", "nobody's", two)
    store = ContentStore(database, tmp_path / "content")
    collector = Collector(database, store, mounts=manager)
    await collector.collect()
    assert [each.name for each in manager.list("ns")] == ["leased", "of container", "referred"]
    assert len(mounted(tmp_path)) == 3
    await leases.delete("ns", "lease")
    await ContainerStore(database).delete("ns", "container")
    await ContainerStore(database).delete("ns", "other")
    await collector.collect()
    assert manager.list("ns") == []
    assert mounted(tmp_path) == []


async def test_a_daemon_that_dies_on_the_way(
    manager: MountManager,
    database: Database,
    tmp_path: Path,
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Killed(BaseException): ...

    real = making.make

    def last(mount: Mount, folder: Path, name: str) -> Active:
        real(mount, folder, name)
        raise Killed

    mounts = [Mount("loop", str(image)), Mount("format/ext4", "{{ mount 0 }}")]
    with monkeypatch.context() as patch:
        patch.setattr(making, "make", last)
        patch.setattr(making, "clear", lambda _: None)
        patch.setattr(manager, "_take_back", lambda _: anyio.sleep(0))
        with pytest.raises(Killed):
            await manager.activate("ns", "one", mounts, temporary=True)
    assert str(image) in backing()
    successor = await another(tmp_path, database)
    assert successor.list("ns") == []
    await successor.sweep()
    assert str(image) not in backing()
    assert list((tmp_path / "state/t").iterdir()) == []
    # Another one goes on, and finds what is whole.
    activation = await successor.activate("ns", "one", mounts)
    assert (await another(tmp_path, database)).list("ns") == [activation]
    # But not if the machine has started anew.
    await successor.deactivate("ns", "one")
    await successor.activate("ns", "one", [tmpfs(), Mount("format/bind", "{{ mount 0 }}")])
    top = tmp_path / "state/t/3"
    making.clear(top)
    assert (await another(tmp_path, database)).list("ns") == []
