# Everything is run from here; `make help` lists it.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
WORK ?= work/demo
PORT ?= 8000
DOCKER ?= docker
REGISTRY ?= registry.example.com/nemotron-embed
VARIANT ?=
OPTIONS ?=
IMAGE_TOOL = $(PYTHON) -m images.build
ENGINE_OPTIONS = --engine $(DOCKER) --registry $(REGISTRY)
IMAGE_OPTIONS = $(ENGINE_OPTIONS) $(if $(VARIANT),--variant $(VARIANT))
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' components/__init__.py)
# With a key or an endpoint of one's own the demo asks the LLM; without, it works offline.
LLM := $(if $(NVIDIA_API_KEY)$(LLM_BASE_URL),sdg.generator=llm sdg.num_pairs=7) \
       $(if $(LLM_BASE_URL),sdg.llm_base_url=$(LLM_BASE_URL)) \
       $(if $(LLM_MODEL),$(foreach role,artifact_extraction qa_generation quality_judge,sdg.$(role)_model=$(LLM_MODEL)))

.DEFAULT_GOAL := help
.PHONY: help demo demo-stop demo-containers test test-fast lint types format compile docs pictures check images push release sbom stage lock clean checkov

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-16s%s\n", $$1, $$2}'

demo: $(VENV)/.local ## The whole recipe on this machine: corpus to served model (WORK=, PORT=)
	@$(RUN) tests/data/pydoc/build.py --out $(WORK)/input
	@$(RUN) -m components run --profile small --work $(WORK) \
		--corpus $(WORK)/input/corpus --golden-eval $(WORK)/input/golden_eval \
		deploy.host_port=$(PORT) deploy.served_model_name=nemotron-embed-demo $(LLM)
	@echo; echo "make demo-stop stops the service."

demo-stop: ## Stop the demo's service
	@$(RUN) -m components.deploy.local stop --name nemotron-embed-demo

test: $(VENV)/.test ## Run every test
	OMP_NUM_THREADS=1 $(RUN) -m pytest

test-fast: $(VENV)/.test ## Run the tests that take under two seconds each (5 minutes on 2 cores)
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses 2 -m "not slow"

lint: $(VENV)/.test ## Check style
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(VENV)/.test ## Check types with mypy, as pyproject.toml says how strictly
	$(RUN) -m mypy

format: $(VENV)/.test ## Put the code into the house style
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

compile: $(VENV)/.kfp ## Write the pipelines to manifests/pipelines (OPTIONS='--node-labels gke')
	$(RUN) pipeline.py compile $(OPTIONS)

docs: $(VENV)/.test ## Write the generated tables of the components' READMEs
	$(RUN) -m components docs
	$(RUN) -m components.deploy.objects.shared_runtimes

pictures: $(VENV)/.test ## Make the pictures of the documentation anew, from a run with eval (WORK=; needs Chromium)
	$(RUN) -m docs.drawing --work $(WORK)

check: lint types ## Check style and types, and that compiled pipelines and generated tables are fresh (OPTIONS= as compiled)
	$(RUN) pipeline.py compile --check $(OPTIONS)
	$(RUN) -m components docs --check

images: ## Build the images (REGISTRY=, DOCKER=docker, podman or buildah, VARIANT=cpu or gpu)
	@$(IMAGE_TOOL) build $(IMAGE_OPTIONS)

checkov: $(VENV)/.test ## Chart, overlays and Dockerfile by checkov, in an environment of its own
	@$(RUN) -m tests.chart.render_all build/rendered
	@test -x build/checkov/bin/checkov || { $(PYTHON) -m venv build/checkov && build/checkov/bin/pip install --quiet checkov==3.3.30; }
	build/checkov/bin/checkov --config-file checkov.yaml -d build/rendered -d images

push: ## Push the images, and write their digests to images/pins.env (REGISTRY=, DOCKER=)
	@$(IMAGE_TOOL) push $(IMAGE_OPTIONS)

release: images push compile ## Build and push the images, and compile pipelines that name them by digest (REGISTRY=, OPTIONS=)

sbom: ## List what each image holds: work/sbom/IMAGE.cdx.json (CycloneDX)
	@$(IMAGE_TOOL) sbom $(IMAGE_OPTIONS)

stage: $(VENV)/.kfp ## Run a stage in its image: make stage STAGE=eval ARGS='k_values=[1,10]' WORK=work/demo
	@$(RUN) -m images.run_stage $(ENGINE_OPTIONS) --work $(WORK) $(STAGE) $(ARGS)

lock: ## Write the images' requirements with hashes, from pyproject.toml and constraints.txt (needs uv)
	@$(PYTHON) -m images.lock

demo-containers: $(VENV)/.test ## The compiled pipelines in the images, confined as on a cluster (needs Docker)
	@for image in CPU GPU EXPORT SERVER; do \
		export $${image}_IMAGE=$(REGISTRY)/$$(echo $$image | tr A-Z a-z):$(VERSION); done; \
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(RUN) -m pytest -n 0 -s -rs tests/containers

clean: ## Remove the virtual environment and the demo's artifacts
	rm -rf $(VENV) work build *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11: run make PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -m venv $(VENV)

# pipeline.py: no torch.
$(VENV)/.kfp: $(VENV)/bin/python pyproject.toml constraints.txt
	@$(PIP) --editable '.[kfp]'
	@touch $@

$(VENV)/.local: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (some minutes the first time) ..."
	@$(RUN) -m components.command_line.install_torch
	@$(PIP) --editable '.[local]'
	@touch $@

$(VENV)/.test: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (some minutes the first time) ..."
	@$(RUN) -m components.command_line.install_torch
	@$(PIP) --editable '.[test]'
	@touch $@ $(VENV)/.kfp $(VENV)/.local
