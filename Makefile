# The commands of this repository; `make` alone lists them. Each is a script in
# hack/, which also explains the environment variables that it honours.
.DEFAULT_GOAL := help
.PHONY: help dev demo test e2e bench image lint fmt

help: ## This list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "What is built or downloaded is kept in $${PALISADE_CACHE:-$${XDG_CACHE_HOME:-~/.cache}/palisade}; PALISADE_CACHE chooses another place."

dev: ## All of Palisade on this machine until Ctrl-C (ONCE=1: until version 2 is served; DATABASE_URL, KUBECONFIG: yours)
	@hack/dev.sh

demo: ## A paused worker wakes up and is refused; needs no cluster (ARGS="--unfenced", ARGS="-o json")
	@hack/demo.sh $(ARGS)

test: ## All tests, with Postgres and Kubernetes of their own (ARGS="NAME" for some)
	@hack/test.sh $(ARGS)

e2e: ## The chart on a real node: real pods, a model server, failures; as root on Debian (ARGS="NAME", ARGS=--short, ARGS=--list; KUBECONFIG: on yours)
	@hack/e2e.sh $(ARGS)

bench: ## What it costs, beside what people use instead (ARGS="--quick", ARGS="--only NAME", ARGS=--update-docs)
	@hack/bench.sh $(ARGS)

image: ## The container image, as a docker-archive, by buildah (ARGS=--failpoints: for tests)
	@hack/image.sh $(ARGS)

lint: ## Formatting, clippy, licences and bans of dependencies, shell scripts
	@hack/lint.sh

fmt: ## Format the code
	cargo fmt
	gofmt -w tests/cluster tests/dns benches/rivals
