# One word a task; every target installs what it needs into .venv. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(abspath $(VENV))/bin
BUNDLE = $(BIN)/python -m monai.bundle run
SMOKE := configs/smoke.json
TOOL := PYTHONPATH=bundle $(BIN)/python -m
CONFIGS := $(filter-out bundle/configs/metadata.json,$(wildcard bundle/configs/*.json))

# builds of PyTorch for machines without an NVIDIA driver
CPU_INDEX ?= https://download.pytorch.org/whl/cpu

RELEASED := --autoencoder_path models/model_autoencoder.pt --model_path models/model.pt

# make VERBOSE=1 shows what is otherwise left out: MONAI's notice that a config is code, pip's lines, MONAI's log.
ifndef VERBOSE
export PYTHONWARNINGS := ignore:parsing config_file,ignore:Detected deprecated name
QUIETLY := --quiet --disable-pip-version-check
else
BUNDLE += --verbose True
endif

.PHONY: help setup dev generate train conditional sweep evaluate publish figures documents bundle fresh zoo card smoke test browser chromium
.PHONY: screenshots benchmark recipes soak lowest audit lint format clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(VENV)/.base  ## make .venv with the pinned versions
dev: $(VENV)/.dev  ## add to .venv what tests and tools need

$(VENV)/.base: pyproject.toml $(CONSTRAINTS)
	@echo "installing the pinned versions into $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@index=$$($(BIN)/python tools/cpu_index.py $(CPU_INDEX)) && \
		$(BIN)/python -m pip install $(QUIETLY) $$index --constraint $(CONSTRAINTS) .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@echo "installing what tests and tools need into $(VENV)"
	@$(BIN)/python -m pip install $(QUIETLY) --constraint $(CONSTRAINTS) ".[dev]"
	@touch $@

generate: setup  ## volumes from the released weights, into bundle/runs/inference
	@cd bundle && $(BUNDLE) --config_file configs/inference.json --model_path models/model.pt

train: setup  ## both stages from scratch, into bundle/runs
	cd bundle && $(BUNDLE) --config_file configs/train_autoencoder.json
	cd bundle && $(BUNDLE) --config_file configs/train_diffusion.json \
		--autoencoder_path runs/autoencoder/model_autoencoder.pt

CONDITIONAL := 'configs/conditional.json'
conditional: dev  ## train the model that can be asked for a sphere, release it, score it for the documents
	cd bundle && $(BUNDLE) --config_file "['configs/train_diffusion.json',$(CONDITIONAL)]"
	cd bundle && $(BUNDLE) publish --config_file "['configs/evaluate.json',$(CONDITIONAL)]" --model_path runs/conditional/model.pt
	cd bundle && $(BUNDLE) --config_file "['configs/evaluate.json',$(CONDITIONAL),'configs/evaluate_conditional.json']" \
		--output_dir runs/figures/conditional --model_path models/model_conditional.pt
	cp bundle/runs/figures/conditional/fidelity_conditional.json bundle/models
	cp bundle/runs/figures/conditional/control.png bundle/docs/figures
	$(MAKE) sweep MODEL=models/model_conditional.pt && cp bundle/runs/sweep/sweep.png bundle/runs/sweep/sweep.gif bundle/docs/figures
	$(TOOL) tools.documents

sweep: setup  ## a picture of what each condition does to a volume (of MODEL), into bundle/runs/sweep
	cd bundle && $(BUNDLE) --config_file "['configs/inference.json',$(CONDITIONAL),'configs/inference_sweep.json']" \
		$(if $(MODEL),--model_path $(MODEL))

evaluate: setup  ## the released weights against the truth, into bundle/runs/evaluate
	cd bundle && $(BUNDLE) --config_file configs/evaluate.json $(RELEASED)

publish: setup  ## put the trained weights of `make train` into bundle/models, once they are seen to load
	cd bundle && $(BUNDLE) publish --config_file configs/evaluate.json \
		--autoencoder_path runs/autoencoder/model_autoencoder.pt --model_path runs/diffusion/model.pt

figures: dev  ## from the released weights, the pictures of the documents and models/fidelity.json
	cd bundle && $(BUNDLE) preview --config_file configs/data.json --output_dir runs/figures
	mkdir -p bundle/docs/figures && cp bundle/runs/figures/preview.png bundle/docs/figures/spheres.png
	cd bundle && $(BUNDLE) --config_file configs/inference.json --output_dir runs/figures/inference --model_path models/model.pt
	cp bundle/runs/figures/inference/preview.png bundle/docs/figures/generated.png
	cd bundle && $(BUNDLE) --config_file configs/evaluate.json --output_dir runs/figures $(RELEASED)
	cp bundle/runs/figures/reconstructions.png bundle/runs/figures/fidelity.png bundle/docs/figures
	cp bundle/runs/figures/fidelity.json bundle/models
	for seed in 102 103; do \
		(cd bundle && $(BUNDLE) --config_file configs/evaluate.json --seed $$seed --output_dir runs/figures/$$seed $(RELEASED)) && \
		cp bundle/runs/figures/$$seed/fidelity.json bundle/models/fidelity_$$seed.json || exit 1; done
	$(TOOL) tools.documents

documents: dev  ## models/fidelity*.json into the documents and the metadata
	$(TOOL) tools.documents

bundle: dev  ## the bundle as a folder and a zip archive for other machines, into dist
	$(TOOL) tools.archive dist

fresh: bundle  ## the archive's commands in a new environment with exactly the packages of its metadata
	$(TOOL) tools.fresh dist $(CPU_INDEX)

zoo: dev  ## what a pull request to MONAI's model zoo adds, into dist/zoo, and the zoo's checks of it
	$(TOOL) tools.zoo dist/zoo

card: dev  ## the model card of the Hugging Face hub, as bundle/README.md
	$(TOOL) tools.card

smoke: setup  ## train both stages, generate and evaluate, in a minute or two: the whole path of code
	cd bundle && $(BUNDLE) --config_file "['configs/train_autoencoder.json','$(SMOKE)']" --output_dir runs/smoke/autoencoder
	cd bundle && $(BUNDLE) --config_file "['configs/train_diffusion.json','$(SMOKE)']" --output_dir runs/smoke/diffusion \
		--autoencoder_path runs/smoke/autoencoder/model_autoencoder.pt
	cd bundle && $(BUNDLE) --config_file "['configs/inference.json','$(SMOKE)']" --output_dir runs/smoke/inference \
		--model_path runs/smoke/diffusion/model.pt
	cd bundle && $(BUNDLE) --config_file "['configs/evaluate.json','$(SMOKE)']" --output_dir runs/smoke/evaluate \
		--autoencoder_path runs/smoke/autoencoder/model_autoencoder.pt --model_path runs/smoke/diffusion/model.pt

test: dev  ## the test suite, but for what needs a browser
	$(BIN)/python -m pytest -m "not browser and not slow" -n 2 --dist worksteal

lowest: dev  ## the test suite with Python 3.10 and the lowest version of every package that pyproject.toml allows
	$(BIN)/python tools/lowest.py > $(VENV)/lowest.txt
	$(MAKE) test PYTHON=python3.10 VENV=$(VENV)-lowest CONSTRAINTS=$(VENV)/lowest.txt

browser: dev chromium  ## TensorBoard and the report in headless Chromium, which is installed if it is missing (Debian)
	$(BIN)/python -m pytest -m browser

chromium:
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
		(apt-get update --quiet --quiet && apt-get install --yes --quiet --quiet --no-install-recommends chromium)

RUNS ?= bundle/runs
RUN ?= bundle/runs/inference
screenshots: dev chromium  ## pictures of TensorBoard on the trainings below RUNS and of the report of RUN, for the documents
	$(BIN)/python tests/browser.py --runs $(RUNS) --run $(RUN) --figures bundle/docs/figures

benchmark: dev  ## what is fast and by how much, beside the references of benchmarks/, into bundle/runs/benchmark
	TQDM_DISABLE=1 $(BIN)/python benchmarks/run.py $(ONLY)

recipes: setup  ## the tutorials' autoencoders in the release's time, three hours, into bundle/runs/recipes
	$(BIN)/python benchmarks/recipes.py $(if $(ONLY),--only $(ONLY))

soak: dev  ## kills at random moments, full disks, damaged checkpoints and long runs, into bundle/runs/soak.json
	$(BIN)/python -m pytest -m slow
	PYTHONPATH=bundle $(BIN)/python tests/soak.py

audit: setup  ## known vulnerabilities of the pinned packages, which pip-audit asks osv.dev for
	$(BIN)/python -m pip install $(QUIETLY) "pip-audit>=2.7"
	$(BIN)/python -m pip_audit --requirement constraints.txt --no-deps --disable-pip --vulnerability-service osv

lint: dev  ## ruff, mypy, the layout of the configs, the scores in the documents
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(TOOL) tools.format_json --check $(CONFIGS)
	$(TOOL) tools.documents --check

format: dev  ## let ruff mend what it can, and lay out the configs
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(TOOL) tools.format_json $(CONFIGS)

clean:  ## remove the environment and everything that runs wrote
	rm -rf $(VENV) bundle/runs build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
