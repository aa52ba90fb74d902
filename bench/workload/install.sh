#!/bin/sh
# Installs the programs of the distribution that are restored: all, or those
# named. What is there already is left alone.
#
#   bench/workload/install.sh [c] [numpy] [lammps]
set -eu

missing=
need() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'ok installed' || missing="$missing $1"; }

[ $# -gt 0 ] || set -- c numpy lammps
for what; do
	case $what in
	c) command -v gcc >/dev/null || need gcc; need libc6-dev; need linux-libc-dev ;;
	numpy) need python3; need python3-numpy; need libopenblas0-pthread ;;
	lammps) need lammps ;;
	*) echo "install.sh: $what is none of c, numpy, lammps" >&2; exit 2 ;;
	esac
done
[ -n "$missing" ] || exit 0
[ "$(id -u)" = 0 ] || { echo "install.sh: must run as root to install:$missing" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086 # a list of words
apt-get -qq install -y --no-install-recommends $missing >/dev/null ||
	{ apt-get -qq update && apt-get -qq install -y --no-install-recommends $missing >/dev/null; }
