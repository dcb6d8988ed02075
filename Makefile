# Every target first builds .venv where it is missing, and installs again where pyproject.toml is newer.
#   make test PYTHON=python3.12    another Python
#   make test TORCH=cpu            PyTorch's CPU build: no CUDA libraries, a tenth of the download
#   make test UV=                  pip, though uv is installed
PYTHON ?= python3
UV ?= $(shell command -v uv 2> /dev/null)
TORCH ?=
BIN := .venv/bin
INSTALLED := .venv/installed
NBGRADER := .venv/nbgrader

.DEFAULT_GOAL := help
.PHONY: help tutorial test lab notebooks site assignments grade

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

tutorial: $(INSTALLED) ## lay out the drawings, train ProS, measure it beside zero-shot CLIP, draw figures (about ten minutes)
	$(BIN)/python -m prosutils tutorial

# Two processes with half of the cores each are quicker than one with all, for operations as small as these.
test: export OMP_NUM_THREADS := $(shell expr \( $$(getconf _NPROCESSORS_ONLN) + 1 \) / 2)
test: $(NBGRADER) ## test the package, run every notebook, answer its exercises and compare its marked outputs
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --nbval-lax --nbval-current-env \
		tests notebooks

lab: $(INSTALLED) ## open the notebooks in JupyterLab
	$(BIN)/python -m jupyterlab notebooks/00_start_here.ipynb

notebooks: $(INSTALLED) ## run every notebook in place and save it with what it shows
	$(BIN)/python notebooks/execute.py

site: $(INSTALLED) ## build the page on which one draws and retrieves, and the notebooks as a book, into build/site (needs npm)
	$(BIN)/python site/build.py

assignments: $(NBGRADER) ## build the student versions of the assignments (assignments/README.md)
	$(BIN)/python assignments/course.py release

grade: $(NBGRADER) ## grade the sample submissions of the assignments and compare with the points they should get
	$(BIN)/python assignments/samples.py

ifneq ($(UV),)
VENV := $(UV) venv --quiet --seed --allow-existing --python $(PYTHON) .venv
INSTALL := $(UV) pip install --python $(BIN)/python $(if $(filter cpu,$(TORCH)),--torch-backend cpu)
else
VENV := $(PYTHON) -m venv .venv
INSTALL := $(BIN)/python -m pip install
CPU_TORCH := $(if $(filter cpu,$(TORCH)),$(INSTALL) --index-url https://download.pytorch.org/whl/cpu "torch>=2.6" "torchvision>=0.21")
endif

$(INSTALLED): pyproject.toml
	$(VENV)
	$(CPU_TORCH)
	$(INSTALL) --editable ".[test]"
	@touch $@

# Apart from the rest, for nbgrader adds menus to JupyterLab that only lecturers need.
$(NBGRADER): $(INSTALLED)
	$(INSTALL) --editable ".[assignments]"
	@touch $@
