# make            builds bin/lazyrestore
# make demo       shows a real program stopped and brought back, with times
# make test       all tests; installs the programs that they need
# make help       the other targets
#
# demo, test and bench install what is missing with apt-get where they are run
# as root on Debian or Ubuntu; elsewhere they say what to install.

GO      ?= go
PREFIX  ?= /usr/local
BINDIR  ?= $(PREFIX)/bin
MANDIR  ?= $(PREFIX)/share/man
BASHDIR ?= $(PREFIX)/share/bash-completion/completions
ZSHDIR  ?= $(PREFIX)/share/zsh/site-functions
FISHDIR ?= $(PREFIX)/share/fish/vendor_completions.d
INSTALL ?= install

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
COMMIT  ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null)

# Without cgo and symbols the executable is static and starts 0.1 ms sooner.
export CGO_ENABLED ?= 0
LDFLAGS = -s -w -X main.buildVersion=$(VERSION) -X main.buildCommit=$(COMMIT)
BUILD   = $(GO) build -trimpath -ldflags

# Where the restoring command is entered: it has its keeper before Go begins.
ENTRY_amd64 = -E github.com/lazyrestore/lazyrestore/lazyrestore/pager.enter
LDFLAGS_lazyrestore = $(ENTRY_$(shell $(GO) env GOARCH))

# The verbs with executables of their own, as far as they are here.
COMMANDS = $(notdir $(wildcard cmd/lazyrestore*))
# Those that are verbs; the others nobody types.
VERBS = $(filter-out lazyrestore-connect,$(COMMANDS))

LINT = $(GO) tool -modfile=.ci/tools/go.mod golangci-lint
FUZZTIME ?= 10000x

# The package whose tests take longest begins first, beside the others.
PACKAGES = ./lazyrestore ./...

.PHONY: all build man completions install uninstall demo test race lint format imports fuzz-short bench bench-quick clean help

all: build

# They are copied, as they are by an installation: of what the linker itself has
# written the page cache has single pages, and a command takes half a millisecond
# longer to start.
build: ## build the commands into bin/
	@mkdir -p bin/.linked
	@set -e; for c in $(COMMANDS); do \
		case $$c in lazyrestore) entry='$(LDFLAGS_lazyrestore)';; *) entry=;; esac; \
		$(BUILD) "$(LDFLAGS) $$entry" -o bin/.linked/$$c ./cmd/$$c; \
		cmp -s bin/.linked/$$c bin/$$c || $(INSTALL) -m 755 bin/.linked/$$c bin/$$c; \
	done

man: build ## write the manual pages into dist/man/
	@set -e; for c in $(VERBS); do bin/$$c __describe | $(GO) run ./cmd/internal/manual dist/man; done

completions: build ## write the completion scripts into dist/completions/
	@mkdir -p dist/completions
	@set -e; for s in bash zsh fish; do bin/lazyrestore completion $$s > dist/completions/lazyrestore.$$s; done

install: man completions ## install commands, manual and completions (PREFIX, DESTDIR)
	$(INSTALL) -d $(DESTDIR)$(BINDIR) $(DESTDIR)$(MANDIR)/man1 $(DESTDIR)$(BASHDIR) $(DESTDIR)$(ZSHDIR) $(DESTDIR)$(FISHDIR)
	$(INSTALL) -m 755 $(addprefix bin/,$(COMMANDS)) $(DESTDIR)$(BINDIR)
	$(INSTALL) -m 644 dist/man/*.1 $(DESTDIR)$(MANDIR)/man1
	$(INSTALL) -m 644 dist/completions/lazyrestore.bash $(DESTDIR)$(BASHDIR)/lazyrestore
	$(INSTALL) -m 644 dist/completions/lazyrestore.zsh $(DESTDIR)$(ZSHDIR)/_lazyrestore
	$(INSTALL) -m 644 dist/completions/lazyrestore.fish $(DESTDIR)$(FISHDIR)/lazyrestore.fish

uninstall: ## remove what install put there
	rm -f $(addprefix $(DESTDIR)$(BINDIR)/,$(COMMANDS)) $(DESTDIR)$(MANDIR)/man1/lazyrestore.1 $(DESTDIR)$(MANDIR)/man1/lazyrestore-*.1
	rm -f $(DESTDIR)$(BASHDIR)/lazyrestore $(DESTDIR)$(ZSHDIR)/_lazyrestore $(DESTDIR)$(FISHDIR)/lazyrestore.fish

demo: build ## stop a program with 1 GiB of state and bring it back
	@bench/workload/install.sh c numpy
	@bin/lazyrestore bench demo

test: build ## run all tests
	@.ci/setup test
	$(GO) test $(TESTFLAGS) -timeout 15m $(PACKAGES)

# A program with the race detector sleeps for a second before it ends, unless it is
# told not to. The tests start thousands, and kill some in a moment that is drawn by
# lot, which would mostly be one of that second. vet sees all in make test.
race: export CGO_ENABLED = 1
race: export GORACE ?= atexit_sleep_ms=0
race: ## run all tests with the race detector
	@.ci/setup test
	$(GO) test -race -vet=off $(TESTFLAGS) -timeout 20m $(PACKAGES)

lint: ## look at code, scripts and manual without running them
	$(LINT) run ./...
	$(LINT) fmt --diff
	GOOS=darwin $(GO) vet ./lazyrestore/page ./lazyrestore/chunk ./lazyrestore/image ./pageserver/wire ./lazyrestore/criu/pagexfer
	$(GO) test ./cmd/internal/rules

format: ## format the code
	$(LINT) fmt

imports: ## accept the packages that bin/lazyrestore links now
	$(GO) test ./cmd/lazyrestore -run '^TestImports$$' -update

fuzz-short: ## fuzz every parser with some thousand inputs (FUZZTIME)
	@FUZZTIME=$(FUZZTIME) .ci/fuzz

bench: build ## take all figures; the report is in dist/bench
	@bench/workload/install.sh
	bin/lazyrestore bench --samples --report dist/bench

bench-quick: build ## see that all figures can be taken, in less than two minutes
	@bench/workload/install.sh
	bin/lazyrestore bench --quick --report dist/bench-quick

clean: ## remove what was built
	rm -rf bin dist

help: ## list the targets
	@awk -F ': .*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile
