#!/bin/sh
# Installs a CRIU that works on new kernels, to compare with: the one of Debian
# trixie (4.1.1), in a directory of its own, whatever the machine runs itself.
#
#   bench/criu/install.sh [DIR]      # default ${XDG_CACHE_HOME:-~/.cache}/lazyrestore/criu
#
# The last line on stdout is the path of DIR/criu, a wrapper that takes CRIU's
# own arguments. Run again it returns at once. Needs root (debootstrap, and
# CRIU itself), and the Debian mirror of the machine's own apt sources.
#
# CRIU keeps what it has probed of the kernel in /run/criu.kdat, but writes it
# only where /run is a tmpfs; without it every call pays 25-35 ms for probing
# again. Comparing with such a CRIU would be unfair, so the file is made here,
# by a `criu check` that sees a tmpfs on /run, and put into the real /run.
set -eu

suite=trixie
dir=${1:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/lazyrestore/criu}
root=$dir/root
kdat=/run/criu.kdat

say() { echo "criu/install.sh: $*" >&2; }
die() { say "$*"; exit 1; }

# mirror is the address that the machine's own apt sources give for Debian.
mirror() {
	apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(SITE)' 'Created-By: Packages' |
		sed -n 's/^Debian|Debian|//p' | sort -u | head -n 1
}

# fetch lays the root file system out beside its place and moves it there whole.
fetch() {
	export DEBIAN_FRONTEND=noninteractive
	command -v debootstrap >/dev/null || apt-get -qq install -y debootstrap >&2 ||
		{ apt-get -qq update >&2 && apt-get -qq install -y debootstrap >&2; }
	from=$(mirror)
	# Without downloaded lists apt does not know whose archive a source is.
	[ -n "$from" ] || { apt-get -qq update >&2; from=$(mirror); }
	[ -n "$from" ] || die "the apt sources of this machine name no Debian mirror"
	rm -rf "$root.partial"
	say "debootstrap $suite into $root"
	debootstrap --variant=minbase --include=criu "$suite" "$root.partial" "$from" >"$dir/debootstrap.log" 2>&1 ||
		die "debootstrap ended with $?: see $dir/debootstrap.log"
	rm -rf "$root.partial/var/cache/apt/archives" "$root.partial/var/lib/apt/lists"
	rm -rf "$root"
	mv "$root.partial" "$root"
}

# wrapper runs CRIU from outside of its root, so that it sees the machine's own
# files, with the libraries that it was built for.
wrapper() {
	cat >"$dir/criu.new" <<-END
		#!/bin/sh
		exec '$root/lib64/ld-linux-x86-64.so.2' --library-path '$root/lib/x86_64-linux-gnu:$root/usr/lib/x86_64-linux-gnu' '$root/usr/sbin/criu' "\$@"
	END
	chmod 755 "$dir/criu.new"
	mv "$dir/criu.new" "$dir/criu"
}

# cache has CRIU write its kernel cache where it is willing to.
cache() {
	unshare -m --propagation private sh -eu -c '
		mount -t tmpfs tmpfs /run
		"$1" check >"$2/check.log" 2>&1 || { cat "$2/check.log" >&2; exit 1; }
		cp "$3" "$2/criu.kdat"' sh "$dir/criu" "$dir" "$kdat" ||
		die "criu check does not pass on this machine, or wrote no $kdat"
	cp "$dir/criu.kdat" "$kdat.lazyrestore-new"
	mv "$kdat.lazyrestore-new" "$kdat"
}

[ "$(id -u)" = 0 ] || die "must run as root"
mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9
dir=$(cd "$dir" && pwd)
root=$dir/root
[ -x "$root/usr/sbin/criu" ] || fetch
[ -x "$dir/criu" ] || wrapper
# The cache is good for one kernel and one boot.
boot=$(cat /proc/sys/kernel/random/boot_id)
if [ ! -s "$kdat" ] || [ "$(cat "$dir/kdat.boot" 2>/dev/null)" != "$boot" ]; then
	cache
	echo "$boot" >"$dir/kdat.boot"
fi
echo "$dir/criu"
