# make demo   render, pack, train, sample and report: minutes on two CPU cores, every GPU where there are any
# make test   every test;  make unit   the fast ones;  make lint   ruff and mypy
# make system, make system-test and make system-slurm install the Debian packages below (they ask for root);
# the others do it themselves in a container.
# Set-up is done on the way, once. PYTHON=python3.12 picks another interpreter for .venv.

PYTHON ?= python3
DATA := data
RUN := runs/demo
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

# skia, which draws the stand-in avatars, loads these two.
SYSTEM_PACKAGES := libegl1 libgl1
# The browser in which a test looks at reports, and the compiler of the shim that makes calls fail.
TEST_PACKAGES := chromium gcc libc6-dev
# A real Slurm on this machine, for slurm/box.py.
SLURM_PACKAGES := slurm-wlm munge slurmdbd mariadb-server numactl iproute2

UNIT := OMP_NUM_THREADS=1 pytest -n 2 tests/unit
# Tests of a file one after the other, files side by side. A real Slurm has clocks of its own: its tests run alone.
FILES := -n 2 --dist loadfile
BOX := tests/integration/box
# Computes as a CPU without AVX: what is compared with a bound must not depend on the machine.
OLD_CPU := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41

.PHONY: demo test unit lint system system-test system-slurm system-check test-check slurm-check clean

demo: .venv/installed system-check
	python -m shards.render --out $(DATA)/avatars --count 10000 --seed 0
	python -m shards.pack $(DATA)/avatars --out $(DATA)/demo --size 64 --val 0.1
	deepspeed $$(python -m launch.ranks) diffcore/train.py --config configs/demo.yaml
	python -m diffcore.sample $(RUN) --set hair_color=auburn --set glasses=none --out $(RUN)/samples/asked.png
	python -m diffcore.evaluation.colors $(RUN) --samples 256
	python -m diffcore.summary $(RUN)

test: .venv/installed-test system-check test-check slurm-check
	ruff check .
	ruff format --check .
	mypy
	if command -v hadolint >/dev/null; then hadolint containers/Containerfile; fi
	$(UNIT)
	pytest $(BOX)
	pytest $(FILES) tests/integration --ignore $(BOX)
	$(OLD_CPU) OMP_NUM_THREADS=1 pytest $(FILES) -m numeric tests

unit: .venv/installed-test
	$(UNIT) -m "not slow"

lint: .venv/installed-test
	ruff check .
	ruff format --check .
	mypy
	if command -v hadolint >/dev/null; then hadolint containers/Containerfile; fi

# Python packages: once, and again when pyproject.toml or constraints.txt changes. CONSTRAINTS= takes the newest
# that pyproject.toml allows.
CONSTRAINTS := -c constraints.txt
INSTALL = pip install --quiet --disable-pip-version-check $(CONSTRAINTS)

.venv/bin/python:
	$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15) and 'Python 3.11 to 3.14 is needed; try make PYTHON=python3.12')"
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) -e ".[all]"
	touch $@

.venv/installed-test: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) -e ".[test,dev]"
	touch .venv/installed $@

# In a container or CI (root, Debian's apt, no systemd) missing system packages are installed; on a person's
# machine the command is named and what needs them is left out.
CONTAINER := [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && [ ! -d /run/systemd/system ]

system-check:
	@if ldconfig -p | grep -q libEGL.so.1 && ldconfig -p | grep -q libGL.so.1; then :; \
	elif $(CONTAINER); then $(MAKE) --no-print-directory system; \
	else \
		echo "*** Missing: $(SYSTEM_PACKAGES). Avatars cannot be drawn and their tests are left out." >&2; \
		echo "*** To install them: make system" >&2; \
	fi

test-check:
	@for name in chromium chromium-browser google-chrome; do \
		command -v $$name >/dev/null && command -v cc >/dev/null && exit; \
	done; \
	if $(CONTAINER); then $(MAKE) --no-print-directory system-test && exit; fi; \
	echo "*** Missing: some of $(TEST_PACKAGES)." >&2; \
	echo "*** Reports are not looked at in a browser, or no disk is made to fail." >&2; \
	echo "*** To install it: make system-test" >&2

slurm-check:
	@PATH="$$PATH:/usr/sbin:/sbin"; missing=; \
	for name in slurmctld slurmd slurmdbd munged mariadbd numactl ss; do \
		command -v $$name >/dev/null || missing=yes; \
	done; \
	if [ -z "$$missing" ]; then :; \
	elif $(CONTAINER); then $(MAKE) --no-print-directory system-slurm; \
	else \
		echo "*** Missing: $(SLURM_PACKAGES). The tests on a real Slurm are left out." >&2; \
		echo "*** To install them: make system-slurm" >&2; \
	fi

system: PACKAGES := $(SYSTEM_PACKAGES)
system-test: PACKAGES := $(TEST_PACKAGES)
system-slurm: PACKAGES := $(SLURM_PACKAGES)
system system-test system-slurm:
	@[ "$$(id -u)" = 0 ] || sudo -v
	if [ "$$(id -u)" = 0 ]; then s=; else s=sudo; fi; \
	$$s apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$s apt-get install -y -qq $(PACKAGES)

clean:
	rm -rf .venv data runs build *.egg-info
