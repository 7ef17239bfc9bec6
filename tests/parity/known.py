"""Differences from containerd that are meant, each with its reason."""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.generations import Generation

from taskd.cgroups import v2

__all__ = ["KNOWN", "Known", "without"]

ALL = ("1.6", "1.7", "2")
NEWER = ("1.7", "2")
UNIFIED = (v2.ROOT / "cgroup.controllers").exists()


@dataclass(frozen=True)
class Known:
    """With `pattern` replaced by `replacement` both transcripts say the same.

    What becomes empty is left out.
    """

    pattern: str
    replacement: str
    reason: str
    generations: tuple[str, ...] = ALL
    scenario: str = ""
    """How the names of scenarios begin that it is about."""
    own_shim: bool = False
    """It is about taskd's own shim alone."""
    unified: bool = False
    """It is so where there is cgroup v2 alone."""


KNOWN: tuple[Known, ...] = (
    Known(
        r"(?s)(\n    UNKNOWN: .*): unknown$",
        r"\1",
        "1.6 and 1.7 end a message in the kind of error that a shim answered, and so does taskd; "
        "2.x leaves out `unknown`",
        ("2",),
    ),
    Known(
        r"(?s)^(\w+\.(create|update) \{('image': \{'name': 'x'\})?\}|"
        r"Leases\.(add|delete)_resource \{'id': 'l'\})\n.*",
        "",
        "newer ones end with a nil dereference when the record that a request is about, or its "
        "target, is absent; taskd, as 1.6, takes it as empty",
        ("1.7", "2"),
    ),
    Known(
        r"(?<='some time'), 'sandboxer': '\w+'",
        "",
        "1.7 does not keep which controller a sandbox has",
        ("1.7",),
    ),
    Known(
        r"(?s)^(Controller\.(create|start) [^\n]*\n    )"
        r"(INVALID_ARGUMENT: envelope topic \"sandboxes/\w+\": must start with '/'.*|\{.*\})$",
        r"\1made",
        "1.7 makes and starts sandboxes, and then cannot tell of it: its topics lack a slash",
        ("1.7",),
        "controllers: ",
    ),
    Known(
        r"^event /sandboxes/(create|start) .*",
        "",
        "the same",
        ("1.7",),
        "controllers: ",
    ),
    Known(
        r"(?s)^Controller\.(metrics|update) .*",
        "",
        "1.7 has no such calls",
        ("1.7",),
        "controllers: ",
    ),
    Known(
        r"(?s)^(Controller\.stop [^\n]*\n    )(NOT_FOUND: not found|\{\})",
        r"\1",
        "1.7 does not take a sandbox that is not there for one that has stopped",
        ("1.7",),
        "controllers: ",
    ),
    Known(
        r"\n    (NOT_FOUND: failed to query sandbox metadata|INVALID_ARGUMENT: invalid task id) .*",
        "",
        "1.7 looks for the sandbox's record before it looks at its id",
        ("1.7",),
        "controllers: what cannot be made",
    ),
    Known(
        r"(UNKNOWN|NOT_FOUND)(: failed to start shim: can't find )(shim for )?(sandbox s)"
        r"(: not found)?",
        r"NOT_FOUND\2\4",
        "newer ones say of what kind it is",
        ("1.7",),
        "controllers: ",
    ),
    Known(
        r"(failed to load sandbox task \"s\": ).*",
        r"\1",
        "Go's words for an address at which nobody is to be reached",
        ("2",),
        "controllers: addresses",
    ),
    Known(
        r"UNKNOWN: (failed to delete sandbox \"\w*\": )bucket not found",
        r"NOT_FOUND: \1not found",
        "1.7 does not translate what its database says",
        ("1.7",),
        "sandboxes: ",
    ),
    Known(
        r"(?s)^Controller\.platform .*",
        "",
        "containerd has the call in its API, and in its shims', and does not serve it",
        ("1.7", "2"),
        "controllers: ",
    ),
    Known(
        r"^event /sandboxes/exit .*",
        "",
        "containerd tells once for each client that waits; taskd, once",
        ("2",),
        "controllers: what is waited for",
    ),
    Known(
        r"(?s)^Store\.create .*",
        "",
        "containerd ends with a nil dereference when there is no runtime",
        ("1.7", "2"),
        "sandboxes: create without a runtime",
    ),
    Known(
        r"('created_at': 'some time'), 'updated_at': '(some time|never)'",
        r"\1",
        "2.x tells in a list of content, too, when it was updated",
        ("2",),
    ),
    Known(
        r", '(started|updated)_at': 'never'",
        "",
        "1.6 sends Go's zero time where newer ones send none; both mean none",
        ("1.7", "2"),
    ),
    Known(
        r"(label key and value) length \(\d+ bytes\)",
        r"\1",
        "newer ones tell how long a label is that is too long",
        ("1.7", "2"),
    ),
    Known(
        r"(?s)^(Containers\.\w+|event /containers/\w+) .*",
        "",
        "newer ones take a container without a spec, of which no task can be made; taskd, as 1.6, "
        "refuses it",
        ("1.7", "2"),
        "containers: without a spec",
    ),
    Known(
        r", 'updated_at': 'some time'",
        "",
        "2.x answers Update without the time of the update",
        ("2",),
        "containers: ",
    ),
    Known(
        r"(?s)^Namespaces\.update .*|^event /namespaces/update .*",
        "",
        "containerd makes labels for namespaces whose names it refuses elsewhere",
        scenario="namespaces: update of bad names",
    ),
    Known(
        r"(?s)^Namespaces\.(create|update) .*|^event /namespaces/(create|update) .*",
        "",
        "1.6 makes the namespace and then fails to tell of it, since events are in the caller's",
        ("1.6",),
        "namespaces: no namespace is needed",
    ),
    Known(
        r"^event /namespaces/update .*",
        "",
        "1.6 tells the caller's namespace of it; taskd, as newer ones, the one without a name",
        ("1.6",),
        "namespaces: update nothing",
    ),
    Known(
        r"^event /namespaces/create \{'name': 'other'.*",
        "",
        "1.6 tells of a new namespace in the caller's; taskd, as newer ones, in the new one",
        ("1.6",),
    ),
    Known(
        r"UNKNOWN: incompatible value|NOT_FOUND: lease \"\": not found",
        "NOT_FOUND",
        "words of containerd's database for an empty id",
        scenario="leases: bad ids",
    ),
    Known(
        r"(?s)^Leases\.\w+ \{'id': 'l', 'resource': \{'id': 'x', 'type': 'images'\}\}.*|"
        r", \{'id': 'x', 'type': 'images'\}",
        "",
        "2.x can hold images by leases",
        ("2",),
        "leases: resources",
    ),
    Known(
        r"(progress \{'event': 'saved', 'name': '[^']*').*",
        r"\1}",
        "1.7 does not say what it is that it has saved",
        ("1.7",),
        "transfer: ",
    ),
    Known(
        r"event /images/.*",
        "",
        "1.7 tells of no image that a transfer makes",
        ("1.7",),
        "transfer: ",
    ),
    Known(
        r"UNKNOWN: (failed to start shim: )?mkdir [^:]*: file exists|"
        r"ALREADY_EXISTS: task one: already exists",
        "EXISTS",
        "containerd's answer depends on how far the first call has come",
        scenario="creation: at once",
    ),
    Known(
        r"UNKNOWN: (failed to start shim: )?(unexpected end of JSON input|invalid character .*)|"
        r"INVALID_ARGUMENT: failed to start shim: the container's spec is not JSON: .*",
        "NO JSON",
        "taskd says that it is the spec that is wrong",
        scenario="creation: ",
    ),
    Known(
        r"should be either format like `io.containerd.runc.v[12]`",
        "",
        "1.6 and 1.7 propose a runtime that is deprecated",
        ("1.6", "1.7"),
    ),
    Known(
        r"(UNKNOWN: failed to start shim: ).*",
        r"\1",
        "containerd takes a relative path, with folders in it, for a program; taskd for a bad name",
        scenario="creation: relative path as runtime",
    ),
    Known(
        r"(UNKNOWN|UNIMPLEMENTED)(: failed to start shim: start failed: )"
        r"((failed to create TTRPC connection: )?(dial unix|unsupported protocol:) .*|"
        r"the shim printed no address|connecting to .*|unsupported shim version.*)",
        r"UNKNOWN\2",
        "taskd says what the shim answered, not what became of it as an address",
        scenario="creation: shim ",
    ),
    Known(
        r"UNKNOWN: (unexpected EOF|proto:.*|type with url containerd.runc.v1.Options: not found)",
        "UNKNOWN",
        "Go's words for a malformed message",
        scenario="creation: options that are malformed",
    ),
    Known(
        r"(?s)^Tasks\.wait .*",
        "",
        "a client of containerd that waits hears that the connection to the shim is gone; one of "
        "taskd's, with what status the container ended",
        scenario="execs: without a spec",
    ),
    Known(
        r"(?s)^Tasks\.(create|get|list) .*|^event /tasks/.*",
        "",
        "2.x reads specs to compare them with what the runtime can do; taskd leaves them to it",
        ("2",),
        "creation: spec of another type",
    ),
    Known(
        r"(?s)^Tasks\.create .*|^event /tasks/.*",
        "",
        "2.x reads specs to compare them with what the runtime can do; taskd leaves them to it",
        ("2",),
        "tasks: record changes under a task",
    ),
    Known(
        r"UNKNOWN: (type with url containerd.linux.runc.CreateOptions: not found|"
        r"invalid task create option for io.containerd.runc.v2)",
        "UNKNOWN",
        "2.x no longer knows the options of runtime v1",
        ("2",),
        "creation: options of another runtime",
    ),
    Known(
        r"(?s)^Events\.publish .*|^event /a .*",
        "",
        "containerd 1.6 ends with a nil dereference when there is no event",
        ("1.6",),
        "events: publish nothing",
    ),
    Known(
        r"(?s)^Events\.forward \{\}\n.*",
        "",
        "containerd ends with a nil dereference when there is no envelope",
        scenario="events: forward nothing",
    ),
    Known(
        r"(?s)^Events\.forward .*|^event /a .*",
        "",
        "newer ones do not notice that a time is absent, and send one of 1970; taskd, as 1.6, does",
        ("1.7", "2"),
        "events: forward without a time",
    ),
    Known(
        r"^event /tasks/exit .*'exited_at': 'never'\}$",
        "",
        "2.x's shim may be ended before it has told of the exit of a task that never ran",
        ("2",),
    ),
    Known(
        r"^event /tasks/delete .*",
        "",
        "newer ones may end a shim before it has told that the task is deleted",
        ("1.7", "2"),
    ),
    Known(
        r"(?s)^Tasks\.metrics .*",
        "",
        "containerd's Metrics answers UNKNOWN to whatever is wrong with the namespace",
        scenario="creation: no namespace",
    ),
    Known(
        r"^event /tasks/(exit|delete) .*",
        "",
        "shims of runtime v1 publish by starting a program, which may be late",
        ("1.6", "1.7"),
        "runtimes: io.containerd.runtime.v1.linux",
    ),
    Known(
        r"^event /tasks/exit .*",
        "",
        "the program that a shim of runtime v1 starts to publish, taskd's more often than "
        "containerd's, may be too late on a busy machine",
        ("1.6", "1.7"),
        "runtimes: linux execs",
    ),
    *(
        Known(
            r"(?s)^(Tasks|event).*",
            "",
            "containerd's runtime v1 knows cgroup v1 alone, and refuses every task without it; "
            "taskd's does not care",
            ("1.6", "1.7"),
            f"runtimes: {name}",
            unified=True,
        )
        for name in (
            *("io.containerd.runtime.v1.linux", "several at once"),
            *("options of linux", "linux fails", "linux execs"),
        )
    ),
    Known(
        r"(invalid exec id) a/b:",
        r"\1:",
        "containerd does not name the id with runtime v1",
        ("1.6", "1.7"),
        "runtimes: linux execs",
    ),
    Known(
        r"('exit_status': 137, 'exited_at': )'(never|some time)'",
        r"\1 TIME",
        "containerd leaves out when an exec ended with runtime v1",
        ("1.6", "1.7"),
        "runtimes: linux execs",
    ),
    Known(
        r"'checkpoint': '[^']*'",
        "'checkpoint': FOLDER",
        "containerd unpacks a checkpoint into a folder that it never removes; taskd, into the "
        "bundle's",
        scenario="tasks: checkpoint as content",
    ),
    Known(
        r"(UNKNOWN|NOT_FOUND)(: content digest)",
        r"NOT_FOUND\2",
        "containerd does not translate what its content store says when it restores",
        scenario="tasks: restore of what is no checkpoint",
    ),
    Known(
        r"^event /content/create .*",
        "",
        "2.x publishes what content is created; nothing in 1.x waits for it",
        ("2",),
    ),
    Known(
        r"(?s)^Tasks.create \{'container_id': 'two', 'stdin': '/proc/no/such/fifo'\}.*",
        "",
        "containerd's shim waits for ever for a standard input that is not there",
        scenario="creation: stdio that is not there",
        own_shim=True,
    ),
    Known(
        r"(?s)1 error occurred:\s*\* (failed to start .*?)\s*: unknown",
        r"\1: unknown",
        "containerd's shim makes a list of one error",
        scenario="creation: stdio that is not there",
        own_shim=True,
    ),
    Known(
        r"(mkdir /proc/no|open /proc/no/such/folder/file)",
        "open",
        "containerd's shim names the folder that it cannot make, taskd's the file asked for",
        scenario="creation: stdio that is not there",
        own_shim=True,
    ),
    Known(
        r"\n    UNKNOWN: (unexpected end of JSON|the process's specification is not).*",
        "",
        "Go's words, and Python's, for bad JSON",
        scenario="execs: specs",
        own_shim=True,
    ),
    Known(
        r"(?s)^(Tasks|event).*",
        "",
        "containerd's shim falls over an exec without a specification, and its container with it",
        scenario="execs: without a spec",
        own_shim=True,
    ),
    Known(
        r"io\.(containerd\.runc\.v2|taskd\.oci\.v1): failed to (load|join) cgroup",
        r"failed to \2 cgroup",
        "a shim says which it is",
        scenario="creation: options with a missing cgroup for the shim",
        own_shim=True,
    ),
    Known(
        r"(?s)^(Tasks|event).*",
        "",
        "containerd's shim refuses a terminal of which nobody wants the output",
        scenario="execs: terminal without a client",
        own_shim=True,
    ),
    Known(
        r"(?s)^(Tasks|event).*",
        "",
        "containerd's shim refuses a terminal of which nobody wants the output",
        scenario="tasks: terminal",
        own_shim=True,
    ),
    Known(
        r"(?s)^(Tasks.update \{'container_id': 'one'(\}|.*('annotations'|\"x\"|b''))|"
        r"event /tasks/exit).*",
        "",
        "containerd's shim falls over an update without resources, and its container with it",
        scenario="tasks: update",
        own_shim=True,
    ),
    Known(
        r"(?s)^Tasks.wait \{'container_id': 'one'\}.*",
        "",
        "containerd tells those who wait for a task that is deleted that its shim has gone",
        scenario="tasks: wait for a created task that is deleted",
    ),
    Known(
        r"unknown request type \*?(\w+\.)?",
        "unknown request type ",
        "containerd names the type in Go's words",
        ("2",),
        "introspection: ",
    ),
    Known(
        r"'index=off', |, 'index=off'",
        "",
        "1.x has `index=off` before the folders, newer ones after them",
        ("1.7",),
        "snapshots: ",
    ),
    Known(
        r'NOT_FOUND: (can not find snapshotter "\w+"|snapshot a does not exist)',
        "NOT_FOUND",
        "words of containerd's database for a namespace that has had no snapshot yet",
        NEWER,
        "snapshots: commit of what is not active",
    ),
    Known(
        r"(?s)(Snapshots.commit .*)\n    (UNKNOWN: lstat |FAILED_PRECONDITION: .*/vc).*",
        r"\1",
        "containerd measures first, and a view that is its parent has no folder",
        NEWER,
        "snapshots: commit of what is not active, native",
    ),
    Known(
        r"(?s)(Snapshots.usage .*'key': 'ac'\}\n.*)'size': \d+",
        r"\1",
        "containerd fills the holes of files that it copies",
        NEWER,
        "snapshots: usage, native",
    ),
    Known(
        r"'[ug]idmap=[^']*', ",
        "",
        "2.x maps owners where a snapshot is mounted; taskd does not say that it can",
        ("2",),
        "snapshots: mapped owners",
    ),
    Known(
        r"(?s)^Snapshots.update .*",
        "",
        "containerd ends with a nil dereference when there is nothing to update",
        NEWER,
        "snapshots: update nothing",
    ),
    Known(
        r"mount callback failed on \S+containerd-mount\d+: |"
        r"FOLDER\S*containerd-mount\d+|FOLDER/state/diff/(left|right)|"
        r", flags: \d+, data: \"[^\"]*\"",
        "",
        "containerd mounts in a temporary folder, which errors name, taskd out of sight",
        NEWER,
        "diffs: ",
    ),
    Known(
        r"(?<=failed to mount : )mount source: .*, err: ",
        "",
        "2.x says more of a mount that failed, and so does taskd",
        ("1.7",),
        "diffs: ",
    ),
    Known(
        r"(?<=\w )SCENARIO/(layer2|overlay/[^/]+)(?=/)",
        "",
        "of what is in an upper directory taskd says where in it it is",
        NEWER,
        "diffs: ",
    ),
    Known(
        r"(failed to get stream processor for \S+encrypted: )(exec: .*|no processor.*)",
        r"\1",
        "containerd asks a program to decrypt that is not there",
        NEWER,
        "diffs: media types",
    ),
    Known(
        r"(?<=failed to get stream processor for application/vnd.oci.image.layer.v1.tar\+gzip: )"
        r"(?=unexpected EOF)|failed to get stream processor for \S+tar\+gzip: (?=unexpected EOF)",
        "",
        "containerd reads gzip's header first; that it ends early is all there is to be said",
        NEWER,
        "diffs: broken",
    ),
    Known(
        r"(?s)^(Diff.diff .*tar\+(gzip|zstd)'), 'digest': '[^']*', 'size': \d+",
        r"\1",
        "libraries compress differently; the label says that the same is in it",
        NEWER,
        "diffs: compressed",
    ),
    Known(
        r"(?s)^(--format=gnu: the same: ).*|^(Diff.apply .*)\n.*(unhandled tar header type 83|"
        r"'size': 133120\}\})$",
        r"\1\2",
        "containerd knows no sparse files but PAX's",
        NEWER,
        "diffs: sparse files",
    ),
    Known(
        r"^(progress \{'event': '[^']*'(, 'name': '[^']*')?), 'desc': .*",
        r"\1}",
        "newer ones than 2.1 tell, with what is saved or pushed, its descriptor; so does taskd",
        ("2",),
        "transfer: ",
    ),
    Known(
        r", 'containerd.io/snapshot/(diff-id|parent-chain-id)': 'sha256:[0-9a-f]+'",
        "",
        "2.3 and newer label snapshots with the digest of their layer, and so does taskd",
        ("2",),
        "transfer: ",
    ),
    Known(
        r"^event /snapshot/prepare \{'key': 'extract-KEY .*",
        "",
        "2.3 and newer unpack layers at once, in no order and without a parent until they are "
        "committed; so does taskd",
        ("2",),
        "transfer: ",
    ),
    Known(
        r"(?s)^(progress|event /images/create) .*'name': '(three|pre)@sha256:(c4689|0812).*|"
        r"\{'name': '(three|pre)@sha256:(c4689|0812)[^}]*\}[^}]*\}, ",
        "",
        "2.3 and newer give a digested name to what came without an annotation, and so does taskd",
        ("2",),
        "transfer: ",
    ),
    Known(
        r"mount=sha256:[0-9a-f]+",
        "mount=ONE",
        "several blobs are pushed at once, and whichever is refused first is told",
        ("2",),
        "transfer: push",
    ),
    Known(
        r"(403 Whatever)\ndenied: requested access is denied",
        r"\1",
        "2.1 does not ask a registry why it refuses a name; newer ones do, and so does taskd",
        ("2",),
        "transfer: pull from a registry that refuses",
    ),
)


def without(
    lines: list[str], scenario: str, generation: Generation
) -> tuple[list[str], set[Known]]:
    """The transcript without what is known to differ; and what there was of that."""
    used = set()
    for known in KNOWN:
        if (
            generation.name in known.generations
            and scenario.startswith(known.scenario)
            and (generation.own_shim or not known.own_shim)
            and (UNIFIED or not known.unified)
        ):
            replaced = [re.sub(known.pattern, known.replacement, line) for line in lines]
            if replaced != lines:
                used.add(known)
            lines = [line for line in replaced if line]
    return lines, used
