# `make help` lists the targets.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

TOOLS := target/tools
LODESTONE := target/release/lodestone
DATA := target/demo/data
BUNDLE := target/demo/bundle
SHOP := data/online-retail
LISTEN ?= 127.0.0.1:50051

# SHORT=1 gives every benchmark and every long test a form of a few seconds. `make test` runs these forms, so that no
# published command stops working unnoticed. Their figures mean nothing.
ifdef SHORT
SIZES ?= 3000x16
RETRIEVAL_PEERS ?= usearch,faiss
KILLS ?= 2
SWAPS ?= 5
FUZZ_SECONDS ?= 1
SIMULATION := target/simulation-short/simulation
SIMULATION_FLAGS := --seeds 1 --shoppers 80 --products 96 --days 3 --history-days 20
OBJECTIVES := target/simulation-short/objectives
OBJECTIVE_FLAGS := --seeds 1 --shoppers 120 --products 96 --days 2 --history-days 150 --visit-probability 0.05 \
	--objective-weights 1 --objectives loyalty,revenue
export BENCH_SECONDS ?= 0.3
export BENCH_CONNECTIONS ?= 1,8
export BENCH_EVENTS ?= 20000
export BENCH_BACKGROUND_SECONDS ?= 9
export BENCH_RATE ?= 200
export BENCH_REPEATS ?= 1
export BENCH_ITEMS ?= 3000
export BENCH_QUERIES ?= 3
export BENCH_DEADLINES ?= 100
export BENCH_FACTORS ?= 3
export BENCH_IDLE ?= 200
else
SIZES ?= 100000x64 1000000x64 200000x384
KILLS ?= 200
SWAPS ?= 1000
FUZZ_SECONDS ?= 60
SIMULATION := docs/simulation
OBJECTIVES := docs/objectives
# LOYALTY needs the head `return_visit`, whose labels take two weeks of the last sixth of the history, and shoppers who do
# not return anyway.
OBJECTIVE_FLAGS := --shoppers 2000 --days 20 --history-days 180 --visit-probability 0.015 \
	--objective-weights 0.25,0.5,1 --objectives loyalty,revenue
endif

# The server loads ONNX Runtime from here. Set it to use another copy.
export ORT_DYLIB_PATH ?= $(CURDIR)/$(TOOLS)/onnxruntime/libonnxruntime.so
# Microsoft's builds of the library collect telemetry and keep a database of it in the home directory.
export ORT_DISABLE_TELEMETRY ?= 1
# No load balancer has to notice that a server of the example, a test or a benchmark stops.
export LODESTONE_DRAIN_WAIT ?= 0

.PHONY: help setup build run demo test fuzz simulate bench bench-models bench-retrieval bench-events bench-catalog bench-train bench-loyalty bench-incentives bench-overload bench-startup clean clean-demo
.PHONY: tools-run tools-bench check-format check-lints check-proto check-docs check-image
.PHONY: deny structure
.PHONY: test-rust test-cli test-report test-helm test-server test-crash test-swaps test-store test-short-forms

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' Makefile

setup: ## Fetch all tools and crates, so that the rest works offline
	scripts/tools.sh
	cargo fetch --locked

build: ## Build the server and its command line
	cargo build --release --locked

tools-run:
	@scripts/tools.sh onnxruntime grpcurl

# Written under another name and then renamed, so that an interrupted run leaves no incomplete directory.
$(DATA): | build
	@echo "Importing the example shop, once."
	@mkdir -p target/demo && rm -rf $@.new
	$(LODESTONE) import --mapping $(SHOP)/mapping.toml --events $(SHOP)/transactions_2009_2010.csv.zst --out $@.new
	@mv $@.new $@

$(BUNDLE): | build tools-run $(DATA)
	@echo "Training on the example shop, once."
	@rm -rf $@.new
	$(LODESTONE) train --data $(DATA) --out $@.new
	@mv $@.new $@

run: build tools-run $(DATA) $(BUNDLE) ## Serve the example shop on 127.0.0.1:50051 (LISTEN=host:port for another address)
	@grpcurl="$(TOOLS)/bin/grpcurl -plaintext"; \
	echo; \
	echo "The example shop is at $(LISTEN). In another terminal:"; \
	echo; \
	echo "  $$grpcurl $(LISTEN) list"; \
	echo "  $$grpcurl -d '{\"viewer\": {\"visitor_id\": \"v-1\"}, \"query\": \"heart t-light holder\", \"page_size\": 5, \"options\": {\"read_mask\": {\"paths\": [\"title\", \"price_micros\"]}}}' $(LISTEN) lodestone.v1.RankingService/Search"; \
	echo "  $$grpcurl -d '{\"viewer\": {\"visitor_id\": \"v-1\"}, \"type\": \"RECOMMEND_TYPE_FOR_YOU\", \"page_size\": 5}' $(LISTEN) lodestone.v1.RankingService/Recommend"; \
	echo; \
	exec $(LODESTONE) serve --bundle $(BUNDLE) --data $(DATA) --listen $(LISTEN) --history-ends-now

demo: build tools-run $(DATA) $(BUNDLE) ## Start the server on a free port, call every RPC once, and check the answers
	@scripts/demo.sh

test: check-format check-lints check-proto check-docs check-image test-rust test-cli test-report test-helm test-server test-short-forms ## Everything that must pass before a change lands

check-format:
	cargo fmt --check

check-lints:
	cargo clippy --release --locked --workspace --all-targets -- -D warnings

# PROTO_BASE=REF compares the proto files with those of another commit than the last tag.
check-proto: ## Lint the proto files, and refuse changes that break clients of the last tagged version
	@scripts/tools.sh buf
	cd proto && ../$(TOOLS)/bin/buf lint
	scripts/check_proto.sh $(TOOLS)/bin/buf $(PROTO_BASE)

check-docs:
	@scripts/tools.sh grpcurl python
	$(TOOLS)/venv/bin/python scripts/check_docs.py
	$(TOOLS)/venv/bin/python tests/clients/run.py --without-server

check-image: ## Lint the Dockerfile
	@scripts/tools.sh hadolint
	$(TOOLS)/bin/hadolint Dockerfile

test-rust: tools-run
	@if cargo nextest --version >/dev/null 2>&1; then \
		set -x; cargo nextest run --release --locked --workspace; \
	else \
		set -x; cargo test --release --locked --workspace; \
	fi

test-cli: build tools-run $(DATA) $(BUNDLE)
	python3 tests/cli/run.py $(LODESTONE)
	python3 tests/cli/feeds.py $(LODESTONE) $(TOOLS)/bin/grpcurl $(BUNDLE)
	@scripts/tools.sh python
	$(TOOLS)/venv/bin/python tests/cli/bring.py $(LODESTONE) $(BUNDLE) $(DATA)
	python3 tests/cli/retrain.py $(LODESTONE) $(TOOLS)/bin/grpcurl
	python3 tests/cli/answers.py $(LODESTONE) $(TOOLS)/bin/grpcurl
	python3 tests/cli/backup.py $(LODESTONE) $(TOOLS)/bin/grpcurl $(BUNDLE)
	python3 tests/cli/simulate.py $(LODESTONE) target/simulation

test-report: build tools-run $(DATA) $(BUNDLE) ## Open the reports of evaluation and loyalty in headless Chromium; screenshots go to target/report
	@scripts/tools.sh chromium
	python3 tests/report/run.py $(LODESTONE) $(TOOLS)/bin/chromium $(DATA) $(BUNDLE) target/report
	python3 tests/report/loyalty.py $(LODESTONE) $(TOOLS)/bin/chromium $(DATA) $(BUNDLE) target/report/loyalty

test-helm:
	tests/helm/run.sh

test-server: build tools-run $(DATA) $(BUNDLE)
	@scripts/tools.sh python minilm
	LODESTONE_ANSWERS_SHARE=1 LODESTONE_SECOND_CATALOG=outlet scripts/with_server.sh \
		bash -c 'scripts/demo.sh && python3 tests/clients/run.py'
	python3 tests/server/run.py $(LODESTONE) $(BUNDLE) $(TOOLS)/bin/grpcurl $(DATA) $(TOOLS)/minilm
	$(TOOLS)/venv/bin/python tests/server/rolling.py $(LODESTONE) $(BUNDLE) $(DATA)

SHORT_FORMS := bench bench-models bench-retrieval bench-events bench-catalog bench-train bench-loyalty bench-incentives bench-overload bench-startup simulate test-crash test-swaps test-store
test-short-forms: build tools-run $(DATA) $(BUNDLE) ## Run every benchmark and every long test for a few seconds
	$(MAKE) SHORT=1 $(SHORT_FORMS)

test-crash: build tools-run $(DATA) $(BUNDLE) ## Kill the server 200 times while it writes; no acknowledged write may be lost
	KILLS=$(KILLS) cargo test --release --locked --test api crash:: -- --nocapture
	@scripts/tools.sh minilm
	KILLS=$(KILLS) CRASH_ONLY=1 python3 tests/server/run.py $(LODESTONE) $(BUNDLE) $(TOOLS)/bin/grpcurl $(DATA) $(TOOLS)/minilm

test-swaps: tools-run ## Load and swap in 1,000 bundles under requests and writes; none may fail, and memory may not grow
	SWAPS=$(SWAPS) cargo test --release --locked --test api models::swaps_under_load -- --nocapture

test-store: build tools-run $(DATA) $(BUNDLE) ## Publish to, serve from and prune a directory and a bucket of moto's S3 server
	@scripts/tools.sh moto
	python3 tests/store/run.py $(LODESTONE) $(TOOLS)/bin/grpcurl $(BUNDLE) $(TOOLS)/moto/bin/moto_server

# TARGETS="filter requests" selects targets.
fuzz: ## Search inputs that make a parser panic, with libFuzzer; FUZZ_SECONDS=60 for each target
	scripts/fuzz.sh $(FUZZ_SECONDS) $(TARGETS)

# The peers in Python, and a client of the API.
tools-bench:
	@scripts/tools.sh python bench
	@mkdir -p target/bench/stubs
	@$(TOOLS)/venv/bin/python -m grpc_tools.protoc --proto_path=proto --python_out=target/bench/stubs \
		--grpc_python_out=target/bench/stubs proto/lodestone/v1/*.proto

bench: build tools-run tools-bench $(DATA) $(BUNDLE) ## Compare the server with the same pipeline in Python; BENCH_SECONDS=5 for each figure
	@$(TOOLS)/bench/bin/python benches/serving.py

# MODELS_DATA=DIR adds public sets, one in each subdirectory; benches/models.py describes their files.
bench-models: build tools-run $(DATA) $(BUNDLE) ## Compare the served models with the best tuned baselines; MODELS_DATA=DIR adds sets
ifdef SHORT
	@python3 benches/models.py $(LODESTONE) --short
else
	@python3 benches/models.py $(LODESTONE) --data $(DATA) --bundle $(BUNDLE) $(if $(MODELS_DATA),--sets $(MODELS_DATA))
endif

# VECTORS=file.npy adds a set of vectors to the generated ones and to those of the example bundle. RETRIEVAL_PEERS=a,b
# selects libraries; the short form takes those that `make bench` installs.
RETRIEVAL_VENV := $(if $(SHORT),bench,peers)
bench-retrieval: build $(BUNDLE) ## Compare the frozen graph with other ANN libraries; SIZES="100000x64 1000000x64 200000x384"
	@scripts/tools.sh $(RETRIEVAL_VENV)
	@$(TOOLS)/$(RETRIEVAL_VENV)/bin/python benches/retrieval.py $(SIZES) --bundle $(BUNDLE) \
		$(if $(VECTORS),--vectors $(VECTORS)) $(if $(RETRIEVAL_PEERS),--peers $(RETRIEVAL_PEERS))

bench-events: build tools-run $(DATA) $(BUNDLE) ## Measure event ingestion, replay and startup, and their effect on serving latency; BENCH_EVENTS=10000000
	@python3 benches/events.py

bench-catalog: build tools-run tools-bench $(BUNDLE) ## Measure category pages, sorting, facets and price updates beside tantivy; BENCH_ITEMS=200000
	@$(TOOLS)/bench/bin/python benches/catalog.py

bench-overload: build tools-run $(DATA) $(BUNDLE) ## Measure the server beyond its capacity, and the cost of TLS, API keys and idle connections; BENCH_SECONDS=10
	@python3 benches/overload.py

bench-startup: build tools-run ## Measure the startup of a server with a bundle of many items; BENCH_ITEMS=1000000
	@python3 benches/startup.py $(LODESTONE)

deny: ## Check licences, versions and sources of all dependencies by the rules of deny.toml
	@scripts/tools.sh deny
	$(TOOLS)/bin/cargo-deny --locked check --hide-inclusion-graph licenses bans sources

structure: ## Measure the code and draw docs/structure.svg; FIGURES=file.json adds figures measured elsewhere
	@python3 scripts/structure.py --svg docs/structure.svg $(if $(FIGURES),--figures $(FIGURES))

simulate: build tools-run ## Simulate shoppers with the learning loop on and off, and with objectives; writes docs/simulation.* and docs/objectives.*
	@mkdir -p $(dir $(SIMULATION))
	$(LODESTONE) simulate $(SIMULATION_FLAGS) --format json --out $(SIMULATION).json --plot $(SIMULATION).svg
	$(LODESTONE) simulate $(OBJECTIVE_FLAGS) --format json --out $(OBJECTIVES).json --plot $(OBJECTIVES).svg

bench-train: build ## Compare a training step of the sequence encoder with PyTorch; fetches PyTorch, some gigabytes
ifdef SHORT
	@python3 benches/training.py --without-torch --steps 2 --repeats 1
else
	@scripts/tools.sh torch
	@$(TOOLS)/torch/bin/python benches/training.py
endif

bench-loyalty: build ## Compare the fit of BG/NBD on 1,000,000 customers with the Python package lifetimes
	@scripts/tools.sh lifetimes
	@$(TOOLS)/lifetimes/bin/python benches/loyalty.py $(if $(SHORT),--customers 2000 --repeats 1)

bench-incentives: build ## Compare policies of incentives on simulated decisions with known effects
	$(LODESTONE) benchmark incentive --generate $(if $(SHORT),20000 --minimum-effect 0.06 --resamples 100,200000) --margin 0.3

clean-demo: ## Remove the example shop's data and bundle; the next run creates them again
	rm -rf target/demo

clean: ## Remove everything that was built or fetched
	cargo clean
