# Everything a developer or a newcomer runs. Only Go and make are needed for
# build, demo and test; what else a target wants, it says.
SHELL := /bin/bash -o pipefail
GO ?= go
TOOLS := $(CURDIR)/bin/tools
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X github.com/sealpod/sealpod/podvm.version=$(VERSION)
# The race detector needs a C compiler; everything else here does not.
RACE := $(if $(shell command -v $(shell $(GO) env CC)),-race,)

.PHONY: build install demo test test-vm image initializer-image lint fuzz bench bench-model proto clean
build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/sealpod ./cmd/sealctl

# What a pod VM holds of Sealpod: the binary, a link for each program it stands in
# for, and the units. make install DESTDIR=tree; in an image with upstream's units,
# UNITDIR=/etc/systemd/system takes the place of those.
APPLETS := attestation-agent confidential-data-hub api-server-rest cdh-oneshot agent-protocol-forwarder \
  process-user-data azure-ready scratch-storage setup-nat-for-imds storage-initializer
BINDIR ?= /usr/local/bin
UNITDIR ?= /usr/lib/systemd/system
install:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(DESTDIR)$(BINDIR)/sealpod ./cmd/sealpod
	for a in $(APPLETS); do ln -sf sealpod $(DESTDIR)$(BINDIR)/$$a; done
	cd systemd/system && for u in $$(find . -type f); do install -D -m 644 $$u $(abspath $(DESTDIR)$(UNITDIR))/$$u; done
	install -D -m 644 systemd/system-preset/20-sealpod.preset $(DESTDIR)/usr/lib/systemd/system-preset/20-sealpod.preset
	install -D -m 644 systemd/tmpfiles.d/sealpod.conf $(DESTDIR)/usr/lib/tmpfiles.d/sealpod.conf

# make demo ARGS='--image docker.io/library/alpine:3'
# make demo TEE=tdx-sim (or snp-sim, az-tdx-sim, az-snp-sim; sample is the default)
# Standard output is the demo's alone: make demo ARGS=--json | jq .ok
demo:
	@$(MAKE) --no-print-directory build >&2
	@bin/sealctl demo $(if $(TEE),--tee $(TEE)) $(ARGS)

# Parts that need root or a Debian package are skipped without it, and listed
# at the end.
SKIPS := $(CURDIR)/bin/skipped-tests
test:
	@mkdir -p bin && : >$(SKIPS)
	@$(if $(RACE),,echo "NOTE: no C compiler found, so the race detector is off")
	SEALPOD_SKIPS=$(SKIPS) $(GO) test $(RACE) -count=1 ./...
	@if [ -s $(SKIPS) ]; then echo "SKIPPED, because this machine lacks what they need:"; sort $(SKIPS) | sed 's/^/  /'; fi

# Tests that need a machine of their own, as for device-mapper, run in virtual
# machines: by KVM where it works, else by emulation. Needs the Debian packages
# qemu-system-x86, mmdebstrap, xz-utils and swtpm, and for the machine that boots
# the image also ovmf, xorriso and what make image asks for; bin/vm keeps what it
# downloads.
test-vm:
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && \
	  TMPDIR=$$tmp SEALPOD_TEST_VM=1 SEALPOD_REQUIRE_TOOLS=1 $(GO) test -count=1 -v -timeout 30m -skip '^TestInGuest' ./podvm/vmtest

# The disk image of a pod VM, from a fixed state of Debian's archive; bin/image
# keeps it and what was downloaded. It takes Debian packages, which it names.
# make image ARGS='--kata-agent PATH --pause-bundle DIR --profile debug'
# make image ARGS='--mirror http://deb.debian.org/debian'
IMAGE := $(CURDIR)/bin/image
image:
	@rm -rf $(IMAGE)/tree && mkdir -p $(IMAGE)
	@$(MAKE) --no-print-directory install DESTDIR=$(IMAGE)/tree
	@$(GO) run ./podvm/image/mkimage --cache $(IMAGE)/cache --tree $(IMAGE)/tree --out $(IMAGE)/podvm --qcow2 $(ARGS)

# The image of the storage initializer, which KServe runs in pods with a model, as an
# OCI layout, or anywhere else: make initializer-image TO=registry.example/initializer:1
TO ?= oci:$(CURDIR)/bin/storage-initializer:latest
initializer-image: build
	bin/sealctl model image $(TO) --binary bin/sealpod

GOLANGCI_LINT := v2.15.0
lint: $(TOOLS)/golangci-lint
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	$(TOOLS)/golangci-lint run
	$(GO) mod tidy -diff

$(TOOLS)/golangci-lint:
	GOBIN=$(TOOLS) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT)

# Each fuzz target for FUZZTIME. A package is linked once for all its targets.
FUZZTIME ?= 10s
fuzz:
	@set -e; tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	for dir in $$(git grep -l '^func Fuzz' -- '*_test.go' | xargs -n 1 dirname | sort -u); do \
	  $(GO) test -c -fuzz . -o $$tmp/fuzz.test ./$$dir; \
	  names=$$(cd $$dir && $$tmp/fuzz.test -test.list '^Fuzz'); \
	  for f in $$names; do \
	    echo "$$dir $$f"; \
	    (cd $$dir && $$tmp/fuzz.test -test.run '^$$' -test.fuzz "^$$f$$" -test.fuzztime $(FUZZTIME) -test.fuzzminimizetime 10x -test.fuzzcachedir $$tmp/cache); \
	  done; \
	done

# Benchmarks of functions, then of whole processes; bench/RESULTS.md keeps them.
# The last pulls images of SEALPOD_BENCH_MB=1000, a quarter of an hour and 11 GB
# of memory or disk; SEALPOD_BENCH_CHECK=1 makes a missed bar a failure.
DEMO := ./cmd/sealctl/internal/demo
bench:
	$(GO) test -run '^$$' -bench . -benchtime 200ms $$($(GO) list ./... | grep -v /demo$$)
	$(GO) test -run '^$$' -bench ExecToReady -benchtime 11x $(DEMO)
	$(GO) test -run '^$$' -bench 'IdleMemory|HundredSecrets|Pull500MB|DataHub' -benchtime 1x $(DEMO)
	SEALPOD_BENCH_MB=$${SEALPOD_BENCH_MB:-1000} $(GO) test -run '^$$' -bench PullImages -benchtime 1x -timeout 1h $(DEMO)
	@$(MAKE) --no-print-directory bench-model

# The storage initializer beside other ways to get a model; 4 GiB of it take 26 GB
# of the disk of TMPDIR and some minutes. Needs curl and openssl.
AGE := v1.3.2
bench-model: $(TOOLS)/age
	SEALPOD_BENCH_MB=$${SEALPOD_BENCH_MB:-4096} $(GO) test -run '^$$' -bench FetchModel -benchtime 1x -timeout 1h $(DEMO)

$(TOOLS)/age:
	GOBIN=$(TOOLS) $(GO) install filippo.io/age/cmd/age@$(AGE) filippo.io/age/cmd/age-keygen@$(AGE)

# Regenerates api/*.pb.go from the .proto files.
proto:
	GOBIN=$(TOOLS) $(GO) install github.com/bufbuild/buf/cmd/buf@v1.75.0
	GOBIN=$(TOOLS) $(GO) install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
	GOBIN=$(TOOLS) $(GO) install github.com/containerd/ttrpc/cmd/protoc-gen-go-ttrpc@v1.2.10
	cd api && PATH=$(TOOLS):$$PATH buf lint && PATH=$(TOOLS):$$PATH buf generate

clean:
	rm -rf bin
