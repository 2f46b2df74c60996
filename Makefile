# demo: a whole project, from answers to a checked submission.csv and report.html; test: lint and every test;
# reliability: the same tests of what it survives, by the hundred and thousand, and every
# pair of recipes, with their figures (an hour);
# test-kaggle: the generated repository's tests in the versions of Kaggle's image (needs 8 GB);
# bench: every benchmark beside its peers, one table (40 minutes; BENCH=--quick: minutes);
# clean: forget the demo and the caches (.venv stays)
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PROJECT := {{cookiecutter.project_slug}}
VENV := $(CURDIR)/.venv/bin

.PHONY: demo test reliability test-kaggle bench lint setup lock clean

demo: setup
	"$(VENV)/python" -m cookiecutter . --no-input --default-config --overwrite-if-exists --output-dir build
	"$(VENV)/python" build/digits-demo/demo_data.py
	PYTHON="$(VENV)/python" build/digits-demo/pipeline.sh

test: lint
	"$(VENV)/python" -m pytest -n 2 --dist worksteal
	cd "$(PROJECT)" && OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1 "$(VENV)/python" -m pytest -n 2 --dist worksteal -p no:cacheprovider

# The tests that count: kills, faults, damaged files, bad input, in the numbers of README's "What it survives".
reliability: setup build/scikit-learn-1.6.1
	RELIABILITY=full "$(VENV)/python" -m pytest -n 2 tests/test_answers.py tests/test_commands.py
	cd "$(PROJECT)" && RELIABILITY=full SKLEARN_161="$(CURDIR)/build/scikit-learn-1.6.1" OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1 \
		"$(VENV)/python" -m pytest -n 2 -p no:cacheprovider $$(cd "$(CURDIR)/$(PROJECT)" && grep -lE 'figures|FULL' tests/test_*.py)

# BENCH: words for benchmarks/run.py, such as BENCH="--quick --only 2"; AUTOGLUON=1 compares with it, too
bench: setup .venv-peers/installed $(if $(AUTOGLUON),.venv-autogluon/installed)
	"$(VENV)/python" benchmarks/run.py $(BENCH)

.venv-peers/installed: benchmarks/peers/requirements.txt | setup
	test -x .venv-peers/bin/pip || $(PYTHON) -m venv --clear .venv-peers
	.venv-peers/bin/python -m pip install --quiet -r benchmarks/peers/requirements.txt
	touch $@

# An environment of its own: AutoGluon 1.6.3 does not resolve with the torch of the others.
.venv-autogluon/installed: benchmarks/peers/requirements-autogluon.txt | setup
	test -x .venv-autogluon/bin/pip || $(PYTHON) -m venv --clear .venv-autogluon
	.venv-autogluon/bin/python -m pip install --quiet -r benchmarks/peers/requirements-autogluon.txt
	touch $@

build/scikit-learn-1.6.1: | setup
	"$(VENV)/python" -m pip install --quiet --no-deps --target $@ scikit-learn==1.6.1

test-kaggle: .venv-kaggle/installed
	cd "$(PROJECT)" && OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1 "$(CURDIR)/.venv-kaggle/bin/python" -m pytest -n 2 -p no:cacheprovider

# Python 3.12, as on Kaggle, where it is installed.
.venv-kaggle/installed: $(PROJECT)/requirements-kaggle.txt $(PROJECT)/requirements.txt
	@test -n "$(PYTHON)" || { echo "error: found no Python 3.11 or newer: install it, or say make test-kaggle PYTHON=<path>" >&2; exit 2; }
	"$$(python3.12 -c 'import sys; print(sys.executable)' 2>/dev/null || echo "$(PYTHON)")" -m venv --clear .venv-kaggle
	.venv-kaggle/bin/python -m pip install --quiet -r "$(PROJECT)/requirements-kaggle.txt"
	touch $@

lint: setup
	"$(VENV)/ruff" check .
	"$(VENV)/ruff" format --check .

setup: .venv/installed

.venv/installed: $(PROJECT)/requirements.lock requirements-dev.lock
	@test -n "$(PYTHON)" || { echo "error: found no Python 3.11 or newer: install it, or say make setup PYTHON=<path>" >&2; exit 2; }
	test -x .venv/bin/pip || $(PYTHON) -m venv --clear .venv
	.venv/bin/python -m pip install --quiet -r "$(PROJECT)/requirements.lock" -r requirements-dev.lock
	touch $@

# After a change in a requirements file; needs uv. Both locks agree where they name the same package.
lock:
	$(MAKE) -C "$(PROJECT)" lock
	uv pip compile requirements-dev.txt --constraint "$(PROJECT)/requirements.lock" --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --custom-compile-command "make lock" --output-file requirements-dev.lock

clean:
	rm -rf build .pytest_cache .ruff_cache .hypothesis "$(PROJECT)/.ruff_cache" "$(PROJECT)/.hypothesis"
	find hooks tests "$(PROJECT)" -name __pycache__ -type d -prune -exec rm -rf {} +
