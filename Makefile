# The front door. Every target is one script or one go command.
TAGS := seccomp netgo osusergo
VERSION ?= $(shell git describe --always --dirty 2>/dev/null || echo dev)
COMMIT ?= $(shell git rev-parse --short HEAD 2>/dev/null || echo unknown)
STATIC := -s -w -linkmode external -extldflags -static
LDFLAGS := -X skep/appliance.Version=$(VERSION) -X skep/appliance.Commit=$(COMMIT) $(STATIC)
export CGO_ENABLED := 1

.PHONY: build demo test bench lint fuzz

build: ## bin/skep, static, with the program that containers start from in it
	.ci/packages libseccomp-dev pkg-config
	go build -trimpath -buildvcs=false -tags "$(TAGS)" -ldflags "$(STATIC)" -o exec/embedded/skep ./exec/doors/runtime
	cd exec/embedded && sha256sum skep >skep.sha256 && gzip -fn skep
	go build -trimpath -tags "$(TAGS) embedded" -ldflags "$(LDFLAGS)" -o bin/skep .

demo: build ## a node, a service, a page; ctrl-C cleans up
	.ci/demo

test: build ## everything the project tests
	.ci/test

bench: build ## the numbers, beside their peers
	.ci/bench

lint: ## the linters of .golangci.yml, pinned
	go tool -modfile=.ci/tools.mod golangci-lint run

fuzz: ## every fuzz target for FUZZTIME (10s)
	.ci/fuzz
