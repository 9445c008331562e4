# Each target does its own set-up on a machine that has Python 3.10 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# TensorFlow's greetings are not news; its warnings are.
export TF_CPP_MIN_LOG_LEVEL ?= 1
# Where there is an NVIDIA GPU, TensorFlow needs CUDA's libraries.
NVIDIA_DRIVER := $(wildcard /dev/nvidiactl /usr/lib/wsl/lib/libcuda.so.1)
CUDA := $(if $(NVIDIA_DRIVER),"tensorflow[and-cuda]")

# So that several processes can share a GPU.
export TF_FORCE_GPU_ALLOW_GROWTH ?= true

.PHONY: demo test slow soak gpu lint clean

## Trains an encoder on textures that draw themselves, and shows what a few
## labels buy with it: minutes on a CPU.
demo: $(VENV)/installed
	$(BIN)/python -m moco_keras.recipes.textures
	# The newest run is the last one by its name.
	$(BIN)/python -m moco_keras.recipes.few_labels \
	  --run_dir="$$(ls -d saved_models/textures/*/ | tail -1)" \
	  --labels_per_class=10,50 --draws=2 --steps=300

PYTEST := $(BIN)/python -m pytest

## Runs the unit tests.
test: $(VENV)/installed
	# Three processes on two cores, since each waits now and then.
	$(PYTEST) --numprocesses=3 --dist=loadfile -m "not slow"

## Runs the others: whole programs, trainings by several devices and workers.
slow: $(VENV)/installed
	# Test by test, but all of an `xdist_group` in one process.
	$(PYTEST) --numprocesses=2 --dist=loadgroup -m slow

## Kills runs at many moments, starts them again, and compares: ten minutes.
SOAK ?= --kills=20 --minutes=4
soak: soak-1 soak-2

soak-%: $(VENV)/installed
	PYTHONPATH=. $(BIN)/python tests/helpers/soak.py $(SOAK) --replicas=$*

## Checks on a GPU what needs one, in ten minutes. Fails where there is none.
gpu: $(VENV)/installed
	PYTHONPATH=.:tests/distribution $(BIN)/python tests/helpers/gpu.py

## Checks the style.
lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	# An old pip searches for minutes where a new one takes seconds.
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt $(CUDA)
	touch $@

clean:
	rm -rf $(VENV)
