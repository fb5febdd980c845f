# The targets of underlay; what needs more than a line is in scripts/.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
SUITES   ?= trixie sid
HERE     ?= soak,sid,trixie,bookworm,docker29
FUZZTIME ?= 1m
ARCHS    ?= amd64,arm64
DIST     ?= dist

# step WORDS,COMMAND: runs COMMAND, says WORDS and how many seconds it took.
step = @start=$$SECONDS; $(2) && printf '%-52s %3d s\n' '$(1)' $$((SECONDS - start))

.PHONY: help build rootfs plugin push release test test-unit test-release test-browser test-netns test-here test-vm pictures fuzz demo bench lint clean

help: ## these lines
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

build: ## build/underlay, one static binary
	$(call step,build/underlay $(VERSION),CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o build/underlay ./cmd/underlay)

rootfs: build ## build/plugin: config.json and rootfs/ of the managed plugin (no Docker needed)
	$(call step,build/plugin,scripts/rootfs build/underlay build/plugin)

plugin: rootfs ## install it in the running Docker as underlay:latest, enabled
	@scripts/plugin create build/plugin

push: rootfs ## push it: make push REGISTRY=registry.example.org/team
	@test -n '$(REGISTRY)' || { echo 'say where to: make push REGISTRY=registry.example.org/team' >&2; exit 2; }
	@scripts/plugin push build/plugin '$(REGISTRY)'

# Go's own version makes the bytes, too: the one that go.mod names.
release: export GOTOOLCHAIN = go$(shell sed -n 's/^go //p' go.mod)
release: ## dist/: binaries, plugins, Debian packages, for ARCHS="amd64,arm64"
	$(call step,$(DIST) $(VERSION),go -C scripts/release run . -archs '$(ARCHS)' -out '$(abspath $(DIST))' -version '$(VERSION)')

test: ## all tests, the VM's included, and a summary (SUITES="trixie sid")
	@scripts/test check unit release browser netns netns-vm:$(firstword $(SUITES)) here:$(HERE) $(SUITES:%=vm:%)

test-unit: ## gofmt, vet, shellcheck and the unit tests, with the race detector
	@scripts/test check unit

test-release: ## make release, twice, and its arm64 binary on an emulated processor
	@scripts/test release
test-browser: ## the page of underlay ui in Chromium, and nothing else
	@scripts/test browser

pictures: ## docs/ui.png and docs/ui-phone.png, of that page
	$(call step,docs/ui.png docs/ui-phone.png,scripts/install-deps browser && go test -count=1 -tags browser ./internal/uitest -args -screenshots $(CURDIR)/docs >/dev/null)

test-netns: ## the tests that need a network namespace of their own, on this kernel
	@scripts/test netns

test-here: ## the tests on real Dockers that need no other kernel (HERE="sid,docker29")
	@scripts/test here:$(HERE)

test-vm: ## the tests on a real Docker in a VM (SUITES="bookworm trixie sid")
	@scripts/test $(SUITES:%=vm:%)

fuzz: ## each fuzz target in turn (FUZZTIME=1m)
	@scripts/fuzz '$(FUZZTIME)'

demo: ## containers on a pretend LAN, and who reached whom (as root)
	@scripts/demo

bench: ## measure all of docs/performance.md, and write it: more than an hour (as root)
	@scripts/bench

lint: ## the linters of .golangci.yml, and govulncheck
	@scripts/lint

clean: ## delete build/ and dist/
	rm -rf build dist
