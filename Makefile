# Everything that is done with this checkout. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# For all platforms and all versions of Python that mirrorproxy runs on, with the sha256 of each file.
LOCK = $(VENV)/tools/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-annotate --custom-compile-command "make lock"

.PHONY: help serve demo test soak check format bench docs manifests lock clean

help: ## what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.runtime: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.runtime
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

# Validators that the tests run as commands. Their 100 packages are kept apart from what mirrorproxy itself needs.
$(VENV)/.tools: tests/tools.txt $(VENV)/.runtime
	$(PYTHON) -m venv $(VENV)/tools
	$(VENV)/tools/bin/pip install --quiet --disable-pip-version-check --requirement tests/tools.txt
	@touch $@

serve: $(VENV)/.runtime ## serve the well-known registries on 127.0.0.1:5000 (ARGS="--config FILE" for your own)
	$(BIN)/mirrorproxy serve $(ARGS)

demo: $(VENV)/.runtime ## see in half a minute what it does, without a network
	$(BIN)/mirrorproxy demo

test: $(VENV)/.dev $(VENV)/.tools check ## everything, real clients included (their Debian packages are installed when root and missing)
	tests/tools.sh
	$(BIN)/pytest -n 2 --dist loadgroup -m "not soak" $(ARGS)

soak: $(VENV)/.dev $(VENV)/.tools ## what takes longer than make test may, an hour of mixed load among it (SOAK_SECONDS=600: ten minutes)
	tests/tools.sh
	$(BIN)/pytest -m soak --timeout 3600 $(ARGS)
	MIRRORPROXY__SERVER__WORKERS=2 $(BIN)/pytest -n 2 --dist loadgroup -m "not soak" tests/e2e

check: $(VENV)/.dev ## lint, format, types and layers alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_layers.py

format: $(VENV)/.dev ## put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What mirrorproxy is compared with and does not come from Debian.
$(VENV)/.peers: bench/peers.txt $(VENV)/.runtime
	$(PYTHON) -m venv $(VENV)/peers
	$(VENV)/peers/bin/pip install --quiet --disable-pip-version-check --requirement bench/peers.txt
	@touch $@

bench: $(VENV)/.dev $(VENV)/.peers ## mirrorproxy beside docker-registry, drayage and nginx, in one run
	tests/tools.sh
	$(BIN)/python -m bench $(ARGS)

docs: $(VENV)/.dev ## renew what docs/configuration.md says of the settings
	$(BIN)/python -m docs.generate

manifests: ## renew what k8s/ has of monitoring/
	@{ printf '%s\n' '# Made from monitoring/rules.yaml by `make manifests`.' 'apiVersion: monitoring.coreos.com/v1' 'kind: PrometheusRule' \
	  'metadata:' '  name: mirrorproxy' '  labels:' '    app.kubernetes.io/name: mirrorproxy' 'spec:'; sed 's/^./  &/' monitoring/rules.yaml; } \
	  >k8s/monitoring/prometheusrule.yaml

lock: $(VENV)/.tools ## renew the locked dependencies of the container image
	$(LOCK) --extra otel --output-file requirements.lock pyproject.toml
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])' \
		| $(LOCK) --output-file requirements-build.lock -

clean: ## remove what was made here
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
