"""From a container's annotations to its spec.

containerd reads the files in its tasks plugin (``services/tasks/local.go``), and its CRI service
looks at the annotations (``pkg/cri/sbserver/container_create.go``); taskd, which has no CRI, looks
at those of the spec itself. Their keys, and which goes before which, are from goresctrl's
``pkg/kubernetes`` and from the ``kubernetes.go`` of its other packages.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from taskd.errors import InvalidArgument, TaskdError, Unknown
from taskd.qos.origin import Origin
from taskd.types import TypedValue

if TYPE_CHECKING:
    from taskd.qos.blockio import BlockIO
    from taskd.qos.groups import Rdt

__all__ = ["Qos"]

log = logging.getLogger(__name__)

_SPEC = "opencontainers/runtime-spec/"
_CONTAINER_NAME = "io.kubernetes.cri.container-name"


class Qos(NamedTuple):
    """The classes that there are; None where none are configured."""

    blockio: BlockIO | None = None
    rdt: Rdt | None = None

    @classmethod
    def load(
        cls, blockio_file: Path | None, rdt_file: Path | None, resctrl_path: Path | None = None
    ) -> Self:
        """Read the files, and make resctrl's groups; it is at `resctrl_path`, or mounted somewhere.

        Without resctrl there is no RDT, and an error in the log says so, as in containerd. Raises
        `InvalidArgument`, naming file, line, and key, for a bad file, and `FailedPrecondition` for
        a bad resctrl.
        """
        of_blockio = of_rdt = None
        # Loaded only where there is something to load: start-up is waited for.
        if blockio_file:
            from taskd.qos import blockio

            of_blockio = blockio.load(blockio_file)
        if rdt_file:
            from taskd.qos import groups, rdt, resctrl

            config = rdt.parse(rdt_file)
            machine = resctrl.mounted(resctrl_path)
            if machine is None:
                log.error("RDT initialization failed: resctrl is not mounted")
            else:
                of_rdt = groups.configure(config, machine)
        return cls(of_blockio, of_rdt)

    def apply(self, container_id: str, spec: TypedValue | None) -> TypedValue | None:
        """The spec with what its annotations' classes stand for; as it is if they name none.

        Raises `Unknown`, in the words of containerd's CRI service, for a class that there is not.
        """
        if spec is None or _SPEC not in spec.type_url:
            return spec
        try:
            document = json.loads(spec.value)
        except ValueError:
            return spec  # its runtime says what is wrong with it
        annotations = document.get("annotations") if isinstance(document, dict) else None
        if not isinstance(annotations, dict):
            return spec
        name = annotations.get(_CONTAINER_NAME) or container_id
        try:
            limits = self._limits(_class(annotations, "blockio", name), name)
            closid = self._closid(_class(annotations, "rdt", name))
            if limits is None and closid is None:
                return spec
            linux = _table(document, "linux")
            if limits is not None:
                _table(linux, "resources")["blockIO"] = limits
            if closid is not None:
                linux["intelRdt"] = {"closID": closid}
        except TaskdError as exc:
            raise exc.within(f'failed to generate container "{container_id}" spec') from None
        return TypedValue(spec.type_url, json.dumps(document).encode())

    def _limits(self, named: tuple[str, Origin] | None, container: str) -> Any:
        if named is None or not named[0]:
            return None
        if self.blockio is None:
            raise Unknown(
                "failed to set blockio class: blockio disabled, refusing to set blockio class of "
                f'container "{container}" to "{named[0]}"'
            )
        return self.blockio.of_class(named[0])

    def _closid(self, named: tuple[str, Origin] | None) -> str | None:
        if named is None:
            return None
        try:
            if self.rdt is None:
                raise Unknown(f'RDT not initialized, class "{named[0]}" not available')
            return self.rdt.closid(*named)
        except Unknown as exc:
            raise exc.within("failed to set RDT class") from None


def _class(
    annotations: dict[str, object], resource: str, container: str
) -> tuple[str, Origin] | None:
    """The class that annotations name, and whose annotation it was."""
    pod = f"{resource}.resources.beta.kubernetes.io"
    for key, origin in (
        (f"io.kubernetes.cri.{resource}-class", Origin.CONTAINER),
        (f"{pod}/container.{container}", Origin.POD),
        (f"{pod}/pod", Origin.POD),
    ):
        found = annotations.get(key)
        if isinstance(found, str):
            return found, origin
    return None


def _table(document: dict[str, Any], key: str) -> dict[str, Any]:
    found = document.get(key)
    if found is None:
        found = document[key] = {}
    if not isinstance(found, dict):
        raise InvalidArgument(f"{key} is not an object", verbatim=True)
    return found
