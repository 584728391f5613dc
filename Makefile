# Each target sets up what it needs. PYTHON names the interpreter the environment is made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Bytecode is made of what is imported, when it is: of everything that is installed it takes a minute.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
# cuCIM decodes on CPUs without the CUDA packages that it asks for; there are wheels for these systems only.
CUCIM_HERE := $(filter Linux-x86_64 Linux-aarch64,$(shell uname -sm | tr ' ' -))
PROTOC_VENV := .venv-protoc
PROTOS := $(sort $(wildcard protos/cmamil/v1/*.proto protos/inference/*.proto))

.PHONY: setup demo test test-long soak lint protos reliability-tables docs-figures gpu-check clean

setup: $(VENV)/installed

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cmamil-sdk needs Python 3.11; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[dev]'
	$(if $(CUCIM_HERE),$(PIP) --no-deps cucim-cu13 click lazy_loader)
	touch $@

demo: setup
	$(BIN)/cmamil demo --out demo

# A process per core, and a thread in each: two would wait for each other. What a file shares is made
# once, and slow files begin first (tests/conftest.py).
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-long: setup
	$(BIN)/python -m pytest -m long

SOAK := $(addprefix tests/serving/test_,soak.py overload.py full_disk.py wall_clock.py restarts.py)

soak: setup
	CMAMIL_REWRITE_TABLES=1 $(BIN)/python -m pytest -m long -s $(SOAK)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

protos: $(PROTOC_VENV)/installed
	cd protos && ../$(PROTOC_VENV)/bin/buf lint
	cd protos && ../$(PROTOC_VENV)/bin/buf breaking --against published.binpb
	rm -rf cmamil_sdk/_proto/cmamil cmamil_sdk/_proto/inference
	$(PROTOC_VENV)/bin/python -m grpc_tools.protoc -I protos --python_out=cmamil_sdk/_proto --pyi_out=cmamil_sdk/_proto $(PROTOS)
	sed -i.bak 's/^from cmamil\.v1 import/from cmamil_sdk._proto.cmamil.v1 import/' cmamil_sdk/_proto/cmamil/v1/*_pb2.py cmamil_sdk/_proto/cmamil/v1/*_pb2.pyi
# In a pool of its own: clients of the protocol register the same names in the common one.
	sed -i.bak 's/_descriptor_pool\.Default()/_descriptor_pool.DescriptorPool()/' cmamil_sdk/_proto/inference/*_pb2.py
	rm cmamil_sdk/_proto/cmamil/v1/*.bak cmamil_sdk/_proto/inference/*.bak
	touch cmamil_sdk/_proto/cmamil/__init__.py cmamil_sdk/_proto/cmamil/v1/__init__.py cmamil_sdk/_proto/inference/__init__.py
	cd protos && sha256sum $(PROTOS:protos/%=%) > ../cmamil_sdk/_proto/sources.sha256
	cd protos && ../$(PROTOC_VENV)/bin/buf build --exclude-source-info --path cmamil -o published.binpb

# Code for protobuf 6 runs under protobuf 6 and 7, so the compiler is that of grpcio-tools 1.81.
$(PROTOC_VENV)/installed:
	$(PYTHON) -m venv $(PROTOC_VENV)
	$(PROTOC_VENV)/bin/python -m pip install --quiet --disable-pip-version-check 'grpcio-tools==1.81.1' 'buf-bin==1.75.0'
	touch $@

reliability-tables: setup
	CMAMIL_REWRITE_TABLES=1 $(BIN)/python -m pytest tests/reliability

docs-figures: setup
	$(BIN)/python -m cmamil_sdk.benchmarks.figures docs/figures

gpu-check: setup
	$(BIN)/python tests/gpu_check.py

clean:
	rm -rf $(VENV) $(PROTOC_VENV) demo build dist *.egg-info
