# Two commands: `make figures` and `make test`. Each makes the environment .venv first, and only when it has to.
# Plain GNU make 3.81 (macOS has that one) and a POSIX shell; every path is relative, so run it in this folder.

SCALE ?= mini
CORES ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 1)
PYTHON ?=
FAISS ?=
SNAKEMAKE_ARGS ?=
PROFILE ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
FAULTS_ARGS ?=

PYTHON_NAMES := python3 python3.14 python3.13 python3.12 python3.11 python
PIP := .venv/bin/python -m pip --disable-pip-version-check
# Python compiles a module when it is first imported; compiling all of torch took longer than all that is ever imported.
INSTALL := $(PIP) install -qq --no-compile --no-warn-conflicts -c constraints.txt

export MPLBACKEND := Agg
export PIP_USER := 0
unexport PYTHONHOME PYTHONPATH

.PHONY: help demo figures status site test test-all bench bench-check faults env lint FORCE

help:
	@echo 'make demo      published MNIST models under attack, in a minute: an explorer, maps, ratios -> demo/'
	@echo 'make figures   train the four methods, analyse them, and execute the notebooks: figures and tables.'
	@echo '               SCALE=mini (the default: no data to fetch, minutes); CORES=2; SNAKEMAKE_ARGS=-n;'
	@echo '               PROFILE=slurm for a cluster, see workflow/profiles'
	@echo 'make status    say what of SCALE is made, stale or missing, and why'
	@echo 'make site      build site/index.html: the executed notebooks of SCALE, the guide and the reference, for a browser'
	@echo '               without a network'
	@echo 'make test      run the tests. PYTEST_ARGS="-k attacks -x"'
	@echo 'make test-all  the tests, and the slowest confirmations of them; notes of which sources, in tests/confirmed.json'
	@echo 'make bench     time our code beside its peers, in turn: a table of ratios, and benchmarks/latest.json.'
	@echo '               BENCH_ARGS="--only pgd --pairs 9"; some minutes, on a machine that does nothing else'
	@echo 'make bench-check   name the ratios that fell by more than a tenth since the last run on such a machine'
	@echo 'make faults    kill, damage, fill the disk and start twice whatever a small project consists of: a table of what'
	@echo '               came out. FAULTS_ARGS="--share 0.1 --seed 1"; a quarter of an hour on two cores'
	@echo 'make env       only make the environment .venv, which the other commands make when it is missing or out of date'
	@echo 'make lint      check the source files with ruff'
	@echo 'Any of them:   PYTHON=/path/to/python3.12 the Python (3.11 or newer) that .venv is made with'
	@echo '               FAISS=cpu or FAISS=gpu     which FAISS (default: gpu if this machine shows an NVIDIA GPU)'

demo: .venv/.stamp-run
	.venv/bin/tla demo

figures: .venv/.stamp-run
	PATH="$$(pwd)/.venv/bin:$$PATH" .venv/bin/tla figures --scale $(SCALE) \
	  $(if $(PROFILE),--profile $(PROFILE),--cores $(CORES)) --snakemake-args='$(SNAKEMAKE_ARGS)'

status: .venv/.stamp-run
	.venv/bin/tla status --scale $(SCALE)

site: .venv/.stamp-run
	.venv/bin/tla site --scale $(SCALE)

test: .venv/.stamp-test
	PATH="$$(pwd)/.venv/bin:$$PATH" OMP_NUM_THREADS=1 .venv/bin/python -m pytest \
	  -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-all: .venv/.stamp-test
	$(MAKE) test PYTEST_ARGS='--confirm=always $(PYTEST_ARGS)'

bench: .venv/.stamp-test
	.venv/bin/python -m benchmarks.bench $(BENCH_ARGS)

bench-check: .venv/.stamp-test
	.venv/bin/python -m benchmarks.bench --check

faults: .venv/.stamp-test
	PATH="$$(pwd)/.venv/bin:$$PATH" OMP_NUM_THREADS=1 .venv/bin/python tests/faults.py $(FAULTS_ARGS)

env: .venv/.stamp-run

lint: .venv/.stamp-test
	.venv/bin/python -m ruff check .

# Fits: its Python runs and is new enough, it was not moved (its scripts name the old place), and it is of the version
# that PYTHON= asks for, if that is given.
define VENV_FITS
{ .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && \
  { [ ! -e .venv/.stamp-run ] || grep -qxF "root $$(pwd -P)" .venv/.stamp-run; } && \
  { [ -z "$(PYTHON)" ] || [ "$$("$(PYTHON)" -c 'import sys; print(sys.version_info[:2])' 2>/dev/null)" = \
                            "$$(.venv/bin/python -c 'import sys; print(sys.version_info[:2])')" ]; }; }
endef

# The stamps are written last: what an interrupted installation left behind has none, and the next call repairs it.
# Beyond file times, an environment is stale when it does not fit any more, or when another FAISS is asked for. The
# FAISS it was made with is kept until FAISS= says otherwise, so that nodes with and without a GPU can share it.
STALE := $(shell [ ! -e .venv/.stamp-run ] || { $(VENV_FITS) && \
  { [ -z "$(FAISS)" ] || grep -qxF "faiss $(FAISS)" .venv/.stamp-run; }; } || echo stale)
ifneq ($(STALE),)
.venv/.stamp-run: FORCE
endif

.venv/.stamp-run: pyproject.toml constraints.txt
	@$(CHOOSE_FAISS)
	@$(REMOVE_HALF_INSTALLED)
	@$(KEEP_OR_MAKE_VENV)
	@$(CHOOSE_FAISS); $(REMOVE_OTHER_FAISS); \
	echo "Installing what pyproject.toml names, with faiss-$$faiss, into .venv. The released wheels of torch are large"; \
	echo "(on Linux several GB to download, 7 GB on disk): this takes minutes, once."; \
	$(INSTALL) -e ".[$$faiss,pipeline]" && \
	printf 'root %s\nfaiss %s\n' "$$(pwd -P)" "$$faiss" > $@

.venv/.stamp-test: .venv/.stamp-run requirements-oracles.txt
	@$(REMOVE_HALF_INSTALLED)
	@$(CHOOSE_FAISS); \
	echo 'Installing what the tests need into .venv.'; \
	$(INSTALL) -e ".[$$faiss,pipeline,robustness,dev]" && \
	$(PIP) install -qq --no-compile --no-deps -r requirements-oracles.txt && \
	touch $@

# An environment that fits is kept; one that does not is made anew. Without PYTHON=, the first name on PATH that is a
# version the constraints were tried with is taken, and a newer one only where there is none of these: for the newest
# Python not every package has a wheel.
define KEEP_OR_MAKE_VENV
if $(VENV_FITS); then \
  .venv/bin/python -c 'import importlib.metadata, pip; importlib.metadata.version("pip")' 2>/dev/null || \
  .venv/bin/python -m ensurepip --default-pip >/dev/null; \
  exit; \
fi; \
set -- $(PYTHON_NAMES); looked="Looked for $$* on PATH"; \
if [ -n "$(PYTHON)" ]; then set -- "$(PYTHON)"; looked="Looked at PYTHON=$$1"; fi; \
other='make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)'; \
chosen=; newer=; bare=; found=; \
for name do \
  version=$$("$$name" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || continue; \
  found="$$found$${found:+, }$$name is Python $$version"; \
  case $$version in \
    3.1[1-9].*|3.[2-9][0-9].*) ;; \
    *) continue ;; \
  esac; \
  if ! "$$name" -c 'import ensurepip, venv' 2>/dev/null; then \
    bare="$$name is Python $$version, but its module ensurepip is missing"; \
    package=python$${version%.*}-venv; continue; \
  fi; \
  case $$version in \
    3.1[1-3].*) chosen="$$name"; break ;; \
    *) newer="$${newer:-$$name}" ;; \
  esac; \
done; \
if [ -z "$$chosen" ] && [ -n "$$newer" ]; then \
  chosen="$$newer"; \
  echo "$$newer is newer than what constraints.txt was tried with, Python 3.11 to 3.13. Should the installation"; \
  echo "fail, name another Python: $$other"; \
fi; \
if [ -z "$$chosen" ] && [ -n "$$bare" ]; then \
  { echo "No virtual environment can be made: $$bare."; \
    echo "On Debian and Ubuntu, apt-get install $$package brings it. Or name another Python, 3.11 or newer:"; \
    echo "  $$other"; } >&2; \
  exit 1; \
fi; \
if [ -z "$$chosen" ]; then \
  { echo 'Python 3.11 or newer is needed to make .venv, and none was found.'; \
    echo "$$looked. Found: $${found:-no Python that runs}."; \
    echo 'Install one, or say where it is:'; \
    echo "  $$other"; } >&2; \
  exit 1; \
fi; \
clear=; \
if [ -e .venv/pyvenv.cfg ]; then \
  clear=--clear; echo 'The .venv that is here has another Python, or was moved: making it anew.'; \
fi; \
echo "Making .venv with $$chosen, $$("$$chosen" --version)."; \
"$$chosen" -m venv $$clear .venv
endef

# pip writes RECORD last: a package that has none was cut off half way, and pip itself would take it for installed. A
# folder whose name begins with ~ is what an interrupted upgrade had put aside.
define REMOVE_HALF_INSTALLED
for info in .venv/lib/python3*/site-packages/*.dist-info; do \
  if [ -d "$$info" ] && [ ! -e "$$info/RECORD" ]; then rm -rf "$$info"; fi; \
done; \
rm -rf .venv/lib/python3*/site-packages/~*
endef

define CHOOSE_FAISS
faiss='$(FAISS)'; \
if [ -z "$$faiss" ] && [ -e .venv/.stamp-run ]; then faiss=$$(sed -n 's/^faiss //p' .venv/.stamp-run); fi; \
if [ -z "$$faiss" ]; then \
  faiss=cpu; \
  if [ "$$(uname -s) $$(uname -m)" = 'Linux x86_64' ] && nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then \
    faiss=gpu; \
  fi; \
fi; \
case $$faiss in \
  cpu|gpu) ;; \
  *) echo "FAISS is cpu or gpu. Got '$$faiss' instead." >&2; exit 1 ;; \
esac
endef

# Both own the module faiss: taking one away breaks the other, so where the wrong one is found both go.
define REMOVE_OTHER_FAISS
other=cpu; if [ "$$faiss" = cpu ]; then other=gpu; fi; \
if ls -d .venv/lib/python3*/site-packages/faiss_$$other-*.dist-info >/dev/null 2>&1; then \
  echo "Removing faiss-$$other from .venv: it and faiss-$$faiss exclude each other."; \
  rm -f .venv/.stamp-run && $(PIP) uninstall -qq -y faiss-cpu faiss-gpu || exit; \
fi
endef
