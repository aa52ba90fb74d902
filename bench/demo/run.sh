#!/bin/sh
# What `make demo` does after building: installs the program that is shown where
# it is missing (NumPy; without it a Go program takes its place), and shows it.
set -eu
cd "$(dirname "$0")/../.."

[ "$(id -u)" = 0 ] || { echo "demo: must run as root: userfaultfd and ptrace ask for it" >&2; exit 5; }
bench/workload/install.sh c numpy || echo "demo: goes on without NumPy" >&2
if [ ! -x bin/lazyrestore ] || [ ! -x bin/lazyrestore-bench ]; then make -s build; fi
exec bin/lazyrestore bench --quiet "$@" demo
