# Everything is set up by the target that needs it; `make demo` and `make test` need nothing before.
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := metrics nats otel top uvloop wasm
INSTALL := install --quiet --disable-pip-version-check
LOCK = $(VENV)/.uv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--upgrade --group build --custom-compile-command 'make lock' pyproject.toml
SHIM := containerd-shim-runc-v2:containerd runc:runc busybox:busybox-static
MACHINE := mmdebstrap:mmdebstrap mke2fs:e2fsprogs

# Daemons are started by the dozen: what is compiled once is kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint types tests parity bench soak fuzz compose vm docs man protos lock clean

demo: $(VENV)/.installed
	@$(BIN)/taskd demo

test: lint types tests

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy taskd shims/*/taskd_*

tests: $(VENV)/.installed-dev
	@.ci/need -n $(SHIM) containerd:containerd ctr:containerd crun:crun dockerd:docker.io ps:procps chromium-headless-shell:chromium-headless-shell losetup:mount mkfs.ext4:e2fsprogs nats-server:nats-server h2load:nghttp2-client ip:iproute2 $(MACHINE)
	@# Real shims, runtimes and clients race: what fails must do so again, but is always shown.
	$(BIN)/pytest --numprocesses 3 --dist worksteal --reruns 1 --rerun-show-tracebacks $(PYTEST)

parity: $(VENV)/.installed-dev
	@.ci/need $(SHIM) containerd:containerd
	PYTHONPATH=tests $(BIN)/python -m parity $(PARITY)

bench: $(VENV)/.installed-dev
	@.ci/need $(SHIM) containerd:containerd h2load:nghttp2-client crun:crun unshare:util-linux
	@# crun takes no mixture of cgroup versions: here both sides see the first one alone.
	AGAINST=$(AGAINST) POOL=$(POOL) PYTHONPATH=tests unshare -m sh -c 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$$@"' \
		- $(BIN)/python -m bench $(BENCH)

# The long form of the kill loops.
soak: $(VENV)/.installed-dev
	@.ci/need $(SHIM) containerd:containerd ctr:containerd mmdebstrap:mmdebstrap nats-server:nats-server dockerd:docker.io ip:iproute2
	TASKD_SOAK_CONTAINERS=$${TASKD_SOAK_CONTAINERS:-5000} $(BIN)/pytest -s tests/faults/test_kill_loop.py tests/faults/test_pool_kill_loop.py tests/faults/test_layers.py tests/faults/test_pulls.py tests/soak
	TASKD_SOAK_SURVIVORS=$${TASKD_SOAK_SURVIVORS:-200} $(BIN)/pytest -s tests/faults/test_survival.py
	$(BIN)/pytest -s tests/faults/four_machines.py

# Bad input for whatever reads other people's bytes, for two minutes each.
fuzz: $(VENV)/.installed-dev
	PYTHONPATH=tests $(BIN)/python -m fuzz $(FUZZ)

compose:
	@.ci/compose

# Debian 12 and 13 in virtual machines, in software: ONLY="docker v1" ON=13, and arguments of pytest in VM.
vm: $(VENV)/.installed-dev
	@.ci/need $(MACHINE) qemu-system-x86_64:qemu-system-x86
	PYTHONPATH=tests $(BIN)/python -m vm $(if $(ON),--on $(ON)) $(if $(ONLY),--only "$(ONLY)") \
		$(if $(KERNEL),--kernel $(KERNEL)) $(VM)

# The documentation as a site, in site/.
docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The manual page anew, from the parser of the command line.
man: $(VENV)/.installed
	@python3 -m venv $(VENV)/.man && $(VENV)/.man/bin/pip install --quiet argparse-manpage
	PYTHONPATH=$$(echo $(VENV)/.man/lib/python3*/site-packages) $(BIN)/python man/generate.py man/taskd.1

protos: $(VENV)/.installed-dev
	$(BIN)/python protos/generate.py

# What is tested is what the image has: see docs/dependencies.md.
lock:
	@python3 -m venv $(VENV)/.uv && $(VENV)/.uv/bin/pip install --quiet uv
	$(LOCK) $(patsubst %,--extra %,$(EXTRAS)) --output-file locks/taskd.txt
	$(LOCK) --all-extras --constraints locks/taskd.txt --output-file locks/dev.txt

$(VENV)/.installed: pyproject.toml locks/taskd.txt
	@python3 -c 'import ensurepip' 2>/dev/null || .ci/need /missing:python3-venv
	@test -x $(BIN)/python || python3 -m venv $(VENV)
	@echo "installing taskd into $(VENV)"
	@$(BIN)/pip $(INSTALL) --require-hashes --requirement locks/taskd.txt
	@$(BIN)/pip $(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed locks/dev.txt
	@echo "installing the tests' tools into $(VENV)"
	@$(BIN)/pip $(INSTALL) --require-hashes --requirement locks/dev.txt
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
